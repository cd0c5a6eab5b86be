"""`blockyard compare recall`: which block choices find again what stood earlier in the sequence."""

from blockyard.cli.tasks import compare_command

COMMAND = compare_command(
    "recall",
    "compare block choices on a synthetic recall task",
    order=34,
    example="blockyard compare recall --blocks 'standard;spectral;spectral*3/standard' --data.task mqar --seeds 3",
)
