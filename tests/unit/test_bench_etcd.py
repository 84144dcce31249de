"""The comparison with etcd, as far as it needs no etcd: options, tools, the load's words, rows."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cbor2
import pytest

from replog import plugins
from replog.config import local_config
from replog_bench import __main__ as command_line
from replog_bench import etcd, etcd_cluster, etcd_tools
from replog_bench.__main__ import main
from replog_bench.etcd import ETCD, EtcdPlan, run_etcd_plan
from replog_bench.etcd_cluster import Etcd, etcd_result, member_flags
from replog_bench.etcd_tools import (
    BuildFailed,
    EtcdTools,
    build_load,
    find_tools,
    missing_packages,
    missing_sentence,
    server_version,
)
from replog_bench.load import LoadResult, commands
from replog_bench.network import PUT, READ
from replog_bench.processes import ChildFailed, Processes
from replog_bench.report import EtcdRow, to_json, to_table
from replog_bench.trial import Trial

ENGINES = plugins.engine_names()

SAID = {
    "operations": 1200,
    "ops_per_second": 600.0,
    "p50_ms": 1.5,
    "p99_ms": 9.0,
    "errors": 0,
    "first_error": "",
    "version": "3.4.23",
}
"""What the load prints after a good run."""

FAKE_GO = """\
#!/bin/sh
if [ "$1" = version ]; then echo "go version go1.0 fake"; exit; fi
echo "$GO111MODULE $GOPATH $*" >> {log}
{then}
printf '#!/bin/sh\\n' > "$3"
chmod +x "$3"
"""


def _result(ops_per_second: float, p50_ms: float = 1.0) -> LoadResult:
    return LoadResult(100, ops_per_second, p50_ms, 2.0, 0, "")


def _plan(directory: Path | None = None, *, repeats: int = 2, connections: int = 1) -> EtcdPlan:
    return EtcdPlan(
        clients=[8],
        value_bytes=64,
        warm_up_seconds=0.1,
        seconds=0.2,
        repeats=repeats,
        etcd_connections=connections,
        directory=directory,
    )


def _scripted(results: dict[str, dict[str, list[float]]], turns: list[str]) -> dict[str, etcd.Run]:
    """Systems that measure what the script says, by kind of request, and note when."""

    def made(name: str) -> etcd.Run:
        left: dict[str, Iterator[float]] = {
            kind: iter(speeds) for kind, speeds in results[name].items()
        }

        def run(trial: Trial, kind: str) -> LoadResult:
            assert not any(trial.directory.iterdir())
            turns.append(f"{name} {kind}")
            return _result(next(left[kind]))

        return run

    return {name: made(name) for name in results}


@pytest.fixture
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd, "sync_microseconds", lambda _: 150.0)


# -- the tools --


def test_packages_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without etcd, Go and the client's sources, three packages are named in one sentence that can
    be copied into a shell."""
    monkeypatch.setattr(shutil, "which", lambda _: None)
    missing = missing_packages(tmp_path)
    assert missing == ["etcd-server", "golang-go", "golang-etcd-server-dev"]
    assert find_tools(tmp_path) is None
    assert missing_sentence(missing).endswith(
        "apt-get install --no-install-recommends etcd-server golang-go golang-etcd-server-dev"
    )


def test_sources_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the client's sources are missing, only their package is named."""
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert missing_packages(tmp_path) == ["golang-etcd-server-dev"]
    assert find_tools(tmp_path) is None
    (tmp_path / etcd_tools.CLIENT_PATH).mkdir(parents=True)
    assert find_tools(tmp_path) == EtcdTools("/usr/bin/etcd", "/usr/bin/go", tmp_path)


def _fake_tools(directory: Path, then: str = "") -> EtcdTools:
    compiler = directory / "go"
    compiler.write_text(FAKE_GO.format(log=directory / "log", then=then))
    compiler.chmod(0o755)
    return EtcdTools("etcd", str(compiler), directory)


def test_load_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The load is compiled without a module from the system's sources, into the cache directory,
    with a word of progress; a second time it is found there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tools, said = _fake_tools(tmp_path), list[str]()
    program = build_load(tools, said.append)
    assert program.parent == tmp_path / "cache" / "replog-bench"
    assert os.access(program, os.X_OK)
    assert build_load(tools, said.append) == program
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.startswith(f"off {tmp_path} build -o ")
    assert line.endswith(str(etcd_tools.SOURCE))
    assert len(said) == 1
    assert list(program.parent.iterdir()) == [program]


