"""Every operation on a node's files is struck, one at a time; and what that would find."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from replog.plugins import engine_names, find_engine
from replog.storage.files import Descriptor, FileLayer
from replog.storage.recovery import Scanned
from replog.storage.segment import HEAD_BYTES
from replog.storage.segment_end import SegmentEnd
from replog.storage.snapshot_format import END_BYTES, RECORD_END, pack_end
from replog.storage.snapshot_writer import SnapshotInfo, SnapshotWriter
from replog.storage.wal import Wal
from replog.testing.checks import Violation
from replog.testing.every_write import Problem, main, modes_of, strike_all
from replog.testing.strikes import LOOKING, Mode, Operation

TAKING = "a snapshot of its own, and a trim"
TEARING = "a crash amid a write, and a start on a torn log"


@pytest.mark.slow
@pytest.mark.parametrize("engine", engine_names())
def test_every_write_struck(engine: str) -> None:
    """Whatever operation on its files a node crashes at, or is failed by, it keeps all that it
    acknowledged and works again; and a flipped bit is noticed, or does no harm."""
    # In a process of its own: to fork one that holds little takes half as long.
    command = [sys.executable, "-m", "replog.testing.every_write", "--engine", engine, "--json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stderr) == (0, ""), run.stderr + run.stdout[-2000:]
    (report,) = json.loads(run.stdout)
    script = report["script"]
    assert report["problems"] == []
    assert report["operations"] >= 300
    assert all(script.values()), script
    assert script["chunks fetched"] > 3
    assert script["segments begun"] > 3
    assert script["inits and starts"] >= 4
    assert report["strikes"].keys() == {mode.name.lower() for mode in Mode}
    failing = report["operations"] - report["by_name"]["close"]
    assert report["strikes"]["fails"] == failing


def struck_in(scene: str, *modes: Mode) -> list[Problem]:
    """What is found when the changes of one scene are struck in these modes, or in any."""

    def is_change(_: int, operation: Operation) -> bool:
        return operation.scene == scene and operation.name not in LOOKING

    report = strike_all(find_engine(engine_names()[0]), only=is_change)
    assert sum(report.strikes.values()) > 0
    return [each for each in report.problems if not modes or each.strike.mode in modes]


def test_every_write_finds_early_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot that gets its name before it is synced is found, by a crash that keeps the name
    and not the content."""

    def publish(writer: SnapshotWriter) -> SnapshotInfo:
        writer._flush()
        size_bytes = writer._end + END_BYTES
        writer._put(RECORD_END, pack_end(len(writer._names), size_bytes))
        files, file = writer._files, writer._file
        assert file is not None
        files.rename(writer._temporary, writer._path)
        files.sync(file)
        writer._file = None
        files.close(file)
        files.sync_directory(writer._path.parent)
        return SnapshotInfo(writer._path, writer._meta, size_bytes, writer._chain)

    monkeypatch.setattr(SnapshotWriter, "publish", publish)
    assert struck_in(TAKING, Mode.LATEST)


def test_every_write_finds_unsynced_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot whose name is not synced before the log is trimmed behind it is found."""

    def skip(files: FileLayer, path: object) -> None:
        """The names stay as they are."""

    monkeypatch.setattr("replog.storage.snapshot_writer.sync_directory", skip)
    with pytest.raises(Violation, match="I16"):
        strike_all(find_engine(engine_names()[0]), only=lambda *_: False)


def test_every_write_finds_swallowed_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that goes on after a sync has failed is found at the sync."""

    def append(end: SegmentEnd, group: bytes) -> None:
        try:
            right(end, group)
        except OSError:
            end.end += len(group)

    right = SegmentEnd.append
    monkeypatch.setattr(SegmentEnd, "append", append)
    problems = struck_in(TAKING, Mode.FAILS)
    assert any("goes on" in each.sentence for each in problems)


def test_every_write_finds_unsettled_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recovery that reports what it only read, and did not make durable, is found."""

    def settle(wal: Wal, file: Descriptor, data: bytes, scanned: Scanned) -> None:
        if scanned.content_end > scanned.end:
            wal._wipe(file, scanned.end + HEAD_BYTES, scanned.content_end)
            wal._wipe(file, scanned.end, scanned.end + HEAD_BYTES)

    monkeypatch.setattr(Wal, "_settle", settle)
    assert any("second recovery" in each.sentence for each in struck_in(TEARING, Mode.EVERYTHING))


def test_every_write_modes() -> None:
    """Every operation crashes with nothing kept, with a random half, fails, and has one more; what
    is written is altered as well, and a close does not fail."""
    for number in range(1, 7):
        for name in ("write", "sync", "rename", "read"):
            modes = modes_of(number, Operation("", name, None), is_deep=False)  # type: ignore[arg-type]
            assert {Mode.NOTHING, Mode.TORN, Mode.FAILS} < set(modes)
            assert (Mode.FLIPPED in modes) == (name == "write")
    closing = modes_of(1, Operation("", "close", None), is_deep=True)  # type: ignore[arg-type]
    assert not any(mode.is_failure for mode in closing)
    assert set(modes_of(1, Operation("", "write", None), is_deep=True)) == set(Mode)  # type: ignore[arg-type]


def test_every_write_deterministic() -> None:
    """Two runs with one seed meet the same operations in the same order."""
    engine = find_engine(engine_names()[0])
    first, second = (strike_all(engine, only=lambda *_: False) for _ in range(2))
    assert first.operations == second.operations
    assert first.witnessed == second.witnessed


def test_every_write_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The command strikes one operation in every mode, prints JSON, and refuses what is not there
    with a sentence."""
    engine = engine_names()[0]
    assert main(["--engine", engine, "--at", "200", "--json"]) == 0
    [document] = json.loads(capsys.readouterr().out)
    assert document["engine"] == engine
    assert document["problems"] == []
    assert document["strikes"]
    assert main(["--engine", "nobody"]) == 2
    assert "nobody" in capsys.readouterr().err
    assert main(["--engine", engine, "--at", "99999"]) == 2
    assert "operations 1 to" in capsys.readouterr().err
