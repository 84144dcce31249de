"""What a client decides, event by event, without any I/O."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from client_world import ADDRESSES, Asked, Peer, World

from replog import client_lines
from replog.cbor import strict_loads
from replog.client_actions import NEVER
from replog.client_queue import GRAIN_SECONDS
from replog.client_session import PROPOSE, PROPOSE_IN_SESSION, QUERY, ClientSession
from replog.envelope import SESSION_BLOCK
from replog.errors import (
    AddressError,
    BadCommand,
    CommandFailed,
    DumpUnavailable,
    OutcomeUnknown,
    Overloaded,
    QueryFailed,
    Refused,
    SessionExpired,
    Unavailable,
)
from replog.frames import ClientHello, Outcome, Request
from replog.limits import Limits
from replog.types import Applied, ReadLevel

SMALL = Limits(client_requests_max=2)


def sent_command(world: World, body: bytes = b"x", seconds: float = 10.0) -> tuple[Asked, Peer]:
    """A command that a leader has read and not answered."""
    command = world.ask(body, seconds)
    peer = world.lead() if world.logic.leading is None else world.peer_of(world.logic.leading)
    peer.write()
    return command, peer


def failure_in(world: World) -> str:
    """The error of the last command that ended, as a sentence."""
    return str(world.settled[-1].failure)


# --- Done, and in one go ------------------------------------------------------------------------


def test_nothing_is_connected_before_something_is_asked() -> None:
    """A client that is open and idle does nothing, and wants no time."""
    world = World()
    world.turn()
    assert not world.peers
    assert world.logic.next_time() == NEVER


def test_turn_sends_all_that_is_queued() -> None:
    """What was asked since the last turn leaves as one piece of bytes, in order."""
    world = World()
    sent_command(world)
    for number in range(50):
        world.logic.propose(world.now, b"%d" % number, 1.0, "caller")
    world.logic.turn(world.now)
    assert len(world.logic._actions) == 1
    world.act()
    peer = world.peers[0]
    assert [request.body for request, _ in peer.requests.values()][1:] == [
        b"%d" % number for number in range(50)
    ]


def test_replies_settle_their_commands_in_any_order() -> None:
    """Each command gets its own reply."""
    world = World()
    first, peer = sent_command(world, b"1")
    second, _ = sent_command(world, b"2")
    one, two = (request for request, _ in peer.requests.values())
    peer.send(peer.answer(two, value="b"), peer.answer(one, value="a"))
    assert world.settled == [second, first]
    assert (first.applied, second.applied) == (Applied(1, "a"), Applied(1, "b"))
    assert world.logic.unsettled_count == 0


def test_room_is_used_again() -> None:
    """What does not fit among the requests in flight leaves when a reply has made room."""
    world = World(limits=SMALL)
    _, peer = sent_command(world, b"1")
    world.ask(b"2")
    world.ask(b"3")
    assert world.logic.queued_count == 1
    peer.send(peer.answer(peer.requests[1][0]))
    assert world.logic.is_turn_due
    world.turn()
    assert world.logic.queued_count == 0


def test_bytes_on_their_way_are_bounded() -> None:
    """What does not fit into the queue of bytes leaves when the kernel has taken some."""
    limits = Limits(
        command_bytes_max=1000,
        message_bytes_max=1000,
        snapshot_chunk_bytes=1000,
        frame_bytes_max=8000,
        client_queue_bytes_max=8000,
    )
    world = World(limits=limits)
    _, peer = sent_command(world)
    for number in range(20):
        world.ask(b"%d" % number * 400)
    assert 4000 < len(peer.unsent) <= 8000
    held_back = world.logic.queued_count
    assert held_back
    peer.write(3000)
    assert world.logic.is_turn_due
    world.turn()
    assert world.logic.queued_count < held_back
    assert len(peer.unsent) <= 8000


# --- Not done, later, or elsewhere ---------------------------------------------------------------


def test_not_leader_goes_to_the_hint() -> None:
    """A command that was not taken is sent to the node that is named, once nothing is owed."""
    world = World(addresses=["a:1"])
    command, peer = sent_command(world)
    peer.send(peer.answer(peer.requests[1][0], Outcome.NOT_DONE, code="NotLeader", leader_id=3))
    assert not world.peers, "no command was done over that line, so there is a pause"
    world.pass_time(0.05)
    assert [each.line.address for each in world.peers] == ["c:3"]
    leader = world.lead()
    leader.write()
    assert [request.body for request, _ in leader.requests.values()] == [b"x"]
    assert not world.settled
    leader.send(leader.answer(leader.requests[1][0]))
    assert world.settled == [command]


def test_retired_leader_has_a_second_to_answer() -> None:
    """A leader that says that it does not lead is left a second later, whatever it owes."""
    world = World()
    lost, peer = sent_command(world, b"lost")
    sent_command(world, b"next")
    peer.send(peer.answer(peer.requests[2][0], Outcome.NOT_DONE, code="NotLeader", leader_id=2))
    world.pass_time(0.9)
    assert world.peers == [peer]
    world.pass_time(0.2)
    assert peer not in world.peers
    assert world.settled == [lost]
    assert isinstance(lost.failure, OutcomeUnknown)
    assert "node 1 does not lead any more" in failure_in(world)


@pytest.mark.parametrize("dice", [0.0, 1.0])
def test_pauses_grow_and_end_at_the_deadline(dice: float) -> None:
    """A busy leader is tried again and again, ever more seldom, and never behind the deadline."""
    world = World(dice=dice)
    command, peer = sent_command(world, seconds=3.0)
    tries: list[float] = []
    began = world.now
    while not world.settled:
        for request, _ in list(peer.requests.values()):
            tries.append(world.now)
            peer.send(peer.answer(request, Outcome.NOT_DONE, code="Overloaded"))
        world.pass_time(0.01)
        peer.write()
    assert isinstance(command.failure, Overloaded)
    assert world.now - began == pytest.approx(3.0, abs=0.05)
    gaps = [after - before for before, after in pairwise(tries)]
    assert 4 < len(gaps) < 20
    assert gaps[0] < 0.05
    assert 0.25 <= max(gaps) <= 0.53


def test_busy_leader_and_a_deadline_before_the_pause_is_over() -> None:
    """A pause that would end behind the deadline ends at it, with what the leader said."""
    world = World()
    command, peer = sent_command(world, seconds=0.015)
    peer.send(peer.answer(peer.requests[1][0], Outcome.NOT_DONE, code="DiskFull"))
    world.pass_time(0.03)
    assert world.settled == [command]
    assert isinstance(command.failure, Overloaded)
    assert len(world.sends[b"x"]) == 1


def test_pause_that_ends_between_a_deadline_and_the_look_at_it() -> None:
    """Deadlines are looked at in grains; a command whose deadline has just passed is not sent."""
    world = World()
    command, peer = sent_command(world, seconds=0.0195)
    sent_command(world, b"other", seconds=0.019)
    peer.send(peer.answer(peer.requests[1][0], Outcome.NOT_DONE, code="Overloaded"))
    world.pass_time(0.0201)
    assert [each.body for each in world.settled] == [b"other"]
    assert len(world.sends[b"x"]) == 1
    world.pass_time(GRAIN_SECONDS)
    assert world.settled[1:] == [command]
    assert isinstance(command.failure, Overloaded)


def test_welcome_that_comes_too_late() -> None:
    """An address that took too long is not used when it answers while its line is closed."""
    world = World(addresses=["a:1"], closes_late=True)
    world.ask()
    world.connect(world.peers[0], greet=False)
    world.peers[0].write()
    world.pass_time(2.1)
    (peer,) = world.closing
    peer.send(peer.hello())
    assert world.logic.leading is None
    world.end(peer)
    assert "no answer within 2 s" in world.logic.search.reasons()


def test_search_pauses_between_rounds() -> None:
    """When nobody leads, the rounds come ever more seldom, and each tries every address once."""
    world = World()
    world.ask(seconds=60.0)
    rounds: list[float] = []
    for _ in range(8):
        tried = []
        while world.peers:
            tried.append(world.peers[0].line.address)
            world.fail(world.peers[0])
        assert sorted(tried) == sorted(ADDRESSES.values())
        rounds.append(world.logic.next_time() - world.now)
        world.now = world.logic.next_time()
        world.tell_time()
    assert rounds == sorted(rounds)
    assert rounds[0] == pytest.approx(0.02)
    assert rounds[-1] == pytest.approx(0.5)


def test_deadline_while_nobody_leads() -> None:
    """A command that no leader took is not done, and the sentence names every address."""
    world = World(addresses=["a:1", "b:2"])
    world.ask(seconds=0.2)
    for _ in range(2):
        world.fail(world.peers[0])
    world.pass_time(0.5)
    assert isinstance(world.settled[0].failure, Unavailable)
    assert "a:1: connection refused; b:2: connection refused" in failure_in(world)
    assert not world.sends


def test_attempt_takes_only_so_long() -> None:
    """An address that takes connections and says nothing is left for the next one."""
    world = World(addresses=["a:1", "b:2"])
    command = world.ask()
    world.connect(world.peers[0], greet=False)
    world.pass_time(1.9)
    assert [peer.line.address for peer in world.peers] == ["a:1"]
    world.pass_time(0.2)
    assert [peer.line.address for peer in world.peers] == ["b:2"]
    leader = world.lead()
    leader.write()
    leader.send(leader.answer(leader.requests[1][0]))
    assert world.settled == [command]
    assert command.failure is None


def test_all_addresses_refuse() -> None:
    """When every address says that it will not do, it is told at once, with the sentences."""
    world = World(addresses=["a:1", "b:2"])
    world.ask()
    for _ in range(2):
        peer = world.peers[0]
        world.connect(peer, greet=False)
        peer.refuse("out of here")
    assert isinstance(world.settled[0].failure, Refused)
    assert "a:1: out of here; b:2: out of here" in failure_in(world)
    world.ask()
    assert world.peers, "the next command tries again"


def test_named_address_that_is_none() -> None:
    """A node that names something as the leader's address that is none keeps nobody up."""
    world = World(addresses=["a:1"])
    world.ask()
    peer = world.connect(world.peers[0], greet=False)
    peer.write()
    hello = peer.hello(leader_id=2)
    members = ((1, "a:1"), (2, "nowhere"))
    peer.send(type(hello)(1, "c", 1, 2, members))
    assert not world.peers
    world.pass_time(0.1)
    assert [each.line.address for each in world.peers] == ["a:1"]


