"""The measuring itself: the load, the bare pipeline, the processes and the figures."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cbor2
import pytest
import trio
import trio.testing

from replog import plugins
from replog.errors import CallerError, NotLeader, PluginError
from replog.limits import MIB
from replog.storage.files import RealFiles
from replog.types import Waiter
from replog_bench import bare, cluster, memory, micro_parts, processes, protocol, throughput
from replog_bench.__main__ import main
from replog_bench.bare import ACK, Follower, Leader, encode_batch, split_commands
from replog_bench.journal import Journal, SyncThread
from replog_bench.load import ClosedLoop, LoadResult, Window, commands, percentile
from replog_bench.memory import MemoryMark
from replog_bench.micro_engine import EngineCluster
from replog_bench.micro_parts import PART_MEASURES
from replog_bench.network import run_clients
from replog_bench.processes import Child, ChildFailed, Processes
from replog_bench.recovery import recovery_row
from replog_bench.report import (
    Measured,
    RecoveryRow,
    ThroughputRow,
    throughput_rows,
    to_json,
    to_table,
)
from replog_bench.trial import Trial, load_result


class Queue:
    """Takes commands and completes them when it is told to."""

    def __init__(self) -> None:
        self.waiting: deque[Waiter] = deque()
        self.ended = 0

    def submit(self, command: bytes, waiter: Waiter) -> None:
        """Keep the command waiting."""
        assert len(command) == 64
        self.waiting.append(waiter)

    def end(self) -> None:
        """The load ended."""
        self.ended += 1

    def load(self, clients: int, *, warm_up_seconds: float = 0.0, seconds: float) -> ClosedLoop:
        """A load on this queue."""
        return ClosedLoop(
            self.submit,
            clients=clients,
            value_bytes=64,
            warm_up_seconds=warm_up_seconds,
            seconds=seconds,
            on_end=self.end,
        )


def _result(ops_per_second: float) -> LoadResult:
    return LoadResult(
        operations=100,
        ops_per_second=ops_per_second,
        p50_ms=1.0,
        p99_ms=2.0,
        errors=0,
        first_error="",
    )


# -- the load --


@pytest.mark.parametrize("value_bytes", [24, 36, 37, 38, 47, 48, 64, 269, 270, 271, 300, 65_600])
def test_commands_sized_exactly(value_bytes: int) -> None:
    """Every command has the size that was asked for, decodes to a put, and they differ."""
    made = commands(value_bytes)
    assert {len(command) for command in made} == {value_bytes}
    assert len(set(made)) == len(made) > 1
    name, key, value = cbor2.loads(made[1])
    assert name == "put"
    assert isinstance(key, str)
    assert isinstance(value, bytes)


def test_commands_large_few() -> None:
    """Large commands are few, so that the load does not fill the memory; their number is 2^n."""
    made = commands(1 << 20)
    assert len(made) == 16


def test_commands_too_small_refused() -> None:
    """A size that no command fits is refused with the least that does."""
    with pytest.raises(CallerError, match="at least 24"):
        commands(10)


def test_percentile_nearest_rank() -> None:
    """A percentile is a value that was measured: the smallest that covers the fraction."""
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert percentile([1.0, 2.0, 3.0], 0.5) == 2.0
    assert percentile([float(n) for n in range(1, 101)], 0.99) == 99.0
    assert percentile([7.0], 0.01) == 7.0


def test_load_in_flight_constant() -> None:
    """As many commands are in flight as there are clients, from one completion to the next."""
    queue = Queue()
    queue.load(8, seconds=60.0).start()
    for _ in range(100):
        assert len(queue.waiting) == 8
        queue.waiting.popleft()(1, None, None)
    assert queue.ended == 0


def test_load_window_over() -> None:
    """After the window each client ends with the command in flight, and the end is told once."""
    queue = Queue()
    load = queue.load(3, seconds=0.02)
    load.start()
    queue.waiting.popleft()(1, None, None)
    time.sleep(0.03)
    while queue.waiting:
        assert queue.ended == 0
        queue.waiting.popleft()(1, None, None)
    assert queue.ended == 1
    assert load.result().operations == 1
    assert load.result().ops_per_second == pytest.approx(50.0)


def test_load_warm_up_not_counted() -> None:
    """What completes before the window begins keeps the load going and is not measured."""
    queue = Queue()
    load = queue.load(1, warm_up_seconds=60.0, seconds=60.0)
    load.start()
    for _ in range(10):
        queue.waiting.popleft()(1, None, None)
    assert load.result().operations == 0


def test_load_latency_measured() -> None:
    """A latency runs from the submission to the completion of the same command."""
    queue = Queue()
    load = queue.load(2, seconds=60.0)
    load.start()
    time.sleep(0.02)
    queue.waiting.popleft()(1, None, None)
    queue.waiting.pop()(2, None, None)
    result = load.result()
    assert result.operations == 2
    assert result.p50_ms < 5.0 < 20.0 <= result.p99_ms


def test_load_failed_command() -> None:
    """A client whose command fails ends, is counted, and the first reason is kept."""
    queue = Queue()
    load = queue.load(2, seconds=60.0)
    load.start()
    queue.waiting.popleft()(0, None, NotLeader(1, 2))
    queue.waiting.popleft()(0, None, NotLeader(1, 3))
    assert queue.ended == 1
    assert load.result().errors == 2
    assert "node 2 does" in load.result().first_error


def test_load_refused_command() -> None:
    """A refusal that is raised ends the client as a failed command does."""
    ended = []

    def refuse(_: bytes, __: Waiter) -> None:
        raise NotLeader(1, 0)

    load = ClosedLoop(
        refuse,
        clients=2,
        value_bytes=64,
        warm_up_seconds=0.0,
        seconds=1.0,
        on_end=lambda: ended.append(True),
    )
    load.start()
    assert ended == [True]
    assert load.result().errors == 2


# -- the bare pipeline --


def test_batch_split() -> None:
    """The commands of a batch come out of it as they went in."""
    given = [b"one", b"", b"three"]
    batch = encode_batch(7, 8, given)
    length, _, commit, first, count = bare.HEAD.unpack_from(batch)
    assert (length + bare.CHECKED_FROM, commit, first, count) == (len(batch), 7, 8, 3)
    assert split_commands(batch, bare.HEAD.size, count) == given


def test_journal_content(tmp_path: Path) -> None:
    """What was appended stands in the file, back to back, across the steps that make room."""
    journal = Journal(tmp_path / "file")
    parts = [os.urandom(700_000) for _ in range(4)]
    for part in parts:
        journal.append(part)
    journal.close()
    content = (tmp_path / "file").read_bytes()
    assert content.startswith(b"".join(parts))
    assert not any(content[2_800_000:3_000_000])


class GatedJournal(Journal):
    """A journal whose appends wait until the gate is open."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.begun = threading.Event()
        self.gate = threading.Event()

    def append(self, data: bytes) -> None:
        """Wait at the gate, then append."""
        self.begun.set()
        assert self.gate.wait(5)
        super().append(data)


