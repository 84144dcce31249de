"""Each engine stands alone: with the other one deleted, everything else still works.

The tree is copied, the other engines' folders and entry points are removed from the copy, and what
is left is run in fresh processes that know nothing of the original: unit tests, scenarios of the
conformance suite and the demonstration.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from replog.plugins import engine_names

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("replog", "engines", "statemachines", "bench", "tests", "docs")
SOURCES = (".", "engines", "statemachines", "bench")
SECONDS_MAX = 240

LONG_RUNS = (
    *("[elections.", "[faults.", "[reads.", "[replication.", "[crashes.", "[snapshots."),
    "amid_all_faults",
)
"""Of the conformance suite, what is about the engine itself, which is the same in the copy."""
FILE_BY_FILE = (
    *("file_not_too_long", "functions_not_too_long", "nothing_forbidden", "tests_state_claims"),
    *("loops_ordered", "shared_code_names_no_engine"),
)
"""The rules that look at one file and nothing else: each file of the copy is one of the checkout,
where they look at it."""


class Copy:
    """A checkout with one engine, and a virtual environment that sees nothing else of replog."""

    def __init__(self, folder: Path, engine: str) -> None:
        self.tree = folder / "tree"
        self.tree.mkdir()
        for name in COPIED:
            shutil.copytree(
                ROOT / name, self.tree / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        for path in ROOT.iterdir():
            if path.is_file():
                shutil.copy(path, self.tree / path.name)
        for other in engine_names():
            if other != engine:
                shutil.rmtree(self.tree / "engines" / f"replog_{other}")
                shutil.rmtree(self.tree / "tests" / other, ignore_errors=True)
        project_file = self.tree / "pyproject.toml"
        text = "".join(
            line
            for line in project_file.read_text().splitlines(keepends=True)
            if not re.match(r'(\w+) = "replog_\1(:PLUGIN|\.trial:TRIAL)"$', line)
            or line.startswith(engine)
        )
        project_file.write_text(text)
        self._install(folder, tomllib.loads(text)["project"])

    def _install(self, folder: Path, project: dict[str, dict[str, dict[str, str]]]) -> None:
        """Make the environment.  The packages that replog needs come by a path file, which does not
        read the path files beside them: so an editable installation there stays unseen."""
        home = folder / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
        self.python = home / "bin" / "python"
        site = next((home / "lib").glob("python*/site-packages"))
        (site / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        metadata = folder / "metadata" / "replog-0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: replog\nVersion: 0\n")
        groups = [
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
            for group, points in project["entry-points"].items()
        ]
        (metadata / "entry_points.txt").write_text("\n".join(groups))
        paths = [metadata.parent, *(self.tree / source for source in SOURCES)]
        self.environment = {
            **{name: text for name, text in os.environ.items() if not is_of_outer_run(name)},
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Python in the copy."""
        return subprocess.Popen(
            [self.python, *arguments],
            cwd=self.tree,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str) -> str:
        """The output of Python in the copy, which must succeed."""
        return ended(self.start(*arguments))


def is_of_outer_run(name: str) -> bool:
    """Whether a variable is about the run that makes the copies; they may well keep what they have
    compiled, for many processes run in them."""
    return name.startswith("PYTEST") or name == "PYTHONDONTWRITEBYTECODE"


def ended(process: subprocess.Popen[str]) -> str:
    """The output of a process, which must succeed in time."""
    try:
        shown, _ = process.communicate(timeout=SECONDS_MAX)
    finally:
        process.kill()
    assert process.returncode == 0, f"{process.args!r}:\n{shown[-8000:]}"
    return shown


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Copy]:
    """The checkout with one engine alone, for each engine."""
    assert len(engine_names()) > 1, "nothing would be removed"
    return {name: Copy(tmp_path_factory.mktemp(name), name) for name in engine_names()}


@pytest.mark.parametrize("engine", engine_names())
def test_other_engine_gone(copies: Mapping[str, Copy], engine: str) -> None:
    """The copy has exactly one engine, and nothing of another can be imported."""
    script = (
        "import importlib.util, replog, replog.plugins as p, json; "
        "print(json.dumps([p.engine_names(), replog.__file__, "
        f"[n for n in {engine_names()!r} if importlib.util.find_spec('replog_' + n)]]))"
    )
    copy = copies[engine]
    names, home, found = json.loads(copy.run("-c", script))
    assert names == found == [engine]
    assert Path(home).is_relative_to(copy.tree)


def test_rest_passes(copies: Mapping[str, Copy]) -> None:
    """The unit tests that speak of engines, and much of the conformance suite, pass with either
    engine alone; all at once, since they take a while."""
    speaking = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests" / "unit").glob("test_*.py"))
        if "engine" in path.read_text(encoding="utf-8")
    ]
    assert len(speaking) > 10
    scenarios = "tests/conformance/test_conformance.py"
    pytest_arguments = ("-m", "pytest", "-x", "-p", "no:cacheprovider", "-k")
    # What is left out is named, so that a name that changes leaves out nothing.
    words = " and ".join(f"not {each}" for each in (*LONG_RUNS, *FILE_BY_FILE))
    running = [
        copy.start(*pytest_arguments, words, *speaking, scenarios) for copy in copies.values()
    ]
    for process in running:
        shown = ended(process)
        assert " passed" in shown
        assert "failed" not in shown


@pytest.mark.parametrize("engine", engine_names())
def test_demo_works(copies: Mapping[str, Copy], engine: str) -> None:
    """The demonstration runs with the engine that is left, and loses nothing."""
    arguments = ("demo", "--writes", "2000", "--seconds", "1", "--json")
    (shown,) = json.loads(copies[engine].run("-m", "replog", *arguments))
    assert (shown["engine"], shown["lost"], shown["replicas_equal"]) == (engine, 0, True)
