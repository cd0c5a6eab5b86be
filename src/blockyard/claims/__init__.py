"""What the source documents claim, measured."""

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
