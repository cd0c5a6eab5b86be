"""`blockyard compare signal`: block choices as signal classifiers, with accuracy over SNR and the bound."""

from blockyard.cli.tasks import compare_command

COMMAND = compare_command(
    "signal",
    "compare block choices as signal classifiers, against the maximum-likelihood bound",
    order=34,
    example="blockyard compare signal --blocks 'standard[rope=none];complex[rope=none]' --data.test_phase 3.1416",
)
