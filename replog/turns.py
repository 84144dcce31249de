"""The turn of a node: everything that its one loop does, without a clock, a socket or a thread.

A *turn* carries out what the replica is ready for, after something arrived:

1. the writes go on their way to disk, and the messages leave, beside each other;
2. what is committed is applied, and those who wait for it get their results (and may propose
   more, so the turn goes on until the replica is ready for nothing);
3. what was queued for clients leaves.

When a group has become durable (:meth:`Turns.handle_synced`) its Readys are advanced, the messages
that waited for it leave, and a turn follows.

So a batch costs one turn, one write, one sync and one frame per peer, and it grows by itself with
the load: what is submitted until the next turn is proposed as one batch, and what comes up while a
group is on its way to disk makes the next group.

The trio node (:mod:`replog.node`) and the simulator both drive *this* object, each with
:class:`Surroundings` of its own: what the simulator finds in it is found in every node.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

from replog.errors import CommandTooLarge, NotDone, Overloaded
from replog.limits import Limits
from replog.replica import Replica
from replog.storage.protocol import Write
from replog.types import NodeId, Ready, SoftState, Waiter, record


@record
class Surroundings:
    """What a turn acts on.  None of these may call back into the turns before it returns."""

    send: Callable[[object], None]
    """Put a message on its way to the peer that it names."""
    flush: Callable[[], None]
    """Let the messages leave that were put on their way."""
    write: Callable[[list[Write]], None]
    """Start making one group durable; when it is, ``handle_synced`` is called."""
    wake: Callable[[], None]
    """Have another turn taken soon."""
    answer: Callable[[], None]
    """Let leave what was queued for clients."""
    report_role: Callable[[SoftState], None]
    """The role or the known leader changed."""
    time_ms: Callable[[], int]
    """The local time that is stamped on proposals."""


class Turns:
    """Takes the turns of one replica; see the module."""

    __slots__ = (
        "_groups",
        "_groups_max",
        "_is_turning",
        "_limits",
        "_node_id",
        "_payloads",
        "_submitted_bytes",
        "_surroundings",
        "_unapplied",
        "_unsynced",
        "_unwritten",
        "_waiters",
        "replica",
    )

    def __init__(
        self,
        node_id: NodeId,
        replica: Replica,
        limits: Limits,
        surroundings: Surroundings,
        groups_max: int = 1,
    ) -> None:
        self.replica = replica
        self._node_id = node_id
        self._limits = limits
        self._surroundings = surroundings
        self._groups_max = groups_max
        """How many groups may be on their way to disk at a time."""
        self._groups: deque[int] = deque()
        """How many writes each group on its way holds, oldest first."""
        self._unwritten: list[Write] = []
        """Writes that wait for a group to end."""
        self._unsynced: deque[Ready] = deque()
        """Readys that were not advanced yet, oldest first."""
        self._unapplied: deque[Ready] = deque()
        """Readys whose entries are committed and not applied yet."""
        self._payloads: list[bytes] = []
        """What was submitted since the last proposal, and beside it who waits for each."""
        self._waiters: list[Waiter] = []
        self._submitted_bytes = 0
        self._is_turning = False

    # -- what arrives --

    def submit(self, payload: bytes, waiter: Waiter) -> None:
        """Have a command proposed, together with all that come up until the next turn.

        See :meth:`replog.node.Node.submit`.
        """
        size_bytes = len(payload)
        if size_bytes > self._limits.command_bytes_max:
            raise CommandTooLarge(size_bytes, self._limits.command_bytes_max)
        self._submitted_bytes += size_bytes
        if self._submitted_bytes > self._limits.uncommitted_bytes_max:
            self._submitted_bytes -= size_bytes
            raise Overloaded(
                f"node {self._node_id} holds {self._submitted_bytes} bytes of commands that were "
                "submitted and not proposed yet; try again a little later"
            )
        self._payloads.append(payload)
        self._waiters.append(waiter)
        if not self._is_turning:
            self._surroundings.wake()

    def handle_synced(self) -> None:
        """The oldest group on its way is durable; a turn must follow."""
        left = self._groups.popleft()
        unsynced = self._unsynced
        # What writes nothing only had to wait for what is before it.
        while unsynced and (left or not unsynced[0].writes):
            left -= unsynced[0].writes
            self._advance()
        self._start_group()
        self._surroundings.flush()
        if self._unapplied:
            self._apply_next()

    def end(self, of_proposed: Exception, of_submitted: Exception) -> None:
        """The node stops: answer everybody who waits."""
        self.replica.end_waits(of_proposed)
        waiters = self._waiters
        self._payloads, self._waiters, self._submitted_bytes = [], [], 0
        for waiter in waiters:
            waiter(0, None, of_submitted)

    # -- the turn --

    def turn(self) -> None:
        """Carry out everything that the replica is ready for."""
        self._is_turning = True
        if len(self._unapplied) > 1:
            self._apply_next()  # a backlog that had to wait for the disk
        self._propose_submitted()
        while (ready := self.replica.ready()) is not None:
            self._carry_out(ready)
            self._propose_submitted()
            if len(ready.committed) >= self._limits.apply_entries_max:
                # There may be a long backlog: heartbeats go out and come in between.
                self._surroundings.wake()
                break
        self._is_turning = False
        self._surroundings.answer()

    def _propose_submitted(self) -> None:
        """Propose everything that was submitted, as one batch."""
        if not self._payloads:
            return
        payloads, waiters = self._payloads, self._waiters
        self._payloads, self._waiters, self._submitted_bytes = [], [], 0
        try:
            self.replica.propose_batch(payloads, self._surroundings.time_ms(), waiters)
        except NotDone as refusal:
            for waiter in waiters:
                waiter(0, None, refusal)
            # Who submits again at once is heard in another turn, or this one might never end.
            self._surroundings.wake()

    def _carry_out(self, ready: Ready) -> None:
        """One Ready.  The disk first: it starts while the sends are in the kernel."""
        surroundings = self._surroundings
        self._start_writing(ready)
        for message in ready.messages:
            surroundings.send(message)
        surroundings.flush()
        if ready.committed:
            self._unapplied.append(ready)
        # A sync thread that was just started needs the interpreter; unless somebody waits for
        # results, applying now would only hold up the acknowledgement.
        if self._unapplied and (self.replica.waiting_count or not self._groups):
            self._apply_next()
        if ready.soft_state is not None:
            # Now, and not when its turn to be applied comes: a backlog may last into a later
            # leadership, whose waits are none of this change's business.
            self.replica.follow_role(ready.soft_state)
            if self._unapplied and self._unapplied[-1] is ready:
                self._unapplied[-1] = replace(ready, soft_state=None)
            surroundings.report_role(ready.soft_state)

    def _apply_next(self) -> None:
        """Apply what the oldest of the waiting Readys has committed; a turn for each of them."""
        self.replica.apply(self._unapplied.popleft())
        if self._unapplied:
            self._surroundings.wake()

    # -- the disk --

    def _start_writing(self, ready: Ready) -> None:
        """Send a Ready's writes on their way to disk, or let it pass if nothing is before it."""
        self._unsynced.append(ready)
        if ready.writes:
            self._unwritten.append(Write(ready.hard_state, ready.truncate_from, ready.entries))
            self._start_group()
        elif len(self._unsynced) == 1:
            self._advance()

    def _start_group(self) -> None:
        """Hand over everything that waits, as one group, unless enough are on their way."""
        if self._unwritten and len(self._groups) < self._groups_max:
            writes, self._unwritten = self._unwritten, []
            self._groups.append(len(writes))
            self._surroundings.write(writes)

    def _advance(self) -> None:
        """The oldest Ready is durable: advance it, let its answers leave."""
        ready = self._unsynced.popleft()
        self.replica.advance(ready)
        for message in ready.messages_after_sync:
            self._surroundings.send(message)
