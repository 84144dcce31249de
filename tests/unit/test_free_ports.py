"""Free ports: never those of another process, and never again what was chosen a moment ago."""

import socket
import subprocess
import sys

import pytest

from replog import free_ports as module
from replog.errors import AddressError
from replog.free_ports import FIRST_PORT, STRETCH, STRETCHES, free_ports

CHOOSE = "from replog.free_ports import free_ports; print(free_ports(200)); input()"
FORK = """
import os
from replog.free_ports import FIRST_PORT, STRETCH, free_ports
stretch = lambda: (free_ports(1)[0] - FIRST_PORT) // STRETCH
mine = stretch()
child = os.fork()
if child == 0:
    os._exit(stretch() == mine)
_, status = os.waitpid(child, 0)
os._exit(os.waitstatus_to_exitcode(status))
"""


@pytest.fixture(autouse=True)
def own_stretch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test claims anew, and the process keeps what it had."""
    monkeypatch.setattr(module, "_stretch", None)


def test_ports_can_be_opened() -> None:
    """What is given is free, below what systems give to outgoing connections, and no port twice."""
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert min(ports) > FIRST_PORT
    assert max(ports) < FIRST_PORT + STRETCH * STRETCHES <= 32_000
    for port in ports:
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_processes_choose_apart() -> None:
    """Processes that choose before any of them opens a port choose different ones."""
    others = [
        subprocess.Popen(
            [sys.executable, "-c", CHOOSE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    try:
        chosen = [set(free_ports(200))]
        for other in others:
            assert other.stdout is not None
            chosen.append({int(port) for port in other.stdout.readline().strip("[]\n").split(",")})
    finally:
        for other in others:
            other.communicate("\n", timeout=30)
    assert len(set.union(*chosen)) == 4 * 200


def test_fork_chooses_apart() -> None:
    """A process that was forked after the first choice does not go on in its parent's stretch."""
    assert subprocess.run([sys.executable, "-c", FORK], timeout=30).returncode == 0


def test_chosen_ones_come_last() -> None:
    """Ports that were chosen and are not opened yet are chosen again only when no others are
    left."""
    first, second = free_ports(100), free_ports(100)
    assert not set(first) & set(second)
    third = free_ports(100)
    assert len(set(third) & set(first)) == 300 - (STRETCH - 1)
    assert not set(third) & set(second)


def test_taken_port_is_left_out() -> None:
    """A port of the stretch on which somebody listens is not chosen; one that is merely bound to
    connections of an ended server is."""
    taken = free_ports(1)[0]
    with socket.create_server(("127.0.0.1", taken)) as server:
        assert taken not in free_ports(STRETCH - 2)
        caller = socket.create_connection(("127.0.0.1", taken))
        accepted, _ = server.accept()
    accepted.close()
    caller.close()
    assert taken in free_ports(STRETCH - 1)


def test_too_many_refused() -> None:
    """More than a stretch has is refused with a sentence that names the remedy."""
    with pytest.raises(AddressError, match=r"240 free ports are more than .* choose first_port"):
        free_ports(STRETCH)


def test_all_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where other processes have every stretch, a sentence says so."""
    free_ports(1)
    assert module._stretch is not None
    monkeypatch.setattr(module, "FIRST_PORT", module._stretch.first)
    monkeypatch.setattr(module, "STRETCHES", 1)
    monkeypatch.setattr(module, "_stretch", None)
    with pytest.raises(AddressError, match="in use by other processes; choose first_port"):
        free_ports(1)
