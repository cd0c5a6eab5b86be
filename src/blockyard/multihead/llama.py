"""A mixer behind the call of transformers' Llama attention, as most of its language models have it.

Told by its form, not by its class: four projections q, k, v, o, a configuration, a layer's number, and norms of single
heads at most. transformers itself is not needed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.multihead.fields import Fields, rotary
from blockyard.nn.norms import RMSNorm
from blockyard.registry.options import options_of
from blockyard.registry.register import accepted_arguments, create, implementation

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_NORMS = ("q_norm", "k_norm")
_CALL = {"hidden_states", "position_embeddings", "attention_mask", "past_key_values"}
# What transformers hands on that has no bearing on one layer's attention.
_IDLE = {"use_cache", "cache_position", "num_items_in_batch", "logits_to_keep", "return_dict", "output_router_logits"}


def form_of(module: nn.Module) -> str | None:
    """Return None for attention of this form, "" for what is no attention, else what it has that is not known here."""
    if not all(isinstance(getattr(module, name, None), nn.Linear) for name in _PROJECTIONS):
        return "attention of another form" if type(module).__name__.endswith("Attention") else ""
    if not hasattr(module, "layer_idx") or not hasattr(module, "head_dim"):
        return "it is not called as transformers' Llama attention is"
    if not accepted_arguments(module.forward) >= _CALL:
        return "it is not called as transformers' Llama attention is"
    if not getattr(module, "is_causal", True):
        return "it sees both ways, which a mask from transformers does not tell"
    other = [name for name, _ in module.named_children() if name not in (*_PROJECTIONS, *_NORMS)]
    other += [name for name, _ in module.named_parameters(recurse=False)]
    if other:
        return f"it has {other[0]}, which is not known here"
    for name in _NORMS:
        norm = getattr(module, name, None)
        if norm is not None and tuple(norm.weight.shape) != (module.head_dim,):
            return f"its {name} is not one of single heads"
    return None


def is_latent(module: nn.Module) -> bool:
    """Return whether this is attention of DeepSeek's kind, called in the same way."""
    named = hasattr(module, "kv_a_proj_with_mqa") and hasattr(module, "layer_idx")
    return named and accepted_arguments(module.forward) >= _CALL


def _rotation(module: Any, *, scaled: bool) -> dict[str, Any]:
    """Read the base and the scaling of the rotation that the model's configuration names.

    Raises:
        InputError: for a kind of scaling that is not known here, or any where the mixer takes none.
    """
    said, where = module.config.to_dict(), type(module.config).__name__
    found = rotary(Fields(said, where), said.get("max_position_embeddings") or 1)
    # A rotation that is not scaled would put every distance elsewhere than where the model learnt it.
    if found.scaling is not None and not scaled:
        raise InputError(f"the model's rotation is scaled ({found.scaling}), and this mixer takes no rope_scaling")
    return {"rope_theta": found.theta, "rope_scaling": found.scaling}


