"""Configurations: reading, refusing with every mistake, building in a program, writing."""

from __future__ import annotations

import dataclasses
import os
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_plugins import FakeSite, fake_site

from replog.address import Address
from replog.config import (
    CLUSTER_KEYS,
    NODE_KEYS,
    Config,
    NodeConfig,
    config_example,
    config_toml,
    load_config,
    local_config,
)
from replog.config_reading import FILE_BYTES_MAX
from replog.config_rules import NODES_MAX
from replog.errors import AddressError, ConfigError, PluginError
from replog.limits import LIMIT_NAMES, Limits
from replog.plugins import ENGINES, find_engine, option_types

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"

CLUSTER = """
[cluster]
id = "orders"
engine = "fake"
state_machine = "tally"
"""

NODES = """
[[node]]
id = 1
peer = "127.0.0.1:7001"
client = "127.0.0.1:8001"
directory = "data/1"

[[node]]
id = 2
peer = "127.0.0.1:7002"
client = "127.0.0.1:8002"
directory = "data/2"
"""


@pytest.fixture(autouse=True)
def site(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeSite]:
    for fakes in fake_site(tmp_path_factory.mktemp("site"), monkeypatch):
        fakes.add_fakes()
        yield fakes


def _write(path: Path, text: str) -> Path:
    file = path / "cluster.toml"
    file.write_text(text, encoding="utf-8")
    return file


def _load(path: Path, text: str) -> Config:
    return load_config(_write(path, text))


def _problems(path: Path, text: str) -> list[str]:
    """What is wrong with the text; fails if nothing is."""
    file = _write(path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert caught.value.source == str(file)
    return caught.value.problems


def _problem(path: Path, text: str) -> str:
    """The one thing that is wrong with the text."""
    (problem,) = _problems(path, text)
    return problem


def _options(**values: object) -> object:
    return find_engine("fake").options(**values)


# Reading.


def test_load_minimal(tmp_path: Path) -> None:
    """A file with only the required keys gets the defaults, and directories beside itself."""
    config = _load(tmp_path, CLUSTER + NODES)
    assert (config.cluster_id, config.engine, config.state_machine) == ("orders", "fake", "tally")
    assert config.storage == "wal"
    assert config.limits == Limits()
    assert config.engine_options == _options()
    assert config.source == str(tmp_path / "cluster.toml")
    assert config.nodes[0] == NodeConfig(
        id=1,
        peer=Address("127.0.0.1", 7001),
        client=Address("127.0.0.1", 8001),
        peer_listen=Address("127.0.0.1", 7001),
        client_listen=Address("127.0.0.1", 8001),
        directory=tmp_path / "data" / "1",
    )
    assert config.problems() == []


def test_load_everything(tmp_path: Path) -> None:
    """Every key that is set is taken, an integer where a number is wanted as well."""
    config = _load(
        tmp_path,
        CLUSTER
        + 'storage = "memory"\n'
        + "[engine.fake]\nticks = 3\nratio = 2\neager = false\nlabel = 'x'\n"
        + "[limits]\ntick_ms = 7\n"
        + '[[node]]\nid = 65535\npeer = "db1.example:7001"\nclient = "[2001:db8::1]:8001"\n'
        + 'peer_listen = "0.0.0.0:7101"\nclient_listen = "[::]:8101"\ndirectory = "/srv/x"\n',
    )
    assert config.storage == "memory"
    assert config.engine_options == _options(ticks=3, ratio=2.0, eager=False, label="x")
    assert config.limits == Limits(tick_ms=7)
    node = config.node(65535)
    assert node.client == Address("2001:db8::1", 8001)
    assert (str(node.peer_listen), str(node.client_listen)) == ("0.0.0.0:7101", "[::]:8101")
    assert node.directory == Path("/srv/x")


def test_load_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories are relative to the file, not to where the program was started."""
    _write(tmp_path, CLUSTER + NODES)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load_config("../cluster.toml")
    assert config.node(2).directory == tmp_path / "data" / "2"


def test_node_missing(tmp_path: Path) -> None:
    """Asking for a node that is not in the file names those that are."""
    config = _load(tmp_path, CLUSTER + NODES)
    with pytest.raises(ConfigError, match="there is no node 4; the nodes are 1, 2"):
        config.node(4)


def test_load_other_machines(tmp_path: Path) -> None:
    """Nodes on different machines may share a wildcard, a port and the name of a directory."""
    config = _load(
        tmp_path,
        CLUSTER
        + "".join(
            f'[[node]]\nid = {at}\npeer = "db{at}.example:7001"\nclient = "db{at}.example:8001"\n'
            'peer_listen = "0.0.0.0:7001"\nclient_listen = "0.0.0.0:8001"\n'
            'directory = "/var/lib/replog"\n'
            for at in (1, 2)
        ),
    )
    assert len(config.nodes) == 2


# Files that cannot be read.


def test_load_missing_file(tmp_path: Path) -> None:
    """A file that is not there is told from one that is wrong, with what to do."""
    with pytest.raises(ConfigError, match=r"nowhere\.toml: there is no such file; `replog config"):
        load_config(tmp_path / "nowhere.toml")


def test_load_not_a_file(tmp_path: Path) -> None:
    """A directory and a pipe are refused; the pipe without waiting for a writer."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConfigError, match="is not a file"):
            load_config(path)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"[cluster]\nid = \xff\n", "is not UTF-8 text: a bad byte in line 2"),
        (b"\xef\xbb\xbf[cluster]\n", "byte order mark"),
        (b"[cluster]\nid 3\n", "is not valid TOML: .*line 2, column 4"),
        (b"a = 1\na = 2\n", "is not valid TOML: .*line 2"),
        (b"a = " + b"9" * 5000, "is not valid TOML"),
        (b"a = " + b"[" * 5000, "nested too deep"),
        (b"#" * (FILE_BYTES_MAX + 1), "has 1048577 bytes"),
    ],
)
def test_load_bad_text(tmp_path: Path, data: bytes, sentence: str) -> None:
    """What is no TOML is refused with the place in the file."""
    file = tmp_path / "cluster.toml"
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=sentence):
        load_config(file)


