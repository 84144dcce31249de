"""The conformance suite can fail: each rule of the protocol that is broken makes it.

And the parts of it that judge by numbers of their own are judged here.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import cast

import pytest
from shared_bugs import Bug

from replog.plugins import engine_names, find_engine
from replog.testing.conformance import check_engine, scenarios
from replog.testing.conformance.replication import check_falls
from replog.types import LogIndex


def bugs_of(engine: str) -> Mapping[Bug, str]:
    """The bugs to plant in an engine, each with the scenario that finds it."""
    if find_spec(f"broken_{engine}") is None:
        return {}
    return cast("Mapping[Bug, str]", import_module(f"broken_{engine}").BUGS)


CASES = [
    pytest.param(engine, bug, finder, id=f"{engine}-{bug.__name__}")
    for engine in engine_names()
    for bug, finder in bugs_of(engine).items()
]


@pytest.mark.parametrize(("engine", "bug", "finder"), CASES)
def test_broken_rule_found(
    engine: str, bug: Bug, finder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine with one broken rule fails the scenario that is about it, and passes it else."""
    plugin = find_engine(engine)
    chosen = [scenario for scenario in scenarios() if scenario.name == finder]
    assert len(chosen) == 1
    with monkeypatch.context() as patch:
        bug(patch)
        (broken,) = check_engine(plugin, chosen=chosen)
    assert broken.failure
    (whole,) = check_engine(plugin, chosen=chosen)
    assert not whole.failure


@pytest.mark.parametrize(
    ("seen", "is_right"),
    [
        ([(2, 50), (2, 10), (9, 60), (59, 90)], True),
        ([(2, 10), (9, 60), (59, 90)], True),
        ([(2, 50), (2, 40), (2, 10), (9, 60)], False),
        ([(2, 50), (9, 60), (9, 10), (59, 90)], False),
        ([(2, 50), (2, 10), (9, 60), (9, 9)], False),
    ],
)
def test_check_falls_of_next_index(seen: list[tuple[LogIndex, LogIndex]], is_right: bool) -> None:
    """One fall is right, before anything arrived; a second or a later one is not, however deep."""
    if is_right:
        check_falls(seen)
    else:
        with pytest.raises(AssertionError, match="next_index fell"):
            check_falls(seen)
