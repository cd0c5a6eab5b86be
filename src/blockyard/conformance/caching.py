"""Checks of decoding: whatever path the tokens take through a cache, the outputs are those of a full forward."""

from __future__ import annotations

import torch

from blockyard.conformance.masks import PAD, padded
from blockyard.conformance.subject import BATCH, Subject, at_lengths, close, skip
from blockyard.conformance.suite import check_of
from blockyard.errors import InputError


@check_of("attn", "cache", "causal")
def cached_steps_equal_the_full_forward(subject: Subject) -> None:
    mixer, x = subject.build(True), subject.x(length=13)
    close(mixer.decode(x, [1] * 13), mixer(x), "13 cached steps of one token")


@check_of("attn", "cache", "causal")
def prefill_in_chunks_equals_the_full_forward(subject: Subject) -> None:
    mixer, x = subject.build(True), subject.x(length=13)
    expected = mixer(x)
    for sizes in ([13], [12, 1], [1, 12], [2] * 6 + [1], [3, 3, 3, 3, 1], [5, 5, 3], [4, 1, 1, 7]):
        close(mixer.decode(x, sizes), expected, f"chunks {sizes}")


@check_of("attn", "cache", "causal")
def a_cache_that_grows_keeps_what_it_holds(subject: Subject) -> str:
    mixer, x = subject.build(True), subject.x(length=139)
    close(mixer.decode(x, [61] + [1] * 7 + [71]), mixer(x), "61 tokens, 7 steps and a chunk of 71")
    pieces = {257: [127, 1, 1, 128], 1031: [255, 1, 1, 1, 255, 1, 510, 3, 1, 1, 1, 1]}

    def grows(length: int) -> None:
        long = subject.x(batch=1, length=length)
        with torch.no_grad():
            close(mixer.decode(long, pieces[length]), mixer(long), f"chunks {pieces[length]}")

    return at_lengths(grows, least=139)


@check_of("attn", "cache", "causal", "padding")
def cached_steps_of_padded_rows_equal_the_rows_alone(subject: Subject) -> None:
    mixer, x = subject.build(True), subject.x(length=9)
    wide, keep = padded(x, left=True)
    # Further columns that are padding in all rows: a cache that stores no padding still has to count it.
    wider = torch.cat([wide[:, :PAD].flip(0), wide], dim=1)
    kept = torch.cat([torch.zeros_like(keep[:, :PAD]), keep], dim=1)
    for sizes in ([6] + [1] * 6, [2] * 6, [12]):
        for data, mask, common in ((wide, keep, 0), (wider, kept, PAD)):
            pieces = [*sizes, 2, 1] if common else sizes
            out, what = mixer.decode(data, pieces, mask=mask)[:, common:], f"chunks {pieces}"
            close(out[1:, PAD:], mixer(x[1:]), f"the padded row, {what}")
            close(out[:1], mixer(wide[:1]), f"the row with the least padding, {what}")


@check_of("attn", "cache", "causal")
def a_static_cache_equals_a_growing_one_and_refuses_to_overflow(subject: Subject) -> None:
    mixer, x = subject.build(True), subject.x(length=8)
    cache = mixer.new_cache(max_len=7)
    close(mixer.decode(x[:, :7], [3, 1, 1, 1, 1], cache), mixer(x[:, :7]), "a cache with max_len=7")
    if subject.traits.cache == "recurrent":
        return  # Its state does not grow, so there is nothing to overflow.
    try:
        mixer.decode(x[:, 7:], [1], cache)
    except InputError:
        return
    raise AssertionError("an eighth token went into a cache with max_len=7 without an InputError")


@check_of("attn", "cache", "causal")
def a_cropped_cache_equals_recomputing(subject: Subject) -> None:
    mixer, x, other = subject.build(True), subject.x(length=9), subject.x(length=6, seed=2)
    for length in (0, 1, 5, 9):
        cache = mixer.new_cache()
        mixer.decode(x, [9], cache)
        try:
            cache.crop(length)
        except InputError as error:
            if subject.traits.cache == "recurrent":
                skip(f"a recurrent state crops only to what it still holds: {error}")
            raise AssertionError(f"crop({length}) of 9 tokens was refused: {error}") from error
        assert cache.length == length, f"length is {cache.length} after crop({length})"
        expected = mixer(torch.cat([x[:, :length], other], dim=1))[:, length:]
        close(mixer.decode(other, [2, 1, 3], cache), expected, f"after crop({length})")


