"""The snapshots of a simulated node: the real code, on files that forget what was not synced.

A node over the real log has them beside it, on the same files; of any other node they are the only
files.  The jobs that read and write them run at moments that chance decides, one at a time, and the
node may crash before one, after one, or in the midst of one.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from replog.loading import Loaded, MachineHome, find_newest, load_machine
from replog.machine import Machine
from replog.snapshots import SnapshotSurroundings
from replog.storage.files import write_all
from replog.storage.protocol import Recovered
from replog.storage.snapshot_writer import SnapshotInfo
from replog.storage.snapshots import SnapshotStore, snapshot_index
from replog.testing.files import ForgetfulFiles, set_crash
from replog.transfer_jobs import OpenJob
from replog.transfer_outlet import Job
from replog.types import LogIndex

if TYPE_CHECKING:
    from replog.testing.driver import Driver
    from replog.testing.nodes import ClusterNode

NODE_PATH: Final = Path(PurePosixPath("/data/node"))
"""Where a simulated node has its directory."""

CLUSTER_ID: Final = "simulated"
MACHINE: Final = "simulated"
"""The name of every machine."""

SYNC_BYTES: Final = 32
"""How often a snapshot that arrives is synced."""

JOB_OPERATIONS: Final = 24
"""A crash that is to strike in a job does at one of so many operations on the files."""

EPOCH: Final = 1


def made_files() -> ForgetfulFiles:
    """Files with the directory of a node, which is durable."""
    files = ForgetfulFiles()
    for path in (NODE_PATH.parent, NODE_PATH):
        files.make_directory(path)
        files.sync_directory(path.parent)
    return files


class SnapshotDisk:
    """The snapshots of one node, through all its runs."""

    __slots__ = ("files", "jobs", "transfers")

    def __init__(self, files: ForgetfulFiles) -> None:
        self.files = files
        self.jobs: deque[Job] = deque()
        """What the current run wants read or written for its own snapshots, and was not yet."""
        self.transfers: deque[Job] = deque()
        """The same for those that it sends and fetches."""

    @property
    def store(self) -> SnapshotStore:
        """For one run."""
        return SnapshotStore(self.files, NODE_PATH, CLUSTER_ID, SYNC_BYTES)

    def put(self, path: Path, data: bytes) -> None:
        """Begin with a snapshot that was copied from elsewhere, byte for byte."""
        file = self.files.create(path)
        write_all(self.files, file, data, 0)
        self.files.sync(file)
        self.files.close(file)
        self.files.sync_directory(path.parent)

    @property
    def durable_index(self) -> LogIndex:
        """How far the snapshots reach that a power cut leaves; 0: none is left."""
        return max(map(snapshot_index, self.files.synced_names(NODE_PATH)), default=0)

    def load(
        self, machine: Machine, store: SnapshotStore, recovered: Recovered
    ) -> tuple[SnapshotInfo | None, Loaded]:
        """The newest snapshot, and what a new machine holds at the start of a run."""
        self.jobs.clear()
        self.transfers.clear()
        home = MachineHome(self.files, NODE_PATH, MACHINE, EPOCH)
        newest = find_newest(home, store, recovered.log)
        return newest, load_machine(machine, home, store, newest, recovered.log)


class JobRunner:
    """Runs the jobs of all nodes of a cluster, when their time has come."""

    __slots__ = ("_driver",)

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def surroundings(self, node: ClusterNode) -> SnapshotSurroundings:
        """What the snapshots of a node act on in its current run."""
        return SnapshotSurroundings(
            send=partial(self._driver.send, node),
            start_job=partial(self._start, node, node.snapshots.jobs),
            start_transfer=partial(self._start, node, node.snapshots.transfers),
            written_bytes=lambda: node.disk.written_bytes,
            report=partial(self._note, node),
        )

    def _start(self, node: ClusterNode, jobs: deque[Job], job: Job) -> None:
        jobs.append(job)
        if len(jobs) == 1:
            self._plan(node, jobs)

    def plan(self, node: ClusterNode) -> None:
        """Have the next jobs of a node run soon, if there are any."""
        self._plan(node, node.snapshots.jobs)
        self._plan(node, node.snapshots.transfers)

    def _plan(self, node: ClusterNode, jobs: deque[Job]) -> None:
        driver = self._driver
        if jobs:
            ticks_max = driver.faults.job_ticks_max
            ticks = driver.chance.ticks("slow_job", ticks_max) if ticks_max else 0
            driver.agenda.plan(
                driver.agenda.now + ticks, partial(self._run_due, node, jobs, node.run)
            )

    def _run_due(self, node: ClusterNode, jobs: deque[Job], run: int) -> None:
        """Run a node's next job, unless the run is over or stands still; or it was run already."""
        if node.run == run and node.is_running and jobs:
            self._driver.turn(node, partial(self._run_next, node, jobs))

    def _run_next(self, node: ClusterNode, jobs: deque[Job]) -> None:
        job = jobs[0]
        self._run(node, job)
        if isinstance(job, OpenJob) and job.offset > 0:
            self._driver.goals.reach("transfer_resumed")
        # What it starts when it is done comes behind it, so it leaves its place only then.
        node.turns.handle_job(job)
        jobs.popleft()
        self._plan(node, jobs)

    def _run(self, node: ClusterNode, job: Job) -> None:
        """Run a job, amid which the node may crash; whatever it does, what the log begins behind
        is in a snapshot that every power cut leaves."""
        files, driver = node.snapshots.files, self._driver
        chance, fault = driver.chance, files.fault
        is_struck = chance.strikes("crash_in_job", driver.faults.crash_in_job_chance)
        if is_struck and fault is None:
            set_crash(files, chance.details("crash_in_job").randint(1, JOB_OPERATIONS))
        job.run()
        files.fault = fault  # the job may have had fewer operations
        driver.invariants.check_base(node)

    def _note(self, node: ClusterNode, event: str, index: LogIndex, reason: str) -> None:
        """Note what the snapshots of a node report."""
        pairs: dict[str, object] = {"reason": reason} if reason else {}
        self._driver.note(node.node_id, event, index=index, **pairs)
        if event == "snapshot_taken":
            self._driver.goals.reach("snapshot_taken")
