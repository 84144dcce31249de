"""Which stretches of a log are of which term: a few records for a million entries.

Entries stand in the log in *runs*, stretches at contiguous indexes of one epoch and term.  Whoever
holds no entry in memory any more still knows its term by its run; Raft checks every append by it,
and Multi-Paxos tells by it which slots hold a vote of which ballot.

The rules: runs ascend, never overlap, and are merged where they touch and are alike; between two of
them there may be a hole.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import islice

from replog.entries import entry_runs
from replog.types import Entry, EpochNumber, LogIndex, Term, record


@record
class Run:
    """Entries at contiguous indexes, of one epoch and term."""

    first: LogIndex
    last: LogIndex
    epoch: EpochNumber
    term: Term


class Runs:
    """The runs of one log."""

    __slots__ = ("_firsts", "_runs")

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        self._runs: list[Run] = []
        self._firsts: list[LogIndex] = []
        """Beside each run its first index, to search by."""
        for run in runs:
            self.put(run.first, run.last, run.epoch, run.term)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def last_index(self) -> LogIndex:
        """The highest index in a run; 0 if there is none."""
        return self._runs[-1].last if self._runs else 0

    def at(self, index: LogIndex) -> Run | None:
        """The run in which ``index`` is; ``None`` in a hole."""
        at = bisect_right(self._firsts, index) - 1
        if at < 0 or self._runs[at].last < index:
            return None
        return self._runs[at]

    def next_from(self, index: LogIndex) -> Run | None:
        """The run in which ``index`` is, or the next one above it; ``None`` behind the last."""
        at = bisect_left(self._runs, index, key=_last_of)
        return self._runs[at] if at < len(self._runs) else None

    def reach(self, index: LogIndex, upto: LogIndex) -> LogIndex:
        """How far runs touch each other from ``index`` on, at most up to ``upto``; ``index - 1`` in
        a hole."""
        end = index - 1
        for run in islice(self._runs, bisect_left(self._runs, index, key=_last_of), None):
            if run.first > end + 1 or end >= upto:
                break
            end = run.last
        return min(end, upto)

    def term_at(self, index: LogIndex) -> Term:
        """The term at ``index``; 0 in a hole."""
        run = self.at(index)
        return 0 if run is None else run.term

    def last_at_most(self, index: LogIndex, term: Term) -> LogIndex:
        """The highest index not above ``index`` whose term is not above ``term``, 0 if there is
        none; only for terms that never fall along the log, as Raft's do."""
        at = bisect_right(self._runs, term, key=lambda run: run.term) - 1
        at = min(at, bisect_right(self._firsts, index) - 1)
        return 0 if at < 0 else min(index, self._runs[at].last)

    def put_entries(self, entries: Sequence[Entry]) -> None:
        """Put entries that ascend by index, in place of what was there."""
        for run in entry_runs(entries):
            first = run[0]
            self.put(first.index, run[-1].index, first.epoch, first.term)

    def put(self, first: LogIndex, last: LogIndex, epoch: EpochNumber, term: Term) -> None:
        """Put one run, in place of what was there."""
        assert first <= last
        runs = self._runs
        if runs and _continues(end_run := runs[-1], first, epoch, term):
            runs[-1] = Run(end_run.first, last, epoch, term)  # what nearly every call comes to
            return
        if runs and first <= runs[-1].last:
            self.remove(first, last)
        at = bisect_left(self._firsts, first)
        start, end = at, at
        if at and _continues(runs[at - 1], first, epoch, term):
            first, start = runs[at - 1].first, at - 1
        if at < len(runs) and runs[at].first == last + 1 and _is_of(runs[at], epoch, term):
            last, end = runs[at].last, at + 1
        self._replace(start, end, [Run(first, last, epoch, term)])

    def truncate(self, from_index: LogIndex) -> None:
        """Void everything at and above ``from_index``."""
        if from_index <= self.last_index:
            self.remove(from_index, self.last_index)

    def remove(self, first: LogIndex, last: LogIndex) -> None:
        """Make a hole."""
        runs = self._runs
        start = bisect_right(self._firsts, first) - 1
        if start < 0 or runs[start].last < first:
            start += 1
        end = bisect_right(self._firsts, last)
        if start >= end:
            return
        kept: list[Run] = []
        if (run := runs[start]).first < first:
            kept.append(Run(run.first, first - 1, run.epoch, run.term))
        if (run := runs[end - 1]).last > last:
            kept.append(Run(last + 1, run.last, run.epoch, run.term))
        self._replace(start, end, kept)

    def _replace(self, start: int, end: int, runs: list[Run]) -> None:
        self._runs[start:end] = runs
        self._firsts[start:end] = [run.first for run in runs]

    def clone(self) -> Runs:
        """An independent copy."""
        copy = Runs()
        copy._runs, copy._firsts = self._runs.copy(), self._firsts.copy()
        return copy

    def key(self) -> Hashable:
        """Equal for equal runs."""
        return tuple(self._runs)


def _last_of(run: Run) -> LogIndex:
    return run.last


def _is_of(run: Run, epoch: EpochNumber, term: Term) -> bool:
    return run.epoch == epoch and run.term == term


def _continues(run: Run, first: LogIndex, epoch: EpochNumber, term: Term) -> bool:
    return run.last + 1 == first and _is_of(run, epoch, term)
