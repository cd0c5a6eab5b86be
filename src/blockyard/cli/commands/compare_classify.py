"""`blockyard compare classify`: block choices as text classifiers at an equal budget."""

from blockyard.cli.tasks import compare_command

COMMAND = compare_command(
    "classify",
    "compare block choices as text classifiers",
    order=33,
    example="blockyard compare classify --blocks 'standard;spectral' --data.path reviews.csv --seeds 3",
)
