"""Fixtures of all tests."""

from __future__ import annotations

from collections import namedtuple

import pytest

from blockyard.cli import main

Done = namedtuple("Done", "status out err")


@pytest.fixture
def run(capsys):
    """Runs a command in this process."""

    def call(*words):
        status = main(list(words))
        captured = capsys.readouterr()
        return Done(status, captured.out, captured.err)

    return call
