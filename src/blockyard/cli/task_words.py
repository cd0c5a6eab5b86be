"""What the overview says of `train`, `compare` and `tune` for the tasks that are built in: a line, a place, an example.

A task that is not named here has the commands all the same, with a line of its own making.
"""

from __future__ import annotations

from typing import NamedTuple


class Words(NamedTuple):
    """A command in the overview.

    Args:
        summary: one line for the overview and the head of its help.
        order: place in the overview, small first.
        example: a command line shown below the help.
    """

    summary: str
    order: int
    example: str


# Options that people use, of a task that has them.
TRAIN = (
    "--data.path",
    "--out",
    "--attn.impl",
    "--ffn.impl",
    "--model.d_model",
    "--model.n_layers",
    "--model.context",
    "--train.steps",
    "--train.batch_size",
    "--resume",
)
COMPARE = (
    "--blocks",
    "--data.path",
    "--out",
    "--match",
    "--budget.unit",
    "--budget.value",
    "--seeds",
    "--want",
    "--model.d_model",
    "--model.n_layers",
)
TUNE = (
    "--over",
    "--data.path",
    "--out",
    "--trials",
    "--budget.unit",
    "--budget.value",
    "--seeds",
    "--attn.impl",
)
OF_TASK = {
    "classify": ("--data.text_field", "--data.label_field"),
    "recall": ("--data.task", "--data.sizes"),
    "signal": ("--data.scenario", "--data.modulations"),
    "price": ("--preset", "--model.horizons"),
}


def common_of(verb: str, task: str) -> tuple[str, ...]:
    """Return the options that people use of a task's command, the most wanted first; some of them it may lack."""
    # What is compared or searched is asked of everybody's options above all.
    own = OF_TASK.get(task, ())[: None if verb == "train" else 1]
    return (*own, *{"train": TRAIN, "compare": COMPARE, "tune": TUNE}[verb])


TASK_WORDS: dict[str, Words] = {
    "train lm": Words(
        "train a language model on text",
        10,
        "blockyard train lm --data.path book.txt --attn.impl tva --ffn.impl vft --vft.rank 4",
    ),
    "train classify": Words(
        "train a text classifier on labelled text (CSV, JSONL)",
        13,
        "blockyard train classify --data.path reviews.csv --data.label_field stars --attn.impl spectral",
    ),
    "train recall": Words(
        "train on a synthetic recall task (mqar, induction, copy, ...)",
        14,
        "blockyard train recall --data.task mqar --data.sizes 4,8,16 --model.n_layers 2",
    ),
    "compare lm": Words(
        "train several block choices at an equal budget and write a report",
        30,
        "blockyard compare lm --blocks 'standard;tva+vft[rank=16]' --match params --seeds 3 --out comparison",
    ),
    "compare price": Words(
        "block choices and baselines as price forecasters, at an equal budget",
        32,
        "blockyard compare price --data.path prices.csv --blocks 'standard;mla;tva+vft' --budget.value 20000",
    ),
    "compare classify": Words(
        "compare block choices as text classifiers",
        33,
        "blockyard compare classify --blocks 'standard;spectral' --data.path reviews.csv --seeds 3",
    ),
    "compare recall": Words(
        "compare block choices on a synthetic recall task",
        34,
        "blockyard compare recall --blocks 'standard;spectral;spectral*3/standard' --data.task mqar --seeds 3",
    ),
    "compare signal": Words(
        "compare block choices as signal classifiers, against the maximum-likelihood bound",
        34,
        "blockyard compare signal --blocks 'standard;complex' --data.scenario synchronised --data.test_phase 3.1416",
    ),
    "tune lm": Words(
        "search for the best options of a language model, at a budget per trial",
        36,
        "blockyard tune lm --data.path book.txt --over 'train.matrix_lr=3e-3..3e-2 log; attn.impl=standard,tva'",
    ),
    "tune price": Words(
        "search for the best options of a price forecaster, judged on validation alone",
        37,
        "blockyard tune price --over 'train.lr=1e-4..1e-2 log; model.context=32,64,128'",
    ),
    "tune classify": Words(
        "search for the best options of a text classifier",
        37,
        "blockyard tune classify --data.path reviews.csv --over 'train.matrix_lr=3e-3..3e-2 log'",
    ),
    "tune recall": Words(
        "search for the best options of a model on a recall task",
        37,
        "blockyard tune recall --over 'attn.impl=standard,spectral; train.matrix_lr=3e-3..3e-2 log'",
    ),
    "tune signal": Words(
        "search for the best options of a network on radio signals",
        37,
        "blockyard tune signal --over 'train.matrix_lr=3e-3..3e-2 log; model.patch=1,2,4'",
    ),
}
