"""`python -m filterprune`: the command line."""

import sys

from filterprune.cli import main

if __name__ == "__main__":
    sys.exit(main())
