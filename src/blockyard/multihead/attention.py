"""`nn.MultiheadAttention`'s constructor and call over any registered mixer.

    layer = nn.TransformerEncoderLayer(512, 8, batch_first=True)
    layer.self_attn = blockyard.MultiheadAttention(512, 8, batch_first=True, mixer="mla")

A plain module rather than a subclass: torch's encoder layers bypass the `forward` of a subclass in eval mode and
compute with the packed weights that it is expected to hold.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.multihead.torch_weights import Unpacked, added, kept_keys, one_sequence, translated
from blockyard.nn.parity import answer, deviation, evaluating, probe
from blockyard.registry.options import options_of
from blockyard.registry.register import MODEL_PARAMETERS, Entry, accepted_arguments, create, implementation


class MultiheadAttention(nn.Module):
    """A mixer behind the interface of `torch.nn.MultiheadAttention`.

    Self-attention is a call in which query, key and value are one tensor, or show the same memory with the same shape
    and strides (`x[0], x[0], x[0]`); otherwise it is cross-attention, without rotary positions, since the two sequences
    share none. For copies of one sequence there is `self_attention`. A query whose keys are all masked gives 0, not
    NaN. torch's own weights are read by `load_state_dict` where the shapes allow.

    Args:
        embed_dim: width of queries and outputs.
        num_heads: number of heads.
        dropout: probability of dropping an attention weight in training; refused by mixers without weights to drop.
        bias: biases in the projections; None leaves the mixer's own default, and mixers without the option take
            nothing else.
        add_bias_kv: not supported; present so that the constructor's positions are torch's.
        add_zero_attn: not supported.
        kdim: width of keys; another than embed_dim where the mixer can read one (standard), and then no self-attention.
        vdim: width of values; the same.
        batch_first: tensors are [B, T, embed_dim] rather than [T, B, embed_dim].
        device: where the parameters live.
        dtype: their floating type.
        mixer: name of a registered mixer.
        options: options of the mixer, as `blockyard info NAME` lists them.
        causal: hide the future in every self-attention, whatever `is_causal` says; needed where a mixer is built causal
            or not at all.
        self_attention: True: key and value are copies of the query (checked, in eager code); False: they are another
            sequence, even where the tensors are one; None: decided call by call.

    Raises: InputError for unknown names or options, and for what the mixer cannot do.
    """

    # What torch's encoders look at before they bypass `forward`: these values tell them not to.
    _qkv_same_embed_dim = False
    in_proj_bias = None
    in_proj_weight = Unpacked()

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool | None = None,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        mixer: str = "standard",
        options: Mapping[str, Any] | None = None,
        causal: bool = False,
        self_attention: bool | None = None,
    ) -> None:
        super().__init__()
        for name, given in (("add_bias_kv", add_bias_kv), ("add_zero_attn", add_zero_attn)):
            if given:
                raise InputError(f"{name}=True is not supported: no mixer here has the extra key")
        self.embed_dim, self.num_heads, self.dropout, self.batch_first = embed_dim, num_heads, dropout, batch_first
        self.kdim, self.vdim = (embed_dim if width is None else width for width in (kdim, vdim))
        self.self_attention = self_attention
        entry = implementation("attn", mixer)
        self.mixer_name, self.traits = mixer, entry.traits
        given_options = _options(entry, options or {}, dropout=dropout, bias=bias, causal=causal)
        model = {"d_model": embed_dim, "n_heads": num_heads, "causal": causal}
        known = options_of(entry.cls)
        model = {name: value for name, value in model.items() if name in known}
        self.mixer = create("attn", mixer, {**model, **given_options})
        if (self.kdim, self.vdim) != (embed_dim, embed_dim):
            if not hasattr(self.mixer, "widen_context"):
                raise InputError(
                    f"kdim={kdim}, vdim={vdim} should be embed_dim={embed_dim} or None: attention {mixer!r} reads keys "
                    "and values of that width"
                )
            self.mixer.widen_context(self.kdim, self.vdim)
        self.mixer.to(device=device, dtype=dtype)
        self._accepts = accepted_arguments(self.mixer.forward)
        # Said once: keys that may be a copy of the queries; weights of torch's in attention that rotates.
        self._noted: set[str] = set()

    @classmethod
    def from_torch(cls, module: nn.MultiheadAttention) -> MultiheadAttention:
        """Return standard attention with the weights of a torch module: the same outputs, ours to exchange or measure.

        Raises:
            InputError: for a module of another class, one with add_bias_kv or add_zero_attn, or one whose output on
                random input is another.
        """
        if not isinstance(module, nn.MultiheadAttention):
            raise InputError(f"from_torch takes over an nn.MultiheadAttention, not a {type(module).__name__}")
        if module.bias_k is not None or module.add_zero_attn:
            raise InputError("a module with add_bias_kv or add_zero_attn cannot be taken over")
        placement = module.out_proj.weight
        found = cls(
            module.embed_dim,
            module.num_heads,
            module.dropout,
            module.in_proj_bias is not None,
            kdim=module.kdim,
            vdim=module.vdim,
            batch_first=module.batch_first,
            device=placement.device,
            dtype=placement.dtype,
            options={"rope": "none", "qk_norm": False},
        )
        found.load_state_dict(module.state_dict())
        given = [probe(3, 5, width, like=placement) for width in (module.embed_dim, module.kdim, module.vdim)]
        with evaluating(module, found):
            error, tolerance = deviation(answer(module, lambda: module(*given)), found(*given)[0])
        if error > tolerance:
            raise InputError(
                f"the {type(module).__name__} computes what its weights do not tell: its output on random input is "
                f"{error:.1g} of its size away"
            )
        return found.train(module.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool | None = None,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        self_attention: bool | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, as `nn.MultiheadAttention` does.

        Args:
            query: [T, B, E], or [B, T, E] with batch_first, or [T, E].
            key: the same form, S long and kdim wide; the query itself for self-attention.
            value: the key itself, or where the mixer can (standard), another sequence S long and vdim wide.
            key_padding_mask: [B, S] (or [S]); bool with True = ignore, or float, added to the scores.
            need_weights: return attention weights; None returns them where the mixer has any, True insists.
            attn_mask: [T, S] or [B * num_heads, T, S]; bool with True = ignore, or added to the scores.
            average_attn_weights: weights [B, T, S], the mean over heads, rather than [B, num_heads, T, S].
            is_causal: attn_mask, if given, is the causal mask, and need not be read.
            self_attention: goes before the constructor's.

        Returns: (output in the query's form, weights or None); an empty batch gives an empty output.
        """
        if query.is_nested:
            return self._nested(query, key, value, key_padding_mask, attn_mask, need_weights, is_causal)
        for name, other in (("key", key), ("value", value)):
            if other.ndim != query.ndim:
                raise InputError(f"{name} has {other.ndim} axes, query has {query.ndim}; all have a batch, or none has")
        itself, apart = self._sequences(query, key, value, self_attention)
        single = query.ndim == 2
        query, key = self._batched(query, "query", self.embed_dim), self._batched(key, "key", self.kdim)
        arguments: dict[str, Any] = {} if itself else {"context": key}
        if apart:
            arguments["values"] = self._batched(value, "value", self.vdim)
        causal = self._causal(is_causal, itself, attn_mask)
        # Only where it differs: a mixer that cannot be overridden call by call refuses the argument.
        if causal != bool(getattr(self.mixer, "causal", False)):
            arguments["causal"] = causal
        mask = None if attn_mask is None or (causal and is_causal) else self._mask(attn_mask, query, key)
        if key_padding_mask is not None:
            kept, bias = kept_keys(key_padding_mask, key, self.traits.attn_mask)
            arguments["padding_mask"] = kept
            mask = mask if bias is None else added(mask, bias)
        if mask is not None:
            arguments["attn_mask"] = mask
        weighted = self.traits.weights and need_weights is not False
        if need_weights and not self.traits.weights:
            raise InputError(f"need_weights=True: attention {self.mixer_name!r} has no attention weights")
        if weighted:
            arguments["return_weights"] = True
        for name in arguments.keys() - self._accepts:
            raise InputError(f"attention {self.mixer_name!r} does not take {name}")
        found = self.mixer(query, **arguments) if query.numel() else self._nothing(query, arguments)
        out, weights = found if isinstance(found, tuple) else (found, None)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if single:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _sequences(self, query: Tensor, key: Tensor, value: Tensor, self_attention: bool | None) -> tuple[bool, bool]:
        """Return whether keys are the queries' sequence, and whether values come from another one than keys."""
        self_attention = self.self_attention if self_attention is None else self_attention
        if self_attention:
            for name, other in (("key", key), ("value", value)):
                _check_copy(name, other, query)
            return True, False
        apart = value.shape != key.shape or not one_sequence(key, value)
        if apart and "values" not in self._accepts:
            raise InputError(
                f"value should be the same tensor as key: attention {self.mixer_name!r} reads both from one sequence "
                "(self_attention=True takes copies of the query)"
            )
        itself = self_attention is None and one_sequence(query, key)
        if self_attention is None and not itself and query.shape == key.shape and self._placed():
            self._note(
                "key has the shape of query, but is another tensor: taken for another sequence, without positions in "
                "common; pass self_attention=True for a copy of query, False if it is another sequence",
                6,
            )
        return itself, apart

    def _placed(self) -> bool:
        """Return whether positions matter to the mixer, as they do unless it says that it rotates and windows
        nothing."""
        return getattr(self.mixer, "rope", self) is not None or getattr(self.mixer, "window", None) is not None

    def _note(self, line: str, depth: int) -> None:
        """Warn once, in the name of the caller so many calls up."""
        if line not in self._noted and not torch.compiler.is_compiling():
            self._noted.add(line)
            warnings.warn(line, stacklevel=depth)

    def _causal(self, is_causal: bool, itself: bool, attn_mask: Tensor | None) -> bool:
        """Return whether the mixer has to hide the future; a mask that says so across sequences is read as any
        other."""
        if itself:
            return is_causal or bool(getattr(self.mixer, "causal", False))
        if is_causal and attn_mask is None and not getattr(self.mixer, "causal_cross", False):
            raise InputError(
                "is_causal=True between two sequences needs the attn_mask: their positions have no common order"
            )
        return is_causal and attn_mask is None

    def _nothing(self, query: Tensor, arguments: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Return the output for no query at all: empty, with gradients of 0 for every parameter (ranks wait for
        them)."""
        key = arguments.get("context", query)
        if key.shape[0] != query.shape[0]:
            raise InputError(f"key has batch {key.shape[0]}, query has {query.shape[0]}")
        reads = [key, *(arguments[name] for name in ("values",) if name in arguments), *self.parameters()]
        out = query.clone()
        for tensor in reads:
            out = out + tensor.flatten()[:0].sum().to(query.dtype)
        if "return_weights" not in arguments:
            return out, None
        real = query.abs() if query.is_complex() else query
        return out, real.new_zeros(query.shape[0], self.num_heads, query.shape[1], key.shape[1])

    def _nested(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None,
        need_weights: bool | None,
        is_causal: bool,
    ) -> tuple[Tensor, None]:
        """Return self-attention of rows of different lengths, which torch's encoder makes of a padding mask in eval
        mode."""
        masks = {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask, "need_weights": need_weights or None}
        for name, given in masks.items():
            if given is not None:
                raise InputError(
                    f"{name} with a nested tensor: rows of different lengths take no masks and give no weights"
                )
        if key is not query or value is not query or not self.batch_first:
            raise InputError("a nested tensor should be query, key and value at once, with batch_first=True")
        rows = query.unbind()
        lengths = torch.tensor([len(row) for row in rows], device=query.device)
        padded = query.to_padded_tensor(0.0)
        ignored = torch.arange(padded.shape[1], device=query.device) >= lengths[:, None]
        out, _ = self(padded, padded, padded, ignored, need_weights=False, is_causal=is_causal)
        return torch.nested.as_nested_tensor([row[: len(own)] for row, own in zip(out, rows)]), None

    def _batched(self, x: Tensor, name: str, width: int) -> Tensor:
        if x.ndim not in (2, 3) or x.shape[-1] != width:
            form = "batch, length" if self.batch_first else "length, batch"
            raise InputError(f"{name} has shape {tuple(x.shape)}, expected [{form}, {width}]")
        if x.ndim == 2:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _mask(self, mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Return the mask as mixers take it: bool with True = attend, or additive, [T, S] or [B, num_heads, T, S]."""
        if mask.dtype == torch.bool:
            mask = ~mask
        elif not mask.is_floating_point():
            raise InputError(f"attn_mask has dtype {mask.dtype}; it should be bool (True = ignore) or floating (added)")
        batch, queries, keys = query.shape[0], query.shape[1], key.shape[1]
        if mask.shape == (queries, keys):
            return mask
        if mask.shape == (batch * self.num_heads, queries, keys):
            return mask.unflatten(0, (batch, self.num_heads))
        raise InputError(
            f"attn_mask has shape {tuple(mask.shape)}, expected ({queries}, {keys}) or "
            f"({batch * self.num_heads}, {queries}, {keys})"
        )

    @property
    def out_proj(self) -> Any:
        """The mixer's output projection; torch's encoders ask for it by this name."""
        return getattr(self.mixer, "output_proj", self.in_proj_weight)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take torch's own weights as well."""
        if translated(state_dict, prefix, self.mixer, self.mixer_name) and self._placed():
            self._note(
                "torch's weights in attention with rotary positions or a window: the outputs are not torch's; "
                "options={'rope': 'none', 'qk_norm': False} gives its definition",
                5,
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"mixer={self.mixer_name!r}, batch_first={self.batch_first}"


def _options(
    entry: Entry, options: Mapping[str, Any], *, dropout: float, bias: bool | None, causal: bool
) -> dict[str, Any]:
    """Return the mixer's options with the constructor's own ones among them; refuses what the mixer does not have."""
    known, given = options_of(entry.cls), dict(options)
    for name in given:
        if name in MODEL_PARAMETERS:
            raise InputError(f"options[{name!r}]: give {name} to the constructor itself")
    if bias is not None:
        if "bias" not in known:
            raise InputError(f"bias={bias}: attention {entry.name!r} has no option for biases; leave it None")
        given["bias"] = bias
    if dropout:
        if "dropout" not in known:
            raise InputError(f"dropout={dropout}: attention {entry.name!r} has no weights to drop")
        given["dropout"] = dropout
    if causal and not entry.traits.causal:
        raise InputError(f"causal=True: attention {entry.name!r} cannot be causal")
    if not causal and not entry.traits.bidirectional:
        raise InputError(f"causal=False: attention {entry.name!r} is only causal")
    return given


def _check_copy(name: str, copy: Tensor, query: Tensor) -> None:
    """Refuse what self_attention=True would leave unread; compiled code cannot ask for numbers."""
    if copy.shape != query.shape:
        raise InputError(f"self_attention=True: {name} has shape {tuple(copy.shape)}, query {tuple(query.shape)}")
    if copy is query or torch.compiler.is_compiling() or torch.equal(copy, query):
        return
    # In padding may stand what is no number.
    if not torch.allclose(copy, query, rtol=0.0, atol=0.0, equal_nan=True):
        raise InputError(f"self_attention=True: {name} holds other numbers than query")
