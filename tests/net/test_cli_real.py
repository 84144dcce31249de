"""The command line at real nodes, each a process of its own on loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from replog.config import Config, load_config, local_config
from replog.config_text import config_toml
from replog.node import Node
from replog.server import status_map
from replog.snapshots import NO_SNAPSHOTS
from replog.types import PeerState, PeerStatus, Role, Status, Voter

pytestmark = pytest.mark.net

COMMAND = (sys.executable, "-P", "-m", "replog")
SECONDS_MAX = 30.0
"""No process of these tests may take longer."""


def replog(*words: str | Path, code: int = 0, stdin: bytes | None = None) -> str:
    """Run a command; its standard output, or, when it fails, its standard error."""
    done = subprocess.run(
        [*COMMAND, *map(str, words)],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == code, done.stderr.decode()
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return (done.stderr if code else done.stdout).decode()


class ServedCluster:
    """Nodes that run as ``replog serve`` until :meth:`stop`."""

    def __init__(self, config: Config, path: Path) -> None:
        self.config = config
        self.path = path
        self._served: list[subprocess.Popen[bytes]] = []

    def serve(self, node_id: int, *options: str) -> subprocess.Popen[bytes]:
        """Start a node; it ends with this process at the latest, by its standard input."""
        served = subprocess.Popen(
            [
                *(*COMMAND, "serve", "--config", str(self.path), "--node", str(node_id)),
                *("--until-stdin-closes", *options),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=(self.path.parent / f"{node_id}.log").open("ab"),
        )
        self._served.append(served)
        return served

    def log(self, node_id: int) -> str:
        return (self.path.parent / f"{node_id}.log").read_text()

    def wait_started(self, node_id: int) -> None:
        self.wait(lambda: "node_started" in self.log(node_id))

    def wait_leader(self) -> None:
        """Wait until the command line says that the cluster is well."""
        command = [*COMMAND, "status", "--config", str(self.path)]
        quiet = subprocess.DEVNULL
        self.wait(lambda: subprocess.call(command, stdout=quiet, stderr=quiet) == 0)

    def wait(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS_MAX
        while not holds():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.02)

    def stop(self) -> None:
        for served in self._served:
            served.kill()
            served.wait(SECONDS_MAX)


def make_cluster(folder: Path, config: Config | None = None) -> Iterator[ServedCluster]:
    """The body of a fixture: a cluster that was initialised; its nodes are gone at the end."""
    config = config or local_config(folder / "data")
    path = folder / "cluster.toml"
    path.write_text(config_toml(config) + "[limits]\ncommand_bytes_max = 10000\n")
    replog("init", "--config", path)
    cluster = ServedCluster(load_config(path), path)
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCluster]:
    """Three nodes that run for all tests which leave them in peace."""
    for made in make_cluster(tmp_path_factory.mktemp("cluster")):
        for node in made.config.nodes:
            made.serve(node.id)
        made.wait_leader()
        yield made


@pytest.fixture
def single(tmp_path: Path) -> Iterator[ServedCluster]:
    """A cluster of one node, which does not run yet."""
    yield from make_cluster(tmp_path, local_config(tmp_path / "data", nodes=1))


def test_status_shows_every_node(cluster: ServedCluster) -> None:
    """From one address, status finds all three nodes and the leader that they follow."""
    address = str(cluster.config.nodes[1].client)
    document = json.loads(replog("status", "--connect", address, "--json"))
    nodes = document["nodes"]
    assert document["cluster_id"] == cluster.config.cluster_id
    assert [node["node"] for node in nodes] == [1, 2, 3]
    assert [node["leader"] for node in nodes] == [document["leader"]] * 3
    assert sorted(node["role"] for node in nodes) == ["follower", "follower", "leader"]
    assert all(node["durable"] and node["problem"] is None for node in nodes)
    [leader] = [node for node in nodes if node["role"] == "leader"]
    assert len(leader["peers"]) == 2
    assert "leader" in replog("status", "--config", cluster.path)


def test_status_keys_of_peers_documented() -> None:
    """Every key that a node's status has, those of its peers included, is in docs/json.md."""
    peer = PeerStatus(2, PeerState.PROBE, 0, 1, 0, True)
    picture = Status(1, "fake", Role.LEADER, 1, 1, 1, 0, 0, 0, 0, (peer,))
    node = SimpleNamespace(
        status=lambda: picture,
        snapshots=lambda: NO_SNAPSHOTS,
        is_durable=True,
        is_disk_full=False,
        waits_for=(),
        differences={},
        is_voter=True,
        learners=(Voter(3, 7),),
    )
    status = status_map(cast(Node, node))
    text = (Path(__file__).parents[2] / "docs" / "json.md").read_text()
    [inner] = status["peers"]  # type: ignore[misc]
    assert not [key for key in (*status, *inner) if f"`{key}`" not in text]


