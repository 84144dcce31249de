"""The errors of replog, in three families.

* **The caller's** (:class:`CallerError`): something asked for cannot be had.  Returned to the
  caller; one sentence that names the thing and the remedy.  Proposals end in exactly one of three
  outcomes: *done* (a result), *definitely not done* (:class:`NotDone`) or *unknown*
  (:class:`OutcomeUnknown`).
* **A peer's** (:class:`PeerError`): bytes that no correct peer sends.  The connection is closed.
* **Ours** (:class:`FatalError`): going on would endanger safety.  The node stops; never caught.

Stale messages are not errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

REJOIN_REMEDY: Final = "move the node's directory away and bring it back with `replog rejoin`"
"""What to do with a node whose log forgot something: it must not vote any more."""


class ReplogError(Exception):
    """The root of every error that replog raises on purpose."""

    def __reduce__(self) -> tuple[object, ...]:
        """An error can be copied, and sent to another process of the program, as it is: without
        its class being called again, which makes the message from other things."""
        return _remade, (type(self), self.args), vars(self)


def _remade(kind: type[ReplogError], args: tuple[object, ...]) -> ReplogError:
    return kind.__new__(kind, *args)


class CallerError(ReplogError):
    """Something asked for cannot be had; the message says what and what to do about it."""


class ConfigError(CallerError):
    """The configuration is wrong; ``problems`` holds every mistake, each with its key's path."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.source = source
        self.problems = problems
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))


class PluginError(CallerError):
    """A named engine, storage or state machine is not installed, or is not what it claims."""


class DirectoryError(CallerError):
    """A node's directory is missing, populated, in use, or belongs to somebody else."""


class AddressError(CallerError):
    """An address cannot be listened on or connected to."""


class PlatformError(CallerError):
    """The operating system lacks what durability needs."""


class NotDone(CallerError):
    """The proposal was definitely not done and never will be; it may be sent again safely."""


class NotLeader(NotDone):
    """This node does not lead; ``leader_id`` is its best hint (0: it knows none)."""

    def __init__(self, node_id: int, leader_id: int) -> None:
        self.node_id = node_id
        self.leader_id = leader_id
        hint = f"node {leader_id} does" if leader_id else "it knows no leader at the moment"
        super().__init__(f"node {node_id} does not lead the cluster; {hint}")


class Overloaded(NotDone):
    """A limit is reached, so the command was not done: but for :class:`SessionFull` it was not even
    proposed; try again a little later.

    ``retry_after_ms``: before so many milliseconds have passed, asking again is of no use; 0: the
    node does not say.
    """

    def __init__(self, message: str, retry_after_ms: int = 0) -> None:
        self.retry_after_ms = retry_after_ms
        super().__init__(message)


class DiskFull(Overloaded):
    """The leader's disk has no room for more entries; try again a little later: another node leads
    then, if one has room."""


class SessionFull(Overloaded):
    """The session keeps as many answers as it may, or all sessions together do, so the command was
    not done this time; the lowest one that the session awaits is done at any rate."""


class CommandTooLarge(NotDone):
    """The command exceeds ``limits.command_bytes_max``."""

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        super().__init__(
            f"the command has {size_bytes} bytes, above limits.command_bytes_max = {limit_bytes}"
        )


class BadCommand(NotDone):
    """The command cannot be decoded, or the state machine has none of that name and shape."""


class QueryFailed(NotDone):
    """The state machine raised an error in a query that it did not declare; nothing was changed."""


class EntryReplaced(NotDone):
    """Another entry was committed at the index of the proposal."""


class NodeActive(NotDone):
    """A node is to be taken in anew that is there under its present incarnation."""

    def __init__(self, node_id: int) -> None:
        self.node_id = node_id
        super().__init__(
            f"node {node_id} was heard a moment ago, so it is not lost: stop it, and if its "
            "directory is to be given up, remove that"
        )


class SessionExpired(NotDone):
    """The session was idle for too long, was closed, or never was: the command was not done this
    time.  Whether an earlier copy of it was done is not known here."""

    def __init__(self, session_id: int) -> None:
        self.session_id = session_id
        super().__init__(
            f"the cluster does not know session {session_id} (any more), so the command was not "
            "done this time; open another session"
        )


class StaleSequence(NotDone):
    """A command whose answer its client has said to have, or that it has given up: it is not done
    (again)."""

    def __init__(self, session_id: int, sequence: int, lowest: int) -> None:
        super().__init__(
            f"command {sequence} of session {session_id} is below {lowest}, the lowest whose "
            "answer the client awaits, so it was not done this time"
        )


class TermChanged(NotDone):
    """A command that was to be done in one term only, and came up when another one had begun."""

    def __init__(self, expected: tuple[int, int], found: tuple[int, int]) -> None:
        """Both are an epoch and a term: what the command expected, and the highest one of which an
        entry was applied, the command's own included."""
        self.expected = expected
        self.found = found
        super().__init__(
            f"the command was to be done in term {expected[1]} of epoch {expected[0]}, and came up "
            f"in term {found[1]} of epoch {found[0]}, so it was not done; look at what was done "
            "since, and propose it in the present term"
        )

    @property
    def is_final(self) -> bool:
        """Whether the term is over, so that no copy of the command can be done any more."""
        return self.found > self.expected


class Unavailable(NotDone):
    """No node could be reached, or none leads, within the deadline; nothing was sent."""


class Refused(Unavailable):
    """Every address answered, and each that it will not do: asking again would change nothing."""


class DumpUnavailable(CallerError):
    """The state machine cannot show its state; the message says what to add to it."""


class SnapshotUnavailable(CallerError):
    """The state machine cannot be snapshotted as it is; the message says what to add to it."""


