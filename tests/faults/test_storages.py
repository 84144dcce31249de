"""Every installed storage passes the conformance suite for storages; and that suite can fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from broken_storages import BUGS, Passing, Plugin, SmallWal, plugin_of

from replog.plugins import find_storage, storage_names
from replog.testing.storage_conformance import (
    Scenario,
    Subject,
    check_storage,
    on_forgetful_files,
    on_real_files,
    run_scenario,
    scenarios,
)
from replog.testing.storage_conformance.__main__ import main

by_scenario = pytest.mark.parametrize("scenario", scenarios(), ids=lambda scenario: scenario.name)


@pytest.mark.parametrize("storage", storage_names())
@by_scenario
def test_storage_conforms(scenario: Scenario, storage: str, tmp_path: Path) -> None:
    """The claim of the scenario holds for the storage on real files; a durable storage is excused
    from nothing but a full disk, which is not to be had there."""
    plugin = find_storage(storage)
    result = run_scenario(scenario, on_real_files(plugin, tmp_path))
    assert not result.failure, result.failure
    if plugin.durable:
        assert bool(result.skipped) == scenario.name.startswith("full."), result.skipped


@by_scenario
def test_wal_conforms_on_forgetful_files(scenario: Scenario) -> None:
    """The claim of the scenario holds for the write-ahead log with small segments, where a crash
    takes away everything that was not synced."""
    scenario.run(on_forgetful_files(SmallWal()))


@pytest.mark.parametrize(
    ("bug", "finder"), BUGS.items(), ids=lambda value: getattr(value, "__name__", value)
)
def test_broken_rule_found(bug: type[Passing] | type[Plugin], finder: str) -> None:
    """A storage with one broken rule fails the scenario that is about it."""
    chosen = [scenario for scenario in scenarios() if scenario.name == finder]
    (result,) = check_storage(on_forgetful_files(plugin_of(bug)), chosen)
    assert result.failure


def test_every_scenario_finds_a_bug() -> None:
    """There is no scenario that no broken storage fails."""
    assert set(BUGS.values()) == {scenario.name for scenario in scenarios()}


def test_wrapper_alone_passes() -> None:
    """It is the broken rule that fails a scenario, not the wrapper around the storage."""
    results = check_storage(on_forgetful_files(Plugin()))
    assert not [result.failure for result in results if result.failure]


def test_any_exception_is_a_failure() -> None:
    """Whatever a scenario raises is its failure, and the scenarios behind it are run."""

    def raise_error(subject: Subject) -> None:
        raise KeyError("missing")

    def pass_quietly(subject: Subject) -> None:
        """Claim nothing."""

    chosen = [Scenario("a.a", "A.", raise_error), Scenario("a.b", "B.", pass_quietly)]
    results = check_storage(on_forgetful_files(SmallWal()), chosen)
    assert [result.failure for result in results] == ["KeyError: 'missing'", ""]


def test_command_names_what_is_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    """The command says what is skipped and why; that is no failure."""
    arguments = ["--storage", "memory", "--only", "founding.fresh"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "  skipped  founding.fresh_again_and_again" in out
    assert "founding.fresh_again_and_again skipped: it says that it is not durable" in out
    assert out.endswith("memory: 1 of 2 scenarios passed, 1 skipped\n")
    assert main([*arguments, "--json"]) == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert (document["storage"], document["durable"], document["passed"]) == ("memory", False, 1)
    assert list(document["skipped"]) == ["founding.fresh_again_and_again"]


def test_command_tells_of_failures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failed scenario is exit code 1, with its claim and what went wrong."""
    broken = next(bug for bug, finder in BUGS.items() if finder == "founding.fresh_holds_nothing")
    plugin = plugin_of(broken)
    monkeypatch.setattr(
        "replog.testing.storage_conformance.__main__.find_storage", lambda _: plugin
    )
    assert main(["--storage", "broken", "--only", "fresh_holds", "--power-cuts"]) == 1
    out = capsys.readouterr().out
    assert "  FAILED   founding.fresh_holds_nothing" in out
    assert "recovered the hard state HardState(" in out
    assert out.endswith("broken: 0 of 1 scenarios passed\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--storage", "nonesuch"], "nonesuch"),
        (["--only", "nonesuch"], "no scenario has 'nonesuch'"),
        (["--folder", "/nonesuch"], "/nonesuch is no directory"),
    ],
)
def test_command_refuses(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A storage, scenario or folder that does not exist is exit code 2, with a sentence."""
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err