class LlamaAttention(nn.Module):
    """A mixer that is called as transformers' Llama attention, without its cache.

    Args:
        mixer: the mixer.
        name: its registered name.
        layer_idx: the layer's number.
    """

    is_causal = True

    def __init__(self, mixer: nn.Module, name: str, layer_idx: int) -> None:
        super().__init__()
        self.mixer, self.mixer_name, self.layer_idx = mixer, name, layer_idx
        self.traits = implementation("attn", name).traits
        self._accepts = accepted_arguments(mixer.forward)

    @classmethod
    def like(cls, module: Any, name: str, options: Mapping[str, Any]) -> LlamaAttention:
        """Return a mixer of the same width and number of heads; standard attention also has the heads and norms of
        `module`.

        Raises:
            InputError: for a mixer that cannot be causal, options that it does not have, or a scaled rotation that is
                not known, or that a mixer which rotates takes none of.
        """
        entry = implementation("attn", name)
        if not entry.traits.causal:
            raise InputError(f"attention {name!r} cannot be causal")
        weight, heads = module.q_proj.weight, module.q_proj.out_features // module.head_dim
        known = options_of(entry.cls)
        model = {
            "d_model": module.q_proj.in_features,
            "n_heads": heads,
            "causal": True,
            "dropout": float(getattr(module, "attention_dropout", 0.0)),
        }
        if "rope_theta" in known:
            model |= _rotation(module, scaled="rope_scaling" in known)
        given = {key: value for key, value in model.items() if key in known}
        if name == "standard":
            given |= {
                "head_dim": module.head_dim,
                "n_kv_heads": module.k_proj.out_features // module.head_dim,
                "qk_norm": getattr(module, "q_norm", None) is not None,
                "window": getattr(module, "sliding_window", None),
            }
        if "bias" in known:
            given["bias"] = any(getattr(module, part).bias is not None for part in _PROJECTIONS)
        mixer = create("attn", name, {**given, **options})
        return cls(mixer.to(device=weight.device, dtype=weight.dtype), name, module.layer_idx)

    @torch.no_grad()
    def take_norms(self, module: Any) -> tuple[str, ...]:
        """Copy the norms of queries and keys where the mixer has them; returns their parameters' names."""
        taken = []
        for name in _NORMS:
            theirs, ours = getattr(module, name, None), getattr(self.mixer, name, None)
            if theirs is None or not isinstance(ours, RMSNorm) or ours.weight.shape != theirs.weight.shape:
                continue
            ours.weight.copy_(theirs.weight)
            ours.weight.requires_grad_(theirs.weight.requires_grad)
            ours.eps = float(getattr(theirs, "variance_epsilon", getattr(theirs, "eps", ours.eps)))
            taken.append(f"{name}.weight")
        return tuple(taken)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        position_ids: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """Attend as transformers calls it.

        Args:
            hidden_states: [B, T, d_model].
            position_embeddings: not read: mixers that rotate do it by `position_ids`.
            attention_mask: [B or 1, 1, T, T], bool with True = attend, or added to the scores.
            past_key_values: refused: it keeps keys and values, and this mixer would see the last token alone.
            position_ids: [B or 1, T].
            others: what transformers passes on to every layer.

        Raises:
            InputError: for a cache, or an argument that this mixer cannot honour.
        """
        if past_key_values is not None:
            raise InputError(
                f"attention {self.mixer_name!r} was put into this model: transformers' cache has no place for what it "
                "keeps, and it would see the last token alone; pass use_cache=False"
            )
        for name, value in others.items():
            if name not in _IDLE and value is not None and value is not False:
                raise InputError(f"attention {self.mixer_name!r} in a model of transformers does not take {name}")
        arguments: dict[str, Any] = {}
        if attention_mask is not None:
            arguments |= self._masks(attention_mask, hidden_states)
        if position_ids is not None and self.traits.positions:
            arguments["positions"] = position_ids[0] if position_ids.shape[0] == 1 else position_ids
        found = self.mixer(hidden_states, **arguments)
        return found[0] if isinstance(found, tuple) else found, None

    def _masks(self, mask: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Return the mask as the mixer takes it: whole, or as the padding that it comes from."""
        batch, length = x.shape[:2]
        if mask.ndim != 4 or mask.shape[-2:] != (length, length):
            raise InputError(f"attention_mask has shape {tuple(mask.shape)}, expected [batch, 1, {length}, {length}]")
        if self.traits.attn_mask and "attn_mask" in self._accepts:
            return {"attn_mask": mask}
        seen = (mask if mask.dtype == torch.bool else mask == 0)[:, 0].expand(batch, -1, -1)
        # Causal, the last position sees all that is kept.
        kept = seen[:, -1]
        causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        if not bool((seen == (causal & kept[:, None]))[kept].all()):
            raise InputError(
                f"attention {self.mixer_name!r} scores no pairs: it takes padding, but not the window or the blocks "
                "that attention_mask shows"
            )
        return {} if bool(kept.all()) else {"padding_mask": kept}

    def extra_repr(self) -> str:
        return f"mixer={self.mixer_name!r}, layer_idx={self.layer_idx}"
