"""The prompts of `generate`: words of the command line, standard input, or lines of files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from blockyard.errors import InputError
from blockyard.files import parse_json


def read_prompts(given: Sequence[str], files: Sequence[str]) -> list[str]:
    """Return the prompts of the command line and of files, in that order; a line break when there is none."""
    if given.count("-") + files.count("-") > 1:
        raise InputError("- is given twice, by --prompt or --prompt_file; standard input can be read once")
    prompts = [read_standard_input("--prompt -") if prompt == "-" else prompt for prompt in given]
    for name in files:
        prompts += read_prompt_lines() if name == "-" else read_prompt_file(Path(name))
    return prompts or ["\n"]


def read_prompt_lines() -> list[str]:
    """Return one prompt from each line of standard input that is not empty.

    Raises:
        InputError: when there is none, or it is not text.
    """
    lines = [line for line in read_standard_input("--prompt_file -").splitlines() if line.strip()]
    if not lines:
        raise InputError("--prompt_file -: standard input holds no prompt")
    return lines


def read_prompt_file(path: Path) -> list[str]:
    """Return one prompt from each line that is not empty: the line itself, or in a .jsonl file its text or "prompt".

    Raises:
        InputError: when it cannot be read, holds no prompt, or a line is no prompt.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"--prompt_file: {path} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise InputError(f"--prompt_file: cannot read {path}: {error.strerror}") from None
    if not lines:
        raise InputError(f"--prompt_file: {path} holds no prompt")
    if path.suffix != ".jsonl":
        return lines
    return [json_prompt(path, number, line) for number, line in enumerate(lines, 1)]


def json_prompt(path: Path, number: int, line: str) -> str:
    """Return the prompt of a line of JSON: a string, or an object's "prompt"."""
    try:
        value = parse_json(line)
    except ValueError:
        value = None
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(prompt, str):
        raise InputError(f'--prompt_file: prompt {number} of {path} should be a JSON string or {{"prompt": "..."}}')
    return prompt


def read_standard_input(what: str) -> str:
    """Return the whole standard input as text; `what` names the option in the error."""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{what}: standard input is not UTF-8 text (byte {error.start})") from None
