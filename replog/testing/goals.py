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
    "power_cut": "the power was cut at a node, and took something that was written and not synced",
    "process_crash": "a process alone crashed, and what it had written and not synced stayed",
    "unknown_outcome": "a client was told that the outcome of its command is unknown",
    "retry_deduplicated": "a command was sent again, and its client was told the first answer",
    "answer_outlived_restart": "... by a node that was started again since, and kept it",
    "late_copy_refused": "a copy of a command that was acknowledged came late, and was refused",
    "session_expired": "a client's session was gone by the replicated time, and it was told so",
    "full_session_refused": "a command was refused, because its session kept too many answers",
    "full_sessions_refused": "a command was refused, because all sessions kept too many answers",
    "closed_session_refused": "a copy came to a session that was closed, and was refused",
    "done_in_its_term": "a command for one term only was done in it",
    "term_changed": "... was refused, as another term had begun",
    "read_served_by_follower": "a node that does not lead served a linearizable query",
    "read_refused": "a linearizable query was refused, for want of a leader that is one still",
    "lease_read_served": "a leader served a query by its lease, and asked nobody",
    "lease_expired_before_rival_led": (
        "a lease ran out by its holder's clock, which led on, before another node led"
    ),
    "log_followed_over_a_crash": "a reader of the log went on at a node that had crashed meanwhile",
    "log_reader_fell_behind": "a reader of the log was told that it begins later by now",
    "watch_resumed": "a watcher whose node had crashed was told what was changed since",
    "watch_fell_behind": "a watcher was told that what it asks for is not remembered any more",
    "divergence_found": "a node found that it is in another state than the others, and stopped",
    "first_difference_named": "... and named the very entry from which on it is",
    "crowd_refused": "a node refused a command, because too many waited to be proposed",
    "overload_refused": "a leader refused a command, because too much was taken and not applied",
    "full_disk_refused": "a leader refused a command, because its disk was full",
    "full_disk_recovered": "a node whose disk was full wrote to it again, without a restart",
    "deaf_node_disturbed_nobody": "in calm the leader alone could not reach a node, and led on",
    "lone_leader_gave_up": "in calm a leader that was cut off from everybody gave up",
    "leader_overtaken": "in calm a leader was cut off and overtaken, and became as the others are",
    "overtaken_leader_filled": "... and what it lacked had been trimmed, so it was filled",
    "snapshot_taken": "a node took a snapshot of its machine",
    "snapshot_installed": "a node was filled from a snapshot that another one sent",
    "log_trimmed_under_laggard": "a leader trimmed what one of its peers still lacked",
    "transfer_resumed": "a snapshot went on arriving from where it had broken off",
    "started_from_snapshot": "a node began a run with a machine filled from a snapshot",
    "cluster_formed": "nodes that had not met each other formed a cluster",
    "learner_admitted": "the entry that takes in a new incarnation of a node was committed",
    "learner_began_with_backup": "a new incarnation of a node began with a backup of another one",
    "learner_caught_up_by_log": "a learner applied all that was committed, entry after entry",
    "learner_caught_up_by_snapshot": "a learner applied all that was committed, from a snapshot on",
    "replaced_node_stopped": "a node heard that another incarnation took its place, and stopped",
    "rejoined_twice": "a learner lost its disk, and came back under a third incarnation",
    "vain_transfer_called_off": "in calm a transfer to a node that was cut off came to nothing",
}
"""The goals that every engine can come to."""

ON_FILES: Final[dict[str, str]] = {
    "torn_tail_cut": "a node found the remains of a torn group in its log and cut them off",
    "damaged_log_refused": "a node refused to start on a log with a flipped bit",
    "unsynced_log_recovered": "a node at the sync level os lost nothing by a crash of its process",
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
