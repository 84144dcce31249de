"""Runs a program that is not ours, so that it ends with its parent and in time.

A server knows nothing of the measurement that started it and would run for ever.  This process
stands between the two: it starts the program, waits for it, and ends it by its id when the
program's time is over or when it is told to end itself (SIGTERM), and only then ends.  On Linux the
kernel ends the program also when this process is killed outright, and this process when its own
parent is.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
from functools import partial
from typing import Final, NoReturn

from replog_bench.processes import limit_lifetime

_PR_SET_PDEATHSIG: Final = 1
"""Of ``linux/prctl.h``."""

FOREIGN: Final = ("ETCD_", "GOGC", "GOMAXPROCS", "GOMEMLIMIT", "GODEBUG")
"""What the shell may have set for other runs: such a variable would change what is measured."""


def end_with_parent(number: int) -> None:
    """Have the kernel send this process a signal when its parent dies, where it can do so."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def end(_number: int, _frame: object) -> NoReturn:
    """End this process, and with it the program."""
    sys.exit(1)


def main() -> None:
    """Run a program in the bounds of a measurement."""
    parser = argparse.ArgumentParser(prog="python -m replog_bench.guard", description=main.__doc__)
    parser.add_argument("--lifetime-seconds", type=float, required=True)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    end_with_parent(signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGINT):
        signal.signal(number, end)
    limit_lifetime(given.lifetime_seconds)
    environment = {name: text for name, text in os.environ.items() if not name.startswith(FOREIGN)}
    program = subprocess.Popen(
        given.command, env=environment, preexec_fn=partial(end_with_parent, signal.SIGKILL)
    )
    try:
        sys.exit(program.wait())
    finally:
        program.kill()
        program.wait()


if __name__ == "__main__":
    main()
