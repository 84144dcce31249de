"""Every limit of a node, in one record, with the relations between them.

A queue that reaches its limit blocks or refuses; it does not grow.
"""

from __future__ import annotations

from typing import Final

from replog.types import record

KIB = 1024
MIB = 1024 * KIB

FOLLOW_MS: Final = 500
"""A read that has nothing to tell yet is answered so after so long, and asked again.  Clients take
a node that answers nothing for twice as long for one that may be frozen."""


@record
class Limits:
    """The limits of one node; ``[limits]`` in the configuration file sets them."""

    tick_ms: int = 50
    """Milliseconds per tick, the engines' unit of time."""
    command_bytes_max: int = 1 * MIB
    """The largest command payload that is accepted."""
    frame_bytes_max: int = 8 * MIB
    """The largest frame that is read from a peer or a client."""
    message_bytes_max: int = 1 * MIB
    """How many bytes of entries a leader puts into one message (at least one entry fits)."""
    in_flight_messages_max: int = 64
    """Unanswered append messages per peer."""
    in_flight_bytes_max: int = 16 * MIB
    """Unanswered bytes of entries per peer."""
    uncommitted_bytes_max: int = 64 * MIB
    """Bytes of proposed but uncommitted entries above which a leader refuses proposals."""
    unapplied_entries_max: int = 16_384
    """Commands that a leader has taken and not applied, and entries that are committed and not
    applied there, above which it refuses commands: it cannot follow."""
    unapplied_bytes_max: int = 128 * MIB
    """Bytes of the commands that a leader has taken and not applied above which it refuses more: it
    holds all of them in memory."""
    reads_max: int = 65_536
    """Reads that wait at a node for the index to read at, or for that to be applied; above it they
    are refused, and a leader lets its peers ask again."""
    read_wait_ms: int = 5_000
    """A read that could not be served for so long is refused."""
    query_reruns_max: int = 128
    """How often in a tick queries are run again that wait for something to tell, all together."""
    apply_entries_max: int = 1024
    """Entries handed to the state machine in one turn, so that heartbeats are not starved."""
    log_cache_bytes_max: int = 2 * MIB
    """What applied entries may take of memory, at 140 bytes each beside their own, to be at hand
    for slow peers; older ones are read back from the log."""
    peer_queue_bytes_max: int = 32 * MIB
    """Bytes queued for one slow peer before messages to it are dropped."""
    client_queue_bytes_max: int = 16 * MIB
    """Bytes of replies queued for one slow client before its connection is closed."""
    client_connections_max: int = 1024
    """Open client connections per node."""
    client_requests_max: int = 4096
    """Requests in flight per client connection."""
    sessions_max: int = 4096
    """Sessions of clients in the cluster; more are refused."""
    session_idle_ms_max: int = 3_600_000
    """A session that sends no command for so long, by the replicated time, is gone."""
    session_answers_max: int = 4096
    """Commands of one session whose answers its client has not said to have; more are refused."""
    session_answer_bytes_max: int = 1 * MIB
    """Bytes of those answers that are kept; one that does not fit is not given a second time."""
    sessions_bytes_max: int = 64 * MIB
    """The same for all sessions together; and where there are so many answers that they would take
    as much without their values, commands in sessions are refused but the lowest of each."""
    snapshot_entries: int = 1_000_000
    """A snapshot is taken when so many entries were applied since the last one, ..."""
    snapshot_log_bytes: int = 256 * MIB
    """... or so many bytes were written to the log."""
    trim_margin_entries: int = 50_000
    """How many entries in front of a snapshot's last are kept in the log, for slow peers."""
    snapshot_chunk_bytes: int = 1 * MIB
    """Bytes of a snapshot in one message to another node."""
    snapshot_bytes_per_second_max: int = 256 * MIB
    """Bytes of snapshots that a node reads to send them, for all peers together; at least one chunk
    leaves in each tick."""
    digest_compare_ms: int = 1_000
    """How often a node compares what it applied with its peers."""
    handshake_ms: int = 5_000
    """How long a new connection may take to say who it is."""
    connection_idle_ms: int = 10_000
    """A peer connection on which nothing arrives for so long is closed (half-open)."""

    @property
    def read_ticks_max(self) -> int:
        """``read_wait_ms`` in whole ticks, at least one."""
        return -(-self.read_wait_ms // self.tick_ms)

    @property
    def follow_ticks_max(self) -> int:
        """``FOLLOW_MS`` in whole ticks, at least one."""
        return -(-FOLLOW_MS // self.tick_ms)

    def problems(self) -> list[str]:
        """Every relation that does not hold, as ``key: sentence``."""
        found = [
            f"{name}: must be at least 1, not {value}"
            for name, value in ((name, getattr(self, name)) for name in LIMIT_NAMES)
            if value < 1
        ]
        found += [
            f"{name}: must be at most {_U32_MAX}, not {value}"
            for name, value in ((name, getattr(self, name)) for name in _OF_SESSIONS)
            if value > _U32_MAX
        ]
        overhead = 4 * KIB
        if self.command_bytes_max + overhead > self.frame_bytes_max:
            found.append(
                f"command_bytes_max: {self.command_bytes_max} and {overhead} bytes of overhead do "
                f"not fit into frame_bytes_max = {self.frame_bytes_max}"
            )
        if self.message_bytes_max + self.command_bytes_max + overhead > self.frame_bytes_max:
            found.append(
                f"message_bytes_max: {self.message_bytes_max} plus one command of "
                f"{self.command_bytes_max} do not fit into frame_bytes_max = {self.frame_bytes_max}"
            )
        if self.snapshot_chunk_bytes + overhead > self.frame_bytes_max:
            found.append(
                f"snapshot_chunk_bytes: {self.snapshot_chunk_bytes} and {overhead} bytes of "
                f"overhead do not fit into frame_bytes_max = {self.frame_bytes_max}"
            )
        if self.snapshot_chunk_bytes > self.snapshot_bytes_per_second_max:
            found.append(
                f"snapshot_bytes_per_second_max: {self.snapshot_bytes_per_second_max} is less than "
                f"one chunk (snapshot_chunk_bytes = {self.snapshot_chunk_bytes})"
            )
        if self.frame_bytes_max > self.peer_queue_bytes_max:
            found.append(
                f"peer_queue_bytes_max: {self.peer_queue_bytes_max} is less than one frame "
                f"(frame_bytes_max = {self.frame_bytes_max})"
            )
        if self.frame_bytes_max > self.client_queue_bytes_max:
            found.append(
                f"client_queue_bytes_max: {self.client_queue_bytes_max} is less than one frame "
                f"(frame_bytes_max = {self.frame_bytes_max})"
            )
        if self.command_bytes_max > self.uncommitted_bytes_max:
            found.append(
                f"uncommitted_bytes_max: {self.uncommitted_bytes_max} is less than one command "
                f"(command_bytes_max = {self.command_bytes_max})"
            )
        if self.command_bytes_max > self.unapplied_bytes_max:
            found.append(
                f"unapplied_bytes_max: {self.unapplied_bytes_max} is less than one command "
                f"(command_bytes_max = {self.command_bytes_max})"
            )
        return found


_OF_SESSIONS: Final = (
    "sessions_max",
    "session_idle_ms_max",
    "session_answers_max",
    "session_answer_bytes_max",
    "sessions_bytes_max",
)
"""They stand in the entries that open sessions, as 32 bits each."""

_U32_MAX: Final = (1 << 32) - 1

LIMIT_NAMES: tuple[str, ...] = tuple(Limits.__annotations__)
"""The names of all limits, in the order of the record."""