async def test_sync_thread_groups(tmp_path: Path) -> None:
    """What is handed over while a group is on its way makes the next group, with one sync."""
    journal = GatedJournal(tmp_path / "file")
    acknowledged: list[int] = []
    syncs = SyncThread(journal, acknowledged.append)
    syncs.submit(struct.pack(">I", 1), 1)
    assert journal.begun.wait(5)
    for index in range(2, 21):
        syncs.submit(struct.pack(">I", index), index)
    journal.gate.set()
    with trio.fail_after(5):
        assert await syncs.wait_synced() == 1
        assert await syncs.wait_synced() == 20
    assert not syncs.is_busy
    assert acknowledged == [1, 20]
    syncs.stop()
    assert (tmp_path / "file").read_bytes()[:80] == struct.pack(">20I", *range(1, 21))


async def test_sync_thread_failure(tmp_path: Path) -> None:
    """A write that fails reaches the loop as the error that it was, and is never acknowledged."""
    journal = Journal(tmp_path / "file")
    acknowledged: list[int] = []
    syncs = SyncThread(journal, acknowledged.append)
    journal.close()
    syncs.submit(b"lost", 1)
    with trio.fail_after(5), pytest.raises(OSError, match="Bad file descriptor"):
        await syncs.wait_synced()
    assert acknowledged == []


