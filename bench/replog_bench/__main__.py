"""``python -m replog_bench``: the command line of the measurements."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from replog import plugins
from replog.config import SYNC_LEVELS
from replog.config_text import default_engine
from replog.errors import PluginError, ReplogError
from replog_bench.arguments import (
    Commands,
    OneLineParser,
    chosen_engines,
    counts,
    directory,
    names,
    new_file,
    positive,
    seconds,
    show_progress,
    value_bytes,
)
from replog_bench.clients import ClientsPlan, run_clients_plan
from replog_bench.etcd import ETCD, EtcdPlan, find_systems, run_etcd_plan
from replog_bench.etcd_tools import (
    NothingToCompare,
    find_tools,
    missing_packages,
    missing_sentence,
    server_version,
)
from replog_bench.micro import find_measures, run_micro
from replog_bench.overload_command import add_overload
from replog_bench.protocol import run_protocol
from replog_bench.recovery import SCENARIOS, RecoveryPlan, run_recovery
from replog_bench.report import (
    BASE,
    NOT_DURABLE,
    ClientsRow,
    EtcdRow,
    MicroRow,
    ProtocolRow,
    RecoveryRow,
    StorageRow,
    ThroughputRow,
    to_json,
    to_table,
)
from replog_bench.storage import StoragePlan, run_storage
from replog_bench.throughput import Plan, explain, find_contestants, run_throughput

DESCRIPTION = "Measure replog beside the bare pipeline, which does the same work without consensus."

DISK_SYNC_US_MIN = 10
"""The fastest drives that keep what they promise take longer; a file system in memory does not."""

THROUGHPUT_EXAMPLE = """\
example:
  python -m replog_bench throughput --engines {engines} --clients 1,64,1024 --json

Three processes on this machine, the load inside the leader; every command is on the disks of two of
them before it counts; then again for each engine with the load in a process of a network client,
over one connection. Only the ratios within one run mean something: machines drift. Put
--directory on the disk that is to be measured; a file system in memory syncs nothing. With
--sync os nobody waits for a disk, bare included, and no figure is of anything durable."""

CLIENTS_EXAMPLE = """\
example:
  python -m replog_bench clients --engines {engines} --clients 1,256 --json

Four processes on this machine: three nodes, and a client with one connection to the leader. Each
kind of request has a new cluster; the ratios are to the puts of the same repeat."""

ETCD_EXAMPLE = """\
example:
  python -m replog_bench etcd --engines {engines} --clients 1,256 --directory /var/lib/replog

Clusters of three on loopback take turns; every put is on the disks of two nodes before it counts.
etcd has its default settings and a client in Go, replog its client for trio, each in a process of
its own with one connection to the leader. Debian and Ubuntu have what the rows of etcd need:
  apt-get install --no-install-recommends etcd-server golang-go golang-etcd-server-dev
Without that they are left out, a sentence on stderr says so, and the exit code is still 0."""

MICRO_EXAMPLE = """\
example:
  python -m replog_bench micro --only sync --json"""


PROTOCOL_EXAMPLE = """\
example:
  python -m replog_bench protocol --engines {engines}

The clusters are modelled and the messages encoded as on the wire, so the same run gives the same
figures on every machine."""


STORAGE_EXAMPLE = """\
example:
  python -m replog_bench storage --entries 100000 --directory /var/lib/replog"""


RECOVERY_EXAMPLE = """\
example:
  python -m replog_bench recovery --entries 1000000 --snapshot-mb 500 --directory /var/lib/replog

