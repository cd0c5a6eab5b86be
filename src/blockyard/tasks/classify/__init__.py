"""Text classification: labelled documents in, accuracy and macro-F1 out.

    tokens -> blocks that see both ways (or only the past) -> one vector (mean, last, cls) -> linear head
    macro-F1 = mean over the classes of 2·precision·recall / (precision + recall), so that rare classes count

Files, in reading order:

    config.py    LabelledConfig: which rows, which columns
    reader.py    rows of CSV and JSON Lines, with errors that name file and row
    data.py      padded batches by (seed, step); a share of every class for validation, whatever the seed
    model.py     EncoderConfig, TextClassifier, and pooling: from a vector per position to one per row
    task.py      TextClassification, the kind; ClassifyTask: loss and figures
    report.py    what a comparison adds: macro-F1, confusion; predict.py: `blockyard classify RUN FILE`

Long documents are read in chunks (`--model.chunks`) or with a long context: the cost of a mixer decides.

    blockyard train classify --data.path reviews.csv --data.label_field stars --out runs/stars

Data, metrics and long documents: docs/classify.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.tasks.classify.config import LabelledConfig as LabelledConfig
    from blockyard.tasks.classify.data import LabelledData as LabelledData
    from blockyard.tasks.classify.data import load_labelled as load_labelled
    from blockyard.tasks.classify.model import ClassifierOutput as ClassifierOutput
    from blockyard.tasks.classify.model import EncoderConfig as EncoderConfig
    from blockyard.tasks.classify.model import TextClassifier as TextClassifier
    from blockyard.tasks.classify.task import ClassifyTask as ClassifyTask
    from blockyard.tasks.classify.task import TextClassification as TextClassification
else:
    __all__ = exports(
        __name__,
        {
            "config": "LabelledConfig",
            "data": "LabelledData load_labelled",
            "model": "ClassifierOutput EncoderConfig TextClassifier",
            "task": "ClassifyTask TextClassification",
        },
    )
