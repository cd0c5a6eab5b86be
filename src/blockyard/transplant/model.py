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
from blockyard.protocol.windows import check_window
from blockyard.registry.pattern import LayerSpec, check_layer
from blockyard.standard.attention import StandardAttention
from blockyard.transplant.balance import balanced_attention
from blockyard.transplant.grouped import check_grouped, check_values, fit_grouped, fit_values
from blockyard.transplant.latents import check_latent, fit_latent
from blockyard.transplant.moments import Moments
from blockyard.transplant.published import METHODS
from blockyard.transplant.source import Source, read_source
from blockyard.transplant.target import SHAPE, WIDTHS, TransplantChoice, check_widths, parse_transplant_choice
from blockyard.transplant.veins import WARNING, check_gated, fit_vein

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
    FFNs into veins, with a warning. Options that are not named stay those of the layer. A published method is named
    among its options: `mla[kv_rank=192,rope_dim=64,method=transmla]` (`transplant/published.py`).

    Args:
        model: trained, with causal standard attention in these layers; it is left as it is.
        blocks: a mixer or an FFN, as one layer of a choice; the other one stays.
        layers: which, from 0 on.
        moments: from `gather_moments`; needed unless only the window changes, or a method goes by weights alone.
        progress: called with the layers done and their number.

    Returns: a new model on the same device, in the same type and mode.

    Raises:
        InputError: for a mixer or option that is not fitted, layers that are not there or hold what is not read (by its
            name), moments that are missing, or widths beyond those of the layer.
    """
    target = parse_transplant_choice(blocks)
    chosen = chosen_layers(layers, len(model.layers))
    specs: list[LayerSpec] = list(model.config.layers)
    states: dict[str, dict[str, Tensor]] = {}
    for done, i in enumerate(chosen):
        if target.part == "ffn":
            options, state = _fit_ffn(model.layers[i], target.spec, i, moments)
            specs[i] = check_layer(replace(specs[i], ffn="vft", ffn_options=options))
            states |= {f"layers.{i}.ffn.": state}
        else:
            options, weights = _fit(model.layers[i], target, specs[i], i, moments)
            specs[i] = check_layer(replace(specs[i], attn=target.spec.attn, attn_options=options))
            states |= {} if weights is None else {f"layers.{i}.attn.": weights}
        if progress is not None:
            progress(done + 1, len(chosen))
    if target.part == "ffn":
        # Seen behind the decorator, at the caller's line.
        warnings.warn(WARNING, stacklevel=3)
    # Built anew by the configuration: what a run folder will say of it is then what it is.
    made = build_lm(replace(model.config, blocks=tuple(specs)), 0)
    first = next(model.parameters())
    made = made.to(first.device, first.dtype)
    fill(made, model, states)
    return made.train(model.training)


def needs_moments(blocks: str) -> bool:
    """Return whether the fit of a choice reads moments (`TransplantChoice.needs_moments`); raises as `transplant`."""
    return parse_transplant_choice(blocks).needs_moments


def refusals(model: TransformerLM, form: str, layers: Iterable[int]) -> dict[int, str]:
    """Return why a form cannot be put into layers, by layer, before any text is read; nothing where it can.

    Raises:
        InputError: for what is no form.
    """
    parse_transplant_choice(form)
    found, taken = {}, set[str]()
    for layer in layers:
        # Of layers of one kind one is asked.
        kind = str(model.config.layers[layer])
        if kind in taken:
            continue
        try:
            check_form(model, form, layer)
            taken.add(kind)
        except InputError as error:
            found[layer] = str(error)
    return found


def check_form(model: TransformerLM, form: str, layer: int) -> None:
    """Refuse what `transplant` would refuse of a form in a layer, before any text is read.

    Raises:
        InputError: saying what is wrong.
    """
    target, block, old = parse_transplant_choice(form), model.layers[layer], model.config.layers[layer]
    if target.part == "ffn":
        check_gated(block.ffn, layer)
        if not 1 <= (rank := target.spec.ffn_options["rank"]) < model.config.d_model:
            raise InputError(f"rank={rank} should be at least 1 and below d_model={model.config.d_model}")
        return
    _check_window(target, old, layer)
    if target.changes_weights:
        _source(_check_standard(getattr(block, "attn", None), old, layer), target, layer)
    else:
        _check_same(target, old, layer)


def _check_standard(attention: object, old: LayerSpec, layer: int) -> StandardAttention:
    """Refuse a layer that no fit starts from."""
    if not isinstance(attention, StandardAttention) or old.attn != "standard":
        raise InputError(f"layer {layer} has {old.attn}; what is fitted starts from standard attention")
    return attention


def _check_window(target: TransplantChoice, old: LayerSpec, layer: int) -> None:
    """Refuse what is no window, and one wider than the layer's own: it would show what no weight was trained to see."""
    own = old.attn_options.get("window")
    asked = target.spec.attn_options.get("window", own)
    check_window(asked, target.spec.attn_options.get("sinks", old.attn_options.get("sinks", 0)))
    if own is not None and (asked is None or asked > own):
        said = "none" if asked is None else asked
        raise InputError(f"layer {layer} has a window of {own}; window={said} would show it more than it has learned")


