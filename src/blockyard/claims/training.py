"""Claims that only training decides: small byte-level language models, classifiers and recall tasks, several seeds.

d = 128, two layers, context 64: small enough to be measured anywhere in minutes. A larger model may differ; what the
figures say is what happens at this size.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from hashlib import sha256
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blockyard.claims import training
from blockyard.claims.claim import Finding, Verdict, claim, judge_all
from blockyard.claims.keep import recall
from blockyard.errors import require
from blockyard.models.lm import LMConfig
from blockyard.registry.pattern import format_choice, parse_choice
from blockyard.report import units
from blockyard.report.stats import Family, interval
from blockyard.tasks.kind import Run
from blockyard.tasks.lm.task import LMTask
from blockyard.tasks.run import make_task
from blockyard.tasks.settings import resolve
from blockyard.text import TextData, TextDataConfig, load_text
from blockyard.training.config import TrainConfig
from blockyard.training.decisions import decide_precision
from blockyard.training.distributed import join_ranks
from blockyard.training.engine import Engine
from blockyard.training.guard import NonFiniteError

SEEDS = (0, 1, 2)
STEPS = 200
TEXT_BYTES = 2_000_000
BASE = LMConfig(vocab_size=256, blocks="standard+standard", d_model=128, n_layers=2, n_heads=4, context=64)
_TRAIN = TrainConfig(
    steps=STEPS, batch_size=16, precision="fp32", compile="off", eval_every=STEPS, eval_batches=40, device="cpu"
)


@cache
def _text(context: int) -> TextData:
    return load_text(TextDataConfig(max_bytes=TEXT_BYTES), context)


def final_losses(model: LMConfig, **train: Any) -> tuple[float, ...]:
    """Return validation loss after training with each seed; infinity for a run that diverged.

    Args:
        model: what is trained.
        train: options of training that differ from those of all runs.
    """
    return tuple(recalled(lambda found: {"loss": found[0]}, "loss", model, seed, **train)["loss"] for seed in SEEDS)


def recalled(
    look: Callable[[tuple[float, LMTask]], Mapping[str, float]], what: str, model: LMConfig, seed: int, **train: Any
) -> dict[str, float]:
    """Return what is seen of a trained model, from an earlier training where that is kept.

    Args:
        look: gives figures of the loss and task of a finished run.
        what: names these figures.
        model: what is trained.
        seed: of weights and batches.
        train: options of training that differ.
    """
    config = replace(_TRAIN, seed=seed, **train)
    described = repr((model, config, TEXT_BYTES))
    name = f"{what} {format_choice(parse_choice(str(model.blocks)))} {sha256(described.encode()).hexdigest()[:12]}"
    return recall(lambda: look(_run(model, config)), f"{name} seed {seed}")


def _run(model: LMConfig, config: TrainConfig) -> tuple[float, LMTask]:
    task = LMTask(model, _text(model.context), config)
    ranks = join_ranks("cpu")
    engine = Engine(task, config, ranks, decide_precision(config, ranks.device))
    try:
        for step in range(config.steps):
            engine.step(step)
    except NonFiniteError:
        return float("inf"), task
    task.model.eval()
    with torch.no_grad():
        return task.evaluate(task.model)["val_loss"], task


def describe(losses: tuple[float, ...]) -> str:
    """Word "1.62 ± 0.01"."""
    if any(loss == float("inf") for loss in losses):
        return f"{sum(loss == float('inf') for loss in losses)} of {len(losses)} diverged"
    return units.plus_minus(*interval(losses))


def better(a: tuple[float, ...], b: tuple[float, ...]) -> Verdict:
    """Return whether a's loss is lower than b's, by the rule of all reports: in part when the seeds do not decide.

    Raises:
        MissingExtra: without scipy, when they could not.
    """
    require("scipy.stats", extra="report")
    words: dict[str, Verdict] = {"better": "holds", "worse": "false"}
    return words.get(Family({"a": a, "b": b}).difference("a", "b").word(), "partly")


def _vein(rank: int, **options: object) -> LMConfig:
    """Return the document's block, causal and with rotary positions so that it can model language at all."""
    extra = "".join(f",{name}={value}" for name, value in options.items())
    return replace(BASE, blocks=f"tva+vft[preset=seed,rope=half,rank={rank},ffn_rank={rank}{extra}]")


