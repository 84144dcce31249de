"""Reads that need no entry: from when on a leader's word counts, and for which reads.

A leader that answered from its own state could answer with the past: another may lead by now.  So
it first makes sure that it led when the read was asked for, and that takes one *round* of messages
to the others and nothing on any disk (the read-index of Raft §8 and thesis §6.4).  The rules:

* **An answer proves only what was asked before it was given.**  A read waits for a round that began
  after it was asked for.  The number of the round is the nonce: a node leads a term at most once,
  and never uses a number twice in it.  Whoever answers round n confirms every round up to n, so
  what is lost is made good by any later round.
* **A quorum must have answered**, the leader counting for itself.  It must meet every quorum that
  elects, and then nobody was elected in a higher term before it answered.
* **The index of a round** is fixed when it begins: everything that was committed before that, in
  whatever term, is not behind it.  Who reads waits until so much is applied, and may wait anywhere.

A follower has no rounds.  It asks its leader for an index, and numbers its requests.  These numbers
go on from one that was drawn at random for this life of the process, because an answer to an
earlier life may still be on its way.

What is left to the engines: the messages, which index, and which quorum.  What is left to the
replica: to wait, and to read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence

from replog.limits import Limits
from replog.quorum import QuorumSystem
from replog.types import LogIndex, NodeId, ReadIndex, Term, record


@record
class Reader:
    """Who waits for the index of a round."""

    node_id: NodeId
    """The leader itself, or the peer that asked it."""
    number: int
    """The id of the read, or the nonce of the peer's request."""


@record
class Round:
    """Reads that wait for the same round."""

    number: int
    index: LogIndex
    """Up to where whoever reads must have applied."""
    readers: tuple[Reader, ...]


class ReadRounds:
    """The rounds of one leadership; dies with it."""

    __slots__ = ("_answered", "_fresh", "_rounds")

    def __init__(self) -> None:
        self._fresh: list[Reader] = []
        """Who waits for a round that is still to begin."""
        self._rounds: deque[Round] = deque()
        """Rounds that are not confirmed yet, ascending."""
        self._answered: dict[NodeId, int] = {}
        """By peer, the highest round that it answered; empty while no round waits."""

    def register(self, reader: Reader) -> None:
        """Somebody reads: not before a round that has yet to begin."""
        self._fresh.append(reader)

    @property
    def has_fresh(self) -> bool:
        """Whether a round must begin."""
        return bool(self._fresh)

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits."""
        return not (self._rounds or self._fresh)

    @property
    def count(self) -> int:
        """How many wait."""
        return len(self._fresh) + sum([len(waiting.readers) for waiting in self._rounds])

    def begin(self, number: int, index: LogIndex) -> None:
        """A round begins, for all who wait for one; its number is above every earlier one's."""
        assert not self._rounds or self._rounds[-1].number < number
        self._rounds.append(Round(number, index, tuple(self._fresh)))
        self._fresh.clear()

    def confirm(self, peer: NodeId, number: int) -> None:
        """A peer answered a round that has begun, in our term: until then it was in no higher one,
        and that holds for every earlier round as well."""
        if self._rounds:
            self._answered[peer] = max(number, self._answered.get(peer, 0))

    def release(self, quorum: QuorumSystem, node_id: NodeId) -> list[tuple[Reader, LogIndex]]:
        """Who need wait no more, each with its index: a quorum answered the round or a later one,
        where the leader ``node_id`` has answered all of them."""
        found: list[tuple[Reader, LogIndex]] = []
        if not self._rounds:
            return found
        answered = {**self._answered, node_id: self._rounds[-1].number}
        confirmed = quorum.committed_index(answered)
        while self._rounds and self._rounds[0].number <= confirmed:
            done = self._rounds.popleft()
            found += [(reader, done.index) for reader in done.readers]
        if not self._rounds:
            self._answered.clear()
        return found

    def readers(self) -> list[Reader]:
        """Everybody who waits, in the order in which they came."""
        return [*(reader for waiting in self._rounds for reader in waiting.readers), *self._fresh]

    def clone(self) -> ReadRounds:
        """An independent copy."""
        copy = ReadRounds()
        copy._fresh, copy._rounds = self._fresh.copy(), self._rounds.copy()
        copy._answered = self._answered.copy()
        return copy

    def key(self) -> Hashable:
        """Equal for two that go on alike."""
        answered = tuple(sorted(self._answered.items()))
        return (tuple(self._fresh), tuple(self._rounds), answered)


@record
class Asked:
    """A read that waits for the answer to a request, or to a later one."""

    nonce: int
    tick: int
    """When it came, by a clock that stands still while nothing waits."""
    read_id: int


