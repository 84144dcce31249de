"""Real nodes: they replicate, survive a restart, bear a stalled disk, and refuse strangers."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio

from replog.client import Client
from replog.config import local_config
from replog.errors import (
    AddressError,
    CallerError,
    DirectoryError,
    NotLeader,
    StateMachineCrashed,
    StorageFailed,
    Unavailable,
    UnknownFormat,
)
from replog.founding import bootstrap_cluster
from replog.frames import ClientHello, FrameCodec, FrameType, PeerHello, Refusal
from replog.limits import Limits
from replog.machine import DumpPage
from replog.node import Node
from replog.opening import check_epoch
from replog.running import open_node
from replog.storage.files import Descriptor, RealFiles
from replog.storage.identity import unpack_identity
from replog.storage.protocol import Recovered
from replog.stored_log import HeldLog
from replog.types import Entry, HardState, Role
from replog.wire import FrameReader
from replog_kv import Kv

from running import leader_of, running_cluster, until

pytestmark = pytest.mark.net


async def test_call_is_applied_on_every_node(tmp_path: Path) -> None:
    """What the leader acknowledges is soon applied by every node, with equal states."""
    async with running_cluster(tmp_path) as nodes:
        leader = await leader_of(nodes)
        for number in range(20):
            await leader.call(Kv.put, f"key-{number}", b"value")
        last = leader.status().applied_index
        await until(lambda: all(node.status().applied_index == last for node in nodes.values()))
        dumps = [list(node.machine.dump(b"", 1000).items) for node in nodes.values()]
        assert len(dumps[0]) == 20
        assert dumps[0] == dumps[1] == dumps[2]


async def test_propose_at_a_follower_names_the_leader(tmp_path: Path) -> None:
    """A follower takes no proposal: definitely not done, with the leader as a hint."""
    async with running_cluster(tmp_path) as nodes:
        leader = await leader_of(nodes)
        follower = next(node for node in nodes.values() if node is not leader)
        assert await follower.wait_leader() == leader.node_id
        with pytest.raises(NotLeader) as refused:
            await follower.call(Kv.put, "key", b"value")
        assert refused.value.leader_id == leader.node_id


async def test_restart_of_the_whole_cluster_keeps_everything(tmp_path: Path) -> None:
    """A cluster that stops and starts again still holds what was acknowledged."""
    config = local_config(tmp_path, nodes=3)
    async with running_cluster(tmp_path, config=config) as nodes:
        leader = await leader_of(nodes)
        await leader.call(Kv.put, "key", b"value")
    async with running_cluster(tmp_path, config=config) as nodes:
        leader = await leader_of(nodes)
        assert await leader.call(Kv.get, "key") == b"value"


async def test_transfer_moves_the_leadership(tmp_path: Path) -> None:
    """Leadership is handed to the named node without waiting for a timeout."""
    async with running_cluster(tmp_path) as nodes:
        leader = await leader_of(nodes)
        successor = next(node for node in nodes.values() if node is not leader)
        leader.transfer(successor.node_id)
        await until(lambda: successor.status().role is Role.LEADER)
        assert leader.status().role is Role.FOLLOWER


async def test_role_changes_tell_of_the_election(tmp_path: Path) -> None:
    """The iterator of role changes ends up at a leader that the node knows."""
    async with running_cluster(tmp_path, nodes=1) as nodes:
        async for change in nodes[1].role_changes():
            if change.role is Role.LEADER:
                break
        assert change.leader_id == 1
        assert change.term == 1


class StallingDisk:
    """Makes the syncs of one node's log take long, from a moment on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.descriptor: Descriptor | None = None
        self.seconds = 0.0
        self.stalled_count = 0
        real = RealFiles.sync

        def sync(files: RealFiles, descriptor: Descriptor) -> None:
            if self.seconds and threading.current_thread().name == self.thread_name:
                self.stalled_count += 1
                time.sleep(self.seconds)
            real(files, descriptor)

        monkeypatch.setattr(RealFiles, "sync", sync)
        self.thread_name = ""

    def stall(self, node: Node, seconds: float) -> None:
        assert node._syncs is not None
        self.thread_name = node._syncs._thread.name = f"stalled-{node.node_id}"
        self.seconds = seconds


