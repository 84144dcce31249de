"""The life of one node, scripted, of which every single operation on files can be struck.

The node is the third of three, on its real log and with its real snapshots; the other two are on
modelled disks.  It goes through everything that writes: its founding, an election, several
segments, entries that another leader overwrites, snapshots, trims, a snapshot that it fetches from
another node, an orderly end and a crash amid a write, with a recovery after each.

:meth:`Script.run` plays it, and stops with :class:`Struck` as soon as the node was struck;
:meth:`Script.conclude` takes it up from there: the node starts again, and the cluster must work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from replog.engine import EnginePlugin
from replog.errors import (
    DirectoryError,
    LogDamaged,
    SnapshotDamaged,
    StorageFailed,
    UnknownFormat,
)
from replog.limits import Limits
from replog.storage.files import TEMPORARY_SUFFIX
from replog.storage.plugin import StoragePlugin
from replog.storage.protocol import Recovered
from replog.storage.segment import segment_number
from replog.stored_log import HeldLog
from replog.testing.checks import Violation
from replog.testing.cluster import Cluster
from replog.testing.disk import Disk, DiskModel
from replog.testing.files import Crashed, KeepNothing, KeepPrefix
from replog.testing.goals import COMMON, ON_FILES, Goals
from replog.testing.nodes import ClusterNode
from replog.testing.snapshot_disk import NODE_PATH, SnapshotDisk
from replog.testing.strikes import Meet, Mode, Operation, StruckFiles, StruckLog
from replog.testing.trials import find_trial
from replog.types import NO_NODE, NodeId

NODE: Final[NodeId] = 3
"""The node under test."""

OTHER: Final[NodeId] = 1

PAYLOAD_BYTES: Final = 60
"""How large a command is."""

LIMITS: Final = Limits(
    command_bytes_max=1024,
    message_bytes_max=2048,
    snapshot_entries=1 << 30,
    trim_margin_entries=2,
    snapshot_chunk_bytes=300,
)
"""Snapshots are taken when the script says so, and travel in several chunks."""

TORN_ATTEMPTS: Final = 8
"""So many groups at most are written until one is torn."""

TIMEOUTS: Final = 10
"""Within so many of the longest election timeouts a calm cluster has a leader."""

SENTENCE_MIN: Final = 40
"""A refusal of fewer characters is no sentence that names the thing and the remedy."""

REFUSALS: Final = (LogDamaged, SnapshotDamaged, DirectoryError, UnknownFormat)
"""How a node refuses to start on a damaged disk."""


class Struck(BaseException):
    """The node was struck, and what it was about to do has come to its end."""


class Script:
    """One run of the script over one engine and one storage."""

    def __init__(self, plugin: EnginePlugin, storage: StoragePlugin, seed: int, meet: Meet) -> None:
        """``meet`` is told of each operation on the files of the node under test."""
        self.scene = ""
        """What the node goes through just now."""
        options = plugin.options()
        trial = find_trial(plugin)
        goals = Goals({**COMMON, **ON_FILES, **trial.goals})
        self.election_ticks = trial.election_ticks_max(options)
        self.cluster = Cluster(
            plugin,
            options,
            node_count=NODE,
            seed=seed,
            limits=LIMITS,
            disk_model=DiskModel(groups_max=1),
            checks=trial.checks(options, tuple(range(1, NODE + 1)), goals),
            goals=goals,
        )
        self.files = StruckFiles(meet, seed)
        self._storage = storage
        self._payloads = 0
        self._fetched_bytes = 0
        self._log: StruckLog | None = None
        """From its founding on."""

    @property
    def log(self) -> StruckLog:
        """The log of the node under test."""
        assert self._log is not None, "founded"
        return self._log

    @property
    def node(self) -> ClusterNode:
        """The node under test."""
        return self.cluster.nodes[NODE]

    @property
    def moment(self) -> int:
        """How much has happened in the cluster so far."""
        return len(self.cluster.trace)

    def run(self) -> None:
        """Play the whole script; raises :class:`Struck`, and ``Violation``."""
        for scene in (
            self._found,
            self._be_elected,
            self._write,
            self._be_overwritten,
            self._take_snapshot,
            self._fall_behind,
            self._write_again,
            self._end_in_order,
            self._crash_amid_a_write,
        ):
            self.scene = scene.__doc__ or ""
            scene()

    # -- what the scenes are made of --

    def _act(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Violation as violation:
            # Damage that shows while the node runs stops it, as it would at the next start.
            if not (self._is_flipped and isinstance(violation.__cause__, REFUSALS)):
                raise
        if self.files.strike is not None:
            raise Struck

    @property
    def _is_flipped(self) -> bool:
        strike = self.files.strike
        return strike is not None and strike.mode is Mode.FLIPPED

    def _tick(self, count: int) -> None:
        for _ in range(count):
            self._act(self.cluster.tick)

    def _until(self, holds: Callable[[], bool]) -> None:
        for _ in range(2 * TIMEOUTS * self.election_ticks):
            if holds():
                return
            self._tick(1)
        raise self.cluster.violation(f"the script does not get through: {self.scene}")

    def _propose(self, node_id: NodeId, count: int, is_batch: bool = False) -> None:
        for _ in range(count):
            self._payloads += 1
            payload = (b"%d " % self._payloads) * PAYLOAD_BYTES
            propose = partial(self.cluster.propose, node_id, payload[:PAYLOAD_BYTES])
            self._act(propose)
            if not is_batch:
                self._act(self.cluster.settle)
        self._act(self.cluster.settle)

    def _lead(self, node_id: NodeId) -> None:
        """Have a node lead, and everybody have all that is committed."""
        self._until(self.cluster.is_converged)
        for _ in range(TIMEOUTS):
            if self.cluster.leader() == node_id:
                break
            # A hand-over may come to nothing, and is asked for again then.
            self._ask_to_lead(node_id)
            for _ in range(self.election_ticks):
                if self.cluster.leader() != node_id:
                    self._tick(1)
        self._until(lambda: self.cluster.leader() == node_id)
        self._until(self.cluster.is_converged)

    def _ask_to_lead(self, node_id: NodeId) -> None:
        if self.cluster.leader() == NO_NODE:
            self._act(partial(self.cluster.campaign, node_id))
        else:
            self._act(partial(self.cluster.transfer, self.cluster.leader(), node_id))

    def _snapshot(self, node_id: NodeId) -> None:
        self._act(partial(self.cluster.take_snapshot, node_id))
        self._tick(2)

    # -- the scenes --

    def _found(self) -> None:
        """founding"""
        # The node that the cluster began with has said nothing yet: this one takes its place.
        self.cluster.crash(NODE)
        node = self.node
        node.disk = Disk(Recovered(None, HeldLog()))
        try:
            self._adopt(StruckLog(NODE, self.files, self._storage))
        except (Crashed, DirectoryError):
            if self.files.strike is None:
                raise
            raise Struck from None
        self._act(partial(self.cluster.restart, NODE))

    def _adopt(self, log: StruckLog) -> None:
        node = self.node
        self._log = node.log_disk = log
        node.snapshots = SnapshotDisk(self.files)

    def _be_elected(self) -> None:
        """election"""
        self._lead(NODE)

    def _write(self) -> None:
        """writes, over several segments"""
        self._propose(NODE, 7)
        self._propose(NODE, 5, is_batch=True)
        self._tick(2)

    def _be_overwritten(self) -> None:
        """entries that another leader overwrites"""
        self.cluster.isolate(NODE)
        self._propose(NODE, 3)
        self._until(lambda: self.cluster.leader() not in (NO_NODE, NODE))
        self._propose(self.cluster.leader(), 4)
        self._act(self.cluster.heal)
        self._until(self.cluster.is_converged)

    def _take_snapshot(self) -> None:
        """a snapshot of its own, and a trim"""
        self._snapshot(NODE)
        self._propose(self.cluster.leader(), 5)
        self._tick(2)

    def _fall_behind(self) -> None:
        """a snapshot that comes from another node"""
        if self.cluster.leader() == NODE:
            self._lead(OTHER)
        self.cluster.isolate(NODE)
        self._propose(self.cluster.leader(), 8)
        for node_id in self.cluster.nodes:
            if node_id != NODE:
                self._snapshot(node_id)
        self._act(self.cluster.heal)
        self._until(self.cluster.is_converged)
        self._fetched_bytes = self.node.turns.snapshots.transfer.picture.received_bytes

    def _write_again(self) -> None:
        """writes after that, and another snapshot of its own"""
        self._propose(self.cluster.leader(), 2)
        self._lead(NODE)
        self._propose(NODE, 2)
        self._snapshot(NODE)

    def _end_in_order(self) -> None:
        """an orderly end, and a start"""
        try:
            self.node.turns.snapshots.transfer.close()
            self.log.close()
        except (Crashed, StorageFailed):
            self.cluster.crash(NODE)
            raise Struck from None
        self._act(partial(self.cluster.stop, NODE))
        self._act(partial(self.cluster.restart, NODE))
        self._until(self.cluster.is_converged)

    def _crash_amid_a_write(self) -> None:
        """a crash amid a write, and a start on a torn log"""
        self._lead(NODE)
        writes_count = 0

        def crash(_: int, operation: str, path: Path) -> None:
            nonlocal writes_count
            name = path.name.removesuffix(TEMPORARY_SUFFIX)
            is_published = name in self.files.synced_names(NODE_PATH)
            # One write in a segment that is there: a group, without zeros in front of it.
            if operation == "sync" and writes_count == 1 and is_published and segment_number(name):
                raise Crashed(f"{operation} of {name}")
            writes_count = writes_count + 1 if operation == "write" else 0

        self.files.keep, self.files.fault = KeepPrefix(PAYLOAD_BYTES), crash
        for _ in range(TORN_ATTEMPTS):
            if self.node.is_up:
                self._propose(NODE, 1)
        self.files.keep = KeepNothing()
        self._act(partial(self.cluster.restart, NODE))
        self._lead(OTHER)
        self._propose(OTHER, 1)
        self._until(self.cluster.is_converged)

    def witness(self, operations: Sequence[Operation]) -> Mapping[str, int]:
        """How often the unstruck run came to each thing that it is for; 0: the script lost it."""

        def count(name: str, suffix: str) -> int:
            return sum(each.name == name and each.path.name.endswith(suffix) for each in operations)

        return {
            "inits and starts": count("lock", ""),
            "segments begun": count("rename", ".seg.tmp"),
            "entries voided": self.log.overwritten_count,
            "snapshots taken": count("rename", ".snap.tmp"),
            "segments removed": count("remove", ".seg"),
            "chunks fetched": self._fetched_bytes // LIMITS.snapshot_chunk_bytes,
            "snapshots fetched": count("rename", ".part"),
            "snapshots removed": count("remove", ".snap"),
            "torn tails cut": self.log.torn_count,
            "entries in front of the log": self.node.disk.base_index,
        }

    # -- after a strike --

    def conclude(self) -> str:
        """Take it up from a strike, or from the end: what is wrong, or ``""``.

        Raises ``Violation``.
        """
        strike, node = self.files.strike, self.node
        self.files.is_over = True
        if strike is not None and strike.mode.is_failure and node.is_up:
            return "the node goes on, although an operation on its files failed"
        if node.is_up:
            self.cluster.crash(NODE)
        self.files.crash(KeepNothing())  # or what the strike leaves
        if self._log is None:
            # Its init was struck, and is simply begun again.
            self._adopt(StruckLog(NODE, self.files, self._storage))
        node.is_damaged = self._is_flipped
        try:
            problem = self.log.problem_of_recovery()
        except REFUSALS as refusal:
            if not self._is_flipped:
                return f"the node refuses to start: {refusal}"
            # The damage was noticed: the others must do without the node.
            node.is_lost = True
            problem = "" if len(str(refusal)) > SENTENCE_MIN else f"no sentence: {refusal}"
        else:
            if not problem:
                self.cluster.restart(NODE)
                problem = "" if node.is_up else "the node does not start"
        if not problem and not (strike is not None and strike.is_failed_look):
            # Whoever failed to look at the disk left on it what a crash there leaves.
            self._work()
        return problem

    def _work(self) -> None:
        """The cluster must commit once more, and all that is up come to the same."""
        leader_ticks = TIMEOUTS * self.election_ticks
        self.cluster.calm()
        self.cluster.check_liveness(leader_ticks, 2 * leader_ticks)
        self.cluster.check_committed()