def _means(found: Mapping[str, tuple[float, ...]]) -> dict[str, float]:
    return {name: statistics.fmean(losses) for name, losses in found.items()}


def _excess(losses: tuple[float, ...], standard: tuple[float, ...]) -> float:
    """Return by which part of it a mean loss is above that of the standard model."""
    return statistics.fmean(losses) / statistics.fmean(standard) - 1


def _unanimous(verdicts: Sequence[Verdict]) -> Verdict:
    """Return what several comparisons say alike; in part where they differ."""
    return verdicts[0] if len(set(verdicts)) == 1 else "partly"


@claim("vein.loss")
def vein_loss() -> Finding:
    standard, found = final_losses(BASE), {r: final_losses(_vein(r)) for r in (4, 16)}
    excess = {r: _excess(losses, standard) for r, losses in found.items()}
    thin = final_losses(replace(BASE, blocks="standard[head_dim=16]+standard[d_ff=128]"))
    return Finding(
        f"{excess[4]:+.1%} at r = 4, {excess[16]:+.1%} at 16",
        judge_all(*(e < 0.01 for e in excess.values())),
        f"Standard {describe(standard)}, rank 4 {describe(found[4])}, rank 16 {describe(found[16])}. A *thin "
        "standard* block "
        f"(heads of 16, d_ff 128), which is smaller than either, reaches {describe(thin)}.",
        {"excess_r4": excess[4], "excess_r16": excess[16], **_means({"standard": standard, "thin": thin})},
    )


@claim("vein.high_rank")
def vein_high_rank() -> Finding:
    # Factored heads are wider than their rank: four heads of 32 could not have rank 32.
    standard, low, high = (final_losses(replace(m, n_heads=2)) for m in (BASE, _vein(16), _vein(32)))
    gaps = [_excess(losses, standard) for losses in (low, high)]
    return Finding(
        f"{gaps[0]:+.1%} at 16, {gaps[1]:+.1%} at 32",
        judge_all(*(gap < 0.02 for gap in gaps)),
        f"Standard {describe(standard)}, rank 16 {describe(low)}, rank 32 {describe(high)}.",
        {"excess_r16": gaps[0], "excess_r32": gaps[1]},
    )


@claim("vein.normals")
def normals() -> Finding:
    standard, without, with_one = final_losses(BASE), final_losses(_vein(4, s=0)), final_losses(_vein(4))
    mean = _means({"standard": standard, "without": without, "with_one": with_one})
    gap, closed = mean["without"] - mean["standard"], mean["without"] - mean["with_one"]
    return Finding(
        f"{closed:+.3f} of {gap:.3f} nats",
        "holds" if closed > gap / 2 else "partly" if closed > gap / 5 else "false",
        f"s = 0 {describe(without)}, s = 1 {describe(with_one)}, standard {describe(standard)}.",
        {"closed": closed, "gap": gap},
    )


def _activation(name: str, d_ff: int) -> tuple[float, ...]:
    return final_losses(replace(BASE, blocks=f"standard+standard[activation={name},d_ff={d_ff}]"))


@claim("basics.swiglu")
def swiglu() -> Finding:
    gated = final_losses(replace(BASE, blocks="standard+swiglu[d_ff=320]"))
    others = {name: _activation(name, 480) for name in ("relu", "silu")}
    verdicts = [better(gated, losses) for losses in others.values()]
    squared = final_losses(replace(BASE, blocks="standard+relu2[d_ff=480]"))
    return Finding(
        f"SwiGLU {describe(gated)}, ReLU {describe(others['relu'])}, SiLU {describe(others['silu'])}",
        _unanimous(verdicts),
        f"A difference within the seeds' interval counts as none. Squared ReLU, cheaper than either, reaches "
        f"{describe(squared)}.",
        _means({"swiglu": gated, "relu2": squared, **others}),
    )


