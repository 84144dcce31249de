"""Mutants: the code with one fault each, as an honest mistake would make it.

They are the measure of the checkers: one that finds no planted fault proves nothing by finding no
other.  A mutant is a patch of a few lines in one of the files ``raft.toml``, ``multipaxos.toml``
and ``shared.toml`` (its *kind*); it exists only in copies of the code that ``run.py`` makes.  This
module reads the patches and makes the copies; the checkout stays as it is.

A patch that would be made in another place than was meant is worse than none.  So ``within`` (the
head of a definition, say) must be in its file exactly once, and ``old`` exactly once from there to
the next definition; without ``within``, once in the whole file.
"""

from __future__ import annotations

import re
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).resolve().parent
ROOT: Final = FOLDER.parents[1]
ENGINES: Final = ("raft", "multipaxos")
KINDS: Final = (*ENGINES, "shared")
NAME_OF_NONE: Final = "none"
"""What the unchanged code is called where mutants are named."""

_DEFINITION: Final = re.compile(r"^ *(?:async def|def|class|@)\b", re.MULTILINE)


class Misfit(Exception):
    """A patch does not fit the code any more."""


@dataclass(frozen=True)
class Change:
    """One place of the code, and what it is replaced by."""

    file: str
    """From the package's name on, as in ``replog_raft/raft.py``."""
    within: str
    """Where to begin; may be empty."""
    old: str
    new: str

    def apply(self, text: str) -> str:
        """``text`` with the change made; raises :class:`Misfit` when its place is not clear."""
        start, end = 0, len(text)
        if self.within:
            start = self._only(text, self.within, 0, end)
            following = _DEFINITION.search(text, start + len(self.within))
            end = following.start() if following else end
        at = self._only(text, self.old, start, end)
        return text[:at] + self.new + text[at + len(self.old) :]

    def _only(self, text: str, part: str, start: int, end: int) -> int:
        count = text.count(part, start, end)
        if count != 1:
            raise Misfit(f"{self.file}: {part!r} is there {count} times, and must be there once")
        return text.index(part, start)


@dataclass(frozen=True)
class Mutant:
    """One fault."""

    name: str
    """Its own within the kind."""
    kind: str
    """``raft``, ``multipaxos``, or ``shared``: in a part that all engines use."""
    what: str
    """What is wrong, as a sentence."""
    changes: tuple[Change, ...]
    survives: str
    """Why nothing finds it, if that is known and right; else empty."""
    guard: str
    """Of one that survives, the test that fails on it, as pytest names it; else empty."""

    @property
    def title(self) -> str:
        """What it is called among all: engines may share a mistake."""
        return f"{self.kind}/{self.name}"

    @property
    def engines(self) -> tuple[str, ...]:
        """The engines with which it is hunted."""
        return ENGINES if self.kind == "shared" else (self.kind,)


NONE: Final = tuple(
    Mutant(NAME_OF_NONE, engine, "Nothing is wrong.", (), "", "") for engine in ENGINES
)
"""The unchanged code, with each engine."""


def load_mutants() -> tuple[Mutant, ...]:
    """The mutants of all kinds, in the order of the files."""
    return tuple(
        mutant
        for kind in KINDS
        for mutant in read_mutants((FOLDER / f"{kind}.toml").read_text(encoding="utf-8"), kind)
    )


def read_mutants(text: str, kind: str) -> list[Mutant]:
    """The mutants in the text of a file of patches."""
    found: list[Mutant] = []
    for row in tomllib.loads(text)["mutant"]:
        rows = row.get("change", [row])
        changes = tuple(
            Change(each["file"], each.get("within", ""), each["old"], each["new"]) for each in rows
        )
        survives, guard = row.get("survives", ""), row.get("guard", "")
        found.append(Mutant(row["name"], kind, row["what"], changes, survives, guard))
    return found


def packages() -> dict[str, Path]:
    """The packages in which a fault can be, and where the checkout has them."""
    engines = sorted((ROOT / "engines").glob("replog_*"))
    return {path.name: path for path in (ROOT / "replog", *engines)}


def take_snapshot(target: Path) -> None:
    """Copy the packages, so that what is edited meanwhile is in no mutant or in all."""
    for name, path in packages().items():
        shutil.copytree(path, target / name)


def make_copy(mutant: Mutant, snapshot: Path, target: Path) -> None:
    """Make the mutant: a copy of the packages with its changes.  Raises :class:`Misfit`."""
    shutil.copytree(snapshot, target)
    for change in mutant.changes:
        changed = target / change.file
        changed.write_text(change.apply(changed.read_text(encoding="utf-8")), encoding="utf-8")
        # Compiled code is told apart by time and size alone, which the change may have kept.
        for compiled in (changed.parent / "__pycache__").glob(f"{changed.stem}.*"):
            compiled.unlink()
