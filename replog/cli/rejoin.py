"""``replog rejoin``: bring a node back that lost its directory, as a learner."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from replog.cli.shared import (
    add_config_option,
    add_json_option,
    examples,
    node_argument,
    print_json,
    run_async,
    seconds_argument,
)

if TYPE_CHECKING:
    from replog.config import Config
    from replog.rejoin import LearnerDirectory

TIMEOUT_SECONDS: Final = 30.0
"""Longer than a cluster needs to notice that a node is gone, and to elect a leader."""

_DESCRIPTION: Final = """\
Bring a node back that lost its directory.  On its machine: the directory is made under a
new incarnation, and the cluster takes that in, in the place of the one that was lost, as
a learner: it gets everything and has no vote, for it has forgotten how it voted.
Commits still need a quorum of all voters, of whom one is lost.

The other nodes run and this one does not.  When something fails, mend it and run the
same again.  With --from-backup, the node begins with a backup of this very cluster and
fetches only what came later.  Exit code 1 if the cluster did not take it in."""

_EXAMPLES: Final = """
replog rejoin --config cluster.toml --node 3
replog rejoin --config cluster.toml --node 3 --from-backup monday.backup
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments behind the word."""
    parser.description, parser.epilog = _DESCRIPTION, examples(_EXAMPLES)
    add_config_option(parser)
    parser.add_argument(
        "--node", metavar="ID", type=node_argument, required=True, help="the node that comes back"
    )
    parser.add_argument(
        "--from-backup",
        metavar="FILE",
        type=Path,
        dest="backup",
        help="what `replog backup` wrote of this cluster, for the node to begin with",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=seconds_argument,
        default=TIMEOUT_SECONDS,
        help="how long to wait for each of the cluster's two answers (default: %(default)g)",
    )
    add_json_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Make the directory, have the node taken in, and say so."""
    from replog.config import load_config
    from replog.rejoin import admit_learner, coming_back, fetch_founding, make_learner

    config, node_id = load_config(arguments.config), arguments.node
    # A slip is found before anything is made.
    learner = coming_back(config, node_id, arguments.backup)
    if sys.stderr.isatty():
        print(f"asking cluster '{config.cluster_id}'", file=sys.stderr)
    founding = run_async(fetch_founding, config, learner, arguments.timeout)
    made = make_learner(config, learner, founding, arguments.backup)
    if not arguments.json:
        _print_made(made)
    if sys.stderr.isatty():
        print(f"waiting for cluster '{config.cluster_id}' to take it in", file=sys.stderr)
    index = run_async(admit_learner, config, made.learner, arguments.timeout)
    if arguments.json:
        print_json(
            {
                "cluster_id": config.cluster_id,
                "node": node_id,
                "directory": str(made.path),
                "incarnation": made.learner.incarnation,
                "made": made.is_new,
                "backup_index": made.backup.meta.last.index if made.backup else None,
                "index": index,
            }
        )
        return 0
    _print_admitted(config, made, index, arguments.config)
    return 0


def _print_made(made: LearnerDirectory) -> None:
    node_id, incarnation = made.learner.node_id, made.learner.incarnation
    how = "made" if made.is_new else "found"
    print(f"{how} the directory of node {node_id}: {made.path} (incarnation {incarnation})")
    if made.backup is not None:
        print(f"it begins with the state up to entry {made.backup.meta.last.index}")


def _print_admitted(config: Config, made: LearnerDirectory, index: int, file: Path) -> None:
    node_id = made.learner.node_id
    print(f"cluster '{config.cluster_id}' has taken node {node_id} in as a learner (entry {index})")
    print(f"start it with: replog serve --config {shlex.quote(str(file))} --node {node_id}")
