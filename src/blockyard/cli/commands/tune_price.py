"""`blockyard tune price`: trials of a price forecaster, the best again with fresh seeds, a report."""

from blockyard.cli.tuning import tune_command

COMMAND = tune_command(
    "price",
    "search for the best options of a price forecaster, judged on validation alone",
    order=37,
    example="blockyard tune price --over 'train.lr=1e-4..1e-2 log; model.context=32,64,128'",
)