@claim("basics.rmsnorm_quality")
def rmsnorm_quality() -> Finding:
    rms, layer = final_losses(BASE), final_losses(replace(BASE, norm="layer"))
    worse = better(layer, rms) == "holds"
    return Finding(
        f"RMSNorm {describe(rms)}, LayerNorm {describe(layer)}",
        "false" if worse else "holds",
        "No worse unless the seeds show LayerNorm better.",
        _means({"rms": rms, "layer": layer}),
    )


@claim("basics.prenorm")
def prenorm() -> Finding:
    deep = replace(BASE, d_model=64, n_layers=8)
    rates = (0.02, 0.08)
    pre, post = (
        [final_losses(replace(deep, norm_position=position), lr=rate, matrix_lr=rate) for rate in rates]
        for position in ("pre", "post")
    )
    verdicts = [better(a, b) if float("inf") not in a + b else "holds" for a, b in zip(pre, post)]
    rows = "; ".join(f"rate {r}: pre {describe(a)}, post {describe(b)}" for r, a, b in zip(rates, pre, post))
    return Finding(
        rows,
        judge_all(*(v == "holds" for v in verdicts)),
        "More stable means a lower loss at the same rate here, and that no run diverges.",
        {f"{n}_{r}": statistics.fmean(v) for n, x in (("pre", pre), ("post", post)) for r, v in zip(rates, x)},
    )


def _inside_and_outside(found: tuple[float, LMTask]) -> dict[str, float]:
    """Return the loss by position on rows four times as long, and what the best veins miss of the second layer's
    input."""
    model: Any = found[1].model
    longer = next(iter(_text(256).val_batches(32, 256, 1)))
    states: list[Tensor] = []
    handle = model.layers[1].attn.register_forward_pre_hook(lambda module, inputs: states.append(inputs[0].detach()))
    with torch.no_grad():
        logits = model(longer["input_ids"]).logits
    handle.remove()
    losses = F.cross_entropy(logits.transpose(1, 2), longer["targets"], reduction="none").mean(0)
    rows = states[0][:, :64].flatten(0, 1).double()
    # The best subspace there is, for these very tokens: squared singular values of the states themselves.
    energy = torch.linalg.svdvals(rows).square()
    left = {f"left_{rank}": float((energy[rank:].sum() / energy.sum()).sqrt()) for rank in (4, 16, 32)}
    return {"inside": float(losses[32:64].mean()), "outside": float(losses[128:].mean()), **left}


@claim("vein.manifold")
def manifold() -> Finding:
    figures = [recalled(_inside_and_outside, "trained", BASE, seed) for seed in SEEDS]
    left = {rank: statistics.fmean(found[f"left_{rank}"] for found in figures) for rank in (4, 16, 32)}
    return Finding(
        ", ".join(f"{left[rank]:.2f} at {rank}" for rank in left),
        judge_all(left[4] < 0.3, left[32] < 0.3),
        "An error of 0.3 is the document's own limit. The subspace is the best one for these very tokens, so a learnt "
        "vein misses at least as much.",
        {f"left_{rank}": value for rank, value in left.items()},
    )


