"""Runs the blocks of a page: in page order, in one folder, the Python of a page in one namespace."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

from blockyard.cli import main
from blockyard.registry import register
from blockyard.tasks import kind
from blockyard.training import loggers
from tests.docs.blocks import Block
from tests.docs.form import with_words
from tests.docs.shell import Line, commands_in, lines_of
from tests.docs.theirs import make_theirs
from tests.fixtures.folders import ROOT

# One command of a page under the marker `slow`; commands of ours may take as long as they do.
LONGEST = 900


# The programs of an environment in which the package is installed.
SHELL = "\n".join(
    f'{name}() {{ {sys.executable} {words} "$@"; }}'
    for name, words in {"blockyard": "-m blockyard", "python": "", "torchrun": "-m torch.distributed.run"}.items()
)


class Failed(Exception):
    """A block that did not do what its page shows."""


def run_blocks(blocks: Sequence[Block], folder: Path, *, slow: bool) -> int:
    """Run the blocks of a page, and return how many there were.

    Args:
        blocks: those of one page, in order.
        folder: an empty one, which becomes the current one while they run.
        slow: also those that are marked so.

    Raises:
        Failed: the first block that fails, with page, block and line.
    """
    make_theirs(folder, "".join(block.text for block in blocks))
    count = 0
    with _alone(folder) as namespace:
        for block in blocks:
            if block.reason is not None or (block.slow and not slow):
                continue
            count += 1
            if block.file is not None:
                Path(block.file).write_text(block.text, encoding="utf-8")
            elif block.language == "python":
                _run_python(block, namespace)
            else:
                for line in lines_of(block):
                    if not line.is_set_up:
                        _run_line(block, line)
    return count


def _run_python(block: Block, namespace: dict) -> None:
    try:
        exec(compile(block.code, str(block.page), "exec"), namespace)
    except BaseException as error:
        # Of the traceback, what happened in the page and below it.
        told = traceback.format_exception(type(error), error, error.__traceback__ and error.__traceback__.tb_next)
        raise Failed(f"{block.place} fails:\n{''.join(told)}") from None


def _run_line(block: Block, line: Line) -> None:
    where = f"{block.place}, line {line.number}"
    if line.is_ours:
        words = with_words(line.words[1:], block.words)
        print(f"$ blockyard {' '.join(words)}")
        try:
            status = main(words)
        except BaseException as error:
            raise Failed(f"{where} fails:\n{''.join(traceback.format_exception(error))}") from None
        if status != 0:
            raise Failed(f"{where} ends with status {status}: blockyard {' '.join(words)}")
        return
    text = line.text
    if line.is_simple and (ours := commands_in(line)):
        # `torchrun … -m blockyard …`: what is added stands at its end.
        text = shlex.join([*line.words[: -len(ours[0])], *with_words(ours[0], block.words)])
    print(f"$ {text}")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{SHELL}\n{text}"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])},
        timeout=LONGEST,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise Failed(f"{where} ends with status {done.returncode}: {text}\n{done.stdout}{done.stderr}")


@contextmanager
def _alone(folder: Path) -> Iterator[dict]:
    """Stand in the folder, and afterwards forget what blocks registered, imported and set."""
    before = {
        id(register._register.entries): (register._register.entries, dict(register._register.entries)),
        id(kind._registered): (kind._registered, dict(kind._registered)),
        id(loggers._registered): (loggers._registered, dict(loggers._registered)),
    }
    path, here, threads, random = list(sys.path), Path.cwd(), torch.get_num_threads(), torch.get_rng_state()
    page = ModuleType("page")
    sys.modules["page"] = page
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    try:
        yield vars(page)
    finally:
        os.chdir(here)
        sys.path[:] = path
        torch.set_num_threads(threads)
        torch.set_rng_state(random)
        for table, known in before.values():
            for key in table.keys() - known.keys():
                # What is built in and was loaded meanwhile would not come back.
                held = getattr(table[key], "cls", table[key])
                if not getattr(held, "__module__", type(held).__module__).startswith("blockyard."):
                    del table[key]
        for name, module in list(sys.modules.items()):
            if name == "page" or Path(getattr(module, "__file__", None) or "/").is_relative_to(folder):
                del sys.modules[name]
