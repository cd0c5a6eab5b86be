"""`blockyard completion SHELL`: a script that lets bash, zsh or fish complete commands, options and values.

The script asks the command itself at every TAB (`blockyard completion words -- …`), so that it need not be made again
after an update, and offers files where nothing else can follow.
"""

from __future__ import annotations

import argparse

from blockyard.cli.command import Command
from blockyard.cli.parser import Parser
from blockyard.errors import InputError

BASH = """\
_blockyard() {
    local cur=${COMP_WORDS[COMP_CWORD]}
    # bash cuts words at "=": what stands behind it is completed alone.
    [[ $cur == = ]] && cur=
    local IFS=$'\\n'
    COMPREPLY=($("${COMP_WORDS[0]}" completion words -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    if [[ ${#COMPREPLY[@]} -eq 0 ]]; then
        COMPREPLY=($(compgen -f -- "$cur"))
        compopt -o filenames 2>/dev/null
    fi
}
complete -F _blockyard blockyard
"""
ZSH = """\
#compdef blockyard
_blockyard() {
    local -a found
    found=("${(@f)$("${words[1]}" completion words -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "${found[*]}" ]]; then
        # Of --name=value the value alone is completed.
        [[ "$PREFIX" == --*=* ]] && compset -P '*='
        compadd -a found
    else
        [[ "$PREFIX" == --*=* ]] && compset -P '*='
        _files
    fi
}
# Found in fpath, this file is the function's body at its first call; sourced, it announces the function.
if [[ "$funcstack[1]" == _blockyard ]]; then
    _blockyard "$@"
else
    compdef _blockyard blockyard
fi
"""
FISH = """\
function __blockyard_words
    set -l begun (commandline -ct)
    set -l words (commandline -opc) $begun
    set -l found ($words[1] completion words -- $words[2..-1] 2>/dev/null)
    if test (count $found) -eq 0
        __fish_complete_path (string replace -r '^--[^=]*=' '' -- $begun)
    else if string match -q -- '--*=*' $begun
        printf '%s\\n' (string replace -r '=.*' '=' -- $begun)$found
    else
        printf '%s\\n' $found
    end
end
complete -c blockyard -f -a '(__blockyard_words)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
WORDS = "words"


def add_arguments(parser: Parser) -> None:
    parser.usage = "%(prog)s SHELL"
    parser.plain(
        "shell",
        "bash, zsh or fish; or words, which prints what may follow the words behind --",
        nargs="?",
        metavar="SHELL",
        choices=(*SCRIPTS, WORDS),
    )
    parser.plain("line", "with words: a line that is being typed, without its first word", nargs="*", metavar="WORD")


def run(arguments: argparse.Namespace) -> int:
    from blockyard.cli.completing import following

    if arguments.shell is None:
        raise InputError(f"completion for which shell? blockyard completion {' | '.join(SCRIPTS)}")
    if arguments.shell == WORDS:
        print("".join(f"{word}\n" for word in following(arguments.line)), end="")
    elif arguments.line:
        raise InputError(f"unexpected argument {arguments.line[0]!r}: completion {arguments.shell} prints a script")
    else:
        print(SCRIPTS[arguments.shell], end="")
    return 0


COMMAND = Command(
    "completion",
    "completion for bash, zsh or fish: commands, options, values",
    add_arguments,
    run,
    order=60,
    purpose="extend",
    example="source <(blockyard completion bash)",
)
