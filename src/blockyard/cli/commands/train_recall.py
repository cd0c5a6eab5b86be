"""`blockyard train recall`: a small model on a synthetic recall task."""

from blockyard.cli.tasks import train_command

COMMAND = train_command(
    "recall",
    "train on a synthetic recall task (mqar, induction, copy, ...)",
    order=14,
    example="blockyard train recall --data.task mqar --data.sizes 4,8,16 --model.n_layers 2",
)
