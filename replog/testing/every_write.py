"""Strike every operation on a node's files, one at a time, and judge what is left.

``python -m replog.testing.every_write`` plays the script of :mod:`replog.testing.write_script`, in
which a real node (the engine, the replica, the turn, the write-ahead log, the snapshot store) goes
through everything that writes.  At each operation on its files the run branches, once for each way
to strike it (:class:`~replog.testing.strikes.Mode`).  In a branch the node is struck and started
again; then all that was acknowledged must be there, nothing may be that was not written, a second
recovery must find the same as the first, and the cluster must go on working.

A branch is a process of its own, forked amid the operation: whatever the code under test holds in
memory is as it was, at the price of a page table.  So this needs a system that can fork, which are
those that keep a real log.  The same seed strikes in the same way everywhere.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from replog.engine import EnginePlugin
from replog.errors import CallerError, PlatformError, PluginError
from replog.plugins import engine_names, find_engine
from replog.storage.plugin import StoragePlugin
from replog.testing.checks import Violation
from replog.testing.strikes import LOOKING, SYNCING, Mode, Operation, SmallWal, Strike
from replog.testing.write_script import Script, Struck
from replog.types import record

ALWAYS: Final = (Mode.NOTHING, Mode.TORN, Mode.FAILS)
"""How every operation is struck."""

BY_TURNS: Final = (Mode.FAILS_LOST, Mode.EVERYTHING, Mode.PREFIX)
"""How one is struck in addition, and the next one in the next way; ..."""

CRASHES_BY_TURNS: Final = (Mode.EVERYTHING, Mode.PREFIX)
"""... if it only looks at the disk, it is one of these: what fails then leaves the same."""


@record
class Problem:
    """What was wrong after a strike."""

    scene: str
    strike: Strike
    sentence: str
    trace: str = ""
    """The end of the trace, where a rule was broken."""


@record
class Report:
    """What came of all strikes at one engine."""

    engine: str
    operations: Sequence[Operation]
    witnessed: Mapping[str, int]
    """What the unstruck run came to, and how often."""
    strikes: Mapping[Mode, int]
    """How many there were of each kind."""
    problems: Sequence[Problem]
    seconds: float


class _Branches:
    """The branches of one run that go on beside each other, and what they came to."""

    def __init__(self, processes_max: int) -> None:
        self._processes_max = processes_max
        self._running: list[tuple[int, int, Strike, str]] = []
        """Each one's process, where it reports to, and what it is about, the oldest first."""
        self.problems: list[Problem] = []
        self.count: Counter[Mode] = Counter()
        self.outlet: int | None = None
        """In a branch, where it reports to."""

    def begin(self, strike: Strike, scene: str) -> bool:
        """Fork; whether this is the branch."""
        if len(self._running) >= self._processes_max:
            self._end_oldest()
        self.count[strike.mode] += 1
        inlet, outlet = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(inlet)
            self.outlet = outlet
            return True
        os.close(outlet)
        self._running.append((process, inlet, strike, scene))
        return False

    def end_all(self) -> None:
        """Wait for every branch."""
        while self._running:
            self._end_oldest()

    def _end_oldest(self) -> None:
        process, inlet, strike, scene = self._running.pop(0)
        with os.fdopen(inlet, "rb") as pipe:
            said = pipe.read()
        os.waitpid(process, 0)
        try:
            sentence, trace = json.loads(said)
        except ValueError:
            sentence, trace = "the branch ended without a word", ""
        if sentence:
            self.problems.append(Problem(scene, strike, sentence, trace))

    def report(self, sentence: str, trace: str) -> NoReturn:
        """In a branch: say what it came to, and end."""
        assert self.outlet is not None
        with os.fdopen(self.outlet, "wb") as pipe:
            pipe.write(json.dumps([sentence, trace]).encode())
        os._exit(0)


