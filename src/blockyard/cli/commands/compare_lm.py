"""`blockyard compare lm`: block choices trained as language models at an equal budget, and a report."""

from blockyard.cli.tasks import compare_command

COMMAND = compare_command(
    "lm",
    "train several block choices at an equal budget and write a report",
    order=30,
    example="blockyard compare lm --blocks 'standard;tva+vft[rank=16]' --match params --seeds 3 --out comparison",
)
