"""A client whose session has no more room: one command at a time, and then more again."""

from __future__ import annotations

from random import Random

from client_world import Peer, World
from test_client_logic import numbers_of, requests_of

from replog.client_actions import Command
from replog.client_queue import CommandQueue
from replog.client_session import WIDENED_AFTER, ClientSession
from replog.errors import Refused, SessionFull
from replog.frames import Outcome, Request


def in_flight(peer: Peer) -> list[int]:
    """The numbers of the commands that a node has read and not answered."""
    peer.write()
    return [numbers_of(request)[1] for request in requests_of(peer)]


def request_of(peer: Peer, sequence: int) -> Request:
    """The one with this number."""
    return next(each for each in requests_of(peer) if numbers_of(each)[1] == sequence)


def refuse(world: World, peer: Peer, *sequences: int) -> None:
    """The session has no room for these."""
    for sequence in sequences:
        request = request_of(peer, sequence)
        peer.send(peer.answer(request, Outcome.NOT_DONE, code="SessionFull"))
    if world.logic.is_turn_due:
        world.turn()


def answer(world: World, peer: Peer, *sequences: int) -> None:
    """These are done."""
    for sequence in sequences:
        peer.write()
        peer.send(peer.answer(request_of(peer, sequence)))
        if world.logic.is_turn_due:
            world.turn()


def led(count: int) -> tuple[World, Peer, ClientSession]:
    """So many commands of a session that a leader has read."""
    world, session = World(), ClientSession(5)
    for number in range(count):
        world.ask(b"%d" % number, 100.0, session)
    peer = world.lead()
    assert in_flight(peer) == list(range(1, count + 1))
    return world, peer, session


def test_full_session_goes_on_one_by_one() -> None:
    """Whoever was refused waits for those in front of it, in their order, however it came to be
    refused; the lowest is sent at once, without a pause."""
    world, peer, _ = led(6)
    refuse(world, peer, 5, 3, 6, 2, 4)
    assert in_flight(peer) == [1]
    assert world.logic.queued_count == 5
    world.pass_time(2.0)
    assert in_flight(peer) == [1]
    for sequence in range(1, 6):
        answer(world, peer, sequence)
        assert in_flight(peer) == [sequence + 1]
    answer(world, peer, 6)
    assert world.logic.unsettled_count == 0


def test_lowest_by_then_is_sent_at_once() -> None:
    """One that is refused when those in front of it have just been answered is the lowest now."""
    world, peer, _ = led(2)
    answer(world, peer, 1)
    refuse(world, peer, 2)
    assert in_flight(peer) == [2]
    assert numbers_of(request_of(peer, 2))[2] == 2
    refuse(world, peer, 2)
    assert in_flight(peer) == [], "as the lowest it was refused: it pauses"
    world.pass_time(0.1)
    assert in_flight(peer) == [2]


def test_lowest_by_then_is_sent_at_once_however_often() -> None:
    """Also one that was refused before, and left beside the lowest as the window was widened."""
    count = WIDENED_AFTER + 3
    world, peer, _ = led(count)
    refuse(world, peer, *range(2, count + 1))
    answer(world, peer, *range(1, WIDENED_AFTER + 1))
    lowest = WIDENED_AFTER + 1
    assert in_flight(peer) == [lowest, lowest + 1]
    peer.send(
        peer.answer(request_of(peer, lowest)),
        peer.answer(request_of(peer, lowest + 1), Outcome.NOT_DONE, code="SessionFull"),
    )
    world.turn()
    assert in_flight(peer) == [lowest + 1]


def test_vain_waits_do_not_widen() -> None:
    """Who is cancelled makes no room: it was not done."""
    world, peer, session = led(1 + 3 * WIDENED_AFTER)
    commands = list(world.logic._waiting)
    refuse(world, peer, *range(2, 2 + 3 * WIDENED_AFTER))
    for command in commands[1:]:
        world.logic.cancel(command)
    assert session.window == 1
    assert world.logic.queued_count == 0


