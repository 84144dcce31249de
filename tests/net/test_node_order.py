"""A node says nothing that its own disk does not hold yet: the order of writes and answers.

These tests hold the disk in their hands.  The node is a real one with a real log, but its sync
thread is a :class:`HeldDisk`, which makes a group durable when it is told to and not before, and
its peers are a :class:`Wire` that remembers what has left.  Nothing runs beside the test, so every
order of events is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias, cast

import pytest

from replog.config import local_config
from replog.errors import OutcomeUnknown
from replog.formation import MetRecord
from replog.founding import bootstrap_cluster
from replog.node import Node
from replog.opening import open_state
from replog.storage.directory import open_directory
from replog.storage.protocol import Storage
from replog.sync_thread import SyncThread
from replog.transfer_messages import SnapshotFetch, SnapshotGone
from replog.types import Entry, EntryKind, Ready, Role, entry_body
from replog_kv import Kv
from replog_raft.messages import (
    AppendEntries,
    AppendReply,
    Heartbeat,
    RequestVote,
    TimeoutNow,
    Vote,
)


class HeldDisk:
    """Stands in for the node's sync thread; a group ends when the test says so."""

    def __init__(self, persist: Callable[[bytes], None]) -> None:
        self._persist = persist
        self._group: bytes | None = None
        self.groups_count = 0
        """How many groups were submitted."""

    @property
    def is_busy(self) -> bool:
        return self._group is not None

    def submit(self, group: bytes) -> None:
        assert self._group is None, "one group is on its way at a time"
        self._group = group
        self.groups_count += 1

    def end_group(self) -> None:
        assert self._group is not None, "a group is on its way"
        group, self._group = self._group, None
        self._persist(group)


class Wire:
    """Stands in for the network; ``left`` is what was sent and flushed."""

    def __init__(self) -> None:
        self._queued: list[object] = []
        self.left: list[object] = []

    def send(self, message: object) -> None:
        self._queued.append(message)

    def flush(self) -> None:
        self.left += self._queued
        self._queued.clear()

    def take(self) -> list[object]:
        """What has left since the last call."""
        left, self.left = self.left, []
        return left


class Bench:
    """Node 1 with its disk and its wire held."""

    def __init__(self, node: Node, storage: Storage) -> None:
        self.node = node
        self.disk = HeldDisk(storage.persist)
        self.wire = Wire()
        node._syncs = cast(SyncThread, self.disk)
        turns = node._turns
        turns._surroundings = replace(
            turns._surroundings, send=self.wire.send, flush=self.wire.flush
        )
        sending = turns.snapshots.transfer._sending
        sending._outlet = replace(sending._outlet, send=self.wire.send)

    def hear(self, message: object) -> list[object]:
        """A message arrives; what leaves because of it."""
        self.node._turns.step(message)
        return self.turn()

    def turn(self) -> list[object]:
        self.node._turn()
        return self.wire.take()

    def end_group(self) -> list[object]:
        """The group on its way becomes durable; what leaves because of it."""
        self.disk.end_group()
        self.node._turns.handle_synced()
        return self.turn()

    @property
    def durable_index(self) -> int:
        return self.node.status().durable_index


Held: TypeAlias = Callable[[int], AbstractContextManager[Bench]]


@pytest.fixture
def held(tmp_path: Path) -> Held:
    """Opens node 1 of a cluster of so many, held; they have met."""

    @contextmanager
    def opened(nodes: int) -> Iterator[Bench]:
        config = local_config(tmp_path, nodes=nodes)
        bootstrap_cluster(config, 1)
        with open_directory(
            config.node(1).directory,
            cluster_id=config.cluster_id,
            node_id=1,
            engine=config.engine,
            storage=config.storage,
        ) as directory:
            others = range(2, nodes + 1)
            directory.open_met().save(MetRecord(tuple((each, 7) for each in others), (*others,)))
            storage = directory.open_storage()
            try:
                machine = Kv()
                state = open_state(config, directory, storage, machine)
                yield Bench(Node(config, directory, storage, machine, state), storage)
            finally:
                storage.close()

    return opened


def append(index: int) -> AppendEntries:
    """Node 2, the leader of term 1, sends the entry at ``index``."""
    entry = Entry(1, index, 1, entry_body(EntryKind.NOOP, 1, 1, index, b""))
    return AppendEntries(
        epoch=1,
        term=1,
        sender=2,
        to=1,
        prev_index=index - 1,
        prev_term=1 if index > 1 else 0,
        commit_index=0,
        entries=(entry,),
    )


def ack(index: int) -> AppendReply:
    """Node 1 holds everything up to ``index``."""
    return AppendReply(
        epoch=1,
        term=1,
        sender=1,
        to=2,
        accepted=True,
        match_index=index,
        rejected_index=0,
        hint_index=0,
        hint_term=0,
    )


def vote_request(term: int, sender: int, to: int, last_index: int = 0) -> RequestVote:
    return RequestVote(
        epoch=1,
        term=term,
        sender=sender,
        to=to,
        last_index=last_index,
        last_term=1 if last_index else 0,
        pre=False,
        transfer=True,
        ordered_in=term - 1,
    )


def vote(term: int, to: int) -> Vote:
    return Vote(epoch=1, term=term, sender=1, to=to, granted=True, pre=False)


