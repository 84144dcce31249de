"""What a node needs of a state machine: three methods, and nothing of how commands are written.

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

What is left to others: sessions and envelopes (the replica), encoding of results (the wire).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from replog.types import LogIndex, record


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
