"""The text classifier of the family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from blockyard.errors import require
from blockyard.hf.base import BlockyardPreTrainedModel, kept
from blockyard.hf.config import BlockyardConfig
from blockyard.tasks.classify.model import TextClassifier

if TYPE_CHECKING:
    from transformers.modeling_outputs import SequenceClassifierOutput
else:
    SequenceClassifierOutput = require("transformers.modeling_outputs", extra="hf").SequenceClassifierOutput


class BlockyardForSequenceClassification(BlockyardPreTrainedModel):
    """A `TextClassifier`, `self.model`, as a model of transformers; of a language model's configuration, a causal one.

    Args:
        config: the architecture; `num_labels` classes.

    Raises: InputError for an architecture that is none.
    """

    model: TextClassifier

    def __init__(self, config: BlockyardConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = self._build()
        self.post_init()

    def _build(self) -> TextClassifier:
        return TextClassifier(self.config.encoder())

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Score the classes.

        Args:
            input_ids: [B, T].
            attention_mask: [B, T], 1 = keep.
            inputs_embeds: refused; adapters hand it on as None.
            labels: [B] classes, or what the configuration's problem_type takes.
            output_attentions: refused.
            output_hidden_states: refused.
            return_dict: False gives a tuple.

        Raises:
            InputError: for what is refused, and as `TextClassifier.forward`.
        """
        self.refuse(output_attentions=output_attentions, output_hidden_states=output_hidden_states)
        input_ids = self.ids_of(input_ids, inputs_embeds)
        found = self.model(input_ids, padding_mask=kept(attention_mask, input_ids))
        loss = None
        if labels is not None:
            # By the configuration's problem_type: one class, several, or a number.
            loss = self.loss_function(labels=labels, pooled_logits=found.logits, config=self.config)
            aux = self.auxiliary(found.aux)
            # In evaluation the loss is that of the classes alone.
            if aux is not None and self.training:
                loss = loss + aux
        out = SequenceClassifierOutput(loss=loss, logits=found.logits)
        return out.to_tuple() if return_dict is False else out
