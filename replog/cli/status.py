"""``replog status``: ask every node of a cluster how it is, and show the answers side by side."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
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
    run_async,
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

_HEAD: Final = (
    *("NODE", "ADDRESS", "ROLE", "LEADER", "TERM", "COMMIT", "APPLIED", "LAST", "BASE"),
    "SNAPSHOT",
)

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
    "election_quorum",
    "durable",
    "base_index",
    "snapshot_index",
    "snapshot_arriving",
    "snapshots_leaving",
    "snapshot_problem",
    "differs_from",
    "disk_full",
    "waits_for",
    "voter",
    "learners",
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
    from replog.cli.asking import ask_cluster

    cluster = run_async(ask_cluster, addresses, arguments.timeout)
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
    print_table((*_HEAD, "DURABLE"), [_row(answer) for answer in cluster.answers])
    for answer in cluster.answers:
        for line in _transfers(answer):
            print(line)
    _complain_of_lost(cluster)
    for answer in cluster.answers:
        if problem := answer.text("snapshot_problem"):
            complain(f"{_name(answer)} has a problem with its snapshots: {problem}")
        for other in answer.nodes_of("differs_from"):
            complain(
                f"{_name(answer)} and node {other} are not in the same state, and what one of them "
                "answers may be wrong; as soon as a majority agrees, who differs from it stops"
            )
        if answer.problem is not None:
            complain(f"{_name(answer)} does not answer: {answer.problem}")
        elif answer.flag("disk_full"):
            complain(
                f"{_name(answer)} has a full disk and takes in no entries; free some space on the "
                "disk of its directory, and it goes on by itself"
            )
        elif waits_for := answer.nodes("waits_for"):
            complain(
                f"{_name(answer)} takes no part yet: it waits to hear that its directory is known "
                f"to node {', '.join(map(str, waits_for))}; its log says whom it cannot reach and "
                "who refuses it"
            )


def _row(answer: NodeAnswer) -> Sequence[str]:
    name = str(answer.node_id) if answer.node_id is not None else "-"
    if answer.status is None:
        return (name, answer.address, "unreachable", *("-",) * (len(_HEAD) - 2))
    numbers = (
        *("term", "commit_index", "applied_index", "last_index"),
        *("base_index", "snapshot_index"),
    )
    return (
        name,
        answer.address,
        _role(answer),
        str(answer.number("leader") or "-"),
        *(str(answer.number(key)) for key in numbers),
        "yes" if answer.flag("durable") else "NO",
    )


def _role(answer: NodeAnswer) -> str:
    if answer.nodes("waits_for"):
        return "forming"
    return "learner" if answer.is_learner else printable(answer.text("role"))


def _complain_of_lost(cluster: ClusterAnswer) -> None:
    """Say which voters are lost, and what that leaves, as the node knows that has come furthest."""
    known = [answer for answer in cluster.answers if answer.status is not None]
    furthest = max(known, key=lambda answer: answer.number("applied_index"), default=None)
    if furthest is None or not furthest.lost_voters:
        return
    lost = furthest.lost_voters
    names = " and ".join(f"node {each}" for each in lost)
    majority = len(cluster.answers) // 2 + 1
    commits = furthest.number("commit_quorum") or majority
    elects = furthest.number("election_quorum") or majority
    needed = str(commits) if commits == elects else f"{elects} (to elect) and {commits} (to commit)"
    were, have = ("voters were", "have") if len(lost) > 1 else ("voter was", "has")
    complain(
        f"{len(lost)} {were} lost: {names} {have} come back without a vote, so {needed} of the "
        f"{len(cluster.answers) - len(lost)} voters that are left must run"
    )


def _transfers(answer: NodeAnswer) -> Iterator[str]:
    """A line for each snapshot that is on its way to the node, or from it."""
    status = answer.status or {}
    arriving = status.get("snapshot_arriving")
    if isinstance(arriving, dict):
        source = arriving.get("source")
        whence = f"from node {source}" if source else "and knows no node that has it"
        yield f"node {answer.node_id} fetches {_progress(arriving)} {whence}"
    leaving = status.get("snapshots_leaving")
    for sent in leaving if isinstance(leaving, list) else []:
        if isinstance(sent, dict):
            yield f"node {answer.node_id} sends {_progress(sent)} to node {sent.get('node')}"


def _progress(transfer: Mapping[str, object]) -> str:
    text = (
        f"the snapshot of entry {transfer.get('index')}: {transfer.get('bytes')} of "
        f"{transfer.get('size_bytes')} bytes"
    )
    return printable(text)


def _name(answer: NodeAnswer) -> str:
    if answer.node_id is None:
        return answer.address
    return f"node {answer.node_id} ({answer.address})"
