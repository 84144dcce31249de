"""Hunt every mutant, and say what finds it and after how many seeds: ``make mutants``.

Each mutant is a copy of the code with one fault, hunted in a process of its own (``hunt.py``).  The
unchanged code is hunted first, as the mutant ``none`` of each engine, with the same seeds, states
and scenarios: nothing may be found there.  Two findings are measured by it.  What only does not end
is found only if the unchanged code does end, which is tried for that very seed.  And a goal of the
simulator to which a mutant never comes is missed only if the unchanged code comes to it often.

    python tests/mutants/run.py --only leader_counts_itself_early --kind raft
    python tests/mutants/run.py --kind shared --seeds 20 --by sim --by check
    python tests/mutants/run.py --journal hunted.jsonl

The journal is for a hunt that may be interrupted: the same again goes on where that was.

A mutant whose survival is explained where its patch is has a *guard*, a test that fails on it; that
is made sure of as well.

Exit code 0: every mutant is found, or explained and guarded; 1: one survives without a word, its
guard passes, or something is found in the unchanged code; 2: bad input.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from hunt import CHECK, CONFORMANCE, SEARCHERS, SIM, Finding, Order
from journal import Journal, Line, digest_of, tree_digest
from mutants import (
    FOLDER,
    KINDS,
    NAME_OF_NONE,
    NONE,
    ROOT,
    Misfit,
    Mutant,
    load_mutants,
    make_copy,
    take_snapshot,
)

SEEDS: Final = 200
EXPLAINED_SEEDS: Final = 60
"""A mutant whose survival is explained is run with so many seeds: what breaks is said."""
STATES_MAX: Final = 150_000
SECONDS_MAX: Final = {SIM: 30, CHECK: 120, CONFORMANCE: 60}
"""Of the processor: for a seed, for an engine's states, for a scenario; the unchanged code takes a
fifth of it."""
GOAL_SHARE_MIN: Final = 0.1
"""A goal is often come to if this share of the seeds or more does."""
MINUTES_MAX: Final = 15.0
"""By the clock, for one mutant in all: whoever takes longer is ended, and that is an error."""
SENTENCE_CHARS_MAX: Final = 100
TESTS_FAILED: Final = 1
"""Pytest's status for that."""


@dataclass(frozen=True)
class Settings:
    """How the mutants are hunted."""

    seeds: int = SEEDS
    searchers: Sequence[str] = SEARCHERS
    states_max: int = STATES_MAX
    seconds_max: Mapping[str, int] = field(default_factory=lambda: SECONDS_MAX)


@dataclass(frozen=True)
class Hunted:
    """What became of one mutant."""

    mutant: Mutant
    findings: tuple[Finding, ...]
    """What was found: one at most, but for the unchanged code, in which all is looked for."""
    error: str
    """Why the hunt itself failed; empty if it did not."""
    seconds: float
    goals: Mapping[str, int] = field(default_factory=dict)
    """Of the unchanged code, in how many seeds the simulator came to each goal."""

    @property
    def is_found(self) -> bool:
        """Whether there is something to be found, and it was."""
        return bool(self.findings)

    @property
    def is_bad(self) -> bool:
        """Whether the run fails by this one."""
        if self.error:
            return True
        if self.mutant.name == NAME_OF_NONE:
            return self.is_found
        return not self.is_found and not self.mutant.survives


