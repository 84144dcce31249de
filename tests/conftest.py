"""Freezes the records for the whole session and marks the tests that open sockets."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from replog.testing import freeze_records

_NET_FOLDERS = ("net", "demo")
SAID = "said"
_TESTS = Path(__file__).resolve().parent


def pytest_configure() -> None:
    """Freeze what exists before the first test module is imported."""
    freeze_records()


def pytest_collection_finish() -> None:
    """Have the garbage collector leave alone what was imported and collected, and come seldom:
    there is a lot of that, and simulations would be held up by it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)


def pytest_runtest_setup() -> None:
    """Freeze the records of modules that were imported since."""
    freeze_records()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests recorded for people under the name ``said``, whichever process ran them."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, text in getattr(report, "user_properties", ()):
            if name == SAID:
                terminalreporter.write_line(str(text))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in the folders of real processes carries the ``net`` mark."""
    for item in items:
        if item.path.relative_to(_TESTS).parts[0] in _NET_FOLDERS:
            item.add_marker(pytest.mark.net)
