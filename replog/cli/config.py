"""``replog config``: print an example configuration, or check one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from replog.cli.shared import add_json_option, examples, print_json

_EXAMPLES: Final = """
replog config example > cluster.toml
replog config check cluster.toml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments behind the word."""
    parser.description = "Print an example configuration, or check one."
    parser.epilog = examples(_EXAMPLES)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    example = actions.add_parser(
        "example",
        help="print a commented configuration of three nodes",
        description="Print a commented configuration of three nodes on this machine, in which "
        "every key stands with its default and its meaning.",
        epilog=examples("replog config example > cluster.toml"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    example.add_argument(
        "--engine", metavar="NAME", help="how the nodes agree; `replog plugins` lists the engines"
    )
    check = actions.add_parser(
        "check",
        help="say everything that is wrong with a configuration file",
        description="Say everything that is wrong with a configuration file.",
        epilog=examples("replog config check cluster.toml"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("file", metavar="FILE", type=Path)
    add_json_option(check)


def run(arguments: argparse.Namespace) -> int:
    """Print the example, or check the file."""
    if arguments.action == "example":
        return _print_example(arguments.engine)
    from replog.config import load_config

    config = load_config(arguments.file)
    if arguments.json:
        document = {
            "file": str(arguments.file),
            "cluster_id": config.cluster_id,
            "engine": config.engine,
            "state_machine": config.state_machine,
            "storage": config.storage,
            "nodes": [node.id for node in config.nodes],
        }
        print_json(document)
    else:
        print(
            f"{arguments.file} is good: cluster '{config.cluster_id}' of {len(config.nodes)} "
            f"nodes, engine {config.engine}, state machine {config.state_machine}, storage "
            f"{config.storage}"
        )
    return 0


def _print_example(engine: str | None) -> int:
    from replog.config_text import config_example

    text = config_example(engine)
    # Configurations are UTF-8 whatever the terminal's encoding is.
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode())
    return 0
