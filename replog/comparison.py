"""Comparing replicas: which of them is not in the state that the others are in, and since when.

Nodes compare the marks of what they applied (:mod:`replog.digests`) with one another, about once a
second, whoever leads.  Where two hashes of one stretch of the log differ, the two halve it in turn,
each asking the other about a half, until they have the first entry whose marks differ.  Each half
is a small message, and holds all that is needed to go on: neither side remembers the search, so a
lost message costs a second and nothing else.

Which of two is right, two cannot know.  So who has found an entry asks all others for its mark.
When a majority of the nodes have the same mark and a node has another one, that node stops
(:class:`~replog.errors.ReplicaDiverged`), be it the leader: an answer of it may be wrong.  As long
as no majority is on one side, because others are down or have not come so far, everybody goes on,
and says so.

The rules this module keeps: no clock, no randomness, no I/O; what comes from a peer is bounded in
memory; nothing here changes what is in the log or who leads, except that a node stops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from replog.comparison_messages import DigestCompare
from replog.digests import MARKS_FORM, Digests
from replog.errors import ReplicaDiverged, SchemaError
from replog.limits import Limits
from replog.machine import digested
from replog.replica import Replica
from replog.types import Epoch, LogIndex, NodeId, Voter, record

ENTRIES_COMPARED_MAX: Final = 8_192
"""What is applied is compared after so many entries at the latest, before marks are dropped."""

VOTES_MAX: Final = 16
"""In a period, so many entries are asked about one by one."""


@record
class Difference:
    """Where two replicas differ."""

    index: LogIndex
    """An entry that came to something else."""
    is_first: bool
    """Whether all before it came to the same; else nobody knows any more."""

    def __str__(self) -> str:
        return f"at entry {self.index}" + ("" if self.is_first else " or before it")


class Comparison:
    """One node's part in comparing the replicas; see the module."""

    __slots__ = (
        "_agreed",
        "_digests",
        "_epoch",
        "_form",
        "_learners",
        "_node_id",
        "_peer_ids",
        "_replica",
        "_send",
        "_ticks",
        "_ticks_max",
        "_told_index",
        "_unknown",
        "_votes",
        "differences",
        "diverged",
        "handle_difference",
    )

    def __init__(
        self,
        node_id: NodeId,
        epoch: Epoch,
        replica: Replica,
        limits: Limits,
        send: Callable[[object], None],
    ) -> None:
        self.differences: dict[NodeId, Difference] = {}
        """Where a peer was first seen to be in another state, by peer; of those that run."""
        self.diverged: ReplicaDiverged | None = None
        """Set when this replica is the one that differs: the node must stop."""
        self.handle_difference: Callable[[NodeId, Difference], None] = _do_nothing
        """Called when ``differences`` has one more."""
        self._node_id = node_id
        self._epoch = epoch
        self._replica = replica
        self._digests: Digests = replica.digests
        self._form = MARKS_FORM << 1 | (digested(replica.machine) is not None)
        self._send = send
        self._peer_ids = [peer for peer in epoch.voter_ids if peer != node_id]
        self._agreed: dict[NodeId, LogIndex] = dict.fromkeys(self._peer_ids, 0)
        """Up to where nothing is to be compared with a peer any more."""
        self._unknown: dict[NodeId, LogIndex] = dict.fromkeys(self._peer_ids, 0)
        """Up to where nobody could compare the front of what was agreed on with a peer."""
        self._votes: dict[LogIndex, dict[NodeId, int]] = {}
        """Who has which mark, of entries that were asked about one by one in this period: what a
        node said before may have been said by another run of it."""
        self._learners: Sequence[Voter] = replica.learners
        self._ticks = 0
        self._ticks_max = -(-limits.digest_compare_ms // limits.tick_ms)
        self._told_index: LogIndex = 0
        """What was applied when the peers were asked last."""

    def tick(self) -> None:
        """One unit of time has passed."""
        if self._replica.learners is not self._learners:
            self._forget_replaced()
        self._ticks += 1
        last = self._digests.last
        if self._ticks >= self._ticks_max or last - self._told_index >= ENTRIES_COMPARED_MAX:
            self._ticks, self._told_index = 0, last
            self._votes.clear()
            for peer in self._peer_ids:
                first, agreed = self._digests.first, self._agreed[peer]
                if max(first, agreed) < last:
                    unknown_upto = first if first > agreed else self._unknown[peer]
                    self._compare(peer, max(first, agreed), last, unknown_upto)

    def step(self, message: DigestCompare) -> None:
        """Take one message from a peer.  One of another epoch is ignored, and one of a peer that
        makes its marks in another way.

        Raises :class:`~replog.errors.SchemaError` for what no correct peer sends.
        """
        after, upto, peer = message.after_index, message.upto_index, message.sender
        if message.epoch != self._epoch.number or peer not in self._agreed:
            return
        if message.form != self._form:
            return
        if after >= upto or (message.differs_upto and message.differs_upto < upto):
            raise SchemaError(
                f"a comparison of the entries behind {after} up to {upto}, which are said to "
                f"differ up to {message.differs_upto}, makes no sense"
            )
        own = self._digests.between(after, upto)
        if own is None:
            first = self._digests.first
            if after < first < upto <= self._digests.last:
                # The front of it is not known here, but the rest can be compared.
                self._compare(peer, first, upto, unknown_upto=first)
            return
        unknown_upto = message.unknown_upto
        if not message.differs_upto:
            # What the peer has agreed on before may have been with an earlier run of this node.
            is_new = after > self._agreed[peer]
            unknown_upto = after if is_new else max(unknown_upto, self._unknown[peer])
        is_single = upto == after + 1
        if own != message.digest:
            if not is_single:
                self._search(peer, after, upto, unknown_upto)
            elif self._hear_vote(message, own):
                self._note_difference(peer, Difference(upto, not unknown_upto))
                self._judge(upto)
        elif message.differs_upto > upto:
            self._search(peer, upto, message.differs_upto, unknown_upto)
        elif not message.differs_upto:
            if after <= max(self._agreed[peer], self._digests.first) or message.unknown_upto:
                self._note_agreement(peer, after, upto, unknown_upto)
        elif self._hear_vote(message, own):
            self._judge(upto)
        is_agreed = own == message.digest and not message.differs_upto
        if not message.is_answer and (is_single or is_agreed):
            differs_upto = upto if message.differs_upto else 0
            self._compare(peer, after, upto, message.unknown_upto, differs_upto, is_answer=True)

    def _search(
        self, peer: NodeId, after: LogIndex, upto: LogIndex, unknown_upto: LogIndex
    ) -> None:
        """Have a peer look into the first half of a stretch that differs."""
        if upto <= self._digests.last:
            self._compare(peer, after, max(after + 1, (after + upto) // 2), unknown_upto, upto)

    def _compare(
        self,
        peer: NodeId,
        after: LogIndex,
        upto: LogIndex,
        unknown_upto: LogIndex,
        differs_upto: LogIndex = 0,
        is_answer: bool = False,
    ) -> None:
        """Tell a peer what some entries came to here."""
        digest = self._digests.between(after, upto)
        assert digest is not None, "only what is known is told"
        self._send(
            DigestCompare(
                epoch=self._epoch.number,
                term=0,
                sender=self._node_id,
                to=peer,
                after_index=after,
                upto_index=upto,
                digest=digest,
                form=self._form,
                differs_upto=differs_upto,
                unknown_upto=unknown_upto,
                is_answer=is_answer,
            )
        )

    def _note_difference(self, peer: NodeId, difference: Difference) -> None:
        """An entry came to something else at a peer."""
        known = self.differences.get(peer)
        if known is None or difference.index < known.index:
            self.differences[peer] = difference
        if known is None:
            self.handle_difference(peer, difference)

    def _note_agreement(
        self, peer: NodeId, after: LogIndex, upto: LogIndex, unknown_upto: LogIndex
    ) -> None:
        """Some entries came to the same at a peer."""
        if upto >= self._agreed[peer]:
            self._agreed[peer] = upto
            self._unknown[peer] = unknown_upto if after else 0
        known = self.differences.get(peer)
        if known is not None and known.index <= upto:
            del self.differences[peer]  # one of the two was started again, and is right now

    def _hear_vote(self, message: DigestCompare, own: int) -> bool:
        """Note which mark an entry has at a peer, and have all others asked if that is new; whether
        it is noted at all."""
        index, after = message.upto_index, message.after_index
        votes = self._votes.get(index)
        if votes is None:
            if own == message.digest or len(self._votes) >= VOTES_MAX:
                return False
            votes = self._votes[index] = {self._node_id: own}
            for other in self._peer_ids:
                if other != message.sender:
                    # Whether it is the first entry where those two differ is not known.
                    self._compare(other, after, index, unknown_upto=after, differs_upto=index)
        votes[message.sender] = message.digest
        return True

    def _judge(self, index: LogIndex) -> None:
        """Have this node stop if a majority has one mark and this replica another."""
        if index <= self._digests.first:
            return  # the state has come from elsewhere since
        votes = self._votes[index]
        own = votes[self._node_id]
        for mark in votes.values():
            others = [node for node, each in votes.items() if each == mark]
            if mark != own and 2 * len(others) > len(self._epoch.voter_ids):
                self._give_up(index, sorted(others))

    def _give_up(self, index: LogIndex, others: Sequence[NodeId]) -> None:
        known = [self.differences[each] for each in others if each in self.differences]
        is_first = Difference(index, is_first=True) in known
        is_earlier_known = min([each.index for each in known], default=index) < index
        first = Difference(index, is_first=is_first and not is_earlier_known)
        self.diverged = ReplicaDiverged(self._node_id, index, str(first), others)

    def _forget_replaced(self) -> None:
        """Other incarnations were taken in: what differed at those before is past."""
        for learner in self._replica.learners:
            if learner not in self._learners:
                self.differences.pop(learner.node_id, None)
                if learner.node_id in self._agreed:
                    self._agreed[learner.node_id] = 0
                    self._unknown[learner.node_id] = 0
                for votes in self._votes.values():
                    votes.pop(learner.node_id, None)
        self._learners = self._replica.learners


def _do_nothing(_: NodeId, __: Difference) -> None:
    """Nobody wants to know."""
