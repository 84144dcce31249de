"""The comparison with a real etcd, where it and Go are installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from replog import plugins
from replog_bench.__main__ import main
from replog_bench.etcd_tools import find_tools
from replog_bench.network import PUT, READ

ENGINE = plugins.engine_names()[0]


def _commands_with(text: str) -> list[bytes]:
    """The command lines of the processes that hold ``text``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if text.encode() in command:
            found.append(command)
    return found


@pytest.mark.slow
@pytest.mark.skipif(find_tools() is None, reason="etcd or what compiles its load is missing")
def test_etcd_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """etcd and an engine get rows for puts and reads with ratios of the same run, and neither a
    file nor a process is left."""
    arguments = ["etcd", "--engines", ENGINE, "--clients", "8", "--repeats", "1", "--json"]
    options = ["--seconds", "0.5", "--warm-up-seconds", "0.2", "--directory", str(tmp_path)]
    assert main([*arguments, *options]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["request"], row["system"]) for row in rows] == [
        (PUT, "etcd"),
        (PUT, ENGINE),
        (READ, "etcd"),
        (READ, ENGINE),
    ]
    for base, row in (rows[:2], rows[2:]):
        assert base["ratio_to_etcd"] == 1.0
        assert 0 < base["p50_ms"] <= base["p99_ms"]
        ratio = row["ops_per_second"] / base["ops_per_second"]
        assert row["ratio_to_etcd"] == pytest.approx(ratio, abs=0.001)
    assert not any(tmp_path.iterdir())
    assert not _commands_with(str(tmp_path))
