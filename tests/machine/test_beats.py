"""What is done every so many seconds: as long as the block lasts, and no longer than it wants."""

from __future__ import annotations

import threading

import pytest

from blockyard.machine.beats import every


def test_it_is_called_with_its_count_until_the_block_ends():
    counts, enough = [], threading.Event()

    def act(count):
        counts.append(count)
        if count == 3:
            enough.set()

    with every(0.001, act):
        assert enough.wait(30)
    assert counts == list(range(1, len(counts) + 1))
    done = len(counts)
    assert not threading.Event().wait(0.01) and len(counts) == done


def test_one_that_is_done_is_not_called_again():
    done = threading.Event()

    def act(count):
        assert not done.is_set()
        done.set()
        return True

    with every(0.001, act):
        assert done.wait(30)
        threading.Event().wait(0.01)


@pytest.mark.parametrize("at_once", [False, True])
def test_at_once_it_does_not_wait_for_the_first_time(at_once):
    called = threading.Event()
    with every(60, lambda count: called.set(), at_once=at_once):
        assert called.wait(30 if at_once else 0.05) is at_once


def test_it_ends_with_the_block_that_fails():
    before = threading.active_count()
    with pytest.raises(ValueError, match="the work"), every(60, lambda count: None):
        raise ValueError("the work")
    assert threading.active_count() == before
