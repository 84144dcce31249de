"""The chance of a run: one stream of randomness for each kind of fault, all from one seed.

Whatever may go wrong by chance is a *strike* of some kind, and the strikes of a kind are numbered
from 1.  A :class:`Selection` says which of them take effect.  The streams are apart, and a strike
that does not take effect is drawn all the same, so a run with fewer faults is otherwise as much
like the full one as can be: that is what lets a failing run be shrunk
(:mod:`replog.testing.shrink`) and then be replayed by its few strikes alone.

The rules this module keeps: streams are made from text (``seed/kind``), so neither hash seeds nor
the order of first use matter; the details of a rare strike (whom, how long) come from a source of
its own, which depends on nothing but seed, kind and number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from random import Random
from typing import Final, TypeAlias

from replog.errors import CallerError

Source: TypeAlias = Random
"""What things are drawn from: seeded, and handed to whoever draws."""

KINDS: Final[dict[str, str]] = {
    "drop": "a message is lost",
    "duplicate": "a message arrives twice, the second time possibly very late",
    "reorder": "a message changes places with others of its tick",
    "delay": "a message takes a few ticks",
    "late": "a message takes far longer than an election timeout",
    "slow_sync": "a write takes a few ticks to be durable",
    "slow_job": "reading or writing a piece of a snapshot takes a few ticks",
    "stall": "a node's disk stands still for a while: what is written becomes durable later",
    "cut": "links are cut for a while: a split, one node, one direction, or any set of links",
    "flap": "the links of one node are cut and mended again and again",
    "fade": "half of what a node sends is lost for a few ticks, then it is cut off",
    "crash": "a node crashes, and of its unsynced writes a part survives",
    "stop": "a node is stopped in order, and answers whoever waits",
    "crash_all": "every node crashes",
    "crash_in_write": "a node crashes while it writes to its log or recovers from it",
    "crash_in_job": "a node crashes while it reads or writes a piece of a snapshot",
    "crash_in_recovery": "a node crashes again while it recovers its log, or soon after",
    "disk_error": "a write or a sync fails (EIO, ENOSPC), and the node stops",
    "full": "a node's disk has no room for a while; the node must go on, and recover by itself",
    "overload": "a rush of commands, while the leader's machine is slow to apply what is committed",
    "damage": "a bit of a stopped node's log flips; the node must refuse it or lose nothing",
    "wipe": "a node loses its disk for ever; the others refuse what is made in its place",
    "rejoin": "a node loses its disk, and comes back as a learner under another incarnation",
    "replace": "a node, mostly one that is cut off, is replaced by another incarnation as it runs",
    "pause": "a node stands still for a while",
    "clock": "a node's clock runs fast or slow, and its time of day jumps",
    "campaign": "a node campaigns unasked",
    "coup": "the leader is cut off or stands still; the others forget it, and campaign at once",
    "diverge": "a replica's state has another digest than it should, from a command on",
    "transfer": "the leader is told to hand over",
    "snapshot": "where machines keep answers, a node is told to take a snapshot",
    "overtake": "in calm the leader is cut off, and the others go on and trim what it lacks",
}
"""Every kind of strike and what it does."""


class Selection:
    """Which strikes take effect: all of a kind, some of it by number, or none."""

    __slots__ = ("_kinds", "_numbers")

    def __init__(
        self, kinds: Iterable[str], numbers: Mapping[str, Iterable[int]] | None = None
    ) -> None:
        whole = set(kinds)
        self._kinds = {kind: kind in whole for kind in KINDS}
        self._numbers = {kind: sorted(set(some)) for kind, some in (numbers or {}).items()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Selection) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def has(self, kind: str, number: int) -> bool:
        """Whether this strike takes effect."""
        return self._kinds[kind] or number in self._numbers.get(kind, ())

    def may_have(self, kind: str) -> bool:
        """Whether any strike of the kind takes effect."""
        return self._kinds[kind] or bool(self._numbers.get(kind))

    @property
    def text(self) -> str:
        """``all``, ``none``, or a list as ``drop,crash:2,crash:5-7`` that :meth:`parse` reads."""
        if all(self._kinds.values()):
            return "all"
        words: list[str] = []
        for kind, is_whole in self._kinds.items():
            if is_whole:
                words.append(kind)
            else:
                words += [f"{kind}:{run}" for run in _runs(self._numbers.get(kind, ()))]
        return ",".join(words) or "none"

    @classmethod
    def parse(cls, text: str) -> Selection:
        """The selection that ``text`` describes; raises :class:`~replog.errors.CallerError`."""
        if text == "all":
            return cls(KINDS)
        kinds: list[str] = []
        numbers: dict[str, list[int]] = {}
        for word in [] if text == "none" else text.split(","):
            kind, colon, run = word.strip().partition(":")
            if not kind or kind in ("all", "none"):
                raise CallerError(
                    f"{text!r} is no list of faults: all and none stand alone, and between commas "
                    "stands one fault, as in drop,crash:3"
                )
            if kind not in KINDS:
                raise CallerError(
                    f"there is no fault {kind!r}; say all, none, or some of: {', '.join(KINDS)} "
                    "(crash:3 is the third crash alone)"
                )
            if colon:
                numbers.setdefault(kind, []).extend(_parse_run(word.strip(), run))
            else:
                kinds.append(kind)
        return cls(kinds, numbers)


def _runs(numbers: Sequence[int]) -> Iterator[str]:
    """Ascending numbers as text, those that follow one another as ``first-last``."""
    at = 0
    while at < len(numbers):
        first = at
        while at + 1 < len(numbers) and numbers[at + 1] == numbers[at] + 1:
            at += 1
        yield str(numbers[first]) if first == at else f"{numbers[first]}-{numbers[at]}"
        at += 1


def _parse_run(word: str, run: str) -> Iterable[int]:
    """The numbers that ``7`` or ``5-7`` stands for."""
    ends = run.split("-")
    if len(ends) <= 2 and all(end.isascii() and end.isdigit() and len(end) < 8 for end in ends):
        first, last = int(ends[0]), int(ends[-1])
        if 1 <= first <= last:
            return range(first, last + 1)
    raise CallerError(
        f"{word!r}: the strikes of a kind are numbered from 1, as in crash:3 or crash:3-5"
    )


ALL: Final = Selection(KINDS)


class Chance:
    """The source of all strikes of one run."""

    __slots__ = ("_selection", "_streams", "counts", "seed", "struck")

    def __init__(self, seed: int, selection: Selection = ALL) -> None:
        self.seed = seed
        self._selection = selection
        self._streams = {kind: Random(f"{seed}/{kind}") for kind in KINDS}
        self.counts = dict.fromkeys(KINDS, 0)
        """How many strikes of each kind were drawn, in effect or not."""
        self.struck: dict[str, list[int]] = {kind: [] for kind in KINDS}
        """The numbers of those that took effect."""

    def strikes(self, kind: str, probability: float) -> bool:
        """Whether chance strikes here, and the strike takes effect."""
        if not probability or self._streams[kind].random() >= probability:
            return False
        self.counts[kind] += 1
        number = self.counts[kind]
        if not self._selection.has(kind, number):
            return False
        self.struck[kind].append(number)
        return True

    def details(self, kind: str) -> Random:
        """The source of what the latest strike of a kind is in detail."""
        return Random(f"{self.seed}/{kind}/{self.counts[kind]}")

    def ticks(self, kind: str, ticks_max: int) -> int:
        """0 to ``ticks_max``; a strike of its own unless it is 0."""
        drawn = self._streams[kind].randint(0, ticks_max)
        if drawn == 0:
            return 0
        self.counts[kind] += 1
        number = self.counts[kind]
        if not self._selection.has(kind, number):
            return 0
        self.struck[kind].append(number)
        return drawn
