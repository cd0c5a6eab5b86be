"""A choice read: which forms go into which layers, and which widths are left open.

    mla[kv_rank=auto,rope_dim=64]@0-9 & standard[window=256,sinks=4]@auto

Parts are joined by `&`; `@` names the layers of one: numbers and ranges, all, or auto. With every layer named a choice
says exactly what is put where, and is so written in records: what was measured can be asked for again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from blockyard.errors import InputError
from blockyard.models.lm import TransformerLM
from blockyard.registry.pattern import LayerSpec, check_layer, parse_choice, split_outside
from blockyard.registry.register import names
from blockyard.standard.attention import StandardAttention
from blockyard.transplant.published import METHODS
from blockyard.transplant.target import parse_transplant_choice

OPEN = re.compile(r"(?<=[\[,])([a-z_]+)=auto(?=[\],])")
# Widths that may be left open, by mixer; all of a mixer's that takes none without them.
WIDTHS = {"mla": ("kv_rank", "rope_dim"), "standard": ("head_dim", "v_dim")}
# Shares of the numbers per token that the old cache holds, from what is nearly free to what is dear:
# (latent and rotary key together, rotary key in heads) for MLA; (keys, values) for other heads. Measured on
# SmolLM2-135M: docs/transplant.md.
LATENTS = ((5 / 6, 1.5), (3 / 4, 1.25), (2 / 3, 1.0), (7 / 12, 1.0), (1 / 2, 1.0), (5 / 12, 1.0))
HEADS = ((3 / 4, 1.0), (3 / 4, 7 / 8), (5 / 8, 3 / 4), (1 / 2, 5 / 8), (1 / 2, 1 / 2))

# Mixers with weights that follow from those of attention; tva is standard attention by another name.
FITTED = ("standard", "mla", "tva")

Layers = tuple[int, ...] | Literal["auto"]


@dataclass(frozen=True)
class Part:
    """One form in some layers.

    Attributes:
        form: as written, without layers.
        layers: which; auto is for the search to say.
    """

    form: str
    layers: Layers

    @property
    def open(self) -> bool:
        """Whether it leaves a width to the search."""
        return self.form == "mla" or OPEN.search(self.form) is not None

    @property
    def trained(self) -> bool:
        """Whether its mixer shares nothing with attention, so that it is trained and not fitted (`fit_by_output`)."""
        mixer = re.match(r"[\w.-]*", self.form)
        return mixer is not None and mixer[0] in names("attn") and mixer[0] not in FITTED

    @property
    def settled(self) -> bool:
        """Whether nothing is left to the search."""
        return not self.open and self.layers != "auto"

    def __str__(self) -> str:
        return f"{self.form}@{self.layers if self.layers == 'auto' else numbers(self.layers)}"


def read_choice(name: str, layers: str, depth: int) -> tuple[Part, ...]:
    """Read a choice.

    Args:
        name: as written, without spaces.
        layers: of parts that name none, as `--layers` has them.
        depth: layers of the model.

    Raises:
        InputError: for what is no choice, layers that are not there or stand in two parts, or two parts that the search
            would have to settle.
    """
    parts = []
    for text in split_outside(name, "&"):
        form, *own = split_outside(text, "@")
        if len(own) > 1 or not form or (own and not own[0]):
            raise InputError(f"blocks={text!r} should be a mixer or FFN, and its layers behind @ if they are its own")
        parts.append(Part(form, read_layers(own[0] if own else layers, depth)))
        check_part(parts[-1])
    if sum(not part.settled for part in parts) > 1:
        raise InputError(f"blocks={name!r}: one part may be left to the budget; name layers and widths of the others")
    taken: set[int] = set()
    for part in parts:
        if part.layers == "auto":
            continue
        twice = sorted(taken & set(part.layers))
        if twice:
            raise InputError(f"blocks={name!r} puts two forms into layer {twice[0]}; name the layers of each behind @")
        taken |= set(part.layers)
    return tuple(parts)


def check_part(part: Part) -> None:
    """Refuse a form that `transplant` would, with any number in the place of an open width, or a width that cannot be
    left open."""
    if part.trained:
        if part.layers == "auto":
            raise InputError(
                f"{part.form!r} is trained on its layers' outputs, which the search cannot do for every layer that it "
                "tries: name them, as in --layers 4,14"
            )
        for spec in parse_choice(part.form):
            check_layer(spec)
        return
    mixer = part.form.partition("[")[0]
    for name in OPEN.findall(part.form):
        if name not in WIDTHS.get(mixer, ()):
            known = " and ".join(f"{n} of {m}" for m, names in WIDTHS.items() for n in names)
            raise InputError(f"{part.form!r}: {name}=auto is none of the widths that the search chooses: {known}")
    if part.open and "method=" in part.form:
        raise InputError(f"{part.form!r}: a published method is fitted to widths that are named, not auto")
    parse_transplant_choice(narrowest(part.form))


def narrowest(form: str) -> str:
    """Return a form with the least width wherever one is open: what is refused of that is refused of all."""
    if form == "mla":
        form = "mla[kv_rank=auto,rope_dim=auto]"
    return OPEN.sub(lambda match: f"{match[1]}={2 if match[1] in ('rope_dim', 'head_dim') else 1}", form)


def read_layers(text: str, depth: int) -> Layers:
    """Read layers: auto, all, or numbers and ranges such as 3,5,10-19.

    Raises:
        InputError: for anything else, or numbers that are not there.
    """
    if text == "auto":
        return "auto"
    if text == "all":
        return tuple(range(depth))
    found: set[int] = set()
    for word in text.split(","):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", word.strip())
        if not match:
            raise InputError(f"layers={text!r} should be all, auto, or numbers and ranges such as 3,5,10-19")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < depth:
            raise InputError(f"layers={text!r}: the model has layers 0 to {depth - 1}, and no {word.strip()}")
        found |= set(range(first, last + 1))
    return tuple(sorted(found))


def numbers(layers: Iterable[int]) -> str:
    """Write layers as `read_layers` reads them: 0-3,7."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and runs[-1][1] == layer - 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def written(parts: Sequence[tuple[str, Iterable[int]]]) -> str:
    """Write forms with their layers as a choice, parts without layers left out."""
    return "&".join(f"{form}@{numbers(layers)}" for form, layers in parts if tuple(layers))


