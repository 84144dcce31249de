"""``replog backup``: copy the newest snapshot of a node to a file, while the node goes on."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from replog.cli.shared import (
    add_config_option,
    add_json_option,
    complain,
    examples,
    node_argument,
    print_json,
    printable,
    run_async,
    seconds_argument,
)
from replog.cli.snapshot import TAKING_SECONDS
from replog.errors import DirectoryError, Unavailable

if TYPE_CHECKING:
    from replog.backup import Backup
    from replog.config import Config
    from replog.types import LogIndex, NodeId

_DESCRIPTION: Final = """\
Copy what a node holds to a new file, verified to its end.  On the node's machine: a
node that runs takes a snapshot first, and goes on; of one that does not run, its
newest snapshot is copied.  `replog restore` makes a new cluster from the file."""

_EXAMPLES: Final = """
replog backup --config cluster.toml --node 1 monday.backup
replog backup --config cluster.toml --node 1 monday.backup --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments behind the word."""
    parser.description, parser.epilog = _DESCRIPTION, examples(_EXAMPLES)
    add_config_option(parser)
    parser.add_argument(
        "--node", metavar="ID", type=node_argument, required=True, help="whose state to copy"
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="a file that does not exist yet")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=seconds_argument,
        default=TAKING_SECONDS,
        help="how long to wait for the node's snapshot (default: %(default)g)",
    )
    add_json_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Have a snapshot taken, copy it, and say what it holds."""
    from replog.backup import write_backup
    from replog.config import load_config
    from replog.storage.files import RealFiles
    from replog.storage.snapshot_copy import check_absent

    config, node_id = load_config(arguments.config), arguments.node
    directory = config.node(node_id).directory
    _check_owner(config, node_id)
    # A slip is found before the node works for it.
    check_absent(RealFiles(), arguments.file)
    taken_index = _take(config, node_id, arguments.timeout)
    backup = write_backup(directory, arguments.file, taken_index or 0)
    if arguments.json:
        print_json({"node": node_id, "running": taken_index is not None, **document(backup)})
    else:
        print(f"wrote {sentence(backup)}, from node {node_id}")
    return 0


def document(backup: Backup) -> Mapping[str, object]:
    """What ``--json`` says of a backup."""
    info = backup.info
    return {
        "file": str(info.path),
        "backup_of": backup.cluster_id,
        "machine": info.meta.machine,
        "index": info.meta.last.index,
        "time_ms": info.meta.time_ms,
        "bytes": info.size_bytes,
        "checksum": f"{info.checksum:08x}",
    }


def sentence(backup: Backup) -> str:
    """What a backup is, for people."""
    info = backup.info
    return printable(
        f"{info.path}: the state {info.meta.machine!r} of cluster {backup.cluster_id!r} up to "
        f"entry {info.meta.last.index}, {info.size_bytes} bytes, checksum {info.checksum:08x}"
    )


def _check_owner(config: Config, node_id: NodeId) -> None:
    """Raise unless the node's directory is here, and its own."""
    from replog.storage.directory import read_identity
    from replog.storage.files import RealFiles

    directory = config.node(node_id).directory
    identity = read_identity(RealFiles(), directory)
    if (identity.cluster_id, identity.node_id) != (config.cluster_id, node_id):
        raise DirectoryError(
            f"{directory} belongs to node {identity.node_id} of cluster {identity.cluster_id!r}, "
            f"not to node {node_id} of cluster {config.cluster_id!r}; correct the configuration"
        )


def _take(config: Config, node_id: NodeId, seconds: float) -> LogIndex | None:
    """Have the node take a snapshot; where that ends, or ``None``: the node does not run."""
    from replog.cli.asking import ask_snapshot

    address = str(config.node(node_id).client)
    answer = run_async(ask_snapshot, address, seconds, config.cluster_id, node_id)
    if answer.status is not None:
        return answer.number("index")
    if answer.hello is None and answer.failure is None:
        complain(
            f"node {node_id} does not run, as it seems ({address}: {answer.problem}); the backup "
            "is of its newest snapshot"
        )
        return None
    raise Unavailable(f"node {node_id} ({address}) took no snapshot: {answer.problem}")
