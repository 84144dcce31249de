"""What ``docs/testing.md`` shows works as it stands."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from replog.cli import check, sim
from replog.cli.shared import chosen_engines
from replog.testing.chance import KINDS, Selection

TEXT = (Path(__file__).parents[2] / "docs" / "testing.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = re.findall(r"^\$ replog ((?:sim|check) [^#\n]*)", TEXT, re.MULTILINE)


def test_programs_found() -> None:
    """There is something to run."""
    assert len(PROGRAMS) >= 3
    assert len(COMMANDS) >= 3


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_program_runs(number: int) -> None:
    """Each program runs to its end, with its own asserts holding."""
    exec(compile(PROGRAMS[number], f"docs/testing.md, program {number}", "exec"), {"__name__": "x"})


@pytest.mark.parametrize("line", COMMANDS)
def test_command_understood(line: str) -> None:
    """Each command line is one that the commands understand, to the names of engines and faults."""
    words = line.split()
    module = {"sim": sim, "check": check}[words[0]]
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    arguments = parser.parse_args(words[1:])
    assert chosen_engines(arguments)
    Selection.parse(getattr(arguments, "faults", "all"))


def test_faults_told() -> None:
    """Every fault stands in the table of faults."""
    assert [kind for kind in KINDS if f"`{kind}`" not in TEXT] == []
