"""``replog demo`` as a user runs it: the verdict, the counts, and no process left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from replog.plugins import engine_names

pytestmark = pytest.mark.net

COMMAND = (sys.executable, "-P", "-m", "replog", "demo")
SECONDS_MAX = 60.0
TEXT = "\n".join(f"word{'abcdefg'[at % 7]} and the {'xyz'[at % 3]}" for at in range(150))


def node_pids(folder: Path) -> list[int]:
    """The processes of all nodes of a demonstration in ``folder``, from their lock files."""
    return [int(lock.read_text() or 0) for lock in folder.glob("*/node-*/lock")]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.parametrize("engine", engine_names())
def test_demo_loses_nothing(tmp_path: Path, engine: str) -> None:
    """The words of a text are counted right in the cluster although its leader was killed, nothing
    is lost, the replicas are equal, and every process is gone."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    kept = tmp_path / "kept"
    done = subprocess.run(
        [*COMMAND, "--engine", engine, "--input", text, "--keep", kept, "--json"],
        capture_output=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    (result,) = json.loads(done.stdout)
    counts = Counter(re.findall("[a-z]+", TEXT))
    assert result["acknowledged"] == result["writes"] == sum(counts.values())
    assert {item["word"]: item["count"] for item in result["words"]} == dict(counts.most_common(10))
    assert result["lost"] == 0
    assert result["replicas_equal"] is True
    assert result["durable"] is True
    assert result["killed_node"] != result["new_leader"]
    assert 0 < result["leaderless_ms"] < 20_000
    assert len(set(node_pids(kept))) == 3
    assert not any(map(is_alive, node_pids(kept)))


def test_demo_at_os_level(tmp_path: Path) -> None:
    """At the sync level os the kill of the leader loses nothing, and the nodes' own word that
    nothing is durable is the demonstration's."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    done = subprocess.run(
        [*COMMAND, "--engine", engine_names()[0], "--input", text, "--sync", "os", "--json"],
        capture_output=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    assert (result["durable"], result["lost"], result["replicas_equal"]) == (False, 0, True)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_demo_leaves_no_process(tmp_path: Path, how: signal.Signals) -> None:
    """However the demonstration is ended in the middle, its nodes end as well."""
    kept = tmp_path / "kept"
    demo = subprocess.Popen(
        [*COMMAND, "--engine", engine_names()[0], "--keep", kept, "--seconds", "30"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        # Until a node holds its directory, the lock names who made it.
        wait(lambda: len({*node_pids(kept)} - {0, demo.pid}) == 3)
        pids = node_pids(kept)
        assert all(map(is_alive, pids))
        demo.send_signal(how)
        assert demo.wait(SECONDS_MAX) == (-how if how is signal.SIGKILL else 130)
        assert demo.stdout is not None
        assert demo.stdout.read() == b""
        wait(lambda: not any(map(is_alive, pids)))
    finally:
        demo.kill()
        demo.wait()
