"""Messages that are well formed and out of range: no correct peer sends them, some program will.

A frame whose bytes were changed is refused by its checksum, whatever the engine; so this is about
what the wire cannot see.  Every message of a few runs is altered before it arrives (a far index, a
term at the end of its range, entries with holes, flipped bits under a right checksum) and given to
a *clone* of the engine that it was meant for, in whatever role that is.  The engine must

* refuse it as a peer's fault (:class:`~replog.errors.PeerError`), or
* stop its node with a sentence (:class:`~replog.errors.InvariantViolated`), or
* live on, in bounded memory and time, and say nothing that does not fit on the wire.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator, Mapping
from dataclasses import replace
from random import Random
from typing import Final, cast

from replog.engine import Engine, FieldKind
from replog.errors import InvariantViolated, PeerError
from replog.limits import Limits
from replog.testing.checks import Check, Nodes
from replog.testing.conformance.subject import Scenario, Subject, scenarios_of
from replog.testing.faults import Faults
from replog.testing.network import Flight
from replog.testing.nodes import ClusterNode
from replog.types import Entry
from replog.wire import HEADER_BYTES, MessageCodec

FAR: Final = (1 << 24, 1 << 40, 1 << 63, (1 << 64) - 1)
"""Numbers that no run comes to.  The least comes first: what an engine does a step of for each is
measured there, before it would never end."""

NODE_BITS: Final = (1 << 16) - 1
"""The low bits of a term stay in one of two alterations: an engine may keep its owner there."""

SAMPLES_MAX: Final = 3
"""How many messages of each kind are altered for each role that receives them."""

FLIPS: Final = 20
"""How many times a bit of a message is flipped."""

STEP_BYTES_MAX: Final = 64 << 20
"""Half of what a list up to the least of the far numbers takes."""

STEP_SECONDS_MAX: Final = 0.3
"""Of the processor's time: what a step of these few bytes may take."""

TICKS_AFTER: Final = 5


class Alterer(Check):
    """A check that gives altered messages to clones of the engines of a cluster."""

    def __init__(self, subject: Subject, limits: Limits) -> None:
        self.count = 0
        """How many altered messages were given to an engine."""
        self._fields: Mapping[type, Mapping[str, FieldKind]] = {
            spec.record: spec.fields for spec in subject.plugin.messages
        }
        self._codec = MessageCodec(subject.plugin.messages, limits)
        self._samples: dict[tuple[str, str], int] = {}
        self._random = Random(1)

    def check_received(self, nodes: Nodes, node: ClusterNode, flight: Flight) -> str:
        """Alter a message that is about to be received in every way, and look what comes of it."""
        if type(flight.message) not in self._fields:
            return ""  # no engine's
        engine = node.replica.engine
        sample = (flight.kind, engine.soft_state.role.value)
        if self._samples.setdefault(sample, 0) >= SAMPLES_MAX:
            return ""
        self._samples[sample] += 1
        for way, message in self._altered(flight.message):
            self.count += 1
            broken = self._judge(engine.clone(), message)
            if broken:
                return f"a {sample[1]} is given a {sample[0]} with {way}, and {broken}"
        return ""

    def _altered(self, message: object) -> Iterator[tuple[str, object]]:
        """Every alteration, with what was altered, the nearest numbers first."""
        fields = self._fields[type(message)]
        values: dict[str, object] = {name: getattr(message, name) for name in fields}
        for far in FAR:
            for way, changed in _far_fields(far, fields, values):
                yield way, type(message)(**{**values, **changed})
        frame = self._codec.encode(message)
        number, content = frame[3], frame[HEADER_BYTES:]
        for _ in range(FLIPS):
            at, bit = self._random.randrange(len(content)), self._random.randrange(8)
            flipped = content[:at] + bytes((content[at] ^ 1 << bit,)) + content[at + 1 :]
            try:
                yield f"bit {bit} of byte {at} flipped", self._codec.decode(number, flipped)
            except PeerError:
                continue

    def _judge(self, engine: Engine, message: object) -> str:
        """What is wrong with what the engine does; empty if nothing is."""
        tracemalloc.reset_peak()
        bytes_before, _ = tracemalloc.get_traced_memory()
        began = time.process_time()
        try:
            self._go_on(engine, message)
        except (PeerError, InvariantViolated):
            pass
        except Exception as error:
            return f"it fails with {type(error).__name__}: {error}"
        seconds = time.process_time() - began
        size_bytes = tracemalloc.get_traced_memory()[1] - bytes_before
        if size_bytes > STEP_BYTES_MAX:
            return f"it takes {size_bytes >> 20} MiB of memory for it"
        if seconds > STEP_SECONDS_MAX:
            return f"it takes {seconds:.1f} s for it"
        return ""

    def _go_on(self, engine: Engine, message: object) -> None:
        """Take the message, and live on: as time passes, and when the node campaigns."""
        engine.step(message)
        for at in range(TICKS_AFTER):
            if at:
                engine.tick()
            if at == TICKS_AFTER - 1:
                engine.campaign()
            while (ready := engine.ready()) is not None:
                for sent in (*ready.messages, *ready.messages_after_sync):
                    self._codec.encode(sent)
                engine.advance(ready)