# Mistakes in values.


@pytest.mark.parametrize(
    ("added", "problem"),
    [
        ("[limit]", "limit: is unknown; did you mean 'limits'?"),
        ("[limits]\ntick = 3", "limits.tick: is unknown; did you mean 'tick_ms'?"),
        ("[limits]\ntick_ms = true", "limits.tick_ms: must be an integer, not true"),
        ("[limits]\ntick_ms = 1.5", "limits.tick_ms: must be an integer, not 1.5"),
        ('[limits]\ntick_ms = "9"', "limits.tick_ms: must be an integer, not the string '9'"),
        ("[limits]\ntick_ms = [9]", "limits.tick_ms: must be an integer, not an array"),
        ("[limits]\ntick_ms = 0", "limits.tick_ms: must be at least 1, not 0"),
        (
            "[limits]\nsession_idle_ms_max = 4294967296",
            "limits.session_idle_ms_max: must be at most 4294967295, not 4294967296",
        ),
        (f"[limits]\ntick_ms = {2**64}", "limits.tick_ms: does not fit into 64 bits"),
        ("[engine]\nfake = 3", "engine.fake: must be a table, not 3"),
        ("[engine.fake]\nticks = 0", "engine.fake.ticks: must be at least 1, not 0"),
        ("[engine.fake]\ntickss = 1", "engine.fake.tickss: is unknown; did you mean 'ticks'?"),
        ("[engine.fake]\nratio = nan", "engine.fake.ratio: must be a finite number, not nan"),
        ("[engine.fake]\nratio = true", "engine.fake.ratio: must be a number, not true"),
        ("[engine.fake]\neager = 1", "engine.fake.eager: must be true or false, not 1"),
        ("[engine.fake]\nlabel = 1", "engine.fake.label: must be a string, not 1"),
        ('"a\\nb" = 1', "a\\nb: is unknown; the keys here are cluster, engine, limits, node"),
    ],
)
def test_load_wrong_value(tmp_path: Path, added: str, problem: str) -> None:
    """A wrong value is reported by the path of its key, with what was wanted and what was there."""
    # Top-level keys must stand before the tables.
    assert _problem(tmp_path, f"{added}\n{CLUSTER}{NODES}") == problem


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('id = "orders"', "", 'cluster.id: is missing; write for example id = "orders"'),
        ('id = "orders"', 'id = ""', "cluster.id: must have 1 to 64 characters"),
        ('id = "orders"', f'id = "{"x" * 65}"', "cluster.id: must have 1 to 64 characters"),
        ('id = "orders"', 'id = "a b"', "cluster.id: must be printable ASCII without spaces"),
        ('id = "orders"', 'id = "a\\u0000"', "cluster.id: must be printable ASCII"),
        ('id = "orders"', 'id = "../a"', "cluster.id: must be fit to name a file"),
        ('id = "orders"', 'id = "."', "cluster.id: must be fit to name a file"),
        ('id = "orders"', 'id = ".."', "cluster.id: must be fit to name a file"),
        ('engine = "fake"', "", "cluster.engine: is missing"),
        ('"fake"', '"fakke"', "cluster.engine: no engine named 'fakke' is installed (installed: "),
        ('"tally"', '"tal"', "cluster.state_machine: no state machine named 'tal' is installed"),
        ('"tally"', '"tally"\nstorage = "wall"', "cluster.storage: no storage named 'wall'"),
        ('"tally"', '"tally"\nsync = "never"', 'cluster.sync: must be "always" or "os", not'),
        ('"tally"', '"tally"\nnodes = 3', "cluster.nodes: is unknown"),
        ("id = 1", "", "node[1].id: is missing; write for example id = 1"),
        ("id = 1", "id = 0", "node[1].id: must be 1 to 65535, not 0"),
        ("id = 1", "id = 65536", "node[1].id: must be 1 to 65535, not 65536"),
        ("id = 1", "id = true", "node[1].id: must be an integer, not true"),
        ("id = 2", "id = 1", "node[2].id: 1 is taken by node[1]"),
        ('peer = "127.0.0.1:7002"', "", "node[2].peer: is missing"),
        ('"127.0.0.1:7002"', '"127.0.0.1"', "node[2].peer: '127.0.0.1' is not an address"),
        ('"127.0.0.1:7002"', '"127.0.0.1:0"', "node[2].peer: '127.0.0.1:0' has no port between"),
        ('"127.0.0.1:7002"', '"0.0.0.0:7002"', "node[2].peer: nobody can connect to 0.0.0.0"),
        ('"data/2"', '"data/1"', "node[2].directory: "),
        ('"data/2"', '"data/../data/1/"', "node[2].directory: "),
        ('"data/2"', '""', "node[2].directory: must be a path"),
        ('"data/2"', '"~/2"', "node[2].directory: '~/2' is taken as it stands"),
        ('"data/2"', '"d"\npear = 1', "node[2].pear: is unknown; did you mean 'peer'?"),
    ],
)
def test_load_wrong_file(tmp_path: Path, old: str, new: str, problem: str) -> None:
    """One mistake in a file gives one sentence, which begins with the path of the key."""
    text = CLUSTER + NODES
    assert old in text
    assert _problem(tmp_path, text.replace(old, new, 1)).startswith(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (CLUSTER, "node: there is no node"),
        (CLUSTER + "[node]\nid = 1\n", "node: is a single table; write [[node]]"),
        ("node = [1]\n" + CLUSTER, "node[1]: must be a table, not 1"),
        ("node = 1\n" + CLUSTER, "node: must be an array, not 1"),
        ('engine = "fake"\n' + CLUSTER + NODES, "engine: holds tables [engine.NAME]"),
        (NODES, "cluster: is missing; write the table [cluster]"),
        ("cluster = 1\n" + NODES, "cluster: must be a table, not 1"),
    ],
)
def test_load_wrong_shape(tmp_path: Path, text: str, problem: str) -> None:
    """A section of the wrong shape is answered with the right one."""
    assert any(found.startswith(problem) for found in _problems(tmp_path, text))


