"""``replog init``: make the directories of a new cluster, once."""

from __future__ import annotations

import argparse
from typing import Final

from replog.cli.founding import (
    add_founding_options,
    brought_record,
    founded_document,
    print_founded,
)
from replog.cli.shared import examples, print_json

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
    add_founding_options(parser, "init")


def run(arguments: argparse.Namespace) -> int:
    """Make the directories and say which."""
    from replog.config import load_config
    from replog.founding import found_cluster, founding_path, join_founding

    config = load_config(arguments.config)
    record = brought_record(arguments)
    if record is None:
        record = founding_path(config, arguments.config)
        made = found_cluster(config, record, arguments.node)
    else:
        made = [join_founding(config, record, arguments.node)]
    if arguments.json:
        print_json(founded_document(config, record, made))
    else:
        print_founded(arguments, config, record, made)
    return 0
