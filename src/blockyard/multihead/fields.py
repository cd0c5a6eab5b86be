"""A foreign model's configuration, of which every field is read, known to say nothing of the function, or refused by
its name: a field that nobody understood could make another function of the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blockyard.errors import InputError
from blockyard.nn.rotary_scaling import scaling_text

# What a configuration holds beside the function: names, ids of tokens, what is returned, how it was made and trained.
NEUTRAL = frozenset(
    [
        *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "_name_or_path"),
        *("_model_name_or_path", "_commit_hash", "name_or_path", "auto_map", "tokenizer_class", "task_specific_params"),
        *("use_cache", "return_dict", "output_hidden_states", "output_attentions", "output_router_logits"),
        *("id2label", "label2id", "problem_type", "chunk_size_feed_forward", "keys_to_ignore_at_inference"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "decoder_start_token_id"),
        *("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_experts_implementation"),
        *("initializer_range", "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"),
        *("classifier_dropout", "router_aux_loss_coef", "router_jitter_noise", "aux_loss_alpha", "seq_aux"),
        # How text is drawn, which is generation's business, and notes of those who trained or converted it.
        *("do_sample", "max_length", "min_length", "max_new_tokens", "temperature", "top_p", "top_k", "num_beams"),
        *("repetition_penalty", "no_repeat_ngram_size", "max_sequence_length", "is_llama_config"),
        *("_attn_implementation_autoset", "unsloth_version", "unsloth_fixed"),
        # How the work was shared out, and heads that predict tokens further on, whose weights are refused by name.
        *("pretraining_tp", "ep_size", "num_nextn_predict_layers", "num_mtp_layers", "transformers.js_config"),
    ]
)


class Fields:
    """A configuration that is read field by field.

    Args:
        config: what config.json holds.
        where: it, as errors name it.
    """

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config, self.where = config, where
        # What nobody has asked for yet.
        self.left = {name for name in config if name not in NEUTRAL}

    def take(self, name: str, default: Any = None) -> Any:
        """Return the value of a field, whatever it is; None counts as not there."""
        self.left.discard(name)
        value = self.config.get(name)
        return default if value is None else value

    def has(self, name: str) -> bool:
        return self.config.get(name) is not None

    def whole(self, name: str, default: int | None = None, least: int = 1, most: int = 2**31 - 1) -> int:
        """Return a whole number of at least `least` and at most `most`.

        Raises:
            InputError: when it is another thing, or missing without a default.
        """
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(name, value, f"a whole number from {least} to {most}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a number above 0."""
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.wrong(name, value, "a number above 0")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value

    def word(self, name: str, known: Mapping[str, Any], default: str | None = None) -> Any:
        """Return what a word among known ones means here."""
        value = self.take(name, default)
        if not isinstance(value, str) or value not in known:
            raise self.wrong(name, value, f"one of {', '.join(known)}, which have a counterpart here")
        return known[value]

    def only(self, name: str, *values: Any) -> None:
        """Refuse a field that is there with another value than these: it has no counterpart here."""
        if self.take(name, values[0]) not in values:
            raise self.wrong(name, self.config[name], f"{' or '.join(map(str, values))}: there is no counterpart here")

    def wrong(self, name: str, value: Any, expected: str) -> InputError:
        said = "is missing" if value is None else f"is {value!r}"
        return InputError(f"{self.where}: {name} {said}; it should be {expected}")

    def finish(self) -> None:
        """Refuse what nobody asked for.

        Raises:
            InputError: naming the fields.
        """
        # Off is off, whatever it is called.
        rest = sorted(name for name in self.left if self.config[name] is not None and self.config[name] is not False)
        if rest:
            told = ", ".join(f"{name}={short(repr(self.config[name]))}" for name in rest[:4])
            verb = "is" if len(rest) == 1 else "are"
            raise InputError(f"{self.where}: {told} {verb} not understood here, and could make another function")


