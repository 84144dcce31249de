"""The model checker can fail: it finds each planted bug, and shows the way to it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import paxos_bugs
import pytest
import raft_bugs
from shared_bugs import Bug

from replog.plugins import find_engine
from replog.testing.model import Bounds, Counterexample, Exploration, explore

pytestmark = pytest.mark.slow

STATES_MAX = 700_000
STEPS_MAX = 20
PLANTED: Mapping[tuple[str, Bug], Bounds] = {
    ("raft", raft_bugs.own_copy_counted_early): Bounds(terms=1, crashes=0),
    ("raft", raft_bugs.acknowledged_before_sync): Bounds(terms=1, crashes=0),
    ("raft", raft_bugs.conflict_kept): Bounds(crashes=0),
    ("raft", raft_bugs.vote_before_sync): Bounds(commands=0),
    ("raft", raft_bugs.vote_forgotten_by_restart): Bounds(commands=0),
    ("raft", raft_bugs.second_vote): Bounds(commands=0, crashes=0),
    ("raft", raft_bugs.vote_regardless_of_log): Bounds(crashes=0),
    ("raft", raft_bugs.repeated_vote_counted): Bounds(
        terms=2, commands=0, crashes=0, duplicates=1, nodes=5
    ),
    ("raft", raft_bugs.term_not_written): Bounds(commands=0),
    ("multipaxos", paxos_bugs.accepted_before_sync): Bounds(terms=1, crashes=0),
    ("multipaxos", paxos_bugs.repeated_accepted_before_sync): Bounds(
        terms=1, crashes=0, duplicates=1
    ),
    ("multipaxos", paxos_bugs.promise_before_sync): Bounds(),
    ("multipaxos", paxos_bugs.promise_forgotten_by_restart): Bounds(),
    ("multipaxos", paxos_bugs.promise_omits_votes): Bounds(crashes=0),
    ("multipaxos", paxos_bugs.told_votes_emptied): Bounds(crashes=0),
    ("multipaxos", paxos_bugs.one_promise_too_few): Bounds(crashes=0),
    ("multipaxos", paxos_bugs.accepts_below_promise): Bounds(commands=2, crashes=0),
    ("multipaxos", paxos_bugs.ballot_used_again): Bounds(),
}
"""Each bug, and bounds within which it shows."""

QUICK: Sequence[tuple[str, Bug]] = [
    ("raft", raft_bugs.own_copy_counted_early),
    ("raft", raft_bugs.acknowledged_before_sync),
    ("raft", raft_bugs.vote_forgotten_by_restart),
    ("raft", raft_bugs.second_vote),
    ("multipaxos", paxos_bugs.accepted_before_sync),
    ("multipaxos", paxos_bugs.repeated_accepted_before_sync),
    ("multipaxos", paxos_bugs.promise_forgotten_by_restart),
    ("multipaxos", paxos_bugs.ballot_used_again),
]
"""Those that are found within few states, so that the whole space can be walked as well."""


def named(case: object) -> str | None:
    """How a bug is called in the name of a test; all else as ever."""
    return getattr(case, "__name__", None)


def violation_of(found: Exploration) -> Counterexample:
    """What an exploration ended with."""
    assert found.violation is not None, f"nothing found in {found.states} states"
    assert not found.is_complete
    return found.violation


@pytest.mark.parametrize(("engine", "bug"), PLANTED, ids=named)
def test_bug_found(engine: str, bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine with one broken rule is found out, with a trace of few steps that ends there."""
    bug(monkeypatch)
    plugin, bounds = find_engine(engine), PLANTED[engine, bug]
    violation = violation_of(explore(plugin, bounds, states_max=STATES_MAX))
    assert re.match(r"I[12457]: |node \d stopped: ", violation.problem)
    steps = [int(line.split()[0]) for line in violation.trace]
    assert steps == sorted(steps)
    assert steps[-1] <= STEPS_MAX


@pytest.mark.parametrize(("engine", "bug"), QUICK, ids=named)
def test_bug_found_without_reduction(
    engine: str, bug: Bug, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole space breaks the same rule, after no fewer states and in as few steps."""
    bug(monkeypatch)
    plugin, bounds = find_engine(engine), PLANTED[engine, bug]
    reduced = explore(plugin, bounds)
    whole = explore(plugin, bounds, is_reduced=False)
    rule = violation_of(reduced).problem.partition(":")[0]
    assert violation_of(whole).problem.partition(":")[0] == rule
    assert whole.states >= reduced.states


def test_counterexample_same_under_hash_seeds() -> None:
    """A counterexample is the same lines in every process, whatever the order of its hashes."""
    bounds = PLANTED["raft", raft_bugs.vote_before_sync]
    script = (
        "import pytest, raft_bugs\n"
        "from replog.plugins import find_engine\n"
        "from replog.testing.model import Bounds, explore\n"
        "raft_bugs.vote_before_sync(pytest.MonkeyPatch())\n"
        f"found = explore(find_engine('raft'), {bounds!r})\n"
        "print(found.states, found.violation.problem, *found.violation.trace, sep='\\n')\n"
    )
    shown = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={
                **os.environ,
                "PYTHONHASHSEED": seed,
                "PYTHONPATH": str(Path(raft_bugs.__file__).parent),
            },
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    ]
    assert shown[0] == shown[1]
    assert len(shown[0].splitlines()) > 10


def test_counterexample_tells_the_story(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trace of a vote that was told before its sync shows vote, crash and second vote."""
    bug = raft_bugs.vote_before_sync
    bug(monkeypatch)
    trace = violation_of(explore(find_engine("raft"), PLANTED["raft", bug])).trace
    events = [line.split()[2] for line in trace]
    assert events.count("campaign") == 2
    assert events.count("crash") == events.count("restart") == 1
    assert [line for line in trace if " role " in line and "leader" in line]
