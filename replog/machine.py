"""What a node needs of a state machine: four methods, and nothing of how commands are written;
and what a machine offers beyond that, so that the log need not be kept for ever.

The replica hands each committed payload to :meth:`Machine.apply`, in the order of the log, and
never looks inside it.  :class:`replog.statemachine.StateMachine` implements this protocol for
ordinary use; whoever wants another encoding of commands implements it directly.

The rules of a machine:

* **Deterministic.**  The same payloads with the same contexts give the same state and the same
  results on every replica: no clock (``context.time_ms`` is the replicated time), no randomness,
  no I/O, no iteration over anything whose order can differ.
* **A declared error is a result.**  :class:`~replog.errors.StateMachineError` is replicated like
  any other outcome.  Everything else that ``apply`` raises stops the node, because skipping an
  entry would make replicas differ; so no payload, however hostile, may cause such an error.
* **Synchronous and short.**  ``apply`` runs on the node's event loop; while it runs, no heartbeat
  leaves.

A machine that can be *snapshotted* is of one of three kinds, told apart by the methods it has
(:func:`machine_kind`): :class:`SnapshotMachine`, :class:`ConcurrentMachine`,
:class:`DurableMachine`.  The last may keep answers as well (:class:`KeepsAnswers`).  The rules of
snapshots:

* **The bytes count, the cuts between chunks do not.**  A snapshot is stored and sent in blocks of
  its own, so ``restore`` is given the same bytes in the same order, cut elsewhere.
  :mod:`replog.chunks` puts records together again, and notices what is not whole.
* **The same bytes on every replica** of the same applied index, as far as the machine can: sort
  what has no order of its own.  Then a transfer that broke off goes on with another node's copy.
* **Everything that later commands depend on is in it**, and nothing else: what is restored goes on
  exactly as what was snapshotted.
* **Chunks of moderate size**, up to about a MiB: each is in memory as a whole.

What is left to others: sessions and envelopes (the replica), encoding of results (the wire), when
a snapshot is taken and where it lies (the node, :mod:`replog.storage.snapshots`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol, cast, runtime_checkable

from replog.errors import PluginError
from replog.types import LogIndex, record

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(slots=True)
class ApplyContext:
    """What a command may know besides its arguments; the same on every replica.

    No record: each replica has one, which it moves on from entry to entry, because a new one per
    entry costs as much as a small command.  Read it while the command runs; do not keep it.
    """

    index: LogIndex
    """The index of the entry; ascends, with gaps where entries are not commands."""
    time_ms: int
    """The replicated time in milliseconds since 1970; never goes back, may stand still."""
    in_session: bool = False
    """Whether a client may ask for the answer again.  A machine that keeps answers is given this
    one's right behind ``apply``, and makes nothing durable before (:class:`KeepsAnswers`)."""


@record
class DumpPage:
    """A stretch of one replica's state, for people and for comparing replicas."""

    items: Sequence[object]
    """CBOR-able, in an order that depends on the state alone."""
    cursor: bytes | None
    """Where the next page starts; ``None``: this page is the last."""


class Machine(Protocol):
    """A replicated state machine, as the replica sees it."""

    def apply(self, context: ApplyContext, payload: bytes) -> object:
        """Apply one committed command and return its result: anything that CBOR can carry.

        Raises :class:`~replog.errors.StateMachineError` as a declared, replicated result.
        """

    def answer(self, payload: bytes) -> object:
        """Run a query on the state as it is, and return its result: anything that CBOR can carry.

        Called between two commands, at one replica alone: it changes nothing, or replicas differ.
        Raises :class:`~replog.errors.StateMachineError` as a declared result, and
        :class:`~replog.errors.BadCommand` for what is no query of this machine.  What else it
        raises is told to whoever asked, and stops no node.
        """

    def check_payload(self, payload: bytes) -> None:
        """Refuse, before it is proposed, what cannot be a command of this machine.

        Raises :class:`~replog.errors.BadCommand`.  Reads no state: the answer is about the
        payload's name and shape only, because the state will have moved on when it is applied.
        Whatever comes from outside is checked so.  ``apply`` may rely on the payload's *encoding*
        having passed (that rule is part of the envelope's version), not on its shape: another
        node's release may know other commands.
        """

    def dump(self, cursor: bytes, items_max: int) -> DumpPage:
        """A page of at most ``items_max`` items (at least 1) of this replica's own state.

        The first page is at ``b""``, every other at the cursor of the page before; cursors hold
        no state, so any replica understands any replica's cursor.  Two replicas that applied the
        same entries return equal pages.  Entries may be applied between two pages: who compares
        replicas looks at their applied indexes too.  A cursor may come from anybody.  A local
        diagnostic, never a replicated result; it changes nothing.  Raises
        :class:`~replog.errors.DumpUnavailable`.
        """


