"""``replog restore``: make a new cluster whose nodes begin with a backup."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from replog.cli.founding import (
    add_founding_options,
    brought_record,
    founded_document,
    print_founded,
)
from replog.cli.shared import examples, print_json

_DESCRIPTION: Final = """\
Make a new cluster from a backup: a founding record beside the configuration file, and
the directory of every node, or of one, with the backup as its first snapshot.  The new
cluster needs an id and directories of its own; it may have other nodes and another
engine, and goes on counting entries behind the backup.  Nothing is made unless all is.

On several machines, restore one node's directory on the first; copy the backup, the
record and the configuration to the others, and restore there with --founding."""

_EXAMPLES: Final = """
replog restore monday.backup --config new.toml
replog restore monday.backup --config new.toml --node 1
replog restore monday.backup --config new.toml --node 2 --founding new.founding
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments behind the word."""
    parser.description, parser.epilog = _DESCRIPTION, examples(_EXAMPLES)
    parser.add_argument("file", metavar="FILE", type=Path, help="what `replog backup` wrote")
    add_founding_options(parser, "a restore")


def run(arguments: argparse.Namespace) -> int:
    """Make the directories and say which."""
    from replog.backup import join_restored, restore_backup
    from replog.cli.backup import document, sentence
    from replog.config import load_config
    from replog.founding import founding_path

    config = load_config(arguments.config)
    record = brought_record(arguments)
    if record is None:
        record = founding_path(config, arguments.config)
        backup, made = restore_backup(arguments.file, config, record, arguments.node)
    else:
        backup, made = join_restored(arguments.file, config, record, arguments.node)
    if arguments.json:
        print_json({**document(backup), **founded_document(config, record, made)})
    else:
        print(f"read {sentence(backup)}")
        print_founded(arguments, config, record, made)
    return 0
