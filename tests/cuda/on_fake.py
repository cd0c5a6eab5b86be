"""What runs on fake CUDA, in a process of its own: `python -m tests.cuda.on_fake LIBRARY fast|slow|NAME`.

Prints a line of JSON for each case: its name, what broke it or null, and what was noted. The library is what
`compile_card` made; torch has to be told of it before it is imported, which is why this is no test by itself.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.fixtures import fake_cuda

if __name__ == "__main__":
    fake_cuda.load_card(sys.argv[1])

import torch
from torch import Tensor

from blockyard.models.lm import LMConfig, TransformerLM
from blockyard.models.trunk import Trunk
from blockyard.nn import attention_flex
from blockyard.nn.dropout import set_dropout_keys
from blockyard.nn.segments import Segments
from blockyard.registry.register import names
from tests.fixtures.every_model import BATCH, LENGTH, MODELS, WORDS, outputs_of
from tests.fixtures.fake_cuda import Noted, moved, on_fake_cuda

# Those that go by every file that asks what the device is; the others are slow proofs.
FAST = {
    "trains lm standard[window=3]+glu", "trains lm mla[decode=absorbed,kernel=sdpa,cache=mixed,kv_rank=12]+swiglu",
    "trains lm tva+vft", "trains lm spectral[window=8,chunk=4]+relu2", "trains lm standard+moe[n_experts=4,k=2]",
    "trains classify spectral", "trains price quantile", "trains signal complex mixture",
    "decodes mla[decode=absorbed,window=3]", "decodes padded standard[window=4,sinks=1]",
    "decodes padded spectral[window=8,chunk=4]", "decodes standard+moe[n_experts=4,k=2]", "packs mla/tva+vft",
    "flexes padding", "flexes documents", "flexes refused", "updates by muon", "writes by chance",
}  # fmt: skip
DECODED = (
    "standard", "standard[window=4,sinks=1]", "standard[window=4,n_kv_heads=1]", "mla", "mla[decode=absorbed,window=3]",
    "tva+vft", "spectral[window=8,chunk=4]", "spectral[window=6,gate=token]", "standard+moe[n_experts=4,k=2]",
)  # fmt: skip
CONFORMING = (*(("attn", name) for name in names("attn")), ("ffn", "swiglu"), ("ffn", "vft"))
PACKED = ("standard[window=3,sinks=1]", "spectral[window=8,chunk=4]", "mla/tva+vft", "standard+moe[n_experts=4]")


def put(tensor: Tensor) -> Tensor:
    """A tensor like it on the fake device."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")


def put_all(segments: Segments) -> None:
    """Bring there what a layout of documents holds: it was made of numbers, which fakes have not."""
    for name, value in vars(segments).items():
        if isinstance(value, Tensor):
            setattr(segments, name, put(value))
    segments._begins = [(put(rows), put(places)) for rows, places in segments._begins]


def trained(name: str) -> Noted:
    """Forward and backward with padding where a model takes it; bfloat16 where it does, as a card trains it."""
    case = MODELS[name](torch.float32, True)
    half = name.startswith(("lm", "classify"))
    dtype = torch.bfloat16 if half else torch.float32
    case.model.to(dtype)
    if isinstance(case.model, Trunk):
        # All are alike.
        case.model.layers = case.model.layers[:1]
    with on_fake_cuda() as noted:
        model = moved(case.model).train()
        inputs, given = [put(x) for x in case.inputs], {name: put(x) for name, x in case.given.items()}
        noted.found.clear()
        outputs = outputs_of(model(*inputs, **given)).values()
        wide = [(torch.view_as_real(out) if out.is_complex() else out).float() for out in outputs if out.requires_grad]
        torch.stack([out.square().mean() for out in wide]).sum().backward()
    return noted


def lm(blocks: str, dropout: float = 0.0) -> TransformerLM:
    layers = 1 + blocks.count("/")
    config = LMConfig(
        vocab_size=WORDS, d_model=16, n_heads=2, n_layers=layers, context=32, blocks=blocks, dropout=dropout
    )
    return TransformerLM(config).to(torch.bfloat16)


