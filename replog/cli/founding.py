"""What ``replog init`` and ``replog restore`` share: a cluster is founded on one machine, and its
record is carried to the others."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from replog.cli.shared import add_config_option, add_json_option, node_argument
from replog.errors import DirectoryError
from replog.types import NodeId

if TYPE_CHECKING:
    from replog.config import Config


def add_founding_options(parser: argparse.ArgumentParser, maker: str) -> None:
    """Declare ``--config``, ``--node``, ``--founding`` and ``--json``; ``maker`` makes the record
    on another machine."""
    add_config_option(parser)
    parser.add_argument(
        "--node", metavar="ID", type=node_argument, help="make this node's directory alone"
    )
    parser.add_argument(
        "--founding",
        metavar="RECORD",
        type=Path,
        help=f"the founding record that {maker} on another machine made; needs --node",
    )
    add_json_option(parser)


def brought_record(arguments: argparse.Namespace) -> Path | None:
    """The founding record that was made elsewhere; ``None``: the cluster is founded here.

    Raises :class:`~replog.errors.DirectoryError` if it is to serve for more than one node.
    """
    record: Path | None = arguments.founding
    if record is not None and arguments.node is None:
        raise DirectoryError(
            "--founding needs --node: a record that was made elsewhere serves for the one node of "
            "this machine"
        )
    return record


def founded_document(
    config: Config, record: Path, made: Sequence[tuple[NodeId, Path]]
) -> dict[str, object]:
    """What was made, as JSON has it."""
    return {
        "cluster_id": config.cluster_id,
        "engine": config.engine,
        "storage": config.storage,
        "founding": str(record),
        "made": [{"node": node_id, "directory": str(path)} for node_id, path in made],
    }


def print_founded(
    arguments: argparse.Namespace,
    config: Config,
    record: Path,
    made: Sequence[tuple[NodeId, Path]],
) -> None:
    """Say what was made, and what comes next."""
    if arguments.founding is None:
        print(f"founded cluster '{config.cluster_id}' in {record}")
    for node_id, path in made:
        print(f"made the directory of node {node_id}: {path}")
    file = shlex.quote(str(arguments.config))
    print(f"start it with: replog serve --config {file} --node {made[0][0]}")
