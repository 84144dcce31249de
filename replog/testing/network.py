"""The network of a test cluster: messages on their way, and the links that they travel.

A message is a :class:`Flight` from the moment it is sent until it is received, dropped or left for
dead.  Nothing moves by itself here: the cluster says when a flight is due, and takes it out.

The rules this module keeps: flights are numbered in the order in which they were sent, and every
collection goes by those numbers, so that two runs of one seed see the same order; a link is a
*directed* pair of nodes, so that a cut may be one-way; a held flight stays where it is until it is
released, whatever the time.

What is left to others: chance (:mod:`replog.testing.faults`) and time
(:mod:`replog.testing.cluster`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Protocol, TypeAlias, cast

from replog.types import EpochNumber, NodeId, Term

Link: TypeAlias = tuple[NodeId, NodeId]
"""(sender, receiver)."""


class Addressed(Protocol):
    """What every engine's messages have in common (see :class:`replog.engine.MessageSpec`)."""

    @property
    def epoch(self) -> EpochNumber:
        """The epoch that the message belongs to."""

    @property
    def term(self) -> Term:
        """The term that the message states."""

    @property
    def sender(self) -> NodeId:
        """Who sent it."""

    @property
    def to(self) -> NodeId:
        """Who is to receive it."""


class Flight:
    """One message on its way."""

    __slots__ = (
        "has_copy",
        "incarnations",
        "kind",
        "line",
        "message",
        "number",
        "sender",
        "term",
        "to",
    )

    def __init__(self, number: int, message: object) -> None:
        addressed = cast("Addressed", message)
        self.number = number
        """From 1, in the order of sending; a duplicate has a number of its own."""
        self.message = message
        self.kind = kind_of(type(message))
        """The name of the message's record in snake_case."""
        self.sender = addressed.sender
        self.to = addressed.to
        self.term = addressed.term
        self.incarnations = self.link
        """The sender's own, and the one that it means the receiver to be.  A founding voter of a
        test cluster has its id for its incarnation."""
        self.line = 0
        """The line of the trace at which the message was last spelled out."""
        self.has_copy = False
        """Whether the very same message was sent a second time."""

    @property
    def link(self) -> Link:
        """The directed pair of nodes that the message travels between."""
        return (self.sender, self.to)


Matches: TypeAlias = Callable[[Flight], bool]
"""Chooses flights, as in ``lambda flight: flight.to == 3 and flight.kind == "vote"``."""


class Network:
    """The flights of one cluster, and the cuts and holds that are in force."""

    __slots__ = (
        "_cut_count",
        "cuts",
        "fading",
        "held",
        "holds",
        "in_flight",
        "sent_count",
    )

    def __init__(self) -> None:
        self.sent_count = 0
        """Flights so far, duplicates included."""
        self.in_flight: dict[int, Flight] = {}
        """By number; what is here will be received when it is due."""
        self.held: dict[int, Flight] = {}
        """By number; what is here waits to be released."""
        self.holds: list[Matches] = []
        self.cuts: dict[int, tuple[Link, ...]] = {}
        """The cuts in force by number; a link may be in several."""
        self.fading: dict[NodeId, Random] = {}
        """Nodes of whose messages half are lost, and what decides which."""
        self._cut_count = 0

    def send(self, message: object) -> Flight:
        """Give a message a number; the caller decides what becomes of the flight."""
        self.sent_count += 1
        return Flight(self.sent_count, message)

    def has_faded(self, flight: Flight) -> bool:
        """Whether a message is lost because its sender fades."""
        random = self.fading.get(flight.sender)
        return random is not None and random.random() < 0.5

    def put(self, flight: Flight) -> bool:
        """Let a flight travel, or hold it if a hold matches; whether it travels."""
        if any(matches(flight) for matches in self.holds):
            self.held[flight.number] = flight
            return False
        self.in_flight[flight.number] = flight
        return True

    def take(self, flight: Flight) -> bool:
        """Take a flight off its way; whether it still was on it."""
        return self.in_flight.pop(flight.number, None) is not None

    def matching(self, matches: Matches | None) -> list[Flight]:
        """The flights on their way that match (``None``: all), in the order of sending."""
        flights = sorted(self.in_flight.values(), key=_number)
        return [flight for flight in flights if matches is None or matches(flight)]

    def hold(self, matches: Matches) -> list[Flight]:
        """Hold what matches, now and from now on; returns what was held just now."""
        self.holds.append(matches)
        flights = self.matching(matches)
        for flight in flights:
            self.held[flight.number] = self.in_flight.pop(flight.number)
        return flights

    def release(self, matches: Matches | None) -> list[Flight]:
        """End one hold, or all (``None``); returns the flights that no other hold keeps."""
        if matches is None:
            self.holds.clear()
        else:
            self.holds.remove(matches)
        flights = [
            flight
            for flight in sorted(self.held.values(), key=_number)
            if not any(still(flight) for still in self.holds)
        ]
        for flight in flights:
            del self.held[flight.number]
        return flights

    def cut(self, links: Iterable[Link]) -> int:
        """Cut links; returns the number by which this cut is mended."""
        self._cut_count += 1
        self.cuts[self._cut_count] = tuple(links)
        return self._cut_count

    def mend(self, cut: int) -> Sequence[Link]:
        """Undo one cut; returns its links, none if it was mended before."""
        return self.cuts.pop(cut, ())

    def is_cut(self, flight: Flight) -> bool:
        """Whether the flight's link is cut at the moment."""
        return self.is_link_cut(flight.link)

    def is_link_cut(self, link: Link) -> bool:
        """Whether a link is cut at the moment."""
        return any(link in links for links in self.cuts.values())


_KINDS: dict[type, str] = {}


def kind_of(message_type: type) -> str:
    """The snake_case name of a message record: ``AppendEntries`` is ``append_entries``."""
    kind = _KINDS.get(message_type)
    if kind is None:
        kind = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", message_type.__name__).lower()
        _KINDS[message_type] = kind
    return kind


def _number(flight: Flight) -> int:
    return flight.number