def test_load_not_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the compiler refuses is an error with its words, and leaves nothing in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tools = _fake_tools(tmp_path, then="echo main.go:1: no such package >&2; exit 1")
    with pytest.raises(BuildFailed, match=r"cannot be compiled: main.go:1: no such package$"):
        build_load(tools, lambda _: None)
    assert not any((tmp_path / "cache" / "replog-bench").iterdir())


def test_load_cache_unwritable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache directory that cannot be made is named, with the variable that moves it."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BuildFailed, match=r"file/replog-bench cannot be written .*XDG_CACHE_HOME"):
        build_load(_fake_tools(tmp_path), lambda _: None)


def test_version_of_server(tmp_path: Path) -> None:
    """The version is the server's own word; a server that cannot be run is named."""
    server = tmp_path / "etcd"
    server.write_text("#!/bin/sh\necho etcd Version: 3.4.23\necho Git SHA: unknown\n")
    server.chmod(0o755)
    assert server_version(EtcdTools(str(server), "go", tmp_path)) == "etcd 3.4.23"
    with pytest.raises(BuildFailed, match="nonesuch cannot be run"):
        server_version(EtcdTools(str(tmp_path / "nonesuch"), "go", tmp_path))


def test_load_source_small_and_formatted() -> None:
    """The load stays small enough to be read, and is formatted as Go programs are."""
    assert len(etcd_tools.SOURCE.read_text().splitlines()) < 250
    formatter = shutil.which("gofmt")
    if formatter is None:
        pytest.skip("gofmt is not installed")
    done = subprocess.run(
        [formatter, "-l", str(etcd_tools.SOURCE)], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""


# -- the members and the load --


def test_members_on_loopback(tmp_path: Path) -> None:
    """Each member listens on loopback only, has a directory of its own in the trial's, and is told
    nothing that would change a default."""
    config = local_config(tmp_path)
    flags = [dict(flag.split("=", 1) for flag in member_flags(config, at)) for at in config.nodes]
    for each in flags:
        assert each.keys() == {
            "--name",
            "--data-dir",
            "--listen-peer-urls",
            "--initial-advertise-peer-urls",
            "--listen-client-urls",
            "--advertise-client-urls",
            "--initial-cluster",
        }
        for name, text in each.items():
            assert "urls" not in name or text.startswith("http://127.0.0.1:")
        assert Path(each["--data-dir"]).parent == tmp_path
        assert f"{each['--name']}={each['--listen-peer-urls']}" in each["--initial-cluster"]
    assert len({each["--data-dir"] for each in flags}) == 3


def test_load_flags_same_puts(tmp_path: Path) -> None:
    """etcd is asked to put the keys and values that replog's puts hold."""
    trial = Trial(8, 64, 0.5, 2.0, tmp_path)
    config = local_config(tmp_path)
    flags = Etcd("etcd", Path("load"), 2)._load_flags(config, trial, READ)
    made = commands(64)
    _, key, value = cbor2.loads(made[-1])
    assert key == f"key-{len(made) - 1:06}"
    assert f"-keys={len(made)}" in flags
    assert f"-value-bytes={len(value)}" in flags
    assert {"-in-flight=8", "-connections=2", "-kind=read", "-warm-up=0.5s", "-window=2.0s"} <= set(
        flags
    )
    assert f"-endpoints={','.join(str(node.client) for node in config.nodes)}" in flags


def test_load_understood() -> None:
    """What the load prints becomes a result; a whole number where a fraction may stand is one."""
    assert etcd_result(SAID) == LoadResult(1200, 600.0, 1.5, 9.0, 0, "")
    assert etcd_result({**SAID, "p50_ms": 2}).p50_ms == 2


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"p99_ms": None}, "said None of p99_ms"),
        ({"p50_ms": "1"}, "said '1' of p50_ms"),
        ({"ops_per_second": math.nan}, "said nan of ops_per_second"),
        ({"first_error": 3}, "said 3 of first_error"),
        ({"errors": 2, "first_error": "no leader"}, "2 clients failed, the first: no leader"),
        ({"operations": 0}, "nothing completed"),
    ],
)
def test_load_not_believed(changed: dict[str, object], sentence: str) -> None:
    """A line without a figure, and a run in which a request failed, is no measurement."""
    with pytest.raises(ChildFailed, match=sentence):
        etcd_result({**SAID, **changed})


