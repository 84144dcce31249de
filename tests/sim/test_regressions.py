"""The runs that once broke something break nothing any more."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from replog.plugins import engine_names
from replog.testing.chance import Selection
from replog.testing.sim import SimOptions, simulate

RUNS: list[dict[str, str | int]] = tomllib.loads(
    Path(__file__).with_name("regressions.toml").read_text()
).get("run", [])


def options_of(run: dict[str, str | int]) -> SimOptions:
    """What one entry of the file names."""
    plain = SimOptions(str(run["engine"]), int(run["seed"]))
    return SimOptions(
        plain.engine,
        plain.seed,
        nodes=int(run.get("nodes", plain.nodes)),
        faults=Selection.parse(str(run.get("faults", plain.faults.text))),
        ticks=int(run.get("ticks", plain.ticks)),
        operations_max=int(run.get("operations", plain.operations_max)),
    )


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run['engine']}-{run['seed']}")
def test_run_breaks_nothing_any_more(run: dict[str, str | int]) -> None:
    """The run ends well; the entry says what it once broke."""
    if run["engine"] not in engine_names():
        pytest.skip(f"the engine {run['engine']} is not installed")
    assert run["broke"]
    simulate(options_of(run))
