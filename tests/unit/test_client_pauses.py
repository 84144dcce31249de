"""A client that is told when to come back comes no earlier, and not all at once."""

from __future__ import annotations

from itertools import pairwise

import pytest
from client_world import Asked, Peer, World

from replog.cbor import strict_dumps
from replog.client_core import failure_of
from replog.errors import DiskFull, NotDone, Overloaded
from replog.frames import RETRY_AFTER_MS_MAX, FrameCodec, FrameType, Outcome, Reply, retry_after_in
from replog.limits import Limits
from replog.types import ReadLevel
from replog.wire import FrameReader

HINT_MS = 400


def sent_command(world: World, body: bytes = b"x", seconds: float = 10.0) -> tuple[Asked, Peer]:
    """A command that a leader has read and not answered."""
    command = world.ask(body, seconds)
    peer = world.lead() if world.logic.leading is None else world.peer_of(world.logic.leading)
    peer.write()
    return command, peer


def refuse_all(peer: Peer, code: str = "Overloaded", retry_after_ms: int = HINT_MS) -> int:
    """Refuse every command that the node has; how many there were."""
    requests = [request for request, _ in peer.requests.values()]
    for request in requests:
        peer.send(peer.answer(request, Outcome.NOT_DONE, code=code, retry_after_ms=retry_after_ms))
    return len(requests)


# --- In a reply ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", 0),
        (strict_dumps({"retry_after_ms": 250}), 250),
        (strict_dumps({"more": [1], "retry_after_ms": 250}), 250),
        (strict_dumps({"retry_after_ms": 10**9}), RETRY_AFTER_MS_MAX),
        (strict_dumps({"retry_after_ms": -5}), 0),
        (strict_dumps({"retry_after_ms": True}), 0),
        (strict_dumps({"retry_after_ms": "soon"}), 0),
        (strict_dumps({}), 0),
        (strict_dumps([250]), 0),
        (b"\xff", 0),
        (b"\xa1", 0),
    ],
)
def test_hint_in_a_reply(value: bytes, expected: int) -> None:
    """What a node says in the way that is documented is taken, and all else is no hint."""
    assert retry_after_in(value) == expected
    reply = Reply(1, Outcome.NOT_DONE, 0, value, "Overloaded", "a sentence", 0, "")
    failure = failure_of(reply, 1, 7)
    assert isinstance(failure, Overloaded)
    assert failure.retry_after_ms == expected


def test_hint_fits_where_earlier_releases_look_away() -> None:
    """The frame of a refusal with a hint has the eight fields that it always had, and only the
    value, which is nothing but a result to earlier releases, differs."""
    codec = FrameCodec(Limits())
    plain = Reply(7, Outcome.NOT_DONE, 0, b"", "Overloaded", "a sentence", 0, "")
    hinted = Reply(7, Outcome.NOT_DONE, 0, b"\xa1\x61k\x01", "Overloaded", "a sentence", 0, "")
    contents = []
    for reply in (plain, hinted):
        reader = FrameReader(codec.limits_of(FrameType.REPLY))
        ((frame_type, content),) = reader.feed(codec.encode(reply))
        assert codec.decode(frame_type, content) == reply
        contents.append(content)
    assert contents[0][:1] == contents[1][:1] == b"\x88"


# --- Asked again --------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["Overloaded", "DiskFull"])
@pytest.mark.parametrize("dice", [0.0, 0.5, 1.0])
def test_no_command_before_its_time(code: str, dice: float) -> None:
    """A refused command is sent again when the leader said, or up to half of that later."""
    world = World(dice=dice)
    command, peer = sent_command(world)
    for _ in range(3):
        refused_at = world.now
        assert refuse_all(peer, code) == 1
        while not peer.requests:
            world.pass_time(0.005)
            assert world.now < refused_at + 1
        waited = world.now - refused_at
        expected = HINT_MS / 1000 * (1 + 0.5 * dice)
        assert expected - 0.001 <= waited <= expected + 0.03
    peer.write()
    peer.send(peer.answer(next(iter(peer.requests.values()))[0]))
    assert world.settled == [command]
    assert command.applied is not None


def test_own_pauses_go_on_growing() -> None:
    """A hint that is shorter than the client's own pause does not shorten that."""
    world = World()
    _, peer = sent_command(world)
    sent_at = []
    for _ in range(8):
        sent_at.append(world.now)
        assert refuse_all(peer, retry_after_ms=20) == 1
        while not peer.requests:
            world.pass_time(0.005)
    gaps = [after - before for before, after in pairwise(sent_at)]
    assert gaps[0] < 0.06
    assert gaps[-1] > 0.45


def test_other_commands_wait_and_queries_pass() -> None:
    """While the leader has no room, new commands do not leave, and queries do."""
    world = World(dice=0.0)
    _, peer = sent_command(world)
    refuse_all(peer)
    commands = [world.ask(b"%d" % number) for number in range(20)]
    query = world.logic.query(world.now, b"q", ReadLevel.LINEARIZABLE, None, None, 5.0, "reader")
    world.turn()
    assert [request.verb for request, _ in peer.requests.values()] == ["query"]
    world.pass_time(0.3)
    assert len(peer.requests) == 1
    world.pass_time(0.15)
    assert len(peer.requests) == 22, "everything that waited has left, and the one before it"
    assert query.failure is None
    assert all(command.line is not None for command in commands)


