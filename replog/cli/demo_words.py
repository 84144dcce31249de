"""The demonstration's input: the words of a text, as writes to a replicated store.

The n-th occurrence of a word becomes the key ``word#n``, and its value is the position in the text,
``line:word``.  So every write has a key and a value of its own: the count of a word is the number
of its keys, and each write that was acknowledged can be looked up for ever after.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final, TypeAlias

import replog
from replog.errors import CallerError

Put: TypeAlias = tuple[str, bytes]
"""One write: a key, and the value that no other write has."""

_Documented: TypeAlias = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

SEPARATOR: Final = "#"
"""Between a word and the number of its occurrence; no word holds it."""

_WORD: Final = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")  # noqa: RUF001
_WORD_CHARACTERS_MAX: Final = 64
"""What is longer is no word that anybody counts; it is cut, so that keys stay short."""


def lines_of_file(path: Path) -> Sequence[str]:
    """The lines of a text file; raises :class:`~replog.errors.CallerError` if it has no word."""
    try:
        text = path.read_bytes().decode(errors="replace")
    except OSError as error:
        raise CallerError(f"{path} cannot be read: {error.strerror or error}") from error
    if _WORD.search(text) is None:
        raise CallerError(f"{path} holds no words; name a text to count the words of")
    return text.splitlines()


def lines_of_replog() -> Sequence[str]:
    """The licence and the docstrings of the installed package: a text that is always there."""
    lines: list[str] = []
    try:
        licence = metadata.distribution("replog").read_text("licenses/LICENSE")
    except metadata.PackageNotFoundError:
        licence = None
    lines += (licence or "").splitlines()
    for path in sorted(Path(replog.__file__).parent.rglob("*.py")):
        for node in _documented(ast.parse(path.read_bytes())):
            lines += (ast.get_docstring(node) or "").splitlines()
    return lines


def _documented(node: _Documented) -> Iterator[_Documented]:
    """A module or class, and what its body defines; what a function hides is nobody's text."""
    yield node
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _documented(child)


def puts_of(lines: Sequence[str], repeat: bool) -> Iterator[Put]:
    """The writes of a text, once or without end; line numbers go on when it is repeated."""
    occurrences: Counter[str] = Counter()
    line_number = 0
    while True:
        for line in lines:
            line_number += 1
            for position, match in enumerate(_WORD.finditer(line), start=1):
                word = match.group().lower()[:_WORD_CHARACTERS_MAX]
                occurrences[word] += 1
                yield f"{word}{SEPARATOR}{occurrences[word]}", b"%d:%d" % (line_number, position)
        if not repeat:
            return


def words_in(lines: Sequence[str]) -> int:
    """How many words the text has."""
    return sum(len(_WORD.findall(line)) for line in lines)
