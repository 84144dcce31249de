"""A cluster's configuration: one TOML file for all of its nodes, read into typed records.

How: the text is parsed, each value is checked while it is taken, then the relations between values
are checked (:mod:`replog.config_rules`) on whatever could be taken.  **Every mistake of a file is
reported at once**, as one :class:`~replog.errors.ConfigError` whose ``problems`` each begin with
the path of the key, such as ``limits.tick_ms`` or ``node[2].peer``; nodes are counted from 1, in
the order of the file.

Why one file: every node must know the others' addresses, and the same bytes on every machine are
the easiest way to be sure.  What a node may do in its cluster is not decided here, though: that is
the word of its directory and of the replicated log.

Nothing here touches a node's directory, looks a host up, or imports a state machine or a storage;
an engine is imported because it brings its own options.  :mod:`replog.config_text` writes what
this module reads.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Final, cast

from replog import plugins
from replog.address import PORT_MAX, Address
from replog.config_reading import Checked, Reading, read_document, read_record
from replog.config_rules import NodeDraft, cluster_id_problem, node_id_problem, nodes_problems
from replog.config_text import config_example, config_toml, default_engine
from replog.errors import ConfigError, PluginError
from replog.free_ports import free_ports
from replog.limits import Limits
from replog.types import NodeId, record

__all__ = [
    "Address",
    "Config",
    "NodeConfig",
    "config_example",
    "config_toml",
    "load_config",
    "local_config",
]

SECTIONS: Final = ("cluster", "engine", "limits", "node")
CLUSTER_KEYS: Final = ("id", "engine", "state_machine", "storage", "sync")
NODE_KEYS: Final = ("id", "peer", "client", "directory", "peer_listen", "client_listen")

STORAGE_DEFAULT: Final = "wal"
"""The durable one; a storage that forgets must be asked for by name."""

SYNC_LEVELS: Final = ("always", "os")
"""When what is written is synced: before it is acknowledged, or when the operating system likes."""


@record
class NodeConfig:
    """One node: who it is, where it is reached, and where it keeps what it must not lose."""

    id: NodeId
    """1 to 65535; never given to another node of the cluster."""
    peer: Address
    """Where the other nodes reach it."""
    client: Address
    """Where clients reach it."""
    peer_listen: Address
    """Where it listens for the other nodes; another one than ``peer`` behind NAT."""
    client_listen: Address
    """Where it listens for clients."""
    directory: Path
    """Absolute when it was read from a file."""


@record
class Config:
    """Everything that the nodes of one cluster are started from."""

    cluster_id: str
    """1 to 64 printable ASCII characters; nodes of another cluster are refused."""
    engine: str
    """The name of an engine plugin."""
    engine_options: object
    """An instance of that plugin's ``options`` class."""
    state_machine: str
    """The name of a state machine plugin."""
    storage: str
    """The name of a storage plugin."""
    limits: Limits
    nodes: tuple[NodeConfig, ...]
    """In the order of the file."""
    sync: str = SYNC_LEVELS[0]
    """``always``, or ``os``: then a power cut loses what was acknowledged, and the node is not
    durable."""
    source: str = field(default="configuration", compare=False)
    """Where it came from, for the sentences of errors; two sources may hold equal values."""

    def node(self, node_id: NodeId) -> NodeConfig:
        """The node of that id; raises :class:`~replog.errors.ConfigError`."""
        for node in self.nodes:
            if node.id == node_id:
                return node
        ids = ", ".join(str(node.id) for node in self.nodes)
        raise ConfigError(self.source, [f"node: there is no node {node_id}; the nodes are {ids}"])

    def problems(self) -> list[str]:
        """Every rule that does not hold, as in a file: ``key's path: sentence``.

        For configurations that a program builds; those of :func:`load_config` have none.  Whether
        the named plugins are installed is not asked here.
        """
        found: list[str] = []
        if problem := cluster_id_problem(self.cluster_id):
            found.append(f"cluster.id: {problem}")
        if problem := sync_problem(self.sync):
            found.append(f"cluster.sync: {problem}")
        options = cast("Checked", self.engine_options)
        found += [f"engine.{self.engine}.{problem}" for problem in options.problems()]
        found += [f"limits.{problem}" for problem in self.limits.problems()]
        drafts = [
            NodeDraft(f"node[{at}]", **{key: getattr(node, key) for key in NODE_KEYS})
            for at, node in enumerate(self.nodes, start=1)
        ]
        for node in drafts:
            if node.id is not None and (problem := node_id_problem(node.id)):
                found.append(f"{node.key}.id: {problem}")
        return found + nodes_problems(drafts)


