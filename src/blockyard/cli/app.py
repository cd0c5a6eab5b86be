"""From words to exit status: finds the command, loads plug-ins, parses, runs, and turns errors into one line."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence

from blockyard import __version__
from blockyard.cli.console import fill_descriptors, one_line, say, tolerant_streams
from blockyard.cli.finding import TASK_VERBS, command_names, find_command, load_command
from blockyard.cli.help import asks_help, help_text
from blockyard.errors import InputError, is_out_of_memory, missing_extra
from blockyard.machine.memory import forcing
from blockyard.registry.options import MOST_THREADS
from blockyard.registry.plugins import load_plugins, plugins_in

HELP_WORDS = ("-h", "--help", "help")
# How long a waiting OpenMP thread spins before it sleeps, in loop turns. GNU's own choice spins for milliseconds, which
# on a machine that others load too keeps the working thread off its core: two threads on two cores beside one busy
# process made 1,600 tokens/s of 33,400 (0.8M parameters). With this they make 8,700, and 31,900 undisturbed.
SPIN = "10000"


def run_words(argv: Sequence[str] | None) -> int:
    """Run one command line; see `blockyard.cli.main`."""
    if argv is None:
        # The streams of this process; in another program's they are its own.
        fill_descriptors()
    with tolerant_streams():
        return guarded(list(sys.argv[1:] if argv is None else argv))


def guarded(words: list[str]) -> int:
    """Run a command; what the user can put right becomes one line, a fault of the program keeps its traceback."""
    try:
        prepare_openmp()
        status = dispatch(words)
        sys.stdout.flush()
        return status
    except InputError as error:
        say_error(str(error))
        return 2
    except ModuleNotFoundError as error:
        if (missing := missing_extra(error)) is None:
            raise
        say_error(str(missing))
        return 2
    except SystemExit as stop:
        # A run that a signal ended early, its checkpoint saved, says so and brings its own status.
        if hasattr(stop, "message"):
            say(stop.message)
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        say("\ninterrupted")
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has had enough: nothing went wrong. Python would complain once more when it
        # flushes stdout at exit, so that goes nowhere.
        discard_stdout()
        return 0
    except OSError as error:
        # What writes files says so itself; what is left is the output, sent to a file on a full disk.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        discard_stdout()
        say_error(f"cannot write the output: {error.strerror}")
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        # Of torch's message, what was asked for.
        asked = re.search(r"allocate ([\d.,]+ ?\w+)", str(error))
        say_error(f"out of memory{f' ({asked[1]} more)' if asked else ''}; ask for a smaller model, batch or length")
        return 2


def prepare_openmp() -> None:
    """Settle how OpenMP's threads wait, before torch is imported and OpenMP reads it.

    Raises:
        InputError: for a number of threads that no machine has: the process would be killed in making them.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        # Anything but a number is ignored by OpenMP, which says so.
        digits = os.environ.get(name, "").strip()
        if digits.isdigit() and (len(digits) > 9 or int(digits) > MOST_THREADS):
            raise InputError(f"the environment's {name}={digits} should be at most {MOST_THREADS}")


def dispatch(words: list[str]) -> int:
    """Run the command that the words name and return its exit status."""
    if not words or words[0] in HELP_WORDS:
        if len(words) > 1 and words[0] == "help":
            # As with other tools: `blockyard help train lm`.
            named = words[1:]
            length = 2 if " ".join(named[:2]) in command_names() or named[0] in TASK_VERBS else 1
            return dispatch([*named[:length], "--help", *named[length:]])
        from blockyard.cli.overview import first_page, overview

        print(overview() if words else first_page())
        return 0
    if words[0] in ("--version", "-V"):
        print(f"blockyard {__version__}")
        return 0
    if len(words) == 2 and words[1] in HELP_WORDS and any(n.startswith(f"{words[0]} ") for n in command_names()):
        from blockyard.cli.overview import overview

        print(overview(words[0]))
        return 0
    # Plug-ins add tasks, implementations and with them options: they are imported before anything is declared.
    load_plugins(plugins_in(words), "--plugin", here=True)
    name, rest = find_command(words)
    command = load_command(name, whole=True)
    command.prepare(rest)
    if asks_help(rest):
        from blockyard.cli.shape_cache import shape_of

        print(help_text(command, shape_of(command), rest))
        return 0
    arguments = command.parser().parse(rest)
    with forcing(command.builds and arguments.force):
        return command.run(arguments)


def say_error(message: str) -> None:
    """Print the one line on stderr, from the first process only."""
    say("error: " + one_line(message))


def discard_stdout() -> None:
    """Send what is still buffered for a closed pipe nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    except (OSError, ValueError):
        # stdout is not a file of this process (a test's capture): there is nothing to silence.
        pass
    finally:
        os.close(nowhere)
