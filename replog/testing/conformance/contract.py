"""The rules of :mod:`replog.engine` that need no failure: wire, clones, determinism."""

from __future__ import annotations

from random import Random

from replog.errors import PeerError
from replog.limits import Limits
from replog.node_messages import NODE_SPECS
from replog.testing.checks import Check, Nodes
from replog.testing.conformance.subject import (
    Scenario,
    Subject,
    done,
    scenarios_of,
)
from replog.testing.faults import drawn_faults
from replog.testing.network import Flight
from replog.wire import HEADER_BYTES, FrameReader, MessageCodec

KEPT_PER_KIND = 20


class Collector(Check):
    """A check that sends every message through the codec, and keeps some of each kind."""

    def __init__(self, codec: MessageCodec) -> None:
        self.codec = codec
        self.frames: dict[str, list[bytes]] = {}

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """What is sent arrives as it was."""
        frame = self.codec.encode(flight.message)
        [(number, content)] = FrameReader(self.codec.frame_limits).feed(frame)
        if self.codec.decode(number, content) != flight.message:
            return f"a {flight.kind} is changed by its way over the wire"
        kept = self.frames.setdefault(flight.kind, [])
        if len(kept) < KEPT_PER_KIND:
            kept.append(frame)
        return ""


def collected(subject: Subject) -> Collector:
    """Messages of random runs."""
    limits = Limits(message_bytes_max=200)
    collector = Collector(MessageCodec(subject.plugin.messages, limits, NODE_SPECS))
    for seed in range(6):
        cluster = subject.cluster(3, seed, limits=limits, checks=(collector,))
        faults = drawn_faults(Random(seed), subject.election_ticks)
        cluster.run(150, faults, propose_chance=0.5)
        subject.recover(cluster)
    return collector


def wire_keeps_messages(subject: Subject) -> None:
    """Every message that is ever sent fits its limit and arrives as the same record."""
    collector = collected(subject)
    assert len(collector.frames) >= 2 * len(subject.plugin.messages) // 3


def wire_refuses_damage(subject: Subject) -> None:
    """A frame that was cut, lengthened or changed anywhere is refused as a peer's fault, or never
    becomes a frame; a shorter message that is whole is taken for what it is."""
    collector = collected(subject)
    codec, random = collector.codec, Random(1)
    for frames in collector.frames.values():
        for frame in frames:
            for _ in range(10):
                at = random.randrange(len(frame))
                flipped = (
                    frame[:at] + bytes([frame[at] ^ 1 << random.randrange(8)]) + frame[at + 1 :]
                )
                assert not frames_in(codec, flipped), "a changed frame was taken for a good one"
            number, content = frame[3], frame[HEADER_BYTES:]
            for damaged in (content[:-1], content + b"\0", b"", content[: len(content) // 2]):
                refuse_or_decode(codec, number, damaged)


def frames_in(codec: MessageCodec, data: bytes) -> list[tuple[int, bytes]]:
    """The frames that a reader finds, none if it refuses."""
    try:
        return FrameReader(codec.frame_limits).feed(data)
    except PeerError:
        return []


def refuse_or_decode(codec: MessageCodec, number: int, content: bytes) -> None:
    """Decode damaged content, which may still be a message, for whole entries may be missing; then
    it is the message of just these bytes, nothing of which was passed over."""
    try:
        message = codec.decode(number, content)
    except PeerError:
        return
    assert codec.encode(message)[HEADER_BYTES:] == content, "damage was passed over"


def stale_epoch_ignored(subject: Subject) -> None:
    """A message of another epoch, or from a node that is no voter, changes nothing."""
    cluster = subject.led()
    done(cluster, b"x")
    cluster.tick(2)
    cluster.hold(lambda flight: flight.sender > 0)
    cluster.tick(3)
    messages = [flight.message for flight in cluster.network.held.values()]
    assert messages
    engine = cluster.nodes[2].replica.engine
    before = engine.key()
    for message in messages:
        for field, value in (("epoch", 2), ("sender", 9)):
            fields = {name: getattr(message, name) for name in message.__slots__}  # type: ignore[attr-defined]
            engine.step(type(message)(**{**fields, field: value}))
    assert engine.key() == before


def clones_agree(subject: Subject) -> None:
    """A clone has the same key and the same future, and shares nothing with its original."""
    cluster = subject.led()
    for at in range(5):
        cluster.propose(1, b"%d" % at)
        for node in cluster.nodes.values():
            engine = node.replica.engine
            clone = engine.clone()
            assert clone.key() == engine.key()
            before = engine.key()
            for _ in range(3 * subject.election_ticks):
                clone.tick()
                clone.ready()
            assert engine.key() == before, "what happens to a clone changes its original"
            again = engine.clone()
            for _ in range(3 * subject.election_ticks):
                again.tick()
                again.ready()
            assert again.key() == clone.key(), "two clones part"
        cluster.tick()


def deterministic(subject: Subject) -> None:
    """The same seed gives the same run, line by line, and another seed another."""
    texts: list[str] = []
    for seed in (3, 3, 4):
        cluster = subject.cluster(3, seed)
        cluster.run(100, drawn_faults(Random(seed), subject.election_ticks), propose_chance=0.5)
        texts.append(cluster.trace.text())
    assert texts[0] == texts[1] != texts[2]


def specs_are_complete(subject: Subject) -> None:
    """Every message has a number and a limit, and the options' defaults are right."""
    MessageCodec(subject.plugin.messages, Limits())
    options = subject.plugin.options()
    assert options.problems() == []
    assert dict(subject.plugin.agreed(options, 3)) == dict(subject.plugin.agreed(options, 3))


SCENARIOS: tuple[Scenario, ...] = scenarios_of(
    "contract",
    (
        wire_keeps_messages,
        wire_refuses_damage,
        stale_epoch_ignored,
        clones_agree,
        deterministic,
        specs_are_complete,
    ),
)
