"""`python -m farebox`: the same as the `farebox` command."""

from __future__ import annotations

import sys

from farebox.cli import main

if __name__ == "__main__":
    sys.exit(main())
