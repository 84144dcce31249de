"""Run the whole test suite part by part and say how many minutes each part took.

``make test`` starts it with any Python 3.11; it needs the standard library only, because its first
part makes the virtual environment that the others run in.  The rules:

* A part runs its checks (targets of the Makefile, each counted as one test) and then pytest on its
  folders under ``tests/``.  A part without tests is not listed; a folder that no part names
  belongs to "all else", so that none is forgotten.
* A part that fails does not keep the later ones from running; the exit status is 1 if any failed.
* A part above its budget earns a warning and does not fail: machines differ, and a test that fails
  by the load of its machine is soon ignored.  What a part may never do is hang: above
  ``HANG_FACTOR`` times its budget it is ended, and has failed.
* The last line is the sum, ``N passed, N failed``.

``python tests/run_parts.py simulation`` runs the parts whose names begin so.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
VENV_PYTHON = ROOT / ".venv" / "bin" / "python"
HANG_FACTOR = 4
NOT_HANDED_DOWN = ("MAKEFLAGS", "MFLAGS", "PYTHONDONTWRITEBYTECODE")
"""What a surrounding make hands down (its job server among it) is not for the makes in here; and
the hundreds of processes that the tests start need not compile everything anew."""


@dataclass(frozen=True)
class Part:
    """A stretch of the suite with a budget of its own."""

    name: str
    minutes_max: float
    checks: tuple[str, ...]
    """Targets of the Makefile."""
    folders: tuple[str, ...]
    """Under ``tests/``; empty: every folder that no other part names."""
    processes: int = 2
    """How many run the tests; one where the tests use every core, more than there are cores where
    they mostly wait."""
    by_file: bool = True
    """Whether each of them runs whole files, so that what a file's tests share is made once."""


PARTS = (
    Part("installation", 1.0, (".venv/installed",), ("install",), processes=1),
    Part("all else", 3.0, ("lint",), ()),
    Part("simulation", 2.0, (), ("sim",)),
    Part("model check", 2.0, (), ("model", "mutants")),
    Part("storage crashes", 1.5, (), ("faults",)),
    Part("real processes", 2.0, (), ("net", "demo"), processes=4, by_file=False),
)


@dataclass(frozen=True)
class Outcome:
    """How a part ended."""

    part: Part
    minutes: float
    passed: int
    failed: int
    skipped: int


def folders_with_tests(part: Part, parts: Sequence[Part], tests: Path) -> list[Path]:
    """The folders of ``part`` that hold a test."""
    if part.folders:
        folders = [tests / name for name in part.folders]
    else:
        named = {name for other in parts for name in other.folders}
        folders = sorted(at for at in tests.iterdir() if at.is_dir() and at.name not in named)
    return [folder for folder in folders if next(folder.rglob("test_*.py"), None)]


def count_tests(report: Path, status: int) -> tuple[int, int, int]:
    """The (passed, failed, skipped) of one pytest run, from its report and exit status.

    A run that ended badly without naming a failed test (it crashed, was ended, or collected
    nothing) counts as one failure, so that no failure is lost in the sum.
    """
    passed = failed = skipped = 0
    try:
        cases = list(ElementTree.parse(report).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        cases = []
    for case in cases:
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    if status != 0 and failed == 0:
        failed = 1
    return passed, failed, skipped


def run(command: Sequence[str], seconds_max: float) -> int:
    """Run one command in the checkout and return its exit status; it is ended when it hangs.

    It leads a process group of its own, so that the nodes that a test started end with it.
    """
    env = {name: text for name, text in os.environ.items() if name not in NOT_HANDED_DOWN}
    process = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True)
    try:
        return process.wait(seconds_max)
    except subprocess.TimeoutExpired:
        print(f"ERROR: ended after {seconds_max / 60:.1f} minutes: {' '.join(command)}", flush=True)
        return 1
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_part(part: Part, folders: Sequence[Path], scratch: Path) -> Outcome:
    """Run the checks and the tests of one part."""
    print(f"\n== {part.name} (budget: {part.minutes_max} minutes) ==", flush=True)
    started = time.monotonic()
    deadline = started + part.minutes_max * 60 * HANG_FACTOR
    passed = failed = skipped = 0
    for target in part.checks:
        make = ["make", "--no-print-directory", f"PYTHON={sys.executable}", target]
        if run(make, deadline - time.monotonic()) == 0:
            passed += 1
        else:
            failed += 1
    if folders and VENV_PYTHON.exists():
        report = scratch / f"{part.name}.xml"
        paths = [str(folder.relative_to(ROOT)) for folder in folders]
        pytest = [str(VENV_PYTHON), "-m", "pytest", f"--junitxml={report}", *paths]
        if part.processes > 1:
            pytest += [
                f"--numprocesses={part.processes}",
                f"--dist={'loadfile' if part.by_file else 'worksteal'}",
            ]
        status = run(pytest, max(1.0, deadline - time.monotonic()))
        counts = count_tests(report, status)
        passed, failed, skipped = passed + counts[0], failed + counts[1], counts[2]
    minutes = (time.monotonic() - started) / 60
    return Outcome(part, minutes, passed, failed, skipped)


def summary(outcomes: Sequence[Outcome]) -> str:
    """The table of minutes, the warnings, and the sum as the last line."""
    lines = ["", "part              minutes  budget  passed  failed  skipped"]
    lines += [
        f"{o.part.name:<16} {o.minutes:8.2f} {o.part.minutes_max:7.1f} "
        f"{o.passed:7} {o.failed:7} {o.skipped:8}"
        for o in outcomes
    ]
    total = sum(o.minutes for o in outcomes)
    budget = sum(o.part.minutes_max for o in outcomes)
    lines += [f"{'total':<16} {total:8.2f} {budget:7.1f}", ""]
    lines += [
        f"WARNING: OVER BUDGET: {o.part.name} took {o.minutes:.2f} minutes of {o.part.minutes_max}"
        for o in outcomes
        if o.minutes > o.part.minutes_max
    ]
    passed, failed = sum(o.passed for o in outcomes), sum(o.failed for o in outcomes)
    lines.append(f"{passed} passed, {failed} failed")
    return "\n".join(lines)


def main(names: Sequence[str]) -> int:
    """Run every part, or those whose names begin with one of ``names``."""
    wanted = [part for part in PARTS if not names or part.name.startswith(tuple(names))]
    if not wanted:
        known = ", ".join(part.name for part in PARTS)
        print(f"no part is named {' or '.join(names)}; the parts are: {known}", file=sys.stderr)
        return 2
    # A shell that starts this in the background has it ignore Ctrl-C, and what it starts as well;
    # the tests send that signal and expect it to be heard.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="replog-test-") as scratch:
        for part in wanted:
            folders = folders_with_tests(part, PARTS, TESTS)
            if not folders and not part.checks:
                continue
            outcomes.append(run_part(part, folders, Path(scratch)))
            if not VENV_PYTHON.exists():
                print("ERROR: there is no .venv, so nothing more can run", flush=True)
                break
    print(summary(outcomes), flush=True)
    return 1 if any(outcome.failed for outcome in outcomes) or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