def test_load_too_many_nodes(tmp_path: Path) -> None:
    """A cluster has a bounded number of nodes."""
    nodes = "".join(
        f'[[node]]\nid = {at}\npeer = "h:{at}"\nclient = "h:{at + 1000}"\ndirectory = "{at}"\n'
        for at in range(1, NODES_MAX + 2)
    )
    assert f"the {NODES_MAX} that" in _problem(tmp_path, CLUSTER + nodes)


def test_load_every_mistake(tmp_path: Path) -> None:
    """All mistakes of a file are reported at once, those between values too."""
    text = (
        CLUSTER.replace("orders", "my orders").replace("tally", "nothing")
        + "[limits]\ntick_ms = 'x'\ncommand_bytes_max = 9_000_000\nframe_bytes = 1\n"
        + "[engine.fake]\nticks = -1\n[engine.ghost]\n"
        + NODES.replace("id = 2", "id = 1").replace("127.0.0.1:7002", "nowhere")
    )
    problems = _problems(tmp_path, text)
    assert [problem.partition(": ")[0] for problem in problems] == [
        "cluster.id",
        "cluster.state_machine",
        "engine.fake.ticks",
        "engine.ghost",
        "limits.frame_bytes",
        "limits.tick_ms",
        "limits.command_bytes_max",
        "limits.message_bytes_max",
        "node[2].peer",
        "node[2].id",
    ]