def test_ack_waits_for_its_own_group(held: Held) -> None:
    """A follower acknowledges what the ended group holds, and nothing that came up meanwhile."""
    with held(3) as bench:
        assert bench.hear(append(1)) == []
        assert bench.hear(append(2)) == []
        assert (bench.disk.groups_count, bench.durable_index) == (1, 0)

        assert bench.end_group() == [ack(1)]
        assert (bench.disk.groups_count, bench.durable_index) == (2, 1)

        assert bench.end_group() == [ack(2)]
        assert (bench.disk.groups_count, bench.durable_index) == (2, 2)


def test_vote_waits_for_its_own_group(held: Held) -> None:
    """A vote leaves when the group that holds it has ended, not when an earlier one has."""
    with held(3) as bench:
        assert bench.hear(vote_request(term=1, sender=2, to=1)) == []
        assert bench.hear(vote_request(term=2, sender=3, to=1)) == []

        assert bench.end_group() == [vote(term=1, to=2)]
        assert bench.end_group() == [vote(term=2, to=3)]


def test_candidacy_waits_for_its_own_group(held: Held) -> None:
    """A candidate asks for votes when its own is on disk, not when an earlier group is."""
    with held(3) as bench:
        assert bench.hear(append(1)) == []
        assert bench.hear(TimeoutNow(epoch=1, term=1, sender=2, to=1)) == []

        assert bench.end_group() == [ack(1)]
        assert bench.end_group() == [
            vote_request(term=2, sender=1, to=peer, last_index=1) for peer in (2, 3)
        ]


def test_own_vote_counts_after_its_group(held: Held) -> None:
    """A candidate that needs no vote but its own leads when that is on disk, and not before."""
    with held(1) as bench:
        bench.node.campaign()
        bench.turn()
        assert bench.node.status().role is Role.CANDIDATE
        bench.end_group()
        assert bench.node.status().role is Role.LEADER


def test_leader_counts_itself_after_its_own_group(held: Held) -> None:
    """A leader commits, and answers, what the ended group holds, and nothing proposed meanwhile."""
    with held(1) as bench:
        node = bench.node
        node._is_running = True
        node.campaign()
        bench.turn()
        bench.end_group()  # the vote
        bench.end_group()  # the no-op of the new term
        done: list[str] = []
        for name in ("first", "second"):
            node.submit(
                Kv.put.encode("key", name.encode()), lambda *_, name=name: done.append(name)
            )
            bench.turn()
        assert (done, bench.durable_index, node.status().commit_index) == ([], 1, 1)

        bench.end_group()
        assert (done, bench.durable_index, node.status().commit_index) == (["first"], 2, 2)

        bench.end_group()
        assert (done, bench.durable_index, node.status().commit_index) == (
            ["first", "second"],
            3,
            3,
        )


def test_repeated_ack_waits_for_the_group_on_its_way(held: Held) -> None:
    """The answer to a duplicate writes nothing and waits all the same, then leaves."""
    with held(3) as bench:
        assert bench.hear(append(1)) == []
        assert bench.hear(append(1)) == []
        assert bench.disk.groups_count == 1
        assert bench.end_group() == [ack(1), ack(1)]
        assert bench.hear(append(1)) == [ack(1)], "nothing is before it any more"


def test_repeated_ack_waits_for_the_group_that_waits(held: Held) -> None:
    """The answer to a duplicate of what is not even on its way waits for that group, too."""
    with held(3) as bench:
        assert bench.hear(append(1)) == []
        assert bench.hear(append(2)) == []
        assert bench.hear(append(2)) == []
        assert bench.end_group() == [ack(1)]
        assert bench.end_group() == [ack(2), ack(2)]


def test_lost_leadership_ends_its_waits_past_a_backlog(held: Held) -> None:
    """Who waits on a leadership that is lost is told at once, even while older Readys wait to be
    applied; and when these are, nobody of a later leadership is told anything."""
    nothing = Ready((), None, None, (), (), (), None)
    told: list[Exception | None] = []
    with held(3) as bench:
        node = bench.node
        node._is_running = True
        bench.hear(TimeoutNow(epoch=1, term=1, sender=2, to=1))
        bench.end_group()
        bench.hear(Vote(epoch=1, term=2, sender=2, to=1, granted=True, pre=False))
        assert node.status().role is Role.LEADER
        node.submit(Kv.put.encode("key", b"value"), lambda *outcome: told.append(outcome[2]))
        bench.turn()
        node._turns._unapplied += [nothing] * 3
        bench.hear(Heartbeat(epoch=1, term=9, sender=3, to=1, commit_index=0, round=1))
        assert node.status().role is Role.FOLLOWER
        assert [type(error) for error in told] == [OutcomeUnknown]
        assert node._turns._unapplied, "the backlog is still there"
        assert all(waiting.soft_state is None for waiting in node._turns._unapplied)


def test_answer_without_a_ready_leaves(held: Held) -> None:
    """What is said of a snapshot leaves with the turn, although the engine is ready for nothing."""
    fetch = SnapshotFetch(
        epoch=1,
        term=0,
        sender=2,
        to=1,
        last_index=9,
        size_bytes=99,
        checksum=7,
        offset=0,
        bytes_max=99,
    )
    gone = SnapshotGone(epoch=1, term=0, sender=1, to=2, last_index=9, checksum=7)
    with held(3) as bench:
        bench.turn()
        assert bench.hear(fetch) == [gone]
