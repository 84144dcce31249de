"""The watchers of the simulator: what they are told is judged, and what is wrong is noticed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from replog.changes import ChangesPage, ChangeWindow
from replog.plugins import engine_names
from replog.queries import Queries
from replog.testing import check_machine
from replog.testing.checks import Violation
from replog.testing.sim import SimOptions, Simulation, simulate
from replog.testing.watchers import WatchedRegisters, WatchedWorkload

ENGINE = engine_names()[0]
PAYLOADS = [
    payload
    for number in range(40)
    for payload in (
        b"put k%d %d" % (number % 3, number),
        b"delete k%d" % (number % 4),
        b"cas k1 %d %d" % (number, number + 100),
    )
]


def watched_seeds(count: int) -> list[int]:
    """The first seeds that have watchers."""
    found: list[int] = []
    seed = 0
    while len(found) < count:
        if isinstance(Simulation(SimOptions(ENGINE, seed)).workload, WatchedWorkload):
            found.append(seed)
        seed += 1
    return found


def broken_by(patch: Callable[[], None]) -> str:
    """What the first of a few seeds with watchers breaks, with something patched."""
    seeds = watched_seeds(6)
    patch()
    for seed in seeds:
        try:
            simulate(SimOptions(ENGINE, seed))
        except Violation as violation:
            return violation.sentence
    return ""


def test_watched_machine_passes_check() -> None:
    """The machine that is watched in the simulator keeps the rules of snapshots."""
    check_machine(WatchedRegisters, PAYLOADS)


@pytest.mark.parametrize("engine", engine_names())
def test_watchers_reach_their_goals(engine: str) -> None:
    """Within a few seeds a watcher goes on over a crash, and one falls behind."""
    reached: set[str] = set()
    for seed in watched_seeds(12):
        reached |= set(simulate(SimOptions(engine, seed)).goals)
        if {"watch_resumed", "watch_fell_behind"} <= reached:
            return
    raise AssertionError(f"only {sorted(reached)}")


def test_lost_change_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page from which some changes are missing breaks I24."""
    page_of = ChangeWindow.page

    def lossy(window: ChangeWindow, after: int | None, prefix: str, is_key: bool) -> ChangesPage:
        page = page_of(window, after, prefix, is_key=is_key)
        return page | {"changes": [change for change in page["changes"] if change[0] % 8]}

    def patch() -> None:
        monkeypatch.setattr(ChangeWindow, "page", lambda *args: lossy(*args, False))

    assert broken_by(patch).startswith("I24: who watches")


def test_early_end_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that says of too much that it is gone breaks I24."""
    first_index = ChangeWindow.first_index.fget
    assert first_index is not None

    def patch() -> None:
        forgetful = property(lambda window: first_index(window) + 3)
        monkeypatch.setattr(ChangeWindow, "first_index", forgetful)

    assert "are known from" in broken_by(patch)


def test_forgotten_waiter_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A query that waits and is never run again breaks I24, though it is answered."""
    serve = Queries.serve

    def never_again(queries: Queries, applied_index: int) -> None:
        queries._reruns_left = 0
        serve(queries, applied_index)

    def patch() -> None:
        monkeypatch.setattr(Queries, "serve", never_again)

    assert "ticks ago" in broken_by(patch)
