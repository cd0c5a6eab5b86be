"""The `blockyard` command: subcommands in `commands/`, their options read from the classes that take them.

    words and a settings file -> option groups, checked as in Python -> the same call that a program would make

Nothing here imports torch until a subcommand needs it, so that the overview stays instant. What a user can put right is
one line on standard error and status 2; a fault of the program keeps its traceback.

Files, in reading order:

    app.py         the edge: from words to an exit status
    command.py     what a subcommand is; finding.py, which one is meant
    parser.py      argparse with the errors of this command
    overview.py    what `blockyard` prints; help.py, what `--help` does; completing.py, what may follow on a line
    shape.py       a command's arguments as data, of which help is made; shape_cache.py keeps them, so that it is fast
    settings.py    flags and help of the option groups, and what was given by them
    sources.py     where settings come from: --config, --plugin, --trust
    tasks.py       train and compare of every task; tune_tasks.py, tune; task_words.py, what the overview says of them
    benches.py     what the benchmarks share; price_files.py, what commands on prices do
    browser.py     whether a page may be opened, and doing so
    console.py     streams of any encoding; table.py and prompts.py, what is printed and read
    commands/      one file for each subcommand, with its name

In a program use the calls behind it: `blockyard.tasks.train`, `blockyard.compare.compare`, `blockyard.tune.tune`,
`blockyard.generation.generate_text`.

What it promises about errors: docs/errors.md; its commands: README.md; help, completion,
settings in an editor: docs/command-line.md.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status.

    Args:
        argv: the words after the program's name; None = those of this process.

    Returns:
        0 when all went well, 1 when a check failed, 2 for bad input (one line `error: ...` on stderr),
        130 after Ctrl-C. A fault of the program itself propagates with its traceback (status 1).
    """
    from blockyard.cli.app import run_words

    return run_words(argv)
