"""From a trained standard model to vein blocks, layer by layer: SVD on activations, then distillation.

Run: python examples/to_vein.py
"""

import sysconfig
from pathlib import Path

import torch

from blockyard import LMConfig, TransformerLM
from blockyard.transplant import distill, from_standard

CONTEXT = 48


def windows(text: torch.Tensor, rows: int) -> torch.Tensor:
    start = torch.randint(0, len(text) - CONTEXT - 1, (rows, 1))
    return text[start + torch.arange(CONTEXT + 1)]


def inputs_of(layer: torch.nn.Module, model: TransformerLM, text: torch.Tensor) -> list[torch.Tensor]:
    """What a layer is given, the layers before it as they are now."""
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        for _ in range(12):
            model(windows(text, 8)[:, :-1])
    hook.remove()
    return seen


def main() -> None:
    torch.manual_seed(0)
    text = torch.tensor(list(Path(sysconfig.get_paths()["stdlib"], "textwrap.py").read_bytes()))
    model = TransformerLM(LMConfig(vocab_size=256, blocks="standard+swiglu", d_model=64, n_layers=2, context=CONTEXT))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        batch = windows(text, 8)
        loss = model(batch[:, :-1], targets=batch[:, 1:]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    held_out = windows(text, 32)

    def measured() -> float:
        with torch.no_grad():
            return model(held_out[:, :-1], targets=held_out[:, 1:]).loss.item()

    print(
        f"standard: {measured():.3f} nats, {sum(p.numel() for p in model.layers.parameters()):,} parameters in blocks"
    )
    for index, teacher in enumerate(model.layers):
        seen = inputs_of(teacher, model, text)
        student = from_standard(teacher, rank=8, calibration_x=torch.cat(seen[:4]))
        model.layers[index] = student
        by_svd = measured()
        distill(student, teacher, seen * 5)
        print(f"layer {index}: {by_svd:.3f} nats by SVD, {measured():.3f} distilled")
    print(f"veins: {measured():.3f} nats, {sum(p.numel() for p in model.layers.parameters()):,} parameters in blocks")


if __name__ == "__main__":
    main()
