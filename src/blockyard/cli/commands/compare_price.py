"""`blockyard compare price`: block choices as price forecasters, and baselines, on the same dates."""

from blockyard.cli.tasks import compare_command

COMMAND = compare_command(
    "price",
    "block choices and baselines as price forecasters, at an equal budget",
    order=32,
    example="blockyard compare price --data.path prices.csv --blocks 'standard;mla;tva+vft' --budget.value 20000",
)
