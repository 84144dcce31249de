"""A world without I/O around the logic of a client: nodes, lines and a clock that a test moves.

:class:`Peer` is the far end of one line: it holds what the driver has not handed to the kernel,
what has left, and what the node there has read.  It judges as it goes: a command is not sent again
after it may have arrived, unless it is in a session, and what a session is told to forget nobody
waits for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import cbor2

from replog.client_actions import Close, Command, Connect, Line, Send
from replog.client_logic import ClientLogic
from replog.client_search import LeaderSearch
from replog.client_session import PROPOSE, PROPOSE_IN_SESSION, ClientSession
from replog.envelope import SESSION_BLOCK
from replog.errors import NotDone, OutcomeUnknown
from replog.frames import (
    ClientHello,
    FrameCodec,
    FrameType,
    Outcome,
    OwnFrame,
    Refusal,
    Reply,
    Request,
    ServerHello,
    pack_more,
)
from replog.limits import Limits
from replog.wire import FrameReader, pack_frame

Asked: TypeAlias = Command[str]

ADDRESSES = {1: "a:1", 2: "b:2", 3: "c:3"}
CODEC = FrameCodec(Limits())


class Peer:
    """The far end of one line."""

    def __init__(self, world: World, line: Line[str]) -> None:
        self.world = world
        self.line = line
        self.node_id = {address: node_id for node_id, address in ADDRESSES.items()}.get(
            line.address, 0
        )
        self.is_connected = False
        self.unsent = bytearray()
        self.sent_bytes = 0
        """How much was handed to the kernel."""
        self.requests: dict[int, tuple[Request, int]] = {}
        """Those that are not answered, by id, and where each ends in the stream."""
        self.frames: list[OwnFrame] = []
        """What the node has read."""
        self._produced = FrameReader(dict.fromkeys(map(int, FrameType), 1 << 24))
        self._read = FrameReader(dict.fromkeys(map(int, FrameType), 1 << 24))
        self._produced_bytes = 0
        self.keepalive_count = 0

    def take(self, data: bytes) -> None:
        """The logic sends bytes."""
        assert self.is_connected, "nothing is sent before there is a connection"
        self.unsent += data
        end = self._produced_bytes
        for frame_type, content in self._produced.feed(data):
            end += len(pack_frame(frame_type, content))
            if frame_type == FrameType.KEEPALIVE:
                self.keepalive_count += 1
                continue
            frame = CODEC.decode(frame_type, content)
            if isinstance(frame, Request):
                self.world.note_sent(self, frame)
                self.requests[frame.request_id] = (frame, end)
        self._produced_bytes += len(data)
        assert end == self._produced_bytes, "whole frames are sent"

    def write(self, size_bytes: int | None = None) -> None:
        """The kernel takes some of what waits (``None``: all of it), and the node reads it."""
        count = len(self.unsent) if size_bytes is None else min(size_bytes, len(self.unsent))
        data = bytes(self.unsent[:count])
        del self.unsent[:count]
        self.sent_bytes += count
        for frame_type, content in self._read.feed(data):
            if frame_type != FrameType.KEEPALIVE:
                self.frames.append(CODEC.decode(frame_type, content))
        self.world.logic.wrote(self.line, len(self.unsent))

    def hello(self, leader_id: int | None = None) -> ServerHello:
        """The welcome of this node; ``None``: it leads."""
        members = tuple(ADDRESSES.items())
        return ServerHello(
            1, "c", self.node_id, self.node_id if leader_id is None else leader_id, members
        )

    def send(self, *frames: OwnFrame | bytes) -> None:
        """The node sends frames, or any bytes."""
        parts = [frame if isinstance(frame, bytes) else CODEC.encode(frame) for frame in frames]
        for frame in frames:
            if isinstance(frame, Reply):
                self._note_reply(frame)
        self.world.logic.received(self.world.now, self.line, b"".join(parts))
        self.world.act()

    def _note_reply(self, reply: Reply) -> None:
        if self.line.is_closing:
            return  # Nobody listens any more.
        asked = self.requests.pop(reply.request_id, None)
        if asked is not None:
            self.world.note_answered(self, asked[0], reply)

    def answer(
        self,
        request: Request,
        outcome: Outcome = Outcome.DONE,
        *,
        code: str = "",
        leader_id: int = 0,
        value: object = None,
        retry_after_ms: int = 0,
    ) -> Reply:
        """The reply to a request."""
        packed = cbor2.dumps(value) if outcome is Outcome.DONE else pack_more(retry_after_ms)
        message = f"because of {code}" if code else ""
        address = ADDRESSES.get(leader_id, "")
        return Reply(request.request_id, outcome, 1, packed, code, message, leader_id, address)

    def refuse(self, sentence: str) -> None:
        """The node does not want this client."""
        self.send(Refusal(sentence))

    def end(self) -> None:
        """The connection ends, whoever ends it."""
        self.world.end(self)


class World:
    """A client's logic, what it wants done, and what became of its commands."""

    def __init__(
        self,
        addresses: Sequence[str] = tuple(ADDRESSES.values()),
        limits: Limits | None = None,
        dice: float = 1.0,
        *,
        closes_late: bool = False,
    ) -> None:
        self.now = 100.0
        self.dice = dice
        self._session_answers_max = (limits or Limits()).session_answers_max
        search = LeaderSearch(list(addresses), {}, "")
        self.logic: ClientLogic[str] = ClientLogic(search, limits or Limits(), lambda: self.dice)
        self.logic.open()
        self.peers: list[Peer] = []
        """Of every line that has not ended, in the order in which they were begun."""
        self.closing: list[Peer] = []
        """Those that the logic wants closed, while the driver takes its time."""
        self.closes_late = closes_late
        self.settled: list[Asked] = []
        """Every command that has ended, in order."""
        self.sends: dict[bytes, list[str]] = {}
        """By body: what became of each time that it was sent."""
        self._places: dict[bytes, Peer] = {}
        self._unsent_at: dict[bytes, float] = {}
        """By body, when its line ended last before it had left."""
        self.goals: set[str] = set()
        """What has happened in this world; a set of worlds should see everything."""

    # -- what callers do --

    def ask(
        self, body: bytes = b"x", seconds: float = 10.0, session: ClientSession | None = None
    ) -> Asked:
        """Propose a command; its turn comes at once."""
        command = self.logic.propose(self.now, body, seconds, "caller", session)
        self.turn()
        return command

    def question(self, node: int | str | None = None, seconds: float = 10.0) -> Asked:
        """Ask a node for its status."""
        question = self.logic.ask_node(self.now, "status", b"", node, seconds, "caller")
        self.act()
        return question

    # -- what a driver does --

    def turn(self) -> None:
        """Give the logic a turn."""
        self.logic.turn(self.now)
        self.act()

    def pass_time(self, seconds: float) -> None:
        """Let time pass, telling the logic whenever it wants to know."""
        until = self.now + seconds
        while (at := self.logic.next_time()) <= until:
            self.now = max(self.now, at)
            self.tell_time()
        self.now = until

    def tell_time(self) -> None:
        """Tell the logic what time it is."""
        self.logic.time_passed(self.now)
        self.act()
        while self.logic.is_turn_due:
            self.turn()

    def act(self) -> None:
        """Do what the logic wants done."""
        while actions := self.logic.take_actions():
            for action in actions:
                if isinstance(action, Command):
                    self._judge_end(action)
                    self.settled.append(action)
                elif isinstance(action, Connect):
                    self.peers.append(Peer(self, action.line))
                elif isinstance(action, Send):
                    self.peer_of(action.line).take(action.data)
                else:
                    assert isinstance(action, Close)
                    self.closing.append(self.peer_of(action.line))
                    if not self.closes_late:
                        self.end(self.closing[-1])

    def peer_of(self, line: Line[str]) -> Peer:
        """The far end of a line."""
        (peer,) = [peer for peer in self.peers if peer.line is line]
        return peer

    def connect(self, peer: Peer, leader_id: int | None = None, *, greet: bool = True) -> Peer:
        """A connection comes about, and the node there welcomes the client."""
        peer.is_connected = True
        self.logic.connected(peer.line)
        self.act()
        if greet:
            peer.write()
            assert isinstance(peer.frames.pop(0), ClientHello), "a hello comes first"
            peer.send(peer.hello(leader_id))
            if self.logic.is_turn_due:
                self.turn()
        return peer

    def lead(self, leader_id: int | None = None) -> Peer:
        """The latest attempt to connect succeeds."""
        return self.connect(self.peers[-1], leader_id)

    def fail(self, peer: Peer, reason: str = "connection refused") -> None:
        """An attempt fails."""
        self.peers.remove(peer)
        self.logic.failed(self.now, peer.line, reason)
        self.act()

    def end(self, peer: Peer) -> None:
        """A connection ends; what had not left never does."""
        if peer not in self.peers:
            return
        self.peers.remove(peer)
        for request, end in peer.requests.values():
            is_unsent = end > peer.sent_bytes and self._is_awaited(peer, request)
            self._note_fate(peer, request, "unsent" if is_unsent else "lost")
        self.logic.ended(self.now, peer.line, len(peer.unsent))
        self.act()
        if self.logic.is_turn_due:
            self.turn()

    # -- judging --

    def _judge_end(self, command: Asked) -> None:
        """A command has ended: what it ended with must be true at this time."""
        assert (command.applied is None) != (command.failure is None), "done, or an error"
        if command.route is not None:
            return
        if command.is_harmless and not isinstance(command.failure, OutcomeUnknown):
            return
        if isinstance(command.failure, OutcomeUnknown):
            # A deadline passes before it is known what left over a line that is closed with it.
            is_news = self._unsent_at.get(command.body) == self.now
            assert is_news or self.may_have_arrived(command.body), "unknown, but it never left"
            self.goals.add("unknown")
        elif isinstance(command.failure, NotDone):
            assert not self.may_have_arrived(command.body), "not done, but it may have arrived"
            self.goals.add(type(command.failure).__name__)

    def note_sent(self, peer: Peer, request: Request) -> None:
        """A request was sent: its earlier journeys must have come to nothing."""
        if request.verb not in (PROPOSE, PROPOSE_IN_SESSION):
            return
        body = payload_of(request)
        fates = self.sends.setdefault(body, [])
        harmless = {"refused", "unsent"}
        if request.verb == PROPOSE_IN_SESSION:
            harmless |= {"lost", "unknown"}
            self._judge_numbers(request)
            if fates and fates[-1] == "open":
                assert self._places[body].line.is_retired, "it is on its way to a leader"
                fates[-1] = "lost"
                self.goals.add("taken back")
        assert set(fates) <= harmless, f"{body!r} is sent again: {fates}"
        self.goals |= {f"sent again after {fate}" for fate in fates}
        fates.append("open")
        self._places[body] = peer

    def _judge_numbers(self, request: Request) -> None:
        """What the cluster is told to forget nobody waits for, and a number stays with its
        command."""
        session_id, sequence, lowest = SESSION_BLOCK.unpack_from(request.body)
        named = [
            (command.session.session_id, command.sequence)
            for command in self.logic._waiting
            if command.session is not None and command.body == payload_of(request)
        ]
        assert named == [(session_id, sequence)], "another command has this number"
        for command in self.logic._waiting:
            if command.session is not None and command.session.session_id == session_id:
                assert command.sequence >= lowest, "it is to be forgotten, and is waited for"
        ahead = sequence - lowest
        assert ahead < self._session_answers_max, "the cluster may keep no answer for it"

    def note_answered(self, peer: Peer, request: Request, reply: Reply) -> None:
        """A reply is on its way to a logic that still listens."""
        fates = self.sends.get(payload_of(request), [])
        if self._places.get(payload_of(request)) is peer and fates[-1] == "open":
            fate = {Outcome.NOT_DONE: "refused", Outcome.UNKNOWN: "unknown"}
            is_awaited = self._is_awaited(peer, request)
            fates[-1] = fate.get(reply.outcome, "answered") if is_awaited else "lost"

    def _is_awaited(self, peer: Peer, request: Request) -> bool:
        """Whether the logic looks for what comes of a request there.  It does not of what it took
        back from a silent leader: that may have been done, whatever is heard later."""
        body = payload_of(request)
        return peer.line in [each.line for each in self.logic._waiting if each.body == body]

    def _note_fate(self, peer: Peer, request: Request, fate: str) -> None:
        if self._places.get(payload_of(request)) is peer:
            fates = self.sends[payload_of(request)]
            if fates[-1] == "open":
                fates[-1] = fate
                if fate == "unsent":
                    self._unsent_at[payload_of(request)] = self.now

    def may_have_arrived(self, body: bytes) -> bool:
        """Whether some node may have taken a command, or may still."""
        return any(fate not in ("refused", "unsent") for fate in self.sends.get(body, []))


def payload_of(request: Request) -> bytes:
    """The command that a request carries, in a session or not."""
    if request.verb == PROPOSE_IN_SESSION:
        return request.body[SESSION_BLOCK.size :]
    return request.body
