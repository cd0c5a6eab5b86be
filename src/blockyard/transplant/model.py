"""Other blocks in a trained model: a copy whose chosen layers have another mixer, with weights from the old ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.models.lm import TransformerLM, build_lm
from blockyard.registry.pattern import DEFAULT_FFN, LayerSpec, check_layer, parse_choice, split_outside
from blockyard.standard.attention import StandardAttention
from blockyard.transplant.grouped import check_grouped, fit_grouped
from blockyard.transplant.latents import check_latent, fit_latent
from blockyard.transplant.moments import Moments
from blockyard.transplant.source import Source, read_source
from blockyard.transplant.veins import WARNING, check_gated, fit_vein

# What may be asked of the new mixer; all else is decided by the weights that it is made of.
SHAPE = ("n_kv_heads", "head_dim", "v_dim")
STANDARD = (*SHAPE, "window", "sinks", "kernel", "dropout")
LATENT = ("kv_rank", "rope_dim", "decode", "cache", "kernel", "dropout")

Fitted = tuple[dict[str, Any], dict[str, Tensor] | None]


@torch.no_grad()
def transplant(
    model: TransformerLM,
    blocks: str,
    *,
    layers: Iterable[int] | Literal["all"] = "all",
    moments: Moments | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TransformerLM:
    """Put another mixer into some layers of a trained model, fitted to what stands there.

    `standard[window=256,sinks=4]` changes no weight; `standard[n_kv_heads=1,head_dim=144,v_dim=192]` is rotary PCA,
    `standard[head_dim=48]` thin heads, `mla[kv_rank=192,rope_dim=64]` latent attention, and `vft[rank=384]` puts the
    FFNs into veins, with a warning. Options that are not named stay those of the layer.

    Args:
        model: trained, with causal standard attention in these layers; it is left as it is.
        blocks: a mixer or an FFN, as one layer of a choice; the other one stays.
        layers: which, from 0 on.
        moments: from `gather_moments`; needed unless only the window changes.
        progress: called with the layers done and their number.

    Returns: a new model on the same device, in the same type and mode.

    Raises:
        InputError: for a mixer or option that is not fitted, layers that are not there or hold what is not read (by its
            name), moments that are missing, or widths beyond those of the layer.
    """
    target = read_target(blocks)
    chosen = chosen_layers(layers, len(model.layers))
    specs: list[LayerSpec] = list(model.config.layers)
    states: dict[str, dict[str, Tensor]] = {}
    for done, i in enumerate(chosen):
        if target.ffn == "vft":
            options, state = _fit_ffn(model.layers[i], target, i, moments)
            specs[i] = check_layer(replace(specs[i], ffn="vft", ffn_options=options))
            states |= {f"layers.{i}.ffn.": state}
        else:
            options, weights = _fit(model.layers[i], target, specs[i], i, moments)
            specs[i] = check_layer(replace(specs[i], attn=target.attn, attn_options=options))
            states |= {} if weights is None else {f"layers.{i}.attn.": weights}
        if progress is not None:
            progress(done + 1, len(chosen))
    if target.ffn == "vft":
        # Seen behind the decorator, at the caller's line.
        warnings.warn(WARNING, stacklevel=3)
    # Built anew by the configuration: what a run folder will say of it is then what it is.
    made = build_lm(replace(model.config, blocks=tuple(specs)), 0)
    first = next(model.parameters())
    made = made.to(first.device, first.dtype)
    fill(made, model, states)
    return made.train(model.training)


def needs_moments(blocks: str) -> bool:
    """Return whether the fit of a choice reads moments: one that changes a window alone does not; raises as
    `transplant`."""
    target = read_target(blocks)
    return target.ffn == "vft" or target.attn != "standard" or any(name in target.attn_options for name in SHAPE)


def read_target(blocks: str) -> LayerSpec:
    """Return what a form asks for, refusing what is not fitted: as `transplant`."""
    specs = parse_choice(blocks)
    if len(specs) != 1 or len(split_outside(blocks, "+")) > 1:
        raise InputError(f"blocks={blocks!r} should be one mixer or FFN, and layers are chosen by number")
    target = specs[0]
    # An FFN alone: the mixer is then what a choice that names none has.
    if target.attn == "standard" and not target.attn_options and (target.ffn != DEFAULT_FFN or target.ffn_options):
        if target.ffn != "vft" or set(target.ffn_options) != {"rank"}:
            raise InputError(f"{target.ffn!r}: an FFN is fitted as a vein of a rank alone; write vft[rank=384]")
        return target
    # Whatever else an option says would contradict the trained weights, or be ignored.
    known = {"standard": STANDARD, "mla": LATENT}.get(target.attn)
    if known is None:
        hint = "; standard[head_dim=…,v_dim=…] is the same attention" if target.attn == "tva" else ""
        raise InputError(
            f"{target.attn!r} cannot be fitted to trained attention: use standard or mla, or train it with "
            f"fit_by_output (research){hint}"
        )
    odd = [name for name in target.attn_options if name not in known]
    if odd:
        raise InputError(
            f"{odd[0]}={target.attn_options[odd[0]]} is decided by the trained weights; {target.attn} may have "
            f"{', '.join(known)}"
        )
    if target.attn == "mla" and not {"kv_rank", "rope_dim"} <= target.attn_options.keys():
        raise InputError("mla needs kv_rank and rope_dim here: write mla[kv_rank=192,rope_dim=64]")
    if target.attn == "standard" and not target.attn_options:
        raise InputError("standard without options changes nothing: name a window, or other heads")
    return target


def check_form(model: TransformerLM, form: str, layer: int, *, widths: bool = True) -> None:
    """Refuse a form for a layer as `transplant` would, before any text is read.

    Args:
        model: trained.
        form: one mixer or FFN; with `widths` off only its names count, so that widths may still be open.
        layer: where it is to stand.
        widths: whether those asked for are compared with what there is.

    Raises:
        InputError: saying what is wrong.
    """
    mixer, block = form.partition("[")[0], model.layers[layer]
    attention = getattr(block, "attn", None)
    if mixer == "vft":
        check_gated(block.ffn, layer)
        if widths and not 1 <= (rank := read_target(form).ffn_options["rank"]) < model.config.d_model:
            raise InputError(f"rank={rank} should be at least 1 and below d_model={model.config.d_model}")
    elif mixer == "standard" and not any(f"{name}=" in form for name in SHAPE):
        _check_standard(attention, model.config.layers[layer], layer)
    else:
        source = read_source(attention, layer)
        if widths:
            _checked_widths(source, read_target(form))


def _check_standard(attention: object, old: LayerSpec, layer: int) -> StandardAttention:
    if not isinstance(attention, StandardAttention) or old.attn != "standard":
        raise InputError(f"layer {layer} has {old.attn}; what is fitted starts from standard attention")
    return attention


def chosen_layers(layers: Iterable[int] | Literal["all"], depth: int) -> list[int]:
    """Return the numbers of layers, rising; InputError for none, or one that is not there."""
    if layers == "all":
        return list(range(depth))
    chosen = sorted(set(layers))
    wrong = [i for i in chosen if not 0 <= i < depth]
    if wrong or not chosen:
        raise InputError(f"layers={','.join(map(str, chosen)) or 'none'}: name some of 0 to {depth - 1}")
    return chosen


def _fit(block: Any, target: LayerSpec, old: LayerSpec, layer: int, moments: Moments | None) -> Fitted:
    """Return options of the layer's new mixer, and its weights; None for the old ones."""
    attention, asked = _check_standard(getattr(block, "attn", None), old, layer), dict(target.attn_options)
    # A window hides keys and moves none: every weight stays, and no text is needed.
    if target.attn == "standard" and not any(name in asked for name in SHAPE):
        return {**old.attn_options, **asked}, None
    source = read_source(attention, layer)
    widths = _checked_widths(source, target)
    if moments is None:
        raise InputError(f"{target} is fitted to a text: give moments, from gather_moments(model, ids)")
    # Options of the old attention stay only where the new one is of the same kind.
    found = moments.of(layer)
    asked = {name: value for name, value in asked.items() if name not in widths}
    if target.attn == "mla":
        options, state = fit_latent(source, found, **widths)
        return {**options, **asked}, state
    options, state = fit_grouped(source, found, **widths)
    return {**old.attn_options, **asked, **options}, state