@claim("vein.slow_start")
def slow_start() -> Finding:
    slow, full = final_losses(_vein(4)), final_losses(_vein(4), vein_lr_scale=1.0)
    frozen = final_losses(_vein(4), vein_freeze_steps=_TRAIN.steps // 10)
    verdicts = [better(slow, full), better(frozen, slow)]
    return Finding(
        f"{describe(slow)} at a fifth, {describe(full)} at the full rate, {describe(frozen)} frozen first",
        _unanimous(verdicts),
        "A difference within the seeds' interval counts as none.",
        _means({"slow": slow, "full": full, "frozen": frozen}),
    )


@claim("rope.extrapolation")
def rope_extrapolation() -> Finding:
    figures = [recalled(_inside_and_outside, "trained", BASE, seed) for seed in SEEDS]
    inside, outside = ([found[name] for found in figures] for name in ("inside", "outside"))
    gap = statistics.fmean(outside) - statistics.fmean(inside)
    return Finding(
        f"{describe(tuple(inside))} within, {describe(tuple(outside))} beyond",
        "holds" if gap < 0.02 else "partly" if gap < 0.1 else "false",
        "Scores depend on distances only, but distances never seen in training are still unseen. A sliding window "
        "keeps them in range.",
        {"inside": statistics.fmean(inside), "outside": statistics.fmean(outside)},
    )


# As statements.toml tells them.
CLASSIFY_STEPS, RECALL_STEPS = 300, 600


def accuracies(task: str, blocks: str, groups: dict[str, dict[str, Any]]) -> tuple[float, ...]:
    """Return validation accuracy after training with each seed.

    Args:
        task: a kind of task.
        blocks: the layers.
        groups: options of model, train and data.
    """
    fixed = {"precision": "fp32", "compile": "off", "device": "cpu"}
    found = []
    for seed in training.SEEDS:
        train = {**fixed, **groups["train"], "seed": seed}
        options = {**groups, "model": {**groups["model"], "pattern": blocks}, "train": train}
        run = resolve(options, task)
        name = f"{task} {blocks} {sha256(repr(options).encode()).hexdigest()[:12]} seed {seed}"
        # mypy: mypy gives a lambda with a default no type.
        found.append(recall(lambda run=run: {"accuracy": _trained(run)}, name)["accuracy"])  # type: ignore[misc]
    return tuple(found)


def _trained(run: Run[Any, Any]) -> float:
    ranks = join_ranks(run.train.device)
    task = make_task(run)
    engine = Engine(task, run.train, ranks, decide_precision(run.train, ranks.device))
    for step in range(run.train.steps):
        engine.step(step)
    task.model.eval()
    with torch.no_grad():
        return task.evaluate(task.model)["val_accuracy"]


@claim("spectral.wavelet_gain")
def wavelet_gain() -> Finding:
    groups: dict[str, dict[str, Any]] = {
        "model": {"d_model": 64, "n_layers": 2, "n_heads": 4, "context": 256},
        "train": {"steps": CLASSIFY_STEPS, "batch_size": 16, "eval_batches": 100},
        "data": {},
    }
    rates = (0.0, 0.1)
    found = {rate: accuracies("classify", f"spectral[wavelet_on_rate={rate}]", groups) for rate in rates}
    # `better` is of losses: the share of wrong answers.
    wrong = {rate: tuple(1 - right for right in values) for rate, values in found.items()}
    return Finding(
        ", ".join(f"{_percent(values)} at {rate:g}" for rate, values in found.items()),
        better(wrong[0.1], wrong[0.0]),
        "A difference within the seeds' interval counts as none shown.",
        {f"rate_{rate:g}": sum(values) / len(values) for rate, values in found.items()},
    )


@claim("spectral.alignment")
def alignment() -> Finding:
    groups: dict[str, dict[str, Any]] = {
        "model": {"d_model": 64, "n_layers": 2, "n_heads": 4},
        "train": {"steps": RECALL_STEPS, "batch_size": 64, "eval_batches": 4},
        # So few tokens that random noise would often be a key: noise of values alone.
        "data": {"task": "mqar", "definition": "early", "length": 24, "vocab_size": 32, "sizes": (4,)},
    }
    blocks = {"standard": "standard", "spectral": "spectral[window=24]", "hybrid": "spectral[window=24]/standard"}
    found = {name: accuracies("recall", pattern, groups) for name, pattern in blocks.items()}
    mean = {name: sum(values) / len(values) for name, values in found.items()}
    return Finding(
        ", ".join(f"{name} {_percent(values)}" for name, values in found.items()),
        judge_all(
            mean["spectral"] < 0.5 * mean["standard"], mean["standard"] > 0.9, mean["hybrid"] > 0.9 * mean["standard"]
        ),
        "Its weights depend on distances and a summary, never on whether two tokens match. Longer sequences and "
        "budgets are in docs/recall.md.",
        mean,
    )


def _percent(values: tuple[float, ...]) -> str:
    mean, half = interval([100 * value for value in values])
    assert mean is not None
    return f"{mean:.0f} %" if half is None else f"{mean:.0f} ± {half:.0f} %"
