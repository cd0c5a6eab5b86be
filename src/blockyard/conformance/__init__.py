"""The conformance suite: one set of checks, generated from traits, that every mixer and FFN must pass.

from blockyard.conformance import check, mixer_checks

print(check(MyMixer))                                                   # a report

@pytest.mark.parametrize("case", mixer_checks(MyMixer), ids=str)        # or tests of your own package
def test_conformance(case):
    case()
"""

# The modules of checks register themselves in the order in which a report shows them.
from blockyard.conformance import forms, causality, masks, caching, training, refusals, costs, feedforward  # noqa: F401, I001
from blockyard.conformance.suite import Case, Report, Row, check, ffn_checks, mixer_checks

__all__ = ["Case", "Report", "Row", "check", "ffn_checks", "mixer_checks"]