def _checked_widths(source: Source, target: LayerSpec) -> dict[str, int]:
    """Return the widths that a fit is asked for; raises for those beyond what there is."""
    asked = target.attn_options
    if target.attn == "mla":
        widths = {name: asked[name] for name in ("kv_rank", "rope_dim")}
        check_latent(source, **widths)
        return widths
    usual = {"n_kv_heads": source.key_heads, "head_dim": source.head_dim, "v_dim": source.v_dim}
    widths = {name: usual[name] if asked.get(name) is None else asked[name] for name in SHAPE}
    check_grouped(source, **widths)
    return widths


def _fit_ffn(
    block: Any, target: LayerSpec, layer: int, moments: Moments | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if moments is None:
        raise InputError("vft is fitted to a text: give moments, from gather_moments(model, ids, ffns=True)")
    return fit_vein(getattr(block, "ffn", None), moments.of_ffn(layer), rank=target.ffn_options["rank"], layer=layer)


def fill(made: TransformerLM, model: TransformerLM, states: Mapping[str, dict[str, Tensor]]) -> None:
    """Fill the new model: by prefix what was fitted, and all else from the old one."""
    new = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith(tuple(states)) or not states:
            new[name] = tensor
    for prefix, state in states.items():
        new.update({prefix + name: tensor.to(torch.float32) for name, tensor in state.items()})
    made.load_state_dict(new)
