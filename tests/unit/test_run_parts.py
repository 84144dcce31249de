"""The runner of the test parts loses no failure and forgets no folder."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    """The runner as a module; it is a script beside the tests, not in a package."""
    path = Path(__file__).resolve().parents[1] / "run_parts.py"
    spec = importlib.util.spec_from_file_location("run_parts", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_parts"] = module
    spec.loader.exec_module(module)
    return module


REPORT = """<testsuites><testsuite>
<testcase name="a"/><testcase name="b"><skipped/></testcase>{more}
</testsuite></testsuites>"""


@pytest.mark.parametrize(
    ("more", "status", "counts"),
    [
        ("", 0, (1, 0, 1)),
        ("<testcase name='c'><failure/></testcase>", 1, (1, 1, 1)),
        ("<testcase name='c'><error/></testcase>", 1, (1, 1, 1)),
        # The run ended badly although no test failed: it was ended, or broke at its end.
        ("", 3, (1, 1, 1)),
    ],
)
def test_count_tests_of_report(
    runner: ModuleType, tmp_path: Path, more: str, status: int, counts: tuple[int, int, int]
) -> None:
    """A report is counted test by test, and a bad exit status is never lost."""
    report = tmp_path / "report.xml"
    report.write_text(REPORT.format(more=more))
    assert runner.count_tests(report, status) == counts


@pytest.mark.parametrize("text", [None, "", "<testsuites>"])
def test_count_tests_without_report(runner: ModuleType, tmp_path: Path, text: str | None) -> None:
    """A run that left no readable report has failed."""
    report = tmp_path / "report.xml"
    if text is not None:
        report.write_text(text)
    assert runner.count_tests(report, 5) == (0, 1, 0)


def test_find_folders_forgets_none(runner: ModuleType, tmp_path: Path) -> None:
    """A folder with tests that no part names runs in "all else"; one without tests nowhere."""
    for name in ("sim", "novel", "net/deep"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "test_it.py").touch()
    (tmp_path / "model").mkdir()
    found = {
        part.name: [
            str(at.relative_to(tmp_path))
            for at in runner.folders_with_tests(part, runner.PARTS, tmp_path)
        ]
        for part in runner.PARTS
    }
    assert {name: folders for name, folders in found.items() if folders} == {
        "all else": ["novel"],
        "simulation": ["sim"],
        "real processes": ["net"],
    }


def test_run_ends_hanging_command(runner: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    """A command that hangs is ended, fails and is named."""
    status = runner.run([sys.executable, "-c", "import time; time.sleep(60)"], 0.3)
    assert status == 1
    assert "ended after" in capfd.readouterr().out


def test_summary_warns_and_sums(runner: ModuleType) -> None:
    """A part over its budget is warned about, and the last line is the sum."""
    lines = runner.summary(
        [
            runner.Outcome(runner.PARTS[0], minutes=9.5, passed=2, failed=0, skipped=1),
            runner.Outcome(runner.PARTS[1], minutes=0.1, passed=40, failed=3, skipped=0),
        ]
    ).splitlines()
    assert lines[-1] == "42 passed, 3 failed"
    assert [line for line in lines if "OVER BUDGET" in line] == [
        "WARNING: OVER BUDGET: installation took 9.50 minutes of 1.0"
    ]
