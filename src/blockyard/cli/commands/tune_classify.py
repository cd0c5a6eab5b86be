"""`blockyard tune classify`: trials of a text classifier, the best again with fresh seeds, a report."""

from blockyard.cli.tuning import tune_command

COMMAND = tune_command(
    "classify",
    "search for the best options of a text classifier",
    order=37,
    example="blockyard tune classify --data.path reviews.csv --over 'train.matrix_lr=3e-3..3e-2 log'",
)
