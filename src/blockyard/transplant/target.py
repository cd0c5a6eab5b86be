"""What a transplant is asked to make: a mixer or FFN as a layer of a choice names it, and the method that fits it.

    mla[kv_rank=192,rope_dim=64]                     this package's own fit
    mla[kv_rank=192,rope_dim=64]@transmla[fold=2]    a published one (`published.py`), with its own options

The text of a choice says all of it, so that a report, a folder's record and the command line name it alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from blockyard.errors import InputError
from blockyard.registry.pattern import DEFAULT_FFN, LayerSpec, parse_choice, split_outside
from blockyard.transplant.published import METHODS, Method

# What may be asked of the new mixer; all else is decided by the weights that it is made of.
SHAPE = ("n_kv_heads", "head_dim", "v_dim")
STANDARD = (*SHAPE, "window", "sinks", "kernel", "dropout")
LATENT = ("kv_rank", "rope_dim", "decode", "cache", "kernel", "dropout")
# Those that weights are fitted for; the others say how attention is computed, and what it sees.
WIDTHS = (*SHAPE, "kv_rank", "rope_dim")


@dataclass(frozen=True)
class TransplantChoice:
    """A mixer or FFN to be put into a trained layer.

    Attributes:
        spec: the layer as it is written; of its two parts the one that is not `part` stays as it was.
        part: which of them is new, attn or ffn.
        method: a published method by its name; None = this package's own fit.
        settings: that method's own options, all of them.
    """

    spec: LayerSpec
    part: str
    method: str | None = None
    settings: Mapping[str, int] = field(default_factory=dict)

    @property
    def needs_moments(self) -> bool:
        """Whether the fit reads moments; one that changes a window alone, or goes by weights alone, does not."""
        if self.method is not None:
            return METHODS[self.method].needs_moments
        asked = self.spec.attn_options
        return self.part == "ffn" or self.spec.attn != "standard" or any(name in asked for name in SHAPE)

    def __str__(self) -> str:
        text = str(self.spec).split("+")[self.part == "ffn"]
        if self.method is None:
            return text
        usual = METHODS[self.method].settings
        own = [f"{name}={value}" for name, value in self.settings.items() if value != usual[name]]
        return f"{text}@{self.method}" + (f"[{','.join(own)}]" if own else "")


def parse_transplant_choice(text: str) -> TransplantChoice:
    """Read `MIXER[k=v,…]`, `vft[rank=…]` or `MIXER[k=v,…]@METHOD[k=v,…]`.

    Raises:
        InputError: for what is no mixer or FFN that can be fitted, an option that the trained weights decide, one that
            is missing, or a method that is unknown or fits another mixer.
    """
    written, *methods = split_outside(text, "@")
    if len(methods) > 1:
        raise InputError(f"{text!r} names {len(methods)} methods; a choice is fitted by one")
    specs = parse_choice(written)
    if len(specs) != 1 or len(split_outside(written, "+")) > 1:
        raise InputError(f"blocks={written!r} should be one mixer or FFN, and layers are chosen by number")
    spec = specs[0]
    # An FFN alone: the mixer is then what a choice that names none has.
    if spec.attn == "standard" and not spec.attn_options and (spec.ffn != DEFAULT_FFN or spec.ffn_options):
        if spec.ffn != "vft" or set(spec.ffn_options) != {"rank"}:
            raise InputError(f"{spec.ffn!r}: an FFN is fitted as a vein of a rank alone; write vft[rank=384]")
        if methods:
            raise InputError(f"{text!r}: the published methods fit attention; write vft[rank=384] alone")
        return TransplantChoice(spec, "ffn")
    _check_mixer(spec)
    if methods:
        name, settings = _method(methods[0])
        _check_asked(spec, METHODS[name])
        return TransplantChoice(spec, "attn", name, settings)
    if spec.attn == "mla" and None in (spec.attn_options.get("kv_rank"), spec.attn_options.get("rope_dim")):
        raise InputError("mla needs kv_rank and rope_dim here: write mla[kv_rank=192,rope_dim=64]")
    if spec.attn == "standard" and not spec.attn_options:
        raise InputError("standard without options changes nothing: name a window, or other heads")
    return TransplantChoice(spec, "attn")


def _check_mixer(spec: LayerSpec) -> None:
    # Whatever else an option says would contradict the trained weights, or be ignored.
    known = {"standard": STANDARD, "mla": LATENT}.get(spec.attn)
    if known is None:
        hint = "; standard[head_dim=…,v_dim=…] is the same attention" if spec.attn == "tva" else ""
        raise InputError(f"{spec.attn!r} cannot be fitted to trained attention: use standard or mla{hint}")
    odd = [name for name in spec.attn_options if name not in known]
    if odd:
        raise InputError(
            f"{odd[0]}={spec.attn_options[odd[0]]} is decided by the trained weights; {spec.attn} may have "
            f"{', '.join(known)}"
        )


def _method(text: str) -> tuple[str, dict[str, int]]:
    """Read a method's name and its options, those that are not written at their usual values."""
    name, bracket, rest = text.partition("[")
    name = name.strip()
    if name not in METHODS:
        raise InputError(f"{name!r} is no method: there are {', '.join(METHODS)}; without @ it is the yard's own fit")
    usual, settings = METHODS[name].settings, dict(METHODS[name].settings)
    for item in split_outside(rest.rstrip().removesuffix("]"), ",") if bracket else []:
        key, _, value = (word.strip() for word in item.partition("="))
        if key not in usual or not value.isdecimal():
            has = f"has {', '.join(f'{key}, a whole number' for key in usual)}" if usual else "has no options"
            raise InputError(f"{text!r}: {name} {has}, not {item!r}")
        settings[key] = int(value)
    return name, settings


def _check_asked(spec: LayerSpec, method: Method) -> None:
    """Refuse another mixer than the method's, and widths that it lacks or has no use for."""
    wanted = method.widths.get(spec.attn)
    if wanted is None:
        example = " or ".join(f"{mixer}[{','.join(f'{n}=…' for n in names)}]" for mixer, names in method.widths.items())
        raise InputError(f"@{method.name} fits {example}, not {spec.attn}")
    own = [name for name in spec.attn_options if name in WIDTHS]
    if missing := [name for name in wanted if spec.attn_options.get(name) is None]:
        raise InputError(
            f"@{method.name} needs {', '.join(missing)}: {spec.attn}[{','.join(f'{n}=…' for n in wanted)}]"
        )
    if odd := [name for name in own if name not in wanted]:
        raise InputError(f"@{method.name} does not change {', '.join(odd)}: it has {', '.join(wanted)}")
