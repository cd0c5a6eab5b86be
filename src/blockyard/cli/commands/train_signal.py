"""`blockyard train signal`: a classifier of radio signals, calibrated and measured when its training has ended."""

from __future__ import annotations

import argparse

from blockyard.cli.command import Command
from blockyard.cli.tasks import prepare, train_as_told, train_command

BASE = train_command("signal", "")


def run(arguments: argparse.Namespace) -> int:
    from blockyard.machine.launch import is_first
    from blockyard.tasks.signal.finish import finish_run

    out = train_as_told("signal", arguments)
    if is_first():
        print(finish_run(out))
    return 0


COMMAND = Command(
    "train signal", "train a classifier or equaliser of radio signals", BASE.add_arguments, run, prepare=prepare,
    order=14, purpose="train", common=BASE.common, builds=True,
    example="blockyard train signal --out runs/radio --attn.impl complex --ffn.impl complex_swiglu",
)  # fmt: skip
