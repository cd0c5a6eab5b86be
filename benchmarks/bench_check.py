"""Whether a step of training or decoding has become slower than the record says: `make bench-check`.

    python benchmarks/bench_check.py [--record] [--only tva,moe] [--starts 6] [--history FILE]

Each figure is a ratio of process CPU times within one process and one thread: a kind of block beside a plain model in
torch's own operations (steps.py), which no change of this package makes faster or slower. One process may be some per
cent faster than the next that runs the same code, so each start of a fresh process counts as one measurement: told are
the median over the starts, and the interval that holds the true median with 95 % (order statistics of the sign test; of
six starts the least and the greatest).

benchmarks/history.jsonl remembers such figures, a line each, with the processor and the commit; only those of this
processor, its family and model included, are compared with, the newest of them. (Its oldest lines name no family, and
stand beside standard attention with `relu2`, by which all other blocks looked slower when that one became faster.) A
figure is worse when the whole interval of new over old,
from the one's least over the other's greatest on, lies above 1.02, and does so again in a second measurement; then the
status is 1. `--record` appends what was measured, of a commit as it stands. Which of two commits is faster, and by how
much, is asked of between_commits.py, which runs both in turns and sees differences of a per cent.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from blockyard.bench.timing import Case, Clock, interleave
from blockyard.errors import InputError, suggest
from blockyard.files import write_atomically
from blockyard.machine.processor import processor_name
from blockyard.report.stats import SPEED_MARGIN, Word, median_interval
from steps import CONTESTANTS, PLAIN, STEPS

ROOT = Path(__file__).resolve().parent.parent
HISTORY = ROOT / "benchmarks" / "history.jsonl"
ROUNDS, ROUND_SECONDS = 5, 0.12


class Row(NamedTuple):
    """One figure: CPU seconds of a step of `name` over those of its peer, both in one process.

    Args:
        ratio, low, high: median over the starts and its interval; smaller is faster.
        starts: fresh processes.
    """

    name: str
    peer: str
    ratio: float
    low: float
    high: float
    starts: int
    processor: str
    torch: str
    commit: str
    date: str


def names() -> list[str]:
    """Return the names of all figures."""
    return [f"{what} {mixer}+{ffn}" for what in STEPS for mixer, ffn in CONTESTANTS]


def peer_of(name: str) -> str:
    """Return the name of what a figure is relative to."""
    return f"{name.partition(' ')[0]} plain"


def measure_once(asked: Sequence[str]) -> dict[str, float]:
    """Return the ratio of each figure that is asked for, from this process."""
    torch.set_num_threads(1)
    found = {}
    for what in STEPS:
        wanted = [name for name in asked if name.startswith(f"{what} ")]
        if not wanted:
            continue
        cases = {}
        for name in dict.fromkeys([*(peer_of(name) for name in wanted), *wanted]):
            blocks = name.partition(" ")[2]
            step = PLAIN[what]() if blocks == "plain" else STEPS[what](*blocks.split("+"))
            cases[name] = Case(lambda units, step=step: [step() for _ in range(units)])  # type: ignore[misc]
        times = interleave(cases, Clock(torch.device("cpu")), rounds=ROUNDS, round_seconds=ROUND_SECONDS)
        for name in wanted:
            pairs = zip(times[name].cpu, times[peer_of(name)].cpu)
            found[name] = statistics.median(mine / peer for mine, peer in pairs)
    return found


def measure(asked: Sequence[str], starts: int) -> list[Row]:
    """Return the figures that are asked for, over so many fresh processes."""
    ratios: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(starts):
        command = [sys.executable, __file__, "--serve", json.dumps(list(asked))]
        settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(command, env=os.environ | settings, stdout=subprocess.PIPE, text=True, check=True)
        for name, ratio in json.loads(done.stdout).items():
            ratios[name].append(ratio)
    where = {"processor": processor_name(), "torch": torch.__version__.partition("+")[0], "commit": commit()}
    now = datetime.datetime.now(datetime.UTC).date().isoformat()
    found = []
    for name, each in ratios.items():
        middle, low, high = (round(value, 4) for value in median_interval(each))
        found.append(Row(name, peer_of(name), middle, low, high, starts, date=now, **where))
    return found


def git(*words: str) -> str | None:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def commit() -> str:
    """Return the commit of this checkout; with a + where it has changes, empty where it is none."""
    found = git("rev-parse", "--short=12", "HEAD")
    return f"{found}{'+' if git('status', '--porcelain', '--', 'src', 'benchmarks/steps.py') else ''}" if found else ""


def read_history(path: Path) -> list[Row]:
    """Read all rows, oldest first; none where there is no file.

    Raises:
        InputError: for a line that is no row.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = Row(**json.loads(line))
            if not 0 < row.low <= row.ratio <= row.high:
                raise ValueError("low <= ratio <= high does not hold")
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}, line {number} is no row of the history: {error}") from error
        rows.append(row)
    return rows


