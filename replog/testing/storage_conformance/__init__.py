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
that it is not durable is excused from what outlives a run: the scenario is skipped, and the result
says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from replog.storage.plugin import StoragePlugin
from replog.testing import scenarios as suite
from replog.testing.scenarios import Skipped, run_scenario, run_scenarios
from replog.testing.storage_conformance import founding, full, groups, reading, replaying
from replog.testing.storage_conformance.subject import (
    ForgetfulGround,
    Ground,
    RealGround,
    Scenario,
    Subject,
)

__all__ = [
    "Ground",
    "Result",
    "Scenario",
    "Skipped",
    "Subject",
    "check_storage",
    "on_forgetful_files",
    "on_real_files",
    "run_scenario",
    "scenarios",
]


Result: TypeAlias = suite.Result[Subject]
"""How one scenario ended."""


def scenarios() -> tuple[Scenario, ...]:
    """All of them, in a fixed order."""
    return (
        *founding.SCENARIOS,
        *replaying.SCENARIOS,
        *reading.SCENARIOS,
        *groups.SCENARIOS,
        *full.SCENARIOS,
    )


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
    return run_scenarios(scenarios() if chosen is None else chosen, subject, report)