def test_load_wrong_value_misleads_not(tmp_path: Path) -> None:
    """A relation with a value that could not be read is not judged by that value's default."""
    text = "[limits]\nframe_bytes_max = 'big'\ncommand_bytes_max = 20_000_000\n" + CLUSTER + NODES
    assert _problem(tmp_path, text).startswith("limits.frame_bytes_max: must be an integer")


def test_load_engine_not_chosen(tmp_path: Path, site: FakeSite) -> None:
    """Options of an installed engine that is not the chosen one are checked and not taken."""
    engine = (site.path / "fake_engine.py").read_text().replace('"fake"', '"other"')
    site.add("other", {ENGINES: {"other": "other_engine:PLUGIN"}}, {"other_engine": engine})
    config = _load(tmp_path, CLUSTER + "[engine.other]\nticks = 4\n" + NODES)
    assert config.engine_options == _options()
    text = CLUSTER + "[engine.other]\nticks = 0\n" + NODES
    assert _problem(tmp_path, text) == "engine.other.ticks: must be at least 1, not 0"


def test_load_engine_broken(tmp_path: Path, site: FakeSite) -> None:
    """An engine that cannot be imported is a problem of the key that names it."""
    site.add("broken", {ENGINES: {"bad": "no_such_module:PLUGIN"}})
    text = (CLUSTER + NODES).replace('"fake"', '"bad"')
    assert _problem(tmp_path, text).startswith("cluster.engine: the engine 'bad' of broken cannot")


# Addresses.


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost:1", "localhost", 1),
        ("10.0.0.1:65535", "10.0.0.1", 65535),
        ("DB-1.Example.:7001", "db-1.example", 7001),
        ("my_service:7001", "my_service", 7001),
        ("[::1]:7001", "::1", 7001),
        ("[2001:DB8:0:0::1]:7001", "2001:db8::1", 7001),
        ("[fe80::1%eth0]:7001", "fe80::1%eth0", 7001),
    ],
)
def test_parse_address(text: str, host: str, port: int) -> None:
    """An address is read, and what it writes is read as the same."""
    address = Address.parse(text)
    assert (address.host, address.port) == (host, port)
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "", "host", ":7001", "host:", "host:0", "host:65536", "host:-1", "host:7 ", "host:x",
        "host:٣", "::1:7001", "[::1]", "[::1:7001", "[]:7001", "[host]:7001", "1.2.3:7001",
        "1.2.3.256:7001", "a b:7001", "-a:7001", "a..b:7001", "é:7001", f"{'a' * 64}:1", "h:7001:",
        f"{'a.' * 127}a:1", "http://h:7001",
    ],
)  # fmt: skip
def test_parse_address_malformed(text: str) -> None:
    """What is no address is refused with a sentence that shows it."""
    with pytest.raises(AddressError) as caught:
        Address.parse(text)
    assert str(caught.value).startswith(f"'{text}' ")


