"""The language model of the family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from blockyard.errors import InputError, require
from blockyard.hf.base import BlockyardPreTrainedModel, kept, segments_of
from blockyard.hf.cache import past_of
from blockyard.hf.config import BlockyardConfig
from blockyard.models.lm import TransformerLM

if TYPE_CHECKING:
    from transformers import DynamicCache, GenerationMixin
    from transformers.modeling_outputs import MoeCausalLMOutputWithPast
else:
    _transformers = require("transformers", extra="hf")
    DynamicCache, GenerationMixin = _transformers.DynamicCache, _transformers.GenerationMixin
    MoeCausalLMOutputWithPast = require("transformers.modeling_outputs", extra="hf").MoeCausalLMOutputWithPast


class BlockyardForCausalLM(BlockyardPreTrainedModel, GenerationMixin):
    """A `TransformerLM`, `self.model`, as a model of transformers that writes text.

    Args:
        config: the architecture.

    Raises: InputError for an architecture that is none.
    """

    _tied_weights_keys = {"model.lm_head.weight": "model.token_embeddings.weight"}  # noqa: RUF012 (transformers')
    model: TransformerLM

    def __init__(self, config: BlockyardConfig) -> None:
        super().__init__(config)
        self.model = self._build()
        self.post_init()

    def _build(self) -> TransformerLM:
        return TransformerLM(self.config.language_model())

    def get_output_embeddings(self) -> Any:
        return self.model.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.model.lm_head = new_embeddings  # type: ignore[assignment]

    def _keeps_caches(self) -> bool:
        """Return whether every mixer has a cache: one of another's making may not, and nobody asked for it."""
        return all(hasattr(getattr(layer, "attn", layer), "new_cache") for layer in self.model.layers)

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None = None, **others: Any) -> Tensor | None:
        """Return the mask itself: `generate` asks for one of pairs where it takes a cache for transformers' own."""
        return attention_mask

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """Return what `generate` calls the model with, as transformers says, without positions: ours counts them."""
        # mypy: transformers' method names a type for self that only its own models have.
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        inputs.pop("position_ids", None)
        return inputs

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: Tensor | int | None = None,
        position_ids: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Score every next token.

        Args:
            input_ids: [B, T].
            attention_mask: [B, past + T], 1 = keep.
            past_key_values: transformers' cache, made with this configuration.
            inputs_embeds: refused; adapters hand it on as None.
            labels: [B, T], the input itself: they are shifted here; −100 is left out of the loss.
            use_cache: return a cache; by default as the configuration says, in inference without labels.
            logits_to_keep: score only the last so many positions; 0 = all.
            num_items_in_batch: labels of all batches that are accumulated, by which the loss is divided.
            position_ids: [B, T]; where they restart at 0, a row holds several sequences, which are read apart
                (`DataCollatorWithFlattening`). Others follow from mask and cache and need not be given.
            output_attentions: refused.
            output_hidden_states: refused.
            return_dict: False gives a tuple.

        Raises:
            InputError: for what is refused, and as `TransformerLM.forward`.
        """
        self.refuse(output_attentions=output_attentions, output_hidden_states=output_hidden_states)
        input_ids = self.ids_of(input_ids, inputs_embeds)
        segments = None
        if position_ids is not None and past_key_values is None:
            segments = segments_of(position_ids, input_ids, kept(attention_mask, input_ids))
        if segments is not None:
            refuse_going_on(bool(use_cache))
            use_cache = False
        if use_cache is None:
            # A cache holds no graph: in training it would cut the gradients of what it keeps.
            inference = labels is None and not torch.is_grad_enabled()
            use_cache = self.config.use_cache and inference and self._keeps_caches()
        # By the configuration, so that its layers are ours: what a bare cache of transformers keeps are keys alone.
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache(config=self.config)
        new, past, cache = input_ids.shape[1], 0, None
        if past_key_values is not None:
            held = past_of(past_key_values, self.model, input_ids)
            cache, past = held.cache, held.length
            mask = kept(attention_mask, input_ids, past)
            refuse_going_on(segments_of(position_ids, input_ids, mask, past) is not None)
            input_ids = held.read(input_ids)
        else:
            mask = kept(attention_mask, input_ids)
        # Tokens that are read again stand in front, and nobody asks for their scores.
        last = logits_to_keep or (new if input_ids.shape[1] > new else None)
        found = self.model(input_ids, padding_mask=mask, cache=cache, last=last, segments=segments)
        loss, aux = None, self.auxiliary(found.aux)
        if labels is not None:
            # Labels are shifted against all logits, which would then not be there.
            if logits_to_keep:
                raise InputError(f"logits_to_keep={logits_to_keep} goes without labels")
            loss = self.loss_function(
                logits=found.logits,
                labels=labels,
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
            )
            # Told apart in evaluation, where a loss is compared with that of models that balance nothing.
            if aux is not None and self.training:
                loss = loss + aux
        out = MoeCausalLMOutputWithPast(loss=loss, aux_loss=aux, logits=found.logits, past_key_values=past_key_values)
        return out.to_tuple() if return_dict is False else out


def refuse_going_on(asked: bool) -> None:
    """Raise InputError where a cache is asked for of rows that hold several sequences."""
    if asked:
        raise InputError(
            "position_ids restart, and a row of several sequences has no cache to go on with: leave it out"
        )
