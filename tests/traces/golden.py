"""The text of a golden trace: what one should see, and the trace."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from replog.testing.cluster import Cluster

COLUMNS = "# tick node event      details"


def golden_text(scenario: Callable[[], Cluster]) -> str:
    """The whole file of a scenario: its docstring, and the trace of its run."""
    head = [f"# {line}".rstrip() for line in (inspect.getdoc(scenario) or "").splitlines()]
    return "\n".join([*head, "#", COLUMNS, ""]) + scenario().trace.text()
