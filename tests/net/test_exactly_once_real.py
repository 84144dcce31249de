"""Increments in sessions while leaders are killed; ``make exactly-once`` has the long runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from exactly_once import count

from replog.plugins import engine_names

pytestmark = pytest.mark.net

ATTEMPTS_MAX = 6


@pytest.mark.parametrize(
    ("engine", "library"), list(zip(engine_names(), ("asyncio", "trio"), strict=True))
)
async def test_each_increment_is_done_once(tmp_path: Path, engine: str, library: str) -> None:
    """Two leaders are killed with 64 increments in flight, which are sent again."""
    counted = await count(tmp_path, engine, library, 1500, 2, is_forgetful=False)
    assert counted.is_exact, (counted.total, len(set(counted.answers)))
    assert counted.kills == 2
    assert counted.repeated > 0


async def test_nodes_that_forget_would_be_noticed(tmp_path: Path) -> None:
    """Where the nodes forget what they answered, increments are done twice: not at every kill, for
    what was in flight is often lost with its leader."""
    for attempt in range(ATTEMPTS_MAX):
        folder = tmp_path / f"{attempt}"
        folder.mkdir()
        counted = await count(folder, engine_names()[0], "trio", 2000, 4, is_forgetful=True)
        if not counted.is_exact:
            break
    assert counted.total > counted.increments
