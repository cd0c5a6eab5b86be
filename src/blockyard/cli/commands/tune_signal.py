"""`blockyard tune signal`: trials of a network on radio signals, the best again with fresh seeds, a report."""

from blockyard.cli.tuning import tune_command

COMMAND = tune_command(
    "signal",
    "search for the best options of a network on radio signals",
    order=37,
    example="blockyard tune signal --over 'train.matrix_lr=3e-3..3e-2 log; model.patch=1,2,4'",
)
