"""A leader's word of its term is a fence: nothing is done any more that expects an earlier one."""

from __future__ import annotations

from functools import partial

import pytest

from replog.plugins import engine_names, find_engine
from replog.testing.cluster import Cluster
from replog.testing.nodes import Outcome
from replog.types import LogIndex, NodeId, Role, TermId


def leads(cluster: Cluster, node_id: NodeId) -> bool:
    """Whether a node takes itself for the leader."""
    return cluster.nodes[node_id].replica.engine.soft_state.role is Role.LEADER


def make_leader(cluster: Cluster, node_id: NodeId) -> None:
    """Have a node campaign until it leads."""
    for _ in range(60):
        if leads(cluster, node_id):
            return
        cluster.campaign(node_id)
        cluster.tick(3)
    raise AssertionError(f"node {node_id} does not come to lead")


def leading_term(cluster: Cluster, node_id: NodeId) -> TermId:
    """Ask a leader for its term."""
    told: list[object] = []

    def hear(_: LogIndex, result: object, error: Exception | None) -> None:
        told.append(error or result)

    node = cluster.nodes[node_id]
    cluster.driver.turn(node, partial(node.turns.read_term, hear))
    assert cluster.run_until(lambda: bool(told), 200)
    (term,) = told
    assert isinstance(term, TermId)
    return term


@pytest.mark.parametrize("engine", engine_names())
def test_late_command_of_an_earlier_term(engine: str) -> None:
    """A leader that is cut off takes a command for its term.  The next one tells its own term, and
    proposes nothing else; when it has crashed, the first one leads again with its log, and the
    command comes up late: it must not be done."""
    cluster = Cluster(find_engine(engine), node_count=3)
    make_leader(cluster, 1)
    assert cluster.run_until_done(b"first", 400)
    assert cluster.run_until(cluster.is_converged, 400)
    term = leading_term(cluster, 1)
    cluster.isolate(1)
    late = cluster.driver.propose(cluster.nodes[1], b"late", expected=term)
    cluster.tick(3)
    make_leader(cluster, 2)
    later = leading_term(cluster, 2)
    assert later > term
    assert cluster.nodes[2].replica.highest_term == later
    cluster.crash(2)
    cluster.heal()
    make_leader(cluster, 3 if engine == "raft" else 1)
    assert cluster.run_until_done(b"last", 400)
    assert late.outcome is not Outcome.DONE
    assert b"late" not in cluster.nodes[3].machine.dump(b"", 100).items


@pytest.mark.parametrize("engine", engine_names())
def test_term_is_told_without_an_entry(engine: str) -> None:
    """A leader of whose term an entry is applied proposes no other to tell it."""
    cluster = Cluster(find_engine(engine), node_count=3)
    make_leader(cluster, 1)
    assert cluster.run_until_done(b"first", 400)
    first = leading_term(cluster, 1)
    last_index = cluster.nodes[1].replica.engine.status().last_index
    assert leading_term(cluster, 1) == first == cluster.nodes[1].replica.highest_term
    assert cluster.nodes[1].replica.engine.status().last_index == last_index