@runtime_checkable
class SnapshotMachine(Machine, Protocol):
    """A machine in memory, which stands still while its snapshot is written."""

    def snapshot(self) -> Iterable[bytes]:
        """The whole state, to be consumed at once: nothing is applied before its end.

        Called between two commands; changes nothing.  Raises
        :class:`~replog.errors.SnapshotUnavailable`, from the call or from any chunk on.
        """

    def restore(self, chunks: Iterable[bytes]) -> None:
        """Replace the whole state by the one that was snapshotted.

        The machine may be new, or may have applied anything before; nothing of that is left.
        Called between two commands.  Raises :class:`~replog.errors.SnapshotDamaged` or
        :class:`~replog.errors.UnknownFormat` for chunks that no snapshot of this machine is made
        of, and then keeps its old state or must not be used any more.
        """


@runtime_checkable
class ConcurrentMachine(Machine, Protocol):
    """A machine in memory, which goes on while its snapshot is written."""

    def freeze(self) -> Iterable[bytes]:
        """The whole state as of this call, to be consumed while later commands are applied.

        Called between two commands, and quick, for the event loop waits for it.  What it returns is
        consumed in another thread, at most once, or dropped half-way; no later command shows in
        it, and consuming it changes nothing.  Each step to the next chunk should be short: it may
        hold the interpreter's lock.
        """

    def restore(self, chunks: Iterable[bytes]) -> None:
        """See :meth:`SnapshotMachine.restore`."""


@record
class Opened:
    """Up to where a machine on its own disk came, as :meth:`DurableMachine.open` found it."""

    applied_index: LogIndex
    """The highest index that was applied and is durable; 0: the machine holds nothing."""
    time_ms: int
    """The replicated time as of that index, which goes on from here; 0 with index 0."""


NOTHING_APPLIED: Final = Opened(applied_index=0, time_ms=0)
"""What a machine without any content reports."""


@runtime_checkable
class DurableMachine(Machine, Protocol):
    """A machine that keeps its state in files of its own, and finds it again after a restart.

    It stores ``context.index`` and ``context.time_ms`` *with* the state, in one transaction, so
    that what it reports is never more nor less than what it holds.  It need not make each command
    durable: what it lost behind the index that it reports is offered again, from the log.

    Only commands are given to ``apply``, so its index may lag behind the log's by entries of other
    kinds.  After a restart every entry behind the reported index is gone through again; the
    commands among them are offered to ``apply``, and the machine must not have them: an index
    that lags behind the *state* would apply a command twice.
    """

    def open(self, directory: Path) -> Opened:
        """Open the files in a directory of its own, or make them; called once, before all else.

        What it reports is durable on return, even if an earlier process was killed in the midst of
        a write.  Raises :class:`~replog.errors.MachineDamaged` for files that it cannot trust, and
        :class:`~replog.errors.StorageFailed`.
        """

    def freeze(self) -> Iterable[bytes]:
        """See :meth:`ConcurrentMachine.freeze`."""

    def restore(self, chunks: Iterable[bytes], index: LogIndex, time_ms: int) -> None:
        """Replace everything by what was snapshotted as of ``index``, atomically and durably.

        A crash leaves the old state, under the old index, or the new one; on return it is the new
        one for ever.  ``time_ms`` is the replicated time as of ``index``.  Kept answers go, too.
        Errors as of :meth:`SnapshotMachine.restore`, and the old state stays then.
        """

    def close(self) -> None:
        """Release the files; may be called again, and also where ``open`` failed or never was."""