async def _follow(tmp_path: Path, pieces: list[bytes], acks: int) -> tuple[Follower, list[int]]:
    """Give a follower ``pieces``, one after the other, until it acknowledged ``acks`` times."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    follower = Follower(Journal(tmp_path / "file"), theirs)
    got: list[int] = []
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follower.run)
            ours.setblocking(False)
            for piece in pieces:
                ours.send(piece)
                await trio.testing.wait_all_tasks_blocked(0.01)
            while len(got) < acks:
                await trio.lowlevel.wait_readable(ours)
                data = ours.recv(4096)
                got += [index for (index,) in ACK.iter_unpack(data)]
            ours.close()
    theirs.close()
    return follower, got


async def test_follower_batch_in_pieces(tmp_path: Path) -> None:
    """A batch that arrives in pieces is written once it is whole, and then acknowledged."""
    batch = encode_batch(0, 1, commands(64)[:3])
    _, acks = await _follow(tmp_path, [batch[:5], batch[5:100], batch[100:]], 1)
    assert acks == [3]
    assert (tmp_path / "file").read_bytes().startswith(batch)


async def test_follower_applies_committed(tmp_path: Path) -> None:
    """A follower applies a batch when a later one tells that it was committed, not before."""
    first, second = commands(64)[:2], commands(64)[2:4]
    pieces = [encode_batch(0, 1, first), encode_batch(2, 3, second)]
    follower, acks = await _follow(tmp_path, pieces, 2)
    assert acks == [2, 4]
    assert sorted(follower._state) == ["key-000000", "key-000001"]


async def test_follower_damage_noticed(tmp_path: Path) -> None:
    """A batch that was damaged on its way is neither written nor acknowledged."""
    batch = bytearray(encode_batch(0, 1, commands(64)[:1]))
    batch[-1] ^= 1
    ours, theirs = socket.socketpair()
    follower = Follower(Journal(tmp_path / "file"), theirs)
    with pytest.raises(ConnectionError, match="damaged"):
        follower._take(bytes(batch))
    ours.close()
    theirs.close()


async def test_leader_needs_majority(tmp_path: Path) -> None:
    """A command completes when two of three have it on disk, and not while only one has."""
    completed: list[int] = []
    with trio.fail_after(5), socket.create_server(("127.0.0.1", 0)) as listener:
        async with trio.open_nursery() as nursery:
            port = listener.getsockname()[1]
            leader = Leader(Journal(tmp_path / "file"), (port, port), nursery)
            followers = [listener.accept()[0] for _ in range(2)]
            leader.run()
            leader.submit(commands(64)[0], lambda index, _result, _error: completed.append(index))
            leader.flush()
            await trio.sleep(0.1)
            assert completed == []
            followers[1].send(ACK.pack(1))
            while not completed:
                await trio.sleep(0.001)
            assert completed == [1]
            nursery.cancel_scope.cancel()
        leader.stop()
        for follower in followers:
            follower.close()


# -- processes --


def _start_follower(started: Processes, tmp_path: Path) -> Child:
    """A child that is ready and then waits for a leader that never comes."""
    arguments = ("follower", "--file", str(tmp_path / "file"), "--lifetime-seconds", "20")
    child = started.start("follower", "replog_bench.bare", arguments)
    assert child.line(10.0).keys() == {"port"}
    return child


@pytest.mark.net
def test_child_silent(tmp_path: Path) -> None:
    """A child that says nothing in time is reported, and ended with its block."""
    with Processes() as started:
        child = _start_follower(started, tmp_path)
        with pytest.raises(ChildFailed, match=r"follower said nothing for 0\.1 s"):
            child.line(0.1)
    assert child.process.returncode is not None


@pytest.mark.net
def test_child_last_words() -> None:
    """A child that ends early is reported with what it wrote to stderr."""
    with Processes() as started:
        child = started.start("clumsy", "replog_bench.bare", ("--nonsense",))
        with pytest.raises(ChildFailed, match=r"(?s)clumsy ended: .*required: role, --file"):
            child.line(10.0)


@pytest.mark.net
def test_children_ended_on_error(tmp_path: Path) -> None:
    """Children do not survive an error in the block that started them."""
    started = Processes()
    with pytest.raises(KeyboardInterrupt), started:
        child = _start_follower(started, tmp_path)
        raise KeyboardInterrupt
    assert child.process.returncode is not None


@pytest.mark.net
def test_lifetime_limited() -> None:
    """A child whose parent cannot end it any more ends by itself."""
    script = "import replog_bench.processes as p, time; p.limit_lifetime(0.1); time.sleep(20)"
    done = subprocess.run([sys.executable, "-c", script], timeout=10, check=False)
    assert done.returncode != 0


def test_child_told(tmp_path: Path) -> None:
    """What a child is told arrives as it was said, and the end of the parent ends it."""
    script = "import replog_bench.processes as p; p.say(heard=p.hear()); p.hear()"
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    child = Child("child", process, (tmp_path / "none").open("w+b"))
    child.tell(do="load", clients=3)
    assert child.line(10.0) == {"heard": {"do": "load", "clients": 3}}
    _, complaint = process.communicate(timeout=10)
    assert complaint == b"the parent ended\n"
    assert process.returncode == 1


class Script:
    """A child that says what was written for it, and is told nothing more than to campaign."""

    def __init__(self, *lines: processes.Line) -> None:
        self.name = "raft node"
        self.lines = deque([{"opened": 1, "durable": True}, *lines])
        self.told: list[dict[str, object]] = []

    def line(self, seconds: float) -> processes.Line:
        """The next line; there must be one."""
        assert seconds > 0
        return self.lines.popleft()

    def tell(self, **line: object) -> None:
        """Remember what was told."""
        self.told.append(line)


def _says(leader: int, term: int) -> processes.Line:
    return {"leader": leader, "term": term}


@pytest.mark.parametrize(
    ("scripts", "leader_id"),
    [
        # All follow the first node at once.
        ([[_says(1, 1)], [_says(0, 0), _says(1, 1)], [_says(1, 1)]], 1),
        # Another one wins, in a later term and with a smaller id than the leader before.
        ([[_says(3, 2), _says(2, 3)], [_says(2, 3)], [_says(3, 2), _says(0, 3), _says(2, 3)]], 2),
    ],
)
def test_elect_agreed(scripts: list[list[processes.Line]], leader_id: int) -> None:
    """The load waits until all nodes know the same leader, whoever it is, of the latest term."""
    members = {at: Script(*lines) for at, lines in enumerate(scripts, start=1)}
    assert cluster._elect(members, is_durable=True) == leader_id  # type: ignore[arg-type]
    assert members[1].told == [{"do": "campaign"}]
    assert not any(member.told for node_id, member in members.items() if node_id != 1)
    assert not any(member.lines for member in members.values())


def test_elect_other_level() -> None:
    """A node whose log is not what its figures would say of it ends the trial with a sentence."""
    with pytest.raises(ChildFailed, match=r"raft node says that its log is durable, and the level"):
        cluster._elect({1: Script()}, is_durable=False)  # type: ignore[dict-item]


# -- network clients --


class Echo:
    """A client whose commands are done after a moment; fails those after the first ``limit``."""

    def __init__(self, limit: int = 1 << 30) -> None:
        self.limit = limit
        self.in_flight = self.in_flight_most = 0

    async def propose(self, payload: bytes) -> None:
        """Take a moment."""
        assert len(payload) == 64
        self.limit -= 1
        is_refused = self.limit < 0
        self.in_flight += 1
        self.in_flight_most = max(self.in_flight_most, self.in_flight)
        await trio.sleep(0.001)
        self.in_flight -= 1
        if is_refused:
            raise NotLeader(1, 2)


async def test_network_load_in_flight() -> None:
    """As many commands are in flight as there are clients, and those of the window are counted."""
    echo = Echo()
    window = Window(warm_up_seconds=0.0, seconds=0.2)
    result = await run_clients(echo, window, clients=8, value_bytes=64)  # type: ignore[arg-type]
    assert echo.in_flight_most == 8
    assert result.errors == 0
    assert result.operations > 8
    assert result.p50_ms >= 1.0


async def test_network_load_failure() -> None:
    """A client whose command fails ends, and the result tells how many did and why."""
    echo = Echo(limit=20)
    window = Window(warm_up_seconds=0.0, seconds=60.0)
    result = await run_clients(echo, window, clients=4, value_bytes=64)  # type: ignore[arg-type]
    assert result.errors == 4
    assert result.operations == 20
    assert result.first_error.startswith("NotLeader: ")


# -- engines --


@pytest.mark.parametrize("engine", plugins.engine_names())
def test_engine_batches_commit(engine: str) -> None:
    """Every batch that an engine's steps are measured with is committed and known everywhere."""
    measured = EngineCluster(engine)
    before = measured.leader.status().commit_index
    for batch in (1, 64, 3):
        assert all(seconds > 0 for seconds in measured.run_batch(batch))
    assert measured.leader.status().commit_index == before + 68
    for node in measured.engines.values():
        assert node.status().durable_index == before + 68