@pytest.mark.parametrize(
    ("first", "second", "collision"),
    [
        ({"peer": "a:1"}, {"peer": "a:1"}, "node[2].peer: a:1 collides with node[1].peer = a:1"),
        ({"client": "A:1"}, {"peer": "a:1"}, "node[2].peer: a:1 collides with node[1].client"),
        ({"peer": "a:1", "client": "a:1"}, {}, "node[1].client: a:1 collides with node[1].peer"),
        ({"client_listen": "a:9"}, {"peer": "a:9"}, "node[2].peer: a:9 collides with node[1].c"),
        (
            {"peer_listen": "0.0.0.0:9", "client_listen": "0.0.0.0:9"},
            {},
            "node[1].client_listen: 0.0.0.0:9 collides with node[1].peer_listen",
        ),
        (
            {"peer_listen": "0.0.0.0:9", "client_listen": "10.0.0.1:9"},
            {},
            "node[1].client_listen: 10.0.0.1:9 collides with node[1].peer_listen = 0.0.0.0:9",
        ),
        (
            {"peer": "localhost:9"},
            {"peer": "[::1]:8", "peer_listen": "[::]:9"},
            "node[2].peer_listen: [::]:9 collides with node[1].peer",
        ),
    ],
)
def test_load_addresses_collide(
    tmp_path: Path, first: dict[str, str], second: dict[str, str], collision: str
) -> None:
    """Two uses of one address are reported once, at the later of the two keys."""
    nodes: list[dict[str, str]] = [
        {"peer": "a:7001", "client": "a:8001", **first},
        {"peer": "a:7002", "client": "a:8002", **second},
    ]
    text = CLUSTER + "".join(
        f'[[node]]\nid = {at}\ndirectory = "{at}"\n'
        + "".join(f'{key} = "{value}"\n' for key, value in node.items())
        for at, node in enumerate(nodes, start=1)
    )
    assert _problem(tmp_path, text).startswith(collision)


def test_load_listen_as_reached(tmp_path: Path) -> None:
    """Saying explicitly what is the default anyway is no collision."""
    text = CLUSTER + NODES.replace("id = 1", 'id = 1\npeer_listen = "127.0.0.1:7001"')
    assert _load(tmp_path, text) == _load(tmp_path, CLUSTER + NODES)


# Building in a program.


def test_local_config_loopback(tmp_path: Path) -> None:
    """A local cluster has its nodes on loopback, in directories and on ports of their own."""
    config = local_config(tmp_path, 3, engine="fake", state_machine="tally", first_port=7001)
    assert [node.id for node in config.nodes] == [1, 2, 3]
    assert [str(node.peer) for node in config.nodes] == [
        f"127.0.0.1:{7001 + at}" for at in range(3)
    ]
    assert [node.client.port for node in config.nodes] == [7004, 7005, 7006]
    assert config.node(3).directory == tmp_path / "node-3"
    assert config.storage == "wal"
    assert config.engine_options == _options()


def test_local_config_free_ports(tmp_path: Path) -> None:
    """Without a first port, the ports are free ones."""
    config = local_config(tmp_path, 2, engine="fake", state_machine="tally")
    ports = [port for node in config.nodes for port in (node.peer.port, node.client.port)]
    assert len(set(ports)) == 4
    for port in ports:
        with socket.create_server(("127.0.0.1", port)):
            pass


@pytest.mark.parametrize("first_port", [0, 65_531])
def test_local_config_ports_outside(tmp_path: Path, first_port: int) -> None:
    """Ports that do not exist are refused."""
    with pytest.raises(ConfigError, match="first_port: 6 ports from"):
        local_config(tmp_path, engine="fake", first_port=first_port)


def test_local_config_wrong(tmp_path: Path) -> None:
    """What a program asks for is held against the same rules as a file."""
    with pytest.raises(ConfigError) as caught:
        local_config(
            tmp_path,
            nodes=0,
            engine="fake",
            engine_options=_options(ticks=0),
            limits=Limits(tick_ms=0),
            cluster_id="",
        )
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == [
        "cluster.id",
        "engine.fake.ticks",
        "limits.tick_ms",
        "node",
    ]
    with pytest.raises(PluginError, match="no engine named 'ghost'"):
        local_config(tmp_path, engine="ghost")


