"""The switch that writes the golden traces anew."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Known only when pytest is started on this folder, so that nobody rewrites by accident."""
    parser.addoption(
        "--rewrite", action="store_true", default=False, help="write the golden traces anew"
    )