def decoded(blocks: str, padded: bool) -> Noted:
    """A prompt and three tokens behind its cache."""
    model = lm(blocks)
    with on_fake_cuda() as noted, torch.no_grad():
        moved(model).eval()
        cache = model.new_cache(BATCH)
        prompt, token = torch.zeros(2, BATCH, LENGTH, dtype=torch.long, device="cuda").unbind(0)
        noted.found.clear()
        for ids in (prompt, *3 * [token[:, :1]]):
            mask = torch.ones(BATCH, cache.length + ids.shape[1], device="cuda") if padded else None
            model(ids, cache=cache, padding_mask=mask, last=1)
    return noted


def packed(blocks: str) -> Noted:
    """Documents in rows, forward and backward; where they begin is read before, once a batch."""
    model = lm(blocks, dropout=0.1)
    segments = Segments(torch.tensor([[0] * 4 + [1] * 5, [0] * 9, [0] * 2 + [1] + [2] * 6]))
    with on_fake_cuda() as noted:
        moved(model).train()
        put_all(segments)
        ids, targets = torch.zeros(2, 3, 9, dtype=torch.long, device="cuda").unbind(0)
        set_dropout_keys(model, torch.arange(3, device="cuda"))
        noted.found.clear()
        model(ids, targets=targets, segments=segments).loss.backward()
    return noted


def flexed(how: str) -> Noted:
    """Windows with sinks, padding or documents at a length for FlexAttention, whose kernel is its own stand-in here."""
    from torch.nn.attention.flex_attention import _identity, flex_attention_hop

    def kernel(q: Tensor, k: Tensor, v: Tensor, *, block_mask: Any, scale: float, enable_gqa: bool) -> Tensor:
        assert enable_gqa == (q.shape[1] != k.shape[1]) and block_mask.shape[-2:] == (640, 640)
        calls.append(q.shape)
        if how == "refused":
            raise RuntimeError("out of resource: shared memory")
        return flex_attention_hop(q, k, v, _identity, block_mask.as_tuple(), scale, {"OUTPUT_LOGSUMEXP": True})[0]

    calls: list[Any] = []
    attention_flex._tried.clear()
    attention_flex._compiled = lambda: kernel
    blocks = "standard[window=64,sinks=2,n_kv_heads=2]"
    model = TransformerLM(LMConfig(WORDS, d_model=64, n_heads=4, n_layers=1, context=640, blocks=blocks))
    segments = Segments(torch.tensor([[0] * 300 + [1] * 340, [0] * 640]))
    with on_fake_cuda() as noted:
        moved(model.bfloat16()).train()
        put_all(segments)
        ids, targets = torch.zeros(2, 2, 640, dtype=torch.long, device="cuda").unbind(0)
        beside = {"windows": {}, "padding": {"padding_mask": ids + 1}, "documents": {"segments": segments}}
        beside["refused"] = {}
        noted.found.clear()
        model(ids, targets=targets, **beside[how]).loss.backward()
    # First on trial, backward pass included.
    assert calls == [(2, 4, 640, 16)] * (1 if how == "refused" else 2)
    return noted


def conforms(kind: str, name: str) -> Noted:
    """The conformance suite on the device: its numbers mean nothing here, that devices are not mixed does."""
    from blockyard.conformance import check
    from blockyard.registry.register import implementation

    with on_fake_cuda() as noted:
        rows = check(implementation(kind, name).cls, kind=kind, device="cuda").rows
    # Fakes are neither saved nor compiled, and what reads values finds none.
    beyond = ("loaded", "torch compile")
    unknown = ("DynamicOutputShapeException", "DataDependentOutputException")
    broken = [
        f"{row.name}: {row.reason}"
        for row in rows
        if row.outcome == "failed"
        and (
            row.reason.split(":")[0].endswith(("Error", "Exception"))
            or any(word in row.reason for word in ("FakeTensor", "same device"))
        )
        and not (any(word in row.name for word in beyond) or row.reason.startswith(unknown))
    ]
    assert len(rows) > 10 and not broken, broken
    noted.found.clear()
    return noted