def _far_fields(
    far: int, fields: Mapping[str, FieldKind], values: Mapping[str, object]
) -> Iterator[tuple[str, dict[str, object]]]:
    """The fields of a message that may be far out of range, one by one and together."""
    numbers = [name for name, kind in fields.items() if kind is FieldKind.U64 and name != "term"]
    for name in numbers:
        yield f"{name}={far}", {name: far}
    yield from _far_terms(far, values)
    for name, kind in fields.items():
        if kind is FieldKind.ENTRIES:
            for way, entries in _far_entries(far, values[name]):
                yield way, {name: entries}
                yield f"{way}, all else far", {**dict.fromkeys(numbers, far - 1), name: entries}
        elif kind is FieldKind.RANGES:
            for ranges in (((1, far),), ((far - 9, far),), ((1, 1), (far, far))):
                yield f"ranges {ranges}", {name: ranges}


def _far_terms(far: int, values: Mapping[str, object]) -> Iterator[tuple[str, dict[str, object]]]:
    """A far term, with and without the low bits of the right one, and entries that go along."""
    before = cast("int", values["term"])
    for term in (far, far & ~NODE_BITS | before & NODE_BITS):
        yield f"term={term}", {"term": term}
        if values.get("entries"):
            entries = tuple(
                replace(entry, term=term if entry.term == before else entry.term)
                for entry in cast("tuple[Entry, ...]", values["entries"])
            )
            yield f"term={term}, the entries' too", {"term": term, "entries": entries}


def _far_entries(far: int, value: object) -> Iterator[tuple[str, tuple[Entry, ...]]]:
    """Entries that stand far away, or have holes between them, or have impossible terms."""
    entries = cast("tuple[Entry, ...]", value)
    if not entries:
        return
    first, last = entries[0], entries[-1]
    if far + len(entries) <= 1 << 64:
        yield (
            f"entries from {far} on",
            tuple(replace(entry, index=far + at) for at, entry in enumerate(entries)),
        )
    yield f"a hole up to entry {far}", (*entries, replace(last, index=far))
    yield "a small hole", (first, replace(first, index=first.index + 2))
    yield f"entries of term {far}", tuple(replace(entry, term=far) for entry in entries)


def out_of_range_survived(subject: Subject) -> None:
    """A message that is well formed and out of range is refused as a peer's fault, or stops the
    node with a sentence, or does no harm: the engine neither fails otherwise, nor takes memory or
    time without a bound, nor sends what does not fit on the wire."""
    limits = Limits(message_bytes_max=200)
    alterer = Alterer(subject, limits)
    faults = Faults(drop_chance=0.1, delay_ticks_max=2, campaign_chance=0.05, transfer_chance=0.02)
    tracemalloc.start()
    try:
        for seed in range(2):
            cluster = subject.cluster(3, seed, limits=limits, checks=(alterer,))
            cluster.run(60, faults, propose_chance=0.5)
    finally:
        tracemalloc.stop()
    assert alterer.count >= 100, f"only {alterer.count} messages were altered"


SCENARIOS: tuple[Scenario, ...] = scenarios_of("refusals", (out_of_range_survived,))
