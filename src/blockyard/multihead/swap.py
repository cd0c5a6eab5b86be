"""Exchange the attention of a whole model of other make, layer by layer, and say what became of its weights.

    report = blockyard.swap(model, mixer="mla", kv_rank=64)

Known are `torch.nn.MultiheadAttention`, also inside torch's encoders and decoders, attention with the call of
transformers' Llama (`llama.py`), and DeepSeek's latent attention, which becomes ours. Weights are taken over where the
mixer has a projection of that name for as many heads of that width. Where it computes the same (standard attention with
its options left alone, `mla` for DeepSeek's), that is asked of both on random input before the model is touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.multihead.attention import MultiheadAttention
from blockyard.multihead.llama import LlamaAttention, form_of, is_latent
from blockyard.nn.linear import untouched, weight_of
from blockyard.nn.parity import answer, deviation, evaluating, probe
from blockyard.registry.options import options_of
from blockyard.registry.register import MODEL_PARAMETERS, implementation
from blockyard.report.notebook import small_table

# A projection: its matrix, its bias if there is one, and for how many heads it is.
Part = tuple[Tensor, Tensor | None, int]
# What does not change what standard attention computes.
_HARMLESS = {"kernel"}


@dataclass(frozen=True)
class Swapped:
    """One attention that was exchanged.

    Args:
        path: where it stands in the model.
        was: its class.
        carried: weights that were taken over, by their name in the mixer.
        fresh: parameters that start anew.
        same: whether the outputs are those of before, as far as rounding lets them be.
    """

    path: str
    was: str
    carried: tuple[str, ...]
    fresh: tuple[str, ...]
    same: bool

    def __str__(self) -> str:
        what = "the same outputs" if self.same else f"carried {', '.join(self.carried) or 'nothing'}"
        return f"{self.path} ({self.was}): {what}" + (f"; fresh: {', '.join(self.fresh)}" if self.fresh else "")


@dataclass(frozen=True)
class SwapReport:
    """What `swap` did.

    Args:
        mixer: the mixer that stands in the model now.
        swapped: every attention that was exchanged.
        left: what looks like attention and was left alone, with the reason.
        notes: what else was changed.
    """

    mixer: str
    swapped: tuple[Swapped, ...]
    left: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [self._heading, *map(str, self.swapped)]
        lines += [f"{path} was left alone: {why}" for path, why in self.left.items()]
        return "\n".join([*lines, *self.notes])

    @property
    def _heading(self) -> str:
        count = len(self.swapped)
        return f"{count} {'attention is' if count == 1 else 'attentions are'} {self.mixer!r} now"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: a row for every attention, exchanged or left alone."""
        rows = [
            [one.path, one.was, "the same outputs" if one.same else ", ".join(one.carried), ", ".join(one.fresh)]
            for one in self.swapped
        ]
        rows += [[path, "left alone", why, ""] for path, why in self.left.items()]
        return small_table(self._heading, ["where", "was", "carried", "fresh"], rows, "; ".join(self.notes))


def swap(model: nn.Module, mixer: str = "standard", *, causal: bool = False, **options: Any) -> SwapReport:
    """Put a mixer in place of every attention of a known form, in place.

    Args:
        model: any model; nothing in it is changed when something is refused.
        mixer: name of a registered mixer.
        causal: let torch's attention hide the future in every self-attention, whatever masks say; that of transformers'
            language models always does.
        options: its options, as `blockyard info NAME` lists them.

    Raises:
        InputError: when there is no such attention, the mixer cannot stand in for one of them, or standard attention
            does not give the outputs of before.
    """
    for name in options:
        if name in MODEL_PARAMETERS:
            raise InputError(
                f"{name}={options[name]!r}: {name} is the model's own, and stays; give options of the mixer"
            )
    if not isinstance(model, nn.Module):
        raise InputError(f"swap takes a model, an nn.Module, not {type(model).__name__}")
    made: dict[int, nn.Module] = {}
    swapped, left, ours = [], {}, dict[str, str]()
    for path, module in model.named_modules():
        if isinstance(module, (MultiheadAttention, LlamaAttention)):
            ours[f"{path}." if path else ""] = module.mixer_name
        if f"{path}.".startswith(tuple(ours)):
            continue
        why = _reason(module, mixer)
        if why is None:
            if not path:
                raise InputError(
                    f"the model is itself a {type(module).__name__}, and nothing holds it; exchange it there"
                )
            made[id(module)], found = _exchange(path, module, mixer, options, model, causal)
            swapped.append(found)
        elif why:
            left[path] = why
    if ours and not swapped:
        there = ", ".join(sorted(set(ours.values())))
        raise InputError(
            f"the attention of the {type(model).__name__} is exchanged already, for {there}:"
            " begin with the model of before (copy.deepcopy keeps one)"
        )
    if not swapped:
        tail = "".join(f"; {path} was left: {why}" for path, why in list(left.items())[:1])
        raise InputError(f"the {type(model).__name__} has no attention of a known form{tail}")
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in made:
                setattr(parent, name, made[id(child)])
    return SwapReport(mixer, tuple(swapped), left, _without_cache(model) if _has_llama(made) else ())


