"""What the targets of the Makefile install before they run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")


def planned(target: str) -> str:
    """What make would run for a target where nothing is installed yet."""
    surroundings = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    return subprocess.run(
        ["make", "--dry-run", "--always-make", target],
        cwd=ROOT,
        env=surroundings,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout


@pytest.mark.parametrize("target", ["demo", "bench"])
def test_run_installs_no_tools(target: str) -> None:
    """To run replog, nothing is installed that only its developers need."""
    assert "-e '.'\n" in planned(target)


@pytest.mark.parametrize("target", ["lint", "format", ".venv/installed"])
def test_develop_installs_tools(target: str) -> None:
    """To work on replog, the tools come along, and the marks of both installations are set."""
    plan = planned(target)
    assert "-e '.[test,lint]'\n" in plan
    assert "touch .venv/runnable .venv/installed\n" in plan