class _States:
    """Tells whether a crash would leave something that no crash before it has left."""

    def __init__(self) -> None:
        self._changes_count = self._syncs_count = 0
        self._struck: dict[Mode, tuple[int, int, int]] = {}

    def note(self, operation: str) -> None:
        """An operation takes effect."""
        if operation in SYNCING:
            self._syncs_count += 1
        elif operation not in LOOKING:
            self._changes_count += 1

    def is_new(self, mode: Mode, moment: int) -> bool:
        """Whether something was changed on the disk, or happened in the cluster, since the last
        strike of this mode; what is not synced is no change to whoever loses it.  A failure is
        always new: it is the node that deals with it."""
        if mode.is_failure or mode is Mode.FLIPPED:
            return True
        changes_count = 0 if mode is Mode.NOTHING else self._changes_count
        syncs_count = 0 if mode is Mode.EVERYTHING else self._syncs_count
        state = (changes_count, syncs_count, moment)
        if self._struck.get(mode) == state:
            return False
        self._struck[mode] = state
        return True


def strike_all(
    plugin: EnginePlugin,
    *,
    storage: StoragePlugin | None = None,
    seed: int = 1,
    is_deep: bool = False,
    only: Callable[[int, Operation], bool] | None = None,
    processes_max: int | None = None,
) -> Report:
    """Strike every operation of the script, or those that ``only`` chooses by number.

    ``storage`` is what the node under test has its log in (``None``: the write-ahead log, with tiny
    segments); it must do all that it does on the files that it is given.  ``is_deep``: in every
    mode.  Raises :class:`~replog.testing.checks.Violation` for what is wrong without any strike,
    and :class:`~replog.errors.PlatformError` where nothing can be forked.
    """
    if not hasattr(os, "fork"):
        raise PlatformError("this system cannot fork a process; run it on Linux or macOS")
    started = time.monotonic()
    branches = _Branches(processes_max or os.cpu_count() or 1)
    operations: list[Operation] = []
    script: Script | None = None
    states = _States()

    def meet(name: str, path: Path) -> Strike | None:
        operation = Operation(script.scene if script is not None else "", name, path)
        operations.append(operation)
        number = len(operations)
        moment = 0 if script is None else script.moment
        if only is None or only(number, operation):
            for mode in modes_of(number, operation, is_deep):
                strike = Strike(number, name, path, mode)
                if states.is_new(mode, moment) and branches.begin(strike, operation.scene):
                    return strike
        states.note(name)
        return None

    script = Script(plugin, storage or SmallWal(), seed, meet)
    # A collection would touch, and so copy, all that a branch has in common with the others.
    gc.disable()
    gc.freeze()
    try:
        _play(script, branches)
    finally:
        gc.unfreeze()
        gc.enable()
        branches.end_all()
    seconds = time.monotonic() - started
    witnessed = script.witness(operations)
    return Report(
        plugin.name, operations, witnessed, dict(branches.count), branches.problems, seconds
    )


def modes_of(number: int, operation: Operation, is_deep: bool) -> Sequence[Mode]:
    """How an operation is struck."""
    turns = CRASHES_BY_TURNS if operation.name in LOOKING else BY_TURNS
    others = BY_TURNS if is_deep else (turns[number % len(turns)],)
    found = [*ALWAYS, *others]
    if is_deep or operation.name in SYNCING:
        # Here the most is unsynced, and so the order matters most.
        found.append(Mode.LATEST)
    if operation.name == "write":
        found.append(Mode.FLIPPED)
    # Whoever closes a file has synced it, or does not need it any more.
    return [mode for mode in found if not (mode.is_failure and operation.name == "close")]


