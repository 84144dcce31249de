"""The table of claims: which rule of the paper, which test, and which change makes it fail.

``coverage.toml`` names the changes; the claims are the docstrings of the tests.  This module reads
both, makes COVERAGE.md of them (``python tests/paper/coverage_table.py`` rewrites it), and runs the
tests of each change against a copy of the engine in which it was made.  The checkout stays as it
is.
"""

from __future__ import annotations

import ast
import importlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

FOLDER: Final = Path(__file__).resolve().parent
ROOT: Final = FOLDER.parents[1]
TABLE: Final = FOLDER / "COVERAGE.md"
ENGINE: Final = "replog_raft"
PACKAGES: Final = {"replog": ROOT / "replog", ENGINE: ROOT / "engines" / ENGINE}
RUN_SECONDS_MAX: Final = 60
PYTEST_ARGUMENTS: Final = (
    *("-c", os.devnull, "--rootdir", str(FOLDER), "--noconftest"),
    *("--confcutdir", str(FOLDER)),  # or it would look through every folder above
    *("-q", "-rf", "--tb=line", "--assert=plain"),
)
UNNEEDED_PLUGINS: Final = (
    *("cacheprovider", "debugging", "doctest", "faulthandler", "junitxml", "logging", "pastebin"),
    *("recwarn", "setuponly", "setupplan", "stepwise", "threadexception", "tmpdir", "unittest"),
    "unraisableexception",
)
"""Parts of pytest that no test of this folder needs: to load them is most of what a run takes."""

_HEAD: Final = """\
# What the tests of the paper cover

Each row is one claim of the Raft paper (extended version, 2014), of the thesis (Ongaro, 2014) or of
the engine's contract, its test, and a change of one line of the engine that makes the test fail.
`test_coverage_table.py` makes each change in a copy and sees the test fail.  This file is made from
`coverage.toml` and the docstrings: `python tests/paper/coverage_table.py` rewrites it.
"""


@dataclass(frozen=True)
class Change:
    """One line of the engine, and what it is replaced by."""

    file: str
    """From the package's name on, as in ``replog_raft/raft.py``."""
    within: str
    """The change is made behind the first occurrence of this text; may be empty."""
    old: str
    new: str
    tests: tuple[str, ...]
    """The tests that must fail, as ``module::function``."""

    @property
    def source(self) -> Path:
        """The file in the checkout."""
        package, _, rest = self.file.partition("/")
        return PACKAGES[package] / rest

    def apply(self, text: str) -> str:
        """``text`` with the change made; raises ``ValueError`` when its place is not found."""
        start = text.index(self.within)
        at = text.index(self.old, start)
        return text[:at] + self.new + text[at + len(self.old) :]


@dataclass(frozen=True)
class Claim:
    """What one test states."""

    section: str
    sentence: str
    is_known_to_fail: bool
    """Marked ``xfail``: the engine does not keep the rule yet."""


def load_changes() -> tuple[Change, ...]:
    """The changes of ``coverage.toml``, in its order."""
    rows = tomllib.loads((FOLDER / "coverage.toml").read_text(encoding="utf-8"))["change"]
    return tuple(
        Change(row["file"], row.get("within", ""), row["old"], row["new"], tuple(row["tests"]))
        for row in rows
    )


def load_claims() -> dict[str, Claim]:
    """The claims by test, in the order of the files; without those of the table itself."""
    claims: dict[str, Claim] = {}
    for path in sorted(FOLDER.glob("test_*.py")):
        if path.name == "test_coverage_table.py":
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                text = " ".join((ast.get_docstring(node) or "").split())
                section, _, sentence = text.partition(": ")
                marks = [ast.unparse(mark) for mark in node.decorator_list]
                claims[f"{path.stem}::{node.name}"] = Claim(
                    section, sentence, any(".xfail" in mark for mark in marks)
                )
    return claims


def make_table() -> str:
    """The text of COVERAGE.md."""
    changes = {test: change for change in load_changes() for test in change.tests}
    lines = [_HEAD]
    module = ""
    missing: list[str] = []
    for test, claim in load_claims().items():
        if claim.is_known_to_fail:
            missing.append(f"* {claim.section}: {claim.sentence} (`{test}`)")
            continue
        stem, _, function = test.partition("::")
        if stem != module:
            module = stem
            lines += [
                f"\n## {stem}.py\n",
                "| section | rule | test | change |",
                "|---|---|---|---|",
            ]
        lines.append(
            f"| {claim.section} | {_cell(claim.sentence)} | `{function}` "
            f"| {_change_cell(changes[test])} |"
        )
    if missing:
        lines += ["\n## Not kept yet\n", "These tests are marked as expected to fail.\n", *missing]
    return "\n".join(lines) + "\n"


