"""Each choice's own learning rate, found before it is judged.

Blocks differ in the rate that suits them, so at one rate for all the block for which that was tuned wins. A probe is a
run of a share of the budget with its whole schedule, at the recipe's rates times a factor; the ladder of factors of 2
grows on the side where the best stands at its end. Probes have a seed of their own: the runs that are judged share no
batches with them. A probe's best rate is the whole run's or a neighbour of it, and has the noise of one seed
(docs/recipes.md): among rates that do as well within the margin of a verdict, the one nearest to the recipe's is taken,
and the lower of two as near.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blockyard.compare.budget import expected_steps
from blockyard.compare.jobs import Job
from blockyard.compare.live import Board
from blockyard.compare.plan import Planned, State, folder_of, run_of
from blockyard.compare.runs import train_jobs
from blockyard.compare.settings import CompareConfig
from blockyard.compare.sharing import Sharing
from blockyard.errors import InputError
from blockyard.registry.options import MOST_SEED
from blockyard.report import schema
from blockyard.report.stats import margin_of
from blockyard.report.units import rate_label
from blockyard.tasks.kind import Quality, Run

# The part of a run's budget that a probe has.
# Measured (docs/recipes.md): the best factor of so long a probe was the whole run's in seven choices of eleven, and a
# neighbour of it in the other four.
SHARE = 0.2
# Powers of two: finer steps would part rates that a seed's noise does not.
LADDER = (0.5, 1.0, 2.0)
# The ladder ends here whatever is found: 16 times the recipe's rate, or a sixteenth.
FARTHEST = 16.0
# Fewer steps tell nothing of a rate.
LEAST_STEPS = 20
# Between the seeds of runs that are judged and those of probes.
# More than any comparison has seeds, so that no run that is judged has seen a probe's batches.
SEEDS_APART = 1 << 20


@dataclass(frozen=True)
class Probes:
    """What was found of one choice's rates.

    Args:
        figures: factor on the recipe's rates -> the figure that ranks, after the probe; None when it was lost.
        chosen: the factor that is taken.
        seconds: training clock of the probes.
    """

    figures: Mapping[float, float | None]
    chosen: float
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the probes as compare.json holds them."""
        factors = sorted(self.figures)
        return {
            "factors": factors,
            "figures": [self.figures[f] for f in factors],
            "chosen": self.chosen,
            "seconds": self.seconds,
        }


def with_rates(
    plan: list[Planned], config: CompareConfig, base: Run[Any, Any], data: Any, state: State, board: Board, out: Path
) -> list[Planned]:
    """Return the plan with every choice at its own rate; what was found before is read from the comparison's state.

    Args:
        plan: the choices.
        config: the terms, which say how rates are chosen.
        base: the shared options.
        data: the task's data.
        state: receives what is found, under `rates`.
        board: shows the probes.
        out: the comparison's folder; probes live in `rates` within it.

    Raises:
        InputError: for a choice whose probes would be too short beside others that have their rates.
        Interrupted: after SIGTERM or SIGINT, when the probes in training have been saved.
    """
    # For whoever has tuned the rates, or wants the recipe itself compared.
    if config.rates == "one":
        return plan
    known: dict[str, Any] = state.data.setdefault("rates", {})
    short = [p for p in plan if _probe_steps(p, config) < LEAST_STEPS]
    if short and any(p.name in known for p in plan):
        # Their runs are kept at rates of their own: the rest at one rate would be another comparison.
        raise InputError(
            f"rates: a probe of {short[0].name} has fewer than {LEAST_STEPS} steps, and the other choices of {out} "
            "have rates of their own: give it another --out, with --rates one or a larger --budget.value"
        )
    if short:
        board.say(f"rates: one for all, since a probe of {SHARE:.0%} of the budget has fewer than {LEAST_STEPS} steps")
        return plan
    # A choice that is added later has its own search; the others keep the rates that their runs have.
    missing = [p for p in plan if p.name not in known]
    if missing:
        board.say(f"finding the learning rate of {', '.join(p.name for p in missing)}")
        for name, found in _search(missing, config, base, data, board, out).items():
            known[name] = found.as_dict()
        state.save()
    for planned in plan:
        board.say(f"{planned.name}: learning rate {rate_label(known[planned.name]['chosen'])}")
    return [replace(p, rate=known[p.name]["chosen"]) for p in plan]


def _probe_steps(planned: Planned, config: CompareConfig) -> int:
    return round(SHARE * expected_steps(config.budget_unit, planned.steps))