@check_of("attn", "cache", "causal")
def rolling_back_equals_never_having_gone_on(subject: Subject) -> None:
    mixer, x, other = subject.build(True), subject.x(length=5), subject.x(length=4, seed=2)
    cache = mixer.new_cache()
    mixer.decode(x, [5], cache)
    expected = mixer(torch.cat([x, other], dim=1))[:, 5:]
    for wrong, what in ((subject.x(length=3, seed=3), "three tokens"), (torch.full_like(x, torch.nan), "NaN")):
        point = cache.snapshot()
        mixer.decode(wrong, [wrong.shape[1] - 1, 1], cache)
        cache.rollback(point)
        assert cache.length == 5, f"length is {cache.length} after rolling back to 5"
        again = cache.snapshot()
        close(mixer.decode(other, [1, 1, 2], cache), expected, f"after rolling back {what}")
        cache.rollback(again)


@check_of("attn", "cache", "causal")
def a_long_text_can_be_gone_back_over_by_a_few_tokens(subject: Subject) -> None:
    # Long enough that a cache which drops what nothing sees again has dropped some.
    mixer, x, other = subject.build(True), subject.x(length=150), subject.x(length=4, seed=2)
    cache = mixer.new_cache()
    mixer.decode(x, [97, 1, 52], cache)
    point = cache.snapshot()
    mixer.decode(subject.x(length=5, seed=3), [4, 1], cache)
    cache.rollback(point)
    assert cache.length == 150, f"length is {cache.length} after rolling back to 150"
    expected = mixer(torch.cat([x, other], dim=1))[:, 150:]
    close(mixer.decode(other, [1, 3], cache), expected, "after rolling back from 155 tokens to 150")


@check_of("attn", "cache", "causal")
def beams_are_reordered_selected_and_repeated_with_their_cache(subject: Subject) -> None:
    mixer, x, other = subject.build(True), subject.x(batch=3, length=5), subject.x(batch=3, length=4, seed=2)
    changes = {
        "reorder([2, 0, 0])": ([2, 0, 0], lambda c: c.reorder(torch.tensor([2, 0, 0]))),
        "select([1])": ([1], lambda c: c.select(torch.tensor([1]))),
        "select([2, 1])": ([2, 1], lambda c: c.select(torch.tensor([2, 1]))),
        "repeat(2)": ([0, 0, 1, 1, 2, 2], lambda c: c.repeat(2)),
    }
    for name, (rows, change) in changes.items():
        cache = mixer.new_cache(3)
        mixer.decode(x, [5], cache)
        change(cache)
        rest = other[torch.arange(len(rows)) % 3]
        expected = mixer(torch.cat([x[rows], rest], dim=1))[:, 5:]
        close(mixer.decode(rest, [1, 3], cache), expected, f"after {name}")


@check_of("attn", "cache", "causal")
def a_reset_cache_is_a_new_one(subject: Subject) -> None:
    mixer, x = subject.build(True), subject.x(length=5)
    cache = mixer.new_cache()
    mixer.decode(subject.x(length=8, seed=2), [8], cache)
    cache.reset()
    assert cache.length == 0, f"length is {cache.length} after reset()"
    close(mixer.decode(x, [2, 3], cache), mixer(x), "after reset()")


@check_of("attn", "cache", "causal")
def the_cache_counts_its_tokens_and_bytes(subject: Subject) -> None:
    mixer = subject.build(True)
    cache = mixer.new_cache()
    for tokens in (5, 6, 7):
        mixer.decode(subject.x(length=tokens - cache.length), [tokens - cache.length], cache)
        assert cache.length == tokens, f"length is {cache.length} after {tokens} tokens"
        if subject.traits.cache == "recurrent":
            continue
        expected = BATCH * tokens * cache.bytes_per_token
        assert cache.nbytes == expected, f"nbytes is {cache.nbytes}; batch · tokens · bytes_per_token is {expected}"
        held = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(cache))
        assert held in (0, expected), f"nbytes is {cache.nbytes}; its tensors hold {held} bytes"


@check_of("attn", "cache", "causal")
def a_cache_of_another_batch_or_dtype_is_refused(subject: Subject) -> None:
    mixer, x = subject.build(True), subject.x()
    for what, cache in (
        ("batch 3", mixer.new_cache(3)),
        ("float16", mixer.module.new_cache(BATCH, dtype=torch.float16)),
    ):
        try:
            out = mixer.decode(x, [x.shape[1]], cache)
        except InputError:
            continue
        # Converting is as good as refusing, as long as the caller's choice of dtype is the one that is stored.
        stored = all(t.dtype == torch.float16 for t in _tensors(cache))
        assert what == "float16" and stored, f"a cache for {what} was accepted for x {list(x.shape)} {x.dtype}"
        assert out.dtype == x.dtype, f"a float16 cache turned {x.dtype} into {out.dtype}"


def _tensors(cache: object) -> list[torch.Tensor]:
    """Return the stored tensors of a `LayerCache`; none of another kind of cache, whose insides are its own."""
    slots = getattr(cache, "slots", None)
    # mypy: slots are named by those caches alone that can be asked for one.
    return [cache[name] for name in slots] if slots else []  # type: ignore[index]
