"""Storages with one broken rule each, which the conformance suite must see.

Each is a wrapper around the write-ahead log, on a disk in memory.  A wrapper sees the writes before
the log does, and what is read behind it; where that is not enough it shows a log of its own, kept
in memory.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from replog.errors import Compacted, InvariantViolated, StorageFull
from replog.limits import KIB
from replog.storage.plugin import StorageHome
from replog.storage.protocol import Recovered, Storage, Write
from replog.storage.replay import Replay
from replog.storage.wal import Wal, WalPlugin
from replog.stored_log import HeldLog, StoredLog, all_entries
from replog.testing.storage_conformance.subject import CLUSTER_ID, INCARNATION, NODE_ID
from replog.types import Entry, EntryId, HardState, LogIndex


class SmallWal(WalPlugin):
    """The write-ahead log with segments so small that a scenario fills several."""

    def open(self, home: StorageHome) -> Storage:
        return Wal(home, segment_bytes=64 * KIB, extend_bytes=16 * KIB, reserve_bytes=4 * KIB)


class Passing:
    """A storage that passes everything on; the broken ones change one thing."""

    def __init__(self, inner: Storage) -> None:
        self.inner = inner

    @property
    def durable(self) -> bool:
        return self.inner.durable

    @property
    def is_full(self) -> bool:
        return self.inner.is_full

    @property
    def written_bytes(self) -> int:
        return self.inner.written_bytes

    def recover(self) -> Recovered:
        recovered = self.inner.recover()
        return Recovered(recovered.hard_state, self.shown(recovered.log))

    def shown(self, log: StoredLog) -> StoredLog:
        return log

    def encode(self, writes: Sequence[Write]) -> object:
        return self.inner.encode([part for write in writes for part in self.changed(write)])

    def changed(self, write: Write) -> Sequence[Write]:
        return [write]

    def persist(self, group: object) -> None:
        self.inner.persist(group)

    def make_room(self) -> None:
        self.inner.make_room()

    def close(self) -> None:
        self.inner.close()


class PassingLog:
    """A log that passes everything on."""

    def __init__(self, inner: StoredLog) -> None:
        self.inner = inner

    @property
    def base(self) -> EntryId:
        return self.inner.base

    @property
    def runs(self):  # type: ignore[no-untyped-def]
        return self.inner.runs

    def read(self, first: LogIndex, last: LogIndex, bytes_max: int) -> tuple[Entry, ...]:
        return self.inner.read(first, last, bytes_max)


class OwnLog(Passing):
    """Shows a log of its own, which ``show`` changes."""

    def shown(self, log: StoredLog) -> StoredLog:
        self.replay = Replay()
        self.replay.log = HeldLog(all_entries(log), log.base)
        return self.replay.log

    def show(self, writes: Sequence[Write]) -> None:
        for write in writes:
            self.replay.apply(write)


# -- what is written --


class ForgetsTruncation(Passing):
    def changed(self, write):  # type: ignore[no-untyped-def]
        return [replace(write, truncate_from=None)]


class TruncatesAfterEntries(Passing):
    def changed(self, write):  # type: ignore[no-untyped-def]
        return [replace(write, truncate_from=None), Write(None, write.truncate_from, ())]


class BaseLostBesideTruncation(Passing):
    def changed(self, write):  # type: ignore[no-untyped-def]
        return [write if write.truncate_from is None else replace(write, base=None)]


class BaseAfterTheNextGroup(Passing):
    """The base comes in the wrong order: behind the writes of the group that follows."""

    late: EntryId | None = None

    def encode(self, writes):  # type: ignore[no-untyped-def]
        late, self.late = self.late, None
        for write in writes:
            self.late = write.base or self.late
        kept = [replace(write, base=None) for write in writes]
        return self.inner.encode([*kept, Write(None, None, (), late)])


class HardStateLostBesideEntries(Passing):
    def changed(self, write):  # type: ignore[no-untyped-def]
        return [replace(write, hard_state=None) if write.entries else write]


class HintStays(Passing):
    hint = 0

    def changed(self, write):  # type: ignore[no-untyped-def]
        if write.hard_state is None:
            return [write]
        self.hint = write.hard_state.commit_hint or self.hint
        return [replace(write, hard_state=replace(write.hard_state, commit_hint=self.hint))]


class ShortTerms(Passing):
    """Keeps 63 bits of a term."""

    def changed(self, write):  # type: ignore[no-untyped-def]
        state = write.hard_state
        short = state and replace(state, term=state.term & (1 << 63) - 1)
        return [replace(write, hard_state=short)]


class FirstEntryStays(Passing):
    """An entry is put only where there was none."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.seen: set[LogIndex] = set()

    def changed(self, write):  # type: ignore[no-untyped-def]
        fresh = [entry for entry in write.entries if entry.index not in self.seen]
        self.seen |= {entry.index for entry in fresh}
        return [replace(write, entries=fresh)]


