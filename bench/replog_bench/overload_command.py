"""``python -m replog_bench overload``: its options, and what it prints."""

from __future__ import annotations

import argparse
from typing import Final

from replog import plugins
from replog_bench.arguments import (
    Commands,
    OneLineParser,
    chosen_engines,
    names,
    positive,
    seconds,
    show_progress,
    value_bytes,
    whole,
)
from replog_bench.overload import OverloadPlan, run_overload_plan
from replog_bench.report import OverloadRow, to_json, to_table

EXAMPLE: Final = """\
example:
  python -m replog_bench overload --engines {engines} --seconds 6 --json

Three processes on this machine. The leader is measured with a closed loop, offered twice as much by
an open loop in its own process, and measured again; with the key-value store, with one that sleeps
before each command, and with that one without the limit on what is committed and not applied. What
is refused comes again when the refusal says. Only ratios within one run mean something."""


def factor(text: str) -> float:
    """How many times the peak."""
    return whole(text, 1, 100)


def add_overload(commands: Commands, common: OneLineParser) -> None:
    """Declare ``overload``."""
    parser = commands.add_parser(
        "overload",
        parents=[common],
        help="throughput, refusals and memory under twice the load that a leader can take",
        description="What a leader does when it is offered a multiple of what it can do.",
        epilog=EXAMPLE.format(engines=",".join(plugins.engine_names())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--engines", type=names, help="installed engines, separated by commas (default: all)"
    )
    parser.add_argument(
        "--clients", type=positive, default=512, help="in flight in the closed loops (512)"
    )
    parser.add_argument("--seconds", type=seconds, default=5.0, help="of the overload (5)")
    parser.add_argument(
        "--closed-seconds", type=seconds, default=1.5, help="of each closed loop (1.5)"
    )
    parser.add_argument(
        "--warm-up-seconds", type=seconds, default=0.5, help="before each closed loop (0.5)"
    )
    parser.add_argument(
        "--factor", type=factor, default=2, help="how many times the peak is offered (2)"
    )
    parser.add_argument(
        "--patience-seconds",
        type=seconds,
        default=1.0,
        help="how long a command that is refused comes again (1)",
    )
    parser.add_argument(
        "--apply-us", type=positive, default=200, help="what the slow store sleeps (200)"
    )
    parser.add_argument("--repeats", type=positive, default=1, help="trials of each (1)")
    parser.add_argument(
        "--value-bytes", type=value_bytes, default=64, help="size of an encoded put (64)"
    )
    parser.set_defaults(run=run_overload_command)


def run_overload_command(given: argparse.Namespace) -> None:
    """Carry out ``overload``."""
    engines = chosen_engines(given)
    plan = OverloadPlan(
        engines=engines,
        clients=given.clients,
        value_bytes=given.value_bytes,
        warm_up_seconds=given.warm_up_seconds,
        closed_seconds=given.closed_seconds,
        seconds=given.seconds,
        factor=given.factor,
        patience_seconds=given.patience_seconds,
        apply_us=given.apply_us,
        repeats=given.repeats,
        directory=given.directory,
    )
    rows = run_overload_plan(plan, show_progress)
    show_progress("")
    print(to_json(rows) if given.json else to_table(OverloadRow.HEADINGS, rows))
