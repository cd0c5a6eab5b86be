"""`blockyard train classify`: a text encoder with a classification head, on labelled text."""

from blockyard.cli.tasks import train_command

COMMAND = train_command(
    "classify",
    "train a text classifier on labelled text (CSV, JSONL)",
    order=13,
    example="blockyard train classify --data.path reviews.csv --data.label_field stars --attn.impl spectral",
)
