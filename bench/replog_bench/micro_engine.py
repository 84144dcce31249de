"""What an engine itself costs per entry, and the parts that carry its messages and apply its log.

Three engine objects stand in one process, without disks and wires between them: what one of them
wants sent is handed to the other in the next step, and what is to be made durable counts as durable
at once.  So each of three steps of a batch can be taken alone:

* the leader *proposes* the batch and hands out what is to be written and sent;
* a follower *appends* what the leader sent, and hands out its answer;
* the leader *commits*: its own write and the answers, up to the committed entries.

Everything goes through the contract of :mod:`replog.engine`; no engine is named.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Final, Protocol, cast

from replog import plugins
from replog.engine import Engine, EngineSetup, FieldKind
from replog.envelope import pack_envelope
from replog.errors import ReplogError
from replog.limits import Limits
from replog.loading import new_sessions
from replog.replica import Replica
from replog.stored_log import HeldLog
from replog.types import (
    NO_NODE,
    Entry,
    EntryKind,
    Epoch,
    HardState,
    NodeId,
    Ready,
    Role,
    Voter,
)
from replog.wire import FrameReader, MessageCodec
from replog_bench.cluster import STATE_MACHINE
from replog_bench.load import commands
from replog_bench.micro_parts import VALUE_BYTES, command_entries
from replog_bench.sampling import Measure, Samples, one_by_one, per_operation

BATCHES: Final = (1, 64, 1024)
"""Entries per batch: as the load with so many clients in flight makes them."""

WIRE_BATCH: Final = 64
SAMPLES: Final = 15
SAMPLE_ENTRIES: Final = 2048
"""How many entries at least make a sample."""

APPLY_BATCH: Final = 1024


class _Message(Protocol):
    """What every engine message has, by the contract."""

    @property
    def to(self) -> NodeId:
        """The receiver."""


class EngineCluster:
    """Three engines of one kind, the first of which leads."""

    def __init__(self, engine: str) -> None:
        self.plugin = plugins.find_engine(engine)
        epoch = Epoch(1, engine, tuple(Voter(node_id, node_id) for node_id in (1, 2, 3)), 1)
        self.engines: dict[NodeId, Engine] = {
            node_id: self.plugin.create(
                EngineSetup(
                    node_id=node_id,
                    epoch=epoch,
                    hard_state=HardState(epoch.number, 0, NO_NODE),
                    log=HeldLog(),
                    limits=Limits(),
                    options=self.plugin.options(),
                    seed=node_id,
                    nonce=0,
                )
            )
            for node_id in (1, 2, 3)
        }
        self.leader = self.engines[1]
        data = commands(VALUE_BYTES)
        self._envelopes = [pack_envelope(command, 1) for command in data]
        self.leader.campaign()
        self.settle(_carry_out(self.leader))
        if self.leader.soft_state.role is not Role.LEADER:
            raise ReplogError(f"the engine '{engine}' does not lead after a campaign of its own")

    def settle(self, messages: Sequence[object]) -> None:
        """Deliver messages until there are none."""
        waiting = deque(messages)
        while waiting:
            message = waiting.popleft()
            engine = self.engines[cast("_Message", message).to]
            engine.step(message)
            waiting += _carry_out(engine)

    def propose(self, count: int) -> list[Ready]:
        """The leader proposes; what it is ready for, not yet durable."""
        leader = self.leader
        leader.propose_batch(self._envelopes[:count], EntryKind.COMMAND)
        return _drain(leader)

    def append(self, follower_id: NodeId, readys: Sequence[Ready]) -> list[object]:
        """A follower takes what the leader sent it; its answers."""
        follower = self.engines[follower_id]
        for ready in readys:
            for message in ready.messages:
                if cast("_Message", message).to == follower_id:
                    follower.step(message)
        return _carry_out(follower)

    def commit(self, readys: Sequence[Ready], answers: Sequence[object]) -> list[object]:
        """The leader's writes are durable and the answers come; what it sends now."""
        leader = self.leader
        for ready in readys:
            leader.advance(ready)
        for answer in answers:
            leader.step(answer)
        late = [message for ready in readys for message in ready.messages_after_sync]
        return late + _carry_out(leader)

    def run_batch(self, count: int) -> tuple[float, float, float]:
        """One batch through all three steps; the seconds of each (the append of one follower)."""
        begun = perf_counter()
        readys = self.propose(count)
        proposed = perf_counter()
        answers = self.append(2, readys)
        appended = perf_counter()
        answers += self.append(3, readys)
        answered = perf_counter()
        late = self.commit(readys, answers)
        committed = perf_counter()
        self.settle(late)
        return proposed - begun, appended - proposed, committed - answered