@pytest.mark.parametrize("stalled", [Role.LEADER, Role.FOLLOWER])
async def test_stalled_sync_deposes_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stalled: Role
) -> None:
    """A sync that takes 3 s, six election timeouts, at the leader or a follower changes no
    leader; commands go on being acknowledged by the other two."""
    disk = StallingDisk(monkeypatch)
    async with running_cluster(tmp_path) as nodes:
        leader = await leader_of(nodes)
        term = leader.status().term
        victim = leader
        if stalled is Role.FOLLOWER:
            victim = next(node for node in nodes.values() if node is not leader)
        disk.stall(victim, seconds=3.0)
        started = trio.current_time()
        while trio.current_time() - started < 3.5:
            await leader.call(Kv.put, "key", b"value")
            await trio.sleep(0.02)
        assert disk.stalled_count >= 1
        assert [node.status().term for node in nodes.values()] == [term] * 3
        assert leader.status().role is Role.LEADER
        disk.seconds = 0.0


async def test_failed_sync_stops_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync that fails stops the node with an error out of its block; it is never retried."""
    real = RealFiles.sync
    calls = []

    def fail(files: RealFiles, descriptor: Descriptor) -> None:
        if threading.current_thread() is threading.main_thread():
            real(files, descriptor)
            return
        calls.append(descriptor)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(RealFiles, "sync", fail)
    with pytest.raises(StorageFailed, match="Input/output error"):
        async with running_cluster(tmp_path, nodes=1):
            await trio.sleep_forever()
    assert len(calls) == 1


async def test_backlog_is_applied_in_several_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that starts with a long log applies it a piece per turn, so that it goes on hearing
    its peers."""
    config = local_config(tmp_path, nodes=1, limits=Limits(apply_entries_max=10))
    async with running_cluster(tmp_path, config=config) as nodes:
        await leader_of(nodes)
        for _ in range(100):
            await nodes[1].call(Kv.put, "key", b"value")
    applied: list[int] = []
    turn = Node._turn

    def count_applied(node: Node) -> None:
        before = node.status().applied_index
        turn(node)
        applied.append(node.status().applied_index - before)

    monkeypatch.setattr(Node, "_turn", count_applied)
    async with running_cluster(tmp_path, config=config) as nodes:
        await until(lambda: nodes[1].status().applied_index >= 101)
    assert sum(applied) >= 101
    assert max(applied) <= 10


async def test_call_after_the_end_is_not_done(tmp_path: Path) -> None:
    """A node that has stopped takes no proposal; nobody waits for ever."""
    async with running_cluster(tmp_path, nodes=1) as nodes:
        node = await leader_of(nodes)
    with trio.fail_after(5), pytest.raises(Unavailable):
        await node.call(Kv.put, "key", b"value")


async def test_crash_of_the_machine_reaches_the_caller(tmp_path: Path) -> None:
    """An undeclared exception in a command stops the node and is raised out of its block."""

    class Broken(Kv):
        def apply(self, context: object, payload: bytes) -> object:
            raise ZeroDivisionError("by design")

    config = local_config(tmp_path, nodes=1)
    with trio.fail_after(10), pytest.raises(StateMachineCrashed, match="by design") as crashed:
        async with open_node(config, 1, Broken(), bootstrap=True) as node:
            await node.wait_leader()
            await node.call(Kv.put, "key", b"value")
    assert isinstance(crashed.value.__cause__, ZeroDivisionError)


async def test_open_refuses_a_directory_that_was_never_made(tmp_path: Path) -> None:
    """Without bootstrap a missing directory is refused: such a node must not vote."""
    config = local_config(tmp_path / "missing", nodes=1)
    with pytest.raises(DirectoryError, match="replog init"):
        async with open_node(config, 1):
            pass


async def test_open_refuses_other_nodes_than_were_founded(tmp_path: Path) -> None:
    """A configuration with more or fewer nodes than the founding record is refused."""
    async with running_cluster(tmp_path, nodes=1):
        pass
    config = local_config(tmp_path, nodes=3)
    with pytest.raises(DirectoryError, match=r"founded with the nodes 1, but .* nodes 1, 2, 3;"):
        async with open_node(config, 1):
            pass


