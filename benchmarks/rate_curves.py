"""The loss of every registered block over the learning rate, under Muon and AdamW, whole and as short as a probe is.

    python benchmarks/rate_curves.py [--tokens 300000] [--seeds 1] [--only mla,moe] [--folder DIR] [--out FILE.json]

Terms are the demo's: language models on the source of Python's standard library, equal in parameters, 4 layers of
width 128, context 64. Each choice is trained at the recipe's rates times each factor (for Muon's matrices and AdamW's
parameters together), once with the whole budget and once, under Muon, with the share of it and the seed that
`compare --rates` gives to a probe. Asked is where each block is at its best, how flat its curve is there, and whether
the rate that the probes choose is the whole run's, or what it costs where it is not. Runs lie in DIR and are kept: the
same command goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from blockyard.compare.jobs import Job
from blockyard.compare.live import make_board
from blockyard.compare.plan import base_run, configurations, make_plan, run_of
from blockyard.compare.rates import SEEDS_APART, SHARE, best_factor
from blockyard.compare.runs import train_jobs
from blockyard.compare.settings import CompareConfig
from blockyard.errors import InputError
from blockyard.machine.processor import processor_name
from blockyard.report.schema import final_of
from blockyard.report.units import rate_label
from blockyard.tasks.kind import Quality

MIXERS = ("standard", "mla", "tva", "spectral", "spectral*3/standard")
FFNS = ("standard+standard", "standard+glu", "standard+relu2", "standard+vft", "tva+vft", "moe")
FACTORS = {"muon": (0.25, 0.5, 1.0, 2.0, 4.0), "adamw": (1.0, 2.0, 4.0)}
GROUPS: dict[str, Any] = {
    "model": {"d_model": 128, "n_layers": 4, "n_heads": 4, "context": 64},
    "train": {"threads": 1},
    "data": {"max_bytes": 2_000_000},
}


def jobs_for(optimizer: str, tokens: float, share: float, seeds: int, names: list[str], folder: Path) -> Any:
    """The runs by seed, and the data; `share` below 1 makes probes as `compare` does."""
    config = CompareConfig(";".join(names), budget_value=tokens, rates="one", evaluations=2, measure_memory=False)
    base = base_run("lm", {**GROUPS, "train": {**GROUPS["train"], "optimizer": optimizer}})
    data = base.kind.load_data(base.data, base.model)
    choices = {name: base.kind.fit(model, data.assets) for name, model in configurations(config, base).items()}
    plan = make_plan(config, choices, base, data, {}, lambda models: dict.fromkeys(models, 0.0))
    jobs: dict[int, list[Job]] = {}
    for seed in range(seeds):
        for planned in plan:
            for factor in FACTORS[optimizer]:
                name = f"{planned.name} {optimizer} {rate_label(factor)}"
                one = replace(planned, name=name, steps=max(1, round(share * planned.steps)), rate=factor)
                own = seed if share == 1 else seed + SEEDS_APART
                run = run_of(one, base, config, own)
                if base.train.warmup is not None:
                    run = replace(run, train=replace(run.train, warmup=round(share * base.train.warmup)))
                where = folder / optimizer / f"{share:g}" / planned.name.replace("/", "-").replace("*", "x")
                jobs.setdefault(own, []).append(Job(one, own, where / f"times-{factor:g}-seed-{own}", run, data))
    return jobs, config


def measure(optimizer: str, tokens: float, share: float, seeds: int, names: list[str], folder: Path) -> dict[str, Any]:
    """Mean final loss by choice and factor (None where a run was lost), and each run's CPU seconds."""
    jobs, config = jobs_for(optimizer, tokens, share, seeds, names, folder)
    # One choice at a time, so that an interruption leaves whole curves.
    found: dict[str, dict[float, list[float | None]]] = {name: {} for name in names}
    seconds = dict.fromkeys(names, 0.0)
    curves: dict[str, Any] = {}
    for name in names:
        prefix = f"{name} {optimizer} "
        mine = {seed: [j for j in group if j.planned.name.startswith(prefix)] for seed, group in jobs.items()}
        runs = train_jobs(mine, config.budget, make_board(False))
        for group in mine.values():
            for job in group:
                run = runs[(job.planned.name, job.seed)]
                found[name].setdefault(job.planned.rate, []).append(final_of(run))
                seconds[name] += run["cpu_seconds"]
        means = {factor: _mean(values) for factor, values in found[name].items()}
        told = "  ".join(f"{rate_label(f)} {'lost' if m is None else format(m, '.3f')}" for f, m in means.items())
        print(f"{optimizer:6s} {share:4.0%}  {name:20s} {told}", flush=True)
        curves[name] = {"factors": list(means), "loss": list(means.values()), "cpu_seconds": seconds[name]}
    return curves


def _mean(values: list[float | None]) -> float | None:
    ended = [v for v in values if v is not None]
    return sum(ended) / len(ended) if ended and len(ended) == len(values) else None


def at(curve: dict[str, Any], factor: float) -> float | None:
    """The loss at a factor."""
    return curve["loss"][curve["factors"].index(factor)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=300_000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for name in (*MIXERS, *FFNS) if not arguments.only or name in arguments.only.split(",")]
    if not names:
        raise InputError(f"--only {arguments.only!r} names none of: {', '.join((*MIXERS, *FFNS))}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        shared = (arguments.tokens, arguments.seeds, names, folder)
        whole = {"muon": measure("muon", shared[0], 1.0, *shared[1:])}
        probes = measure("muon", shared[0], SHARE, *shared[1:])
        whole["adamw"] = measure("adamw", shared[0], 1.0, *shared[1:])
    for name in names:
        curve = whole["muon"][name]
        chosen = best_factor(dict(zip(probes[name]["factors"], probes[name]["loss"])), Quality())
        own = min((loss, factor) for factor, loss in zip(curve["factors"], curve["loss"]) if loss is not None)[1]
        loss, best, one = at(curve, chosen), at(curve, own), at(curve, 1.0)
        if loss is not None and best is not None and one is not None:
            told = f"probes choose {rate_label(chosen)}, whole runs {rate_label(own)}"
            print(f"{name:20s} {told}: {loss - best:.3f} above the best; the recipe's rate {one - best:.3f}")
    if arguments.out:
        terms = {"tokens": arguments.tokens, "seeds": arguments.seeds, "groups": GROUPS, "processor": processor_name()}
        found = {**terms, "whole": whole, "probes": probes, "share": SHARE}
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
