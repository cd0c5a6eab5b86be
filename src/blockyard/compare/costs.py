"""What the choices cost, measured once and kept with the comparison: a report that is written again measures nothing.

How it is measured is measure.py's; here it is decided what is missing, and what was found is put into the state.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blockyard.compare import measure
from blockyard.compare.live import Board
from blockyard.compare.plan import Planned, State, folder_of, run_of
from blockyard.compare.results import decisions_of
from blockyard.compare.settings import CompareConfig
from blockyard.report import schema
from blockyard.tasks.kind import Run


def measurements(
    config: CompareConfig,
    base: Run[Any, Any],
    plan: list[Planned],
    data: Any,
    state: State,
    board: Board,
    out: Path,
    killed: set[str],
) -> dict[str, Any]:
    """Return speed, cache and memory of every choice; measured together, so again for all when a choice is added.

    Args:
        killed: choices that took their processes with them: they would take this one, too, and are left out.
    """
    # Together or not at all: figures taken at another hour, beside another load, compare nothing.
    kept = state.data["measured"]
    complete = not config.measure_memory or all(k["memory"] for k in kept.values())
    # What failed may have been mended since, as a failed run is tried again.
    failed_before = any(kept[p.name].get("failed") for p in plan if p.name in kept)
    if set(kept) >= {p.name for p in plan} and complete and not failed_before:
        return kept
    board.say("measuring speed, cache and memory" if base.kind.decodes else "measuring speed and memory")
    seed = base.train.seed
    # As the runs were, their batch and their precision: a speed at another batch size is another figure.
    runs = {p.name: run_of(p, base, config, seed) for p in plan if p.name not in killed}
    # How far a choice was compiled in its own runs, whatever would be decided now.
    compiled = {p.name: measure.compiled_in(decisions_of(folder_of(out, p.name, seed))) for p in plan}
    failed = dict.fromkeys(killed, "it took its process with it in training")
    speeds = measure.training_speed(runs, data, compiled, failed=failed)
    decoded = measure.decoding(runs, failed=failed)
    memory = measure.peak_memory(runs) if config.measure_memory else {}
    state.data["measured"] = {
        p.name: {
            "speed": {**speeds[p.name], "decode_wall": _first(decoded.get(p.name))} if p.name in speeds else None,
            "failed": failed.get(p.name, ""),
            "cache_bytes_per_token": _second(decoded.get(p.name)),
            "memory": memory.get(p.name),
        }
        for p in plan
    }
    state.save()
    return state.data["measured"]


def scaling(
    config: CompareConfig, base: Run[Any, Any], plan: list[Planned], state: State, board: Board, killed: set[str]
) -> list[schema.Scaling]:
    """Return the training speed and memory over length of every choice, if asked for; measured together, so again for
    all."""
    if config.lengths is None:
        return []
    # In rising order once: lengths are an axis.
    kept, lengths = state.data.get("scaling", {}), sorted(set(config.lengths))
    done = all(
        kept.get(p.name, {}).get("lengths") == lengths
        and None not in kept[p.name]["tokens_per_second"]
        and (not config.measure_memory or "peak_bytes" in kept.get(p.name, {}))
        for p in plan
    )
    if not done:
        what = "speed and memory" if config.measure_memory else "speed"
        board.say(f"measuring {what} over length")
        runs = {p.name: run_of(p, base, config, base.train.seed) for p in plan if p.name not in killed}
        failed: dict[str, str] = {}
        kept = measure.length_scaling(runs, lengths, memory=config.measure_memory, failed=failed)
        for name, why in failed.items():
            board.say(f"{name} could not be measured at every length: {why}")
        nothing: dict[str, list[Any]] = {"lengths": lengths, "tokens_per_second": [None] * len(lengths)}
        if config.measure_memory:
            nothing["peak_bytes"] = [None] * len(lengths)
        kept.update(dict.fromkeys(killed, nothing))
        state.data["scaling"] = kept
        state.save()
    return [kept[p.name] for p in plan]


def _first(pair: tuple[dict[str, Any], float] | None) -> dict[str, Any] | None:
    return pair[0] if pair else None


def _second(pair: tuple[dict[str, Any], float] | None) -> float | None:
    return pair[1] if pair else None