def _check_same(target: TransplantChoice, old: LayerSpec, layer: int) -> None:
    """Refuse a change of the window alone for a layer with another mixer."""
    if target.spec.attn != old.attn and target.spec.attn == "mla":
        check_widths(target.spec)
    if target.spec.attn != old.attn:
        raise InputError(f"layer {layer} has {old.attn}; write {old.attn}[window=…] to give it a window")


def chosen_layers(layers: Iterable[int] | Literal["all"], depth: int) -> list[int]:
    """Return the numbers of layers, rising; InputError for none, or one that is not there."""
    if layers == "all":
        return list(range(depth))
    chosen = sorted(set(layers))
    wrong = [i for i in chosen if not 0 <= i < depth]
    if wrong or not chosen:
        raise InputError(f"layers={','.join(map(str, chosen)) or 'none'}: name some of 0 to {depth - 1}")
    return chosen


def _fit(block: Any, target: TransplantChoice, old: LayerSpec, layer: int, moments: Moments | None) -> Fitted:
    """Return options of the layer's new mixer, and its weights; None for the old ones."""
    made, asked = target.spec.attn, target.spec.attn_options
    other = {name: value for name, value in asked.items() if name not in WIDTHS}
    _check_window(target, old, layer)
    # A window hides keys and moves none: every weight stays, and no text is needed.
    if not target.changes_weights:
        _check_same(target, old, layer)
        return {**old.attn_options, **other}, None
    attention = _check_standard(getattr(block, "attn", None), old, layer)
    # Options of the old attention stay where the new one is of the same kind; what it sees stays in any.
    stay = old.attn_options if made == "standard" else ("window", "sinks")
    kept = {name: old.attn_options[name] for name in stay if name in old.attn_options}
    source, widths = _source(attention, target, layer)
    if target.needs_moments and moments is None:
        raise InputError(f"{target} is fitted to a text: give moments, from gather_moments(model, ids)")
    found = moments.of(layer) if target.needs_moments and moments is not None else None
    if target.method is not None:
        options, weights = METHODS[target.method].fit(source, found, widths)
    elif found is None:
        raise AssertionError("this package's own fits read moments")
    elif made == "mla":
        options, weights = fit_latent(source, found, **widths)
    elif source.head_dim:
        options, weights = fit_grouped(source, found, **widths)
    else:
        options, weights = fit_values(source, found, v_dim=widths["v_dim"])
    # Whatever the method: Adam moves all weights alike.
    usual = {"n_kv_heads": source.key_heads, "head_dim": source.head_dim, "v_dim": source.v_dim}
    options, weights = source.finished(options, balanced_attention({**usual, **options}, weights))
    return {**kept, **options, **other}, weights


def _source(attention: StandardAttention, target: TransplantChoice, layer: int) -> tuple[Source, dict[str, int]]:
    """Return what a fit reads of a layer, and the widths that it is asked for; raises for those beyond what there
    is."""
    asked = {name: width for name, width in target.spec.attn_options.items() if name in WIDTHS and width is not None}
    if target.method is not None:
        if attention.window is not None and METHODS[target.method].makes:
            raise InputError(f"layer {layer} has a window, which method={target.method} has no place for")
        source, widths = read_source(attention, layer), {**asked, **target.settings}
        METHODS[target.method].check(source, widths)
    elif target.spec.attn == "mla":
        source, widths = read_source(attention, layer), asked
        check_latent(source, **widths)
    else:
        usual = {"n_kv_heads": attention.n_kv_heads, "head_dim": attention.head_dim, "v_dim": attention.v_dim}
        widths = {**usual, **asked}
        # Keys that stay as they are need not be read: whatever is done to them may stay, too.
        keys = any(widths[name] != usual[name] for name in SHAPE[:2])
        source = read_source(attention, layer, keys=keys)
        if keys:
            check_grouped(source, **widths)
        else:
            check_values(source, widths["v_dim"])
    return source, widths


def _fit_ffn(
    block: Any, target: LayerSpec, layer: int, moments: Moments | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if moments is None:
        raise InputError("vft is fitted to a text: give moments, from gather_moments(model, ids, ffns=True)")
    return fit_vein(getattr(block, "ffn", None), moments.of_ffn(layer), rank=target.ffn_options["rank"], layer=layer)


def fill(made: TransformerLM, model: TransformerLM, states: Mapping[str, dict[str, Tensor]]) -> None:
    """Fill the new model: by prefix what was fitted, and all else from the old one."""
    # A fit gives what it changes; what the new mixer has no more is left behind.
    gone = {f"{prefix}{name}" for prefix in states for name in _names(model, prefix) - _names(made, prefix)}
    new = {name: tensor for name, tensor in model.state_dict().items() if name not in gone}
    for prefix, state in states.items():
        new.update({prefix + name: tensor.to(torch.float32) for name, tensor in state.items()})
    made.load_state_dict(new)


def _names(model: TransformerLM, prefix: str) -> set[str]:
    return set(model.get_submodule(prefix.removesuffix(".")).state_dict())
