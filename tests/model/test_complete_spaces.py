"""The spaces that are checked every time, to the end: by the command, a process for each engine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence

import pytest

from replog.plugins import engine_names

pytestmark = pytest.mark.slow

SPACES: Sequence[tuple[str, ...]] = (
    ("--nodes", "3", "--commands", "1", "--terms", "2"),
    ("--nodes", "3", "--commands", "2", "--terms", "2", "--in-flight", "1"),
)
SECONDS_MAX = 400
STATES_MIN = 50_000
"""A space with fewer states has lost what makes it worth its time."""
UNSEEN: Mapping[str, Sequence[str]] = {
    "raft": (
        "request_vote pre=true",
        "request_vote transfer=false",
        "vote pre=true",
        "timeout_now",
        "install_snapshot",
        "read_request",
        "read_reply",
    ),
    "multipaxos": (
        "prepare pre=true",
        "promise pre=true",
        "learn_request",
        "take_over",
        "trimmed",
        "read_request",
        "read_reply",
    ),
}
"""What is never sent in these spaces, as docs/testing.md says under what they cannot see."""


@pytest.mark.parametrize("space", SPACES, ids=" ".join)
def test_space_complete(space: Sequence[str]) -> None:
    """The space is completed for every engine, breaks no rule, and holds what can go wrong:
    leaders that change, and a command that is committed before or after."""
    running = {
        engine: subprocess.Popen(
            [sys.executable, "-m", "replog", "check", "--engine", engine, "--json", *space],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for engine in engine_names()
    }
    try:
        for engine, process in running.items():
            out, complaints = process.communicate(timeout=SECONDS_MAX)
            assert (process.returncode, complaints) == (0, ""), engine
            (found,) = json.loads(out)
            assert_proven(found)
            unseen = found["unseen_messages"]
            assert unseen == list(UNSEEN.get(engine, unseen)), engine
            print(f"{engine} {' '.join(space)}: {found['states']} states in {found['seconds']} s")
    finally:
        for process in running.values():
            process.kill()
            process.wait()


def assert_proven(found: Mapping[str, object]) -> None:
    """The space was completed, nothing broke, and it was worth it."""
    assert found["complete"] is True
    assert found["violations"] == []
    states, goals = found["states"], found["goals"]
    assert isinstance(states, int)
    assert states >= STATES_MIN
    assert isinstance(goals, dict)
    assert goals["command committed, leader changed"] > 0
    assert goals["leader changed"] < states
