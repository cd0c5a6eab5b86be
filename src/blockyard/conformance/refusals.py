"""Checks that what cannot be done is refused, never ignored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from blockyard.conformance.subject import BATCH, LENGTH, REFUSALS, Subject, random, skip
from blockyard.conformance.suite import check_of
from blockyard.errors import InputError
from blockyard.protocol.cache import LayerCache


def refused(call: Callable[[], Any], what: str, errors: type[Exception] | tuple[type[Exception], ...]) -> None:
    """Assert that the call raises one of the errors, with a message."""
    try:
        call()
    except errors as error:
        assert str(error).strip(), f"{what} raises {type(error).__name__} without a word"
        return
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        raise AssertionError(f"{what} raises {type(error).__name__} instead of an InputError: {first}") from error
    raise AssertionError(f"{what} is accepted")


@check_of("attn")
def an_empty_batch_or_length_is_refused(subject: Subject) -> None:
    if not subject.declared:
        skip("a foreign class promises no error messages")
    mixer = subject.build(subject.modes[0])
    refused(lambda: mixer(subject.x(batch=0)), "an input of no rows", InputError)
    refused(lambda: mixer(subject.x(length=0)), "an input of no positions", InputError)


@check_of("attn")
def an_input_of_the_wrong_shape_is_refused(subject: Subject) -> None:
    mixer = subject.build(subject.modes[0])
    errors = InputError if subject.declared else Exception
    wrong = random(BATCH, LENGTH, subject.d_model + 1, dtype=subject.dtype)
    refused(lambda: mixer(wrong), f"an input of width {subject.d_model + 1} for d_model={subject.d_model}", errors)
    if subject.declared:
        refused(lambda: mixer(subject.x()[0]), "an input [T, d_model] without a batch", InputError)
        refused(lambda: mixer(subject.x()[None]), "an input of four axes", InputError)


@check_of("attn", "padding")
def a_padding_mask_of_the_wrong_shape_is_refused(subject: Subject) -> None:
    mixer = subject.build(subject.modes[0])
    for shape in ((BATCH, LENGTH + 1), (BATCH + 1, LENGTH)):
        mask = torch.ones(shape)
        mask[:, 0] = 0
        # mypy: mypy gives a lambda with a default no type.
        refused(lambda mask=mask: mixer(subject.x(), padding_mask=mask), f"a padding mask {shape}", REFUSALS)  # type: ignore[misc]


@check_of("attn", "attn_mask")
def an_attention_mask_of_the_wrong_shape_is_refused(subject: Subject) -> None:
    mixer = subject.build(subject.modes[-1])
    mask = torch.ones(LENGTH, LENGTH + 1, dtype=torch.bool)
    errors = InputError if subject.declared else Exception
    refused(lambda: mixer(subject.x(), attn_mask=mask), f"an attention mask {list(mask.shape)}", errors)


@check_of("attn")
def arguments_beyond_the_traits_are_refused_and_not_ignored(subject: Subject) -> None:
    traits, x = subject.traits, subject.x()
    keep = torch.ones(BATCH, LENGTH)
    keep[1, :2] = 0
    beyond: dict[str, tuple[bool, Any]] = {
        "padding_mask": (traits.padding, keep),
        "attn_mask": (traits.attn_mask, torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(-1)),
        "positions": (traits.positions, torch.arange(LENGTH) * 2),
        "context": (traits.cross, subject.x(seed=2)),
        "cache": (traits.cache != "none", LayerCache(BATCH, {"k": (1,)}, dtype=subject.real_dtype)),
        "return_weights": (traits.weights, True),
    }
    tried = [name for name, (honoured, _) in beyond.items() if not honoured and name in subject.arguments]
    if "causal" in subject.arguments and len(subject.modes) == 1:
        beyond["causal"] = (False, not subject.modes[0])
        tried.append("causal")
    if not tried:
        skip("it honours every argument that it names")
    mixer = subject.build(subject.modes[0])
    for name in tried:
        given = {name: beyond[name][1]}
        # mypy: mypy gives a lambda with a default no type.
        refused(lambda given=given: mixer(x, **given), f"{name}, which its traits do not claim,", REFUSALS)  # type: ignore[misc]
