"""Measures claims and tells the outcome: as plain data, as a table, as a page of the documentation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from blockyard.claims.claim import COSTS, DOCUMENTS, Claim, Cost, declared
from blockyard.claims.keep import MeasurementStore, keeping_in
from blockyard.errors import InputError, one_of, suggest

SCHEMA = "blockyard.claims/1"
# Around what a person has added to the page: it is kept when the page is made again.
BEGIN, END = "<!-- written by hand -->", "<!-- end of what is written by hand -->"


def all_claims() -> list[Claim]:
    """Return every claim, by document and line."""
    # Importing a module declares its claims; here, since they measure with nearly everything there is.
    from blockyard.claims import (  # noqa: F401
        basics,
        complex,
        latent,
        migration,
        prices,
        spectral,
        timing,
        training,
        vein,
        vein_rules,
    )

    order = list(DOCUMENTS)
    return sorted(declared().values(), key=lambda c: (order.index(c.document), c.line, c.key))


def choose(keys: Sequence[str] = (), document: str | None = None, upto: Cost = "minutes") -> list[Claim]:
    """Return the claims to measure.

    Args:
        keys: names, or beginnings of names ("vein", "vein.block"); none = all.
        document: only those of one document.
        upto: only those that cost at most this.

    Raises:
        InputError: for a key or document that no claim has.
    """
    claims = all_claims()
    one_of((None, *DOCUMENTS), document=document)
    one_of(COSTS, upto=upto)
    for key in keys:
        if not any(_named(c, key) for c in claims):
            raise InputError(f"no claim named {key!r}{suggest(key, [c.key for c in claims])}")
    return [
        c
        for c in claims
        if (not keys or any(_named(c, key) for key in keys))
        and document in (None, c.document)
        and COSTS.index(c.cost) <= COSTS.index(upto)
    ]


def _named(found: Claim, key: str) -> bool:
    return found.key == key or found.key.startswith(f"{key}.")


def measure_claims(
    claims: Iterable[Claim], say: Callable[[str], None] = lambda _: None, kept: MeasurementStore | None = None
) -> list[dict[str, Any]]:
    """Measure claims one after the other; each with the random state of seed 0; that of before, and the
    number of threads, are put back.

    Args:
        claims: what to measure.
        say: told of each that takes time.
        kept: where measurements are looked up, and kept as soon as they are made; None = in memory.

    Returns: a dict per claim: key, document, line, says, claimed, how, cost, measured, verdict, why, figures.
    """
    rows = []
    kept = kept or MeasurementStore()
    for found in claims:
        if found.cost != "instant":
            say(f"measuring {found.key}")
        state, threads = torch.get_rng_state(), torch.get_num_threads()
        kept.start(found.key)
        torch.manual_seed(0)
        try:
            with keeping_in(kept):
                finding = found.measure()
        finally:
            torch.set_rng_state(state)
            torch.set_num_threads(threads)
        row = {name: getattr(found, name) for name in ("key", "document", "line", "says", "claimed", "how", "cost")}
        rows.append(
            {
                **row,
                "measured": finding.measured,
                "verdict": finding.verdict,
                "why": finding.why,
                "figures": {name: float(value) for name, value in finding.figures.items()},
            }
        )
    return rows


def without_model(claims: Sequence[Claim], keys: Sequence[str] = ()) -> list[Claim]:
    """Return the claims that can be measured without a trained model.

    Args:
        claims: to be measured.
        keys: names that were asked for.

    Raises:
        InputError: when one that needs a model was asked for by its name, or nothing is left.
    """
    needy = [claim for claim in claims if claim.needs]
    if needy and (len(needy) == len(claims) or any(claim.key in keys for claim in needy)):
        raise InputError(
            f"{needy[0].key} is measured on a trained model: name its folder with --model, as in "
            "--model SmolLM2-135M-Instruct"
        )
    return [claim for claim in claims if not claim.needs]


def by_hand(text: str) -> list[str]:
    """Return the sections of a page that were written by hand: what stands between the two marks, marks included.

    One whose end is missing goes to the end of the page: rather too much is kept than a word lost.
    """
    found = []
    while BEGIN in text:
        begin = text.index(BEGIN)
        end = text.find(END, begin)
        stop = len(text) if end < 0 else end + len(END)
        found.append(text[begin:stop].rstrip() + ("" if end >= 0 else f"\n{END}"))
        text = text[stop:]
    return found


def page(rows: Sequence[dict[str, Any]], machine: str, left_out: Sequence[Claim] = (), kept: Sequence[str] = ()) -> str:
    """Return the outcome as a page of Markdown, a section per document.

    Args:
        rows: what `measure_claims` gave.
        machine: in words.
        left_out: claims that were not measured; the page names them as such.
        kept: sections of the page before that were written by hand (`by_hand`); they stand at the end.
    """
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in ("holds", "partly", "false")}
    lines = [
        "# What the source documents claim, and what is measured here",
        "",
        f"{len(rows)} claims: {counts['holds']} hold, {counts['partly']} hold in part, {counts['false']} do not.",
        "Made by `blockyard claims --page docs/claims.md`; figures are of this library's implementations,",
        f"times of {machine}. A time is a ratio of medians taken in turns in one process; it varies by",
        "some per cent between runs and by more between machines.",
    ]
    if left_out:
        lines += [
            "",
            f"{len(left_out)} more were not measured for this page, because they take long or a trained model: they "
            "are named below.",
        ]
    for document, title in DOCUMENTS.items():
        found = [row for row in rows if row["document"] == document]
        missing = [claim for claim in left_out if claim.document == document]
        if not found and not missing:
            continue
        lines += [
            "",
            f"## {title}",
            "",
            "| line | the claim | measured | verdict |",
            "|---|---|---|---|",
        ]
        lines += map(row_line, found)
        lines += [f"| {c.line} | {_cell(c.says)} | not measured | – |" for c in missing]
        lines.append("")
        for row in found:
            lines.append(f"- **{row['key']}** (claimed: {row['claimed']}). {row['how']} {row['why']}")
        lines += [
            f"- **{c.key}** (claimed: {c.claimed}). {c.how} Not measured: `blockyard claims {c.key}"
            f"{' --model MODEL' if c.needs else ''}`."
            for c in missing
        ]
    for text in kept:
        lines += ["", text]
    return "\n".join(lines) + "\n"


def row_line(row: dict[str, Any]) -> str:
    """Return one claim as a line of the page's table."""
    return f"| {row['line']} | {_cell(row['says'])} | **{_cell(row['measured'])}** | {row['verdict']} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
