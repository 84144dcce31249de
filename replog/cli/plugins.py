"""``replog plugins``: what is installed, and what is wrong with it."""

from __future__ import annotations

import argparse
from typing import Final

from replog import plugins
from replog.cli.shared import (
    add_json_option,
    complain,
    examples,
    print_json,
    print_table,
    printable,
)

_EXAMPLES: Final = """
replog plugins
replog plugins --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments behind the word."""
    parser.description = (
        "List the engines, state machines, storages and commands that are installed.  Exit code 1 "
        "if one of\nthem cannot be used."
    )
    parser.epilog = examples(_EXAMPLES)
    add_json_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """List them; 1 if one is broken."""
    records = plugins.installed()
    broken = [record for record in records if record.problem is not None]
    if arguments.json:
        documents = [
            {
                "kind": plugins.NOUNS[record.group],
                "name": record.name,
                "title": record.title,
                "distribution": record.distribution,
                "version": record.version,
                "problem": record.problem,
            }
            for record in records
        ]
        print_json({"plugins": documents})
    else:
        rows = [
            (
                plugins.NOUNS[record.group],
                printable(record.name),
                printable(f"{record.distribution} {record.version}"),
                printable(record.title) if record.problem is None else "BROKEN, see below",
            )
            for record in records
        ]
        print_table(("KIND", "NAME", "FROM", "WHAT IT IS"), rows)
    for record in broken:
        complain(record.problem or "")
    return 1 if broken else 0