def test_refused_together_do_not_come_back_together() -> None:
    """Commands that were refused at one moment come back over a stretch of time."""
    world = World()
    peer = sent_command(world)[1]
    for number in range(9):
        world.ask(b"%d" % number)
    for number, (request, _) in enumerate(list(peer.requests.values())):
        world.dice = number / 9
        peer.send(peer.answer(request, Outcome.NOT_DONE, code="Overloaded", retry_after_ms=HINT_MS))
    began, arrivals = world.now, []
    while len(arrivals) < 10:
        world.pass_time(0.01)
        arrivals += [world.now - began] * (len(peer.requests) - len(arrivals))
        assert world.now < began + 2
    assert len(set(arrivals)) >= 8
    assert min(arrivals) >= HINT_MS / 1000 - 0.001
    assert max(arrivals) <= 1.5 * HINT_MS / 1000 + 0.03


def test_leader_is_not_hammered() -> None:
    """A leader that refuses everything is asked a few times in a second, whatever queues up."""
    world = World()
    peer = sent_command(world, seconds=60.0)[1]
    asked_count, began = 0, world.now
    while world.now < began + 4:
        asked_count += bool(refuse_all(peer))
        world.ask(b"%f" % world.now, 60.0)
        world.pass_time(0.01)
    # What came meanwhile comes back spread over half of the hint, in looks of 10 ms at most.
    assert asked_count >= 4
    assert sum(map(len, world.sends.values())) < 12 * len(world.sends)


# --- Deadlines ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "made"), [("Overloaded", Overloaded), ("DiskFull", DiskFull)])
def test_deadline_before_the_hint(code: str, made: type[Overloaded]) -> None:
    """Whose deadline comes first ends there, is told when to come back, and was sent once."""
    world = World()
    command, peer = sent_command(world, seconds=0.2)
    refuse_all(peer, code)
    world.pass_time(0.25)
    assert world.settled == [command]
    assert type(command.failure) is made
    assert command.failure.retry_after_ms == HINT_MS
    assert len(world.sends[b"x"]) == 1


def test_deadline_of_what_never_left() -> None:
    """A command that was held back, as others were refused, ends with what those were told."""
    world = World()
    first, peer = sent_command(world)
    refuse_all(peer)
    held = world.ask(b"held", 0.1)
    world.pass_time(0.15)
    assert world.settled == [held]
    assert isinstance(held.failure, Overloaded)
    assert held.failure.retry_after_ms == HINT_MS
    assert held.failure is not first.failure, "an error that is raised belongs to one caller"
    assert b"held" not in world.sends


def test_nothing_stays_of_what_was_refused() -> None:
    """When refused commands have ended, the client holds nothing of them and wants no turn."""
    world = World()
    peer = sent_command(world, seconds=0.3)[1]
    for number in range(20):
        world.ask(b"%d" % number, 0.3)
    refuse_all(peer)
    world.pass_time(0.5)
    assert len(world.settled) == 21
    assert {type(command.failure) for command in world.settled} == {Overloaded}
    logic = world.logic
    assert (logic.unsettled_count, logic.queued_count) == (0, 0)
    assert peer.line.core.unanswered_count == 0
    assert world.logic.next_time() - world.now > 0.1, "there is but the line to look after"


def test_cancelled_while_it_waits() -> None:
    """A command that is given up during its pause is not sent again."""
    world = World()
    command, peer = sent_command(world)
    refuse_all(peer)
    world.logic.cancel(command)
    world.pass_time(2)
    assert len(world.sends[b"x"]) == 1
    assert world.logic.queued_count == 0


# --- Another leader -----------------------------------------------------------------------------


def refused_and_reconnected(world: World, address: str) -> tuple[Asked, Asked, Peer]:
    """A command that node 1 has refused for a second, one that was held back for that, and the line
    to whoever leads when that to node 1 has ended."""
    command, peer = sent_command(world)
    refuse_all(peer, "DiskFull", 1000)
    held = world.ask(b"held")
    assert not peer.requests
    world.end(peer)
    world.logic.query(world.now, b"q", ReadLevel.LINEARIZABLE, None, None, 5.0, "reader")
    world.turn()
    while world.peers[-1].line.address != address:
        world.fail(world.peers[-1])
        world.pass_time(0.03)
    return command, held, world.lead()


def test_same_leader_over_another_connection() -> None:
    """A leader that has no room has none over a new connection either."""
    world = World()
    _, _, again = refused_and_reconnected(world, "a:1")
    assert [request.verb for request, _ in again.requests.values()] == ["query"]
    world.pass_time(1.6)
    assert len(again.requests) == 3


def test_another_leader_is_asked_at_once() -> None:
    """What one leader had no room for leaves as soon as another one leads."""
    world = World()
    began = world.now
    command, held, new = refused_and_reconnected(world, "b:2")
    bodies = sorted(request.body for request, _ in new.requests.values())
    assert bodies[:2] == [b"held", b"x"]
    assert world.now < began + 0.5
    assert isinstance(command.failure, NotDone), "what the old leader said, until it ends"
    new.write()
    for request, _ in list(new.requests.values()):
        new.send(new.answer(request))
    assert {command, held} <= set(world.settled)