def test_state_of_another_epoch_stops_the_node(tmp_path: Path) -> None:
    """State that only a later release can have written is not taken for ours."""
    for recovered in (
        Recovered(HardState(2, 1, 0), HeldLog()),
        Recovered(HardState(1, 1, 0), HeldLog([Entry(2, 1, 1, b"")])),
    ):
        with pytest.raises(UnknownFormat, match="epoch 2"):
            check_epoch(tmp_path, recovered, 1)
    check_epoch(tmp_path, Recovered(HardState(1, 1, 0), HeldLog([Entry(1, 1, 1, b"")])), 1)


async def test_start_that_fails_uses_no_memory_directory_up(tmp_path: Path) -> None:
    """A node on the memory storage whose port is taken may be started again."""
    config = local_config(tmp_path, nodes=1, storage="memory")
    with socket.socket() as other:
        other.bind(("127.0.0.1", config.node(1).client.port))
        other.listen()
        with pytest.raises(AddressError):
            async with open_node(config, 1, bootstrap=True):
                pass
    async with running_cluster(tmp_path, config=config) as nodes:
        await nodes[1].wait_leader()


def test_bootstrap_by_all_nodes_at_once(tmp_path: Path) -> None:
    """Programs that bootstrap one cluster at the same moment end up with one founding."""
    config = local_config(tmp_path / "cluster", nodes=3)
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(bootstrap_cluster, config, node.id) for node in config.nodes]:
            done.result(timeout=20)
    foundings = [
        unpack_identity(node.directory, (node.directory / "identity").read_bytes()).founding
        for node in config.nodes
    ]
    assert foundings[0] == foundings[1] == foundings[2]


def test_bootstrap_goes_on_from_a_record(tmp_path: Path) -> None:
    """A bootstrap that was interrupted behind its record is completed from it."""
    config = local_config(tmp_path, nodes=3)
    bootstrap_cluster(config, 1)
    record = (tmp_path / "local.founding").read_bytes()
    for node in config.nodes:
        shutil.rmtree(node.directory)
    bootstrap_cluster(config, 2)
    assert (tmp_path / "local.founding").read_bytes() == record
    bootstrap_cluster(config, 3)


async def test_bootstrap_refuses_a_node_that_lost_its_directory(tmp_path: Path) -> None:
    """With bootstrap, a missing directory beside another node's is refused as well."""
    config = local_config(tmp_path, nodes=3)
    async with running_cluster(tmp_path, config=config):
        pass
    lost = config.node(2).directory
    lost.rename(lost.with_name("lost"))
    with pytest.raises(DirectoryError, match="lost its directory"):
        async with open_node(config, 2, bootstrap=True):
            pass


async def test_second_open_of_a_directory_is_refused(tmp_path: Path) -> None:
    """A node that runs holds its directory."""
    config = local_config(tmp_path, nodes=1)
    async with running_cluster(tmp_path, config=config):
        with pytest.raises(DirectoryError, match="in use"):
            async with open_node(config, 1):
                pass


async def test_address_in_use_is_one_sentence(tmp_path: Path) -> None:
    """A port that another program listens on is refused with the address and the remedy."""
    config = local_config(tmp_path, nodes=1)
    with socket.socket() as other:
        other.bind(("127.0.0.1", config.node(1).client.port))
        other.listen()
        with pytest.raises(AddressError, match=r"another program listens there"):
            async with open_node(config, 1, bootstrap=True):
                pass


async def ask(port: int, data: bytes) -> bytes:
    """Send bytes to a port of loopback, and everything that comes back until it closes."""
    with trio.fail_after(10):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(data)
            answer = b""
            async for chunk in stream:
                answer += chunk
    return answer


def refusal_in(answer: bytes) -> str:
    codec = FrameCodec(Limits())
    ((frame_type, content),) = FrameReader(codec.frame_limits).feed(answer)
    frame = codec.decode(frame_type, content)
    assert isinstance(frame, Refusal)
    return frame.reason


async def test_client_at_a_peer_port_is_told(tmp_path: Path) -> None:
    """A client that speaks to a peer port is told which port it wants."""
    async with running_cluster(tmp_path, nodes=1) as nodes:
        hello = FrameCodec(Limits()).encode(ClientHello(1, 1, ""))
        answer = await ask(nodes[1].config.node(1).peer.port, hello)
        assert "client address" in refusal_in(answer)


