"""What ``docs/testing.md`` shows works as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from replog.cli import main
from replog.testing.chance import KINDS

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
def test_command_understood(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command line is one that the commands understand; ``--help`` keeps them from running."""
    assert main([*line.split(), "--help"]) == 0


def test_faults_told() -> None:
    """Every fault stands in the table of faults."""
    assert [kind for kind in KINDS if f"`{kind}`" not in TEXT] == []
