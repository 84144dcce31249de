"""The part that keeps what waits for rounds and for answers (``replog/reads.py``)."""

from __future__ import annotations

import pytest

from replog.limits import Limits
from replog.quorum import Majority, Threshold, Without
from replog.reads import Reader, ReadRounds, Reads
from replog.types import LogIndex, ReadIndex

LIMITS = Limits(tick_ms=50, read_wait_ms=500, reads_max=3)


def answers(reads: Reads) -> list[tuple[int, LogIndex | None]]:
    """What was answered since the last call."""
    return [(read.read_id, read.index) for read in reads.take_answers()]


def test_release_by_quorum() -> None:
    """Readers are released, oldest round first, when a quorum has answered their round or a later
    one; the leader counts for every round."""
    rounds, quorum = ReadRounds(), Majority((1, 2, 3, 4, 5))
    for number in (4, 7):
        rounds.register(Reader(1, number))
        rounds.begin(number, 10 * number)
    rounds.confirm(2, 7)
    assert rounds.release(quorum, 1) == []
    rounds.confirm(3, 4)
    assert rounds.release(quorum, 1) == [(Reader(1, 4), 40)]
    rounds.confirm(3, 9)
    assert rounds.release(quorum, 1) == [(Reader(1, 7), 70)]
    assert rounds.count == 0


@pytest.mark.parametrize(
    ("quorum", "is_released"),
    [
        (Threshold((1, 2, 3), 1), True),
        (Threshold((1, 2, 3), 3), False),
        (Without(Majority((1, 2, 3)), (2,)), False),
        (Without(Majority((1, 2, 3)), (3,)), True),
    ],
    ids=["one", "all", "learner_answered", "other_is_learner"],
)
def test_release_asks_the_quorum(quorum: Threshold | Without, is_released: bool) -> None:
    """Who must have answered is the quorum system's word alone."""
    rounds = ReadRounds()
    rounds.register(Reader(1, 1))
    rounds.begin(1, 5)
    rounds.confirm(2, 1)
    assert bool(rounds.release(quorum, 1)) is is_released


def test_answers_forgotten_with_their_rounds() -> None:
    """What was answered while nobody waited confirms nothing later."""
    rounds, quorum = ReadRounds(), Majority((1, 2, 3))
    rounds.confirm(2, 99)
    rounds.register(Reader(1, 1))
    rounds.begin(1, 5)
    assert rounds.release(quorum, 1) == []


def test_rounds_clone_and_key() -> None:
    """A clone shares nothing, and equal keys mean equal futures."""
    rounds, quorum = ReadRounds(), Majority((1, 2, 3))
    empty = ReadRounds().key()
    rounds.register(Reader(3, 77))
    rounds.begin(1, 5)
    clone = rounds.clone()
    assert clone.key() == rounds.key() != empty
    clone.confirm(2, 1)
    assert clone.key() != rounds.key()
    assert clone.release(quorum, 1) == [(Reader(3, 77), 5)]
    assert clone.key() == empty
    assert rounds.readers() == [Reader(3, 77)]


def test_requests_cover_what_came_before() -> None:
    """One request stands for all that came before it left; its answer serves just those."""
    reads = Reads(1000, 2, LIMITS)
    reads.register(1)
    reads.register(2)
    assert reads.next_nonce(3, 7) == 1001
    assert reads.next_nonce(3, 7) is None
    reads.register(3)
    assert reads.next_nonce(3, 7) == 1002
    reads.hear(1001, 9)
    assert answers(reads) == [(1, 9), (2, 9)]
    reads.hear(1002, 9)
    assert answers(reads) == [(3, 9)]
    assert reads.next_nonce(3, 7) is None


@pytest.mark.parametrize("nonce", [0, 1000, 1002, 1 << 63])
def test_answer_to_no_request_ignored(nonce: int) -> None:
    """A number that no request of this life of the process had serves nobody."""
    reads = Reads(1000, 2, LIMITS)
    reads.register(1)
    reads.next_nonce(3, 7)
    reads.hear(nonce, 9)
    assert answers(reads) == []


def test_asked_again() -> None:
    """After some ticks, and of another leader at once, it is asked again under a new number; an
    earlier answer still serves."""
    reads = Reads(0, 2, LIMITS)
    reads.register(1)
    assert reads.next_nonce(3, 7) == 1
    reads.tick()
    assert reads.next_nonce(3, 7) is None
    reads.tick()
    assert reads.next_nonce(3, 7) == 2
    assert reads.next_nonce(3, 8) == 3
    assert reads.next_nonce(2, 8) == 4
    reads.hear(1, 9)
    assert answers(reads) == [(1, 9)]


def test_refused_after_a_while() -> None:
    """Who waits for ``read_wait_ms`` is refused, counted from when it came."""
    reads = Reads(0, 2, LIMITS)
    reads.register(1)
    for _ in range(4):
        reads.tick()
    reads.register(2)
    for _ in range(5):
        reads.tick()
    assert answers(reads) == []
    reads.tick()
    assert answers(reads) == [(1, None)]
    for _ in range(4):
        reads.tick()
    assert answers(reads) == [(2, None)]


def test_refused_above_the_limit() -> None:
    """Above ``reads_max`` a read is refused at once, and room comes with each answer."""
    reads = Reads(0, 2, LIMITS)
    for read_id in range(1, 5):
        reads.register(read_id)
    assert answers(reads) == [(4, None)]
    assert list(reads.take_waiting()) == [1, 2, 3]
    reads.register(5)
    assert answers(reads) == [(5, None)]
    reads.serve(1, 9)
    reads.refuse((2,))
    assert answers(reads) == [(1, 9), (2, None)]
    reads.register(6)
    assert answers(reads) == []


def test_reads_clone_and_key() -> None:
    """A clone shares nothing; when all is answered only the number of the last request is left."""
    reads = Reads(0, 2, LIMITS)
    empty = reads.key()
    reads.register(1)
    clone = reads.clone()
    assert clone.key() == reads.key() != empty
    clone.take_waiting()
    clone.serve(1, 9)
    assert clone.take_answers() == [ReadIndex(1, 9)]
    assert clone.key() == empty != reads.key()