def test_held_ones_know_why() -> None:
    """One behind those that were refused, which never left itself, is told what they were told; and
    all are told at once that no address will ever do."""
    world, peer, session = led(3)
    refuse(world, peer, 2, 3)
    late, hopeless = world.ask(b"late", 0.5, session), world.ask(b"hopeless", 50.0, session)
    world.pass_time(0.6)
    assert isinstance(late.failure, SessionFull)
    world.end(peer)
    for _ in range(3):
        while world.peers:
            world.connect(world.peers[-1], greet=False).refuse("not you")
        world.pass_time(1.0)
    assert isinstance(hopeless.failure, Refused)
    assert hopeless in world.settled


def test_narrow_session_widens() -> None:
    """More are tried again, one more for so many that are done, until there is no room again."""
    count = 4 * WIDENED_AFTER
    world, peer, session = led(count)
    refuse(world, peer, *range(2, count + 1))
    for sequence in range(1, WIDENED_AFTER):
        answer(world, peer, sequence)
        assert in_flight(peer) == [sequence + 1]
    answer(world, peer, WIDENED_AFTER)
    lowest = WIDENED_AFTER + 1
    assert in_flight(peer) == [lowest, lowest + 1]
    answer(world, peer, *range(lowest, 2 * WIDENED_AFTER))
    assert session.window == 2
    answer(world, peer, 2 * WIDENED_AFTER)
    assert len(in_flight(peer)) == session.window == 3
    refuse(world, peer, in_flight(peer)[-1])
    answer(world, peer, 2 * WIDENED_AFTER + 1)
    assert in_flight(peer) == [2 * WIDENED_AFTER + 2]


def test_other_sessions_go_on() -> None:
    """Where one session has no room, other commands leave as before."""
    world, peer, _ = led(3)
    refuse(world, peer, 2, 3)
    other = ClientSession(6)
    for number in range(3):
        world.ask(b"other %d" % number, session=other)
    peer.write()
    assert [numbers_of(each)[0] for each in requests_of(peer)] == [5, 6, 6, 6]


def test_refused_one_ends_at_its_deadline_or_by_cancelling() -> None:
    """It is told what the cluster said; and who is cancelled is held no more."""
    world, session = World(), ClientSession(5)
    all_seconds = (9.0, 0.5, 9.1, 9.2)
    commands = [world.ask(b"%g" % seconds, seconds, session) for seconds in all_seconds]
    peer = world.lead()
    assert in_flight(peer) == [1, 2, 3, 4]
    refuse(world, peer, 4, 2, 3)
    world.logic.cancel(commands[2])
    world.pass_time(0.6)
    assert isinstance(commands[1].failure, SessionFull)
    answer(world, peer, 1)
    assert in_flight(peer) == [4]


def test_held_commands_of_any_order() -> None:
    """Whatever is held, taken out and settled in whatever order: who may leave leaves, in the order
    of the numbers, and nobody else."""
    for seed in range(50):
        dice = Random(seed)
        session = ClientSession(5)
        queue: CommandQueue[None] = CommandQueue(dice.choice((1, 3, 100)))
        commands = []
        for _ in range(30):
            command: Command[None] = Command("propose", b"", 0.0, 9.0, None)
            command.session, command.sequence = session, session.take()
            commands.append(command)
        session.narrow(SessionFull("no room"))
        left: list[Command[None]] = []
        for command in dice.sample(commands, len(commands)):
            assert queue.wait_for_others(command, SessionFull("no room"))
        assert queue.count == 30
        while commands:
            while (first := queue.first()) is not None:
                queue.take(first)
                left.append(first)
            assert commands[0] in left, "the lowest may always leave"
            assert max(each.sequence for each in left) < session.lowest + session.window
            held = [each for each in commands if each not in left]
            assert queue.count == len(held)
            ended = dice.choice((commands[0], dice.choice(commands)))
            queue.remove(ended)
            commands.remove(ended)
            session.settle(ended.sequence)
            queue.note_settled(session)
        assert queue.count == 0
