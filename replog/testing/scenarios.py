"""Scenarios: claims about a plugin, each with the run that shows it; and how suites of them run.

What the conformance suites of engines and of storages have in common: a scenario passes, fails, or
is skipped because its subject does not promise what it is about; one that fails does not keep the
others from being run; and a command runs a suite with every installed plugin and counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from replog.errors import PluginError
from replog.types import record

SubjectT = TypeVar("SubjectT")
PluginT = TypeVar("PluginT")


class Skipped(Exception):
    """A scenario is about what the subject does not support or promise; says what and why."""


@record
class Scenario(Generic[SubjectT]):
    """One claim about every subject, and the run that shows it."""

    name: str
    """``topic.scenario``."""
    claim: str
    run: Callable[[SubjectT], None]
    """Raises ``AssertionError`` (a :class:`~replog.testing.checks.Violation` is one) if the claim
    does not hold, and :class:`Skipped` if the subject does not promise what it is about; whatever
    else it raises is a failure too."""


@record
class Result(Generic[SubjectT]):
    """How one scenario ended."""

    scenario: Scenario[SubjectT]
    failure: str
    """What went wrong; empty if nothing did."""
    skipped: str = ""
    """Why the scenario was not run; empty if it was."""

    @property
    def word(self) -> str:
        """How it ended, in a word."""
        return "FAILED" if self.failure else "skipped" if self.skipped else "ok"


def run_scenario(scenario: Scenario[SubjectT], subject: SubjectT) -> Result[SubjectT]:
    """Run one scenario and say how it ended."""
    try:
        scenario.run(subject)
    except Skipped as reason:
        return Result(scenario, "", skipped=str(reason))
    except AssertionError as error:
        return Result(scenario, str(error) or "an assertion failed")
    except Exception as error:
        return Result(scenario, f"{type(error).__name__}: {error}")
    return Result(scenario, "")


def run_scenarios(
    scenarios: Sequence[Scenario[SubjectT]],
    subject: SubjectT,
    report: Callable[[Result[SubjectT]], None] | None = None,
) -> list[Result[SubjectT]]:
    """Run scenarios and say how each ended; ``report`` hears of each at once."""
    results: list[Result[SubjectT]] = []
    for scenario in scenarios:
        result = run_scenario(scenario, subject)
        results.append(result)
        if report is not None:
            report(result)
    return results


# -- the commands --


def suite_parser(program: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """What every suite's command understands."""
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="scenarios whose names hold this text"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return parser


class Mistake(Exception):
    """The arguments of a command ask for what there is not; one sentence."""


def chosen_scenarios(
    scenarios: Sequence[Scenario[SubjectT]], options: argparse.Namespace
) -> list[Scenario[SubjectT]]:
    """The scenarios that are asked for; raises :class:`Mistake` for none."""
    chosen = [scenario for scenario in scenarios if options.only in scenario.name]
    if not chosen:
        raise Mistake(f"no scenario has {options.only!r} in its name")
    return chosen


def chosen_plugins(
    name: str | None, names: Sequence[str], find: Callable[[str], PluginT]
) -> list[PluginT]:
    """The plugin of a name, or all there are; raises :class:`Mistake`."""
    try:
        return [find(each) for each in ([name] if name is not None else names)]
    except PluginError as error:
        raise Mistake(str(error)) from error


def judge(
    name: str,
    run: Callable[[Callable[[Result[SubjectT]], None]], list[Result[SubjectT]]],
    is_quiet: bool,
) -> dict[str, object]:
    """Run a suite with one plugin, print what came of it unless ``is_quiet``, and return it as a
    document.  ``run`` is given what is to hear of each result."""

    def report(result: Result[SubjectT]) -> None:
        say(f"  {result.word:<7}  {result.scenario.name}")

    def say(line: str) -> None:
        if not is_quiet:
            print(line, flush=True)

    say(name)
    results = run(report)
    failed = [result for result in results if result.failure]
    skipped = [result for result in results if result.skipped]
    passed_count = len(results) - len(failed) - len(skipped)
    for result in failed:
        say(f"\n{result.scenario.name}: {result.scenario.claim}\n{result.failure}")
    for reason in dict.fromkeys(result.skipped for result in skipped):
        names = [result.scenario.name for result in skipped if result.skipped == reason]
        say(f"\n{', '.join(names)} skipped: {reason}")
    skipped_text = f", {len(skipped)} skipped" if skipped else ""
    say(f"{name}: {passed_count} of {len(results)} scenarios passed{skipped_text}")
    return {
        "passed": passed_count,
        "failed": {result.scenario.name: result.failure for result in failed},
        "skipped": {result.scenario.name: result.skipped for result in skipped},
    }


def end_suite(run: Callable[[], Sequence[Mapping[str, object]]], is_json: bool) -> int:
    """Carry out a command; 0 if every scenario passed, 1 if one failed, 2 for a mistake in the
    arguments."""
    try:
        documents = run()
    except Mistake as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    if is_json:
        print(json.dumps(documents, indent=2))
    return 1 if any(document["failed"] for document in documents) else 0