@dataclass(frozen=True)
class Ended:
    """How an order ended."""

    findings: tuple[Finding, ...] = ()
    error: str = ""
    goals: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By engine and goal, in how many seeds the simulator came to it; empty if it found something
    first."""


class Runner:
    """Hunts mutants, each in a copy below a folder that is thrown away at the end."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self._snapshot = folder / "snapshot"
        take_snapshot(self._snapshot)
        self._copy_count = 0
        self._lock = threading.Lock()
        self._excused: dict[str, list[str]] = {}
        self._goals: dict[str, Mapping[str, int]] = {}
        """By engine, the goals of the unchanged code."""

    @property
    def subject(self) -> str:
        """One text for what is hunted and how."""
        tools = [(FOLDER / name).read_bytes() for name in ("hunt.py", "mutants.py", "run.py")]
        settings = json.dumps([asdict(self._settings), sys.version]).encode()
        return digest_of([tree_digest(self._snapshot).encode(), settings, *tools])

    def hunt_none(self, none: Mutant) -> Hunted:
        """Hunt the unchanged code with one engine."""
        began = time.monotonic()
        ended = self._order(none, self._seeds, self._settings.searchers, is_exhaustive=True)
        (engine,) = none.engines
        goals = ended.goals.get(engine, {})
        return Hunted(none, ended.findings, ended.error, time.monotonic() - began, goals)

    def note_none(self, hunted: Hunted) -> None:
        """What the unchanged code came to is what the mutants are measured by."""
        (engine,) = hunted.mutant.engines
        self._excused[engine] = [each.scenario for each in hunted.findings if each.scenario]
        self._goals[engine] = hunted.goals

    def hunt(self, mutant: Mutant) -> Hunted:
        """Hunt one mutant, until something is found."""
        began = time.monotonic()
        seeds = self._seeds[:EXPLAINED_SEEDS] if mutant.survives else self._seeds
        ended = self._order(mutant, seeds, self._settings.searchers)
        if ended.findings:
            ended = self._confirmed(mutant, ended)
        elif not ended.error and not mutant.survives:
            ended = replace(ended, findings=tuple(self._missed_goals(ended)[:1]))
        elif not ended.error:
            ended = replace(ended, error=self._failure_of_guard(mutant))
        return Hunted(mutant, ended.findings, ended.error, time.monotonic() - began)

    @property
    def _seeds(self) -> Sequence[int]:
        return range(self._settings.seeds)

    def _confirmed(self, mutant: Mutant, ended: Ended) -> Ended:
        """What is left of a finding when the unchanged code is held against it."""
        found = ended.findings[0]
        if found.scenario and found.engine not in self._excused:
            self._excuse_scenarios(found.engine)
            again = self._order(mutant, range(0), (CONFORMANCE,))
            return replace(
                again, findings=tuple(replace(each, seeds=found.seeds) for each in again.findings)
            )
        if not found.is_hang:
            return ended
        same_seed = range(found.seeds - 1, found.seeds) if found.searcher == SIM else range(0)
        of_none = self._order(_none_of(found.engine), same_seed, (found.searcher,))
        if not any(each.is_hang for each in of_none.findings):
            return ended
        return Ended(error=f"the unchanged code took too long as well: {found.what}")

    def _missed_goals(self, ended: Ended) -> list[Finding]:
        """The goals to which the mutant never came, and the unchanged code often."""
        found: list[Finding] = []
        for engine, reached in ended.goals.items():
            if engine not in self._goals:
                of_none = self._order(_none_of(engine), self._seeds, (SIM,))
                self._goals[engine] = of_none.goals.get(engine, {})
            for goal, count in self._goals[engine].items():
                if goal not in reached and count >= GOAL_SHARE_MIN * len(self._seeds):
                    what = f"no seed comes to the goal {goal}, to which {count} should"
                    found.append(Finding(SIM, engine, len(self._seeds), what))
        return found

    def _excuse_scenarios(self, engine: str) -> None:
        """Find what of the conformance suite the unchanged code fails, if nobody has yet."""
        of_none = self._order(_none_of(engine), range(0), (CONFORMANCE,), is_exhaustive=True)
        self._excused[engine] = [each.scenario for each in of_none.findings if each.scenario]

    def _order(
        self,
        mutant: Mutant,
        seeds: Sequence[int],
        searchers: Sequence[str],
        is_exhaustive: bool = False,
    ) -> Ended:
        """Make a copy, and have it searched."""
        try:
            copy = self._copied(mutant)
        except Misfit as misfit:
            return Ended(error=str(misfit))
        return run_order(
            Order(
                copy=str(copy),
                engines=mutant.engines,
                searchers=searchers,
                seeds=list(seeds),
                states_max=self._settings.states_max,
                seconds_max=self._settings.seconds_max,
                excused=self._excused,
                is_exhaustive=is_exhaustive,
            )
        )

    def _copied(self, mutant: Mutant) -> Path:
        """A copy of its own; raises :class:`Misfit`."""
        with self._lock:
            self._copy_count += 1
            copy = self._folder / str(self._copy_count)
        make_copy(mutant, self._snapshot, copy)
        return copy

    def _failure_of_guard(self, mutant: Mutant) -> str:
        """Why the guard of a mutant is none; empty if its test fails on the mutant."""
        if not mutant.guard:
            return "it survives, and names no test that guards it"
        status = run_guard(self._copied(mutant), mutant.guard)
        if status == TESTS_FAILED:
            return ""
        came_to = "passes on it" if status == 0 else f"ends with status {status}"
        return f"{mutant.guard}, which is to fail on it, {came_to}"


def _none_of(engine: str) -> Mutant:
    return next(none for none in NONE if none.engines == (engine,))


