"""One run of one contestant: what it is given, how long it may take, and what came out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from replog.config import SYNC_LEVELS
from replog_bench.load import LoadResult
from replog_bench.processes import ChildFailed, Line

READY_SECONDS: Final = 15.0
"""How long the processes of a trial may take until the load can begin."""
END_SECONDS: Final = 10.0
"""How long the clients of a trial may take to end after the window."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of one contestant."""

    clients: int
    """Commands in flight."""
    value_bytes: int
    warm_up_seconds: float
    seconds: float
    directory: Path
    """Empty, and removed after the trial."""
    sync: str = SYNC_LEVELS[0]
    """One of the :data:`~replog.config.SYNC_LEVELS`."""

    @property
    def is_durable(self) -> bool:
        """Whether what is acknowledged survives a power cut."""
        return self.sync == SYNC_LEVELS[0]

    @property
    def lifetime_seconds(self) -> float:
        """When every process of the trial has ended, however it went."""
        return READY_SECONDS + self.load_seconds

    @property
    def load_seconds(self) -> float:
        """How long the load may take from its start to its result."""
        return self.warm_up_seconds + self.seconds + END_SECONDS


def load_result(line: Line) -> LoadResult:
    """What a process said about its load; a run in which commands failed measured nothing."""
    result = LoadResult(**line)  # type: ignore[arg-type]
    if result.errors:
        raise ChildFailed(f"{result.errors} clients failed, the first: {result.first_error}")
    if not result.operations:
        raise ChildFailed("nothing completed within the window; make it longer")
    return result
