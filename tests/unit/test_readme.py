"""The embedding program in the README runs as it is shown."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def python_block(containing: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    (block,) = [block for block in blocks if containing in block]
    return str(block)


def run(program: str, folder: Path) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return ended.stdout


def test_embedding_example_survives_its_program(tmp_path: Path) -> None:
    """The embedding example counts to 3, and in a second run to 6."""
    program = python_block("class Counter")
    assert "the total is 3\n" in run(program, tmp_path)
    assert "the total is 6\n" in run(program, tmp_path)


def test_embedding_example_is_short() -> None:
    """The embedding example has about 20 lines of code."""
    lines = [line for line in python_block("class Counter").splitlines() if line.strip()]
    assert len(lines) <= 20
