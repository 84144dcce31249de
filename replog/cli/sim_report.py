"""How ``replog sim`` shows what it found: for programs and for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from replog.cli.shared import print_table
from replog.testing.chance import KINDS
from replog.testing.seeds import Found, Tally
from replog.testing.shrink import Shrunk
from replog.testing.sim import SimOptions

TRACE_LINES: Final = 40
"""So much of a shrunk run's end is shown; the command below it writes all of it."""


def replay_command(options: SimOptions) -> str:
    """The command line that repeats a run."""
    plain = SimOptions(options.engine, options.seed)
    words = [f"replog sim --engine {options.engine} --seed {options.seed}"]
    if options.nodes:
        words.append(f"--nodes {options.nodes}")
    if options.faults.text != plain.faults.text:
        words.append(f"--faults {options.faults.text}")
    if options.ticks != plain.ticks:
        words.append(f"--ticks {options.ticks}")
    if options.operations_max != plain.operations_max:
        words.append(f"--operations {options.operations_max}")
    return " ".join(words)


def documents(
    tallies: Sequence[Tally],
    shrunk: Mapping[str, Sequence[Shrunk | None]],
    are_goals_due: bool,
) -> list[dict[str, object]]:
    """What JSON shows: an object for each engine."""
    return [_document(tally, shrunk.get(tally.engine, ()), are_goals_due) for tally in tallies]


def _document(
    tally: Tally, shrunk: Sequence[Shrunk | None], are_goals_due: bool
) -> dict[str, object]:
    small = [*shrunk, *([None] * (len(tally.found) - len(shrunk)))]
    return {
        "engine": tally.engine,
        "seeds": tally.seeds,
        "violations": [
            _violation(found, smaller) for found, smaller in zip(tally.found, small, strict=True)
        ],
        "events": tally.events,
        "events_per_second": round(tally.events_per_second),
        "goals": tally.goal_counts,
        "missed_goals": tally.missed_goals if are_goals_due else [],
        "faults": {kind: tally.struck[kind] for kind in KINDS},
        "median_events": tally.median_events,
        "median_operations": tally.median_operations,
        "real_log_seeds": tally.real_count,
    }


def _violation(found: Found, shrunk: Shrunk | None) -> dict[str, object]:
    return {
        "seed": found.options.seed,
        "invariant": found.invariant,
        "sentence": found.sentence,
        "replay": replay_command(found.options),
        "shrunk_replay": None if shrunk is None else replay_command(shrunk.options),
        "trace": list(found.trace_tail if shrunk is None else shrunk.violation.trace_tail),
    }


def print_report(
    tallies: Sequence[Tally],
    shrunk: Mapping[str, Sequence[Shrunk | None]],
    are_goals_due: bool,
) -> None:
    """Show it all to people; the violations last, where they are seen."""
    print_table(
        ("engine", "seeds", "violations", "events", "events/s", "events/seed", "commands/seed"),
        [
            (
                tally.engine,
                f"{tally.seeds}",
                f"{len(tally.found)}",
                f"{tally.events}",
                f"{tally.events_per_second:.0f}",
                f"{tally.median_events:.0f}",
                f"{tally.median_operations:.0f}",
            )
            for tally in tallies
        ],
    )
    print("(events/s: of one core; per seed: the median)\n")
    _print_goals(tallies)
    for tally in tallies:
        if not any(tally.operations_by_seed):
            print(f"\n{tally.engine}: no client's command ended, so these runs show little")
        if are_goals_due and tally.missed_goals:
            print(f"\n{tally.engine}: no seed came to: {', '.join(tally.missed_goals)}")
        for found, smaller in zip(tally.found, shrunk[tally.engine], strict=False):
            _print_violation(found, smaller)
        more = tally.found[len(shrunk[tally.engine]) :]
        if more:
            seeds = ", ".join(f"{found.options.seed} ({found.invariant})" for found in more)
            print(f"\n{tally.engine}: broken as well, not shrunk: {seeds}")


def _print_goals(tallies: Sequence[Tally]) -> None:
    names = dict.fromkeys(name for tally in tallies for name in tally.sentences)
    sentences = {name: text for tally in tallies for name, text in tally.sentences.items()}
    print_table(
        ("seeds that came to", *(tally.engine for tally in tallies), "which means"),
        [
            (
                name,
                *(f"{tally.goals[name]}" if name in tally.sentences else "-" for tally in tallies),
                sentences[name],
            )
            for name in names
        ],
    )


def _print_violation(found: Found, shrunk: Shrunk | None) -> None:
    print(f"\nVIOLATION of {found.invariant} by {found.options.engine}, seed {found.options.seed}")
    print(f"  {found.sentence}")
    print(f"  replay: {replay_command(found.options)}")
    if shrunk is None:
        print("  The same seed did not break it a second time: something is not deterministic.")
        return
    print(
        f"  shrunk in {shrunk.attempts} runs to {shrunk.strikes} strikes of chance; the same "
        "invariant breaks by"
    )
    print(f"    {replay_command(shrunk.options)} --trace FILE")
    print(f"  {shrunk.violation.sentence}")
    print("  the end of its trace:")
    for line in shrunk.violation.trace_tail[-TRACE_LINES:]:
        print(f"    {line}")


def print_trace_report(tally: Tally, line_count: int, path: str) -> None:
    """Say what a single run came to, when its trace is written."""
    print(f"{line_count} lines in {path}")
    for found in tally.found:
        print(f"VIOLATION of {found.invariant}: {found.sentence}")
    if not tally.found:
        goals = [name for name, count in tally.goal_counts.items() if count]
        print(f"{tally.events} events, nothing broke; it came to: {', '.join(goals) or 'no goal'}")
