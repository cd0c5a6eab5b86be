"""What a transplant is asked to make: a mixer or FFN as a layer of a choice names it, and the method that fits it.

    mla[kv_rank=192,rope_dim=64]                           this package's own fit
    mla[kv_rank=192,rope_dim=64,method=transmla,fold=2]    a published one (`published.py`), with its own options

The text of a choice says all of it, so that a report, a folder's record and the command line name it alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from blockyard.errors import InputError
from blockyard.registry.pattern import DEFAULT_FFN, LayerSpec, parse_choice, split_outside
from blockyard.transplant.published import METHODS, Method

# What may be asked of the new mixer; all else is decided by the weights that it is made of.
SHAPE = ("n_kv_heads", "head_dim", "v_dim")
STANDARD = (*SHAPE, "window", "sinks", "kernel", "dropout")
LATENT = ("kv_rank", "rope_dim", "window", "sinks", "decode", "cache", "kernel", "dropout")
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
        return self.part == "ffn" or self.changes_weights

    @property
    def changes_weights(self) -> bool:
        """Whether the mixer is fitted; without widths a window alone changes, which hides keys and moves none."""
        return any(name in self.spec.attn_options for name in WIDTHS)

    def __str__(self) -> str:
        spec = self.spec
        if self.method is not None:
            usual = METHODS[self.method].settings
            own = {name: value for name, value in self.settings.items() if value != usual[name]}
            spec = replace(spec, attn_options={**spec.attn_options, "method": self.method, **own})
        return str(spec).split("+")[self.part == "ffn"]


def parse_transplant_choice(text: str) -> TransplantChoice:
    """Read `MIXER[k=v,…]` or `vft[rank=…]`; `method=NAME` and that method's options may stand in a mixer's brackets.

    Raises:
        InputError: for what is no mixer or FFN that can be fitted, an option that the trained weights decide, one that
            is missing, or a method that is unknown or fits another mixer.
    """
    written, method, settings = _without_method(text)
    specs = parse_choice(written)
    if len(specs) != 1 or len(split_outside(written, "+")) > 1:
        raise InputError(f"blocks={text!r} should be one mixer or FFN, and layers are chosen by number")
    spec = specs[0]
    # An FFN alone: the mixer is then what a choice that names none has.
    if spec.attn == "standard" and not spec.attn_options and (spec.ffn != DEFAULT_FFN or spec.ffn_options):
        if spec.ffn != "vft" or set(spec.ffn_options) != {"rank"}:
            raise InputError(f"{spec.ffn!r}: an FFN is fitted as a vein of a rank alone; write vft[rank=384]")
        if method is not None:
            raise InputError(f"{text!r}: the published methods fit attention; write {written}")
        return TransplantChoice(spec, "ffn")
    _check_mixer(spec)
    if method is not None:
        _check_asked(spec, METHODS[method])
        return TransplantChoice(spec, "attn", method, settings)
    choice = TransplantChoice(spec, "attn")
    if spec.attn == "mla" and (choice.changes_weights or "window" not in spec.attn_options):
        check_widths(spec)
    if spec.attn == "standard" and not spec.attn_options:
        raise InputError("standard without options changes nothing: name a window, or other heads")
    return choice


def check_widths(spec: LayerSpec) -> None:
    """Refuse latent attention that is to be fitted and lacks a width."""
    if None in (spec.attn_options.get("kv_rank"), spec.attn_options.get("rope_dim")):
        raise InputError("mla needs kv_rank and rope_dim here: write mla[kv_rank=192,rope_dim=64]")


def _without_method(text: str) -> tuple[str, str | None, dict[str, int]]:
    """Return a choice without its method and that method's options; those that are not written at their usual values.

    Raises:
        InputError: for an unknown method, two of them, or an option of one that is no whole number.
    """
    name, bracket, rest = text.strip().partition("[")
    if not bracket or not rest.endswith("]"):
        return text, None, {}
    items = split_outside(rest.removesuffix("]"), ",")
    pairs = [tuple(word.strip() for word in item.partition("=")[::2]) for item in items]
    methods = [value for key, value in pairs if key == "method"]
    if not methods:
        return text, None, {}
    for key in [key for key, _ in pairs]:
        # The last one would win without a word.
        if sum(key == other for other, _ in pairs) > 1:
            raise InputError(f"{text!r}: {key} stands twice")
    if methods[0] not in METHODS:
        raise InputError(
            f"method={methods[0]}: there are {', '.join(METHODS)}; without one a choice is fitted by this package's own"
        )
    settings = dict(METHODS[methods[0]].settings)
    for key, value in pairs:
        if key in settings:
            if not value.isdecimal():
                raise InputError(f"{key}={value} of method={methods[0]} should be a whole number")
            settings[key] = int(value)
    left = [item for item, (key, _) in zip(items, pairs) if key != "method" and key not in settings]
    return f"{name}[{','.join(left)}]" if left else name, methods[0], settings


def _check_mixer(spec: LayerSpec) -> None:
    # Whatever else an option says would contradict the trained weights, or be ignored.
    known = {"standard": STANDARD, "mla": LATENT}.get(spec.attn)
    if known is None:
        hint = "; standard[head_dim=…,v_dim=…] is the same attention" if spec.attn == "tva" else ""
        raise InputError(
            f"{spec.attn!r} cannot be fitted to trained attention: use standard or mla, or train it with "
            f"fit_by_output (research){hint}"
        )
    odd = [name for name in spec.attn_options if name not in known]
    if odd:
        raise InputError(
            f"{odd[0]}={spec.attn_options[odd[0]]} is decided by the trained weights; {spec.attn} may have "
            f"{', '.join(known)}"
        )


def _check_asked(spec: LayerSpec, method: Method) -> None:
    """Refuse another mixer than the method's, and widths that it lacks or has no use for."""
    wanted = method.widths.get(spec.attn)
    if wanted is None:
        forms = " or ".join(f"{mixer}[{','.join(f'{n}=…' for n in names)}]" for mixer, names in method.widths.items())
        raise InputError(f"method={method.name} fits {forms}, not {spec.attn}")
    if missing := [name for name in wanted if spec.attn_options.get(name) is None]:
        raise InputError(f"method={method.name} needs {', '.join(f'{name}=…' for name in missing)} in {spec.attn}")
    if odd := [name for name in spec.attn_options if name in WIDTHS and name not in wanted]:
        raise InputError(f"method={method.name} does not change {', '.join(odd)}: it has {', '.join(wanted)}")