def test_limits_of_the_leader_are_the_callers_errors() -> None:
    """What no node would do better ends the command at once."""
    world = World()
    command, peer = sent_command(world)
    peer.send(peer.answer(peer.requests[1][0], Outcome.NOT_DONE, code="BadCommand"))
    assert isinstance(command.failure, BadCommand)


# --- Unknown ------------------------------------------------------------------------------------


def test_end_of_a_connection_splits_what_left_from_what_did_not() -> None:
    """A command of which the last byte left is unknown; one that lacks a byte is sent again."""
    world = World()
    _, peer = sent_command(world)
    gone, torn = world.ask(b"gone"), world.ask(b"torn")
    ends = [end for _, end in peer.requests.values()]
    peer.write(ends[2] - 1 - peer.sent_bytes)
    peer.end()
    assert [command.body for command in world.settled] == [b"x", b"gone"]
    assert isinstance(gone.failure, OutcomeUnknown)
    assert torn in world.logic._queue
    world.pass_time(0.1)
    peer = world.lead()
    peer.write()
    peer.send(peer.answer(peer.requests[1][0]))
    assert (torn.failure, torn.applied) == (None, Applied(1, None))


def test_deadline_in_flight_is_unknown() -> None:
    """A command that left and was not answered in time is unknown, and its late reply ignored."""
    world = World()
    command, peer = sent_command(world, seconds=0.1)
    world.pass_time(0.2)
    assert isinstance(command.failure, OutcomeUnknown)
    peer.send(peer.answer(peer.requests[1][0]))
    assert world.settled == [command]
    assert world.logic.leading is peer.line


