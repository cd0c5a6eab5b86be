"""`blockyard train signal`: a model that tells modulations, or symbols, from complex samples."""

from blockyard.cli.tasks import train_command

COMMAND = train_command(
    "signal",
    "train a classifier or equaliser of radio signals",
    order=14,
    example="blockyard train signal --attn.impl complex --data.phase 3.1416 --train.steps 2000",
)
