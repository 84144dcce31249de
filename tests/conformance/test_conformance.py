"""Every installed engine passes the conformance suite; and the suite can fail."""

from __future__ import annotations

import pytest

from replog.errors import NotLeader
from replog.plugins import engine_names, find_engine
from replog.testing import Violation
from replog.testing.conformance import Scenario, check_engine, scenarios, subject_of
from replog.testing.conformance.__main__ import main
from replog.testing.conformance.failures import two_values_without_fence


@pytest.mark.parametrize("engine", engine_names())
@pytest.mark.parametrize("scenario", scenarios(), ids=lambda scenario: scenario.name)
def test_engine_conforms(scenario: Scenario, engine: str) -> None:
    """The claim of the scenario holds for the engine."""
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
