"""The comparison: block choices trained side by side at an equal budget, measured, and reported.

    every choice   brought to the reference's parameters or FLOPs per token, trained on the same batches at a learning
                   rate of its own, stopped at the same tokens, seconds or FLOPs, over several seeds

    report = compare("lm", CompareConfig(blocks="standard;tva+vft"), groups, "runs/choice")

Files, in reading order:

    compare.py     the whole path in one place
    settings.py    CompareConfig: the terms
    plan.py        every choice as a configuration and a number of steps; match.py: sizes; budget.py: steps
    rates.py       each choice's learning rate, by short probes
    seeds.py       how many seeds, and more where the verdict needs them; confirm.py: the same on a second text;
                   beside.py: models that were trained elsewhere; earlier.py: smaller comparisons before this one
    runs.py        trains every run: by turns.py, a slice of steps each, so that a slow hour falls on all alike;
                   or by several workers (worker.py is one), which processes.py listens to and stops
    sharing.py     runs that several processes make together on shared storage; joining.py: one of them
    engine.py      where workers run; launch.py starts them here, or on a Ray cluster (cluster.py; its address.py),
                   beside a keeper.py
    jobs.py        one run: what it needs, and the record of how it ended
    results.py     what a run's folder says of it: metrics, and that record
    measure.py     speed, generation, cache bytes, peak memory (peak_memory.py, in a fresh process)
    costs.py       what of that is missing, and what was found, kept with the comparison
    failures.py    what goes wrong with one choice alone, kept for its author
    provenance.py  versions and machine
    output.py      write_report: a record as pages, with what its task adds; load_report: one that a notebook shows so
    live.py        what a person watching sees
    stages.py      a first answer soon, then better ones; demo.yaml: the terms of the demo

Every run is an ordinary run folder, so a comparison that is killed goes on where it was.

Use it to choose a block for your own data, with `--seeds 3` at least: one seed has no interval and claims nothing.

How it is made fair, and how to read it: docs/comparing.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.compare.compare import compare as compare
    from blockyard.compare.joining import join_comparison as join_comparison
    from blockyard.compare.output import load_report as load_report
    from blockyard.compare.output import write_report as write_report
    from blockyard.compare.settings import CompareConfig as CompareConfig
else:
    __all__ = exports(
        __name__,
        {
            "compare": "compare",
            "joining": "join_comparison",
            "output": "load_report write_report",
            "settings": "CompareConfig",
        },
    )
