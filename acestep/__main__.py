"""`python -m acestep` is the same as the `acestep` command."""

import sys

from acestep.cli import main

if __name__ == "__main__":
    sys.exit(main())
