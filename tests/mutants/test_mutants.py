"""The mutants are whole, and the hunt for them can tell a fault from none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import run
from hunt import CHECK, SIM, Order
from mutants import (
    ENGINES,
    KINDS,
    ROOT,
    Change,
    Misfit,
    Mutant,
    load_mutants,
    make_copy,
    packages,
    read_mutants,
    take_snapshot,
)
from run import (
    TESTS_FAILED,
    Ended,
    Hunted,
    Settings,
    hunt_all,
    main,
    render,
    run_guard,
    run_order,
)

MUTANTS = load_mutants()
COUNT_MIN = 30
SEEDS_MAX = 8
"""Within so many seeds each of ``PROMPT`` is found."""
PROMPT = (
    "raft/ack_leaves_before_sync",
    "raft/votes_twice",
    "multipaxos/promise_omits_chosen",
    "multipaxos/own_votes_forgotten",
    "shared/match_index_optimistic",
    "shared/waiting_writes_lost",
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.title for mutant in MUTANTS])
def test_patch_applies(mutant: Mutant) -> None:
    """Each change of a mutant has its one place in the code, and what comes of it is Python."""
    texts: dict[str, str] = {}
    for change in mutant.changes:
        package, _, rest = change.file.partition("/")
        text = texts.get(change.file)
        if text is None:
            text = (packages()[package] / rest).read_text(encoding="utf-8")
        texts[change.file] = change.apply(text)
        assert texts[change.file] != text
    assert texts
    for file, text in texts.items():
        compile(text, file, "exec")


def test_mutants_are_many() -> None:
    """There are at least 30 mutants of each kind, each with a name of its own and a sentence."""
    counts = Counter(mutant.kind for mutant in MUTANTS)
    assert all(counts[kind] >= COUNT_MIN for kind in KINDS), counts
    assert len({mutant.title for mutant in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        assert mutant.what.endswith("."), mutant.title
        assert mutant.survives == "" or mutant.survives.endswith("."), mutant.title
        assert bool(mutant.survives) == bool(mutant.guard), mutant.title
        if mutant.guard:
            file, _, test = mutant.guard.partition("::")
            assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), mutant.title


def test_mutants_are_where_they_belong() -> None:
    """A mutant of an engine is in that engine's package, a shared one in none."""
    for mutant in MUTANTS:
        package = "replog" if mutant.kind == "shared" else f"replog_{mutant.kind}"
        for change in mutant.changes:
            assert change.file.startswith(f"{package}/"), mutant.title
            assert "/testing/" not in change.file, mutant.title


def test_apply_ambiguous_place() -> None:
    """A change whose place is not there, or there twice, is refused, and so is one too far down."""
    text = "def one():\n    pass\n\n\ndef two():\n    pass\n    return\n"
    changed = "def one():\n    pass\n\n\ndef two():\n    fail()\n    return\n"
    assert Change("f", "def two", "pass", "fail()").apply(text) == changed
    for within, old in (("", "pass"), ("def three", "pass"), ("def one", "return"), ("def", "one")):
        with pytest.raises(Misfit):
            Change("f", within, old, "other").apply(text)


@pytest.fixture(scope="module")
def hunted() -> dict[str, Hunted]:
    """The prompt mutants and the unchanged code, hunted by few seeds of the simulator."""
    chosen = [mutant for mutant in MUTANTS if mutant.title in PROMPT]
    assert len(chosen) == len(PROMPT)
    all_hunted = hunt_all(chosen, Settings(SEEDS_MAX, (SIM,)), is_none_hunted=False)
    return {each.mutant.title: each for each in all_hunted}


@pytest.mark.parametrize("title", PROMPT)
def test_prompt_mutant_found(title: str, hunted: dict[str, Hunted]) -> None:
    """The simulator finds each of six mutants, two of each kind, within eight seeds."""
    assert hunted[title].is_found, hunted[title]
    assert not hunted[title].is_bad


QUORUM_TESTS = ("tests/unit/test_quorum.py::test_quorums_meet", "tests/unit/test_quorum.py::none")

HARMLESS = """
[[mutant]]
name = "renamed"
what = "A variable has another name, which is no fault at all."
file = "replog/quorum.py"
within = "Whether more than half of the voters are in"
old = "present = sum(1 for voter in self.voters if voter in nodes)\\n        return 2 * present"
new = "held = sum(1 for voter in self.voters if voter in nodes)\\n        return 2 * held"
"""


