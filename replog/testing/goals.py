"""Goals: what a set of random runs must have come to at least once, or it proves little.

A run in which no leader changed shows nothing about changes of leaders, however green it is.  So
whoever watches a run (the simulator, the checks of an engine) says when something worth seeing
happened, and the seeds in which it did are counted per goal (``replog sim`` prints them).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

COMMON: Final[dict[str, str]] = {
    "leader_changed": "a second node (or term) had a leader",
    "leadership_transferred": "a leader was told to hand over, and the next leader was that node",
    "duplicate_ack_ignored": "an acknowledgement arrived a second time at the leader that had it",
    "crash_between_write_and_sync": "a node crashed with a write on its way to disk",
    "unknown_outcome": "a client was told that the outcome of its command is unknown",
    "crowd_refused": "a node refused a command, because too many waited to be proposed",
    "deaf_node_disturbed_nobody": "in calm the leader alone could not reach a node, and led on",
    "lone_leader_gave_up": "in calm a leader that was cut off from everybody gave up",
    "vain_transfer_called_off": "in calm a transfer to a node that was cut off came to nothing",
}
"""The goals that every engine can come to."""

ON_FILES: Final[dict[str, str]] = {
    "torn_tail_cut": "a node found the remains of a torn group in its log and cut them off",
    "damaged_log_refused": "a node refused to start on a log with a flipped bit",
}
"""The goals of runs over the real log."""


class Goals:
    """The goals of one run, and which of them it came to."""

    __slots__ = ("_reached", "sentences")

    def __init__(self, sentences: Mapping[str, str]) -> None:
        self.sentences = dict(sentences)
        """What each goal means, by its name."""
        self._reached: dict[str, None] = {}

    def reach(self, name: str) -> None:
        """The run came to the goal ``name``; said as often as it happens."""
        assert name in self.sentences, f"{name} is no goal of this run"
        self._reached[name] = None

    @property
    def reached(self) -> list[str]:
        """The names of the goals that the run came to, in the order of their sentences."""
        return [name for name in self.sentences if name in self._reached]
