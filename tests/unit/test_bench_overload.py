"""The open loop and the row of the overload, without a cluster."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import trio

from replog.errors import NotLeader, Overloaded
from replog.plugins import engine_names
from replog.types import Waiter
from replog_bench import overload
from replog_bench.__main__ import main
from replog_bench.load import LoadResult
from replog_bench.open_loop import OpenLoop, OpenLoopResult
from replog_bench.overload import OverloadPlan, run_overload_plan
from replog_bench.processes import ChildFailed


def loop_at(submit: Callable[[bytes, Waiter], None], *, rate: float = 2000.0) -> OpenLoop:
    """For a third of a second."""
    return OpenLoop(submit, lambda: 7, rate=rate, value_bytes=64, seconds=0.3, patience_seconds=0.1)


async def test_open_loop_offers_its_rate() -> None:
    """As many commands come as the rate says, whatever becomes of them, and each counts once."""
    waiters: list[Waiter] = []
    least = most = 0

    def submit(payload: bytes, waiter: Waiter) -> None:
        nonlocal least, most
        assert len(payload) == 64
        waiters.append(waiter)
        if len(waiters) % 2:
            most += perf_counter() < loop._end
            waiter(1, None, None)
            least += perf_counter() < loop._end

    loop = loop_at(submit)

    async with trio.open_nursery() as nursery:
        ended: list[OpenLoopResult] = []

        async def run() -> None:
            await loop.run()
            ended.append(loop.result())

        nursery.start_soon(run)
        await trio.sleep(0.4)
        assert not ended, "it waits for what was taken"
        for waiter in waiters[1::2]:
            waiter(1, None, None)
    (result,) = ended
    assert 300 < result.offered <= 600
    assert result.asked == result.offered == len(waiters)
    assert 0 < least <= result.done <= most, "what ends after the end does not count"
    assert (result.refused, result.given_up, result.other_errors) == (0, 0, 0)
    assert result.gap_max == 7


async def test_open_loop_comes_back_when_it_was_told() -> None:
    """Who is refused asks nothing before its time, and what waits too long is given up."""
    asked_at: list[float] = []

    def submit(_payload: bytes, _waiter: Waiter) -> None:
        asked_at.append(perf_counter())
        raise Overloaded("too much", 50)

    loop = loop_at(submit)
    await loop.run()
    result = loop.result()
    assert result.refused == result.asked == len(asked_at)
    # Sixteen clients, each at most once in 50 ms.
    assert result.refused <= 16 * 7
    assert result.given_up > result.offered / 3
    assert result.done == 0


async def test_open_loop_tells_what_else_failed() -> None:
    """A failure that is no refusal is told, and not tried again."""

    def submit(_payload: bytes, _waiter: Waiter) -> None:
        raise NotLeader(1, 2)

    loop = loop_at(submit, rate=100.0)
    await loop.run()
    result = loop.result()
    assert result.other_errors == result.asked > 0
    assert result.first_error.startswith("NotLeader: ")


ENGINE = engine_names()[0]


def plan(**changes: object) -> OverloadPlan:
    """A plan for one engine."""
    values: dict[str, object] = {
        "engines": [ENGINE],
        "clients": 8,
        "value_bytes": 64,
        "warm_up_seconds": 0.1,
        "closed_seconds": 0.2,
        "seconds": 0.3,
        "factor": 2.0,
        "patience_seconds": 0.2,
        "apply_us": 100,
        "repeats": 1,
        "directory": None,
    }
    return OverloadPlan(**{**values, **changes})  # type: ignore[arg-type]


def told(done_per_second: float) -> dict[str, object]:
    """What a leader says whose peak is 100 before and 300 after."""
    closed = [asdict(LoadResult(100, each, 1.0, 2.0, 0, "")) for each in (100.0, 300.0)]
    result = OpenLoopResult(1000, 1200, 300, 90, 200, done_per_second, 5.0, 9.0, 33, 0, "")
    return {
        "before": closed[0],
        "overload": asdict(result),
        "after": closed[1],
        "offered_per_second": 400.0,
        "grown_bytes": 3 << 20,
    }


def test_row_is_of_the_mean_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ratio is to the mean of the peaks before and after, the spread that of the repeats, and
    where nothing bounds what is not applied no bound is named."""
    found = iter([told(100.0), told(200.0), told(300.0)] * 3)
    monkeypatch.setattr(overload, "_run_trial", lambda *_: next(found))
    rows = run_overload_plan(plan(repeats=3), lambda _: None)
    assert [(row.machine, row.gap_limit) for row in rows] == [
        ("kv", 4096),
        ("slow kv", 4096),
        ("slow kv", None),
    ]
    for row in rows:
        assert (row.peak_per_second, row.offered_to_peak) == (200.0, 2.0)
        assert (row.ratio_to_peak, row.ratio_min, row.ratio_max) == (1.0, 0.5, 1.5)
        assert (row.refused_share, row.given_up_share) == (0.25, 0.2)
        assert row.grown_mib == 3.0
        assert len(row.cells()) == len(row.HEADINGS)
    assert [row.memory_bound_mib for row in rows] == [34.0, 34.0, None]


def test_engine_that_is_not_installed(capsys: pytest.CaptureFixture[str]) -> None:
    """An engine that nobody has is refused at once, with exit code 2."""
    assert main(["overload", "--engines", "paxon"]) == 2
    assert "paxon" in capsys.readouterr().err


def test_json_has_a_row_for_each_kind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """``--json`` prints the rows, and the options reach the plan."""
    plans: list[OverloadPlan] = []

    def run_trial(given: OverloadPlan, *_: object) -> dict[str, object]:
        plans.append(given)
        return told(150.0)

    monkeypatch.setattr(overload, "_run_trial", run_trial)
    arguments = f"overload --engines {ENGINE} --factor 3 --repeats 1 --directory {tmp_path} --json"
    assert main(arguments.split()) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["ratio_to_peak"] for row in rows] == [0.75] * 3
    assert (plans[0].factor, plans[0].directory) == (3, tmp_path)


def test_leader_that_was_lost_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in which something else failed than was refused ends the program."""
    gone = {"first_error": "NotLeader: gone"}
    for part, failed in (("overload", {"other_errors": 1}), ("after", {"errors": 1})):
        said: dict[str, Any] = told(100.0)
        said[part] |= gone | failed
        monkeypatch.setattr(overload, "_heard", lambda *_, found=said: found)
        with pytest.raises(ChildFailed, match="NotLeader: gone"):
            run_overload_plan(plan(), lambda _: None)