def load_config(path: Path | str) -> Config:
    """Read a configuration file.

    A relative directory in it is relative to the file.  Raises
    :class:`~replog.errors.ConfigError` with every mistake that it holds.
    """
    source = str(path)
    reading = Reading(parent=Path(os.path.abspath(path)).parent)
    document = read_document(source, Path(path))
    reading.unknown("", document, SECTIONS)
    cluster = _read_cluster(reading, document)
    engine_options = _read_engines(reading, document, cluster["engine"])
    limits_table = reading.table("limits", document.get("limits"))
    limits = read_record(reading, "limits", limits_table, Limits)
    drafts = _read_nodes(reading, document.get("node", []))
    if reading.problems:
        raise ConfigError(source, reading.problems)
    config = Config(
        cluster_id=cluster["id"],
        engine=cluster["engine"],
        engine_options=engine_options,
        state_machine=cluster["state_machine"],
        storage=cluster["storage"],
        sync=cluster["sync"],
        limits=cast("Limits", limits),
        nodes=tuple(map(_settled, drafts)),
        source=source,
    )
    agreed_options(config)
    return config


def agreed_options(config: Config) -> Mapping[str, int]:
    """What a cluster of this configuration would have recorded at its founding, by name.

    Raises :class:`~replog.errors.ConfigError` for what its engine cannot do with so many nodes.
    """
    plugin = plugins.find_engine(config.engine)
    try:
        return plugin.agreed(config.engine_options, len(config.nodes))
    except ConfigError as error:
        raise options_error(config, error) from error


def options_error(config: Config, error: ConfigError) -> ConfigError:
    """What an engine finds wrong in its options, said with the file and the path of each key."""
    problems = [f"engine.{config.engine}.{problem}" for problem in error.problems]
    return ConfigError(config.source, problems)


def local_config(
    directory: Path | str,
    nodes: int = 3,
    *,
    engine: str | None = None,
    state_machine: str = "kv",
    storage: str = STORAGE_DEFAULT,
    sync: str = SYNC_LEVELS[0],
    engine_options: object | None = None,
    limits: Limits | None = None,
    cluster_id: str = "local",
    first_port: int | None = None,
) -> Config:
    """A cluster on this machine's loopback, for a demonstration, a test or a benchmark.

    Nodes 1 to ``nodes`` live in ``directory/node-1`` and so on.  They take the ports from
    ``first_port``, first the peers', then the clients'; ``None`` looks for free ones that no other
    process chooses in this way while this one lives.  ``engine``, ``engine_options`` and ``limits``
    of ``None`` are the defaults.  Raises :class:`~replog.errors.ConfigError`,
    :class:`~replog.errors.PluginError` and, without free ports,
    :class:`~replog.errors.AddressError`.
    """
    count = 2 * nodes
    if first_port is None:
        ports = free_ports(count)
    elif 1 <= first_port <= PORT_MAX - count + 1:
        ports = list(range(first_port, first_port + count))
    else:
        problem = f"first_port: {count} ports from {first_port} are not within 1 to {PORT_MAX}"
        raise ConfigError("local_config", [problem])
    base = Path(os.path.abspath(directory))
    made: list[NodeConfig] = []
    for at in range(nodes):
        peer = Address("127.0.0.1", ports[at])
        client = Address("127.0.0.1", ports[nodes + at])
        made.append(
            NodeConfig(
                id=at + 1,
                peer=peer,
                client=client,
                peer_listen=peer,
                client_listen=client,
                directory=base / f"node-{at + 1}",
            )
        )
    engine = default_engine() if engine is None else engine
    if engine_options is None:
        engine_options = plugins.find_engine(engine).options()
    config = Config(
        cluster_id=cluster_id,
        engine=engine,
        engine_options=engine_options,
        state_machine=state_machine,
        storage=storage,
        sync=sync,
        limits=limits or Limits(),
        nodes=tuple(made),
        source="local_config",
    )
    if problems := config.problems():
        raise ConfigError(config.source, problems)
    return config


def sync_problem(level: str) -> str:
    """What is wrong with a sync level; empty: nothing."""
    if level in SYNC_LEVELS:
        return ""
    return (
        f'must be "always" or "os", not {level!r}; only with "always" is what a client was '
        "told safe from a power cut"
    )


