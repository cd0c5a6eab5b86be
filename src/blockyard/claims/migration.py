"""Claims of the documents about migration and rank, measured on a trained model: other blocks put into it with fitted
weights, and nothing trained unless it is said."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import nn

from blockyard.claims.claim import Finding, Verdict, claim, judge_all
from blockyard.claims.keep import recall
from blockyard.claims.trained import LENGTH, Step, Trained, trained
from blockyard.standard.attention import StandardAttention
from blockyard.transplant.measure import token_losses
from blockyard.transplant.outputs import OutputSettings, fit_by_output

# "Less than one per cent", and where a loss counts as near.
LITTLE, NEAR = 0.01, 0.02
# Tokens on which a spectral mixer learns what the block gave that had attention.
SPECTRAL_TOKENS = 30_720


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
    found = recall(lambda: _spectral(subject, layer), f"trained {subject.stamp} spectral in {layer}, {SPECTRAL_TOKENS}")
    replaced, dropped = (found[name] / subject.original - 1 for name in ("replaced", "dropped"))
    said = _percent([replaced, dropped, window])
    return Finding(
        f"{said[0]} for one layer of {len(subject.model.layers)}; {said[1]} without any mixer there",
        "holds" if replaced < LITTLE and replaced < dropped else "partly" if replaced < dropped else "false",
        f"{subject.name}, layer {layer}, value and output maps copied, {SPECTRAL_TOKENS:,} tokens of training on "
        f"the block's own output (relative squared error {found['error']:.2f} at the end). A window of 64 tokens with "
        f"its first four costs {said[2]} there, without any training.",
        {"replaced": replaced, "dropped": dropped, "window": window, "error": found["error"]},
    )


def _spectral(subject: Trained, layer: int) -> dict[str, float]:
    """Return the loss with a spectral mixer in one layer, trained to give what its block gave, and with nothing
    there."""
    settings = OutputSettings(tokens=SPECTRAL_TOKENS, length=LENGTH, precision="fp32")
    with warnings.catch_warnings():
        # That it is research is what is measured.
        warnings.simplefilter("ignore", UserWarning)
        fit = fit_by_output(subject.model, "spectral", subject.running, layers=[layer], settings=settings)
    replaced = float(token_losses(fit.model, subject.report).double().mean())
    with torch.no_grad():
        nn.init.zeros_(fit.model.layers[layer].attn.output_proj.weight)
    dropped = float(token_losses(fit.model, subject.report).double().mean())
    return {"replaced": replaced, "dropped": dropped, "error": fit.errors[layer]}
