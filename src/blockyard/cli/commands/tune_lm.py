"""`blockyard tune lm`: trials of a language model, the best again with fresh seeds, a report."""

from blockyard.cli.tuning import tune_command

COMMAND = tune_command(
    "lm",
    "search for the best options of a language model, at a budget per trial",
    order=36,
    example="blockyard tune lm --data.path book.txt --over 'train.matrix_lr=3e-3..3e-2 log; attn.impl=standard,tva'",
)
