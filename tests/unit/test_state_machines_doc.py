"""What ``docs/state-machines.md`` shows works as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "state-machines.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_programs_found() -> None:
    """There is a program for each kind of machine, one for a machine that keeps answers, and one
    for a machine that is watched."""
    assert len(PROGRAMS) == 7


@pytest.mark.parametrize("number", range(6))
def test_program_runs(number: int) -> None:
    """Each program runs to its end, with its own checks holding."""
    where = f"docs/state-machines.md, program {number}"
    exec(compile(PROGRAMS[number], where, "exec"), {"__name__": "x"})
