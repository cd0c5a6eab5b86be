"""`blockyard train lm`: a language model on the user's text, or on the standard library's own source."""

from blockyard.cli.tasks import train_command

COMMAND = train_command(
    "lm",
    "train a language model on text",
    order=10,
    example="blockyard train lm --data.path book.txt --attn.impl tva --ffn.impl vft --vft.rank 4",
)