def forms_of(part: Part, model: TransformerLM, layer: int) -> list[str]:
    """Return the forms that an open part may come to, from the largest cache to the smallest; the one that it is where
    nothing is open.

    Args:
        part: it.
        model: what it is put into.
        layer: one of its layers, whose heads say what the shares are of.

    Raises:
        InputError: when that layer has other attention than the standard one.
    """
    if not part.open:
        return [part.form]
    attention = getattr(model.layers[layer], "attn", None)
    if not isinstance(attention, StandardAttention):
        raise InputError(f"layer {layer} has {type(attention).__name__}; what is fitted starts from standard attention")
    mixer, _, rest = part.form.partition("[")
    if mixer == "mla":
        asked = dict(item.split("=") for item in split_outside(rest.removesuffix("]"), ",") if item)
        return _latents(attention, {"kv_rank": "auto", "rope_dim": "auto", **asked})
    return _heads(attention, part.form)


def _latents(attention: StandardAttention, asked: dict[str, str]) -> list[str]:
    whole, head = attention.n_kv_heads * (attention.head_dim + attention.v_dim), attention.head_dim
    found = []
    for share, rotary in LATENTS:
        rope = _even(rotary * head) if asked["rope_dim"] == "auto" else int(asked["rope_dim"])
        rank = round(share * whole) - rope if asked["kv_rank"] == "auto" else int(asked["kv_rank"])
        if rank >= 1 and rope <= attention.n_kv_heads * head:
            # Where every query head has a key of its own, heads hold more than the model's width, and a latent cannot.
            if asked["kv_rank"] == "auto":
                rank = min(rank, attention.d_model)
            widths = asked | {"kv_rank": str(rank), "rope_dim": str(rope)}
            found.append(f"mla[{','.join(f'{name}={value}' for name, value in widths.items())}]")
    if not found:
        raise InputError(f"mla leaves no width open here: a cache of {whole} numbers per token is that small already")
    return list(dict.fromkeys(found))


def _heads(attention: StandardAttention, form: str) -> list[str]:
    match = re.search(r"n_kv_heads=(\d+)", form)
    heads = int(match[1]) if match else attention.n_kv_heads
    # Of one new key head: what the old ones that it replaces hold together.
    size = max(1, attention.n_kv_heads // max(1, heads))
    found = []
    for keys, values in HEADS:
        widths = {"head_dim": _even(keys * size * attention.head_dim), "v_dim": round(values * size * attention.v_dim)}
        settled = form
        for name, width in widths.items():
            settled = settled.replace(f"{name}=auto", f"{name}={width}")
        found.append(settled)
    return list(dict.fromkeys(found))


def _even(width: float) -> int:
    return max(2, 2 * round(width / 2))


def shape_of(form: str, model: TransformerLM, layer: int) -> LayerSpec:
    """Return a layer as a settled form makes it, but for what only its fit says: frequencies."""
    target, old = parse_transplant_choice(form), model.config.layers[layer]
    attention, asked = model.layers[layer].attn, dict(target.spec.attn_options)
    if target.part == "ffn":
        return old
    if target.spec.attn == "mla" and target.changes_weights:
        own = {"nope_dim": attention.head_dim, "v_dim": attention.v_dim, "latent_norm": False}
        own |= {name: old.attn_options[name] for name in ("window", "sinks") if name in old.attn_options}
        own |= {} if target.method is None else METHODS[target.method].makes
        return LayerSpec("mla", old.ffn, {**own, **asked}, old.ffn_options)
    if not target.changes_weights:
        return LayerSpec(old.attn, old.ffn, {**old.attn_options, **asked}, old.ffn_options)
    # Values are as wide as keys where nobody says more, and those of the old attention may be wider.
    own = {"n_kv_heads": attention.n_kv_heads, "head_dim": attention.head_dim, "v_dim": attention.v_dim}
    return LayerSpec("standard", old.ffn, {**old.attn_options, **own, **asked}, old.ffn_options)