def test_failed_reply_is_done() -> None:
    """An error that the state machine declares is a result."""
    world = World()
    command, peer = sent_command(world)
    reply = peer.answer(peer.requests[1][0], Outcome.FAILED, code="KvError")
    peer.send(reply)
    assert isinstance(command.failure, CommandFailed)


# --- Life and silence ---------------------------------------------------------------------------


def test_keepalives_are_sent_and_silence_ends_a_line() -> None:
    """A line over which nothing comes is given up after the idle time; meanwhile it is told that
    the client lives."""
    world = World(addresses=["a:1"], limits=Limits(connection_idle_ms=1000))
    command, peer = sent_command(world, seconds=60.0)
    world.pass_time(0.9)
    assert peer.keepalive_count == 1, "none is sent behind one that waits"
    world.pass_time(0.5)
    assert world.settled == [command]
    assert "nothing was heard for 1 s" in failure_in(world)


def test_paused_process_gives_up_nobody() -> None:
    """A process that was stopped for long looks again before it gives a line up."""
    world = World(limits=Limits(connection_idle_ms=1000))
    _, peer = sent_command(world, seconds=600.0)
    world.now += 300.0
    world.tell_time()
    assert not peer.line.is_closing
    assert world.logic._doubted is None


def test_silent_leader_is_succeeded_and_drains() -> None:
    """When a leader owes replies and another one leads, new commands go there; the old line ends
    with its last reply, and there is one such line at most."""
    world = World(addresses=["a:1", "b:2"])
    old, silent = sent_command(world, b"old")
    world.pass_time(client_lines.REPLY_SECONDS_MAX + 0.1)
    successor = world.lead()
    assert successor.node_id == 2
    assert world.logic.draining is silent.line
    new, _ = sent_command(world, b"new")
    world.pass_time(3.0)
    assert len(world.peers) == 2, "the successor is silent too, and nobody else is asked"
    silent.send(silent.answer(silent.requests[1][0]))
    assert world.settled == [old]
    assert silent not in world.peers
    assert world.logic.draining is None
    successor.send(successor.answer(successor.requests[1][0]))
    assert world.settled == [old, new]


def test_silent_leader_that_nobody_succeeds() -> None:
    """While nobody else leads, the silent leader keeps its line, and is doubted again later."""
    world = World(addresses=["a:1", "b:2"])
    command, peer = sent_command(world)
    for _ in range(3):
        world.pass_time(client_lines.REPLY_SECONDS_MAX + 0.1)
        asked = []
        while len(world.peers) > 1:
            asked.append(world.peers[-1].node_id)
            world.connect(world.peers[-1], leader_id=1)
        assert asked == [2, 3]
    assert world.logic.leading is peer.line
    peer.send(peer.answer(peer.requests[1][0]))
    assert world.settled == [command]


def test_doubted_leader_that_hangs_up() -> None:
    """When the silent leader's line ends while others are asked, one of them may still be it."""
    world = World(addresses=["a:1", "b:2"])
    sent_command(world, b"lost")
    waits = world.ask(b"waits", seconds=5.0)
    world.pass_time(client_lines.REPLY_SECONDS_MAX + 0.1)
    world.peers[0].end()
    assert isinstance(world.settled[0].failure, OutcomeUnknown)
    leader = world.lead()
    assert leader.node_id == 2
    leader.write()
    assert waits.line is leader.line


# --- Cancelling and closing ---------------------------------------------------------------------


