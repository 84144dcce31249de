"""What the options of ``python -m replog_bench`` may be, and the line that shows how far it is."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias

from replog import plugins
from replog.limits import MIB
from replog_bench.load import VALUE_BYTES_MIN

SECONDS_MAX = 3600

Commands: TypeAlias = "argparse._SubParsersAction[OneLineParser]"


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"replog_bench: {message}; see `{self.prog} --help`\n")


def whole(text: str, least: int, most: int) -> int:
    """A whole number within bounds."""
    if not text.strip().isdecimal() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
    return int(text)


def positive(text: str) -> int:
    """A count."""
    return whole(text, 1, 1_000_000)


def value_bytes(text: str) -> int:
    """The size of a command."""
    return whole(text, VALUE_BYTES_MIN, MIB)


def seconds(text: str) -> float:
    """A duration."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time from 0 to {SECONDS_MAX} s")
    return number


def counts(text: str) -> list[int]:
    """Whole numbers above 0, separated by commas."""
    return [positive(part) for part in text.split(",")]


def chosen_engines(given: argparse.Namespace) -> Sequence[str]:
    """The engines that ``--engines`` names, all that are installed without it; raises
    :class:`~replog.errors.PluginError` for one that is not."""
    engines: Sequence[str] = plugins.engine_names() if given.engines is None else given.engines
    for engine in engines:
        plugins.find_engine(engine)
    return engines


def names(text: str) -> list[str]:
    """Names, separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def directory(text: str) -> Path:
    """A directory that exists."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a directory; make it first")
    return path


def new_file(text: str) -> Path:
    """A file that can be written."""
    path = Path(text)
    try:
        path.write_text("", encoding="utf-8")
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"{text} cannot be written: {error.strerror or error}"
        ) from error
    return path


def show_progress(text: str) -> None:
    """One line on a terminal, replaced by the next; nothing elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