@runtime_checkable
class KeepsAnswers(DurableMachine, Protocol):
    """A machine on its own disk that keeps what commands in sessions were answered.

    After a restart such a machine is ahead of the newest snapshot, and so of the sessions in that.
    The commands in between are not applied again; what they answered is known only to a machine
    that kept it.  Of any other, who asks again is told ``AnswerNotKept``.

    A command and its answer become durable *together*: after any crash, if ``open`` reports an
    index of ``i`` or more, and entry ``i`` was a command that was applied with
    ``context.in_session``, then ``kept_answer(i)`` gives its answer, unless that was forgotten.

    For that, behind each such ``apply``, whether it returned or raised a declared error,
    ``keep_answer`` is called before anything else is: a machine that would end a transaction within
    ``apply`` ends it there instead.  A command that breaks off otherwise has no answer, and neither
    it nor its index may become durable, be it by ``close``.

    The answers are no part of the state: they are not in snapshots, for those hold the sessions
    themselves, and no later command depends on them.
    """

    def keep_answer(self, index: LogIndex, answer: bytes) -> None:
        """Keep the answer of the command at ``index``, which was applied just now.

        Its bytes are nobody's business but the replica's: at most ``session_answer_bytes_max`` and
        some 100 more.  Raises :class:`~replog.errors.StorageFailed`.
        """

    def kept_answer(self, index: LogIndex) -> bytes | None:
        """The answer of the command at ``index``; ``None``: there is none, or it was forgotten.

        Asked for when the node starts, before any command.
        """

    def forget_answers(self, upto: LogIndex) -> None:
        """The answers of ``upto`` and all before are not asked for any more, in any later process:
        a durable snapshot holds the sessions as of there.

        Called between two commands, and quick.  They may be removed later, little by little, but
        must be in the end, or the files grow for ever.
        """


@runtime_checkable
class Digested(Machine, Protocol):
    """A machine with a number for its state, by which replicas are compared after every command
    (:mod:`replog.comparison`).  Without one, only what commands answer is compared."""

    state_digest: int
    """The same for equal states, and hardly ever for others; it may be a property.

    Read behind each command, so that must cost next to nothing: the commands keep it up to date, as
    a sum over the items (:mod:`replog_kv.machine` shows how).  It depends on the state alone and
    not on how that came about: what was restored from a snapshot has the same.  No ``hash()``,
    which differs from process to process.
    """


class MachineKind(Enum):
    """What a machine offers to snapshots, from nothing upwards."""

    PLAIN = "plain"
    """No snapshots: its log is kept for ever, and applied again at each start."""
    IN_MEMORY = "in memory"
    """A :class:`SnapshotMachine`."""
    CONCURRENT = "concurrent"
    """A :class:`ConcurrentMachine`."""
    DURABLE = "durable"
    """A :class:`DurableMachine`."""


_OFFERS: Final = (
    (MachineKind.DURABLE, ("open", "freeze", "restore", "close")),
    (MachineKind.CONCURRENT, ("freeze", "restore")),
    (MachineKind.IN_MEMORY, ("snapshot", "restore")),
)
_KEEPING: Final = ("keep_answer", "kept_answer", "forget_answers")


def machine_kind(machine: Machine) -> MachineKind:
    """The kind of a machine; of one that offers several, the last in the order of the kinds.

    The methods are looked for on the class.  A *command* named ``open`` or ``freeze`` offers
    nothing: on its class it is not a function but the record of a call.
    """
    for kind, methods in _OFFERS:
        if _has_methods(machine, methods):
            return kind
    return MachineKind.PLAIN


def answer_keeper(machine: Machine) -> KeepsAnswers | None:
    """The machine itself if it keeps answers; told by its methods, as the kind is."""
    is_keeper = machine_kind(machine) is MachineKind.DURABLE and _has_methods(machine, _KEEPING)
    return cast(KeepsAnswers, machine) if is_keeper else None


def digested(machine: Machine) -> Digested | None:
    """The machine itself if it has a digest of its state.

    Raises :class:`~replog.errors.PluginError` for one that is no number.
    """
    digest = getattr(machine, "state_digest", None)
    if digest is None:
        return None
    if not isinstance(digest, int):
        raise PluginError(
            f"the state machine {type(machine).__name__} has a state_digest that is no int but "
            f"{type(digest).__name__}; make it an attribute, or a property, that is an int"
        )
    return cast(Digested, machine)


def _has_methods(machine: Machine, names: Sequence[str]) -> bool:
    cls = type(machine)
    return all(callable(getattr(cls, name, None)) for name in names)
