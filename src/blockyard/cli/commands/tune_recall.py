"""`blockyard tune recall`: trials of a model on a recall task, the best again with fresh seeds, a report."""

from blockyard.cli.tuning import tune_command

COMMAND = tune_command(
    "recall",
    "search for the best options of a model on a recall task",
    order=37,
    example="blockyard tune recall --over 'attn.impl=standard,spectral; train.matrix_lr=3e-3..3e-2 log'",
)
