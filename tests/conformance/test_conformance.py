"""Every installed engine passes the conformance suite; and the suite can fail."""

from __future__ import annotations

import json

import pytest

from replog.errors import ConfigError, NotLeader
from replog.plugins import engine_names, find_engine
from replog.testing import Violation
from replog.testing.conformance import (
    Scenario,
    Skipped,
    Subject,
    check_engine,
    run_scenario,
    scenarios,
    subject_of,
)
from replog.testing.conformance.__main__ import main
from replog.testing.conformance.failures import two_values_without_fence


@pytest.mark.parametrize("engine", engine_names())
@pytest.mark.parametrize("scenario", scenarios(), ids=lambda scenario: scenario.name)
def test_engine_conforms(scenario: Scenario, engine: str) -> None:
    """The claim of the scenario holds for the engine, with nothing left out."""
    scenario.run(subject_of(find_engine(engine)))


@pytest.mark.parametrize("engine", engine_names())
def test_two_values_without_fence(engine: str) -> None:
    """Without the fence an acceptor that lost its memory lets two values be chosen, and the
    checker sees it; with the fence the same is a scenario that passes."""
    with pytest.raises(Violation, match="I2: node 3 applies another value"):
        two_values_without_fence(subject_of(find_engine(engine)))


def test_scenarios_have_names() -> None:
    """No two scenarios have one name, and each says what it claims."""
    names = [scenario.name for scenario in scenarios()]
    assert len(set(names)) == len(names) >= 40
    assert all(scenario.claim.endswith(".") for scenario in scenarios())


class Deaf:
    """An engine plugin whose engines never hear of any proposal: most scenarios must fail."""

    def __init__(self, name: str) -> None:
        self._plugin = find_engine(name)

    def __getattr__(self, name: str) -> object:
        return getattr(self._plugin, name)

    def create(self, setup):  # type: ignore[no-untyped-def]
        engine = self._plugin.create(setup)

        class DeafEngine(type(engine)):  # type: ignore[misc]
            __slots__ = ()

            def propose_batch(self, datas, kind):  # type: ignore[no-untyped-def]
                raise NotLeader(self.node_id, 0)

        engine.__class__ = DeafEngine
        return engine


@pytest.mark.parametrize("engine", engine_names())
def test_broken_engine_fails(engine: str) -> None:
    """An engine that takes no proposal fails every scenario that needs one, and the others not."""
    chosen = [each for each in scenarios() if each.name.startswith("elections")]
    results = check_engine(Deaf(engine), chosen=chosen)  # type: ignore[arg-type]
    failed = {result.scenario.name for result in results if result.failure}
    assert {"elections.by_hand", "elections.transfer", "elections.two_of_five_down"} <= failed
    assert "elections.stable_leader" not in failed


def test_any_exception_is_a_failure() -> None:
    """Whatever a scenario raises is its failure, and the scenarios behind it are run."""

    def raise_error(subject: Subject) -> None:
        raise KeyError("missing")

    def pass_quietly(subject: Subject) -> None:
        """Claim nothing."""

    chosen = [Scenario("a.a", "A.", raise_error), Scenario("a.b", "B.", pass_quietly)]
    results = check_engine(find_engine(engine_names()[0]), chosen=chosen)
    assert [result.failure for result in results] == ["KeyError: 'missing'", ""]


class Choosy:
    """An engine plugin whose options fit three nodes only."""

    def __init__(self, name: str) -> None:
        self._plugin = find_engine(name)

    def __getattr__(self, name: str) -> object:
        return getattr(self._plugin, name)

    def agreed(self, options, voter_count):  # type: ignore[no-untyped-def]
        if voter_count != 3:
            raise ConfigError("engine options", [f"quorum: 3 nodes, not {voter_count}"])
        return self._plugin.agreed(options, voter_count)


SMALL = ("elections.by_timeout", "elections.after_leader_died", "elections.two_of_five_down")


@pytest.mark.parametrize("engine", engine_names())
def test_unsupported_counts_are_skipped(engine: str) -> None:
    """A scenario is run with the node counts that the engine's options fit, and skipped, with the
    reason, if it needs another one."""
    chosen = [scenario for scenario in scenarios() if scenario.name in SMALL]
    results = check_engine(Choosy(engine), chosen=chosen)  # type: ignore[arg-type]
    assert [(result.failure, bool(result.skipped)) for result in results] == [
        ("", False),
        ("", False),
        ("", True),
    ]
    assert "quorum: 3 nodes, not 5" in results[-1].skipped


def test_stated_counts_are_used() -> None:
    """A subject may state its node counts; what is outside of them is not even tried."""
    plugin = find_engine(engine_names()[0])
    subject = subject_of(plugin, node_counts=(3, 4))
    assert subject.supported(5, 4, 3) == (4, 3)
    with pytest.raises(Skipped, match="5 nodes: not among"):
        subject.cluster(5)
    (scenario,) = [each for each in scenarios() if each.name == "replication.one_order"]
    result = run_scenario(scenario, subject)
    assert (result.failure, result.skipped) == ("", "5 nodes: not among the node counts named")


def test_quorums_that_are_no_majorities() -> None:
    """With a phase-2 quorum of two the suite judges clusters of two and three, and passes over
    those of five, in which two nodes commit."""
    multipaxos = pytest.importorskip("replog_multipaxos")
    options = multipaxos.MultiPaxosOptions(phase2_quorum=2)
    assert tuple(subject_of(multipaxos.PLUGIN, options).unsupported) == (1, 4, 5)
    chosen = [scenario for scenario in scenarios() if scenario.name in SMALL]
    results = check_engine(multipaxos.PLUGIN, options, chosen)
    assert not any(result.failure for result in results)
    assert results[-1].skipped == "5 nodes: 2 of them commit, and that is no majority"


def test_command_shows_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was skipped is shown with its reason, is no failure, and is in the document."""
    engine = engine_names()[0]
    plugin = Choosy(engine)
    monkeypatch.setattr("replog.testing.conformance.__main__.find_engine", lambda _: plugin)
    assert main([engine, "--only", "two_of_five"]) == 0
    out = capsys.readouterr().out
    assert "  skipped  elections.two_of_five_down" in out
    assert f"{engine}: 0 of 1 scenarios passed, 1 skipped" in out
    assert main([engine, "--only", "two_of_five", "--json"]) == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert (document["passed"], document["failed"]) == (0, {})
    assert list(document["skipped"]) == ["elections.two_of_five_down"]


def test_command_counts(capsys: pytest.CaptureFixture[str]) -> None:
    """The command runs the chosen scenarios of one engine and counts them."""
    engine = engine_names()[0]
    assert main([engine, "--only", "contract.specs"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{engine}: 1 of 1 scenarios passed"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["nonesuch"], "nonesuch"), (["--only", "nonesuch"], "no scenario has 'nonesuch'")],
)
def test_command_refuses(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An engine or scenario that does not exist is exit code 2, with a sentence."""
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err