class OnlyBehindTheEnd(Passing):
    """An entry in a hole is lost."""

    end = 0

    def changed(self, write):  # type: ignore[no-untyped-def]
        if write.truncate_from is not None:
            self.end = min(self.end, write.truncate_from - 1)
        kept = [entry for entry in write.entries if entry.index > self.end]
        self.end = max([self.end, *(entry.index for entry in kept)])
        return [replace(write, entries=kept)]


class NarrowIndexes(Passing):
    def changed(self, write):  # type: ignore[no-untyped-def]
        kept = [entry for entry in write.entries if entry.index < 1 << 32]
        return [replace(write, entries=kept)]


class SmallEntriesOnly(Passing):
    def changed(self, write):  # type: ignore[no-untyped-def]
        cut = [replace(entry, body=entry.body[: 512 * KIB]) for entry in write.entries]
        return [replace(write, entries=cut)]


class SmallGroupsOnly(Passing):
    def changed(self, write):  # type: ignore[no-untyped-def]
        return [replace(write, entries=write.entries[:4000])]


# -- what is read --


class RereadsOldEntries(Passing):
    """Keeps what was read once, and looks there first."""

    def shown(self, log: StoredLog) -> StoredLog:
        class Log(PassingLog):
            cache: dict[LogIndex, Entry] = {}  # noqa: RUF012

            def read(self, first, last, bytes_max):  # type: ignore[no-untyped-def]
                found = self.inner.read(first, last, bytes_max)
                return tuple(self.cache.setdefault(entry.index, entry) for entry in found)

        return Log(log)


class IgnoresBytesMax(Passing):
    def shown(self, log: StoredLog) -> StoredLog:
        class Log(PassingLog):
            def read(self, first, last, bytes_max):  # type: ignore[no-untyped-def]
                return self.inner.read(first, last, 1 << 40)

        return Log(log)


class ReadsOneAtATime(Passing):
    def shown(self, log: StoredLog) -> StoredLog:
        class Log(PassingLog):
            def read(self, first, last, bytes_max):  # type: ignore[no-untyped-def]
                return self.inner.read(first, first, bytes_max)

        return Log(log)


