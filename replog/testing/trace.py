"""The trace of a test cluster: what happened, one event a line, to be read by people.

The format is described in ``docs/traces.md``: four columns (tick, node, event, details), the last
of which is a subject followed by ``key=value`` pairs.  New events may come; columns never do.

The rules this module keeps: nothing in a line depends on the engine (messages are rendered from
their specs), on a clock, on an address in memory or on the order of a hash; rendering is put off
until somebody reads, so that a run which passes pays a tuple per event.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Final, TypeAlias

from replog.engine import FieldKind, MessageSpec
from replog.envelope import open_envelope
from replog.errors import UnknownFormat
from replog.testing.network import Flight, Link, kind_of
from replog.types import NO_NODE, Entry, EntryKind, HardState, NodeId

SPELL_AGAIN_LINES: Final = 20
"""A message is spelled out again when it arrives more than this many lines after its sending."""

BYTES_SHOWN_MAX: Final = 24
"""How many bytes of a payload a line shows."""

_COMMON_FIELDS: Final = ("epoch", "sender", "to")
"""Fields that the head of a message shows already, or that hardly ever matter."""

_Line: TypeAlias = tuple[int, NodeId, str, object, bool, Mapping[str, object]]
"""Tick, node, event, subject, whether the subject is spelled out, pairs."""


class Trace:
    """The events of one cluster, oldest first."""

    __slots__ = ("_fields", "_kind_width", "_lines")

    def __init__(self, specs: Sequence[MessageSpec]) -> None:
        self._lines: list[_Line] = []
        self._fields = {
            spec.record: [
                (name, kind) for name, kind in spec.fields.items() if name not in _COMMON_FIELDS
            ]
            for spec in specs
        }
        self._kind_width = max((len(kind_of(spec.record)) for spec in specs), default=0)

    def __len__(self) -> int:
        return len(self._lines)

    def add(
        self, tick: int, node_id: NodeId, event: str, subject: object = "", **pairs: object
    ) -> None:
        """Note one event; ``NO_NODE`` stands for the cluster as a whole.

        Everything given must never change, because it is rendered later.
        """
        self._lines.append((tick, node_id, event, subject, True, pairs))

    def add_flight(
        self, tick: int, node_id: NodeId, event: str, flight: Flight, **pairs: object
    ) -> None:
        """Note what happens to a message; it is spelled out unless it just was."""
        at = len(self._lines) + 1
        is_spelled = flight.line == 0 or at - flight.line > SPELL_AGAIN_LINES
        if is_spelled:
            flight.line = at
        self._lines.append((tick, node_id, event, flight, is_spelled, pairs))

    def lines(self, first: int = 0) -> list[str]:
        """The rendered lines, from the ``first`` on (negative: from the end)."""
        return [self._render(line) for line in self._lines[first:]]

    def text(self) -> str:
        """The whole trace, each line ended by a newline."""
        return "".join(line + "\n" for line in self.lines())

    def _render(self, line: _Line) -> str:
        tick, node_id, event, subject, is_spelled, pairs = line
        words: list[str] = []
        if isinstance(subject, Flight):
            words.append(self._flight_head(subject))
            if is_spelled:
                words.append(self._message(subject.message))
        elif isinstance(subject, Entry):
            words.append(entry_text(subject))
        elif subject:
            words.append(str(subject))
        words += [f"{name}={value_text(value)}" for name, value in pairs.items()]
        details = " ".join(word for word in words if word)
        return f"{tick:>5} {node_text(node_id):<4} {event:<10} {details}".rstrip()

    def _flight_head(self, flight: Flight) -> str:
        link = f"{node_text(flight.sender)}>{node_text(flight.to)}"
        return f"{'m' + str(flight.number):<4} {link} {flight.kind:<{self._kind_width}}"

    def _message(self, message: object) -> str:
        words: list[str] = []
        epoch: int = getattr(message, "epoch", 1)
        if epoch != 1:
            words.append(f"epoch={epoch}")
        for name, kind in self._fields[type(message)]:
            value: object = getattr(message, name)
            if kind is FieldKind.BOOL or value:
                text = node_text(int(str(value))) if kind is FieldKind.U16 else value_text(value)
                words.append(f"{name}={text}")
        return " ".join(words)


def node_text(node_id: NodeId) -> str:
    """``n3``; ``-`` for nobody, or for the cluster as a whole."""
    return f"n{node_id}" if node_id != NO_NODE else "-"


def links_text(links: Sequence[Link]) -> str:
    """``n1-n2`` for a link that is cut both ways, ``n1>n2`` for one way; ``-`` for none."""
    words: list[str] = []
    for a, b in links:
        if (b, a) not in links:
            words.append(f"{node_text(a)}>{node_text(b)}")
        elif a < b:
            words.append(f"{node_text(a)}-{node_text(b)}")
    return ",".join(words) or "-"


def value_text(value: object) -> str:
    """One value of a ``key=value`` pair; holds no space outside quotes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return payload_text(value)
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, tuple | list):
        if value and isinstance(value[0], tuple):
            return ranges_text(value)
        return entries_text(value)
    return str(value)


def payload_text(payload: bytes) -> str:
    """Bytes between quotes, cut to a readable length; what is no printable ASCII is escaped."""
    shown = payload[:BYTES_SHOWN_MAX].decode("latin-1")
    return json.dumps(shown + (".." if len(payload) > BYTES_SHOWN_MAX else ""))


def entries_text(entries: Iterable[Entry]) -> str:
    """Entries by runs of one term: ``1..2@t1,3@t2``; ``-`` when there is none."""
    runs: list[list[Entry]] = []
    for entry in entries:
        if runs and (runs[-1][-1].index, runs[-1][-1].term) == (entry.index - 1, entry.term):
            runs[-1].append(entry)
        else:
            runs.append([entry])
    return ",".join(_run_text(run[0], run[-1]) for run in runs) or "-"


def ranges_text(ranges: Iterable[tuple[int, int]]) -> str:
    """Ranges of indexes: ``1..2,4``."""
    return ",".join(str(low) if low == high else f"{low}..{high}" for low, high in ranges)


def _run_text(first: Entry, last: Entry) -> str:
    span = str(first.index) if first is last else f"{first.index}..{last.index}"
    return f"{span}@t{first.term}"


def entry_text(entry: Entry) -> str:
    """One entry with what it carries: ``3@t2 command "x"``."""
    known = [kind for kind in EntryKind if kind == entry.kind]
    kind = known[0].name.lower() if known else f"kind_{entry.kind}"
    words = [_run_text(entry, entry), kind]
    if entry.kind == EntryKind.COMMAND:
        try:
            words.append(payload_text(open_envelope(entry)[1]))
        except UnknownFormat:
            words.append("unreadable")
    return " ".join(words)


def hard_state_pairs(hard_state: HardState | None) -> dict[str, object]:
    """The pairs ``term``, ``vote`` and ``hint`` of a hard state; none when nothing is to be shown,
    and no hint where there is none."""
    if hard_state is None:
        return {}
    pairs: dict[str, object] = {"term": hard_state.term, "vote": node_text(hard_state.voted_for)}
    if hard_state.commit_hint:
        pairs["hint"] = hard_state.commit_hint
    return pairs