def short(text: str, most: int = 40) -> str:
    """Return a text of at most so many characters, cut where it is longer."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


@dataclass(frozen=True)
class Rotary:
    """Rotary positions as a configuration says them.

    Args:
        theta: base of the wavelengths.
        scaling: as `rope_scaling` of a model, or None.
        share: part of each head that is rotated.
        temper: a factor on scores that goes with the scaling (DeepSeek's yarn).
    """

    theta: float
    scaling: str | None
    share: float = 1.0
    temper: float = 1.0


def rotary(
    fields: Fields, context: int, *, theta: float = 10_000.0, share: float = 1.0, latent: bool = False
) -> Rotary:
    """Read rotary positions: `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before).

    Args:
        fields: the configuration.
        context: positions that the model is made for.
        theta: where the configuration names none.
        share: likewise.
        latent: whether yarn's `mscale_all_dim` goes to the scores, too, as DeepSeek's attention has it.

    Raises:
        InputError: for a kind of scaling, or a parameter of it, that is not known here.
    """
    # Version 5 gathers what stood apart before; either may be there, and both are asked for so that neither is left.
    given = [fields.take("rope_parameters"), fields.take("rope_scaling")]
    parameters: Any = next((each for each in given if each is not None), {})
    if not isinstance(parameters, Mapping):
        raise fields.wrong("rope_parameters", parameters, "an object with rope_type and rope_theta")
    if any(isinstance(value, Mapping) for value in parameters.values()):
        raise fields.wrong(
            "rope_parameters", parameters, "one set for all layers: sets by kind of layer are not known here"
        )
    sub = Fields({**_older(fields), **parameters}, f"{fields.where}: rope_parameters")
    base, part = sub.number("rope_theta", theta), sub.number("partial_rotary_factor", share)
    kind = sub.take("rope_type", sub.take("type", "default"))
    sub.left -= {"type", "rope_type"}
    # Phi-3 keeps it outside, and that one wins there, too.
    original = fields.take("original_max_position_embeddings", sub.take("original_max_position_embeddings", context))
    sub.left.discard("original_max_position_embeddings")
    if isinstance(original, bool) or not isinstance(original, int) or original < 1:
        raise fields.wrong("original_max_position_embeddings", original, "a whole number of at least 1")
    scaling, temper = _scaling(sub, str(kind), original, context, latent)
    sub.finish()
    return Rotary(base, scaling, part, temper)


def _older(fields: Fields) -> dict[str, Any]:
    """Return fields of older configurations under the names that they have now."""
    names = {
        "rope_theta": ("rope_theta", "rotary_emb_base"),
        "partial_rotary_factor": ("partial_rotary_factor", "rotary_pct"),
    }
    found = {}
    for name, olds in names.items():
        for old in olds:
            value = fields.take(old)
            if value is not None:
                found[name] = value
    return found


def _scaling(sub: Fields, kind: str, original: int, context: int, latent: bool) -> tuple[str | None, float]:
    """Return the scaling as text, and the factor on scores that goes with it."""
    if kind == "default":
        return None, 1.0
    if kind == "linear":
        return scaling_text("linear", factor=sub.number("factor")), 1.0
    if kind == "dynamic":
        # Its original length is the model's own: theirs has no other.
        return scaling_text("dynamic", factor=sub.number("factor"), original=context), 1.0
    if kind == "llama3":
        low, high = sub.number("low_freq_factor"), sub.number("high_freq_factor")
        return scaling_text("llama3", factor=sub.number("factor"), original=original, low=low, high=high), 1.0
    if kind in ("longrope", "su"):
        return _longrope(sub, original, context), 1.0
    if kind == "yarn":
        return _yarn(sub, original, latent)
    known = "default, linear, dynamic, yarn, llama3 or longrope"
    raise InputError(f"{sub.where}: rope_type is {kind!r}; it should be {known}: there is no counterpart here")


def _longrope(sub: Fields, original: int, context: int) -> str:
    factors = {name: sub.take(f"{name}_factor") for name in ("short", "long")}
    for name, value in factors.items():
        numbers = isinstance(value, Sequence) and all(isinstance(each, int | float) for each in value)
        if not numbers or isinstance(value, str):
            raise sub.wrong(f"{name}_factor", value, "a list of numbers")
    # Longer texts spread attention thinner: cos and sin, and so scores, grow with the stretch (arXiv 2402.13753).
    stretch = sub.number("factor", context / original)
    usual = 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))
    magnitude = sub.number("attention_factor", usual)
    return scaling_text(
        "longrope", original=original, magnitude=magnitude, **{n: [float(v) for v in f] for n, f in factors.items()}
    )


def _yarn(sub: Fields, original: int, latent: bool) -> tuple[str, float]:
    factor, mscale, overall = sub.number("factor"), sub.take("mscale"), sub.take("mscale_all_dim")

    def size(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    for name, value in (("mscale", mscale), ("mscale_all_dim", overall)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise sub.wrong(name, value, "a number")
    # Both weights cancel where they are equal, as in DeepSeek-V3: then only the scores are tempered.
    usual = size(mscale) / size(overall) if mscale and overall else size(1.0)
    text = scaling_text(
        "yarn",
        factor=factor,
        original=original,
        beta_fast=sub.number("beta_fast", 32.0),
        beta_slow=sub.number("beta_slow", 1.0),
        magnitude=sub.number("attention_factor", usual),
        truncate=sub.flag("truncate", True),
    )
    return text, size(overall) ** 2 if latent and overall else 1.0
