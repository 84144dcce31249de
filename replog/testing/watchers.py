"""Simulated watchers of a state machine, each of whom goes on where it was, at whatever node runs.

What is judged (I24): a page holds exactly the changes of the watched keys, as the commands in the
log have made them, between where its watcher was and the index as of which it was read; who is told
that it fell behind is told so where as many changes are remembered as may be, and no more; nobody
is told of any other fault than that a page was not served; a first page is as of an index that is
not below anything that was committed when it was asked for, and a later one not below what was told
already; and whoever waited in vain is
told so as of something that was applied a moment ago.  So no watcher ever misses a change, gets one
twice, or is forgotten.

In some seeds the machine is :class:`WatchedRegisters`, and there are watchers.  They ask within
turns that are taken anyway, as the readers of the log do (:mod:`replog.testing.followers`), and
like them, not where there is hardly a place for a read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from itertools import chain
from random import Random
from typing import Final

from replog.changes import ChangeCursor, ChangeWindow
from replog.chunks import pack_chunks, unpack_chunks
from replog.envelope import open_envelope
from replog.errors import FellBehind, Overloaded, ReplogError, Unavailable
from replog.machine import ApplyContext, Machine
from replog.testing.checks import Broken
from replog.testing.driver import Driver
from replog.testing.followers import READS_MANY
from replog.testing.judged_machine import Results
from replog.testing.nodes import ClusterNode
from replog.testing.registers import Registers, RegisterWorkload, Workload, key_of
from replog.types import Change, Entry, EntryKind, LogIndex, NodeId

CHANGES_MAX: Final = 16
"""So many changes the machine remembers: a watcher that sleeps for some ticks falls behind."""

WATCHED_CHANCE: Final = 0.6
"""How many of the seeds with places for many reads have a machine that can be watched."""

DELETE_CHANCE: Final = 0.15
"""How likely a command of those is to remove a key."""

WATCHERS: Final = (1, 2, 3)
ASK_CHANCE: Final = 0.6
"""How likely a watcher that waits for nothing is to ask, in a tick, ..."""

ANEW_CHANCE: Final = 0.1
"""... to forget all but the index of the last change that it was told, ..."""

SLEEP_CHANCE: Final = 0.04
"""... or to sleep, for some of ..."""

SLEEP_TICKS_MAX: Final = 50

STALE_TICKS: Final = 8
"""What was applied so many ticks ago, who waited in vain must have looked at: each tick leaves room
for one to look again, and hardly ever do as many wait at one node."""

PREFIXES: Final = ("", "", "k", "k1", "k2")

FORM: Final = "registers"


class WatchedRegisters(Registers):
    """Registers that can be watched: ``delete k`` as well, and the query ``changes AFTER PREFIX``,
    where ``AFTER`` may be ``-``."""

    def __init__(self) -> None:
        super().__init__()
        self._window = ChangeWindow(changes_max=CHANGES_MAX)

    def apply(self, context: ApplyContext, payload: bytes) -> object:
        """Apply one command; see :class:`~replog.testing.registers.Registers`."""
        result: object = None
        if payload.startswith(b"delete "):
            result = self._values.pop(payload[7:], None) is not None
        else:
            result = super().apply(context, payload)
        change = change_by(payload, result)
        if change is not None:
            self._window.note(context.index, *change)
        return result

    def answer(self, payload: bytes) -> object:
        """See the class."""
        words = payload.split(b" ")
        if words[0] != b"changes":
            return super().answer(payload)
        after = None if words[1] == b"-" else int(words[1])
        return self._window.page(after, words[2].decode())

    def check_payload(self, payload: bytes) -> None:
        """See :class:`~replog.machine.Machine`."""
        if not payload.startswith(b"delete "):
            super().check_payload(payload)

    def freeze(self) -> Iterable[bytes]:
        """See :class:`~replog.machine.ConcurrentMachine`."""
        return pack_chunks(FORM, chain(self._window.freeze(), (b"".join(super().freeze()),)))

    def restore(self, chunks: Iterable[bytes]) -> None:
        """See :class:`~replog.machine.ConcurrentMachine`."""
        records = unpack_chunks(FORM, chunks)
        self._window = self._window.restored(records)
        super().restore(records)


def change_by(payload: bytes, result: object) -> tuple[str, bytes | None] | None:
    """What a command that came to ``result`` has changed: a key and its value now; ``None``:
    nothing."""
    action, key, *arguments = payload.split(b" ")
    if action == b"put" or (action == b"cas" and result is True):
        return key.decode(), arguments[-1]
    if action == b"delete" and result is True:
        return key.decode(), None
    return None


class WatchedWorkload(RegisterWorkload):
    """Reads and writes of a few keys at a time, which are also removed, and can be watched."""

    def machine(self) -> Machine:
        """See :class:`~replog.testing.registers.Workload`."""
        return WatchedRegisters()

    def draw(self, random: Random, number: int) -> bytes:
        """See :class:`~replog.testing.registers.Workload`."""
        if random.random() < DELETE_CHANCE:
            return b"delete " + key_of(random, number)
        return super().draw(random, number)


def drawn_workload(random: Random, reads_max: int) -> Workload:
    """What the clients of a seed ask, in which a node has so many places for reads."""
    is_watched = reads_max >= READS_MANY and random.random() < WATCHED_CHANCE
    return WatchedWorkload() if is_watched else RegisterWorkload()


class Watcher:
    """Somebody who watches, and what it asked."""

    __slots__ = (
        "applied",
        "begins",
        "cursor",
        "node_id",
        "prefix",
        "run",
        "sleeps_ticks",
        "told",
        "was_cut",
    )

    def __init__(self, prefix: str, after: LogIndex | None) -> None:
        self.prefix = prefix
        self.told: LogIndex | None = after
        """The index of the last change that it was told, or where it began."""
        self.begin_at(after)
        self.node_id: NodeId = 0
        """Who was asked last, ..."""
        self.run = 0
        """... and in which of its runs; 0: that is answered."""
        self.applied: list[LogIndex] = []
        """Up to where that node had applied, in each tick since."""
        self.was_cut = False
        """Whether the node crashed, and nothing was told since."""
        self.sleeps_ticks = 0

    def begin_at(self, after: LogIndex | None) -> None:
        """Begin anew behind an index, as another process would."""
        self.begins = True
        self.cursor = ChangeCursor(self._query, after, is_any_node=False)

    def _query(self, after: LogIndex | None) -> bytes:
        return f"changes {'-' if after is None else after} {self.prefix}".encode()


class Watchers:
    """All watchers of one run; see the module."""

    def __init__(
        self,
        driver: Driver,
        nodes: Mapping[NodeId, ClusterNode],
        random: Random,
        results: Results,
        workload: Workload,
    ) -> None:
        """There are none if the machine of ``workload`` cannot be watched."""
        self._driver = driver
        self._nodes = nodes
        self._random = random
        self._results = results
        count = random.choice(WATCHERS)
        made = [Watcher(random.choice(PREFIXES), random.choice((0, None))) for _ in range(count)]
        self._watchers = made if isinstance(workload, WatchedWorkload) else []

    def tick(self) -> None:
        """Let each watcher that waits for nothing ask some node, if it likes."""
        random = self._random
        for watcher in self._watchers:
            asks, guess = random.random() < ASK_CHANCE, random.random()
            is_anew, sleeps = random.random() < ANEW_CHANCE, random.random() < SLEEP_CHANCE
            sleep_ticks = random.randint(1, SLEEP_TICKS_MAX)
            if watcher.run:
                node = self._nodes[watcher.node_id]
                if node.run == watcher.run:
                    watcher.applied.append(node.replica.applied_index)
                    continue
                watcher.run, watcher.was_cut = 0, True  # no answer comes from a run that has ended
            if watcher.sleeps_ticks:
                watcher.sleeps_ticks -= 1
                continue
            watcher.sleeps_ticks = sleep_ticks if sleeps else 0
            if is_anew and watcher.told is not None:
                watcher.begin_at(watcher.told)
            running = [node for node in self._nodes.values() if node.is_running]
            if asks and running:
                self._ask(watcher, running[int(guess * 1000) % len(running)])

    def _ask(self, watcher: Watcher, node: ClusterNode) -> None:
        if node.turns.waits_for:
            return  # it takes no part yet
        watcher.node_id, watcher.run, watcher.applied = node.node_id, node.run, []
        cursor = watcher.cursor
        # By the promise, and not by the level that the cursor asks for.
        floor = len(self._driver.invariants.chosen) if watcher.begins else cursor.at_least
        hear = partial(self._hear, watcher, node, node.run, floor)
        try:
            node.replica.query(cursor.payload, cursor.level, cursor.at_least, hear)
        except Overloaded:
            watcher.run = 0

    def _hear(
        self,
        watcher: Watcher,
        node: ClusterNode,
        run: int,
        floor: LogIndex,
        index: LogIndex,
        result: object,
        error: Exception | None,
    ) -> None:
        if watcher.run != run or watcher.node_id != node.node_id:
            return  # the run has ended, and the watcher has asked elsewhere
        watcher.run = 0
        if isinstance(error, Unavailable):
            return
        whom = f"who watches {watcher.prefix!r} at node {node.node_id}"
        if error is not None:
            raise Broken(f"I24: {whom} is told {type(error).__name__}: {error}")
        if index < floor:
            raise Broken(f"I24: {whom} is told what was read as of {index}, and needs {floor}")
        after = watcher.cursor.after
        try:
            changes = watcher.cursor.take(result, index)
        except FellBehind as behind:
            self._judge_behind(watcher, whom, behind.first_available, index)
        except ReplogError as refusal:
            raise Broken(f"I24: {whom} gets no page: {refusal}") from refusal
        else:
            self._judge(watcher, whom, after, changes, index)

    def _judge_behind(self, watcher: Watcher, whom: str, first: LogIndex, index: LogIndex) -> None:
        count = len(self._changes(first - 1, index, ""))
        if count != CHANGES_MAX or not self._changes(first - 2, first - 1, ""):
            raise Broken(
                f"I24: {whom} from behind {watcher.cursor.after} is told as of {index} that "
                f"changes are known from {first} on; these are {count}, and {CHANGES_MAX} are kept"
            )
        self._driver.goals.reach("watch_fell_behind")
        watcher.told = first - 1
        watcher.begin_at(first - 1)

    def _judge(
        self,
        watcher: Watcher,
        whom: str,
        after: LogIndex | None,
        changes: Iterable[Change],
        index: LogIndex,
    ) -> None:
        watcher.begins = False
        upto = watcher.cursor.after
        assert upto is not None, "a page has come"
        begins = upto if after is None else after
        found = [(change.index, change.key, change.value) for change in changes]
        due = self._changes(begins, index, watcher.prefix)
        if found != due or upto > max(begins, index):
            raise Broken(
                f"I24: {whom} from behind {after} is told {found} as of {index}, and is to go on "
                f"behind {upto}; what was changed is {due}"
            )
        if len(watcher.applied) >= STALE_TICKS and index < watcher.applied[-STALE_TICKS]:
            raise Broken(
                f"I24: {whom} waited, and is told what was read as of {index}, and the node had "
                f"applied {watcher.applied[-STALE_TICKS]} {STALE_TICKS} ticks ago"
            )
        if found and watcher.was_cut:
            self._driver.goals.reach("watch_resumed")
        watcher.was_cut = watcher.was_cut and not found
        watcher.told = found[-1][0] if found else begins if watcher.told is None else watcher.told

    def _changes(
        self, after: LogIndex, upto: LogIndex, prefix: str
    ) -> list[tuple[LogIndex, str, bytes | None]]:
        """What the commands behind one index and up to another have changed, of some keys."""
        chosen, found = self._driver.invariants.chosen, []
        for index in range(after + 1, upto + 1):
            entry = chosen.get(index)
            if not isinstance(entry, Entry) or entry.kind != EntryKind.COMMAND:
                continue
            if self._results.has_applied(index):  # else its session knew it
                _, payload = open_envelope(entry)
                change = change_by(payload, self._results.result_of(index))
                if change is not None and change[0].startswith(prefix):
                    found.append((index, *change))
        return found