def _change_cell(change: Change) -> str:
    place = f"{change.file}, {change.within.strip()}" if change.within else change.file
    return f"{_cell(place)}: `{_cell(change.old)}` becomes `{_cell(change.new)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


AS_IS: Final = "as_is"
"""The name of the copy without a change."""


def prepare(target: Path, numbers: Sequence[int]) -> None:
    """Copy the packages to ``target``: once as they are, and once per change with it made."""
    for package, source in PACKAGES.items():
        shutil.copytree(source, target / AS_IS / package)
    changes = load_changes()
    for number in numbers:
        change = changes[number]
        package, _, rest = change.file.partition("/")
        shutil.copytree(target / AS_IS / package, target / str(number) / package)
        changed = target / str(number) / package / rest
        with suppress(ValueError):  # where its place is gone, its test will be seen to pass
            changed.write_text(change.apply(changed.read_text(encoding="utf-8")), encoding="utf-8")
        # Compiled code is told apart by time and size alone, which the change may have kept.
        for compiled in (changed.parent / "__pycache__").glob(f"{changed.stem}.*"):
            compiled.unlink()


def import_without_engine(target: Path) -> None:
    """Import what the engine imports, unchanged, and forget the engine itself."""
    sys.path.insert(0, str(target / AS_IS))
    importlib.import_module(ENGINE)
    for name in [name for name in sys.modules if name.partition(".")[0] == ENGINE]:
        del sys.modules[name]


def run(target: Path, names: Sequence[str]) -> None:
    """Run the tests of each named copy in a process of its own, one after the other.

    The processes are forks of one that has imported pytest and all its parts; and, when it comes to
    the changes of the engine, all that the engine needs, but not the engine: that saves most of the
    time.  No plugin and no setting of the checkout takes part.  Each writes what it says to
    ``NAME.txt`` and its exit status to ``NAME.status``.
    """
    os.environ.update(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", PYTEST_ADDOPTS="")
    os.chdir(FOLDER)
    import pytest

    arguments = [*PYTEST_ARGUMENTS, *(f"-pno:{plugin}" for plugin in UNNEEDED_PLUGINS)]
    with TemporaryDirectory() as empty, redirect_stdout(io.StringIO()):
        pytest.main([*arguments, empty])  # finds nothing; it imports what the forks will need
    changes = load_changes()

    def is_of_engine(name: str) -> bool:
        return name != AS_IS and changes[int(name)].file.startswith(f"{ENGINE}/")

    for name in sorted(names, key=is_of_engine):
        if is_of_engine(name) and "replog" not in sys.modules:
            import_without_engine(target)
        chosen = changes if name == AS_IS else (changes[int(name)],)
        tests = [test.replace("::", ".py::") for change in chosen for test in change.tests]
        child = os.fork()
        if child == 0:
            signal.alarm(RUN_SECONDS_MAX)
            output = os.open(target / f"{name}.txt", os.O_WRONLY | os.O_CREAT, 0o600)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.path[:0] = [str(target / name), str(target / AS_IS)]
            status = pytest.main([*arguments, *tests])
            sys.stdout.flush()
            os._exit(status)
        _, wait_status = os.waitpid(child, 0)
        status = os.waitstatus_to_exitcode(wait_status)
        (target / f"{name}.status").write_text(str(status), encoding="utf-8")


def run_all(target: Path, names: Sequence[str]) -> None:
    """Run the tests of every named copy, on as many processors as there are."""
    workers = min(4, os.cpu_count() or 1)
    running = [
        subprocess.Popen([sys.executable, __file__, str(target), *names[worker::workers]])
        for worker in range(workers)
        if names[worker::workers]
    ]
    for process in running:
        process.wait()


def outcome(target: Path, name: str) -> tuple[int, set[str], str]:
    """What came of the tests of one copy: (exit status, those that failed, output)."""
    status = int((target / f"{name}.status").read_text(encoding="utf-8"))
    output = (target / f"{name}.txt").read_text(encoding="utf-8")
    failed = re.findall(r"^FAILED (\w+)\.py::(\w+)", output, re.MULTILINE)
    return status, {f"{stem}::{function}" for stem, function in failed}, output


if __name__ == "__main__":
    if len(sys.argv) == 1:
        TABLE.write_text(make_table(), encoding="utf-8")
    else:
        run(Path(sys.argv[1]), sys.argv[2:])