def _reason(module: nn.Module, mixer: str) -> str | None:
    """Return None for attention of a known form, "" for what is none, else why it is left alone."""
    if is_latent(module):
        return None if mixer == "mla" else "it is latent attention, which mixer='mla' can take over"
    if isinstance(module, nn.MultiheadAttention):
        if type(module).forward is not nn.MultiheadAttention.forward:
            return f"{type(module).__name__} has a forward of its own"
        return None
    return form_of(module)


def _exchange(
    path: str, module: nn.Module, mixer: str, options: Mapping[str, Any], model: nn.Module, causal: bool
) -> tuple[nn.Module, Swapped]:
    try:
        # Told here, not by the first call of a model whose weights are gone.
        if implementation("attn", mixer).traits.complex_valued and not any(p.is_complex() for p in module.parameters()):
            raise InputError(f"attention {mixer!r} is complex-valued, but this model's stream is real")
        if isinstance(module, nn.MultiheadAttention):
            return _exchange_torch(path, module, mixer, options, causal)
        return _exchange_llama(path, module, mixer, options, model)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _exchange_torch(
    path: str, module: nn.MultiheadAttention, mixer: str, options: Mapping[str, Any], causal: bool
) -> tuple[nn.Module, Swapped]:
    name, entry = type(module).__name__, implementation("attn", mixer)
    if mixer == "standard" and not options and not causal:
        new = MultiheadAttention.from_torch(module)
        return new, Swapped(path, name, tuple(new.mixer.state_dict()), (), True)
    # As torch's decoder layers call it.
    if path.rpartition(".")[2] == "multihead_attn" and not entry.traits.cross:
        raise InputError(f"attention {mixer!r} does not look at another sequence, as this one is made to")
    known = options_of(entry.cls)
    biased, placement = module.in_proj_bias is not None, module.out_proj.weight
    new = MultiheadAttention(
        module.embed_dim,
        module.num_heads,
        # What the mixer has no weights for, it cannot drop.
        module.dropout if "dropout" in known else 0.0,
        biased if "bias" in known and "bias" not in options else None,
        module.bias_k is not None,
        module.add_zero_attn,
        kdim=module.kdim,
        vdim=module.vdim,
        batch_first=module.batch_first,
        device=placement.device,
        dtype=placement.dtype,
        mixer=mixer,
        options={**({"rope": "none", "qk_norm": False} if mixer == "standard" else {}), **options},
        causal=causal and path.rpartition(".")[2] != "multihead_attn",
    )
    carried, fresh = carry(new.mixer, _torch_parts(module))
    return new.train(module.training), Swapped(path, name, carried, fresh, False)


def _torch_parts(module: nn.MultiheadAttention) -> dict[str, Part]:
    """Return torch's projections under our names."""
    if module._qkv_same_embed_dim:
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    biases = [None] * 3 if module.in_proj_bias is None else list(module.in_proj_bias.chunk(3))
    parts: dict[str, Part] = {f"{n}_proj": (*pair, module.num_heads) for n, pair in zip("qkv", zip(weights, biases))}
    return {**parts, "output_proj": (module.out_proj.weight, module.out_proj.bias, module.num_heads)}


