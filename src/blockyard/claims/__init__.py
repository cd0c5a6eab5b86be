"""The claims of the source documents, one by one: what is said, how it is measured, what came out.

    statements.toml: ["vein.parameters"] document, line, cost, claimed, says, how

    @claim("vein.parameters")
    def parameters() -> Finding: ...

Verdicts (holds, partly, false) follow from figures by rules, never from what is expected. Some claims are decided by
counting, some by a stopwatch (ratios in turns, one thread), some by training small models over several seeds.

Files, in reading order:

    statements.toml  what the documents say
    claim.py       Claim, Finding, @claim, and the rules of judging
    collect.py     measures claims; as plain data, as a table, as docs/claims.md
    keep.py        raw measurements kept in a file, so that an interruption loses none
    basics.py, latent.py, vein.py, vein_rules.py, spectral.py, complex.py, prices.py       by counting and properties
    timing.py                                                                              by a stopwatch
    training.py                                                                            by training
    memory.py      what a module holds: parameters, and what it keeps for its backward pass

    blockyard claims --resume kept.json --page docs/claims.md

The outcome: docs/claims.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.claims.claim import Claim as Claim
    from blockyard.claims.claim import Finding as Finding
    from blockyard.claims.collect import all_claims as all_claims
    from blockyard.claims.collect import measure_claims as measure_claims
    from blockyard.claims.collect import page as page
else:
    __all__ = exports(
        __name__,
        {
            "claim": "Claim Finding",
            "collect": "all_claims measure_claims page",
        },
    )
