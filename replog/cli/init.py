"""``replog init``: make the directories of a new cluster, once."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Final

from replog.cli.shared import (
    add_config_option,
    add_json_option,
    examples,
    node_argument,
    print_json,
)
from replog.errors import DirectoryError

_DESCRIPTION: Final = """\
Make a new cluster: a founding record beside the configuration file, which names
every voter, and the directory of every node, or of one.

On several machines, make the record and one node's directory on the first; copy
the record and the configuration to the others, and run init there with
--founding.  A directory that already belongs to a node is refused."""

_EXAMPLES: Final = """
replog init --config cluster.toml
replog init --config cluster.toml --node 1
replog init --config cluster.toml --node 2 --founding example.founding
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments behind the word."""
    parser.description, parser.epilog = _DESCRIPTION, examples(_EXAMPLES)
    add_config_option(parser)
    parser.add_argument(
        "--node", metavar="ID", type=node_argument, help="make this node's directory alone"
    )
    parser.add_argument(
        "--founding",
        metavar="RECORD",
        type=Path,
        help="the founding record that was made on another machine; needs --node",
    )
    add_json_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Make the directories and say which."""
    from replog.config import load_config
    from replog.founding import found_cluster, founding_path, join_founding

    config = load_config(arguments.config)
    record: Path | None = arguments.founding
    if record is None:
        record = founding_path(config, arguments.config)
        made = found_cluster(config, record, arguments.node)
    elif arguments.node is None:
        raise DirectoryError(
            "--founding needs --node: a record that was made elsewhere serves for the one node of "
            "this machine"
        )
    else:
        made = [join_founding(config, record, arguments.node)]
    if arguments.json:
        document = {
            "cluster_id": config.cluster_id,
            "engine": config.engine,
            "storage": config.storage,
            "founding": str(record),
            "made": [{"node": node_id, "directory": str(path)} for node_id, path in made],
        }
        print_json(document)
        return 0
    if arguments.founding is None:
        print(f"founded cluster '{config.cluster_id}' in {record}")
    for node_id, path in made:
        print(f"made the directory of node {node_id}: {path}")
    file = shlex.quote(str(arguments.config))
    print(f"start it with: replog serve --config {file} --node {made[0][0]}")
    return 0