def _exchange_llama(
    path: str, module: Any, mixer: str, options: Mapping[str, Any], model: nn.Module
) -> tuple[nn.Module, Swapped]:
    name = type(module).__name__
    if is_latent(module):
        if options:
            raise InputError(f"{next(iter(options))}: latent attention is taken over as it is, without options")
        latent = implementation("attn", mixer).cls.from_hf(module)  # type: ignore[attr-defined]
        new = LlamaAttention(latent, mixer, module.layer_idx)
        return new.train(module.training), Swapped(path, name, tuple(latent.state_dict()), (), True)
    new = LlamaAttention.like(module, mixer, options)
    heads, key_heads = (m.out_features // module.head_dim for m in (module.q_proj, module.k_proj))
    named = [("q_proj", module.q_proj, heads), ("k_proj", module.k_proj, key_heads)]
    named += [("v_proj", module.v_proj, key_heads), ("output_proj", module.o_proj, heads)]
    carried, fresh = carry(new.mixer, {ours: (weight_of(m), m.bias, count) for ours, m, count in named})
    carried += new.take_norms(module)
    fresh = tuple(name for name in fresh if name not in carried)
    same = mixer == "standard" and not set(options) - _HARMLESS
    if same:
        _check_same(module, new, model)
    return new.train(module.training), Swapped(path, name, carried, fresh, same)


def _check_same(module: Any, new: LlamaAttention, model: nn.Module) -> None:
    """Ask both on random input, with the model's own rotation.

    Raises:
        InputError: for another output, which means that the weights do not tell all.
    """
    turns = [m for name, m in model.named_modules() if name.rpartition(".")[2] == "rotary_emb"]
    like = module.q_proj.weight
    x, places = probe(2, 7, module.q_proj.in_features, like=like), torch.arange(7, device=like.device)[None]
    with evaluating(module, new):
        turn = answer(turns[0], lambda: torch.stack(turns[0](x, places))).unbind(0) if turns else None
        hidden = torch.full((7, 7), torch.finfo(x.dtype).min, dtype=x.dtype, device=x.device).triu(1)[None, None]
        theirs = answer(module, lambda: module(x, position_embeddings=turn, attention_mask=hidden))
        error, tolerance = deviation(theirs, new(x, position_ids=places)[0])
    if error > tolerance:
        raise InputError(
            f"the {type(module).__name__} computes what its weights do not tell (another rotation, a softcap): the "
            f"output of standard attention on random input is {error:.1g} of its size away"
        )


@torch.no_grad()
def carry(mixer: nn.Module, parts: Mapping[str, Part]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Copy projections into a mixer's own of the same name and shape.

    Args:
        mixer: what they go into.
        parts: projections by our names: q_proj, k_proj, v_proj, output_proj.

    Returns: names of the parameters that were taken over, and of those that were not.
    """
    carried = []
    for name, (weight, bias, heads) in parts.items():
        target = getattr(mixer, name, None)
        if not isinstance(target, nn.Linear) or not untouched(target) or target.weight.shape != weight.shape:
            continue
        # Rows of one head among those of others are no head.
        own = getattr(mixer, "n_heads", None)
        if heads != (getattr(mixer, "n_kv_heads", own) if name in ("k_proj", "v_proj") else own):
            continue
        # A weight without its bias, or with one that nobody learnt, is another map.
        if bias is not None and target.bias is None and bool(bias.any()):
            continue
        target.weight.copy_(weight)
        target.weight.requires_grad_(weight.requires_grad)
        carried.append(f"{name}.weight")
        if target.bias is not None:
            target.bias.copy_(torch.zeros_like(target.bias) if bias is None else bias)
            carried.append(f"{name}.bias")
    return tuple(carried), tuple(name for name, _ in mixer.named_parameters() if name not in carried)


def _has_llama(made: Mapping[int, nn.Module]) -> bool:
    return any(isinstance(module, LlamaAttention) for module in made.values())


def _without_cache(model: nn.Module) -> tuple[str, ...]:
    """Tell a model of transformers to keep no cache, which the mixers would not be in."""
    told = False
    for settings in (getattr(model, "config", None), getattr(model, "generation_config", None)):
        if settings is not None and getattr(settings, "use_cache", None):
            settings.use_cache, told = False, True
    return (
        ("config.use_cache is False now: transformers' cache has no place for what these mixers keep",) if told else ()
    )