def test_problems_of_nodes(tmp_path: Path) -> None:
    """A configuration that a program built tells of ids and ports as a file would."""
    config = local_config(tmp_path, 2, engine="fake", first_port=7001)
    one, two = config.nodes
    nodes = (
        dataclasses.replace(one, id=0, peer=Address("h", 0)),
        dataclasses.replace(two, client=one.client, client_listen=Address("h", 0)),
    )
    problems = dataclasses.replace(config, nodes=nodes).problems()
    assert [problem.partition(": ")[0] for problem in problems] == [
        "node[1].id",
        "node[1].peer",
        "node[2].client",
    ]


# Writing.


def test_write_and_load_equal(tmp_path: Path) -> None:
    """What is written is read back as an equal configuration, whatever its strings hold."""
    made = local_config(
        tmp_path / 'we"ird\\ dîr\t\x7f',
        engine="fake",
        state_machine="tally",
        storage="memory",
        sync="os",
        engine_options=_options(ticks=2, ratio=1e16, eager=False, label='"\\\n\x7f\u2028é'),
        limits=Limits(tick_ms=5, apply_entries_max=1),
        cluster_id='a"b',
    )
    listening = dataclasses.replace(
        made.nodes[0],
        peer_listen=Address("::", made.nodes[0].peer.port),
        client_listen=Address("10.0.0.1", made.nodes[0].client.port),
    )
    config = dataclasses.replace(made, nodes=(listening, *made.nodes[1:]))
    assert _load(tmp_path, config_toml(config)) == config


def test_write_defaults_left_out(tmp_path: Path) -> None:
    """Limits and options at their defaults are not written."""
    text = config_toml(local_config(tmp_path, engine="fake", state_machine="tally"))
    assert "limits" not in text
    assert "engine." not in text


def _example() -> str:
    """The example for the engine of this test, with a state machine that is there."""
    return config_example("fake").replace('"kv"', '"tally"')


def test_example_loads_defaults(tmp_path: Path) -> None:
    """The example is a right configuration of three nodes with every default."""
    config = _load(tmp_path, _example())
    assert config.limits == Limits()
    assert config.engine_options == _options()
    assert config.storage == "wal"
    assert [node.id for node in config.nodes] == [1, 2, 3]


def test_example_uncommented(tmp_path: Path) -> None:
    """Every commented key of the example is a right line with the default."""
    lines = [line.removeprefix("# ") if " = " in line else line for line in _example().splitlines()]
    assert _load(tmp_path, "\n".join(lines)) == _load(tmp_path, _example())


def test_example_complete() -> None:
    """Each limit and option stands in the example with its default, below what it means."""
    lines = _example().splitlines()
    for made in (Limits, find_engine("fake").options):
        for name in option_types(made):
            (at,) = [at for at, line in enumerate(lines) if line.startswith(f"# {name} = ")]
            default = tomllib.loads(lines[at].removeprefix("# "))[name]
            assert default == getattr(made(), name)
            assert lines[at - 1].startswith("# "), name
            assert lines[at - 1].endswith((".", ")")), name
    assert "# How long it waits." in lines
    assert "# A share of something." in lines
    for key in (*CLUSTER_KEYS, *NODE_KEYS):
        assert any(line.removeprefix("# ").startswith(f"{key} = ") for line in lines)


def test_example_engine_unknown() -> None:
    """An example for an engine that is not installed is refused."""
    with pytest.raises(PluginError, match="no engine named 'ghost'"):
        config_example("ghost")


# The document.


def test_document_complete() -> None:
    """The document has exactly the keys that a file may have, the limits with their defaults."""
    tables: dict[str, dict[str, str]] = {}
    section = ""
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ").strip("`")
        elif line.startswith("| `"):
            key, _, default, *_ = (cell.strip().strip("`") for cell in line.strip("|").split("|"))
            tables.setdefault(section, {})[key] = default
    assert set(tables["[cluster]"]) == set(CLUSTER_KEYS)
    assert set(tables["[[node]]"]) == set(NODE_KEYS)
    assert list(tables["[limits]"]) == list(LIMIT_NAMES)
    for name in LIMIT_NAMES:
        assert tables["[limits]"][name].replace(",", "") == str(getattr(Limits(), name))
