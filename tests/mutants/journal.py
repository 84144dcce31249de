"""What was hunted already: a file that makes a hunt go on where an earlier one was interrupted.

All mutants take more than an hour, so what became of each is written down when it is known, as a
line of JSON.  Its first line says what was hunted and how: with another tree, or other seeds, the
file is begun anew.  A mutant whose patch was changed since is hunted again, and so is one whose
hunt failed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from mutants import Mutant

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
        """Read ``path``, or begin it anew if it is of another ``subject`` than this, or damaged in
        its first line; a line at the end that was cut off is left out."""
        self._lines: dict[tuple[str, str], Line] = {}
        kept = _read(path)
        head = {"subject": subject}
        if not kept or kept[0] != head:
            kept = [head]
        for line in kept[1:]:
            self._lines[line["mutant"], line["patch"]] = line
        beside = path.with_name(f"{path.name}.new")
        self._file = beside.open("w", encoding="utf-8")
        for line in kept:
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
    """The lines that are whole, up to the first that is none."""
    lines: list[Line] = []
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    for line in text.splitlines(keepends=True):
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
