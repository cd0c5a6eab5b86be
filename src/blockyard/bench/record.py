"""What all benchmarks share: the checks of their options, the device, and the frame of bench.json."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch

from blockyard.bench.schema import SCHEMA, Bench, Choice, Roofline, Row
from blockyard.bench.subject import REFERENCE, Subject
from blockyard.bench.write import shown
from blockyard.errors import InputError, at_least, at_most
from blockyard.registry.options import MOST_SEED, MOST_THREADS
from blockyard.training.environment import describe_environment


def check_options(config: Any, lists: Iterable[str]) -> None:
    """Refuse sizes below 1: of the named lists, and of what every benchmark has."""
    for name in lists:
        values = getattr(config, name)
        if not values or min(values) < 1:
            raise InputError(f"{name}={','.join(map(str, values))} should be whole numbers of at least 1")
    at_least(1, d_model=config.d_model, n_heads=config.n_heads, rounds=config.rounds)
    if not 0 < config.round_seconds < float("inf"):
        raise InputError(f"round_seconds={config.round_seconds} should be above 0")
    at_least(1, ", or none", threads=config.threads)
    at_most(MOST_THREADS, threads=config.threads)
    at_least(0, seed=config.seed)
    at_most(MOST_SEED, seed=config.seed)


def find_device(name: str) -> torch.device:
    """Return the device of a name, `auto` being CUDA when there is one; InputError when it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name!r}: {str(error).splitlines()[0]}") from None
    return device


def make_record(
    kind: str,
    title: str,
    config: Any,
    *,
    subjects: Iterable[Subject],
    rows: list[Row],
    device: torch.device,
    seconds: float,
    command: str,
    notes: list[str],
    roofline: Roofline | None,
) -> Bench:
    """Return the contents of bench.json, which a notebook shows as the page."""
    record: Bench = {
        "schema": SCHEMA,
        "kind": kind,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "title": title,
        "reference": REFERENCE,
        "settings": asdict(config),
        "environment": describe_environment(device, 1),
        "command": command,
        "seconds": seconds,
        "choices": [_choice(subject) for subject in subjects],
        "rows": rows,
        "notes": notes,
        "roofline": roofline,
    }
    return shown(record)


def _choice(subject: Subject) -> Choice:
    return {
        "name": subject.name,
        "blocks": subject.blocks if subject.part == "layer" else subject.name,
        "layers": len(subject.layers),
        "parameters": subject.parameters,
    }
