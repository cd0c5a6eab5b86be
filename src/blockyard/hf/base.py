"""What the models of the family share: weights that are made or found, switches, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from blockyard.errors import InputError, require
from blockyard.hf.config import BlockyardConfig
from blockyard.models.lm import Head
from blockyard.protocol.mixer import default_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel
else:
    PreTrainedModel = require("transformers", extra="hf").PreTrainedModel


class BlockyardPreTrainedModel(PreTrainedModel):
    """A model of ours, `self.model`, as a model of transformers."""

    config_class = BlockyardConfig
    config: BlockyardConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    # A device map must not tear a block apart: its parts read one another's weights.
    _no_split_modules = ["ResidualBlock", "VFTBlock", "DualStreamBlock"]  # noqa: RUF012 (transformers')
    # transformers' Trainer then divides losses by the number of labels of all steps that it accumulates.
    accepts_loss_kwargs = True
    model: Any

    @classmethod
    def from_pretrained(cls, *arguments: Any, use_safetensors: bool | None = True, **settings: Any) -> Any:
        """Load as transformers says, from safetensors alone.

        Raises:
            InputError: when other files are asked for; transformers' OSError when there are no others.
        """
        if not use_safetensors:
            raise InputError(
                "use_safetensors=False: weights of this family are safetensors alone; pickles are not read"
            )
        return super().from_pretrained(*arguments, use_safetensors=True, **settings)

    def init_weights(self) -> None:
        """Tie weights only: our constructors have given every weight its start."""
        self.tie_weights(recompute_mapping=False)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Give what a checkpoint does not hold the start that a new model would have given it."""
        every = [*self.model.named_parameters(remove_duplicate=False), *self.model.named_buffers()]
        lacking = [(name, tensor) for name, tensor in every if not getattr(tensor, "_is_hf_initialized", False)]
        if not lacking:
            return
        # A whole new model: its constructors alone know every start.
        fresh = self._build()
        values = {**dict(fresh.named_parameters(remove_duplicate=False)), **dict(fresh.named_buffers())}
        for name, tensor in lacking:
            tensor.copy_(values[name])
            tensor._is_hf_initialized = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Give rows that `resize_token_embeddings` adds their start."""
        std = self.config.hidden_size**-0.5
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std if self.config.tie_word_embeddings else 1.0)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)

    def _build(self) -> nn.Module:
        """Return the model of ours that the configuration describes."""
        raise NotImplementedError

    def get_input_embeddings(self) -> Any:
        return self.model.token_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.token_embeddings = value

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Change the vocabulary as transformers says; the model of ours is told."""
        found = super().resize_token_embeddings(*args, **kwargs)
        self.model.config = replace(self.model.config, vocab_size=self.config.vocab_size)
        found.num_embeddings = self.config.vocab_size
        head = getattr(self.model, "lm_head", None)
        if isinstance(head, nn.Linear) and not isinstance(head, Head):
            # What the optimizers of ours know it by.
            made = Head(1, 1, device="meta")
            made.in_features, made.out_features = head.in_features, head.out_features
            made.weight = head.weight
            self.model.lm_head = made
            self.tie_weights()
        return found

    # transformers' switch, which looks for an attribute of this name.
    @property
    def gradient_checkpointing(self) -> bool:
        """Whether blocks are computed again in the backward pass."""
        return bool(self.model.checkpoint_activations)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        self.model.checkpoint_activations = bool(value)

    def auxiliary(self, aux: dict[str, Any] | None) -> Tensor | None:
        """Return the blocks' own losses, weighted, as training adds them to the loss; None where there are none."""
        losses = {} if aux is None else aux.get("losses", {})
        total = None
        for name, value in losses.items():
            part = (self.config.z_loss_weight if name == "z" else self.config.aux_loss_weight) * value
            total = part if total is None else total + part
        return total

    @staticmethod
    def ids_of(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Return the ids, or refuse what stands in their place."""
        if input_ids is None or inputs_embeds is not None:
            raise InputError("this family embeds its tokens itself: give input_ids, no inputs_embeds")
        return input_ids

    @staticmethod
    def refuse(**given: Any) -> None:
        """Refuse what no model of the family can give.

        Raises:
            InputError: naming it.
        """
        for name, value in given.items():
            if value:
                raise InputError(f"{name}=True: this family returns none; hook model.model.layers for what blocks give")


def kept(attention_mask: Tensor | None, ids: Tensor, past: int = 0) -> Tensor | None:
    """Return the mask [B, past + T] as our models take it: None where it hides nothing, for the ways that need none.

    Raises:
        InputError: for a mask of another shape.
    """
    if attention_mask is None:
        return None
    wanted = (ids.shape[0], past + ids.shape[1])
    if tuple(attention_mask.shape) != wanted:
        raise InputError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, expected {wanted} [batch, past + length], 1 = "
            "keep; masks of pairs are not taken"
        )
    # Elsewhere than on a CPU the read would stall the device.
    if attention_mask.device.type == "cpu" and not torch.compiler.is_compiling() and bool(attention_mask.all()):
        return None
    return attention_mask


def segments_of(position_ids: Tensor | None, ids: Tensor, mask: Tensor | None, past: int = 0) -> Tensor | None:
    """Return the documents that positions tell apart, as our models take them: None where there is one a row.

    Positions that restart at 0 are how transformers says that a row holds several sequences
    (`DataCollatorWithFlattening`). Others must be those that our models count by themselves.

    Args:
        position_ids: [T], [1, T] or [B, T].
        ids: [B, T].
        mask: as `kept` gives it.
        past: tokens before them, in a cache.

    Raises:
        InputError: for positions of another shape, or others than these.
    """
    if position_ids is None:
        return None
    if (
        position_ids.shape[-1] != ids.shape[1]
        or position_ids.ndim > 2
        or position_ids.shape[:-1].numel()
        not in (
            1,
            ids.shape[0],
        )
    ):
        raise InputError(f"position_ids has shape {tuple(position_ids.shape)}, expected {tuple(ids.shape)}")
    places = position_ids.expand(ids.shape)
    if mask is not None:
        counted = default_positions(mask, ids.shape[1])
        assert counted is not None
        if bool(((places == counted) | (mask[:, -ids.shape[1] :] == 0)).all()):
            return None
    elif torch.equal(places, torch.arange(past, past + ids.shape[1], device=ids.device).expand(ids.shape)):
        return None
    begins = torch.ones_like(places, dtype=torch.bool)
    begins[:, 1:] = places[:, 1:] != places[:, :-1] + 1
    if mask is not None or past or bool((places[begins] != 0).any()):
        raise InputError(
            "position_ids are neither those that follow from attention_mask and cache nor sequences that each begin at "
            "0, without padding and cache; leave them out"
        )
    return begins.cumsum(-1)