class NotYet(ReplogError):
    """Raised by a query that has nothing to tell as long as nothing more is applied.

    It is run again when the entry ``at_index`` is applied, and whenever it raises this anew; when
    it has waited for :data:`~replog.limits.FOLLOW_MS`, ``result`` is its result.
    """

    def __init__(self, at_index: int, result: object) -> None:
        self.at_index = at_index
        self.result = result
        super().__init__(f"there is nothing to tell before entry {at_index} is applied")


class Compacted(CallerError):
    """An index is asked for that was cut off behind a snapshot; ``first_available`` is the first
    that is still there."""

    def __init__(self, first_available: int) -> None:
        self.first_available = first_available
        super().__init__(
            f"the entries below {first_available} were removed, for a snapshot holds what they "
            f"came to; begin at {first_available}, or with the state"
        )


class FellBehind(CallerError):
    """Who watches a state machine asks for changes that it does not remember any more; all at the
    index ``first_available`` and later are known."""

    def __init__(self, first_available: int) -> None:
        self.first_available = first_available
        super().__init__(
            f"the changes below index {first_available} are not known any more; read the state, "
            "and watch from behind the index as of which it was read"
        )


class StorageFull(CallerError):
    """The disk has no room for a group of writes.  Nothing of it counts, nothing is poisoned: it
    stays the next group to be persisted, and is persisted again when there is room."""


class SnapshotFailed(CallerError):
    """A snapshot could not be written for lack of room; what was written of it was removed, and the
    node goes on with its log and the snapshots that it has."""


class SnapshotGone(CallerError):
    """A snapshot that was listed was removed or replaced by another one since; take the newest."""


class BackupError(CallerError):
    """A backup cannot be written where it was asked for, or a file is none, or not one for this
    cluster; nothing was made."""


class OutcomeUnknown(CallerError):
    """The command may or may not have been done: the leader was lost or the deadline passed."""


class StateMachineError(ReplogError):
    """Base of the errors that a state machine declares: they are replicated *results*.

    Raise a subclass in a command and every replica computes the same outcome; the caller gets it
    back as :class:`CommandFailed` (or, embedded, as the very exception).  Any other exception in a
    command stops the node.
    """


class CommandFailed(StateMachineError):
    """The command was applied and its result is the declared error ``name``."""

    def __init__(self, name: str, message: str) -> None:
        self.name = name
        super().__init__(message)


class InvalidCommand(StateMachineError):
    """An entry holds no command of this state machine: the replicated twin of ``BadCommand``.

    Admission refuses such a payload, but a hostile or newer client may get one into the log; every
    replica then computes this result and goes on.
    """


class InvalidResult(StateMachineError):
    """The command was applied, but what it returned cannot travel to the client."""


class PeerError(ReplogError):
    """Bytes that no correct peer sends; the connection is closed and counted."""


class FrameError(PeerError):
    """A frame's magic, version, length or checksum is wrong."""


class SchemaError(PeerError):
    """A frame's content does not have the shape that its type promises."""


class HandshakeError(PeerError):
    """The other side is not who we want to talk to; the message says why."""


class DirectoryRemade(HandshakeError):
    """A node comes with another directory than the one under which it was met: it has forgotten
    what the first one voted and acknowledged."""

    def __init__(self, node_id: int) -> None:
        self.node_id = node_id
        super().__init__(
            f"node {node_id}'s directory was made anew: it has forgotten what it voted; bring it "
            "back with `replog rejoin`"
        )


class SnapshotMisplaced(PeerError):
    """A piece of a snapshot does not go on where the last one ended; ``offset`` says where to go
    on."""

    def __init__(self, sentence: str, offset: int) -> None:
        self.offset = offset
        super().__init__(sentence)


class FatalError(ReplogError):
    """Going on would endanger safety: the node stops."""


class LogDamaged(FatalError):
    """The log holds damage that is not a torn, unacknowledged tail."""


class SnapshotDamaged(FatalError):
    """A snapshot is not what was written; no state machine was touched.

    The one error of this family that may be caught, by whoever receives a snapshot from a peer:
    what had arrived is removed then, and nothing on this node rested on it.
    """


class MachineDamaged(FatalError):
    """What a state machine keeps on its own disk is damaged, or does not fit the node's log."""


class StorageFailed(FatalError):
    """A write or a sync failed: what is on disk is not known any more."""


class UnknownFormat(FatalError):
    """An entry, envelope or file has a kind or version that this release does not know."""


class Replaced(FatalError):
    """The cluster has taken another incarnation of this node in: this one takes part no more."""


class StateMachineCrashed(FatalError):
    """A state machine raised an error that it did not declare; no entry was skipped."""


class ReplicaDiverged(FatalError):
    """What this replica applied came to something else than at a majority: its answers may be
    wrong."""

    def __init__(self, node_id: int, index: int, where: str, others: Sequence[int]) -> None:
        self.node_id = node_id
        self.index = index
        """The first entry that came to something else, of those that could be compared."""
        self.others = tuple(others)
        """The nodes that agree with one another."""
        nodes = ", ".join(map(str, others))
        super().__init__(
            f"node {node_id} is not in the state that the nodes {nodes} agree on: {where}, it "
            "came to something else, so what it answers may be wrong; find out why (a state "
            "machine that uses a clock, chance or the order of a set? another version of it? a "
            "broken memory?), and start it again, which makes its state anew from its snapshot and "
            f"its log; if it stops again, {REJOIN_REMEDY}"
        )


class InvariantViolated(FatalError):
    """A rule of the protocol does not hold; this is a bug in replog or in a plugin."""