@pytest.mark.net
def test_member_failed(tmp_path: Path) -> None:
    """When a member cannot even start, the trial says which, in that member's words."""
    server = tmp_path / "server"
    server.write_text("#!/bin/sh\necho no room left >&2\nexit 1\n")
    load = tmp_path / "load"
    load.write_text("#!/bin/sh\nsleep 1\nexit 1\n")
    for program in (server, load):
        program.chmod(0o755)
    (tmp_path / "trial").mkdir()
    trial = Trial(1, 64, 0.1, 0.1, tmp_path / "trial")
    with pytest.raises(ChildFailed, match="etcd 1 ended: no room left"):
        Etcd(str(server), load, 1).run(trial, PUT)


# -- the guard --

PRINT_ID = (
    "import json, os, time; print(json.dumps({'id': os.getpid()}), flush=True); time.sleep(60)"
)
"""Says its id as a line of JSON, then stays."""


def _ended(process_id: int) -> bool:
    """Whether a process is gone, or only its exit status is left of it."""
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def _until(is_so: Callable[[], bool]) -> bool:
    """Whether it became so within some seconds."""
    deadline = time.monotonic() + 10
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="the system does not show its processes"
)


def _guarded(processes: Processes, lifetime_seconds: float) -> int:
    """Have a guard run a program; that program's id."""
    command = (sys.executable, "-c", PRINT_ID)
    lifetime = ("--lifetime-seconds", str(lifetime_seconds))
    child = processes.start("guarded", "replog_bench.guard", (*lifetime, "--", *command))
    return int(str(child.line(15.0)["id"]))


@needs_proc
@pytest.mark.net
def test_guard_ends_with_block() -> None:
    """What a guard runs has ended when the block that started it is left."""
    with Processes() as processes:
        process_id = _guarded(processes, 60.0)
        assert not _ended(process_id)
    assert _ended(process_id)


@needs_proc
@pytest.mark.net
def test_guard_ends_in_time() -> None:
    """What a guard runs is ended when its time is over."""
    with Processes() as processes:
        process_id = _guarded(processes, 1.0)
        assert _until(lambda: _ended(process_id))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of the death of a parent")
@pytest.mark.net
def test_guard_killed() -> None:
    """Even when the guard is killed outright, what it runs does not go on."""
    with Processes() as processes:
        process_id = _guarded(processes, 60.0)
        processes.kill(processes._children[0])
        assert _until(lambda: _ended(process_id))


@pytest.mark.net
def test_guard_passes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program's exit status is the guard's, and settings of the shell do not reach it."""
    monkeypatch.setenv("ETCD_HEARTBEAT_INTERVAL", "1")
    monkeypatch.setenv("GOMAXPROCS", "1")
    names = "{'ETCD_HEARTBEAT_INTERVAL', 'GOMAXPROCS'}"
    script = f"import os, sys; sys.exit(7 if {names} & os.environ.keys() else 3)"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "replog_bench.guard", "--lifetime-seconds", "30"),
            *("--", sys.executable, "-c", script),
        ],
        timeout=30,
        check=False,
    )
    assert done.returncode == 3


# -- rounds and rows --


@pytest.mark.usefixtures("_quick_disk")
def test_rounds_interleaved(tmp_path: Path) -> None:
    """Within a round the systems take turns at each kind of request, and each gets a row."""
    turns: list[str] = []
    speeds = {PUT: [100.0, 300.0, 200.0], READ: [400.0, 400.0, 400.0]}
    faster = {PUT: [200.0, 300.0, 600.0], READ: [100.0, 200.0, 800.0]}
    systems = _scripted({ETCD: speeds, "raft": faster}, turns)
    said: list[str] = []
    rows = run_etcd_plan(systems, _plan(tmp_path, repeats=3, connections=4), said.append)
    assert turns == [f"etcd {PUT}", f"raft {PUT}", f"etcd {READ}", f"raft {READ}"] * 3
    assert said[0] == "etcd, 8 in flight, put, run 1 of 3"
    assert [(row.request, row.system) for row in rows] == [
        (PUT, ETCD),
        (PUT, "raft"),
        (READ, ETCD),
        (READ, "raft"),
    ]
    _, put, _, read = rows
    assert (put.ops_per_second, put.ops_per_second_best) == (300.0, 600.0)
    # Of the same round each: 2, 1 and 3 times as fast; the medians alone would say 1.5.
    assert (put.ratio_to_etcd, put.ratio_min, put.ratio_max) == (2.0, 1.0, 3.0)
    assert (read.ratio_to_etcd, read.ratio_min, read.ratio_max) == (0.5, 0.25, 2.0)
    assert [row.connections for row in rows] == [4, 1, 4, 1]
    assert rows[0].ratio_to_etcd == 1.0
    assert not any(tmp_path.iterdir())


@pytest.mark.usefixtures("_quick_disk")
def test_rows_without_etcd() -> None:
    """Where etcd is not installed, replog's rows have no ratio: null in JSON, a dash for people."""
    systems = _scripted({"raft": {PUT: [100.0, 200.0], READ: [300.0, 300.0]}}, [])
    rows = run_etcd_plan(systems, _plan(), lambda _: None)
    put, read = json.loads(to_json(rows))
    assert (put["request"], read["request"]) == (PUT, READ)
    assert put["ops_per_second"] == 150.0
    assert put["ratio_to_etcd"] is put["ratio_min"] is put["ratio_max"] is None
    head, line, _ = to_table(EtcdRow.HEADINGS, rows).splitlines()
    assert head.split()[:2] == ["system", "in"]
    assert line.split()[-4:] == ["-", "-", "1", "150"]


