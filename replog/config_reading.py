"""Take typed values out of a TOML file and gather every mistake on the way.

A value is taken by the path of its key, such as ``node[2].peer``, and is either of the kind that
was asked for or noted as a mistake; the reading goes on, so that one pass finds all of them.  What
keys there are, and what must hold between them, is not known here.
"""

from __future__ import annotations

import math
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Protocol, cast

from replog.address import Address
from replog.errors import AddressError, ConfigError
from replog.limits import MIB
from replog.plugins import closest, option_types

FILE_BYTES_MAX: Final = 1 * MIB
"""Many times what a real configuration has; more is the wrong file."""

_PROBLEM_CHARACTERS_MAX: Final = 1000
_INTEGER_BITS_MAX: Final = 63
_KIND_NAMES: Final[Mapping[type, str]] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    dict: "a table",
    list: "an array",
}


class Checked(Protocol):
    """A record that knows its own relations: ``Limits``, or an engine's options."""

    def problems(self) -> list[str]:
        """Every relation that does not hold, as ``key: sentence``."""


def read_document(source: str, path: Path) -> Mapping[str, object]:
    """The file as nested tables; raises :class:`~replog.errors.ConfigError`."""

    def fail(problem: str) -> ConfigError:
        return ConfigError(source, [problem])

    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise fail("is not a file; name the configuration file itself")
        if state.st_size > FILE_BYTES_MAX:
            raise fail(f"has {state.st_size} bytes; a configuration has at most {FILE_BYTES_MAX}")
        data = path.read_bytes()
    except FileNotFoundError:
        raise fail("there is no such file; `replog config example` prints one") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise fail(f"cannot be read: {reason}") from None
    if data.startswith(b"\xef\xbb\xbf"):
        raise fail("begins with a byte order mark; save it as plain UTF-8")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise fail(f"is not UTF-8 text: a bad byte in line {line}; save it as UTF-8") from None
    except ValueError as error:
        # Mostly TOMLDecodeError, which tells line and column; an absurd number is a bare one.
        raise fail(f"is not valid TOML: {error}") from None
    except RecursionError:
        raise fail("is not valid TOML for us: its arrays or tables are nested too deep") from None


class Reading:
    """Takes values out of a file's tables and gathers every mistake on the way."""

    def __init__(self, parent: Path) -> None:
        self.parent = parent
        """What relative directories are relative to."""
        self.problems: list[str] = []

    def add(self, key: str, sentence: str) -> None:
        """Note one mistake, as one line that is safe to print whatever the file holds."""
        problem = f"{key}: {sentence}"
        if len(problem) > _PROBLEM_CHARACTERS_MAX:
            problem = problem[:_PROBLEM_CHARACTERS_MAX] + "..."
        if not problem.isprintable():
            problem = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in problem)
        self.problems.append(problem)

    def unknown(self, key: str, table: Mapping[str, object], known: Iterable[str]) -> None:
        """Note every key of the table that means nothing."""
        known = list(known)
        for name in table:
            if name not in known:
                hint = closest(name, known) or f"; the keys here are {', '.join(known)}"
                self.add(f"{key}.{name}" if key else name, f"is unknown{hint}")

    def value(self, key: str, value: object, kind: type) -> object | None:
        """The value if it is of that kind, else ``None`` and a mistake."""
        if kind is float and type(value) is int:
            value = float(value) if value.bit_length() <= _INTEGER_BITS_MAX else math.inf
        if type(value) is not kind:  # An exact match, because a bool is an int.
            self.add(key, f"must be {_KIND_NAMES[kind]}, not {_shown(value)}")
        elif isinstance(value, int) and value.bit_length() > _INTEGER_BITS_MAX:
            self.add(key, "does not fit into 64 bits")
        elif isinstance(value, float) and not math.isfinite(value):
            self.add(key, f"must be a finite number, not {value}")
        else:
            return value
        return None

    def table(self, key: str, value: object) -> Mapping[str, object]:
        """The table; an empty one if it is missing, or, with a mistake, if it is none."""
        if value is None:
            return {}
        found = self.value(key, value, dict)
        return {} if found is None else cast("Mapping[str, object]", found)

    def text(self, key: str, table: Mapping[str, object], example: str) -> str | None:
        """The string behind the last name of ``key``; a mistake if it is missing."""
        name = key.rpartition(".")[2]
        if name not in table:
            self.add(key, f'is missing; write for example {name} = "{example}"')
            return None
        return cast("str | None", self.value(key, table[name], str))

    def address(self, key: str, table: Mapping[str, object], example: str) -> Address | None:
        """The address behind the last name of ``key``."""
        text = self.text(key, table, example)
        try:
            return None if text is None else Address.parse(text)
        except AddressError as error:
            self.add(key, str(error))
            return None


def read_record(reading: Reading, key: str, table: Mapping[str, object], made: type) -> Checked:
    """An instance of a record class whose fields are the keys of the table."""
    types = option_types(made)
    reading.unknown(key, table, types)
    values: dict[str, object] = {}
    wrong: list[str] = []
    for name in types:
        if name not in table:
            continue
        value = reading.value(f"{key}.{name}", table[name], types[name])
        if value is None:
            wrong.append(name)
        else:
            values[name] = value
    found: Checked = made(**values)
    for problem in found.problems():
        # A wrong value stands at its default here, so a relation with it would mislead.
        if not set(wrong).intersection(re.findall(r"\w+", problem)):
            reading.problems.append(f"{key}.{problem}")
    return found


def _shown(value: object) -> str:
    """A wrong value, short enough for a sentence and spelled as in the file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        return _KIND_NAMES[type(value)]
    text = repr(value) if isinstance(value, str) else str(value)
    shown = text if len(text) <= 40 else text[:37] + "..."
    return f"the string {shown}" if isinstance(value, str) else shown
