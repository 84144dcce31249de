"""What was hunted already: a file that makes a hunt go on where an earlier one was interrupted.

All mutants take more than an hour, so what became of each is written down when it is known, as a
line of JSON.  Its first line says what was hunted and how: with another tree, or other seeds, the
file is begun anew, and the one before is kept beside it.  A mutant whose patch was changed since is
hunted again, and so is one whose hunt failed, or whose line is damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeAlias

from mutants import Mutant

_KEYS: Final = frozenset({"mutant", "patch", "findings", "seconds", "goals"})

Line: TypeAlias = Mapping[str, Any]
"""What the hunt for one mutant came to, as JSON has it."""


def digest_of(parts: Iterable[bytes]) -> str:
    """One text for all parts together, in their order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8))
        digest.update(part)
    return digest.hexdigest()[:16]


def tree_digest(folder: Path) -> str:
    """One text for the code of all packages in a folder, by their names and bytes."""
    files = sorted(folder.rglob("*.py"))
    parts = [(str(file.relative_to(folder)).encode(), file.read_bytes()) for file in files]
    return digest_of(part for pair in parts for part in pair)


class Journal:
    """A file of hunts; not to be used by two at a time."""

    def __init__(self, path: Path, subject: str) -> None:
        """Read ``path``; if it is of another ``subject`` than this, or says of none, it is kept
        under the name with ``.before``."""
        head, lines = {"subject": subject}, _read(path)
        if path.exists() and lines[:1] != [head]:
            path.replace(path.with_name(f"{path.name}.before"))
            lines = []
        kept = [line for line in lines if line.keys() >= _KEYS]
        self._lines = {(line["mutant"], line["patch"]): line for line in kept}
        beside = path.with_name(f"{path.name}.new")
        self._file = beside.open("w", encoding="utf-8")
        for line in (head, *kept):
            self._write(line)
        beside.replace(path)

    def find(self, mutant: Mutant) -> Line | None:
        """What became of a mutant when it was hunted before."""
        return self._lines.get((mutant.title, _patch_digest(mutant)))

    def add(self, mutant: Mutant, line: Line) -> None:
        """Write down what became of a mutant."""
        self._write({"mutant": mutant.title, "patch": _patch_digest(mutant), **line})

    def __enter__(self) -> Journal:
        """Itself, to be closed at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _write(self, line: Line) -> None:
        self._file.write(f"{json.dumps(line)}\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _patch_digest(mutant: Mutant) -> str:
    return digest_of([json.dumps(asdict(mutant)).encode()])


def _read(path: Path) -> list[Line]:
    """The lines that can be read."""
    lines: list[Line] = []
    for content in path.read_bytes().splitlines() if path.exists() else ():
        with suppress(ValueError):
            line = json.loads(content)
            if isinstance(line, dict):
                lines.append(line)
    return lines