def test_kv_round_trip(cluster: ServedCluster) -> None:
    """What one command puts, by file or by address, the next ones get, list and delete."""
    where = ("--config", cluster.path)
    replog("kv", "put", "colour", "grün", *where)
    assert replog("kv", "get", "colour", *where) == "grün\n"
    replog("kv", "put", "photo", "--stdin", *where, stdin=b"\xff\x00")
    address = str(cluster.config.nodes[0].client)
    document = json.loads(replog("kv", "range", "--json", "--connect", address))
    assert [(item["key"], item["value"]) for item in document["items"]] == [
        ("colour", "grün"),
        ("photo", "/wA="),
    ]
    replog("kv", "delete", "colour", *where)
    assert "no key 'colour'" in replog("kv", "get", "colour", *where, code=1)


def test_kv_oversize_refused(cluster: ServedCluster) -> None:
    """A command above the limit is refused, by the client or by the node, and harms nobody."""
    for where in (("--config", cluster.path), ("--connect", str(cluster.config.nodes[0].client))):
        said = replog("kv", "put", "big", "--stdin", *where, code=2, stdin=b"x" * 20_000)
        assert "above limits.command_bytes_max = 10000" in said
    assert "no key 'big'" in replog("kv", "get", "big", "--config", cluster.path, code=1)


def test_client_at_peer_port_refused(cluster: ServedCluster) -> None:
    """A client that was given a peer's address is told so at once."""
    address = str(cluster.config.nodes[0].peer)
    said = replog("kv", "get", "k", "--connect", address, code=2)
    assert "this port is for the nodes of the cluster" in said
    said = replog("status", "--connect", address, code=1)
    assert "this port is for the nodes of the cluster" in said


def test_client_nobody_there(cluster: ServedCluster) -> None:
    """A cluster that does not answer within the time is exit code 1."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    said = replog("kv", "get", "k", "--connect", address, "--timeout", "1", code=1)
    assert "refused" in said


@pytest.mark.parametrize("port", ["peer", "client"])
def test_garbage_leaves_node_running(cluster: ServedCluster, port: str) -> None:
    """Whatever bytes come to a port, the connection is closed and the node goes on."""
    address = getattr(cluster.config.nodes[0], port)
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100_000, os.urandom(10_000)):
        with socket.create_connection((address.host, address.port), timeout=10) as caller:
            caller.settimeout(10)
            try:
                caller.sendall(garbage)
                while caller.recv(65536):
                    pass
            except ConnectionError:
                pass
    document = json.loads(replog("status", "--config", cluster.path, "--json"))
    assert [node["problem"] for node in document["nodes"]] == [None] * 3


def test_serve_second_process_refused(cluster: ServedCluster) -> None:
    """A second process on a node's directory is refused, with the id of the first."""
    said = replog("serve", "--config", cluster.path, "--node", "1", code=2)
    assert "is in use by process" in said