def newest(rows: Iterable[Row], like: Row) -> Row | None:
    """Return the last row with the same figure, peer and processor."""
    key = (like.name, like.peer, like.processor)
    return next((row for row in reversed(list(rows)) if (row.name, row.peer, row.processor) == key), None)


def change(row: Row, old: Row) -> tuple[float, float, float]:
    """Return new over old with an interval: from the new one's low over the old one's high, to the reverse."""
    return row.ratio / old.ratio, row.low / old.high, row.high / old.low


def word(low: float, high: float) -> Word:
    """Return what may be said of a change of time whose interval this is; above 1 is slower."""
    most = 1 + SPEED_MARGIN
    if low > most:
        return "worse"
    if high < 1 / most:
        return "better"
    return "equivalent" if low >= 1 / most and high <= most else "undecided"


def words_of(rows: Sequence[Row], history: Sequence[Row]) -> dict[str, Word]:
    """Return what may be said of each figure; "unknown" where nothing is remembered."""
    found: dict[str, Word] = {}
    for row in rows:
        old = newest(history, row)
        found[row.name] = word(*change(row, old)[1:]) if old else "unknown"
    return found


def show(rows: Sequence[Row], history: Sequence[Row]) -> None:
    """Print a line for each figure: the ratio, and what it was."""
    for row in rows:
        line = f"{row.name:24} / {row.peer.partition(' ')[2]:5} {row.ratio:6.3f} ({row.low:.3f} to {row.high:.3f})"
        if old := newest(history, row):
            middle, low, high = change(row, old)
            line += (
                f"  was {old.ratio:6.3f} at {old.commit}  ×{middle:.3f} ({low:.3f} to {high:.3f})  {word(low, high)}"
            )
            if old.torch != row.torch:
                line += f", but with torch {old.torch}, now {row.torch}"
        print(line, flush=True)


def chosen(only: str) -> list[str]:
    """Return the figures whose mixer or FFN is named; all of them when nothing is.

    Raises:
        InputError: for a name that no figure has.
    """
    wanted = [name for name in only.split(",") if name]
    known = {part for pair in CONTESTANTS for part in pair}
    for name in wanted:
        if name not in known:
            raise InputError(f"--only {name}: nothing of it is timed{suggest(name, known)}")
    return [name for name in names() if not wanted or {*name.partition(" ")[2].split("+")} & {*wanted}]


def run(asked: argparse.Namespace) -> int:
    if asked.starts < 6:
        raise InputError(f"--starts {asked.starts} should be at least 6: of fewer there is no interval")
    history, figures = read_history(asked.history), chosen(asked.only)
    if asked.record and commit()[-1:] in ("", "+"):
        raise InputError("--record wants a commit as it stands: commit the changes in src first")
    rows = measure(figures, asked.starts)
    show(rows, history)
    said = words_of(rows, history)
    if slower := [name for name, found in said.items() if found == "worse"]:
        print(f"again, as {', '.join(slower)} looked slower:", flush=True)
        # Of twice as many the interval leaves out the two most extreme on each side, as of a busy moment.
        again = measure(slower, 2 * asked.starts)
        show(again, history)
        said |= words_of(again, history)
        # What is recorded is the second measurement: it was made because the first is doubted.
        rows = [next((new for new in again if new.name == row.name), row) for row in rows]
    worse = [name for name, found in said.items() if found == "worse"]
    unknown = [name for name, found in said.items() if found == "unknown"]
    if unknown:
        print(f"nothing to compare {len(unknown)} of {len(rows)} figures with on {rows[0].processor}: --record")
    if asked.record:
        lines = [json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in [*history, *rows]]
        write_atomically(asked.history, "".join(lines))
        print(f"{len(rows)} rows added to {asked.history.name}")
    if worse:
        print(f"slower than recorded: {', '.join(worse)}")
    return 1 if worse else 0


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="append what is measured to the history")
    parser.add_argument("--only", default="", help="mixers and FFNs, separated by commas")
    parser.add_argument("--starts", type=int, default=6, help="fresh processes, at least 6")
    parser.add_argument("--history", type=Path, default=HISTORY)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    if asked.serve:
        print(json.dumps(measure_once(json.loads(asked.serve))))
        return 0
    try:
        return run(asked)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
