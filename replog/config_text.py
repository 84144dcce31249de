"""Write configurations: a commented example to begin from, and any configuration as TOML.

The example is generated from the records themselves, so it cannot miss a key or misstate a default:
each limit and each option of the chosen engine stands in it as a comment, with the first sentence
of its attribute's docstring and its default.  Docstrings of attributes do not exist at run time, so
they are read from the source; where a distribution ships none, the explanation is left out.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from replog.limits import Limits
from replog.plugins import engine_names, find_engine

if TYPE_CHECKING:
    from replog.config import Config

_ENGINE_PREFERRED: Final = "raft"

_HEAD: Final = """\
# A replicated log on three nodes of one machine.  Give the same file to every node.
# What stands behind a # is the default.

[cluster]
# Nodes refuse to talk to nodes of another cluster.
id = "example"
# How the nodes agree.
engine = {engine}
# What the log is for.
state_machine = "kv"
# Where the log is kept: "wal" is durable, "memory" is lost with the process.
# storage = "wal"
# "always": nothing is acknowledged before it is synced to disk.  "os": the operating system writes
# it when it likes, and a power cut loses it.
# sync = "always"
"""

_NODE: Final = """
[[node]]
id = {id}
peer = "127.0.0.1:{peer_port}"
client = "127.0.0.1:{client_port}"
directory = "data/node-{id}"
"""

_NODE_EXPLAINED: Final = """
[[node]]
# 1 to 65535, never given to another node.
id = {id}
# Where the other nodes reach it, and where clients do.
peer = "127.0.0.1:{peer_port}"
client = "127.0.0.1:{client_port}"
# Where it keeps its identity and its log; relative to this file.
directory = "data/node-{id}"
# Where it listens, if not where it is reached.
# peer_listen = "127.0.0.1:{peer_port}"
# client_listen = "127.0.0.1:{client_port}"
"""


def default_engine() -> str:
    """What a new configuration names unless it is told; a file always names its engine itself.

    Raft, which more people know; the first that is installed where Raft is not.
    """
    names = engine_names()
    return names[0] if names and _ENGINE_PREFERRED not in names else _ENGINE_PREFERRED


def config_example(engine: str | None = None) -> str:
    """A commented configuration of three nodes on loopback, as ``replog config example`` prints it.

    ``engine`` of ``None`` is the :func:`default_engine`.  Raises
    :class:`~replog.errors.PluginError` if there is no such engine.
    """
    engine = default_engine() if engine is None else engine
    plugin = find_engine(engine)
    nodes = [
        text.format(id=at, peer_port=7000 + at, client_port=8000 + at)
        for at, text in enumerate((_NODE_EXPLAINED, _NODE, _NODE), start=1)
    ]
    title = " ".join(plugin.title.split())
    return "".join(
        (
            _HEAD.format(engine=_string(engine)),
            *nodes,
            f"\n# {title}\n[engine.{_key(engine)}]\n",
            *_explained(plugin.options),
            "\n[limits]\n",
            *_explained(Limits),
        )
    )


def config_toml(config: Config) -> str:
    """The configuration as TOML, which ``load_config`` reads back as an equal one.

    Limits and options at their defaults are left out, so that the text says what was decided.
    """
    lines = [
        "[cluster]",
        f"id = {_string(config.cluster_id)}",
        f"engine = {_string(config.engine)}",
        f"state_machine = {_string(config.state_machine)}",
        f"storage = {_string(config.storage)}",
        f"sync = {_string(config.sync)}",
    ]
    for node in config.nodes:
        lines += ["", "[[node]]", f"id = {node.id}"]
        lines += [f"peer = {_string(str(node.peer))}", f"client = {_string(str(node.client))}"]
        if node.peer_listen != node.peer:
            lines.append(f"peer_listen = {_string(str(node.peer_listen))}")
        if node.client_listen != node.client:
            lines.append(f"client_listen = {_string(str(node.client_listen))}")
        lines.append(f"directory = {_string(str(node.directory))}")
    for head, values in (
        (f"[engine.{_key(config.engine)}]", config.engine_options),
        ("[limits]", config.limits),
    ):
        if decided := list(_decided(values)):
            lines += ["", head, *decided]
    return "\n".join(lines) + "\n"


def first_sentences(made: type) -> Mapping[str, str]:
    """The first sentence of each attribute's docstring, by the attribute's name.

    An attribute without one is left out; so are all of them where there is no source.
    """
    # The parser costs more than a command line's start should, and only the example needs it.
    import ast
    import inspect

    try:
        body = ast.parse(inspect.getsource(made).lstrip()).body[0]
    except (OSError, TypeError, SyntaxError):
        return {}
    found: dict[str, str] = {}
    statements = body.body if isinstance(body, ast.ClassDef) else []
    for before, after in pairwise(statements):
        if (
            isinstance(before, ast.AnnAssign)
            and isinstance(before.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            text = " ".join(after.value.value.split())
            sentence, stop, _ = text.partition(". ")
            found[before.target.id] = sentence + stop.strip()
    return found


def _explained(made: type) -> Iterable[str]:
    """Every field as comments: what it means, then its default as it would be written."""
    assert dataclasses.is_dataclass(made), made
    sentences = first_sentences(made)
    for field in dataclasses.fields(made):
        if field.name in sentences:
            yield f"# {sentences[field.name]}\n"
        yield f"# {field.name} = {_literal(field.default)}\n"


def _decided(values: object) -> Iterable[str]:
    """The fields that differ from their defaults, as lines."""
    assert dataclasses.is_dataclass(values), values
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        if value != field.default:
            yield f"{field.name} = {_literal(value)}"


def _literal(value: object) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    assert isinstance(value, int | float), value
    return repr(value)


def _key(name: str) -> str:
    """A name as a part of a table's head: bare if it may be."""
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else _string(name)


def _string(text: str) -> str:
    """A basic string of TOML: JSON's, but for one character that TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