The disk below --directory needs about six times the snapshot. Scenarios: {scenarios}."""


def scenarios(text: str) -> list[str]:
    """Names of scenarios, separated by commas."""
    for name in names(text):
        if name not in SCENARIOS:
            raise argparse.ArgumentTypeError(
                f"there is no scenario {name!r}; choose from {', '.join(SCENARIOS)}"
            )
    return names(text)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(
        prog="python -m replog_bench",
        description=DESCRIPTION,
        epilog="example:\n  python -m replog_bench throughput --clients 64",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = OneLineParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the rows as a JSON array")
    common.add_argument(
        "--directory",
        type=directory,
        help="where the files lie meanwhile (default: where temporary files go)",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add_throughput(commands, common)
    add_clients(commands, common)
    add_etcd(commands, common)
    add_micro(commands, common)
    add_protocol(commands, common)
    add_storage(commands, common)
    add_recovery(commands, common)
    add_overload(commands, common)
    return parser


def add_throughput(commands: Commands, common: OneLineParser) -> None:
    """Declare ``throughput``."""
    throughput = commands.add_parser(
        "throughput",
        parents=[common],
        help="commits per second and latency, compared with bare",
        description="Commits per second and latency of a closed loop, compared with bare.",
        epilog=THROUGHPUT_EXAMPLE.format(engines=",".join(plugins.engine_names())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    throughput.add_argument(
        "--engines",
        type=names,
        default=[],
        help="installed engines, separated by commas, to be compared with bare",
    )
    throughput.add_argument(
        "--clients", type=counts, default=[1, 64, 1024], help="commands in flight (1,64,1024)"
    )
    throughput.add_argument(
        "--seconds", type=seconds, default=1.2, help="length of each window (1.2)"
    )
    throughput.add_argument(
        "--warm-up-seconds", type=seconds, default=0.3, help="load before each window (0.3)"
    )
    throughput.add_argument(
        "--network-seconds",
        type=seconds,
        default=0.7,
        help="length of each window with network clients (0.7)",
    )
    throughput.add_argument(
        "--no-network", action="store_true", help="measure no network clients, which saves time"
    )
    throughput.add_argument("--repeats", type=positive, default=3, help="windows of each (3)")
    throughput.add_argument(
        "--sync",
        choices=SYNC_LEVELS,
        default=SYNC_LEVELS[0],
        help="when bare and engines sync: always, which is before a command counts, or when the "
        "operating system likes (os), which is NOT durable (always)",
    )
    throughput.add_argument(
        "--value-bytes",
        type=value_bytes,
        default=64,
        help="size of the value to agree on, which is one encoded put command (64)",
    )
    for option, what in (("--profile", "profile"), ("--timeline", "timeline of a group of writes")):
        throughput.add_argument(
            option,
            type=new_file,
            metavar="FILE",
            help=f"write the {what} of each engine's leader there, from one trial more of each",
        )
    throughput.set_defaults(run=run_throughput_command)


def add_clients(commands: Commands, common: OneLineParser) -> None:
    """Declare ``clients``."""
    parser = commands.add_parser(
        "clients",
        parents=[common],
        help="what network clients are served with: puts, puts in a session, linearizable reads",
        description="What network clients are served with, each compared with plain puts.",
        epilog=CLIENTS_EXAMPLE.format(engines=",".join(plugins.engine_names())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--engines", type=names, help="installed engines, separated by commas (default: all)"
    )
    parser.add_argument(
        "--clients", type=counts, default=[1, 256], help="requests in flight (1,256)"
    )
    parser.add_argument("--seconds", type=seconds, default=1.5, help="of each window (1.5)")
    parser.add_argument(
        "--warm-up-seconds", type=seconds, default=0.5, help="load before each window (0.5)"
    )
    parser.add_argument("--repeats", type=positive, default=3, help="windows of each (3)")
    parser.add_argument(
        "--value-bytes", type=value_bytes, default=64, help="size of an encoded put (64)"
    )
    parser.set_defaults(run=run_clients_command)


def add_etcd(commands: Commands, common: OneLineParser) -> None:
    """Declare ``etcd``."""
    parser = commands.add_parser(
        "etcd",
        parents=[common],
        help="network clients beside those of etcd: puts and linearizable reads",
        description="What network clients are served with, compared with those of etcd.",
        epilog=ETCD_EXAMPLE.format(engines=",".join(plugins.engine_names())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        *("--engines", "--engine"),
        type=names,
        help="installed engines, separated by commas (default: all)",
    )
    parser.add_argument(
        "--clients", type=counts, default=[1, 256], help="requests in flight (1,256)"
    )
    parser.add_argument("--seconds", type=seconds, default=2.0, help="of each window (2)")
    parser.add_argument(
        "--warm-up-seconds", type=seconds, default=0.5, help="load before each window (0.5)"
    )
    parser.add_argument("--repeats", type=positive, default=3, help="rounds (3)")
    parser.add_argument(
        "--value-bytes", type=value_bytes, default=64, help="size of replog's encoded put (64)"
    )
    parser.add_argument(
        "--etcd-connections",
        type=positive,
        default=1,
        help="connections that etcd's client has, to see whether more help it (1)",
    )
    parser.set_defaults(run=run_etcd_command)


def add_micro(commands: Commands, common: OneLineParser) -> None:
    """Declare ``micro``."""
    micro = commands.add_parser(
        "micro",
        parents=[common],
        help="the cost of single operations, and of this machine",
        description="The cost of single operations, and of this machine.",
        epilog=MICRO_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    micro.add_argument(
        "--engines", type=names, help="installed engines, separated by commas (default: all)"
    )
    micro.add_argument("--only", default="", help="only the rows whose name holds this text")
    micro.set_defaults(run=run_micro_command)


def add_protocol(commands: Commands, common: OneLineParser) -> None:
    """Declare ``protocol``."""
    protocol = commands.add_parser(
        "protocol",
        parents=[common],
        help="the messages and bytes that a take-over, a catch-up and the like cost",
        description="Messages, bytes and ticks of single events, counted in a modelled cluster.",
        epilog=PROTOCOL_EXAMPLE.format(engines=",".join(plugins.engine_names())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    protocol.add_argument(
        "--engines", type=names, help="installed engines, separated by commas (default: all)"
    )
    protocol.set_defaults(run=run_protocol_command)


def add_storage(commands: Commands, common: OneLineParser) -> None:
    """Declare ``storage``."""
    storage = commands.add_parser(
        "storage",
        parents=[common],
        help="groups of the log beside bare writes, and what a long log costs",
        description="Groups of the log beside bare writes and syncs, and what a long log costs.",
        epilog=STORAGE_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    storage.add_argument(
        "--entries", type=positive, default=1_000_000, help="of the long log (1000000)"
    )
    storage.add_argument("--groups", type=positive, default=200, help="of each size (200)")
    storage.set_defaults(run=run_storage_command)


def add_recovery(commands: Commands, common: OneLineParser) -> None:
    """Declare ``recovery``."""
    recovery = commands.add_parser(
        "recovery",
        parents=[common],
        help="restart, catch-up, a snapshot from a peer, and the memory they take",
        description="How a node comes back: restart, catch-up, a snapshot from a peer; and memory.",
        epilog=RECOVERY_EXAMPLE.format(scenarios=", ".join(SCENARIOS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    recovery.add_argument("--engine", default=default_engine(), help="an installed engine")
    recovery.add_argument(
        "--entries", type=positive, default=1_000_000, help="of 64 bytes, in the log (1000000)"
    )
    recovery.add_argument(
        "--snapshot-mb", type=positive, default=500, help="size of the snapshot in MB (500)"
    )
    recovery.add_argument("--repeats", type=positive, default=1, help="runs of each scenario (1)")
    recovery.add_argument(
        "--seconds-max", type=seconds, default=120.0, help="longest that a step may take (120)"
    )
    recovery.add_argument(
        "--scenarios",
        type=scenarios,
        default=list(SCENARIOS),
        help="separated by commas (default: all)",
    )
    recovery.set_defaults(run=run_recovery_command)


def warn_no_disk(sync_us: float) -> None:
    """Say so where a sync is too quick for a disk."""
    if sync_us < DISK_SYNC_US_MIN:
        print(
            f"replog_bench: a sync takes less than {DISK_SYNC_US_MIN} us here, so this is no disk; "
            "name a directory on one with --directory",
            file=sys.stderr,
        )


def run_throughput_command(given: argparse.Namespace) -> None:
    """Carry out ``throughput``."""
    contestants = find_contestants(given.engines)
    plans = [
        Plan(
            clients=clients,
            value_bytes=given.value_bytes,
            warm_up_seconds=given.warm_up_seconds,
            seconds=given.seconds,
            network_seconds=0.0 if given.no_network else given.network_seconds,
            repeats=given.repeats,
            directory=given.directory,
            sync=given.sync,
        )
        for clients in given.clients
    ]
    rows: list[ThroughputRow] = []
    for plan in plans:
        rows += run_throughput(contestants, plan, show_progress)
    explain_all(given.profile, contestants, plans, timeline=False)
    explain_all(given.timeline, contestants, plans, timeline=True)
    show_progress("")
    is_durable = all(row.durable for row in rows)
    if is_durable:
        warn_no_disk(min(row.sync_us for row in rows))
    print(to_json(rows) if given.json else to_table(ThroughputRow.HEADINGS, rows))
    if not is_durable and not given.json:
        print(
            f"{NOT_DURABLE}: with --sync {given.sync} nothing is synced before it is acknowledged, "
            "and a power cut loses it"
        )


def run_clients_command(given: argparse.Namespace) -> None:
    """Carry out ``clients``."""
    engines = chosen_engines(given)
    plan = ClientsPlan(
        engines=engines,
        clients=given.clients,
        value_bytes=given.value_bytes,
        warm_up_seconds=given.warm_up_seconds,
        seconds=given.seconds,
        repeats=given.repeats,
        directory=given.directory,
    )
    rows = run_clients_plan(plan, show_progress)
    show_progress("")
    print(to_json(rows) if given.json else to_table(ClientsRow.HEADINGS, rows))


def run_etcd_command(given: argparse.Namespace) -> None:
    """Carry out ``etcd``."""
    engines = chosen_engines(given)
    plan = EtcdPlan(
        clients=given.clients,
        value_bytes=given.value_bytes,
        warm_up_seconds=given.warm_up_seconds,
        seconds=given.seconds,
        repeats=given.repeats,
        etcd_connections=given.etcd_connections,
        directory=given.directory,
    )
    tools = find_tools()
    if tools is None:
        sentence = missing_sentence(missing_packages())
        if not engines:
            raise NothingToCompare(f"there is no engine to measure, and {sentence}")
        print(f"replog_bench: {sentence}", file=sys.stderr)
    systems = find_systems(engines, tools, plan, show_progress)
    rows = run_etcd_plan(systems, plan, show_progress)
    show_progress("")
    warn_no_disk(min(row.sync_us for row in rows))
    print(to_json(rows) if given.json else to_table(EtcdRow.HEADINGS, rows))
    if tools is not None and not given.json:
        print(f"{ETCD} is {server_version(tools)} with default settings, its client is in Go")


def explain_all(
    path: Path | None, engines: Iterable[str], plans: Sequence[Plan], *, timeline: bool
) -> None:
    """Write where the time goes in every engine, under every number of clients, to ``path``."""
    if path is None:
        return
    with path.open("w", encoding="utf-8") as file:
        for engine in engines:
            for plan in plans:
                if engine != BASE:
                    file.write(explain(engine, plan, timeline=timeline, progress=show_progress))


def run_micro_command(given: argparse.Namespace) -> None:
    """Carry out ``micro``."""
    engines = chosen_engines(given)
    measures = {
        name: measure for name, measure in find_measures(engines).items() if given.only in name
    }
    rows: list[MicroRow] = run_micro(measures, directory=given.directory, progress=show_progress)
    show_progress("")
    print(to_json(rows) if given.json else to_table(MicroRow.HEADINGS, rows))


def run_protocol_command(given: argparse.Namespace) -> None:
    """Carry out ``protocol``."""
    engines = chosen_engines(given)
    rows = run_protocol(engines, show_progress)
    show_progress("")
    print(to_json(rows) if given.json else to_table(ProtocolRow.HEADINGS, rows))


def run_storage_command(given: argparse.Namespace) -> None:
    """Carry out ``storage``."""
    rows = run_storage(StoragePlan(given.entries, given.groups, given.directory), show_progress)
    show_progress("")
    print(to_json(rows) if given.json else to_table(StorageRow.HEADINGS, rows))


def run_recovery_command(given: argparse.Namespace) -> None:
    """Carry out ``recovery``."""
    plugins.find_engine(given.engine)
    plan = RecoveryPlan(
        engine=given.engine,
        entries=given.entries,
        snapshot_bytes=given.snapshot_mb * 1_000_000,
        repeats=given.repeats,
        scenarios=given.scenarios,
        seconds_max=given.seconds_max,
        directory=given.directory,
    )
    rows = run_recovery(plan, show_progress)
    show_progress("")
    print(to_json(rows) if given.json else to_table(RecoveryRow.HEADINGS, rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it went well, else one sentence on stderr.

    2 for what is wrong with the command line, an engine that is not installed among it, and where
    nothing is there to be measured; else 1.
    """
    given = make_parser().parse_args(arguments)
    try:
        given.run(given)
    except ReplogError as error:
        show_progress("")
        print(f"replog_bench: {error}", file=sys.stderr)
        return 2 if isinstance(error, PluginError | NothingToCompare) else 1
    except KeyboardInterrupt:
        show_progress("")
        return 130
    return 0


def end(_number: int, _frame: object) -> None:
    """End as by Ctrl-C, so that the children and the temporary files go too."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)
    sys.exit(main())
