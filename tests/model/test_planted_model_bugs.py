"""The model checker can fail: it finds each planted bug, and shows the way to it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import multipaxos_model_bugs
import pytest
import raft_model_bugs

from replog.plugins import find_engine
from replog.testing.model import Bounds, Counterexample, Exploration, explore

pytestmark = pytest.mark.slow

Bug = Callable[[pytest.MonkeyPatch], None]

STATES_MAX = 700_000
STEPS_MAX = 20
PLANTED = [
    (engine, bug, bounds)
    for engine, bugs in (
        ("raft", raft_model_bugs.BUGS),
        ("multipaxos", multipaxos_model_bugs.BUGS),
    )
    for bug, bounds in bugs.items()
]
QUICK = [
    ("raft", raft_model_bugs.own_copy_counted_early),
    ("raft", raft_model_bugs.entries_acknowledged_early),
    ("raft", raft_model_bugs.vote_forgotten),
    ("raft", raft_model_bugs.votes_twice),
    ("multipaxos", multipaxos_model_bugs.vote_told_early),
    ("multipaxos", multipaxos_model_bugs.repeated_vote_told_early),
    ("multipaxos", multipaxos_model_bugs.promise_forgotten),
    ("multipaxos", multipaxos_model_bugs.ballot_used_again),
]
"""Those that are found within few states, so that the whole space can be walked as well."""


def bounds_of(engine: str, bug: Bug) -> Bounds:
    """The bounds within which a bug shows."""
    return next(bounds for each, other, bounds in PLANTED if (each, other) == (engine, bug))


def violation_of(found: Exploration) -> Counterexample:
    """What an exploration ended with."""
    assert found.violation is not None, f"nothing found in {found.states} states"
    assert not found.is_complete
    return found.violation


@pytest.mark.parametrize(
    ("engine", "bug", "bounds"), PLANTED, ids=[f"{each[0]}-{each[1].__name__}" for each in PLANTED]
)
def test_bug_found(engine: str, bug: Bug, bounds: Bounds, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine with one broken rule is found out, with a trace of few steps that ends there."""
    bug(monkeypatch)
    violation = violation_of(explore(find_engine(engine), bounds, states_max=STATES_MAX))
    assert re.match(r"I[12457]: |node \d stopped: ", violation.problem)
    steps = [int(line.split()[0]) for line in violation.trace]
    assert steps == sorted(steps)
    assert steps[-1] <= STEPS_MAX


@pytest.mark.parametrize(
    ("engine", "bug"), QUICK, ids=[f"{engine}-{bug.__name__}" for engine, bug in QUICK]
)
def test_bug_found_without_reduction(
    engine: str, bug: Bug, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole space breaks the same rule, after no fewer states and in as few steps."""
    bug(monkeypatch)
    plugin, bounds = find_engine(engine), bounds_of(engine, bug)
    reduced = explore(plugin, bounds)
    whole = explore(plugin, bounds, is_reduced=False)
    rule = violation_of(reduced).problem.partition(":")[0]
    assert violation_of(whole).problem.partition(":")[0] == rule
    assert whole.states >= reduced.states


def test_counterexample_same_under_hash_seeds() -> None:
    """A counterexample is the same lines in every process, whatever the order of its hashes."""
    script = (
        "import pytest, raft_model_bugs as bugs\n"
        "from replog.plugins import find_engine\n"
        "from replog.testing.model import explore\n"
        "bugs.vote_told_early(pytest.MonkeyPatch())\n"
        "found = explore(find_engine('raft'), bugs.BUGS[bugs.vote_told_early])\n"
        "print(found.states, found.violation.problem, *found.violation.trace, sep='\\n')\n"
    )
    shown = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parent)},
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
    bug = raft_model_bugs.vote_told_early
    bug(monkeypatch)
    trace = violation_of(explore(find_engine("raft"), raft_model_bugs.BUGS[bug])).trace
    events = [line.split()[2] for line in trace]
    assert events.count("campaign") == 2
    assert events.count("crash") == events.count("restart") == 1
    assert [line for line in trace if " role " in line and "leader" in line]