def test_cancel_wherever_a_command_is() -> None:
    """A cancelled command leaves nothing behind: queued, in flight, or while a leader is busy."""
    world = World(limits=SMALL)
    queued = world.ask(b"queued")
    world.logic.cancel(queued)
    flying, peer = sent_command(world, b"flying")
    world.logic.cancel(flying)
    paused, _ = sent_command(world, b"paused")
    peer.send(peer.answer(peer.requests[2][0], Outcome.NOT_DONE, code="Overloaded"))
    world.logic.cancel(paused)
    world.logic.cancel(paused)
    assert (world.logic.unsettled_count, world.logic.queued_count) == (0, 0)
    assert (peer.line.core.open_count, peer.line.core.unanswered_count) == (0, 1)
    peer.send(peer.answer(peer.requests[1][0]))
    assert peer.line.core.unanswered_count == 0
    world.pass_time(20.0)
    assert world.settled == []
    assert set(world.sends) == {b"flying", b"paused"}


def test_cancel_the_last_of_a_draining_line() -> None:
    """A line that only drains ends when nobody waits for its last reply any more."""
    world = World(addresses=["a:1", "b:2"])
    command, silent = sent_command(world)
    world.pass_time(client_lines.REPLY_SECONDS_MAX + 0.1)
    world.lead()
    world.logic.cancel(command)
    world.act()
    assert silent not in world.peers


def test_close_tells_what_is_known() -> None:
    """Closing ends every wait: unknown is what left, the rest is definitely not done."""
    world = World(limits=Limits(client_requests_max=3))
    left, peer = sent_command(world, b"left")
    torn = world.ask(b"torn")
    peer.write(5)
    paused = world.ask(b"paused")
    peer.send(peer.answer(peer.requests[3][0], Outcome.NOT_DONE, code="Overloaded"))
    waits = [world.ask(b"%d" % number) for number in range(3)]
    asked = world.question()
    world.logic.close()
    world.act()
    assert isinstance(left.failure, OutcomeUnknown)
    assert {type(each.failure) for each in (torn, paused, asked, *waits)} == {Unavailable}
    assert not world.peers
    assert world.logic.unsettled_count == 0
    assert world.logic.next_time() == NEVER


def test_events_of_a_line_that_has_ended_are_ignored() -> None:
    """Whatever crosses the end of a line changes nothing."""
    world = World()
    _, peer = sent_command(world)
    reply = peer.answer(peer.requests[1][0])
    peer.end()
    settled = list(world.settled)
    peer.send(reply, b"garbage")
    world.logic.connected(peer.line)
    world.logic.failed(world.now, peer.line, "late")
    world.logic.ended(world.now, peer.line, 0)
    world.act()
    assert world.settled == settled


# --- Questions ----------------------------------------------------------------------------------


def test_question_goes_to_the_next_address() -> None:
    """A question that is not answered at one address is asked at the next, over its own line."""
    world = World()
    question = world.question()
    world.fail(world.peers[0])
    peer = world.lead(leader_id=0)
    peer.write()
    peer.end()
    peer = world.lead(leader_id=0)
    peer.write()
    peer.send(peer.answer(peer.requests[1][0], value={"node": 3}))
    assert world.settled == [question]
    assert question.applied == Applied(1, {"node": 3})
    assert not world.peers


def test_question_ends_with_every_reason() -> None:
    """A question that nobody answers names each address and what was wrong there."""
    world = World(addresses=["a:1", "b:2"])
    question = world.question()
    world.fail(world.peers[0])
    world.connect(world.peers[0], greet=False).end()
    assert isinstance(question.failure, Unavailable)
    assert "a:1: connection refused; b:2: the connection ended before" in failure_in(world)


def test_question_to_a_node_whose_address_is_not_known() -> None:
    """Whoever welcomes the client names the members; an id that is none of them is refused."""
    world = World(addresses=["a:1"])
    question, stray = world.question(3), world.question(7)
    for peer in list(world.peers):
        world.connect(peer)
    assert isinstance(stray.failure, AddressError)
    assert "no node 7; its nodes are 1, 2, 3" in str(stray.failure)
    (peer,) = world.peers
    assert peer.line.address == "c:3"
    world.connect(peer).write()
    peer.send(peer.answer(peer.requests[1][0], Outcome.NOT_DONE, code="DumpUnavailable"))
    assert isinstance(question.failure, DumpUnavailable)


def test_question_and_its_deadline() -> None:
    """A question ends at its deadline, and its line with it, also when it is cancelled."""
    world = World()
    question = world.question(seconds=0.5)
    world.lead().write()
    world.pass_time(0.6)
    assert isinstance(question.failure, Unavailable)
    assert "nothing came within 0.5 s" in failure_in(world)
    assert not world.peers
    world.logic.cancel(world.question())
    world.act()
    assert not world.peers
    assert len(world.settled) == 1


# --- Any order of events ------------------------------------------------------------------------


# --- In a session -------------------------------------------------------------------------------


def numbers_of(request: Request) -> tuple[int, ...]:
    """Session, sequence and lowest of a request."""
    return SESSION_BLOCK.unpack_from(request.body)


def sent_in_session(world: World, session: ClientSession) -> tuple[Asked, Peer]:
    """A command in a session that a leader has read and not answered."""
    command = world.ask(b"once", session=session)
    peer = world.lead() if world.logic.leading is None else world.peer_of(world.logic.leading)
    peer.write()
    return command, peer


def requests_of(peer: Peer) -> list[Request]:
    """What a node has read and not answered."""
    return [request for request, _ in peer.requests.values()]


