"""The measurements on real processes: every installed engine, embedded and over the network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from replog import plugins
from replog.config import local_config
from replog.config_text import config_toml
from replog.founding import found_cluster, founding_path
from replog_bench import cluster
from replog_bench.__main__ import main
from replog_bench.network import KINDS
from replog_bench.processes import ChildFailed, Processes
from replog_bench.recovery import BUDGETS, KEEP_ALL, RecoveryPlan, running
from replog_bench.trial import Trial

ENGINES = plugins.engine_names()
SHORT = [
    *("--seconds", "0.3", "--network-seconds", "0.3"),
    *("--warm-up-seconds", "0.1", "--repeats", "1"),
]
LONG_LOG_FIGURES = {
    "leader grows",
    "follower grows",
    "catch-up",
    "caught-up node grows",
    "restart, whole log",
}
CUT_FIGURES = {"cut: sent again", "cut: receiver grows", "cut: sender grows"}


@pytest.mark.parametrize("engine", ENGINES)
def test_throughput_engine_rows(
    engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An engine gets a row beside bare, with columns for network clients; nothing is left."""
    arguments = ["throughput", "--engines", engine, "--clients", "8", *SHORT, "--json"]
    assert main([*arguments, "--directory", str(tmp_path)]) == 0
    base, row = json.loads(capsys.readouterr().out)
    assert (base["engine"], row["engine"]) == ("bare", engine)
    assert row["clients"] == base["clients"] == 8
    assert row["durable"] is base["durable"] is True
    assert row["ops_per_second"] > 0
    assert 0 < row["p50_ms"] <= row["p99_ms"]
    assert row["ratio_to_bare"] == pytest.approx(
        row["ops_per_second"] / base["ops_per_second"], abs=0.001
    )
    assert base["network_ops_per_second"] is base["network_p50_ms"] is None
    assert row["network_ops_per_second"] > 0
    assert 0 < row["network_p50_ms"] <= row["network_p99_ms"]
    assert not any(tmp_path.iterdir())