def test_hunt_harmless_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change without a fault survives, which is bad unless it is explained and guarded."""
    guard = 'survives = "It is no fault."\nguard = "tests/unit/test_quorum.py::test_quorums_meet"\n'
    guards: list[str] = []

    def run_guard(copy: Path, guard: str) -> int:
        guards.append(guard)
        assert "held = sum(" in Path(copy, "replog/quorum.py").read_text(encoding="utf-8")
        return TESTS_FAILED

    monkeypatch.setattr(run, "run_guard", run_guard)
    mutants = [*read_mutants(HARMLESS, "raft"), *read_mutants(HARMLESS + guard, "raft")]
    none, bad, good = hunt_all(mutants, Settings(1, (SIM, CHECK), states_max=2000), processes=2)
    assert (none.is_found, bad.is_found, good.is_found) == (False, False, False)
    assert (none.is_bad, bad.is_bad, good.is_bad) == (False, True, False)
    assert guards == ["tests/unit/test_quorum.py::test_quorums_meet"]
    lines = render([none, bad, good])
    assert lines[0].startswith("raft/renamed  SURVIVES: A variable")
    assert lines[1].startswith("raft/renamed  survives, as explained: A variable")
    assert lines[2].strip() == "(It is no fault. tests/unit/test_quorum.py::test_quorums_meet)"
    assert lines[3] == "the unchanged code (raft): nothing is found"
    assert lines[4] == "raft: 0 of 2 found (none), 1 survive as explained"


def test_guard_that_passes_is_none(tmp_path: Path) -> None:
    """A guard is run with the mutant's packages: one that fails on it is right, one that passes, or
    that is not there, is told."""
    broken = HARMLESS.replace("held = sum(", "held = len(self.voters) + sum(")
    ends = {}
    for text, name in ((HARMLESS, "harmless"), (broken, "broken")):
        (mutant,) = read_mutants(text, "raft")
        take_snapshot(tmp_path / name)
        make_copy(mutant, tmp_path / name, tmp_path / f"{name} copy")
        for test in QUORUM_TESTS:
            ends[name, test] = run_guard(tmp_path / f"{name} copy", test)
    assert list(ends.values()) == [0, 4, TESTS_FAILED, 4]
    (mutant,) = read_mutants(HARMLESS + 'survives = "No."\nguard = "tests/none.py::x"\n', "raft")
    (told,) = hunt_all([mutant], Settings(0, ()), is_none_hunted=False)
    assert told.is_bad
    assert told.error == "tests/none.py::x, which is to fail on it, ends with status 4"
    (told,) = hunt_all([replace(mutant, guard="")], Settings(0, ()), is_none_hunted=False)
    assert told.error == "it survives, and names no test that guards it"


def test_hunt_endless_loop() -> None:
    """A mutant that never ends is found by that; a copy that cannot be imported is an error."""
    loop = HARMLESS.replace("held = sum(", "held = sum(0 for _ in iter(int, 1)) + sum(")
    broken = HARMLESS.replace("return 2 * held", "return 2 * * held")
    settings = Settings(1, (SIM,), seconds_max={SIM: 5})
    found, failed = hunt_all(
        [*read_mutants(loop, "raft"), *read_mutants(broken, "raft")],
        settings,
        is_none_hunted=False,
    )
    assert found.findings[0].is_hang
    assert not found.is_bad
    assert "cannot be imported" in failed.error
    assert failed.is_bad


def test_journal_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was hunted is not hunted again and comes to the same, also when the end of the journal
    was cut off; a changed patch, other settings and a failed hunt are hunted again."""
    begun: list[str] = []

    def count_order(order: Order) -> Ended:
        changed = Path(order.copy, "replog/quorum.py").read_text(encoding="utf-8")
        words = [each for each in ("sum(", "fail") if f"held = {each}" in changed]
        begun.append("".join(words) or "none")
        if begun[-1] == "fail":
            return Ended(error="it failed")
        return run_order(order)

    monkeypatch.setattr(run, "run_order", count_order)
    broken = HARMLESS.replace("held = ", "held = fail +").replace('"renamed"', '"failing"')
    mutants = [*read_mutants(HARMLESS, "raft"), *read_mutants(broken, "raft")]
    path, settings = tmp_path / "hunted", Settings(1, (SIM,))

    def hunt(mutants: Sequence[Mutant], settings: Settings = settings) -> list[Hunted]:
        begun.clear()
        return hunt_all(mutants, settings, processes=1, journal_path=path)

    first = hunt(mutants)
    assert begun == ["none", "sum(", "fail"]
    assert first[0].goals
    again = hunt(mutants)
    assert begun == ["fail"]
    assert [replace(each, seconds=0) for each in again] == [
        replace(each, seconds=0) for each in first
    ]
    whole = path.read_bytes()
    for damaged in (whole[:-9], whole[:-9] + b"\xff\n7\n[]\n{}\n"):
        path.write_bytes(damaged)
        hunt(mutants[:1])
        assert begun == ["sum("]
        assert path.read_bytes().count(b"\n") == whole.count(b"\n") == 3
    hunt([replace(mutants[0], survives="It is no fault.")])
    assert len(begun) == 1
    hunt(mutants[:1], replace(settings, seeds=2))
    assert begun == ["none", "sum("]
    assert path.with_name("hunted.before").read_bytes().startswith(whole[: whole.index(b"\n")])


def test_main_unknown_mutant(capsys: pytest.CaptureFixture[str]) -> None:
    """A name that no mutant has is bad input, with a sentence."""
    with pytest.raises(SystemExit) as exited:
        main(["--only", "no_such_mutant"])
    assert exited.value.code == 2
    assert "there is no mutant no_such_mutant" in capsys.readouterr().err


def test_packages_are_all() -> None:
    """The packages that are copied are replog and every engine."""
    assert set(packages()) == {"replog", *(f"replog_{engine}" for engine in ENGINES)}
    assert all(path.is_relative_to(ROOT) for path in packages().values())
