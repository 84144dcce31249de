"""The conformance suite for storages: what each promises to every engine, as scenarios.

The built-in storages pass it; run it with your own (``docs/storage-plugins.md``)::

    python -m replog.testing.storage_conformance --storage NAME

or from a test::

    from replog.testing.storage_conformance import on_real_files, run_scenario, scenarios

    @pytest.mark.parametrize("scenario", scenarios(), ids=lambda scenario: scenario.name)
    def test_conforms(scenario, tmp_path):
        assert not run_scenario(scenario, on_real_files(PLUGIN, tmp_path)).failure

The scenarios speak to a storage through its plugin alone, and judge it against
:class:`replog.storage.replay.Replay`, the meaning of a sequence of writes.  A storage that says
that it is not durable is excused from what outlives a run, and the result says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from replog.storage.plugin import StoragePlugin
from replog.testing.storage_conformance import founding, groups, reading, replaying
from replog.testing.storage_conformance.subject import (
    Excused,
    ForgetfulGround,
    Ground,
    RealGround,
    Scenario,
    Subject,
)
from replog.types import record

__all__ = [
    "Excused",
    "Ground",
    "Result",
    "Scenario",
    "Subject",
    "check_storage",
    "on_forgetful_files",
    "on_real_files",
    "run_scenario",
    "scenarios",
]


@record
class Result:
    """How one scenario ended."""

    scenario: Scenario
    failure: str
    """What went wrong; empty if nothing did."""
    excused: str = ""
    """Why the storage need not pass it; empty if it was run."""


def scenarios() -> tuple[Scenario, ...]:
    """All of them, in a fixed order."""
    return (*founding.SCENARIOS, *replaying.SCENARIOS, *reading.SCENARIOS, *groups.SCENARIOS)


def on_real_files(plugin: StoragePlugin, folder: Path) -> Subject:
    """A storage as the subject of scenarios, in new directories within ``folder``; a crash is the
    end of the program, which leaves on disk what was written, synced or not."""
    return Subject(plugin, RealGround(folder))


def on_forgetful_files(plugin: StoragePlugin) -> Subject:
    """A storage on a disk in memory; a crash is a power cut, which takes away what was not synced.

    For storages that reach the disk through the :class:`~replog.storage.files.FileLayer` of their
    home, and not around it.
    """
    return Subject(plugin, ForgetfulGround())


def check_storage(
    subject: Subject,
    chosen: Sequence[Scenario] | None = None,
    report: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Run scenarios (``None``: all) and say how each ended; ``report`` hears of each at once.

    Whatever a scenario raises is a failure of that scenario, and the others are run.
    """
    results: list[Result] = []
    for scenario in scenarios() if chosen is None else chosen:
        result = run_scenario(scenario, subject)
        results.append(result)
        if report is not None:
            report(result)
    return results


def run_scenario(scenario: Scenario, subject: Subject) -> Result:
    """Run one scenario and say how it ended."""
    try:
        scenario.run(subject)
    except Excused as reason:
        return Result(scenario, "", excused=str(reason))
    except AssertionError as error:
        return Result(scenario, str(error) or "an assertion failed")
    except Exception as error:
        return Result(scenario, f"{type(error).__name__}: {error}")
    return Result(scenario, "")