@pytest.mark.parametrize("port", ["peer", "client"])
async def test_garbage_closes_the_connection_and_harms_nobody(tmp_path: Path, port: str) -> None:
    """Bytes that are no frame are refused with a sentence; the node goes on."""
    async with running_cluster(tmp_path, nodes=1) as nodes:
        node = nodes[1]
        number = getattr(node.config.node(1), port).port
        assert "HTTP" in refusal_in(await ask(number, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
        await ask(number, b"RL\x01\x45\xff\xff\xff\xff" + b"x" * 64)
        await node.wait_leader()
        await node.call(Kv.put, "key", b"value")


async def test_peer_hears_keepalives_while_it_sends(tmp_path: Path) -> None:
    """Who sends a large message over a slow link hears keepalives meanwhile, though its own are
    stuck behind the message: else it would give up and begin anew for ever."""
    limits = Limits(connection_idle_ms=800)
    config = local_config(tmp_path, nodes=2, limits=limits)
    bootstrap_cluster(config, 1)
    founding = unpack_identity(
        config.node(2).directory, (config.node(2).directory / "identity").read_bytes()
    ).founding
    incarnation = founding.incarnation_of(2)
    assert incarnation is not None
    codec = FrameCodec(limits)
    hello = PeerHello(1, 1, config.cluster_id, 2, incarnation, 1, config.engine, 1, 5, ())
    with trio.fail_after(10):
        async with open_node(config, 1):
            stream = await trio.open_tcp_stream("127.0.0.1", config.node(1).peer.port)
            async with stream:
                await stream.send_all(codec.encode(hello))
                reader = FrameReader(codec.frame_limits)
                heard: list[int] = []
                while len(heard) < 4:
                    # One byte of a frame that will take for ever.
                    await stream.send_all(b"R" if not heard else b"")
                    heard += [kind for kind, _ in reader.feed(await stream.receive_some())]
    assert heard[0] == FrameType.PEER_WELCOME
    assert set(heard[1:]) == {FrameType.KEEPALIVE}


async def test_nodes_that_were_founded_apart_refuse_each_other(tmp_path: Path) -> None:
    """A node counts only as the incarnation that the founding record names."""
    config = local_config(tmp_path, nodes=2)
    async with running_cluster(tmp_path, config=config):
        pass
    kept = config.node(1).directory
    kept.rename(tmp_path / "kept")
    for node in config.nodes:
        if node.directory.exists():
            node.directory.rename(tmp_path / f"old-{node.id}")
    for record in tmp_path.glob("**/*.founding"):
        record.unlink()
    async with running_cluster(tmp_path, config=config):
        pass
    config.node(1).directory.rename(tmp_path / "new")
    (tmp_path / "kept").rename(config.node(1).directory)
    async with running_cluster(tmp_path, config=config) as nodes:
        await trio.sleep(2.0)
        assert [node.status().leader_id for node in nodes.values()] == [0, 0]


async def test_dump_with_a_bad_cursor_harms_nobody(tmp_path: Path) -> None:
    """A client's cursor that the state machine's dump cannot take is refused; the node goes on."""

    class Numbered(Kv):
        def dump(self, cursor: bytes, items_max: int) -> DumpPage:
            return DumpPage([int(cursor)], None)

    config = local_config(tmp_path, nodes=1)
    with trio.fail_after(10):
        async with open_node(config, 1, Numbered(), bootstrap=True) as node:
            await node.wait_leader()
            async with Client(config) as client:
                with pytest.raises(CallerError, match="ValueError"):
                    await client.dump(b"junk")
                await client.call(Kv.put, "key", b"value")


async def test_memory_storage_says_that_it_is_not_durable(tmp_path: Path) -> None:
    """A node on the memory storage runs, says so, and is refused a second start."""
    config = local_config(tmp_path, nodes=1, storage="memory")
    async with running_cluster(tmp_path, config=config) as nodes:
        await nodes[1].wait_leader()
        assert not nodes[1].is_durable
    with pytest.raises(DirectoryError, match="its log was lost"):
        async with open_node(config, 1):
            pass
