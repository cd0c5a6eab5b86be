"""`python -m blockyard` is the `blockyard` command (what torchrun starts)."""

import sys

from blockyard.cli import main

if __name__ == "__main__":
    sys.exit(main())