def run_order(order: Order) -> Ended:
    """Carry out an order in a process of its own."""
    command = (sys.executable, str(FOLDER / "hunt.py"), json.dumps(asdict(order)))
    try:
        process = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": order.copy},
            cwd=order.copy,
            capture_output=True,
            text=True,
            timeout=60 * MINUTES_MAX,
        )
    except subprocess.TimeoutExpired:
        return Ended(error=f"the hunt did not end within {MINUTES_MAX:.0f} minutes")
    words: dict[str, list[Any]] = {}
    for line in process.stdout.splitlines():
        if line.startswith("{"):
            for key, value in json.loads(line).items():
                words.setdefault(key, []).append(value)
    if "broken" in words:
        return Ended(error=f"the copy cannot be imported: {words['broken'][0]}")
    findings = tuple(Finding(**each) for each in words.get("finding", ()))
    if "ended" in words or (findings and not order.is_exhaustive):
        return Ended(findings, goals=words.get("goals", [{}])[0])
    last = (process.stderr.strip().splitlines() or ["no word"])[-1]
    return Ended(error=f"the hunt ended with status {process.returncode}: {last}")


def run_guard(copy: Path, guard: str) -> int:
    """The exit status of pytest for a test, which imports the packages of a copy."""
    code = (
        "import sys, pytest, replog; "
        "assert replog.__file__.startswith(sys.argv[1]); "
        "sys.exit(pytest.main(['-x', '-p', 'no:cacheprovider', sys.argv[2]]))"
    )
    # -P: the working directory, in which the unchanged packages are, is not looked into.
    command = (sys.executable, "-P", "-c", code, str(copy), guard)
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        return subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, timeout=60 * MINUTES_MAX
        ).returncode
    except subprocess.TimeoutExpired:
        return TESTS_FAILED


def hunt_all(
    mutants: Sequence[Mutant],
    settings: Settings,
    processes: int = 0,
    is_none_hunted: bool = True,
    handle_hunted: Callable[[Sequence[Hunted]], None] = lambda _: None,
    journal_path: Path | None = None,
) -> list[Hunted]:
    """Hunt the unchanged code with each engine concerned, then the mutants, in their order.

    ``processes`` 0: one for each core.  ``handle_hunted`` is told of all that are through, whenever
    one is; not by the caller's thread.  ``journal_path``: who is in there is not hunted again.
    """
    done: list[Hunted] = []
    engines = {engine for mutant in mutants for engine in mutant.engines}
    nones = [none for none in NONE if engines.intersection(none.engines)] if is_none_hunted else []
    lock = threading.Lock()

    def hunt_once(
        mutant: Mutant, hunt: Callable[[Mutant], Hunted], journal: Journal | None
    ) -> Hunted:
        known = journal.find(mutant) if journal else None
        hunted = hunt(mutant) if known is None else hunted_of(mutant, known)
        with lock:
            if journal and known is None and not hunted.error:
                journal.add(mutant, line_of(hunted))
            done.append(hunted)
            handle_hunted(done)
        return hunted

    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        runner = Runner(settings, Path(folder))
        # The hunts that are going on when somebody interrupts end before the journal does.
        with (
            Journal(journal_path, runner.subject) if journal_path else nullcontext() as journal,
            ThreadPoolExecutor(processes or os.cpu_count() or 1) as pool,
        ):
            # What the conformance suite finds is judged by what the unchanged code passes there.
            first = list(pool.map(lambda none: hunt_once(none, runner.hunt_none, journal), nones))
            for hunted in first:
                runner.note_none(hunted)
            return [*first, *pool.map(lambda each: hunt_once(each, runner.hunt, journal), mutants)]


def line_of(hunted: Hunted) -> Line:
    """What a journal says of a hunt."""
    return {
        "findings": [asdict(each) for each in hunted.findings],
        "seconds": round(hunted.seconds, 1),
        "goals": hunted.goals,
    }


def hunted_of(mutant: Mutant, line: Line) -> Hunted:
    """The hunt of which a journal says that."""
    findings = tuple(Finding(**each) for each in line["findings"])
    return Hunted(mutant, findings, "", line["seconds"], line["goals"])


# -- what is said --


def found_text(hunted: Hunted) -> str:
    """``found by <what> after <n seeds>``."""
    if not hunted.findings:
        return "not found"
    found = hunted.findings[0]
    by = f"{found.searcher} (hang)" if found.is_hang else found.searcher
    return f"found by {by} after {found.seeds} seed{'s' if found.seeds != 1 else ''}"