def _drain(engine: Engine) -> list[Ready]:
    """Everything that an engine is ready for."""
    readys = []
    while (ready := engine.ready()) is not None:
        readys.append(ready)
    return readys


def _carry_out(engine: Engine) -> list[object]:
    """What an engine wants sent, when its writes are durable at once."""
    messages: list[object] = []
    while (ready := engine.ready()) is not None:
        messages += ready.messages
        engine.advance(ready)
        messages += ready.messages_after_sync
    return messages


def _step_samples(engine: str, batch: int, step: int, _: Path) -> Samples:
    """The cost per entry of one of the three steps."""
    cluster = EngineCluster(engine)
    batches = max(1, SAMPLE_ENTRIES // batch)
    samples = []
    for _sample in range(SAMPLES):
        seconds = sum(cluster.run_batch(batch)[step] for _batch in range(batches))
        samples.append(seconds / (batches * batch) * 1e6)
    return samples


def _carrying_messages(cluster: EngineCluster) -> list[object]:
    """The messages with entries of one batch, one for each follower."""
    fields = {
        spec.record: name
        for spec in cluster.plugin.messages
        for name, kind in spec.fields.items()
        if kind is FieldKind.ENTRIES
    }
    readys = cluster.propose(WIRE_BATCH)
    found = [
        message
        for ready in readys
        for message in ready.messages
        if type(message) in fields and getattr(message, fields[type(message)])
    ]
    answers = cluster.append(2, readys) + cluster.append(3, readys)
    cluster.settle(cluster.commit(readys, answers))
    return found


def _encode_samples(engine: str, to_all: bool, _: Path) -> Samples:
    cluster = EngineCluster(engine)
    codec = MessageCodec(cluster.plugin.messages, Limits())
    # The codec keeps the bytes of the last entries: two batches in turn are packed each time.
    batches = [_carrying_messages(cluster) for _ in range(2)]
    taken = batches if to_all else [batch[:1] for batch in batches]

    def encode() -> None:
        for messages in taken:
            for message in messages:
                codec.encode(message)

    return per_operation(encode, divide=2 * WIRE_BATCH)


def _decode_samples(engine: str, _: Path) -> Samples:
    cluster = EngineCluster(engine)
    codec = MessageCodec(cluster.plugin.messages, Limits())
    data = codec.encode(_carrying_messages(cluster)[0])
    reader = FrameReader(codec.frame_limits)

    def read() -> None:
        for number, content in reader.feed(data):
            codec.decode(number, content)

    return per_operation(read, divide=WIRE_BATCH)


def _apply_samples(engine: str, _: Path) -> Samples:
    """The cost per entry of a replica that nobody waits at, as in a follower."""
    machine = plugins.find_state_machine(STATE_MACHINE)()
    replica = Replica(EngineCluster(engine).leader, machine, Limits(), new_sessions())
    batches = iter([command_entries(1 + at * APPLY_BATCH, APPLY_BATCH) for at in range(SAMPLES)])
    samples = one_by_one(lambda: replica.apply(_committed(next(batches))), SAMPLES)
    return [took / APPLY_BATCH for took in samples]


def _committed(entries: Sequence[Entry]) -> Ready:
    return Ready(
        messages=(),
        hard_state=None,
        truncate_from=None,
        entries=(),
        messages_after_sync=(),
        committed=entries,
        soft_state=None,
    )


def engine_measures(engine: str) -> dict[str, Measure]:
    """The rows of one engine; raises :class:`~replog.errors.PluginError`."""
    plugins.find_engine(engine)
    steps = (
        ("leader proposes", "per entry, with what it hands out to be written and sent"),
        ("follower appends", "per entry, with its answer"),
        ("leader commits", "per entry: its write and two answers, up to the committed entries"),
    )
    found = {
        f"{engine}: {name}, {batch} at once": Measure(
            note, partial(_step_samples, engine, batch, at)
        )
        for at, (name, note) in enumerate(steps)
        for batch in BATCHES
    }
    found |= {
        f"{engine}: message encoded": Measure(
            f"per entry, {WIRE_BATCH} at once, frame of one follower",
            partial(_encode_samples, engine, False),
        ),
        f"{engine}: message encoded for all": Measure(
            f"per entry, {WIRE_BATCH} at once, frames of both followers",
            partial(_encode_samples, engine, True),
        ),
        f"{engine}: message read": Measure(
            f"per entry, {WIRE_BATCH} at once: cut and decoded", partial(_decode_samples, engine)
        ),
        f"{engine}: entry applied": Measure(
            "by the replica: envelope, strict decoding, a put; nobody waits",
            partial(_apply_samples, engine),
        ),
    }
    return found