def test_overload_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each way to be overloaded gets a row; a slow store refuses, with no more than its limit not
    applied, and nothing is left."""
    arguments = ["overload", "--engines", ENGINES[0], "--clients", "16", "--closed-seconds", "0.3"]
    arguments += [
        "--seconds",
        "1",
        "--warm-up-seconds",
        "0.1",
        "--apply-us",
        "500",
        "--factor",
        "9",
    ]
    for _ in range(3):
        status = main([*arguments, "--json", "--directory", str(tmp_path)])
        printed = capsys.readouterr()
        rows = json.loads(printed.out) if status == 0 else []
        # A busy machine may cost the leader its lead, or offer too little to be refused.
        if rows and rows[1]["refused_share"] > 0:
            break
    assert status == 0, printed.err
    assert [row["machine"] for row in rows] == ["kv", "slow kv", "slow kv"]
    for row in rows:
        assert row["engine"] == ENGINES[0]
    for row in rows[:2]:
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["ratio_to_peak"] > 0
    assert rows[1]["refused_share"] > 0
    assert rows[1]["gap_max"] <= rows[1]["gap_limit"]
    assert rows[2]["gap_limit"] is rows[2]["memory_bound_mib"] is None
    assert not any(tmp_path.iterdir())


def test_clients_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind of request of a network client gets a row, compared with the puts."""
    arguments = ["clients", "--engines", ENGINES[0], "--clients", "8", "--repeats", "1"]
    arguments += ["--seconds", "0.3", "--warm-up-seconds", "0.1", "--json"]
    assert main([*arguments, "--directory", str(tmp_path)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["request"] for row in rows] == list(KINDS)
    for row in rows:
        assert (row["engine"], row["clients"]) == (ENGINES[0], 8)
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        ratio = row["ops_per_second"] / rows[0]["ops_per_second"]
        assert row["ratio_to_put"] == pytest.approx(ratio, abs=0.001)
    assert not any(tmp_path.iterdir())


def test_throughput_at_os_level(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the sync level os real nodes say that they are not durable, and so do all figures."""
    timeline = tmp_path / "timeline"
    arguments = ["throughput", "--engines", ENGINES[0], "--clients", "8", *SHORT, "--no-network"]
    options = ["--json", "--sync", "os", "--timeline", str(timeline)]
    assert main([*arguments, *options]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["durable"] for row in rows] == [False, False]
    assert timeline.read_text().startswith(
        f"timeline of {ENGINES[0]}, 8 in flight, NOT durable, embedded\n"
    )


def test_throughput_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A profile shows the functions of the leader's loop, a timeline the stages of its groups."""
    profile, timeline = tmp_path / "profile", tmp_path / "timeline"
    arguments = ["throughput", "--engines", ENGINES[0], "--clients", "4", *SHORT, "--no-network"]
    files = ["--profile", str(profile), "--timeline", str(timeline)]
    assert main([*arguments, *files]) == 0
    assert "bare" in capsys.readouterr().out
    title = f"of {ENGINES[0]}, 4 in flight, embedded"
    assert profile.read_text().startswith(f"profile {title}\n")
    assert "replica.py" in profile.read_text()
    assert timeline.read_text().startswith(f"timeline {title}\n")
    stages = timeline.read_text().splitlines()[2:-1]
    times = [int(stage.split()[0]) for stage in stages]
    assert times == sorted(times)
    assert len(times) == 8
    assert "turn begins" in stages[0]
    assert "results" in stages[-1]


def _trial(directory: Path) -> Trial:
    return Trial(clients=8, value_bytes=64, warm_up_seconds=0.1, seconds=0.3, directory=directory)


def test_network_over_one_connection(tmp_path: Path) -> None:
    """The commands of all network clients travel over a single connection."""
    with cluster.running(ENGINES[0], _trial(tmp_path)) as running:
        port = running.config.node(running.leader_id).client.port
        with Processes() as processes:
            arguments = "--clients 8 --value-bytes 64 --warm-up-seconds 0.1 --seconds 60"
            client = processes.start(
                "client", "replog_bench.network", (*arguments.split(), "--lifetime-seconds", "60")
            )
            client.line(15.0)
            client.tell(address=f"127.0.0.1:{port}")
            with pytest.raises(ChildFailed, match="said nothing"):
                client.line(0.5)
            assert _connections_to(port) == 1


def _connections_to(port: int) -> int:
    """How many connections to a port of the loopback are established."""
    table = Path("/proc/net/tcp")
    if not table.exists():
        pytest.skip("the system does not show its connections")
    established = 0
    for line in table.read_text().splitlines()[1:]:
        _, _, remote, state, *_ = line.split()
        established += state == "01" and int(remote.partition(":")[2], 16) == port
    return established


def test_leader_killed_reported(tmp_path: Path) -> None:
    """A trial whose leader dies ends with a sentence that names the process, not with a figure."""
    with cluster.running(ENGINES[0], _trial(tmp_path)) as running:
        running.leader.process.kill()
        with pytest.raises(ChildFailed, match=rf"node {running.leader_id} ended"):
            cluster._load_line(running, _trial(tmp_path), profile=False)


def test_member_ends_with_parent(tmp_path: Path) -> None:
    """A node whose parent has gone ends itself, without an error."""
    config = local_config(tmp_path, engine=ENGINES[0])
    path = tmp_path / "cluster.toml"
    path.write_text(config_toml(config))
    found_cluster(config, founding_path(config, path))
    arguments = ["--config", str(path), "--node", "1", "--lifetime-seconds", "60"]
    done = subprocess.run(
        [sys.executable, "-m", "replog_bench.member", *arguments],
        input=b"",
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("engine", "scenarios"), [(ENGINES[0], "long-log,cut"), (ENGINES[-1], "default,transfer")]
)
def test_recovery_rows(
    engine: str, scenarios: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each figure of a node that comes back has a row, and no file is left."""
    words = ["recovery", "--engine", engine, "--scenarios", scenarios, "--directory", str(tmp_path)]
    assert main([*words, "--entries", "3000", "--snapshot-mb", "12", "--json"]) == 0
    value = {row["what"]: row["value"] for row in json.loads(capsys.readouterr().out)}
    if "cut" in scenarios:
        assert value.keys() == LONG_LOG_FIGURES | CUT_FIGURES
        assert 0 < value["restart, whole log"] < 15
        assert value["catch-up"] > 0
        assert 0 <= value["cut: sent again"] < 24
    else:
        assert value.keys() == BUDGETS.keys() - LONG_LOG_FIGURES - CUT_FIGURES
        assert value["snapshot durable"] >= value["snapshot installed"] > 0
        ratio = value["snapshot durable"] / value["bare write and sync"]
        assert value["snapshot durable, of bare"] == pytest.approx(ratio, rel=0.01)
    assert not any(tmp_path.iterdir())


def test_recovery_node_killed_reported(tmp_path: Path) -> None:
    """A node that dies while it is asked ends the measurement with a sentence that names it."""
    plan = RecoveryPlan(ENGINES[0], 100, 1, 1, ["long-log"], 15.0, tmp_path)
    with running(plan, "kv", KEEP_ALL) as recovering:
        recovering.children[2].process.kill()
        with pytest.raises(ChildFailed, match="node 2 ended"):
            recovering.ask(2, "picture")
    assert not any(tmp_path.iterdir())