def test_serve_address_in_use_refused(single: ServedCluster) -> None:
    """An address on which another program listens is named, with the remedy."""
    address = single.config.nodes[0].client
    with socket.create_server((address.host, address.port)):
        said = replog("serve", "--config", single.path, "--node", "1", code=2)
    assert f"cannot listen on {address} for clients: another program listens there" in said


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, None])
def test_serve_ends_cleanly(single: ServedCluster, how: signal.Signals | None) -> None:
    """A signal, or the end of standard input, ends a node with exit code 0 and a last word."""
    served = single.serve(1, "--log-format", "json")
    single.wait_started(1)
    if how is None:
        assert served.stdin is not None
        served.stdin.close()
    else:
        served.send_signal(how)
    assert served.wait(SECONDS_MAX) == 0
    events = [json.loads(line)["event"] for line in single.log(1).splitlines()]
    assert events[0] == "node_started"
    assert events[-1] == "node_stopped"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_cleanly_during_its_start(single: ServedCluster, how: signal.Signals) -> None:
    """A signal before the node is even loaded ends it with exit code 0, without a word."""
    script = f"""if True:
        import os, sys
        from replog.cli import main
        class Signalled:
            def find_spec(self, name, *_):
                if name == "trio":
                    os.kill(os.getpid(), {int(how)})
        sys.meta_path.insert(0, Signalled())
        sys.exit(main(["serve", "--config", {str(single.path)!r}, "--node", "1"]))
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        capture_output=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("form", ["console", "json"])
def test_serve_outlives_the_reader_of_its_log(single: ServedCluster, form: str) -> None:
    """A node goes on when whoever reads its log has gone, and still ends cleanly."""
    reading, writing = os.pipe()
    served = subprocess.Popen(
        [*COMMAND, "serve", "--config", str(single.path), "--node", "1", "--log-format", form],
        stdout=writing,
        stderr=writing,
    )
    try:
        os.close(reading)
        os.close(writing)
        single.wait_leader()
        served.terminate()
        assert served.wait(SECONDS_MAX) == 0
    finally:
        served.kill()
        served.wait()


def test_serve_log_level(single: ServedCluster) -> None:
    """Above the level that was asked for, nothing is logged."""
    served = single.serve(1, "--log-level", "error")
    single.wait_leader()
    served.terminate()
    assert served.wait(SECONDS_MAX) == 0
    assert single.log(1) == ""


def test_serve_damaged_log_stops(single: ServedCluster) -> None:
    """Damage in the middle of the log stops the node with one sentence and exit code 1."""
    served = single.serve(1)
    single.wait_leader()
    for number in range(3):
        replog("kv", "put", f"k{number}", "v" * 2000, "--config", single.path)
    served.terminate()
    served.wait(SECONDS_MAX)
    [segment] = single.config.nodes[0].directory.glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[data.index(b"v" * 2000) + 1000] ^= 1
    segment.write_bytes(data)
    said = replog("serve", "--config", single.path, "--node", "1", code=1)
    assert str(segment) in said


def test_status_without_majority_fails(tmp_path: Path) -> None:
    """One node of three that runs alone is shown, and so is that there is no leader."""
    for cluster in make_cluster(tmp_path):
        cluster.serve(1)
        cluster.wait_started(1)
        said = replog("status", "--config", cluster.path, "--timeout", "2", code=1)
        assert "no leader is followed by a quorum of 2: 1 of 3 nodes answered" in said


def test_interrupt_ends_client_quietly(tmp_path: Path) -> None:
    """Ctrl-C ends a command that waits with exit code 130 and not a word."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        waiting = subprocess.Popen(
            [*COMMAND, "kv", "get", "k", "--connect", address],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            silent.settimeout(SECONDS_MAX)
            silent.accept()[0].close()
            waiting.send_signal(signal.SIGINT)
            assert waiting.wait(SECONDS_MAX) == 130
            assert waiting.stdout is not None
            assert waiting.stdout.read() == b""
        finally:
            waiting.kill()
            waiting.wait()


def words_to_nobody(*words: str) -> Sequence[object]:
    """Run a command whose reader has gone; its exit code and what it said."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*COMMAND, *words],
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=SECONDS_MAX,
            check=False,
        )
    finally:
        os.close(writing)
    return done.returncode, done.stderr


def test_complaint_to_nobody_keeps_its_exit_code() -> None:
    """Bad input is exit code 2 also when nobody reads the sentence about it."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        words = [*COMMAND, "config", "check", "missing.toml"]
        assert subprocess.call(words, stderr=writing, timeout=SECONDS_MAX) == 2
    finally:
        os.close(writing)


@pytest.mark.parametrize("words", [("config", "example"), ("plugins",)], ids=" ".join)
def test_reader_gone_ends_quietly(words: tuple[str, ...]) -> None:
    """A reader that has enough, as in ``| head -1``, causes no traceback."""
    assert words_to_nobody(*words) == (141, b"")