def test_lost_in_a_session_is_sent_again_under_its_number() -> None:
    """The connection ends after the command has left: the next leader gets it under its number, and
    the answer is the caller's."""
    world, session = World(), ClientSession(5)
    command, peer = sent_in_session(world, session)
    assert numbers_of(requests_of(peer)[0]) == (5, 1, 1)
    peer.end()
    world.pass_time(0.6)
    again = world.lead()
    again.write()
    (request,) = requests_of(again)
    assert numbers_of(request) == (5, 1, 1)
    assert session.repeated_count == 1
    again.send(again.answer(request, value="first"))
    assert command.applied == Applied(1, "first")
    assert session.lowest == 2


def test_lowest_is_what_the_client_awaits_when_it_sends() -> None:
    """Answers move the lowest number on, in whatever order they come; a copy says what is awaited
    when that copy leaves."""
    world, session = World(), ClientSession(5)
    _, peer = sent_in_session(world, session)
    for number in range(3):
        world.ask(b"%d" % number, session=session)
    peer.write()
    first, second, third, _ = requests_of(peer)
    peer.send(peer.answer(second))
    assert session.lowest == 1
    peer.send(peer.answer(first))
    assert session.lowest == 3
    peer.send(peer.answer(third))
    peer.end()
    world.pass_time(0.6)
    again = world.lead()
    again.write()
    assert numbers_of(requests_of(again)[0]) == (5, 4, 4)


@pytest.mark.parametrize(
    ("outcome", "code"),
    [(Outcome.UNKNOWN, "OutcomeUnknown"), (Outcome.NOT_DONE, "EntryReplaced")],
)
def test_no_answer_from_a_leader_is_sent_again(outcome: Outcome, code: str) -> None:
    """A leader that lost its place says that it does not know: in a session that is no answer."""
    world, session = World(), ClientSession(5)
    command, peer = sent_in_session(world, session)
    peer.send(peer.answer(requests_of(peer)[0], outcome, code=code))
    assert not world.settled
    world.turn()
    peer.write()
    (request,) = requests_of(peer)
    peer.send(peer.answer(request, value=3))
    assert command.applied == Applied(1, 3)
    assert session.repeated_count == (1 if outcome is Outcome.UNKNOWN else 0)


def test_session_that_is_gone() -> None:
    """A command that was sent once is not done; one whose earlier copy may be done is unknown."""
    world, session = World(), ClientSession(5)
    command, peer = sent_in_session(world, session)
    peer.send(peer.answer(requests_of(peer)[0], Outcome.NOT_DONE, code="SessionExpired"))
    assert isinstance(command.failure, SessionExpired)
    assert command.failure.session_id == 5
    command, peer = sent_in_session(world, session)
    peer.end()
    world.pass_time(0.6)
    again = world.lead()
    again.write()
    again.send(again.answer(requests_of(again)[0], Outcome.NOT_DONE, code="SessionExpired"))
    assert isinstance(command.failure, OutcomeUnknown)
    assert "does not know session 5" in failure_in(world)


def test_deadline_of_what_was_sent_before_is_unknown() -> None:
    """A command that waits to be sent again when its time is over may have been done."""
    world, session = World(addresses=["a:1"]), ClientSession(5)
    command, peer = sent_in_session(world, session)
    peer.end()
    while world.now < command.deadline:
        for each in list(world.peers):
            world.fail(each)
        world.pass_time(0.5)
    assert isinstance(command.failure, OutcomeUnknown)
    assert "was sent, and nobody answered within 10 s" in failure_in(world)
    assert session.lowest == 2, "its number is given up"


def test_only_so_many_run_ahead_of_the_first_unanswered() -> None:
    """The cluster keeps only so many answers of a session, so what is further ahead waits: it must
    not take the room of a command that is sent again."""
    limits = Limits(session_answers_max=3)
    world, session = World(limits=limits), ClientSession(5)
    commands = [world.ask(b"%d" % number, session=session) for number in range(6)]
    peer = world.lead()
    peer.write()
    first, second, third = requests_of(peer)
    assert [numbers_of(request)[1] for request in (first, second, third)] == [1, 2, 3]
    assert world.logic.queued_count == 3
    peer.send(peer.answer(second), peer.answer(third))
    world.turn()
    peer.write()
    assert requests_of(peer) == [first], "the first is not answered"
    peer.send(peer.answer(first))
    world.turn()
    peer.write()
    assert [numbers_of(request)[1] for request in requests_of(peer)] == [4, 5, 6]
    world.logic.cancel(commands[3])
    assert session.lowest == 5


def test_held_command_ends_at_its_deadline_or_by_cancelling() -> None:
    """One that waits for others of its session is not done when its time is over."""
    world, session = World(limits=Limits(session_answers_max=1)), ClientSession(5)
    sent_in_session(world, session)
    held, cancelled = (world.ask(b"held", 0.5, session), world.ask(b"cancelled", 9.0, session))
    world.turn()
    world.logic.cancel(cancelled)
    world.pass_time(0.6)
    assert isinstance(held.failure, Unavailable)
    assert world.logic.queued_count == 0


