"""What a leader knows of one peer: every transition of the record."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from replog.limits import Limits
from replog.progress import STORED_MESSAGES_MAX, Progress
from replog.types import LogIndex, PeerState, PeerStatus

LIMITS = Limits(in_flight_messages_max=3, in_flight_bytes_max=1000)


def probing(next_index: LogIndex = 6) -> Progress:
    """A peer of which nothing is known."""
    return Progress(next_index, LIMITS)


def replicating(match_index: LogIndex = 5) -> Progress:
    """A peer whose log matches up to ``match_index``."""
    progress = probing(match_index + 1)
    progress.handle_accepted(match_index)
    assert progress.state is PeerState.REPLICATE
    return progress


def test_start_probing() -> None:
    """A peer starts as probed: nothing matches, nothing is under way, and one message may go."""
    assert probing().status(2) == PeerStatus(
        node_id=2,
        state=PeerState.PROBE,
        match_index=0,
        next_index=6,
        in_flight_messages=0,
        recently_active=False,
    )
    assert not probing().is_paused


def test_probe_pauses_when_sent() -> None:
    """A sent probe pauses the peer and leaves next_index where it is: it is not known to match."""
    progress = probing()
    progress.handle_sent(9, 100)
    assert progress.is_paused
    assert (progress.next_index, progress.status(2).in_flight_messages) == (6, 0)


def test_probe_resumes_after_heartbeat_answer() -> None:
    """An answered heartbeat lets one more probe go: the last may have been lost."""
    progress = probing()
    progress.handle_sent(9, 100)
    progress.handle_heartbeat_answered()
    assert not progress.is_paused


def test_accept_probe() -> None:
    """An accepted probe moves match_index and next_index on and starts pipelining."""
    progress = probing()
    progress.handle_sent(9, 100)
    assert progress.handle_accepted(9)
    assert progress.state is PeerState.REPLICATE
    assert (progress.match_index, progress.next_index, progress.is_paused) == (9, 10, False)


def test_accept_probe_without_entries() -> None:
    """A probe that carried nothing shows the matching point all the same."""
    progress = probing(6)
    assert progress.handle_accepted(5)
    assert progress.state is PeerState.REPLICATE
    assert (progress.match_index, progress.next_index) == (5, 6)


def test_accept_below_probe() -> None:
    """A late answer below the place that is probed is news, but does not end the probing."""
    progress = probing(6)
    progress.handle_sent(9, 100)
    assert progress.handle_accepted(3)
    assert progress.state is PeerState.PROBE
    assert (progress.match_index, progress.next_index, progress.is_paused) == (3, 6, True)


def test_send_moves_next_index() -> None:
    """While replicating, next_index moves on when a message is sent."""
    progress = replicating(5)
    progress.handle_sent(8, 100)
    progress.handle_sent(9, 100)
    assert (progress.match_index, progress.next_index) == (5, 10)
    assert progress.status(2).in_flight_messages == 2


@pytest.mark.parametrize(("size_bytes", "sent"), [(1, 3), (400, 3), (500, 2), (999, 2), (5000, 1)])
def test_window_bounds(size_bytes: int, sent: int) -> None:
    """The window closes at its number of messages or when its bytes are reached; one message
    always fits."""
    progress = replicating(5)
    count = 0
    while not progress.is_paused:
        progress.handle_sent(6 + count, size_bytes)
        count += 1
    assert count == sent


def test_accept_opens_window() -> None:
    """An acknowledgement takes every message up to it out of the window, with its bytes."""
    progress = replicating(5)
    for last_index in (6, 7, 8):
        progress.handle_sent(last_index, 400)
    closed = [progress.is_paused]
    progress.handle_accepted(7)
    assert progress.status(2).in_flight_messages == 1
    for last_index in (9, 10):
        progress.handle_sent(last_index, 400)
        closed.append(progress.is_paused)
    assert closed == [True, False, True]


def test_accept_part_of_message() -> None:
    """A message that is acknowledged in part only stays in the window."""
    progress = replicating(5)
    progress.handle_sent(9, 400)
    assert progress.handle_accepted(7)
    assert (progress.match_index, progress.next_index) == (7, 10)
    assert progress.status(2).in_flight_messages == 1


def test_accept_stale() -> None:
    """An acknowledgement that is older than what is known, or equal, is no news."""
    progress = replicating(5)
    assert not progress.handle_accepted(5)
    assert not progress.handle_accepted(2)
    assert (progress.match_index, progress.next_index) == (5, 6)


def test_accept_beyond_next_index() -> None:
    """A follower that holds more than was sent in this leadership moves next_index with it."""
    progress = replicating(5)
    assert progress.handle_accepted(8)
    assert (progress.match_index, progress.next_index) == (8, 9)


def test_reject_probe() -> None:
    """A rejected probe moves next_index back to where the caller says, and the next may go."""
    progress = probing(6)
    progress.handle_sent(9, 100)
    assert progress.handle_rejected(5, 3)
    assert (progress.next_index, progress.is_paused, progress.state) == (3, False, PeerState.PROBE)


def test_reject_moves_back_at_least_one() -> None:
    """A rejection moves next_index back even when the hint would not."""
    progress = probing(6)
    assert progress.handle_rejected(5, 9)
    assert progress.next_index == 5


@pytest.mark.parametrize("rejected_index", [0, 3, 4, 6, 9])
def test_reject_probe_not_asked(rejected_index: LogIndex) -> None:
    """A rejection of another place than the one that is probed changes nothing."""
    progress = probing(6)
    progress.handle_sent(9, 100)
    before = progress.key()
    assert not progress.handle_rejected(rejected_index, 1)
    assert progress.key() == before


def test_reject_while_replicating() -> None:
    """A gap in the pipeline ends it: probing goes on above match_index with an empty window."""
    progress = replicating(5)
    for last_index in (6, 7, 8):
        progress.handle_sent(last_index, 400)
    assert progress.handle_rejected(7, 2)
    assert progress.state is PeerState.PROBE
    assert (progress.match_index, progress.next_index) == (5, 6)
    assert progress.status(2).in_flight_messages == 0
    assert not progress.is_paused


@pytest.mark.parametrize("rejected_index", [0, 5, 9, 12])
def test_reject_stale_while_replicating(rejected_index: LogIndex) -> None:
    """What the peer is known to hold, and what was never sent, cannot be rejected."""
    progress = replicating(5)
    progress.handle_sent(8, 100)
    before = progress.key()
    assert not progress.handle_rejected(rejected_index, 1)
    assert progress.key() == before


def test_window_forgotten_with_pipeline() -> None:
    """Bytes of a pipeline that was given up do not count in the next."""
    progress = replicating(5)
    progress.handle_sent(6, 999)
    progress.handle_rejected(6, 6)
    progress.handle_accepted(6)
    progress.handle_sent(7, 999)
    assert not progress.is_paused


@pytest.mark.parametrize("seed", range(20))
def test_random_answers_keep_rules(seed: int) -> None:
    """Whatever answers arrive, match_index never falls, stays below next_index, and the window
    holds its bounds."""
    random = Random(seed)
    progress = Progress(random.randrange(1, 10), LIMITS)
    for _ in range(300):
        match_index = progress.match_index
        action = random.randrange(4)
        if action == 0 and not progress.is_paused:
            progress.handle_sent(progress.next_index + random.randrange(3), random.randrange(600))
        elif action == 1:
            progress.handle_accepted(random.randrange(match_index + 3))
        elif action == 2:
            progress.handle_rejected(random.randrange(20), random.randrange(1, 20))
        elif action == 3:
            progress.handle_heartbeat_answered()
        assert match_index <= progress.match_index < progress.next_index
        in_flight = progress.status(2).in_flight_messages
        assert in_flight <= LIMITS.in_flight_messages_max
        if progress.state is PeerState.REPLICATE and in_flight == 0:
            assert not progress.is_paused, "an empty window is closed: bytes were lost count of"


def test_clone_independent() -> None:
    """A clone has an equal key and goes its own way, window included."""
    progress = replicating(5)
    progress.recently_active = True
    progress.handle_sent(7, 400)
    clone = progress.clone()
    assert clone.key() == progress.key()
    assert clone.status(2) == progress.status(2)
    before = progress.key()
    clone.handle_sent(8, 400)
    clone.handle_accepted(7)
    clone.recently_active = False
    assert progress.key() == before
    assert clone.key() != before


def test_clone_everything() -> None:
    """A clone knows of a probe under way and of the commit index that was told."""
    fresh = probing()
    assert fresh.clone().key() == fresh.key()
    progress = probing()
    progress.handle_sent(9, 100)
    progress.commit_sent = 4
    assert progress.clone().key() == progress.key()
    assert progress.clone().is_paused


def test_clone_same_future() -> None:
    """A clone closes its window at the same byte as the original."""
    progress = replicating(5)
    progress.handle_sent(6, 600)
    for copy in (progress, progress.clone()):
        closed = [copy.is_paused]
        copy.handle_sent(7, 400)
        assert [*closed, copy.is_paused] == [False, True]


def test_key_tells_commit_sent_apart() -> None:
    """Two peers that were told different commit indexes behave differently and have other keys."""
    one, other = replicating(5), replicating(5)
    other.commit_sent = 5
    assert one.key() != other.key()


def test_status_reports_activity() -> None:
    """The picture for people says whether the peer was heard since the last check."""
    progress = replicating(5)
    silent = progress.status(2)
    progress.recently_active = True
    assert progress.status(2) == replace(silent, recently_active=True)


def test_stored_entries_in_small_portions() -> None:
    """What has to be read back goes a few messages at a time, and what is in memory does not."""
    limits = Limits()
    progress = Progress(1, limits)
    progress.handle_accepted(0)
    for last_index in range(1, STORED_MESSAGES_MAX + 1):
        assert not progress.pauses_below(held_index=1000)
        progress.handle_sent(last_index, 100)
    assert progress.pauses_below(held_index=1000)
    assert not progress.pauses_below(held_index=progress.next_index)
    progress.handle_accepted(1)
    assert not progress.pauses_below(held_index=1000)


def test_paused_wherever_the_entries_are() -> None:
    """A full window pauses also where everything is in memory."""
    progress = replicating()
    progress.handle_sent(9, LIMITS.in_flight_bytes_max)
    assert progress.pauses_below(held_index=0)
