"""``replog status``: ask every node of a cluster how it is, and show the answers side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from replog.cli.shared import (
    add_cluster_options,
    add_json_option,
    cluster_addresses,
    complain,
    examples,
    print_json,
    print_table,
    printable,
)

if TYPE_CHECKING:
    from replog.cli.asking import ClusterAnswer, NodeAnswer

_DESCRIPTION: Final = """\
Ask every node of a cluster how it is: those whose addresses are given, and those
that they name.  Exit code 1 unless one leader is followed by as many nodes as
must hold an entry to commit it: a majority, or what the cluster was founded with."""

_EXAMPLES: Final = """
replog status --connect 127.0.0.1:8001
replog status --config cluster.toml --json
"""

STATUS_KEYS: Final = (
    "engine",
    "role",
    "leader",
    "epoch",
    "term",
    "last_index",
    "durable_index",
    "commit_index",
    "applied_index",
    "commit_quorum",
    "durable",
    "peers",
)
"""What a node that answers says of itself, besides its id; null for one that does not."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments behind the word."""
    parser.description, parser.epilog = _DESCRIPTION, examples(_EXAMPLES)
    add_cluster_options(parser)
    add_json_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask, show, and say by the exit code whether the cluster works."""
    addresses = cluster_addresses(arguments)
    import trio

    from replog.cli.asking import ask_cluster

    cluster = trio.run(ask_cluster, addresses, arguments.timeout)
    if arguments.json:
        print_json(_document(cluster))
    else:
        _print(cluster)
    if cluster.leader_id is not None:
        return 0
    answered = sum(answer.status is not None for answer in cluster.answers)
    complain(
        "no node answered; see that the nodes run, and check the addresses"
        if answered == 0
        else f"no leader is followed by a {_quorum(cluster)}: {answered} of {len(cluster.answers)} "
        "nodes answered; see that enough nodes run, or ask again in a second"
    )
    return 1


def _quorum(cluster: ClusterAnswer) -> str:
    """How many nodes must follow a leader, itself among them, as far as the nodes say."""
    sizes = {answer.number("commit_quorum") for answer in cluster.answers} - {0}
    return f"quorum of {sizes.pop()}" if len(sizes) == 1 else "quorum"


def _document(cluster: ClusterAnswer) -> dict[str, object]:
    return {
        "cluster_id": cluster.cluster_id,
        "leader": cluster.leader_id,
        "nodes": [_node_document(answer) for answer in cluster.answers],
    }


def _node_document(answer: NodeAnswer) -> dict[str, object]:
    status = answer.status or {}
    return {
        "node": answer.node_id,
        "address": answer.address,
        "problem": answer.problem,
        **{key: status.get(key) for key in STATUS_KEYS},
    }


def _print(cluster: ClusterAnswer) -> None:
    if cluster.cluster_id is not None:
        engines = sorted({answer.text("engine") for answer in cluster.answers} - {""})
        print(f"cluster '{printable(cluster.cluster_id)}', engine {printable(', '.join(engines))}")
    head = ("NODE", "ADDRESS", "ROLE", "LEADER", "TERM", "COMMIT", "APPLIED", "LAST", "DURABLE")
    print_table(head, [_row(answer) for answer in cluster.answers])
    for answer in cluster.answers:
        if answer.problem is not None:
            complain(f"{_name(answer)} does not answer: {answer.problem}")


def _row(answer: NodeAnswer) -> Sequence[str]:
    name = str(answer.node_id) if answer.node_id is not None else "-"
    if answer.status is None:
        return (name, answer.address, "unreachable", *("-",) * 6)
    numbers = ("term", "commit_index", "applied_index", "last_index")
    return (
        name,
        answer.address,
        printable(answer.text("role")),
        str(answer.number("leader") or "-"),
        *(str(answer.number(key)) for key in numbers),
        "yes" if answer.flag("durable") else "NO",
    )


def _name(answer: NodeAnswer) -> str:
    if answer.node_id is None:
        return answer.address
    return f"node {answer.node_id} ({answer.address})"