class ReadsNoneForTooFewBytes(Passing):
    def shown(self, log: StoredLog) -> StoredLog:
        class Log(PassingLog):
            def read(self, first, last, bytes_max):  # type: ignore[no-untyped-def]
                return self.inner.read(first, last, bytes_max)[: bytes_max // 20]

        return Log(log)


class ReadsOverHoles(Passing):
    def shown(self, log: StoredLog) -> StoredLog:
        class Log(PassingLog):
            def read(self, first, last, bytes_max):  # type: ignore[no-untyped-def]
                found = self.inner.read(first, last, bytes_max)
                following = self.inner.runs.next_from(found[-1].index + 1)
                if following is None or following.first > last:
                    return found
                return found + self.read(following.first, last, bytes_max)

        return Log(log)


class ReadsNothingInHoles(Passing):
    def shown(self, log: StoredLog) -> StoredLog:
        class Log(PassingLog):
            def read(self, first, last, bytes_max):  # type: ignore[no-untyped-def]
                try:
                    return self.inner.read(first, last, bytes_max)
                except InvariantViolated:
                    return ()

        return Log(log)


class NamesTheBaseItself(Passing):
    def shown(self, log: StoredLog) -> StoredLog:
        class Log(PassingLog):
            def read(self, first, last, bytes_max):  # type: ignore[no-untyped-def]
                if first <= self.inner.base.index:
                    raise Compacted(self.inner.base.index)
                return self.inner.read(first, last, bytes_max)

        return Log(log)


class ReadsPersistedOnly(OwnLog):
    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.waiting: deque[Sequence[Write]] = deque()

    def encode(self, writes):  # type: ignore[no-untyped-def]
        self.waiting.append(writes)
        return self.inner.encode(writes)

    def persist(self, group: object) -> None:
        self.inner.persist(group)
        self.show(self.waiting.popleft())


class ReadsWhatWasTruncated(OwnLog):
    """A truncation hides its entries only when the next group is encoded."""

    late: LogIndex | None = None

    def encode(self, writes):  # type: ignore[no-untyped-def]
        if self.late is not None:
            self.replay.log.truncate(self.late)
        for write in writes:
            self.late = write.truncate_from
            self.show([replace(write, truncate_from=None)])
        return self.inner.encode(writes)


# -- groups --


class AcceptsAnyOrder(Passing):
    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.waiting: deque[object] = deque()

    def encode(self, writes):  # type: ignore[no-untyped-def]
        self.waiting.append(self.inner.encode(writes))
        return self.waiting[-1]

    def persist(self, group: object) -> None:
        self.inner.persist(self.waiting.popleft())


class PersistsHalfOfGroups(OwnLog):
    def encode(self, writes):  # type: ignore[no-untyped-def]
        self.show(writes)
        return self.inner.encode(writes[: max(1, len(writes) // 2)])


class PersistsAtOnce(Passing):
    """What is encoded is on disk, persisted or not."""

    def encode(self, writes):  # type: ignore[no-untyped-def]
        group = self.inner.encode(writes)
        self.inner.persist(group)
        return group

    def persist(self, group: object) -> None:
        pass


class ForgetsTheLastGroup(Passing):
    """A group gets to the disk with the one that follows it."""

    late: object = None

    def persist(self, group: object) -> None:
        late, self.late = self.late, group
        if late is not None:
            self.inner.persist(late)


class SyncsNothing(Passing):
    """Says that it is durable, and leaves the syncs to the system."""

    durable = True  # type: ignore[assignment]


class OneThreadOnly(Passing):
    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.thread = threading.get_ident()

    def persist(self, group: object) -> None:
        if threading.get_ident() != self.thread:
            raise RuntimeError("made in another thread")
        self.inner.persist(group)


class ClosesOnce(Passing):
    is_closed = False

    def close(self) -> None:
        if self.is_closed:
            raise RuntimeError("closed already")
        self.is_closed = True
        self.inner.close()


# -- a full disk --


class StaysFull(Passing):
    """Never looks for room again."""

    def make_room(self) -> None:
        pass


class RefusesVotesWhenFull(Passing):
    """Takes nothing at all while it is full."""

    def persist(self, group: object) -> None:
        if self.inner.is_full:
            raise StorageFull("full")
        self.inner.persist(group)


class DropsWhatFindsNoRoom(Passing):
    """Counts a group as persisted that found no room; it gets there before the next one."""

    late: object = None

    def persist(self, group: object) -> None:
        try:
            if self.late is not None:
                self.inner.persist(self.late)
                self.late = None
            self.inner.persist(group)
        except StorageFull:
            self.late = group


class KeepsVotesBackWhenFull(Passing):
    """A group gets to a full disk with the one that follows it."""

    late: object = None

    def persist(self, group: object) -> None:
        late, self.late = self.late, None
        if late is not None:
            self.inner.persist(late)
        if self.inner.is_full and late is None:
            self.late = group
        else:
            self.inner.persist(group)


# -- whose it is, and how durable --


class AlwaysDurable(Passing):
    durable = True  # type: ignore[assignment]


class NeverWithoutState(Passing):
    def recover(self) -> Recovered:
        recovered = self.inner.recover()
        return Recovered(recovered.hard_state or HardState(1, 0, 0), recovered.log)


class GrowsWhenOpened(Passing):
    """Writes a hard state whenever it is opened."""

    def recover(self) -> Recovered:
        recovered = self.inner.recover()
        self.inner.persist(self.inner.encode([Write(HardState(1, 1, 0), None, ())]))
        return recovered


class Plugin:
    """A plugin whose storages are wrapped."""

    name = "broken"
    title = "One rule is broken"
    durable = True

    def __init__(self, wrap: Callable[[Storage], Storage] = Passing) -> None:
        self.wrap = wrap
        self.inner = SmallWal()

    def owns(self, name: str) -> bool:
        return self.inner.owns(name)

    def found(self, home: StorageHome) -> None:
        self.inner.found(home)

    def open(self, home: StorageHome) -> Storage:
        return self.wrap(self.inner.open(home))


class FoundsOverAnything(Plugin):
    def found(self, home: StorageHome) -> None:
        for name in home.files.names(home.path):
            home.files.remove(home.path / name)
        self.inner.found(home)


class FoundsOnce(Plugin):
    def found(self, home: StorageHome) -> None:
        if not any(map(self.owns, home.files.names(home.path))):
            self.inner.found(home)


class OpensForAnybody(Plugin):
    def open(self, home: StorageHome) -> Storage:
        ours = replace(home, cluster_id=CLUSTER_ID, node_id=NODE_ID, incarnation=INCARNATION)
        return self.inner.open(ours)


class OwnsLittle(Plugin):
    def owns(self, name: str) -> bool:
        return name.startswith("log-")


class OwnsTheIdentity(Plugin):
    def owns(self, name: str) -> bool:
        return self.inner.owns(name) or name == "identity"


class NeverSyncs(Plugin):
    def open(self, home: StorageHome) -> Storage:
        return SyncsNothing(self.inner.open(replace(home, is_synced=False)))


BUGS: Final[Mapping[type[Passing] | type[Plugin], str]] = {
    NeverWithoutState: "founding.fresh_holds_nothing",
    GrowsWhenOpened: "founding.fresh_again_and_again",
    AlwaysDurable: "founding.says_how_durable",
    FoundsOnce: "founding.found_again_before_use",
    FoundsOverAnything: "founding.used_is_not_founded",
    OwnsLittle: "founding.owns_its_files",
    OwnsTheIdentity: "founding.owns_its_files",
    OpensForAnybody: "founding.of_another_refused",
    HardStateLostBesideEntries: "replaying.hard_states",
    HintStays: "replaying.hard_states",
    ShortTerms: "replaying.hard_states",
    FirstEntryStays: "replaying.overwrites",
    RereadsOldEntries: "replaying.overwrites",
    ForgetsTruncation: "replaying.truncations",
    TruncatesAfterEntries: "replaying.truncations",
    OnlyBehindTheEnd: "replaying.holes",
    NarrowIndexes: "replaying.wide_gaps",
    BaseLostBesideTruncation: "replaying.bases",
    BaseAfterTheNextGroup: "replaying.bases",
    ReadsPersistedOnly: "replaying.encoded_counts",
    ForgetsTheLastGroup: "replaying.reopened_as_persisted",
    NeverSyncs: "replaying.crashed_as_persisted",
    ReadsOneAtATime: "reading.stretches",
    IgnoresBytesMax: "reading.bytes_max_kept",
    ReadsNoneForTooFewBytes: "reading.one_at_least",
    ReadsOverHoles: "reading.stops_before_hole",
    NamesTheBaseItself: "reading.below_base_compacted",
    ReadsNothingInHoles: "reading.in_hole_refused",
    ReadsWhatWasTruncated: "reading.truncated_unread",
    AcceptsAnyOrder: "groups.only_in_order",
    PersistsAtOnce: "groups.unpersisted_is_gone",
    PersistsHalfOfGroups: "groups.whole_groups",
    SmallEntriesOnly: "groups.small_and_large_entries",
    SmallGroupsOnly: "groups.large_groups",
    OneThreadOnly: "groups.persisted_beside_reads",
    ClosesOnce: "groups.closed_twice",
    StaysFull: "full.full_and_not_again",
    RefusesVotesWhenFull: "full.votes_while_full",
    DropsWhatFindsNoRoom: "full.refused_comes_again",
    KeepsVotesBackWhenFull: "full.crash_at_every_operation",
}
"""Each with the scenario that finds it."""


def plugin_of(bug: type[Passing] | type[Plugin]) -> Plugin:
    """A plugin with a bug."""
    return Plugin(bug) if issubclass(bug, Passing) else bug()