@pytest.mark.parametrize("engine", plugins.engine_names())
def test_engine_rows(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An engine has rows of its own, which name it."""
    assert main(["micro", "--engines", engine, "--only", "message", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 3
    assert all(row["name"].startswith(f"{engine}: ") for row in rows)
    assert all(row["microseconds"] > 0 for row in rows)


@pytest.mark.parametrize("name", [name for name in PART_MEASURES if "crc" not in name])
def test_part_measured(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part is measured by operations that go through."""
    monkeypatch.setattr(micro_parts, "per_operation", once)
    assert all(sample > 0 for sample in PART_MEASURES[name].run(tmp_path))


def once(operation: Callable[[], object], *, divide: int = 1) -> list[float]:
    """A single sample, which is enough to see that an operation works."""
    start = time.perf_counter()
    operation()
    return [(time.perf_counter() - start) / divide]


# -- figures --


def _measured(speeds: list[float], network: tuple[float, ...] = ()) -> Measured:
    return Measured([_result(speed) for speed in speeds], [_result(speed) for speed in network])


def test_rows_ratio_of_medians() -> None:
    """A ratio is that of the medians; its spread is that of the pairs of neighbouring runs."""
    measured = {"bare": _measured([100.0, 200.0, 300.0]), "raft": _measured([80.0, 100.0, 90.0])}
    base, raft = throughput_rows(measured, clients=64, value_bytes=64, sync_us=150.0)
    assert (base.engine, base.ratio_to_bare, base.ratio_min, base.ratio_max) == ("bare", 1, 1, 1)
    assert (raft.engine, raft.clients, raft.ops_per_second) == ("raft", 64, 90.0)
    assert raft.ratio_to_bare == pytest.approx(0.45)
    assert raft.ratio_min == pytest.approx(0.3)
    assert raft.ratio_max == pytest.approx(0.8)
    assert raft.p50_in_syncs == pytest.approx(1.0 / 0.15)


def test_rows_ratio_to_first_engine() -> None:
    """The second engine is compared with the first as well, run by run."""
    measured = {
        "bare": _measured([100.0, 200.0]),
        "one": _measured([50.0, 100.0]),
        "two": _measured([60.0, 90.0]),
    }
    base, one, two = throughput_rows(measured, clients=64, value_bytes=64, sync_us=150.0)
    assert base.ratio_to_first is one.ratio_to_first is one.ratio_to_first_min is None
    assert two.ratio_to_first == pytest.approx(1.0)
    assert (two.ratio_to_first_min, two.ratio_to_first_max) == (0.9, 1.2)


@pytest.mark.parametrize("engine", plugins.engine_names())
def test_protocol_is_counted(engine: str) -> None:
    """Every event costs messages and bytes, and the same run gives the same figures."""
    shown: list[str] = []
    measures = (protocol.steady_state, protocol.diverged)
    rows = protocol.run_protocol([engine], shown.append, measures)
    assert [row.what for row in rows] == ["one command", "repair, 100 diverged"]
    assert all(row.messages >= 4 and row.kib > 0 and row.engine == engine for row in rows)
    assert rows == protocol.run_protocol([engine], shown.append, measures)
    assert shown[0] == f"steady_state with {engine}"


def test_rows_network() -> None:
    """Network clients have columns of their own, compared with the embedded bare."""
    measured = {"bare": _measured([200.0]), "raft": _measured([100.0], network=(50.0,))}
    base, raft = throughput_rows(measured, clients=64, value_bytes=64, sync_us=150.0)
    assert base.network_ops_per_second is None
    assert base.network_p50_ms is base.network_p99_ms is base.network_ratio_to_bare is None
    assert (raft.ops_per_second, raft.network_ops_per_second) == (100.0, 50.0)
    assert (raft.network_p50_ms, raft.network_p99_ms) == (1.0, 2.0)
    assert raft.network_ratio_to_bare == pytest.approx(0.25)


def test_rows_as_json_and_table() -> None:
    """Rows print as an array of objects for programs and as aligned columns for people."""
    measured = {"bare": _measured([1234.0])}
    rows = throughput_rows(measured, clients=1, value_bytes=64, sync_us=1.0)
    (row,) = json.loads(to_json(rows))
    assert (row["engine"], row["clients"], row["ratio_to_bare"]) == ("bare", 1, 1.0)
    assert row["durable"] is True
    assert row["network_ops_per_second"] is None
    head, line = to_table(ThroughputRow.HEADINGS, rows).splitlines()
    assert head.index("ops/s") + len("ops/s") == line.index("1,234") + len("1,234")


def test_rows_not_durable() -> None:
    """A figure for which nothing was synced says in its row, and in its cell, that it is not
    durable."""
    measured = {"bare": _measured([1234.0])}
    for is_durable, word in ((True, "yes"), (False, "NO")):
        rows = throughput_rows(
            measured, clients=1, value_bytes=64, sync_us=1.0, is_durable=is_durable
        )
        (row,) = json.loads(to_json(rows))
        assert row["durable"] is is_durable
        head, line = to_table(ThroughputRow.HEADINGS, rows).splitlines()
        assert line.split()[head.split().index("durable")] == word


def _plan(directory: Path, *, network_seconds: float = 0.2, repeats: int = 2) -> throughput.Plan:
    return throughput.Plan(
        clients=1,
        value_bytes=64,
        warm_up_seconds=0.1,
        seconds=0.1,
        network_seconds=network_seconds,
        repeats=repeats,
        directory=directory,
    )


def _contestants(turns: list[str]) -> dict[str, throughput.Contestant]:
    """Two contestants that note their turns, the second of which serves network clients."""

    def runs(name: str) -> throughput.Run:
        def run(trial: Trial) -> LoadResult:
            assert not any(trial.directory.iterdir())
            (trial.directory / "file").touch()
            turns.append(f"{name} {trial.seconds:g}")
            return _result(10.0)

        return run

    return {
        "bare": throughput.Contestant(runs("bare"), None),
        "raft": throughput.Contestant(runs("raft"), runs("raft network")),
    }


def test_run_throughput_interleaved(tmp_path: Path) -> None:
    """Contestants take turns, embedded, then over the network, each in an empty directory."""
    turns: list[str] = []
    plan = _plan(tmp_path)
    rows = throughput.run_throughput(_contestants(turns), plan, lambda _: None)
    assert turns == 2 * ["bare 0.1", "raft 0.1", "raft network 0.2"]
    assert [row.engine for row in rows] == ["bare", "raft"]
    assert not any(tmp_path.iterdir())


def test_run_throughput_no_network(tmp_path: Path) -> None:
    """Without a window for the network there are no such trials and no such figures."""
    turns: list[str] = []
    plan = _plan(tmp_path, network_seconds=0.0, repeats=1)
    rows = throughput.run_throughput(_contestants(turns), plan, lambda _: None)
    assert turns == ["bare 0.1", "raft 0.1"]
    assert rows[1].network_ops_per_second is None


def test_run_throughput_at_os_level(tmp_path: Path) -> None:
    """Every contestant is given the level, bare included, and what is shown meanwhile says that
    nothing of it is durable."""
    levels: list[str] = []
    shown: list[str] = []

    def run(trial: Trial) -> LoadResult:
        levels.append(trial.sync)
        return _result(10.0)

    contestants = {
        "bare": throughput.Contestant(run, None),
        "raft": throughput.Contestant(run, run),
    }
    plan = replace(_plan(tmp_path, repeats=1), sync="os")
    rows = throughput.run_throughput(contestants, plan, shown.append)
    assert levels == ["os"] * 3
    assert len(shown) == 3
    assert all("NOT durable" in text for text in shown)
    assert [row.durable for row in rows] == [False, False]


@pytest.mark.parametrize("is_synced", [True, False])
def test_journal_level(is_synced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bare pipeline's file is synced with every append, or left to the operating system."""
    synced: list[int] = []
    journal = Journal(tmp_path / "journal", is_synced=is_synced)
    monkeypatch.setattr(RealFiles, "sync", lambda _, descriptor: synced.append(descriptor))
    journal.append(b"x" * 100)
    journal.append(b"y" * 100)
    journal.close()
    assert len(synced) == (2 if is_synced else 0)


def test_find_contestants_unknown() -> None:
    """An engine that is not installed is refused in one sentence, with those that are."""
    with pytest.raises(PluginError, match=r"no engine named 'nonesuch'.*installed: ") as refused:
        throughput.find_contestants(["nonesuch"])
    assert set(plugins.engine_names()) <= set(re.findall(r"\w+", str(refused.value)))


def test_find_contestants_bare_first() -> None:
    """Every installed engine can be measured, each once, and bare always is, first."""
    engines = plugins.engine_names()
    found = throughput.find_contestants([*engines, "bare", *engines])
    assert list(found) == ["bare", *engines]


def test_load_result_with_errors() -> None:
    """A run in which commands failed is no measurement."""
    line: processes.Line = {
        "operations": 5,
        "ops_per_second": 5.0,
        "p50_ms": 1.0,
        "p99_ms": 1.0,
        "errors": 1,
        "first_error": "NotLeader: gone",
    }
    with pytest.raises(ChildFailed, match="1 clients failed, the first: NotLeader: gone"):
        load_result(line)


@pytest.mark.net
def test_throughput_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command runs bare on three processes and prints its row; nothing is left behind."""
    arguments = "throughput --clients 64 --seconds 0.3 --warm-up-seconds 0.1 --repeats 1 --json"
    assert main([*arguments.split(), "--directory", str(tmp_path)]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["engine"] == "bare"
    assert row["ops_per_second"] > 0
    assert 0 < row["p50_ms"] <= row["p99_ms"]
    assert not any(tmp_path.iterdir())


@pytest.mark.net
@pytest.mark.parametrize("is_json", [False, True])
def test_throughput_command_at_os_level(
    is_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --sync os the table ends with the word that nothing is durable, and JSON has the key."""
    arguments = "throughput --seconds 0.2 --warm-up-seconds 0.1 --repeats 1 --clients 4 --sync os"
    more = ["--directory", str(tmp_path), *(["--json"] if is_json else [])]
    assert main([*arguments.split(), *more]) == 0
    captured = capsys.readouterr()
    assert "no disk" not in captured.err
    if is_json:
        (row,) = json.loads(captured.out)
        assert row["durable"] is False
    else:
        head, line, said = captured.out.splitlines()
        assert line.split()[head.split().index("durable")] == "NO"
        assert said.startswith("NOT durable: with --sync os nothing is synced before it is ack")


def test_micro_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The small operations are measured one row each, chosen by a part of their names."""
    assert main(["micro", "--only", "crc32", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["name"] == "crc32 of 64 KiB"
    assert 0 < row["microseconds_best"] <= row["microseconds"]


@pytest.mark.parametrize("command", ["throughput", "micro"])
def test_command_unknown_engine(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown engine ends the command with exit code 2 and one line on stderr, at once."""
    assert main([command, "--engines", "nonesuch"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("replog_bench: no engine named 'nonesuch' is installed (installed: ")


def test_command_unwritable_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that cannot be written is refused before anything is measured."""
    path = tmp_path / "missing" / "profile"
    with pytest.raises(SystemExit) as ended:
        main(["throughput", "--profile", str(path)])
    assert ended.value.code == 2
    assert "--profile" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", ["--clients=0", "--clients=1,x", "--seconds=-1", "--repeats=0", "--sync=never"]
)
def test_command_bad_option(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A number that makes no sense is refused by the name of its option."""
    with pytest.raises(SystemExit):
        main(["throughput", option])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("replog_bench: ")
    assert option.partition("=")[0] in line
    assert line.endswith("; see `python -m replog_bench throughput --help`")


@pytest.mark.parametrize(
    "arguments", [[], ["throughput"], ["clients"], ["etcd"], ["micro"], ["recovery"]]
)
def test_help_example(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Every help text ends with an example that can be copied."""
    with pytest.raises(SystemExit):
        main([*arguments, "--help"])
    assert "\n  python -m replog_bench " in capsys.readouterr().out


def test_storage_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Groups of three sizes are compared with bare writes, and a long log is opened and read."""
    words = [
        "storage",
        "--entries",
        "3000",
        "--groups",
        "3",
        "--directory",
        str(tmp_path),
        "--json",
    ]
    assert main([*words, "--directory", str(tmp_path)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["what"] for row in rows] == [
        "group of 1",
        "group of 64",
        "group of 1024",
        "recovery",
        "reading back",
    ]
    assert all(row["value"] > 0 for row in rows)
    assert [row["ratio_to_bare"] is None for row in rows] == [False, False, False, True, True]
    assert not list(tmp_path.iterdir())


def test_recovery_row_best() -> None:
    """The best of the repeats is judged, which is the highest of a speed and the lowest of a time,
    and a figure without a budget is not judged at all."""
    speed = recovery_row("catch-up", [150_000.0, 250_000.0, 100_000.0])
    assert (speed.value, speed.best, speed.is_kept) == (150_000.0, 250_000.0, True)
    assert recovery_row("catch-up", [150_000.0, 199_999.0]).is_kept is False
    time_taken = recovery_row("restart, whole log", [6.0, 5.0, 7.0])
    assert (time_taken.value, time_taken.best, time_taken.is_kept) == (6.0, 5.0, True)
    assert recovery_row("restart, whole log", [5.1]).is_kept is False
    installed = recovery_row("snapshot installed", [50.0, 60.0])
    assert (installed.best, installed.is_kept) == (60.0, None)


def test_recovery_rows_as_table() -> None:
    """A row says its budget and whether it is kept, and a dash where there is none."""
    rows = [recovery_row("catch-up", [150_000.0]), recovery_row("cut: sent again", [1.5])]
    _, judged, unjudged = to_table(RecoveryRow.HEADINGS, rows).splitlines()
    assert ">= 200,000    no  " in judged
    assert unjudged.split()[4:8] == ["1.50", "MB", "-", "-"]


def test_memory_peak_is_kept() -> None:
    """What was resident for a moment counts, and a mark forgets what was before it."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the system does not tell a peak of memory")
    size_bytes = 32 * MIB
    mark = MemoryMark()
    held = bytearray(b"x") * size_bytes
    del held
    # The kernel counts pages in batches, so a few may be missing.
    assert 0.9 * size_bytes < mark.grown_bytes < 2 * size_bytes
    assert MemoryMark().grown_bytes < size_bytes // 2


def test_memory_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no peak of memory can be had, one sentence says so."""
    monkeypatch.setattr(memory, "_FORGET", Path("/nonexistent/clear_refs"))
    with pytest.raises(memory.MemoryUnknown, match="measure this on Linux"):
        MemoryMark()


def test_recovery_unknown_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    """A scenario that does not exist is refused with those that do."""
    with pytest.raises(SystemExit):
        main(["recovery", "--scenarios", "cut,nonesuch"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "there is no scenario 'nonesuch'; choose from long-log, default, transfer, cut" in line
