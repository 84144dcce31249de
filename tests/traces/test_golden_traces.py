"""Runs that everybody should have read once, kept as traces and compared byte for byte.

Each scenario is a function; its docstring says what one should see in the trace and becomes the
head of the file.  The format is described in ``docs/traces.md``.  When a change is meant to change
a trace, ``pytest tests/traces --rewrite`` writes the files anew; read the difference before you
keep it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from golden import golden_text

from replog.envelope import pack_envelope
from replog.limits import Limits
from replog.storage.protocol import Recovered
from replog.stored_log import HeldLog
from replog.testing.cluster import Cluster
from replog.testing.nodes import Outcome
from replog.types import Entry, EntryKind, HardState, NodeId, Term, entry_body
from replog_raft import PLUGIN, RaftOptions

FOLDER = Path(__file__).resolve().parent
QUIET = RaftOptions(heartbeat_ticks=500, election_ticks_min=1000, election_ticks_max=2000)
"""Ticks so long that nothing happens by itself."""

BY_ENTRIES = RaftOptions(
    heartbeat_ticks=500, election_ticks_min=1000, election_ticks_max=2000, conflict_hints=False
)
STICKY_TICKS = 10
FIGURE_8 = RaftOptions(
    heartbeat_ticks=5, election_ticks_min=STICKY_TICKS, election_ticks_max=100_000
)
"""Followers forget a lost leader soon, and still do not campaign by themselves."""


def disk(terms: Sequence[Term], term: Term, voted_for: NodeId) -> Recovered:
    """A disk with one command per term of ``terms``, and the hard state of ``term``."""
    entries = [
        Entry(
            epoch=1,
            index=index,
            term=entry_term,
            body=entry_body(
                EntryKind.COMMAND,
                1,
                entry_term,
                index,
                pack_envelope(b"%d of term %d" % (index, entry_term), 0),
            ),
        )
        for index, entry_term in enumerate(terms, 1)
    ]
    return Recovered(HardState(1, term, voted_for), HeldLog(tuple(entries)))


def election() -> Cluster:
    """Three nodes start with empty disks; none hears a leader.

    The node whose timeout is the shortest asks first whether it could win (a pre-vote, which raises
    no term and writes nothing).  Then it enters term 1 and votes for itself; its requests leave
    after that is synced, and so do the votes of the others.  A second node's vote makes it leader;
    its first act is a no-op, which is committed as soon as a second disk holds it, and which the
    others apply when they are told of the new commit index.
    """
    cluster = Cluster(PLUGIN, QUIET, seed=1)
    assert cluster.run_until(lambda: cluster.leader() != 0, 2000)
    assert cluster.is_converged()
    return cluster


def next_index_by_entries() -> Cluster:
    """A new leader finds a follower whose log went another way, and has no hints to go by.

    n1 holds the terms 1 1 1 4 4 5, n2 the terms 1 1 1 2 2 3 3 (as in Raft, figure 7).  n1 starts
    with next_index behind its own log.  Each message whose previous entry does not match is
    rejected, and next_index steps back by one entry: 7, 6, 5, 4.  At 4 the logs match; n2 voids
    what it has from there on, and takes the leader's entries.
    """
    return diverged(BY_ENTRIES)


def next_index_by_terms() -> Cluster:
    """The same two logs; now a rejection carries a hint.

    n2 answers with its last entry whose term is not above the one that it was asked about (6@t3);
    n1 goes to its own last entry whose term is not above that one's (3@t1).  One round trip, and
    next_index is 4.
    """
    return diverged(QUIET)


def diverged(options: RaftOptions) -> Cluster:
    """Let n1 repair n2."""
    disks = {
        1: disk([1, 1, 1, 4, 4, 5], term=5, voted_for=1),
        2: disk([1, 1, 1, 2, 2, 3, 3], term=5, voted_for=0),
    }
    cluster = Cluster(PLUGIN, options, node_count=2, disks=disks)
    cluster.campaign(1)
    cluster.settle()
    assert cluster.is_converged()
    return cluster


def figure_8_overwritten() -> Cluster:
    """Raft, figure 8 (d): an entry of an old term is on a majority and is lost all the same.

    At (c) entry 2@t2 comes to be on n1, n2 and n3, and n1, which leads in term 4, knows it
    (progress: n2 match=3, n3 match=2).  It must not commit it by counting, and does not: there is
    no commit event.  At (d) n1 is gone and n5, whose last entry is of term 3, wins with the votes
    of n3 and n4 (n2 refuses; an attempt before that only teaches n5 the term).  Its own entry 2@t3
    takes the place of 2@t2 everywhere.
    """
    cluster = figure_8_at_b()
    cluster.remark("(c) n1 leads in term 4; its own entry 3@t4 does not reach n3")
    cluster.hold(lambda flight: flight.to == 3 and 4 in entry_terms(flight.message))
    cluster.campaign(1)
    cluster.settle()
    # The first one may pass, since n3 must reject it before it is sent entry 2; the next may not.
    cluster.deliver(lambda flight: flight.to == 3, count=1)
    cluster.settle()
    known = {peer.node_id: peer.match_index for peer in cluster.nodes[1].status_seen.peers}
    assert known == {2: 3, 3: 2, 4: 0, 5: 0}
    assert not cluster.invariants.chosen
    cluster.remark("(d) n1 crashes; n5 leads in term 5")
    let_n5_campaign(cluster)
    assert cluster.leader() == 5
    assert [entry.term for entry in cluster.applied(3)] == [1, 3, 5]
    return cluster


def figure_8_committed() -> Cluster:
    """Raft, figure 8 (e): an entry of the leader's own term commits what lies before it.

    As before, but now n1's own entry 3@t4 reaches n2 and n3.  It is of the current term, so a
    majority commits it, and with it 2@t2.  At (e) n5 cannot win any more: an attempt teaches it the
    term, and at the next one n2 and n3 still refuse, since their last entry is of term 4 and n5's
    of term 3.
    """
    cluster = figure_8_at_b()
    cluster.remark("(c) n1 leads in term 4; its own entry 3@t4 reaches n2 and n3")
    cluster.campaign(1)
    cluster.settle()
    assert [entry.term for entry in cluster.applied(1)] == [1, 2, 4]
    cluster.remark("(e) n1 crashes; n5 asks for votes in vain")
    let_n5_campaign(cluster)
    assert cluster.nodes[5].replica.engine.term == 4
    assert cluster.leader() == 0
    return cluster


def figure_8_at_b() -> Cluster:
    """Figure 8 behind (b): n1 led in term 2, n5 in term 3, and each has its own entry 2."""
    disks = {
        1: disk([1, 2], term=3, voted_for=0),
        2: disk([1, 2], term=2, voted_for=1),
        3: disk([1], term=3, voted_for=5),
        4: disk([1], term=3, voted_for=5),
        5: disk([1, 3], term=3, voted_for=5),
    }
    # One entry per message, so that an old entry can be on a majority without the next one.
    limits = Limits(message_bytes_max=1)
    cluster = Cluster(PLUGIN, FIGURE_8, node_count=5, disks=disks, limits=limits)
    cluster.crash(5)
    cluster.partition([1], [4])
    return cluster


def let_n5_campaign(cluster: Cluster) -> None:
    """n1 crashes, and n5 tries when the others have waited long enough for n1.

    n5 was down in term 4, so its first attempt only teaches it that term.
    """
    cluster.crash(1)
    cluster.heal()
    cluster.tick(STICKY_TICKS)
    cluster.restart(5)
    for _ in range(2):
        cluster.campaign(5)
        cluster.settle()


def fail_over() -> Cluster:
    """One command, and the death of a leader that has just sent another.

    x goes its usual way: sent to both while the leader's own disk works, on two disks, committed,
    applied, answered.  y reaches n2 alone when n1 dies.  n3 asks for votes in vain, because n2's
    log is the better one (Raft §5.4.1); n2 leads, appends a no-op of its own term and finds with
    one rejection where n3's log ends.  y is committed behind x, with the no-op, and n1's client was
    told that nobody knows.
    """
    cluster = Cluster(PLUGIN, FIGURE_8)
    cluster.campaign(1)
    cluster.settle()
    cluster.remark("one command")
    cluster.propose(1, b"x")
    cluster.settle()
    cluster.remark("the next one reaches n2 alone; then the leader dies")
    cluster.hold(lambda flight: flight.to == 3 or flight.sender == 2)
    proposal = cluster.propose(1, b"y")
    cluster.settle()
    cluster.crash(1)
    cluster.drop()
    cluster.network.held.clear()
    cluster.release()
    assert proposal.outcome is Outcome.UNKNOWN
    cluster.tick(STICKY_TICKS)
    cluster.remark("n3 tries to lead, then n2")
    cluster.campaign(3)
    cluster.settle()
    assert cluster.leader() == 0
    cluster.campaign(2)
    cluster.settle()
    assert cluster.leader() == 2
    payloads = [entry.data[-1:] for entry in cluster.applied(3) if entry.data]
    assert payloads == [b"x", b"y"]
    return cluster


def install() -> Cluster:
    """A follower comes back to a leader that has trimmed what it lacks.

    n3 is cut off while four commands are committed.  The leader takes a snapshot, and trims its log
    behind it but for one entry.  n3 says where its log ends; what follows there cannot be sent any
    more, so the leader says how far the trim went (install_snapshot).  n3 asks who has a snapshot
    that reaches as far, and fetches it from n1 in two chunks.  When its machine is filled, its disk
    is told where the log begins, and then n3 acknowledges as if it had been sent the entries
    (Raft §7).
    """
    limits = Limits(trim_margin_entries=1, snapshot_chunk_bytes=400)
    cluster = Cluster(PLUGIN, FIGURE_8, limits=limits)
    cluster.campaign(1)
    cluster.settle()
    cluster.remark("n3 is cut off")
    cut = cluster.isolate(3)
    for payload in (b"a", b"b", b"c", b"d"):
        cluster.propose(1, payload)
        cluster.settle()
    cluster.remark("n1 takes a snapshot, and trims its log")
    cluster.take_snapshot(1)
    cluster.tick()
    assert cluster.nodes[1].disk.base_index == 4
    cluster.remark("n3 is back")
    cluster.mend(cut)
    assert cluster.run_until(cluster.is_converged, 3 * STICKY_TICKS)
    assert cluster.nodes[3].installed_index == 5
    assert cluster.nodes[3].disk.base_index == 5
    return cluster


def entry_terms(message: object) -> list[Term]:
    """The terms of the entries in a message."""
    entries: Sequence[Entry] = getattr(message, "entries", ())
    return [entry.term for entry in entries]


SCENARIOS: Mapping[str, Callable[[], Cluster]] = {
    scenario.__name__: scenario
    for scenario in (
        election,
        next_index_by_entries,
        next_index_by_terms,
        figure_8_overwritten,
        figure_8_committed,
        fail_over,
        install,
    )
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_trace_is_golden(name: str, pytestconfig: pytest.Config) -> None:
    """A scenario gives the very trace that was read and kept."""
    path = FOLDER / f"{name}.trace"
    text = golden_text(SCENARIOS[name])
    if pytestconfig.getoption("--rewrite", default=False):
        path.write_text(text)
    assert text.splitlines() == path.read_text().splitlines(), (
        "read the difference; if it is meant, run pytest tests/traces --rewrite"
    )


def test_golden_files_are_scenarios() -> None:
    """No golden file is left behind by a scenario that is gone."""
    assert sorted(path.stem for path in FOLDER.glob("*.trace")) == sorted(SCENARIOS)


def test_next_index_steps_counted() -> None:
    """Without hints a rejection costs a round trip per entry, with hints one per term."""

    def rejections(cluster: Cluster) -> int:
        return sum("accepted=false" in line for line in cluster.trace.lines())

    assert rejections(next_index_by_entries()) == 3
    assert rejections(next_index_by_terms()) == 1


RANDOM_RUN = """
from random import Random
from replog.testing.cluster import Cluster
from replog.testing.faults import drawn_faults
from replog_raft import PLUGIN, RaftOptions

options = RaftOptions(heartbeat_ticks=2, election_ticks_min=8, election_ticks_max=16)
cluster = Cluster(PLUGIN, options, node_count=5, seed={seed})
cluster.run(200, drawn_faults(Random({seed}), 16), propose_chance=0.3)
cluster.calm()
cluster.check_liveness(160, 160)
print(cluster.trace.text())
"""


def test_trace_repeats_under_any_hash_seed() -> None:
    """One seed gives the same bytes in processes whose hashes differ, and another seed others."""
    texts = [
        subprocess.run(
            [sys.executable, "-c", RANDOM_RUN.format(seed=seed)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        for seed, hash_seed in ((7, "1"), (7, "2"), (8, "1"))
    ]
    assert len(texts[0].splitlines()) > 1000
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_lost_proposals_traced() -> None:
    """A proposal whose node crashes ends as unknown, in the trace as well."""
    cluster = Cluster(PLUGIN, QUIET)
    cluster.campaign(1)
    cluster.settle()
    proposal = cluster.propose(1, b"x")
    cluster.crash(1)
    assert proposal.outcome is Outcome.UNKNOWN
    assert cluster.trace.lines(-1) == ["    0 n1   unknown    p1 index=2 reason=OutcomeUnknown"]
