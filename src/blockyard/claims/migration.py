"""Claims of the documents about migration and rank, measured on a trained model: other blocks put into it with fitted
weights, and nothing trained unless it is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from blockyard.claims.claim import Finding, Verdict, claim, judge_all
from blockyard.claims.keep import recall
from blockyard.claims.trained import Step, Trained, trained
from blockyard.models.lm import TransformerLM, build_lm
from blockyard.nn.parity import evaluating
from blockyard.registry.pattern import check_layer
from blockyard.standard.attention import StandardAttention
from blockyard.transplant.measure import token_losses
from blockyard.transplant.migration import distill

# "Less than one per cent", and where a loss counts as near.
LITTLE, NEAR = 0.01, 0.02
# Steps of training a spectral mixer on what the attention before it gave, a piece of text each.
SPECTRAL_STEPS = 60


def _attention(rank: int) -> Step:
    # Tri-vein attention of rank r is attention with heads r wide, so this is its best start.
    return Step(f"standard[head_dim={rank},v_dim={rank}]")


def _ffn(rank: int) -> Step:
    return Step(f"vft[rank={rank}]")


def _percent(values: Sequence[float]) -> list[str]:
    return [f"{value:+.1%}" if abs(value) < 10 else f"{value:+.0%}" for value in values]


@claim("migration.loss")
def loss() -> Finding:
    subject = trained()
    both, ffn, attention = (
        subject.excess(*steps) for steps in ((_ffn(4), _attention(4)), (_ffn(4),), (_attention(4),))
    )
    said = _percent([both, ffn, attention])
    return Finding(
        f"{said[0]} for both, {said[1]} FFN, {said[2]} attention",
        judge_all(both < LITTLE, ffn < LITTLE, attention < LITTLE),
        f"{subject.name}, {subject.original:.3f} nats per token as it is; heads of {_heads(subject)} and FFNs of width "
        f"{subject.model.config.d_model} keep 4 directions, the best ones by their moments.",
        {"both": both, "ffn": ffn, "attention": attention, "original": subject.original},
    )


@claim("migration.high_rank")
def high_rank() -> Finding:
    subject = trained()
    found = {r: (subject.excess(_ffn(r)), subject.excess(_attention(r))) for r in (16, 32)}
    said = {r: _percent(pair) for r, pair in found.items()}
    return Finding(
        "; ".join(f"rank {r}: FFN {ffn}, attention {attention}" for r, (ffn, attention) in said.items()),
        judge_all(*(value < NEAR for pair in found.values() for value in pair)),
        f"{subject.name}. Near is less than {100 * NEAR:.0f} % more loss. The rank is of heads that were "
        f"{_heads(subject)} wide, and of FFNs that read and write {subject.model.config.d_model} directions.",
        {f"{part}_r{r}": v for r, pair in found.items() for part, v in zip(("ffn", "attention"), pair)},
    )


def _heads(subject: Trained) -> str:
    attention = subject.model.layers[0].attn
    return str(attention.head_dim) if isinstance(attention, StandardAttention) else "any width"


@claim("migration.ffn_width")
def ffn_width() -> Finding:
    subject = trained()
    width = subject.model.config.d_model
    ranks = [width // 4, 4 * width // 9, 2 * width // 3]
    found = [subject.excess(_ffn(rank)) for rank in ranks]
    full = "Even two thirds of the directions lose that much: what the FFNs read fills all of them."
    return Finding(
        ", ".join(f"{said} at {rank}" for said, rank in zip(_percent(found), ranks)),
        "holds" if found[-1] < LITTLE else "partly" if found[-1] < 5 * LITTLE else "false",
        f"{subject.name}, width {width}. "
        + (full if found[-1] > LITTLE else "Two thirds of the directions are enough."),
        {f"r{rank}": value for rank, value in zip(ranks, found)},
    )


@claim("migration.steps")
def steps() -> Finding:
    subject = trained()
    width, head = subject.model.config.d_model, int(_heads(subject))
    # The most generous ranks at which there still is something to save.
    first, second = _ffn(2 * width // 3), _attention(3 * head // 8 * 2)
    found = [subject.excess(first), subject.excess(first, second), subject.excess(second)]
    said = _percent(found)
    order = "The first step costs most: it is the FFNs that have no width to give up." if found[0] > found[2] else ""
    return Finding(
        f"{said[0]} after the FFNs, {said[1]} after attention, {said[2]} with attention alone",
        judge_all(found[0] < LITTLE, found[1] < LITTLE),
        f"{subject.name}, without training in between. {order}".strip(),
        {"ffn": found[0], "both": found[1], "attention": found[2]},
    )


@claim("migration.latent")
def latent() -> Finding:
    subject = trained()
    width, head = subject.model.config.d_model, int(_heads(subject))
    attention = subject.model.layers[0].attn
    assert isinstance(attention, StandardAttention)
    numbers = attention.n_kv_heads * (head + attention.v_dim)
    found = {rank: subject.excess(Step(f"mla[kv_rank={rank},rope_dim={head}]")) for rank in (width // 4, width // 2)}
    cache = {rank: (rank + head) / numbers for rank in found}
    high, usual = _percent(list(found.values()))
    verdict: Verdict = judge_all(found[width // 2] < LITTLE, cache[width // 2] < 0.95)
    return Finding(
        f"{high} at {width // 4}, {usual} at {width // 2}",
        verdict,
        f"{subject.name}, whose cache has {numbers} numbers per token and layer: with the rotary key of {head} they "
        f"become {width // 4 + head} and {width // 2 + head}. What a latent saves is counted against heads that may "
        "share keys already.",
        {f"loss_r{rank}": value for rank, value in found.items()} | {f"cache_r{r}": v for r, v in cache.items()},
    )


@claim("migration.spectral")
def spectral() -> Finding:
    subject = trained()
    layer = len(subject.model.layers) // 2
    window = subject.excess(Step("standard[window=64,sinks=4]", (layer,)))
    found = recall(lambda: _spectral(subject, layer), f"trained {subject.stamp} spectral in {layer}, {SPECTRAL_STEPS}")
    replaced, dropped = (found[name] / subject.original - 1 for name in ("replaced", "dropped"))
    said = _percent([replaced, dropped, window])
    return Finding(
        f"{said[0]} for one layer of {len(subject.model.layers)}; {said[1]} without any mixer there",
        "holds" if replaced < LITTLE and replaced < dropped else "partly" if replaced < dropped else "false",
        f"{subject.name}, layer {layer}, value and output maps copied, {SPECTRAL_STEPS} steps of training on the "
        f"block's own output (relative squared error {found['error']:.2f} at the end). A window of 64 tokens with the "
        f"first four costs {said[2]} there, without any training.",
        {"replaced": replaced, "dropped": dropped, "window": window, "error": found["error"]},
    )


def _spectral(subject: Trained, layer: int) -> dict[str, float]:
    """Return the loss with a spectral mixer in one layer, trained to give what the attention gave, and with nothing
    there."""
    model = subject.model
    specs = list(model.config.layers)
    specs[layer] = check_layer(replace(specs[layer], attn="spectral", attn_options={}))
    changed = build_lm(replace(model.config, blocks=tuple(specs)), 0)
    mixer, old = changed.layers[layer].attn, model.layers[layer].attn
    known = {name: t for name, t in model.state_dict().items() if not name.startswith(f"layers.{layer}.attn.")}
    changed.load_state_dict(known, strict=False)
    with torch.no_grad():
        shared = old.n_heads // old.n_kv_heads
        values = old.v_proj.weight.unflatten(0, (old.n_kv_heads, -1)).repeat_interleave(shared, 0).flatten(0, 1)
        mixer.v_proj.weight.copy_(values)
        mixer.output_proj.weight.copy_(old.output_proj.weight)
    inputs = _block_inputs(model, layer, subject.calibrate)
    student, teacher = changed.layers[layer], model.layers[layer]
    # Only the mixer: what stands around it is the trained model's.
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name.startswith("attn."))
    errors = distill(student, teacher, (inputs[i % len(inputs)][None] for i in range(SPECTRAL_STEPS)))
    replaced = float(token_losses(changed, subject.report).double().mean())
    with torch.no_grad():
        nn.init.zeros_(mixer.output_proj.weight)
    dropped = float(token_losses(changed, subject.report).double().mean())
    return {"replaced": replaced, "dropped": dropped, "error": sum(errors[-6:]) / 6}


def _block_inputs(model: TransformerLM, layer: int, ids: Tensor) -> Tensor:
    """Return what a block reads of a text, [pieces, length, d_model]."""
    seen: list[Tensor] = []
    handle = model.layers[layer].register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0].detach()))
    try:
        with evaluating(model):
            for piece in ids:
                model(piece[None], last=0)
    finally:
        handle.remove()
    return torch.cat(seen)
