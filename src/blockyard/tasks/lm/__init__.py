"""Language modelling: the next token of a text, in nats per token (and per byte).

    loss = mean of −log p(token | the tokens before it),  p = softmax of TransformerLM's logits
    val_loss_per_byte = val_loss ÷ bytes per token, which makes runs with different tokenizers comparable

Files:

    task.py     LanguageModelling, the kind; LMTask: batches of blockyard.text, the loss, the evaluation
    beside.py   a trained model, of whatever tokenizer, on the validation rows of others
    report.py   what a comparison adds: what each choice writes, what a loss per token means

The model is blockyard.models, the text blockyard.text, what is done with a trained run blockyard.generation.

    blockyard train lm --data.path my_texts/ --out runs/mine
    blockyard generate runs/mine --prompt 'def '

Options and the recipe: docs/training.md; comparisons: docs/comparing.md; generation: docs/decoding.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.tasks.lm.task import LanguageModelling as LanguageModelling
    from blockyard.tasks.lm.task import LMTask as LMTask
else:
    __all__ = exports(
        __name__,
        {
            "task": "LMTask LanguageModelling",
        },
    )
