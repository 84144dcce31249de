"""The process of the command line: what the script ``replog`` and ``python -m replog`` run.

It does nothing but load the command line, so that Ctrl-C ends that in silence as well.
"""

from __future__ import annotations

import sys
from typing import Final

_EXIT_INTERRUPTED: Final = 130
"""As :mod:`replog.cli` says it, which may not be loaded yet."""


def main() -> int:
    """Load and run the command line; the exit code."""
    try:
        from replog.cli import main as run

        return run()
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
