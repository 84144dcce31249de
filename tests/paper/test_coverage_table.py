"""The table of claims is whole, current, and true: each change it names is noticed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from coverage_table import (
    AS_IS,
    TABLE,
    Change,
    load_changes,
    load_claims,
    make_table,
    outcome,
    prepare,
    run_all,
)

CHANGES = load_changes()
CLAIMS = load_claims()


def test_every_test_has_one_change() -> None:
    """Every test of this folder stands in the table once, unless it is known to fail."""
    named = Counter(test for change in CHANGES for test in change.tests)
    wanted = Counter(test for test, claim in CLAIMS.items() if not claim.is_known_to_fail)
    assert named == wanted


def test_every_claim_names_its_section() -> None:
    """Every docstring is one sentence behind the section that it is taken from."""
    for test, claim in CLAIMS.items():
        assert claim.sentence.endswith("."), test
        assert claim.section.startswith(("§", "Figure ", "Thesis §", "Contract")), test


def test_table_is_current() -> None:
    """COVERAGE.md is what `python tests/paper/coverage_table.py` makes."""
    assert TABLE.read_text(encoding="utf-8") == make_table()


@pytest.mark.parametrize("change", CHANGES, ids=[change.tests[0] for change in CHANGES])
def test_change_applies(change: Change) -> None:
    """The place of each change is found, and the change is one line that is still Python."""
    assert "\n" not in change.old + change.new
    text = change.source.read_text(encoding="utf-8")
    changed = change.apply(text)
    assert changed != text
    compile(changed, change.file, "exec")


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder with a copy for each change that was selected, in which its tests were run."""
    target = tmp_path_factory.mktemp("engine")
    numbers: list[int] = []
    for item in request.session.items:
        if isinstance(item, pytest.Function) and item.originalname == "test_change_is_noticed":
            number = item.callspec.params["number"]
            assert isinstance(number, int)
            numbers.append(number)
    prepare(target, numbers)
    run_all(target, [AS_IS, *map(str, numbers)])
    return target


@pytest.mark.slow
def test_copy_passes(copies: Path) -> None:
    """Every test passes against an unchanged copy, so that a failure is the change's."""
    status, failed, output = outcome(copies, AS_IS)
    assert (status, failed) == (0, set()), output


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CHANGES)), ids=[change.tests[0] for change in CHANGES])
def test_change_is_noticed(number: int, copies: Path) -> None:
    """Each test fails against the copy in which its change was made."""
    status, failed, output = outcome(copies, str(number))
    assert status == 1, output
    assert failed == set(CHANGES[number].tests), output
