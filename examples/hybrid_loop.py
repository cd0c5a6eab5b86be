"""A training loop of your own over a hybrid: three window layers, then one that sees everything.

The model is a plain `nn.Module`; the optimizer groups are asked from it, so that matrices decay and norms do not.

Run: python examples/hybrid_loop.py
"""

import sysconfig
from pathlib import Path

import torch

from blockyard import LMConfig, TransformerLM
from blockyard.nn import roles


def parameter_groups(model: torch.nn.Module) -> list[dict]:
    """Weight decay for matrices only, by what each module says that its parameters are."""
    known, named = roles(model), dict(model.named_parameters())
    matrices = [named[name] for name, role in known.items() if role.kind == "matrix"]
    others = [named[name] for name, role in known.items() if role.kind != "matrix"]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]


def main() -> None:
    torch.manual_seed(0)
    source = Path(sysconfig.get_paths()["stdlib"], "textwrap.py").read_bytes()
    text = torch.tensor(list(source))
    pattern = "standard[window=16]*3/standard+swiglu"
    model = TransformerLM(LMConfig(vocab_size=256, blocks=pattern, d_model=64, n_layers=4, n_heads=4, context=64))
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=3e-3)
    for step in range(61):
        start = torch.randint(0, len(text) - 65, (8, 1))
        window = text[start + torch.arange(65)]
        output = model(window[:, :-1], targets=window[:, 1:])
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: {output.loss.item():.3f} nats per byte")

    # Decoding with the cache that each layer's mixer asks for.
    model.eval()
    prompt = torch.tensor([list(b"def ")])
    cache = model.new_cache(batch=1)
    with torch.no_grad():
        token = model(prompt, cache=cache).logits[:, -1:].argmax(-1)
        written = [token]
        for _ in range(20):
            token = model(token, cache=cache).logits[:, -1:].argmax(-1)
            written.append(token)
    print(repr(bytes(torch.cat(written, dim=1)[0].tolist())))


if __name__ == "__main__":
    main()
