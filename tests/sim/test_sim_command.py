"""``replog sim`` shows what it found, and says what is wrong with what it was asked."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_shrink import first_violation, forget_on_restart

from replog.cli import main
from replog.cli import sim as command
from replog.errors import Unavailable
from replog.plugins import engine_names
from replog.testing import seeds as seeds_module
from replog.testing import shrink as shrink_module
from replog.testing.seeds import Tally, fresh_tally
from replog.testing.sim import SimOptions

ENGINE = engine_names()[0]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run all seeds in this process, where a planted bug is."""
    monkeypatch.setattr(seeds_module.os, "cpu_count", lambda: 1)


@pytest.fixture(autouse=True)
def shrunk_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """How far a run can be shrunk is another test's business, and takes long."""
    monkeypatch.setattr(shrink_module, "ATTEMPTS_MAX", 12)


def run_json(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> tuple[int, list[dict[str, object]]]:
    """The exit code and the document."""
    code = main(["sim", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_json_of_every_engine(capsys: pytest.CaptureFixture[str]) -> None:
    """Without --engine there is an object for every engine, with all that was counted."""
    code, documents = run_json(["--seeds", "2", "--start", "7", "--ticks", "200"], capsys)
    assert code == 0
    assert [each["engine"] for each in documents] == engine_names()
    for document in documents:
        assert document["seeds"] == 2
        assert document["violations"] == []
        for name in ("events", "events_per_second"):
            number = document[name]
            assert isinstance(number, int)
            assert number > 500
        goals = document["goals"]
        assert isinstance(goals, dict)
        assert list(goals) == list(fresh_tally(str(document["engine"])).sentences)
        assert 0 <= min(goals.values()) <= max(goals.values()) <= 2


def test_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """People get a line for each engine and each goal."""
    assert main(["sim", "--engine", ENGINE, "--seed", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == [ENGINE, "1", "0"]
    assert any(line.startswith("leader_changed") for line in lines)


def test_violation_shown_and_replayed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What breaks is shown with its invariant, its seed, and a command that breaks it again."""
    forget_on_restart(monkeypatch)
    options, violation = first_violation(ENGINE)
    code, (document,) = run_json(["--engine", ENGINE, "--seed", str(options.seed)], capsys)
    assert code == 1
    found = document["violations"]
    assert isinstance(found, list)
    assert found[0]["invariant"] == violation.invariant
    assert found[0]["sentence"] == violation.sentence
    assert found[0]["replay"] == f"replog sim --engine {ENGINE} --seed {options.seed}"
    assert len(found[0]["trace"]) > 5
    words = found[0]["shrunk_replay"].split()[1:]
    trace = tmp_path / "run.trace"
    assert main([*words, "--trace", str(trace)]) == 1
    assert f"VIOLATION of {violation.invariant}:" in capsys.readouterr().out
    assert " crash " in trace.read_text()


def test_violations_for_people(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """People are shown the end of the first shrunk run, and the seeds of the others."""
    forget_on_restart(monkeypatch)
    monkeypatch.setattr(command, "SHRUNK_MAX", 1)
    first_seed = first_violation(ENGINE)[0].seed
    words = ["--engine", ENGINE, "--start", str(first_seed), "--seeds", "16", "--ticks", "120"]
    assert main(["sim", *words]) == 1
    shown = capsys.readouterr().out
    assert f"by {ENGINE}, seed {first_seed}" in shown
    assert f"replay: replog sim --engine {ENGINE} --seed {first_seed} --ticks 120" in shown
    assert "the end of its trace:" in shown
    assert f"{ENGINE}: broken as well, not shrunk:" in shown


def test_missed_goal_fails_from_many_seeds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A goal that many seeds with all faults never came to is a failure; with fewer it is not."""
    monkeypatch.setattr(command, "GOALS_FROM", 2)
    monkeypatch.setattr(Tally, "missed_goals", ["moon_landed"])
    assert main(["sim", "--engine", ENGINE, "--seeds", "2"]) == 1
    assert f"{ENGINE}: no seed came to: moon_landed" in capsys.readouterr().out
    for words in (
        ["--seeds", "1"],
        ["--seeds", "2", "--faults", "none"],
        ["--seeds", "2", "--nodes", "1"],
    ):
        assert main(["sim", "--engine", ENGINE, *words]) == 0
        assert "moon_landed" not in capsys.readouterr().out


def test_trace_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """A dash writes the trace, and nothing else, to standard output."""
    assert main(["sim", "--engine", ENGINE, "--seed", "3", "--ticks", "20", "--trace", "-"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["0", "n1", "start"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--engine", "no-such-engine"], "no engine named 'no-such-engine' is installed"),
        (["--faults", "earthquake"], "there is no fault 'earthquake'"),
        (["--seeds", "0"], "'0' is no positive whole number"),
        (["--seed", "-3"], "'-3' is no whole number from 0 on"),
        (["--seed", "1", "--seeds", "2"], "not allowed with argument"),
        (["--seed", "1", "--start", "2"], "give one of them"),
        (["--nodes", "10"], "has 1 to 9"),
        (["--faults", ""], "is no list of faults"),
        (["--faults", "all,drop"], "is no list of faults"),
        (["--engine", ENGINE, "--seed", "1", "--trace", "-", "--json"], "both want standard"),
        (["--trace", "x"], "name it with --engine and --seed"),
        (["--engine", ENGINE, "--trace", "x"], "name it with --engine and --seed"),
        (["--engine", ENGINE, "--seed", "1", "--ticks", "5", "--trace", "/no/x"], "/no/x cannot"),
    ],
)
def test_bad_input_refused(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A slip is exit code 2 and one sentence."""
    assert main(["sim", *words]) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert "Traceback" not in shown.err
    assert len(shown.err.splitlines()) == 1


def test_list_faults(capsys: pytest.CaptureFixture[str]) -> None:
    """The kinds of faults are listed with what they do."""
    assert main(["sim", "--faults", "help"]) == 0
    assert "crash_in_write" in capsys.readouterr().out


def test_nothing_asked_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Runs in which no client got an answer say that they show little."""
    assert main(["sim", "--engine", ENGINE, "--seed", "1", "--operations", "0"]) == 0
    assert "show little" in capsys.readouterr().out


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C has its usual effect, also if a shell began these tests in the background."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("seconds", [0.3, 2.0])
def test_interrupt_ends_everything_at_once(seconds: float) -> None:
    """Ctrl-C, which every process of a terminal is sent, ends all of them in silence."""
    command = [sys.executable, "-m", "replog", "sim", "--seeds", "4000"]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE) as process:
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    # A shell says 130 as well of a process that had no handler yet.
    assert process.returncode in (130, -signal.SIGINT)
    assert errors == b""
    for _ in range(100):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("a process of the command goes on")


INTERRUPTED_START = """
import os, signal, sys
from multiprocessing.context import SpawnProcess
from replog.testing.seeds import run_seeds
from replog.testing.sim import SimOptions

begin, begun = SpawnProcess.start, []

def interrupted_start(process):
    os.kill(os.getpid(), signal.SIGINT)
    begin(process)
    begun.append(process)

SpawnProcess.start = interrupted_start
try:
    run_seeds([sys.argv[1]], SimOptions("", 0), range(8), processes=2)
except KeyboardInterrupt:
    print([process.is_alive() for process in begun])
"""


@pytest.mark.usefixtures("interruptible")
def test_interrupt_while_processes_begin() -> None:
    """Ctrl-C is not lost in the moment in which the processes begin; it ends them as well.  In a
    process that has no other thread, as the command's: another one would take the signal."""
    command = [sys.executable, "-c", INTERRUPTED_START, ENGINE]
    ran = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (ran.stdout.decode().strip(), ran.stderr) == ("[False, False]", b"")


def test_killed_worker_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a process is killed from outside the command says so, and waits for nothing."""
    monkeypatch.setattr(seeds_module.os, "cpu_count", lambda: 2)

    def kill_workers(_: object) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(Unavailable, match="ended from outside"):
        seeds_module.run_seeds([ENGINE], SimOptions(ENGINE, 0), range(40), kill_workers)
    assert not multiprocessing.active_children()