def updated(optimizer: str) -> Noted:
    """A step of the optimizers, the norm of the gradients and their clipping."""
    from blockyard.training.config import TrainConfig
    from blockyard.training.optim import Optimizers

    model = lm("standard+swiglu/tva+vft").float()
    with on_fake_cuda() as noted:
        moved(model)
        optimizers = Optimizers(model, TrainConfig(optimizer=optimizer), "bf16")
        for parameter in optimizers.parameters:
            parameter.grad = torch.zeros_like(parameter)
        noted.found.clear()
        optimizers.grad_norm()
        optimizers.clip(10.0)
        for step in range(2):
            optimizers.step(step)
    return noted


def written(temperature: float) -> Noted:
    """The loop that writes text, with a row that ends before another."""
    from blockyard.generation.decode import Decoder
    from blockyard.generation.sampling import SamplingConfig

    model = lm("standard").eval()
    # What a card would say of its memory.
    torch.cuda.mem_get_info = lambda device=None: (1 << 36, 1 << 36)
    sampling = SamplingConfig(temperature=temperature, top_k=5, top_p=0.9, repetition_penalty=1.1, seed=0)
    with on_fake_cuda() as noted:
        decoder = Decoder(moved(model), [[1, 2, 3], [4, 5]], sampling)
        decoder.step()
        noted.found.clear()
        for _ in range(2):
            decoder.step()
    return noted


def searched(how: str) -> Noted:
    """Beams and a draft's proposals read the device several times a step: only that nothing is mixed is asked."""
    from blockyard.generation import sampling
    from blockyard.generation.beam import beam_search
    from blockyard.generation.sampling import SamplingConfig
    from blockyard.generation.speculative import SpeculativeDecoder

    torch.cuda.mem_get_info = lambda device=None: (1 << 36, 1 << 36)
    # Fakes are not finite.
    sampling._finite = lambda logits: torch.ones(len(logits), dtype=torch.bool)
    model, draft = lm("standard[window=4,sinks=1]").eval(), lm("standard").eval()
    with on_fake_cuda() as noted:
        moved(model), moved(draft)
        if how == "beams":
            beam_search(model, [[1, 2, 3], [4, 5]], max_new_tokens=4, beams=3, n_best=2, end_tokens=[7])
        else:
            decoder = SpeculativeDecoder(model, [[1, 2, 3]], SamplingConfig(seed=0), draft=draft)
            for _ in range(4):
                decoder.step()
    noted.found.clear()
    return noted


CASES: dict[str, Callable[[], Noted]] = {
    **{f"trains {name}": partial(trained, name) for name in MODELS},
    **{f"decodes {blocks}": partial(decoded, blocks, False) for blocks in DECODED},
    **{f"decodes padded {blocks}": partial(decoded, blocks, True) for blocks in DECODED},
    **{f"packs {blocks}": partial(packed, blocks) for blocks in PACKED},
    **{f"conforms {kind} {name}": partial(conforms, kind, name) for kind, name in CONFORMING},
    **{f"flexes {how}": partial(flexed, how) for how in ("windows", "padding", "documents", "refused")},
    **{f"updates by {name}": partial(updated, name) for name in ("muon", "adamw")},
    "writes greedily": partial(written, 0.0),
    "writes by chance": partial(written, 1.0),
    **{f"searches by {how}": partial(searched, how) for how in ("beams", "a draft")},
}
SLOW = CASES.keys() - FAST


def main(names: list[str]) -> None:
    for name in names:
        trouble, found = None, {}
        try:
            found = CASES[name]().found
        except Exception as error:
            frames = [each for each in traceback.extract_tb(error.__traceback__) if "/blockyard/" in each.filename]
            at = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "test"
            trouble = f"{type(error).__name__} at {at}: {str(error).strip().splitlines()[0][:300]}"
        print(json.dumps({"name": name, "trouble": trouble, "noted": [[*key, what] for key, what in found.items()]}))


if __name__ == "__main__":
    import logging

    # torch writes what it raises, too.
    logging.disable(logging.ERROR)
    # The fast ones, the slow ones, or a case by its name.
    asked = {"fast": FAST, "slow": SLOW}.get(sys.argv[2], {sys.argv[2]})
    main([name for name in CASES if name in asked])
