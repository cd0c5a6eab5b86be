"""`python -m blockyard` is the `blockyard` command (what torchrun starts)."""

import os
import sys

# `python -m` looks in the current folder first: a file there that is named like a library would be run in its place. As
# with the console script, it is looked at last, and for plug-ins alone (`plugins.see_current_folder`).
if not sys.flags.safe_path and sys.path and sys.path[0] == os.getcwd():
    del sys.path[0]

from blockyard.cli import main

if __name__ == "__main__":
    sys.exit(main())