def test_frozen_leader_keeps_nothing_that_can_be_sent_again() -> None:
    """When a silent leader is succeeded, what is in a session goes to the new one at once; what is
    in none stays where it may be done."""
    world, session = World(), ClientSession(5)
    plain, peer = sent_command(world)
    once = world.ask(b"once", session=session)
    peer.write()
    world.pass_time(1.1)
    other = next(each for each in world.peers if each is not peer)
    world.connect(other)
    world.turn()
    other.write()
    (request,) = requests_of(other)
    assert numbers_of(request) == (5, 1, 1)
    assert session.repeated_count == 1
    other.send(other.answer(request, value="once"))
    assert once.applied == Applied(1, "once")
    assert plain not in world.settled


def test_refusal_of_all_addresses_does_not_end_what_was_sent() -> None:
    """Every node refuses the client after a command has left: nothing is said of the command until
    its deadline."""
    world, session = World(addresses=["a:1"]), ClientSession(5)
    command, peer = sent_in_session(world, session)
    peer.end()
    for _ in range(3):
        world.pass_time(1.0)
        world.connect(world.peers[0], greet=False)
        world.peers[0].refuse("too many clients")
    assert command not in world.settled
    while world.now < command.deadline + 0.1:
        for each in list(world.peers):
            world.fail(each)
        world.pass_time(0.5)
    assert isinstance(command.failure, OutcomeUnknown)


def test_closing_with_a_copy_that_waits_is_unknown() -> None:
    """The client is closed while a command waits to be sent again, or while its second copy has not
    left yet."""
    for is_handed_over in (False, True):
        world, session = World(), ClientSession(5)
        command, peer = sent_in_session(world, session)
        peer.end()
        if is_handed_over:
            world.pass_time(0.6)
            world.lead()
        world.logic.close()
        world.act()
        assert isinstance(command.failure, OutcomeUnknown)
        assert failure_in(world).startswith("the client was closed before the command was answered")


def test_opening_is_asked_for_again() -> None:
    """A session whose opening was not answered is opened again: nobody knows of the first."""
    world = World()
    opening = world.logic.open_session(world.now, 10.0, "caller")
    world.turn()
    peer = world.lead()
    peer.write()
    assert [request.verb for request in requests_of(peer)] == ["open_session"]
    peer.end()
    world.pass_time(0.6)
    again = world.lead()
    again.write()
    (request,) = requests_of(again)
    again.send(again.answer(request, value=9))
    assert opening.applied == Applied(1, 9)


# --- Queries ------------------------------------------------------------------------------------


def sent_query(world: World, level: ReadLevel = ReadLevel.LINEARIZABLE) -> tuple[Asked, Peer]:
    """A query that a leader has read and not answered."""
    query = world.logic.query(world.now, b"what?", level, None, None, 10.0, "caller")
    world.turn()
    peer = world.lead() if world.logic.leading is None else world.peer_of(world.logic.leading)
    peer.write()
    return query, peer


def test_query_is_asked_again() -> None:
    """A query changes nothing, so it is asked again after its connection broke."""
    world = World()
    query, peer = sent_query(world)
    peer.end()
    world.pass_time(0.6)
    again = world.lead()
    again.write()
    (request,) = requests_of(again)
    assert strict_loads(request.body) == ["linearizable", 0, b"what?"]
    again.send(again.answer(request, value="that"))
    assert query.applied == Applied(1, "that")


def test_query_at_a_node_that_lost_the_leader() -> None:
    """When a node cannot serve it the others are asked whether they lead; what is in flight at the
    first one stays there."""
    world = World()
    command, peer = sent_command(world)
    query, _ = sent_query(world)
    peer.send(peer.answer(requests_of(peer)[1], Outcome.NOT_DONE, code="Unavailable"))
    other = world.peers[-1]
    assert other.node_id != peer.node_id
    world.connect(other)
    world.pass_time(0.1)
    other.write()
    other.send(other.answer(requests_of(other)[0], value="that"))
    assert query.applied == Applied(1, "that")
    peer.send(peer.answer(requests_of(peer)[0], value="late"))
    assert command.applied == Applied(1, "late")


def test_query_that_came_too_early_is_asked_again() -> None:
    """Where nobody else leads, the same node is asked again after a pause."""
    world = World(addresses=["a:1"])
    query, peer = sent_query(world)
    peer.send(peer.answer(requests_of(peer)[0], Outcome.NOT_DONE, code="Unavailable"))
    world.pass_time(0.1)
    peer.write()
    peer.send(peer.answer(requests_of(peer)[0], value="now"))
    assert query.applied == Applied(1, "now")


@pytest.mark.parametrize("code", ["QueryFailed", "BadCommand"])
def test_query_that_fails_is_not_asked_again(code: str) -> None:
    """What the machine says of a query another node would say as well."""
    world = World()
    query, peer = sent_query(world)
    peer.send(peer.answer(requests_of(peer)[0], Outcome.NOT_DONE, code=code))
    assert type(query.failure) is {"QueryFailed": QueryFailed, "BadCommand": BadCommand}[code]


def test_deadline_of_a_query_is_no_unknown_outcome() -> None:
    """A query that was not answered was not answered, whether it left or the client is closed."""
    world = World()
    query, _ = sent_query(world)
    world.pass_time(10.1)
    assert isinstance(query.failure, Unavailable)
    assert "did not answer within 10 s; ask again" in failure_in(world)
    query, _ = sent_query(world)
    world.logic.close()
    world.act()
    assert isinstance(query.failure, Unavailable)