def render(all_hunted: Sequence[Hunted]) -> list[str]:
    """The table: who was found, then who was not, with its sentence; and the score by kind."""
    mutants = [each for each in all_hunted if each.mutant.name != NAME_OF_NONE]
    width = max(len(each.mutant.title) for each in all_hunted)
    lines: list[str] = []
    for hunted in [each for each in mutants if each.is_found]:
        what = shortened(hunted.findings[0].what)
        lines.append(f"{hunted.mutant.title:{width}}  {found_text(hunted):36}  {what}")
    for hunted in [each for each in mutants if not each.is_found]:
        state = hunted.error or ("survives, as explained" if hunted.mutant.survives else "SURVIVES")
        lines.append(f"{hunted.mutant.title:{width}}  {state}: {hunted.mutant.what}")
        if hunted.mutant.survives:
            lines.append(f"{'':{width}}  ({hunted.mutant.survives} {hunted.mutant.guard})")
    for hunted in [each for each in all_hunted if each.mutant.name == NAME_OF_NONE]:
        lines += none_lines(hunted)
    lines += [
        score_line(kind, [each for each in mutants if each.mutant.kind == kind])
        for kind in KINDS
        if any(each.mutant.kind == kind for each in mutants)
    ]
    return lines


def none_lines(hunted: Hunted) -> list[str]:
    """What is to be said of the unchanged code."""
    name = f"the unchanged code ({hunted.mutant.kind})"
    if hunted.error:
        return [f"{name}: {hunted.error}"]
    if not hunted.findings:
        return [f"{name}: nothing is found"]
    return [
        f"{name}: FOUND by {found.searcher} after {found.seeds} seeds: {shortened(found.what)}"
        for found in hunted.findings
    ]


def score_line(kind: str, all_hunted: Sequence[Hunted]) -> str:
    """How many of a kind were found, and by what."""
    found = [each.findings[0].searcher for each in all_hunted if each.is_found]
    by = ", ".join(f"{found.count(each)} by {each}" for each in SEARCHERS if each in found)
    explained = sum(1 for each in all_hunted if not each.is_found and each.mutant.survives)
    left = f", {explained} survive as explained" if explained else ""
    return f"{kind}: {len(found)} of {len(all_hunted)} found ({by or 'none'}){left}"


def shortened(sentence: str) -> str:
    """A sentence that fits into a table."""
    if len(sentence) <= SENTENCE_CHARS_MAX:
        return sentence
    return f"{sentence[: SENTENCE_CHARS_MAX - 3]}..."


def document(hunted: Hunted) -> Mapping[str, object]:
    """One mutant as JSON."""
    return {
        "name": hunted.mutant.name,
        "kind": hunted.mutant.kind,
        "what": hunted.mutant.what,
        "survives": hunted.mutant.survives,
        "guard": hunted.mutant.guard,
        "findings": [asdict(finding) for finding in hunted.findings],
        "error": hunted.error,
        "seconds": round(hunted.seconds, 1),
    }


def show_progress(done: Sequence[Hunted], count: int) -> None:
    """One line on a terminal, written over and over."""
    if sys.stderr.isatty():
        found = sum(1 for each in done if each.is_found)
        line = f"{len(done)} of {count} hunted, {found} found; last {done[-1].mutant.title}"
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="Hunt the mutants, and say what finds each.")
    parser.add_argument(
        "--only", metavar="NAME", action="append", help="the mutants of this name; repeatable"
    )
    parser.add_argument("--kind", choices=KINDS, help="the mutants of this kind")
    parser.add_argument(
        "--seeds", metavar="N", type=int, default=SEEDS, help="default: %(default)s"
    )
    parser.add_argument(
        "--by", choices=SEARCHERS, action="append", help="search by this alone; repeatable"
    )
    parser.add_argument(
        "--journal", metavar="FILE", type=Path, help="go on where a hunt with this file was ended"
    )
    parser.add_argument("--json", action="store_true", help="say all of it as JSON")
    given = parser.parse_args(arguments)
    every = load_mutants()
    if unknown := set(given.only or ()) - {mutant.name for mutant in every}:
        parser.error(f"there is no mutant {', '.join(sorted(unknown))}; see tests/mutants/*.toml")
    chosen = [
        mutant
        for mutant in every
        if (not given.only or mutant.name in given.only) and given.kind in (None, mutant.kind)
    ]
    if not chosen:
        parser.error("no mutant is of that name and of that kind")
    settings = Settings(given.seeds, tuple(given.by or SEARCHERS))
    all_hunted = hunt_all(
        chosen,
        settings,
        is_none_hunted=not given.only,
        handle_hunted=lambda done: show_progress(done, len(chosen) + len(NONE)),
        journal_path=given.journal,
    )
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    if given.json:
        print(json.dumps([document(each) for each in all_hunted], indent=2))
    else:
        print("\n".join(render(all_hunted)))
    return int(any(each.is_bad for each in all_hunted))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