def _play(script: Script, branches: _Branches) -> None:
    """Play the script; a branch ends in here."""
    sentence = trace = ""
    try:
        with suppress(Struck):
            script.run()
        sentence = script.conclude()
    except Violation as violation:
        if branches.outlet is None:
            raise
        sentence, trace = violation.sentence, "\n".join(violation.trace_tail)
    except Exception as error:
        if branches.outlet is None:
            raise
        sentence = f"{type(error).__name__}: {error}"
    if branches.outlet is not None:
        branches.report(sentence, trace)
    if sentence:
        raise script.cluster.violation(f"without any strike: {sentence}")


_EPILOG: Final = """\
examples:
  python -m replog.testing.every_write
  python -m replog.testing.every_write --engine my_engine --deep
  python -m replog.testing.every_write --engine my_engine --at 417

exit code 0: nothing was wrong; 1: something was; 2: a mistake in the arguments"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Strike every operation, and print what came of it."""
    parser = argparse.ArgumentParser(
        prog="python -m replog.testing.every_write",
        description="Strike every operation on a node's files, one at a time: crash, failure, "
        "flipped bit; then start the node again and judge what is left.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--engine", metavar="NAME", help="this engine alone (default: each)")
    parser.add_argument(
        "--deep", action="store_true", help="strike every operation in every mode (minutes)"
    )
    parser.add_argument(
        "--at",
        metavar="N",
        type=int,
        help="strike operation N alone, in every mode, and show the end of each trace",
    )
    parser.add_argument(
        "--seed", metavar="S", type=int, default=1, help="what chance is drawn from (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    options = parser.parse_args(arguments)
    try:
        reports = [_strike_engine(name, options) for name in _chosen(options)]
    except (CallerError, PlatformError, PluginError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Violation as violation:
        print(f"without any strike: {violation}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps([_document(report) for report in reports], indent=2))
    return 1 if any(report.problems for report in reports) else 0


def _chosen(options: argparse.Namespace) -> Sequence[str]:
    return engine_names() if options.engine is None else [options.engine]


def _strike_engine(name: str, options: argparse.Namespace) -> Report:
    at: int | None = options.at
    report = strike_all(
        find_engine(name),
        seed=options.seed,
        is_deep=options.deep or at is not None,
        only=None if at is None else lambda number, _: number == at,
    )
    if at is not None and not 1 <= at <= len(report.operations):
        raise CallerError(
            f"--at {at}: with {name} there are operations 1 to {len(report.operations)}"
        )
    if not options.json:
        print("\n".join(_lines(report, shows_trace=at is not None)), flush=True)
    return report


def _lines(report: Report, *, shows_trace: bool) -> Sequence[str]:
    """What is printed for people."""
    witnessed = ", ".join(f"{name} {count}" for name, count in report.witnessed.items())
    found = [
        f"{report.engine}: {len(report.operations)} operations on the node's files, "
        f"{sum(report.strikes.values())} strikes in {report.seconds:.0f} s, "
        f"{len(report.problems)} of them with a problem",
        f"  the script: {witnessed}",
    ]
    found += [f"  {count:6}  {mode.value}" for mode, count in report.strikes.items()]
    for problem in report.problems:
        strike = problem.strike
        found += [
            f"operation {strike.number} ({strike.operation} of {strike.path}, amid "
            f"{problem.scene}); {strike.mode.value}:",
            f"  {problem.sentence}",
        ]
        if shows_trace:
            found += [f"    {line}" for line in problem.trace.splitlines()]
    return found


def _document(report: Report) -> Mapping[str, object]:
    """What is printed with ``--json``."""
    return {
        "engine": report.engine,
        "operations": len(report.operations),
        "by_name": Counter(operation.name for operation in report.operations),
        "script": dict(report.witnessed),
        "strikes": {mode.name.lower(): count for mode, count in report.strikes.items()},
        "seconds": round(report.seconds, 1),
        "problems": [
            {
                "operation": problem.strike.number,
                "name": problem.strike.operation,
                "path": str(problem.strike.path),
                "scene": problem.scene,
                "mode": problem.strike.mode.name.lower(),
                "problem": problem.sentence,
            }
            for problem in report.problems
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
