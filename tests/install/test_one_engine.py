"""Each engine stands alone: with the other one deleted, everything else still works.

The tree is copied, the other engines' folders and entry points are removed from the copy, and what
is left is run in fresh processes that know nothing of the original: the unit tests, the conformance
suite and the demonstration.
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
from pathlib import Path

import pytest

from replog.plugins import engine_names

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("replog", "engines", "statemachines", "bench", "tests", "docs")
SOURCES = (".", "engines", "statemachines", "bench")
SECONDS_MAX = 240


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
            if not re.match(r'(\w+) = "replog_\1:PLUGIN"$', line) or line.startswith(engine)
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
            **{name: text for name, text in os.environ.items() if not name.startswith("PYTEST")},
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def run(self, *arguments: str) -> str:
        """The output of Python in the copy, which must succeed."""
        done = subprocess.run(
            [self.python, *arguments],
            cwd=self.tree,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}:\n{done.stdout[-6000:]}\n{done.stderr[-4000:]}"
        return done.stdout


@pytest.fixture(scope="module", params=engine_names())
def copy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """The checkout with one engine alone."""
    assert len(engine_names()) > 1, "nothing would be removed"
    return Copy(tmp_path_factory.mktemp(request.param), request.param)


def test_other_engine_gone(copy: Copy, request: pytest.FixtureRequest) -> None:
    """The copy has exactly one engine, and nothing of another can be imported."""
    script = (
        "import importlib.util, replog, replog.plugins as p, json; "
        "print(json.dumps([p.engine_names(), replog.__file__, "
        f"[n for n in {engine_names()!r} if importlib.util.find_spec('replog_' + n)]]))"
    )
    names, home, found = json.loads(copy.run("-c", script))
    assert names == found == [request.node.callspec.params["copy"]]
    assert Path(home).is_relative_to(copy.tree)


def test_rest_passes(copy: Copy) -> None:
    """The unit tests and the conformance suite pass with the engine that is left."""
    shown = copy.run(
        "-m", "pytest", "-x", "-p", "no:cacheprovider", "tests/unit", "tests/conformance"
    )
    assert " passed" in shown
    assert "failed" not in shown


def test_demo_works(copy: Copy) -> None:
    """The demonstration runs with the engine that is left, and loses nothing."""
    shown = json.loads(
        copy.run("-m", "replog", "demo", "--writes", "2000", "--seconds", "1", "--json")
    )
    assert shown["lost"] == 0
    assert shown["replicas_equal"]
