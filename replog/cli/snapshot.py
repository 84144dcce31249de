"""``replog snapshot``: have nodes take a snapshot, or list those in a node's directory."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from replog.cli.shared import (
    add_cluster_options,
    add_json_option,
    cluster_of,
    complain,
    examples,
    node_argument,
    print_json,
    print_table,
    printable,
    run_async,
)
from replog.errors import AddressError, ConfigError, DirectoryError, Unavailable

if TYPE_CHECKING:
    from replog.cli.asking import NodeAnswer
    from replog.config import Config
    from replog.storage.inspection import SnapshotReport
    from replog.types import NodeId

TAKING_SECONDS: Final = 600.0
"""How long to wait for a snapshot unless told: gigabytes take minutes."""

_STATUS_SECONDS_MAX: Final = 10.0
"""How long a node may take to say that it is there."""

_EXAMPLES: Final = """
replog snapshot take --config cluster.toml
replog snapshot list data/node-1
"""

_TAKE: Final = """\
Have nodes take a snapshot of what they have applied, each to its own disk, and wait
until it is durable: one node, or every one that answers.  A node that has one of as
much already names that.  Exit code 1 if a node that was asked took none."""

_TAKE_EXAMPLES: Final = """
replog snapshot take --config cluster.toml
replog snapshot take --connect 127.0.0.1:8001 --node 2 --json
"""

_LIST: Final = """\
List the snapshots in a node's directory, each read to its end.  Nothing is changed,
and the node may be running.  Exit code 1 if one is damaged."""

_LIST_EXAMPLES: Final = """
replog snapshot list data/node-1
replog snapshot list --config cluster.toml --node 1 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments behind the word."""
    parser.description = "Have nodes take a snapshot, or list those in a node's directory."
    parser.epilog = examples(_EXAMPLES)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    take = actions.add_parser(
        "take",
        help="have nodes take a snapshot now",
        description=_TAKE,
        epilog=examples(_TAKE_EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_cluster_options(take)
    take.set_defaults(timeout=TAKING_SECONDS)
    take.add_argument(
        "--node", metavar="ID", type=node_argument, help="ask this node alone (default: all)"
    )
    add_json_option(take)
    listed = actions.add_parser(
        "list",
        help="list the snapshots in a node's directory, and the first damage in each",
        description=_LIST,
        epilog=examples(_LIST_EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    listed.add_argument(
        "directory", metavar="DIR", type=Path, nargs="?", help="the directory of one node"
    )
    listed.add_argument(
        "--config", metavar="FILE", type=Path, help="the configuration that names it; needs --node"
    )
    listed.add_argument(
        "--node", metavar="ID", type=node_argument, help="the node of the configuration"
    )
    add_json_option(listed)


def run(arguments: argparse.Namespace) -> int:
    """Take, or list."""
    return _take(arguments) if arguments.action == "take" else _list(arguments)


# -- take --


def _take(arguments: argparse.Namespace) -> int:
    cluster = cluster_of(arguments)
    answers = run_async(_ask_all, cluster, arguments.node, arguments.timeout)
    if arguments.json:
        print_json({"snapshots": [_taken_document(answer) for answer in answers]})
    elif any(answer.status is not None for answer in answers):
        _print_taken([answer for answer in answers if answer.status is not None])
    for answer in answers:
        if answer.status is None:
            complain(f"node {answer.node_id} ({answer.address}) took no snapshot: {answer.problem}")
    # Who does not run is asked for nothing, unless nobody else was.
    is_refused = any(answer.status is None and answer.hello is not None for answer in answers)
    is_taken = any(answer.status is not None for answer in answers)
    return 0 if is_taken and not is_refused else 1


async def _ask_all(
    cluster: Config | Sequence[str], node_id: NodeId | None, seconds: float
) -> Sequence[NodeAnswer]:
    """Ask every node of a cluster, or one, at the same time; by id."""
    import trio

    from replog.cli.asking import ask_snapshot
    from replog.config import Config

    answers: dict[NodeId, NodeAnswer] = {}

    async def ask(asked_id: NodeId, address: str) -> None:
        answers[asked_id] = await ask_snapshot(address, seconds, cluster_id, asked_id)

    addresses: Mapping[NodeId, str]
    cluster_id = ""
    if isinstance(cluster, Config):
        cluster_id = cluster.cluster_id
        nodes = cluster.nodes if node_id is None else [cluster.node(node_id)]
        addresses = {node.id: str(node.client) for node in nodes}
    else:
        addresses = await _find_nodes(cluster, node_id, min(seconds, _STATUS_SECONDS_MAX))
    async with trio.open_nursery() as nursery:
        for asked_id, address in addresses.items():
            nursery.start_soon(ask, asked_id, address)
    return [answers[asked_id] for asked_id in sorted(answers)]


async def _find_nodes(
    addresses: Sequence[str], node_id: NodeId | None, seconds: float
) -> Mapping[NodeId, str]:
    """The address of every node that the nodes at ``addresses`` name, or of one."""
    from replog.cli.asking import ask_cluster

    cluster = await ask_cluster(addresses, seconds)
    found = {
        answer.node_id: answer.address
        for answer in cluster.answers
        if answer.node_id is not None and node_id in (None, answer.node_id)
    }
    if found:
        return found
    if cluster.cluster_id is None:
        reasons = "; ".join(f"{answer.address}: {answer.problem}" for answer in cluster.answers)
        raise Unavailable(f"no node answered ({reasons}); see that the nodes run")
    raise AddressError(f"cluster '{cluster.cluster_id}' has no node {node_id}; correct the id")


def _taken_document(answer: NodeAnswer) -> Mapping[str, object]:
    return {
        "node": answer.node_id,
        "address": answer.address,
        "problem": answer.problem,
        "snapshot": answer.status,
    }


def _print_taken(answers: Sequence[NodeAnswer]) -> None:
    print_table(
        ("NODE", "INDEX", "BYTES", "CHECKSUM", "MACHINE"),
        [
            (
                str(answer.node_id),
                str(answer.number("index")),
                str(answer.number("bytes")),
                printable(answer.text("checksum")),
                printable(answer.text("machine")),
            )
            for answer in answers
        ],
    )


# -- list --


def _list(arguments: argparse.Namespace) -> int:
    directory = _directory(arguments)
    from replog.storage.directory import read_identity
    from replog.storage.files import RealFiles
    from replog.storage.inspection import inspect_snapshots

    files = RealFiles()
    identity = read_identity(files, directory)
    found = inspect_snapshots(files, directory, identity.cluster_id)
    if arguments.json:
        print_json(
            {
                "directory": str(directory),
                "cluster_id": identity.cluster_id,
                "node_id": identity.node_id,
                "snapshots": [_listed_document(snapshot) for snapshot in found],
            }
        )
    elif found:
        _print_listed(found)
    else:
        print(f"{printable(str(directory))} holds no snapshot")
    for snapshot in found:
        if snapshot.damage:
            complain(snapshot.damage)
    return 1 if any(snapshot.damage for snapshot in found) else 0


def _directory(arguments: argparse.Namespace) -> Path:
    """The directory that the options name."""
    directory: Path | None = arguments.directory
    if arguments.config is None:
        if directory is None or arguments.node is not None:
            raise DirectoryError("no directory is named; give DIR, or --config FILE and --node ID")
        return directory
    if directory is not None:
        raise DirectoryError("two directories are named; give DIR, or --config FILE and --node ID")
    from replog.config import load_config

    config = load_config(arguments.config)
    if arguments.node is None:
        raise ConfigError(config.source, ["node: name one of its nodes with --node ID"])
    return config.node(arguments.node).directory


def _listed_document(snapshot: SnapshotReport) -> Mapping[str, object]:
    is_known = snapshot.index > 0
    return {
        "file": snapshot.file,
        "bytes": snapshot.size_bytes if is_known else None,
        "checksum": f"{snapshot.checksum:08x}" if is_known else None,
        "index": snapshot.index if is_known else None,
        "term": snapshot.term if is_known else None,
        "time_ms": snapshot.time_ms if is_known else None,
        "machine": snapshot.machine if is_known else None,
        "damage": snapshot.damage or None,
    }


def _print_listed(found: Sequence[SnapshotReport]) -> None:
    print_table(
        ("INDEX", "BYTES", "CHECKSUM", "MACHINE", "STATE"),
        [
            (
                str(snapshot.index or "-"),
                str(snapshot.size_bytes or "-"),
                f"{snapshot.checksum:08x}" if snapshot.index else "-",
                printable(snapshot.machine) or "-",
                "DAMAGED" if snapshot.damage else "intact",
            )
            for snapshot in found
        ],
    )
