"""``replog check``: what it prints, what it complains about, and its exit codes."""

from __future__ import annotations

import json

import pytest

from replog.cli import check, main
from replog.engine import FieldKind, MessageSpec
from replog.plugins import engine_names, find_engine
from replog.quorum import QuorumSystem, Threshold
from replog.testing.model import Bounds
from replog.testing.model.search import unseen_messages
from replog.testing.network import kind_of
from replog.testing.trials import PlainTrial
from replog.types import NodeId, record

SMALL = ("check", "--terms", "1")
KEYS = {
    "engine",
    "states",
    "transitions",
    "violations",
    "complete",
    "states_per_second",
    "seconds",
    "reduced",
    "bounds",
    "goals",
    "unseen_messages",
}


def test_defaults_are_the_models() -> None:
    """The command's bounds and their defaults are those of the model."""
    assert {name: default for name, (default, _) in check.BOUNDS.items()} == {
        name: getattr(Bounds(), name) for name in Bounds.__annotations__
    }


def test_check_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Every installed engine is an object of a list, with the bounds as they held."""
    assert main([*SMALL, "--json"]) == 0
    documents = json.loads(capsys.readouterr().out)
    assert [each["engine"] for each in documents] == engine_names()
    for each in documents:
        assert set(each) == KEYS
        assert (each["complete"], each["violations"], each["reduced"]) == (True, [], True)
        assert each["bounds"] == Bounds(terms=1).named()
        assert each["transitions"] > each["states"] > 1000


@pytest.mark.parametrize("engine", engine_names())
def test_check_one_engine_shown(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    """People see the bounds, the counts and what the space contains; nothing else is said."""
    assert main([*SMALL, "--engine", engine]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"{engine}: nodes 3, commands 1, terms 1, in flight 2")
    assert ", complete, " in shown.out
    assert "command committed" in shown.out
    assert shown.err == ""


def test_check_unseen_messages(capsys: pytest.CaptureFixture[str]) -> None:
    """What an engine can send and no node sent is named, for people and in the JSON."""
    words = [*SMALL, "--crashes", "0"]
    assert main([*words, "--json"]) == 0
    documents = json.loads(capsys.readouterr().out)
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    for document in documents:
        kinds = {kind_of(spec.record) for spec in find_engine(document["engine"]).messages}
        unseen = document["unseen_messages"]
        # A space has an election in it, and no hand-over, which is no action of the model.
        assert {word.partition(" ")[0] for word in unseen} < kinds
        assert f"  never sent: {', '.join(unseen)}" in lines


def test_unseen_messages_exact() -> None:
    """A kind that was sent is not named, nor a value that one of its flags had."""

    @record
    class Nod:
        deep: bool

    @record
    class Bow:
        deep: bool

    fields = {"deep": FieldKind.BOOL}
    specs = [MessageSpec(at, each, fields, None) for at, each in enumerate((Nod, Bow), 1)]
    assert unseen_messages(specs, ()) == ("nod", "bow")
    assert unseen_messages(specs, (Bow(True),)) == ("nod", "bow deep=false")
    assert unseen_messages(specs, (Nod(False), Bow(True), Bow(False))) == ("nod deep=true",)


def test_check_vacuous_space_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """A space in which nothing can be committed is a failure, for it proves nothing."""
    # Of the four requests of a candidate one alone arrives.
    assert main(["check", "--nodes", "5", "--in-flight", "1", "--terms", "1"]) == 1
    complaints = capsys.readouterr().err.splitlines()
    assert len(complaints) == len(engine_names())
    assert all("nothing was ever committed" in each for each in complaints)


def test_check_incomplete_fails_without_budget(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A space that is too large is a failure, unless a budget said that a part is enough."""
    engine = engine_names()[0]
    assert main(["check", "--engine", engine, "--budget", "500", "--json"]) == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert (document["states"], document["complete"]) == (500, False)
    monkeypatch.setattr(check, "STATES_MAX", 500)
    assert main(["check", "--engine", engine]) == 1
    assert "the space has more than 500 states" in capsys.readouterr().err


def test_check_violation_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A broken rule is printed with its trace, is in the JSON, and fails the command."""

    def all_of_them(trial: PlainTrial, options: object, voters: tuple[NodeId, ...]) -> QuorumSystem:
        return Threshold(voters, len(voters))

    engine = engine_names()[0]
    trial = PlainTrial(find_engine(engine))
    monkeypatch.setattr(PlainTrial, "commit_quorum", all_of_them)
    monkeypatch.setattr("replog.testing.model.search.find_trial", lambda _: trial)
    assert main([*SMALL, "--engine", engine]) == 1
    shown = capsys.readouterr()
    assert f"VIOLATION by {engine}: I5: entry 1" in shown.out
    assert " campaign" in shown.out
    assert shown.err.startswith(f"replog: {engine}: I5: ")
    assert main([*SMALL, "--engine", engine, "--json"]) == 1
    (document,) = json.loads(capsys.readouterr().out)
    (violation,) = document["violations"]
    assert violation["sentence"].startswith("I5: entry 1")
    assert len(violation["trace"]) > 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--engine", "nosuch"), "nosuch"),
        (("--terms", "0"), "--terms: must be at least 1, not 0"),
        (("--nodes", "10"), "--nodes: must be at most 9, not 10"),
        (("--in-flight", "16"), "--in-flight: must be at most 15, not 16"),
        (("--crashes", "-1"), "'-1' is no whole number from 0 on"),
        (("--budget", "0"), "'0' is no positive whole number"),
    ],
    ids=" ".join,
)
def test_check_bad_input(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bad input is one sentence that names the option, and exit code 2."""
    assert main(["check", *words]) == 2
    assert said in capsys.readouterr().err


def test_check_reduction_off(capsys: pytest.CaptureFixture[str]) -> None:
    """Without the reduction there are several times as many states."""
    words = ("check", "--engine", engine_names()[0], "--terms", "1", "--crashes", "0", "--json")
    assert main(list(words)) == 0
    (reduced,) = json.loads(capsys.readouterr().out)
    assert main([*words, "--no-reduction"]) == 0
    (whole,) = json.loads(capsys.readouterr().out)
    assert (reduced["reduced"], whole["reduced"]) == (True, False)
    assert whole["states"] > 2 * reduced["states"]
