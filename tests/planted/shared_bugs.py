"""What a planted bug is, and the bugs that are the same for every engine.

A bug is a function that replaces a piece of an engine, or of a part that engines share, for the
time of a test, as an honest mistake would; its docstring says what is wrong.  Each is written once
and named for what goes wrong, and may be planted by every suite that must see it.  Which of its
scenarios, bounds or rules is to find it, each suite says for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest

from replog.progress import Progress
from replog.types import LogIndex, PeerState

Bug: TypeAlias = Callable[[pytest.MonkeyPatch], None]


def sent_at_once(patch: pytest.MonkeyPatch, engine: type, message_type: type) -> None:
    """Let messages of a type leave before the sync."""
    send, right = vars(engine)["send"], vars(engine)["send_after_sync"]

    def wrong(sender: object, message: object) -> None:
        (send if isinstance(message, message_type) else right)(sender, message)

    patch.setattr(engine, "send_after_sync", wrong)


# -- what a leader knows of a peer --


def sent_taken_for_held(patch: pytest.MonkeyPatch) -> None:
    """A leader takes what it sent for what its peer holds."""
    right = Progress.handle_sent

    def wrong(progress: Progress, last_index: LogIndex, size_bytes: int) -> None:
        right(progress, last_index, size_bytes)
        progress.match_index = progress.next_index - 1

    patch.setattr(Progress, "handle_sent", wrong)


def window_ignored(patch: pytest.MonkeyPatch) -> None:
    """A leader sends on however much is unanswered."""

    def wrong(progress: Progress) -> bool:
        return progress.state is PeerState.PROBE and progress._probe_sent

    patch.setattr(Progress, "is_paused", property(wrong))


def bytes_window_ignored(patch: pytest.MonkeyPatch) -> None:
    """A leader counts messages, and not their bytes."""
    right = Progress.handle_sent
    patch.setattr(Progress, "handle_sent", lambda self, last, _: right(self, last, 0))


def every_other_counted(patch: pytest.MonkeyPatch) -> None:
    """A leader counts every other message that it sends."""
    right = Progress.handle_sent

    def wrong(progress: Progress, last_index: LogIndex, size_bytes: int) -> None:
        right(progress, last_index, size_bytes)
        if progress.state is PeerState.REPLICATE and last_index % 2:
            progress._in_flight_bytes -= progress._in_flight.pop()[1]

    patch.setattr(Progress, "handle_sent", wrong)