# -- the command --


def test_command_without_etcd(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without etcd the command measures replog, says in one line what to install, and ends well."""
    monkeypatch.setattr(command_line, "find_tools", lambda: None)
    monkeypatch.setattr(command_line, "missing_packages", lambda: ["etcd-server"])
    monkeypatch.setattr(etcd, "run_network", lambda *_: _result(100.0))
    arguments = ["etcd", "--engine", ENGINES[0], "--clients", "2,4", "--repeats", "1", "--json"]
    assert main([*arguments, "--directory", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)
    assert [(row["system"], row["clients"]) for row in rows] == [
        (ENGINES[0], clients) for clients in (2, 2, 4, 4)
    ]
    line = captured.err.splitlines()[0]
    assert line.startswith("replog_bench: the rows of etcd are left out")
    assert line.endswith("apt-get install --no-install-recommends etcd-server")


def test_command_nothing_to_compare(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With neither etcd nor an engine the command ends with exit code 2 and one line."""
    monkeypatch.setattr(command_line, "find_tools", lambda: None)
    assert main(["etcd", "--engines", ""]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("replog_bench: there is no engine to measure, and the rows of etcd ")


def test_command_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the table stands which etcd it was, and how it was set and asked."""
    tools = EtcdTools("etcd", "go", tmp_path)
    monkeypatch.setattr(command_line, "find_tools", lambda: tools)
    monkeypatch.setattr(command_line, "server_version", lambda _: "etcd 9.9")
    monkeypatch.setattr(etcd, "build_load", lambda *_: tmp_path / "load")
    monkeypatch.setattr(etcd, "run_network", lambda *_: _result(100.0))
    monkeypatch.setattr(etcd_cluster.Etcd, "run", lambda *_: _result(50.0))
    arguments = ["etcd", "--engines", ENGINES[0], "--clients", "4", "--repeats", "1"]
    assert main([*arguments, "--directory", str(tmp_path)]) == 0
    *table, said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table] == ["system", ETCD, ENGINES[0], ETCD, ENGINES[0]]
    assert "2.00..2.00" in table[2]
    assert said == "etcd is etcd 9.9 with default settings, its client is in Go"


@pytest.mark.parametrize(
    "option", ["--clients=0", "--seconds=0", "--repeats=x", "--etcd-connections=0", "--nonesuch=1"]
)
def test_command_bad_option(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An option that makes no sense is refused by its name, in one line, with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        main(["etcd", option])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert option.partition("=")[0] in line


def test_command_unknown_engine(capsys: pytest.CaptureFixture[str]) -> None:
    """An engine that is not installed is refused before anything is compiled or measured."""
    assert main(["etcd", "--engines", "nonesuch"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("replog_bench: no engine named 'nonesuch' is installed")