def _search(
    plan: Sequence[Planned], config: CompareConfig, base: Run[Any, Any], data: Any, board: Board, out: Path
) -> dict[str, Probes]:
    quality = base.kind.quality(data)
    # The whole schedule in a fifth of the time, not the first fifth of it: a rate is judged by where it ends.
    terms = replace(config, budget_value=config.budget_value * SHARE, evaluations=2, seeds=1)
    figures: dict[str, dict[float, float | None]] = {p.name: {} for p in plan}
    seconds = dict.fromkeys(figures, 0.0)
    todo = {p.name: list(config.ladder or LADDER) for p in plan}
    # All choices' probes of a round together, in turns, as the runs that are judged: the machine is shared alike.
    while any(todo.values()):
        probes = [(p.name, _job(p, factor, terms, base, data, out)) for p in plan for factor in todo[p.name]]
        seed = probes[0][1].seed
        results = train_jobs({seed: [job for _, job in probes]}, terms.budget, board, Sharing(out))
        for name, job in probes:
            run = results[(job.planned.name, seed)]
            # None where it diverged, which is itself an answer about a rate.
            figures[name][job.planned.rate] = schema.final_of(run)
            seconds[name] += run["seconds"]
        # Factors that were asked for are all that is tried.
        grows = config.ladder is None
        todo = {name: _beyond(found, quality) if grows else [] for name, found in figures.items()}
    return {name: Probes(found, best_factor(found, quality), seconds[name]) for name, found in figures.items()}


def _job(planned: Planned, factor: float, terms: CompareConfig, base: Run[Any, Any], data: Any, out: Path) -> Job:
    name = f"{planned.name} at rate {rate_label(factor)}"
    probe = replace(planned, name=name, steps=max(1, round(SHARE * planned.steps)), rate=factor)
    seed = (base.train.seed + SEEDS_APART) % (MOST_SEED + 1)
    folder = out / "rates" / folder_of(out, planned.name, seed).parent.name / f"times-{factor:g}"
    run = run_of(probe, base, terms, seed)
    # The schedule's shape is the whole run's, a warm-up that was given as well; otherwise it follows the run's length.
    if base.train.warmup is not None:
        run = replace(run, train=replace(run.train, warmup=round(SHARE * base.train.warmup)))
    return Job(probe, seed, folder, run, data)


def best_factor(found: Mapping[float, float | None], quality: Quality) -> float:
    """Return the factor that is taken: of those within the margin of the best figure the one nearest to the recipe's.

    Args:
        found: factor -> figure; None for a probe that was lost. 1 is the answer when all were.
        quality: which figures are better, and which differences do not matter.
    """
    sign = -1 if quality.better == "higher" else 1
    ended = {factor: sign * figure for factor, figure in found.items() if figure is not None}
    if not ended:
        return 1.0
    # By figure first; among those as good within the margin the noise of one seed would choose.
    best = min(ended.values())
    near = [factor for factor, figure in ended.items() if figure <= best + margin_of(None, quality.margin, best)]
    # Nearness in octaves: 2 and 1/2 are as far. Of two the lower, since too high a rate fails worse than too low a one.
    return min(near, key=lambda factor: (max(factor, 1 / factor), factor))


def _beyond(found: Mapping[float, float | None], quality: Quality) -> list[float]:
    """Return the next factor, where the best so far stands at an end of the ladder."""
    # Nothing is known but that it was too much.
    if all(figure is None for figure in found.values()):
        # Too high, most likely: every probe was lost.
        factor = min(found) / 2
    else:
        best = best_factor(found, quality)
        factor = best / 2 if best == min(found) else best * 2 if best == max(found) else 0.0
    # One at a time: most ladders end with the first further rung.
    return [factor] if factor and 1 / FARTHEST <= factor <= FARTHEST else []


def rates_of(plan: Sequence[Planned], state: State, sign: int) -> dict[str, Any] | None:
    """Return what a report says of the search; None when there was none.

    Args:
        plan: the choices.
        state: what `with_rates` left.
        sign: 1 where lower figures are better, −1 where higher ones are.

    Returns: `share` of the budget that a probe had, `seconds` of all probes, and `orders`: the choices by their probes
        at the recipe's rate (`one`) and at their own (`own`), best first; those whose probes were lost are left out.
    """
    # A report may be written again from a folder whose search never ran.
    known = state.data.get("rates") or {}
    if not all(p.name in known for p in plan):
        return None
    one, own = {}, {}
    for planned in plan:
        found = dict(zip(known[planned.name]["factors"], known[planned.name]["figures"]))
        one[planned.name], own[planned.name] = found.get(1.0), found.get(known[planned.name]["chosen"])

    # Two orders side by side show what the search changed: if they agree, one rate for all would have done.
    def order(figures: Mapping[str, float | None]) -> list[str]:
        return sorted((n for n, f in figures.items() if f is not None), key=lambda n: sign * (figures[n] or 0.0))

    seconds = sum(known[p.name]["seconds"] for p in plan)
    return {"share": SHARE, "seconds": seconds, "orders": {"one": order(one), "own": order(own)}}
