"""The conformance suite: one set of checks, generated from traits, that every mixer and FFN must pass.

from blockyard.conformance import check, mixer_checks

print(check(MyMixer))                                                   # a report

@pytest.mark.parametrize("case", mixer_checks(MyMixer), ids=str)        # or tests of your own package
def test_conformance(case):
    case()

A class that declares a trait is held to it, with all parameters random: a zero at the start would hide a fault.

Files, in reading order:

    subject.py      what is checked: a class, its traits, how to build and call it at a tiny size
    suite.py        Case, Report, check, mixer_checks, ffn_checks: the list of checks, and how they are run
    forms.py        shapes, layouts, rows, precision, positions, weights, cross-attention
    causality.py    the future does not reach the past
    masks.py        what is masked has no influence, and masking everything is no NaN
    documents.py    documents in the rows of a batch give what they give alone
    caching.py      whatever path tokens take through a cache, the outputs are those of a full pass
    training.py     gradients, second derivatives, checkpointing, compilation, saving
    refusals.py     what cannot be done is refused, never ignored
    costs.py        cost formulas say what tensors and FLOP counters say
    feedforward.py  the same for FFNs

Use it in the tests of a package that brings a block; `blockyard check FILE:CLASS` runs it from the command line.

Every check in words: docs/conformance.md.
"""

# The modules of checks register themselves in the order in which a report shows them.
from blockyard.conformance import forms, causality, masks, documents, caching, training, refusals, costs, feedforward  # noqa: F401, I001
from blockyard.conformance.suite import Case, Report, Row, check, ffn_checks, mixer_checks

__all__ = ["Case", "Report", "Row", "check", "ffn_checks", "mixer_checks"]