def test_timeline_asks_for_what_was_seen() -> None:
    """A read at the level timeline is not older than any answer before it."""
    world = World()
    _, peer = sent_command(world)
    failed = peer.answer(requests_of(peer)[0], Outcome.FAILED, code="KvError")
    peer.send(replace(failed, index=40))
    sent_query(world, ReadLevel.TIMELINE)
    sent_query(world, ReadLevel.STALE)
    bodies = [strict_loads(request.body) for request in requests_of(peer)]
    assert bodies == [["timeline", 40, b"what?"], ["stale", 0, b"what?"]]


class Walk:
    """A world that dice move, judged after each step."""

    def __init__(self, seed: int) -> None:
        self.dice = Random(seed)
        limits = Limits(
            client_requests_max=self.dice.choice([1, 2, 8]),
            connection_idle_ms=self.dice.choice([400, 10_000]),
            command_bytes_max=500,
            message_bytes_max=500,
            snapshot_chunk_bytes=500,
            session_answers_max=self.dice.choice([1, 3, 4096]),
            frame_bytes_max=5_000,
            client_queue_bytes_max=5_000,
        )
        self.limits = limits
        self.world = World(
            list(ADDRESSES.values())[: self.dice.randint(1, 3)],
            limits,
            closes_late=self.dice.random() < 0.5,
        )
        self.asked: list[Asked] = []
        self.cancelled: list[Asked] = []
        self.leader_id = 1
        self.frozen_id = 0
        """A node that answers nothing."""
        self.session = ClientSession(7)
        self.is_calm = self.dice.random() < 0.5
        """Whether little goes wrong and time passes slowly, so that more commands are answered."""
        self.goals = self.world.goals

    def run(self, steps: int) -> None:
        """Take steps, then heal everything and ask for one command more; then close."""
        often = 0.1 if self.is_calm else 1.0
        moves = [
            (self.ask, 6), (self.ask_node, 1), (self.cancel, 1), (self.connect, 6),
            (self.write, 8), (self.read, 10), (self.babble, 0.3 * often), (self.hang_up, often),
            (self.wait, 5), (self.jump, 0.2 * often), (self.elect, 0.7 * often),
            (self.close_late, 6),
            (self.world.turn, 2),
        ]  # fmt: skip
        for _ in range(steps):
            (move,) = self.dice.choices(
                [move for move, _ in moves], [weight for _, weight in moves]
            )
            self.world.dice = self.dice.random()
            move()
            if self.world.logic.is_turn_due and self.dice.random() < 0.7:
                self.world.turn()
            self.judge()
        self.heal()
        self.close()

    # -- moves --

    def ask(self) -> None:
        body = b"%d" % len(self.asked) * self.dice.choice([1, 100])
        seconds = self.dice.choice([1.0, 10.0] if self.is_calm else [0.0, 0.05, 1.0, 10.0])
        session = self.dice.choice([None, self.session])
        logic = self.world.logic
        if self.dice.random() < 0.05:
            ask = self.dice.choice([logic.open_session, self.ask_close])
            self.asked.append(ask(self.world.now, seconds, "caller"))
            return
        if self.dice.random() < 0.2:
            level = self.dice.choice(list(ReadLevel))
            query = logic.query(self.world.now, body, level, None, None, seconds, "caller")
            self.asked.append(query)
            return
        self.asked.append(logic.propose(self.world.now, body, seconds, "caller", session))

    def ask_close(self, now: float, seconds: float, waiter: str) -> Asked:
        return self.world.logic.close_session(now, seconds, waiter, self.session)

    def ask_node(self) -> None:
        node = self.dice.choice([None, None, 1, 2, 7, "b:2"])
        self.asked.append(self.world.question(node, self.dice.choice([0.05, 1.0, 10.0])))

    def cancel(self) -> None:
        if self.asked:
            command = self.dice.choice(self.asked)
            if command not in self.world.settled:
                self.cancelled.append(command)
            self.world.logic.cancel(command)
            self.world.act()

    def some_peer(self) -> Peer | None:
        return self.dice.choice(self.world.peers) if self.world.peers else None

    def connect(self) -> None:
        fresh = [peer for peer in self.world.peers if not peer.is_connected]
        if fresh:
            peer = self.dice.choice(fresh)
            if self.dice.random() < 0.2:
                self.world.fail(peer)
            elif not peer.line.is_closing:
                self.world.connect(peer, greet=False)

    def write(self) -> None:
        peer = self.some_peer()
        if peer is not None and peer.is_connected:
            peer.write(self.dice.choice([None, None, 1, 30, 700]))

    def read(self) -> None:
        """A node answers some of what it has read."""
        peer = self.some_peer()
        if peer is None or not peer.frames or peer.node_id == self.frozen_id:
            return
        frames, peer.frames = peer.frames, []
        for frame in frames:
            if isinstance(frame, ClientHello):
                leads = self.leader_id == peer.node_id or self.dice.random() < 0.1
                peer.send(peer.hello(None if leads else self.leader_id))
                continue
            assert isinstance(frame, Request)
            if frame.request_id not in peer.requests or self.dice.random() < 0.15:
                continue  # It is never answered.
            request = frame
            kinds = ["NotLeader", "Overloaded", "BadCommand", "?", "EntryReplaced"]
            if request.verb == PROPOSE_IN_SESSION:
                _, sequence, lowest = numbers_of(request)
                kinds += ["SessionExpired", *["SessionFull"] * (3 if sequence > lowest else 0)]
            if request.verb == QUERY:
                kinds += ["Unavailable", "QueryFailed"]
            kind = self.dice.choice(["done"] * 6 + kinds)
            if kind == "done":
                peer.send(peer.answer(request, value=request.body))
            elif kind == "?":
                peer.send(peer.answer(request, Outcome.UNKNOWN, code="OutcomeUnknown"))
            else:
                named = self.dice.choice([0, self.leader_id])
                peer.send(peer.answer(request, Outcome.NOT_DONE, code=kind, leader_id=named))

    def babble(self) -> None:
        peer = self.some_peer()
        if peer is not None and peer.is_connected:
            peer.send(b"what no node says")

    def hang_up(self) -> None:
        peer = self.some_peer()
        if peer is not None:
            self.world.end(peer)

    def close_late(self) -> None:
        if self.world.closing:
            self.world.end(self.world.closing.pop(0))

    def wait(self) -> None:
        seconds = self.dice.choice([0.0, 0.01, 0.1, 0.6, 1.3])
        self.world.pass_time(0.1 * seconds if self.is_calm else seconds)

    def jump(self) -> None:
        """The process was stopped for a while."""
        self.world.now += 5.0
        self.world.tell_time()

    def elect(self) -> None:
        """Another node leads, perhaps because the one before is frozen."""
        self.frozen_id = self.dice.choice([0, self.leader_id])
        self.leader_id = self.dice.randint(1, 3)

    # -- judging --

    def judge(self) -> None:
        """What holds after any event."""
        world, logic = self.world, self.world.logic
        settled = world.settled
        live = [each for each in self.asked if each not in settled and each not in self.cancelled]
        assert len(settled) == len(set(settled)), "a command ended twice"
        assert not set(settled) & set(self.cancelled), "a cancelled command ended"
        assert logic.unsettled_count == len(live), "a command was lost"
        lines = [line for line in logic.lines if line.question is None]
        assert len(lines) <= 3, "one leads, one drains, one is tried"
        if logic.draining is not None:
            self.goals.add("succeeded")
        for line in logic.lines:
            assert line.core.unanswered_count <= self.limits.client_requests_max
            assert line.unsent_bytes <= self.limits.client_queue_bytes_max + 100
        questions = [each for each in live if each.route is not None]
        open_lines = [line for line in logic.lines if line.question and not line.is_closing]
        assert len(open_lines) <= len(questions), "a line without a question"

    def judge_deadlines(self) -> None:
        """Nobody waits behind a deadline, up to the grain."""
        for command in self.world.logic._waiting:
            assert command.deadline > self.world.now - GRAIN_SECONDS

    def heal(self) -> None:
        """From now on every node does its duty: a command is done."""
        self.leader_id = 1
        self.world.closes_late = False
        last = self.world.logic.propose(self.world.now, b"the last", 30.0, "caller")
        self.asked.append(last)
        self.world.turn()
        for _ in range(400):
            while self.world.closing:
                self.world.end(self.world.closing.pop(0))
            for peer in list(self.world.peers):
                if not peer.is_connected and peer in self.world.peers:
                    self.world.connect(peer, greet=False)
                peer.write()
                frames, peer.frames = peer.frames, []
                for frame in frames:
                    if isinstance(frame, ClientHello):
                        peer.send(peer.hello(None if peer.node_id == 1 else 1))
                for request, _ in list(peer.requests.values()):
                    if peer.node_id == 1 or request.verb not in (PROPOSE, PROPOSE_IN_SESSION):
                        peer.send(peer.answer(request))
                    else:
                        peer.send(
                            peer.answer(request, Outcome.NOT_DONE, code="NotLeader", leader_id=1)
                        )
            self.world.pass_time(0.05)
            if self.world.logic.is_turn_due:
                self.world.turn()
            self.judge()
            self.judge_deadlines()
        assert last.applied is not None, f"the last command: {last.failure}"
        assert self.world.logic.unsettled_count == 0

    def close(self) -> None:
        """Nothing stays behind."""
        self.ask()
        logic = self.world.logic
        self.world.turn()
        logic.close()
        self.world.act()
        while self.world.closing:
            self.world.end(self.world.closing.pop(0))
        self.judge()
        assert not logic.lines
        assert logic.unsettled_count == logic.queued_count == 0
        assert not self.session._open, "every number was settled"
        assert logic.next_time() == NEVER


GOALS = {
    "unknown", "succeeded", "sent again after refused", "sent again after unsent",
    "sent again after lost", "sent again after unknown", "SessionExpired", "EntryReplaced",
    "Unavailable", "Overloaded", "BadCommand", "SessionFull",
}  # fmt: skip


def test_any_order_of_events() -> None:
    """Whatever happens in whatever order: each command ends once, is unknown only if it may have
    arrived, is not sent again then unless it is in a session, waits for no longer than it may, and
    leaves nothing behind."""
    reached: set[str] = set()
    for seed in range(150):
        walk = Walk(seed)
        try:
            walk.run(steps=300)
        except AssertionError as failure:
            failure.add_note(f"seed {seed}")
            raise
        reached |= walk.goals
    assert reached >= GOALS, f"never seen: {GOALS - reached}"