def _read_cluster(reading: Reading, document: Mapping[str, object]) -> Mapping[str, str]:
    """The values of ``[cluster]``; an empty string where one is missing or wrong."""
    if "cluster" not in document:
        reading.add("cluster", "is missing; write the table [cluster]")
        return dict.fromkeys(CLUSTER_KEYS, "")
    defaults = {"storage": STORAGE_DEFAULT, "sync": SYNC_LEVELS[0]}
    table = {**defaults, **reading.table("cluster", document["cluster"])}
    reading.unknown("cluster", table, CLUSTER_KEYS)
    examples = ("orders", default_engine(), "kv", *defaults.values())
    texts = {
        key: reading.text(f"cluster.{key}", table, example)
        for key, example in zip(CLUSTER_KEYS, examples, strict=True)
    }
    cluster_id = texts["id"]
    if cluster_id is not None and (problem := cluster_id_problem(cluster_id)):
        reading.add("cluster.id", problem)
    if texts["sync"] is not None and (problem := sync_problem(texts["sync"])):
        reading.add("cluster.sync", problem)
    for key, group in (
        ("engine", plugins.ENGINES),
        ("state_machine", plugins.STATE_MACHINES),
        ("storage", plugins.STORAGES),
    ):
        name = texts[key]
        try:
            if name is not None:
                plugins.check_offered(group, name)
        except PluginError as error:
            reading.add(f"cluster.{key}", str(error))
            texts[key] = None
    return {key: text or "" for key, text in texts.items()}


def _read_engines(reading: Reading, document: Mapping[str, object], chosen: str) -> object | None:
    """The options of the chosen engine; those of the others in the file are checked as well."""
    tables = document.get("engine")
    if isinstance(tables, str):
        reading.add("engine", "holds tables [engine.NAME]; the engine's name is cluster.engine")
        tables = None
    options: object | None = None
    named = reading.table("engine", tables)
    for name in dict.fromkeys([*named, *([chosen] if chosen else [])]):
        key = f"engine.{name}"
        try:
            plugin = plugins.find_engine(name)
        except PluginError as error:
            reading.add(key if name in named else "cluster.engine", str(error))
            continue
        read = read_record(reading, key, reading.table(key, named.get(name)), plugin.options)
        if name == chosen:
            options = read
    return options


def _read_nodes(reading: Reading, tables: object) -> list[NodeDraft]:
    if isinstance(tables, dict):
        reading.add("node", "is a single table; write [[node]] with double brackets for each node")
        return []
    if reading.value("node", tables, list) is None:
        return []
    drafts = [
        _read_node(reading, f"node[{at}]", cast("Mapping[str, object]", table))
        for at, table in enumerate(cast("list[object]", tables), start=1)
        if reading.value(f"node[{at}]", table, dict) is not None
    ]
    reading.problems += nodes_problems(drafts)
    return drafts


def _read_node(reading: Reading, key: str, table: Mapping[str, object]) -> NodeDraft:
    reading.unknown(key, table, NODE_KEYS)
    draft = NodeDraft(key)
    if "id" not in table:
        reading.add(f"{key}.id", "is missing; write for example id = 1")
    elif (value := reading.value(f"{key}.id", table["id"], int)) is not None:
        node_id = cast("NodeId", value)
        if problem := node_id_problem(node_id):
            reading.add(f"{key}.id", problem)
        else:
            draft.id = node_id
    draft.peer = reading.address(f"{key}.peer", table, "127.0.0.1:7001")
    draft.client = reading.address(f"{key}.client", table, "127.0.0.1:8001")
    # A node listens where it is reached, unless its file says otherwise.
    draft.peer_listen, draft.client_listen = draft.peer, draft.client
    if "peer_listen" in table:
        draft.peer_listen = reading.address(f"{key}.peer_listen", table, "0.0.0.0:7001")
    if "client_listen" in table:
        draft.client_listen = reading.address(f"{key}.client_listen", table, "0.0.0.0:8001")
    draft.directory = _read_directory(reading, f"{key}.directory", table)
    return draft


def _read_directory(reading: Reading, key: str, table: Mapping[str, object]) -> Path | None:
    text = reading.text(key, table, "data/node-1")
    if text is None:
        return None
    if not text or "\0" in text:
        reading.add(key, "must be a path, and not an empty one")
        return None
    if text.startswith("~"):
        reading.add(key, f"'{text}' is taken as it stands, without a home directory; write it out")
        return None
    return Path(os.path.abspath(reading.parent / text))


def _settled(draft: NodeDraft) -> NodeConfig:
    """The node of a draft in which nothing is missing."""
    assert draft.id is not None, draft
    assert draft.directory is not None, draft
    assert draft.peer is not None, draft
    assert draft.client is not None, draft
    assert draft.peer_listen is not None, draft
    assert draft.client_listen is not None, draft
    return NodeConfig(
        id=draft.id,
        peer=draft.peer,
        client=draft.client,
        peer_listen=draft.peer_listen,
        client_listen=draft.client_listen,
        directory=draft.directory,
    )
