"""The command line without a cluster: help, bad input, exit codes, and what is printed."""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from fake_plugins import FakeSite, fake_site

import replog.cli
from replog import founding, plugins
from replog.address import Address
from replog.cli import asking, demo_report, main
from replog.cli.asking import ClusterAnswer, NodeAnswer, followed_leader
from replog.config import load_config, local_config
from replog.config_text import config_example, config_toml, default_engine
from replog.errors import (
    AddressError,
    CallerError,
    CommandFailed,
    CommandTooLarge,
    Compacted,
    DirectoryError,
    FellBehind,
    LogDamaged,
    NotLeader,
    OutcomeUnknown,
    Refused,
    SchemaError,
    Unavailable,
)
from replog.machine import ApplyContext
from replog.plugins import engine_names
from replog.statemachine import Call
from replog.types import Applied, Change
from replog_kv import Kv, commands

DOCS = Path(__file__).parents[2] / "docs" / "json.md"


@pytest.fixture(autouse=True)
def _restore_logs() -> Iterator[None]:
    """``serve`` configures the log of its process, which here is the tests'."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSite]:
    """Distributions that exist for this test only."""
    home = tmp_path / "site"
    home.mkdir()
    yield from fake_site(home, monkeypatch)


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    """A configuration of three nodes whose directories do not exist yet."""
    path = tmp_path / "cluster.toml"
    path.write_text(config_toml(local_config(tmp_path / "data", first_port=29_000)))
    return path


def documented(section: str) -> set[str]:
    """The keys that a section of docs/json.md lists in the first column of its tables."""
    text = DOCS.read_text().split(f"## `{section}`\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {key for cell in cells for key in re.findall("`(.*?)`", cell)}


def complaint(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 2) -> str:
    """Run a command that has to fail; what it said, which is sentences of ours alone."""
    assert main([str(word) for word in words]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines
    assert all(line.startswith("replog: ") for line in lines), captured.err
    return captured.err


# --- Starting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--version"], ["--help"], []])
def test_start_loads_no_network_library(words: list[str]) -> None:
    """The version and the help cost none of trio, structlog and cbor2."""
    script = (
        "import sys; from replog.cli import main; main(sys.argv[1:]); "
        "loaded = {'trio', 'structlog', 'cbor2'} & sys.modules.keys(); "
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_module_runs_as_the_command() -> None:
    """``python -m replog`` is the same command."""
    done = subprocess.run(
        [sys.executable, "-m", "replog", "--version"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == f"replog {replog.__version__}\n"


def test_interrupt_while_loading_is_silent() -> None:
    """Ctrl-C while the command line itself is imported is exit code 130, without a traceback."""
    script = """if True:
        import runpy, sys
        class Interrupted:
            def find_spec(self, name, *_):
                if name == "replog.cli":
                    raise KeyboardInterrupt
        sys.meta_path.insert(0, Interrupted())
        runpy.run_module("replog", run_name="__main__")
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=30)
    assert (done.returncode, done.stderr) == (130, b"")


