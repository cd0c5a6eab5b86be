"""Text classification."""

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