class Reads:
    """What was asked of one engine, whatever its role; the reads of a leader wait in its rounds.

    Every read is answered once: served, or refused.
    """

    __slots__ = (
        "_answers",
        "_asked_of",
        "_first_nonce",
        "_limits",
        "_nonce",
        "_now",
        "_retry_at",
        "_retry_ticks",
        "_waiting",
        "open_count",
    )

    def __init__(self, nonce: int, retry_ticks: int, limits: Limits) -> None:
        """``retry_ticks``: after so many the leader is asked again."""
        self._first_nonce = nonce
        """No request of this life of the process has it, or one below it."""
        self._nonce = nonce
        """Of the last request."""
        self._limits = limits
        self._retry_ticks = retry_ticks
        self._waiting: deque[Asked] = deque()
        """What no leader's rounds have yet, in the order in which it came."""
        self._asked_of: tuple[NodeId, Term] | None = None
        """Which leader the last request went to; ``None``: nothing waits for an answer."""
        self._now = 0
        self._retry_at = 0
        self.open_count = 0
        """Of how many reads the answers were not taken yet."""
        self._answers: list[ReadIndex] = []

    def register(self, read_id: int) -> None:
        """Somebody reads here."""
        self.open_count += 1
        if self.open_count > self._limits.reads_max:
            self.refuse((read_id,))
            return
        self._waiting.append(Asked(self._nonce + 1, self._now, read_id))

    def serve(self, read_id: int, index: LogIndex) -> None:
        """Whoever reads must have applied up to ``index``."""
        self._answers.append(ReadIndex(read_id, index))

    def serve_unasked(self, read_id: int, index: LogIndex) -> None:
        """Somebody reads here and need not wait."""
        self.open_count += 1
        self.serve(read_id, index)

    def refuse(self, read_ids: Sequence[int]) -> None:
        """These will not be served."""
        self._answers += [ReadIndex(read_id, None) for read_id in read_ids]

    def take_answers(self) -> Sequence[ReadIndex]:
        """What was answered since the last call."""
        if not self._answers:
            return ()
        answers, self._answers = self._answers, []
        self.open_count -= len(answers)
        return answers

    # -- of a leader --

    def take_waiting(self) -> Sequence[int]:
        """The reads that wait, which from now on wait in a leader's rounds."""
        if not self._waiting:
            return ()
        taken = [asked.read_id for asked in self._waiting]
        self._forget_waiting()
        return taken

    # -- of a follower --

    def next_nonce(self, leader_id: NodeId, term: Term) -> int | None:
        """The number of the request that must leave now; ``None``: none must.

        It stands for everything that waits: an answer to it, or to a later one, is an answer to
        all that came before it left.
        """
        if not self._waiting:
            return None
        is_asked = self._waiting[-1].nonce <= self._nonce and self._asked_of == (leader_id, term)
        if is_asked and self._now < self._retry_at:
            return None
        self._nonce += 1
        self._asked_of = (leader_id, term)
        self._retry_at = self._now + self._retry_ticks
        return self._nonce

    def hear(self, nonce: int, index: LogIndex) -> None:
        """A leader answered one of our requests: serve what had come when that left."""
        if not self._first_nonce < nonce <= self._nonce:
            return  # a request of an earlier life of the process
        while self._waiting and self._waiting[0].nonce <= nonce:
            self.serve(self._waiting.popleft().read_id, index)
        if not self._waiting:
            self._forget_waiting()

    def tick(self) -> None:
        """One unit of time has passed: who waited too long for an answer, or for a leader, is
        refused."""
        if not self._waiting:
            return
        self._now += 1
        while self._waiting and self._waiting[0].tick + self._limits.read_ticks_max <= self._now:
            self.refuse((self._waiting.popleft().read_id,))
        if not self._waiting:
            self._forget_waiting()

    def _forget_waiting(self) -> None:
        """Nothing waits: with equal nonces, all is as in the beginning."""
        self._waiting.clear()
        self._asked_of = None
        self._now = self._retry_at = 0

    # -- for the model checker --

    def clone(self) -> Reads:
        """An independent copy."""
        copy: Reads = object.__new__(Reads)
        for name in self.__slots__:
            setattr(copy, name, getattr(self, name))
        copy._waiting, copy._answers = self._waiting.copy(), self._answers.copy()
        return copy

    def key(self) -> Hashable:
        """Equal for two that go on alike."""
        return (
            (tuple(self._waiting), tuple(self._answers), self.open_count),
            (self._first_nonce, self._nonce, self._asked_of, self._now, self._retry_at),
        )