@pytest.mark.parametrize(
    "words",
    [
        *(
            [word]
            for word in (
                "init",
                "serve",
                "status",
                "demo",
                "sim",
                "check",
                "config",
                "plugins",
                "kv",
                "snapshot",
                "backup",
                "restore",
            )
        ),
        ["snapshot", "take"],
        ["snapshot", "list"],
        ["config", "example"],
        ["config", "check"],
        *(["kv", action] for action in ("put", "get", "delete", "range", "cas", "watch")),
        ["log"],
        ["log", "append"],
        ["log", "read"],
        [],
    ],
    ids=" ".join,
)
def test_help_shows_examples_that_parse(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every help ends with examples, and each of them names options that exist."""
    assert main([*words, "--help"]) == 0
    text = capsys.readouterr().out
    lines = re.findall(r"^  replog (.+)$", text.partition("examples:\n")[2], flags=re.MULTILINE)
    assert lines
    for line in lines:
        example = re.split(r" (?:2?>>?|<) ", line)[0].split()
        assert main([*example, "--help"]) == 0
        known = capsys.readouterr().out
        for option in [word for word in example if word.startswith("--")]:
            assert option in known, f"{line}: {option}"


def test_no_command_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a command the help is shown as a complaint."""
    assert main([]) == 2
    assert "init" in capsys.readouterr().err


def test_command_unknown_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt command is refused with the nearest one."""
    assert "did you mean 'serve'?" in complaint(capsys, "serv")
    assert "there is no command 'x\\n'" in complaint(capsys, "x\n")


def test_command_of_plugin_runs(site: FakeSite, capsys: pytest.CaptureFixture[str]) -> None:
    """A plugin adds a word to the command line, and its exit code is the process's."""
    source = """
        class Greet:
            name = "greet"
            title = "Greet somebody"
            def add_arguments(self, parser):
                parser.add_argument("who")
            def run(self, arguments):
                print("hello", arguments.who)
                return 7
        COMMAND = Greet()
    """
    site.add("greeting", {plugins.COMMANDS: {"greet": "greeting:COMMAND"}}, {"greeting": source})
    assert main(["greet", "you"]) == 7
    assert capsys.readouterr().out == "hello you\n"
    assert main(["--help"]) == 0
    assert "added by a plugin; see `replog greet --help`" in capsys.readouterr().out


def test_command_of_broken_plugin_refused(
    site: FakeSite, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command that cannot be imported breaks itself only."""
    site.add("bad", {plugins.COMMANDS: {"bad": "no_such_module:COMMAND"}})
    assert "cannot be loaded" in complaint(capsys, "bad")
    assert main(["config", "example"]) == 0


def test_output_in_any_encoding(tmp_path: Path) -> None:
    """What standard output cannot encode is escaped."""
    (tmp_path / "ü.toml").write_text(config_example())
    done = subprocess.run(
        [sys.executable, "-m", "replog", "config", "check", "ü.toml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.startswith(b"\\xfc.toml is good")


# --- Exit codes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CallerError("a"), 2),
        (AddressError("a"), 2),
        (CommandTooLarge(2, 1), 2),
        (Refused("a"), 2),
        (Unavailable("a"), 1),
        (NotLeader(1, 2), 1),
        (OutcomeUnknown("a"), 1),
        (CommandFailed("KvError", "a"), 1),
        (LogDamaged("a"), 1),
        (SchemaError("a"), 1),
        (OSError(28, "No space left on device", "/data"), 1),
        (KeyboardInterrupt(), 130),
        (BaseExceptionGroup("", [BaseExceptionGroup("", [KeyboardInterrupt()])]), 130),
        (ExceptionGroup("", [LogDamaged("a")]), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_error_becomes_exit_code(
    error: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each error that is raised on purpose is a sentence and the exit code that it stands for."""

    def fail() -> None:
        raise error

    monkeypatch.setattr(plugins, "installed", fail)
    assert main(["plugins"]) == code
    said = capsys.readouterr().err
    assert said == "" if code == 130 else said.startswith("replog: ")


def test_error_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in replog itself is not dressed up as the user's."""

    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(plugins, "installed", fail)
    with pytest.raises(ZeroDivisionError):
        main(["plugins"])


def test_error_text_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """What is not printable in a name is escaped in the sentence about it."""
    said = complaint(capsys, "config", "check", "a\x1b[2Jb")
    assert "\x1b" not in said
    assert "a\\x1b[2Jb" in said


# --- init and serve -----------------------------------------------------------------------------


def test_init_makes_the_cluster(config_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Init makes the record and every directory, and says so in the documented keys."""
    assert main(["init", "--config", str(config_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == documented("replog init")
    assert Path(document["founding"]).exists()
    assert [made["node"] for made in document["made"]] == [1, 2, 3]
    assert all(Path(made["directory"], "identity").exists() for made in document["made"])


def test_init_populated_refused(config_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second init changes nothing and says why."""
    assert main(["init", "--config", str(config_path)]) == 0
    capsys.readouterr()
    before = {path: path.read_bytes() for path in config_path.parent.rglob("identity")}
    said = complaint(capsys, "init", "--config", config_path)
    assert "is already the directory of node 1 of cluster 'local'; start that node" in said
    assert before == {path: path.read_bytes() for path in config_path.parent.rglob("identity")}


def test_init_joins_a_record(config_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The record that one machine made serves another node; without a node it is refused."""
    assert main(["init", "--config", str(config_path), "--node", "1"]) == 0
    capsys.readouterr()
    record = config_path.parent / "local.founding"
    joining = ("init", "--config", config_path, "--founding", record)
    assert "--founding needs --node" in complaint(capsys, *joining)
    assert main([*map(str, joining), "--node", "2"]) == 0
    directories = {node.id: node.directory for node in load_config(config_path).nodes}
    assert (directories[2] / "identity").exists()
    assert not directories[3].exists()


def made_names(folder: Path) -> list[str]:
    """The files and folders below a folder, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def hosts_config(folder: Path, *directories: Path, name: str = "cluster.toml") -> Path:
    """A configuration whose nodes are on a machine each, with these directories."""
    local = local_config(folder, nodes=len(directories), first_port=29_000)
    nodes = tuple(
        replace(
            node,
            directory=directory,
            **{key: Address(f"db{node.id}", 7001) for key in ("peer", "peer_listen")},
            **{key: Address(f"db{node.id}", 8001) for key in ("client", "client_listen")},
        )
        for node, directory in zip(local.nodes, directories, strict=True)
    )
    path = folder / name
    path.write_text(config_toml(replace(local, nodes=nodes)))
    return path


def test_init_names_the_node_that_it_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where all machines share one path, init still names the node whose directory it made, and
    the command that it prints survives the shell."""
    path = hosts_config(tmp_path, *[tmp_path / "data"] * 3, name="my cluster.toml")
    assert main(["init", "--config", str(path), "--node", "1"]) == 0
    said = capsys.readouterr().out
    assert f"made the directory of node 1: {tmp_path / 'data'}\n" in said
    assert f"start it with: replog serve --config '{path}' --node 1\n" in said
    shutil.rmtree(tmp_path / "data")
    joining = ["init", "--config", str(path), "--founding", str(tmp_path / "local.founding")]
    assert main([*joining, "--node", "2", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)["made"]
    assert made == [{"node": 2, "directory": str(tmp_path / "data")}]


@pytest.mark.parametrize("other", [".", "./below", "link"])
def test_init_shared_directory_makes_nothing(
    other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Directories that would be one on this machine, or lie in each other, are refused before
    anything is made."""
    (tmp_path / "link").symlink_to("data")
    second = tmp_path / "link" if other == "link" else tmp_path / "data" / other
    path = hosts_config(tmp_path, tmp_path / "data", second)
    before = made_names(tmp_path)
    said = complaint(capsys, "init", "--config", path)
    assert f"nodes 1 and 2 would share {tmp_path / 'data'} on this machine" in said
    assert "--node" in said
    assert made_names(tmp_path) == before


@pytest.mark.parametrize("obstacle", ["file", "file above", "populated"])
def test_init_unusable_directory_makes_nothing(
    obstacle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One directory that cannot be used is named and keeps the others from being made; when it is
    out of the way, the same command works."""
    if obstacle == "populated":
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "letter").touch()
    else:
        (tmp_path / "b").touch()
    directory = tmp_path / ("b/c" if obstacle == "file above" else "b")
    path = hosts_config(tmp_path, tmp_path / "a", directory)
    before = made_names(tmp_path)
    assert str(tmp_path / "b") in complaint(capsys, "init", "--config", path)
    assert made_names(tmp_path) == before
    (tmp_path / "b").rename(tmp_path / "moved")
    assert main(["init", "--config", str(path)]) == 0


def test_init_late_failure_takes_the_record_along(
    config_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failure that nobody could foresee leaves no record without a directory; once a directory
    was made, the record stays, and the sentence says how to go on."""
    real, failing = founding.init_directory, {1}

    def init_directory(*given: object) -> object:
        if given[3] in failing:
            raise DirectoryError("the disk is full")
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(founding, "init_directory", init_directory)
    record = config_path.parent / "local.founding"
    assert complaint(capsys, "init", "--config", config_path) == "replog: the disk is full\n"
    assert not record.exists()
    failing.add(3)
    failing.remove(1)
    said = complaint(capsys, "init", "--config", config_path)
    assert "the directory of node 1, 2), so when this is mended, make the others with " in said
    assert f"--founding {record} --node ID" in said
    failing.clear()
    again = ["init", "--config", str(config_path), "--founding", str(record), "--node", "3"]
    assert main(again) == 0


def test_init_second_node_alone_is_told_of_the_record(
    config_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who inits node by node on one machine is told the options that make the second node."""
    assert main(["init", "--config", str(config_path), "--node", "1"]) == 0
    capsys.readouterr()
    said = complaint(capsys, "init", "--config", config_path, "--node", "2")
    options = ["--founding", str(config_path.parent / "local.founding"), "--node", "2"]
    assert f"add {' '.join(options)}\n" in said
    assert main(["init", "--config", str(config_path), *options]) == 0


ENGINE = default_engine()
CLUSTER = f'[cluster]\nid = "a"\nengine = "{ENGINE}"\nstate_machine = "kv"\n'
NODE = '[[node]]\nid = {}\npeer = "127.0.0.1:{}"\nclient = "127.0.0.1:{}"\ndirectory = "n{}"\n'
NODES = NODE.format(1, 29001, 29002, 1) + NODE.format(2, 29003, 29004, 2)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[cluster", "is not valid TOML"),
        (CLUSTER.replace(ENGINE, "raff") + NODES, "no engine named 'raff' is installed"),
        (CLUSTER.replace("kv", "kw") + NODES, "no state machine named 'kw' is installed"),
        (CLUSTER + 'storage = "wall"\n' + NODES, "no storage named 'wall' is installed"),
        (CLUSTER.replace('"a"', "1") + NODES, "cluster.id: must be a string, not 1"),
        (CLUSTER.replace('"a"', '"a/b"') + NODES, "cluster.id: must be fit to name a file"),
        (CLUSTER + NODES.replace("id = 2", 'id = "2"'), "node[2].id: must be an integer"),
        (CLUSTER + NODES.replace("id = 2", "id = 1"), "node[2].id: 1 is taken by node[1]"),
        (CLUSTER + NODES.replace("29003", "29001"), "127.0.0.1:29001 collides with node[1].peer"),
        (CLUSTER + NODES.replace("n2", "n1"), "every node needs a directory of its own"),
        (CLUSTER, "there is no node"),
        (CLUSTER + NODES + "[limits]\ntick = 1\n", "limits.tick: is unknown"),
    ],
    ids=lambda value: value[-30:] if len(value) < 60 else "",
)
@pytest.mark.parametrize(
    "words",
    [["serve", "--node", "1", "--config"], ["init", "--config"], ["status", "--config"]],
    ids=lambda words: words[0],
)
def test_config_wrong_refused(
    words: list[str],
    text: str,
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A mistake in the configuration is named by every command that reads it, and makes nothing."""
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    assert sentence in complaint(capsys, *words, path)
    assert [made.name for made in tmp_path.iterdir()] == ["cluster.toml"]


def test_config_all_mistakes_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every mistake of a file is a line of its own."""
    path = tmp_path / "cluster.toml"
    path.write_text(CLUSTER.replace(ENGINE, "raff") + NODES.replace("id = 2", "id = 1"))
    assert len(complaint(capsys, "config", "check", path).splitlines()) == 2


def serve(path: Path, node: int = 1) -> tuple[str | Path, ...]:
    return ("serve", "--config", path, "--node", str(node))


def test_serve_node_unknown_refused(config_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A node that is not in the file is refused with those that are."""
    assert "no node 4; the nodes are 1, 2, 3" in complaint(capsys, *serve(config_path, 4))
    assert "'x' is no node id" in complaint(capsys, "serve", "--config", config_path, "--node", "x")


def test_serve_directory_missing_refused(
    config_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A node never starts on a missing or empty directory."""
    assert "does not exist" in complaint(capsys, *serve(config_path))
    load_config(config_path).node(1).directory.mkdir(parents=True)
    assert "is empty: it was never initialised" in complaint(capsys, *serve(config_path))


def test_serve_directory_of_another_refused(
    config_path: Path, site: FakeSite, capsys: pytest.CaptureFixture[str]
) -> None:
    """A directory of another node, cluster or engine is refused, each by its name."""
    site.add_fakes()
    assert main(["init", "--config", str(config_path)]) == 0
    capsys.readouterr()
    text = config_path.read_text()
    config_path.write_text(text.replace('"local"', '"other"'))
    assert "belongs to cluster 'local', not 'other'" in complaint(capsys, *serve(config_path))
    config_path.write_text(text.replace(f'engine = "{ENGINE}"', 'engine = "fake"'))
    assert f"was written by engine '{ENGINE}'" in complaint(capsys, *serve(config_path))
    config_path.write_text(text.replace("node-1", "x").replace("node-2", "node-1"))
    assert "belongs to node 1, not node 2" in complaint(capsys, *serve(config_path, 2))


# --- config and plugins -------------------------------------------------------------------------


def test_config_example_is_a_configuration(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """The example is printed as UTF-8 and is read back without a mistake."""
    assert main(["config", "example"]) == 0
    data = capsysbinary.readouterr().out
    assert data == config_example().encode()
    (tmp_path / "cluster.toml").write_bytes(data)
    assert main(["config", "check", str(tmp_path / "cluster.toml")]) == 0


def test_config_example_engine_unknown_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """An engine that is not installed is refused with those that are."""
    said = complaint(capsys, "config", "example", "--engine", "x")
    assert "no engine named 'x' is installed (installed: " in said


def test_config_check_json(config_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A good configuration is described in the documented keys."""
    assert main(["config", "check", "--json", str(config_path)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == documented("replog config check")
    assert document["nodes"] == [1, 2, 3]


def test_plugins_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Everything that is installed is listed, in the documented keys."""
    assert main(["plugins", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"plugins"}
    assert all(set(found) == documented("replog plugins") for found in document["plugins"])
    named = {(found["kind"], found["name"]) for found in document["plugins"]}
    assert {("state machine", "kv"), ("command", "kv")} <= named
    assert {("engine", name) for name in engine_names()} <= named


def test_plugins_broken_shown(site: FakeSite, capsys: pytest.CaptureFixture[str]) -> None:
    """A plugin that cannot be used is listed with the reason, and is exit code 1."""
    site.add("bad", {plugins.ENGINES: {"bad": "no_such_module:PLUGIN"}})
    assert main(["plugins"]) == 1
    captured = capsys.readouterr()
    assert re.search(r"engine +bad +bad 1.2 +BROKEN", captured.out)
    assert "no_such_module" in captured.err


# --- status -------------------------------------------------------------------------------------


def node_answer(
    node_id: int, leader: int, term: int = 1, role: str = "follower", quorum: int = 0
) -> NodeAnswer:
    status = {"node": node_id, "role": role, "leader": leader or None, "term": term}
    status["commit_quorum"] = quorum
    return NodeAnswer(f"127.0.0.1:{node_id}", node_id, status, None, None)


LEADER = node_answer(1, 1, role="leader")


@pytest.mark.parametrize(
    ("answers", "leader"),
    [
        ([LEADER, node_answer(2, 1), node_answer(3, 1)], 1),
        ([LEADER, node_answer(2, 1)], 1),
        ([LEADER], None),
        ([LEADER, node_answer(2, 0)], None),
        ([node_answer(2, 1), node_answer(3, 1)], None),
        ([LEADER, node_answer(2, 0, term=2), node_answer(3, 0, term=2)], None),
        ([LEADER, node_answer(2, 2, term=2, role="leader"), node_answer(3, 2, term=2)], 2),
        ([], None),
    ],
)
def test_leader_needs_a_majority(answers: list[NodeAnswer], leader: int | None) -> None:
    """Only who leads in the highest term, and is followed by two of three, is the leader."""
    assert followed_leader(answers, 3) == leader


@pytest.mark.parametrize(("quorum", "leader"), [(1, 1), (2, 1), (3, None), (0, None)])
def test_leader_needs_its_own_quorum(quorum: int, leader: int | None) -> None:
    """Where a cluster was founded with another quorum, that many of the five must follow; where
    the engine does not say, a majority."""
    answers = [node_answer(1, 1, role="leader", quorum=quorum), node_answer(2, 1, quorum=quorum)]
    assert followed_leader(answers, 5) == leader


def test_status_nobody_named_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without an address, status says how to give one."""
    monkeypatch.delenv("REPLOG_CONNECT", raising=False)
    assert "give --connect HOST:PORT or --config FILE" in complaint(capsys, "status")
    assert "is not an address" in complaint(capsys, "status", "--connect", "localhost")
    monkeypatch.setenv("REPLOG_CONNECT", " , ")
    assert "REPLOG_CONNECT names no address" in complaint(capsys, "status")


def test_status_nobody_answers(config_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nodes that do not run are shown as such, with the reason, and are exit code 1."""
    assert main(["status", "--config", str(config_path), "--timeout", "2"]) == 1
    captured = capsys.readouterr()
    assert captured.out.count("unreachable") == 3
    assert "no node answered" in captured.err
    assert captured.err.count("does not answer: connection refused\n") == 3


def test_status_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The document has the documented keys, also for a node that did not answer."""
    silent = NodeAnswer("127.0.0.1:2", 2, None, "connection refused", None)

    async def ask_cluster(addresses: object, seconds: float) -> ClusterAnswer:
        return ClusterAnswer("a", None, [LEADER, silent])

    monkeypatch.setattr(asking, "ask_cluster", ask_cluster)
    assert main(["status", "--connect", "127.0.0.1:1", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert all(
        set(node) | set(document) == documented("replog status") for node in document["nodes"]
    )
    assert document["nodes"][1]["problem"] == "connection refused"
    assert document["nodes"][1]["role"] is None


@pytest.mark.parametrize(
    ("commits", "elects", "sentence"),
    [
        (3, 3, "so 3 of the 4 voters that are left must run"),
        (0, 0, "so 3 of the 4 voters that are left must run"),
        (2, 4, "so 4 (to elect) and 2 (to commit) of the 4 voters that are left must run"),
    ],
)
def test_status_names_lost_voters(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    commits: int,
    elects: int,
    sentence: str,
) -> None:
    """A learner is shown as one, and what is left without its vote is said, as whoever has come
    furthest knows it."""
    quorums = {"commit_quorum": commits, "election_quorum": elects}
    known = {"learners": [{"node": 5, "incarnation": 7}], "applied_index": 9}
    answers = [
        replace(each, status={**(each.status or {}), **quorums, "voter": each.node_id != 5})
        for each in (node_answer(node_id, 1) for node_id in range(1, 6))
    ]
    answers[0] = replace(answers[0], status={**(answers[0].status or {}), **known})

    async def ask_cluster(addresses: object, seconds: float) -> ClusterAnswer:
        return ClusterAnswer("a", 1, answers)

    monkeypatch.setattr(asking, "ask_cluster", ask_cluster)
    assert main(["status", "--connect", "127.0.0.1:1"]) == 0
    captured = capsys.readouterr()
    assert f"1 voter was lost: node 5 has come back without a vote, {sentence}" in captured.err
    assert re.search(r"^ +5 +\S+ +learner ", captured.out, re.MULTILINE)
    assert captured.out.count("learner") == 1


def test_status_names_full_disks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who has a full disk is named, with the remedy; it is no reason for another exit code."""
    full = node_answer(2, 1)
    full = replace(full, status={**(full.status or {}), "disk_full": True})

    async def ask_cluster(addresses: object, seconds: float) -> ClusterAnswer:
        return ClusterAnswer("a", 1, [LEADER, full])

    monkeypatch.setattr(asking, "ask_cluster", ask_cluster)
    assert main(["status", "--connect", "127.0.0.1:1"]) == 0
    said = capsys.readouterr().err
    assert said.count("full disk") == 1
    assert "node 2 (127.0.0.1:2) has a full disk and takes in no entries; free" in said


# --- kv -----------------------------------------------------------------------------------------


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Kv:
    """A store in this process that ``replog kv`` talks to, in the place of a cluster."""
    machine = Kv()
    count = 0

    def propose(arguments: object, payload: bytes) -> Applied:
        nonlocal count
        count += 1
        machine.check_payload(payload)
        return Applied(count, machine.apply(ApplyContext(count, 0), payload))

    def query(arguments: object, call: Call[..., object], *values: object) -> Applied:
        return Applied(count, machine.answer(call.encode(*values)))

    monkeypatch.setattr(commands, "_propose", propose)
    monkeypatch.setattr(commands, "_query", query)
    return machine


def kv(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(["kv", *words]) == code
    return capsys.readouterr().out


def test_kv_round_trip(store: Kv, capsys: pytest.CaptureFixture[str]) -> None:
    """What put sets, get prints; delete removes it, and then it is exit code 1."""
    assert kv(capsys, "put", "k", "grün") == ""
    assert kv(capsys, "get", "k") == "grün\n"
    kv(capsys, "delete", "k")
    kv(capsys, "delete", "k", code=1)
    assert main(["kv", "get", "k"]) == 1
    assert capsys.readouterr().err == "replog: there is no key 'k'\n"


def test_kv_cas(store: Kv, capsys: pytest.CaptureFixture[str]) -> None:
    """Compare-and-set changes only what holds the expected value, or nothing."""
    kv(capsys, "cas", "k", "a")
    kv(capsys, "cas", "k", "b", code=1)
    kv(capsys, "cas", "k", "b", "--expected", "a")
    assert kv(capsys, "get", "k") == "b\n"


def test_kv_range(store: Kv, capsys: pytest.CaptureFixture[str]) -> None:
    """A range prints one item per line, whatever the values hold."""
    for key, value in (("a", "1"), ("b", "x\ty\nz"), ("c", "3")):
        kv(capsys, "put", key, value)
    assert kv(capsys, "range", "a", "c") == "a\t1\nb\tx\\ty\\nz\n"
    assert main(["kv", "range", "--limit", "1"]) == 0
    assert "there are more items" in capsys.readouterr().err


def test_kv_bytes(store: Kv, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes that are no text come back exactly in base64, and are escaped otherwise."""
    data = b"\xff\x00"
    text = base64.b64encode(data).decode()
    kv(capsys, "put", "k", text, "--base64")
    assert store.get("k") == data
    assert kv(capsys, "get", "k", "--base64") == f"{text}\n"
    assert kv(capsys, "get", "k") == "\\xff\0\n"
    assert "is not base64" in complaint(capsys, "kv", "put", "k", "!", "--base64")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--from", "0"], "the first one is 1, not 0"),
        (["--from", "soon"], "invalid int value: 'soon'"),
        (["--key"], "no key is given"),
        (["a", "b"], "unrecognized arguments: b"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_kv_watch_bad_input(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be watched is bad input, and is said in one sentence before anybody is asked."""
    assert main(["kv", "watch", *words, "--connect", "127.0.0.1:1"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert sentence in said.err


@pytest.mark.parametrize("error", [Compacted(5), FellBehind(5)], ids=["log", "changes"])
def test_what_is_gone_is_no_bad_input(
    error: replog.CallerError, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who asks for what was cut off, or is not remembered, has asked for nothing wrong: exit code 1
    and a sentence."""
    assert replog.cli._explain(error) == 1
    assert capsys.readouterr().err == f"replog: {error}\n"


def test_kv_watch_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """A change is a line of its index, what was done, the key and the value, or an object with the
    documented keys; a key that is gone has no value."""
    arguments = argparse.Namespace(json=False, base64=False)
    changes = (Change(7, "a\tb", b"x\ny"), Change(8, "a", b""), Change(9, "a", None))
    shown = [commands._shown_change(arguments, change) for change in changes]
    assert shown == ["7\tset\ta\\tb\tx\\ny", "8\tset\ta\t", "9\tgone\ta"]
    arguments.json = True
    documents = [json.loads(commands._shown_change(arguments, change)) for change in changes]
    assert documents[0] == {"index": 7, "key": "a\tb", "value": "x\ny", "encoding": "utf-8"}
    assert documents[2] == {"index": 9, "key": "a", "value": None, "encoding": None}
    [line] = [line for line in DOCS.read_text().splitlines() if line.startswith("| `watch` |")]
    assert set(re.findall("`(.*?)`", line.split("|", 2)[2])) - {"null"} == set(documents[0])


@pytest.mark.parametrize(
    "words",
    [
        ["put", "k", "v"],
        ["get", "k"],
        ["get", "missing"],
        ["cas", "k", "w"],
        ["range"],
        ["delete", "k"],
    ],
    ids=" ".join,
)
def test_kv_json(store: Kv, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Every action has the documented keys."""
    store.put("k", b"\xff")
    main(["kv", *words, "--json"])
    document = json.loads(capsys.readouterr().out)
    section = DOCS.read_text().split("## `replog kv`\n")[1]
    [line] = [line for line in section.splitlines() if line.startswith(f"| `{words[0]}` |")]
    keys = set(re.findall("`(.*?)`", line.split("|", 2)[2])) - {"null"}
    inner = document.get("items") or [{}]
    assert set(document) | set(inner[0]) == keys
    if words == ["get", "k"]:
        assert document["encoding"] == "base64"


def test_kv_value_twice_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A value comes from the command line or from standard input, not from both or neither."""
    assert "either" in complaint(capsys, "kv", "put", "k")
    assert "either" in complaint(capsys, "kv", "put", "k", "v", "--stdin")


def test_kv_bad_key_refused(store: Kv, capsys: pytest.CaptureFixture[str]) -> None:
    """What the store declares as an error is its sentence; a key that is no text is bad input."""
    assert "must not be empty" in complaint(capsys, "kv", "put", "", "v", code=1)
    assert "surrogate" in complaint(capsys, "kv", "put", "\udcff", "v")


# --- demo, as far as it needs no processes ------------------------------------------------------


def demo_result(lost: int = 0, replicas_equal: bool = True) -> demo_report.DemoResult:
    return demo_report.DemoResult(
        engine="fake",
        durable=True,
        nodes=3,
        writes=10,
        seconds=1.0,
        acknowledged=10,
        unknown=1,
        lost=lost,
        replicas_equal=replicas_equal,
        killed_node=1,
        new_leader=2,
        leaderless_ms=1.0,
        commits_per_second=10.0,
        p50_ms=1.0,
        p99_ms=2.0,
        applied_index=12,
        in_flight=4,
        words=[("the", 3)],
    )


@pytest.mark.parametrize(
    ("result", "code"),
    [(demo_result(), 0), (demo_result(lost=1), 1), (demo_result(replicas_equal=False), 1)],
)
def test_demo_verdict_is_the_exit_code(
    result: demo_report.DemoResult,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The demonstration fails if anything is lost or differs, and its keys are documented."""
    monkeypatch.setattr("replog.cli.demo_run.run_engine", lambda *_: result)
    assert main(["demo", "--engine", ENGINE]) == code
    assert ("this must never happen" in capsys.readouterr().out) == (code == 1)
    assert main(["demo", "--engine", ENGINE, "--json"]) == code
    (document,) = json.loads(capsys.readouterr().out)
    assert set(document) == documented("replog demo")


def test_demo_of_several_engines_is_a_list(
    site: FakeSite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default every installed engine runs, and the document is a list with one object each."""
    site.add_fakes()
    ran = []

    def run_engine(engine: str, folder: Path, plan: object) -> demo_report.DemoResult:
        assert folder.is_dir()
        ran.append(engine)
        return demo_result()

    monkeypatch.setattr("replog.cli.demo_run.run_engine", run_engine)
    assert main(["demo", "--json"]) == 0
    assert ran == plugins.engine_names()
    assert len(json.loads(capsys.readouterr().out)) == len(ran) >= 2


def test_demo_bad_input_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong engine, input, folder or number is refused before anything is started."""
    (tmp_path / "empty").write_text("1 2 3\n")
    assert "no engine named 'x'" in complaint(capsys, "demo", "--engine", "x")
    assert "cannot be read" in complaint(capsys, "demo", "--input", tmp_path / "missing")
    assert "holds no words" in complaint(capsys, "demo", "--input", tmp_path / "empty")
    assert "is not empty" in complaint(capsys, "demo", "--keep", tmp_path)
    assert "cannot be used" in complaint(capsys, "demo", "--keep", tmp_path / "empty")
    assert "positive whole number" in complaint(capsys, "demo", "--writes", "0")
    assert "positive number of seconds" in complaint(capsys, "demo", "--seconds", "nan")
