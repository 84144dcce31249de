"""The parts of the demonstration that need no processes: its input, its account, its judge."""

from __future__ import annotations

import pty
import re
import sys
import termios
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NoReturn, cast

import pytest
import trio

from replog.cli import demo_run, main
from replog.cli.demo_check import ReplicaDump, count_lost, count_words, dump_replica
from replog.cli.demo_load import Acknowledged, Load
from replog.cli.demo_report import (
    DemoResult,
    Progress,
    document_of,
    print_result,
    print_side_by_side,
)
from replog.cli.demo_words import Put, lines_of_replog, puts_of, words_in
from replog.cli.shared import ProgressLine
from replog.client import Client, NodeDump
from replog.config import Config
from replog.errors import OutcomeUnknown, Overloaded, ReplogError, Unavailable
from replog.machine import ApplyContext
from replog.plugins import engine_names
from replog.types import Applied, NodeId
from replog_kv import Kv

# --- The input ----------------------------------------------------------------------------------


def test_puts_count_words() -> None:
    """Each occurrence of a word is a key of its own, with its position as the value."""
    assert list(puts_of(["The cat, the CAT", "", "it's 9 o_o"], repeat=False)) == [
        ("the#1", b"1:1"),
        ("cat#1", b"1:2"),
        ("the#2", b"1:3"),
        ("cat#2", b"1:4"),
        ("it's#1", b"3:1"),
        ("o#1", b"3:2"),
        ("o#2", b"3:3"),
    ]


def test_puts_repeated_stay_unique() -> None:
    """A text that begins again gives new keys and new values for ever."""
    puts = list(islice(puts_of(["a b", "a"], repeat=True), 100))
    assert len({key for key, _ in puts}) == len({value for _, value in puts}) == 100


def test_puts_of_hostile_word_stay_short() -> None:
    """A word of a million letters is cut to a key that any store takes."""
    [(key, _)] = puts_of(["x" * 1_000_000], repeat=False)
    assert len(key) < 100


def test_default_text_is_real() -> None:
    """The text that is always there has thousands of words."""
    lines = lines_of_replog()
    assert words_in(lines) > 5_000
    assert words_in(lines) == sum(1 for _ in puts_of(lines, repeat=False))


# --- The account --------------------------------------------------------------------------------


class FakeCluster:
    """A client whose every command is applied at once, unless the script says otherwise."""

    def __init__(self, script: Callable[[int], tuple[bool, ReplogError | None]]) -> None:
        """``script`` says of the n-th command whether it is applied, and what the caller gets."""
        self.machine = Kv()
        self.proposed_count = 0
        self.index = 0
        self._script = script

    async def propose(self, payload: bytes) -> Applied:
        await trio.sleep(0.01)
        self.proposed_count += 1
        is_applied, error = self._script(self.proposed_count)
        applied = Applied(0, None)
        if is_applied:
            self.index += 1
            result = self.machine.apply(ApplyContext(self.index, 0), payload)
            applied = Applied(self.index, result)
        if error is not None:
            raise error
        return applied

    async def dump(self, cursor: bytes, items_max: int, *, node: NodeId) -> NodeDump:
        await trio.lowlevel.checkpoint()
        page = self.machine.dump(cursor, min(items_max, 3))
        return NodeDump(self.index, page.items, page.cursor)


def always_done(at: int) -> tuple[bool, ReplogError | None]:
    """The script of a cluster in which nothing goes wrong."""
    return True, None


def load_of(cluster: FakeCluster, puts: Iterator[Put], writes: int) -> Load:
    load = Load(
        cast("Client", cluster),
        Kv,
        puts,
        in_flight=4,
        writes_min=writes,
        seconds_min=0.0,
        writes_max=writes,
    )
    load.note_failure()  # lets the last quarter pass
    return load


def only(number: int, is_applied: bool, error: ReplogError) -> FakeCluster:
    """A cluster in which one command ends so, and every other one is done."""
    return FakeCluster(lambda at: (is_applied, error) if at == number else (True, None))


@pytest.mark.parametrize("is_applied", [True, False])
async def test_load_settles_unknown(is_applied: bool, autojump_clock: object) -> None:
    """A write with an unknown outcome, done or not, is in the store once at the end."""
    cluster = only(5, is_applied, OutcomeUnknown("lost"))
    load = load_of(cluster, puts_of(["a b c d e f g h"], repeat=False), 8)
    await load.run()
    assert load.unknown_count == 1
    assert len(load.acknowledged) == 8
    assert cluster.proposed_count == 9
    dump = await dump_replica(cast("Client", cluster), 1)
    assert count_lost(load.acknowledged, [dump]) == 0


async def test_load_never_repeats_unknown(autojump_clock: object) -> None:
    """An unknown write that another one has replaced since is not done a second time."""
    cluster = only(1, True, OutcomeUnknown("lost"))
    cluster.machine.put("a#1", b"other")
    cluster._script = lambda at: (at != 1, OutcomeUnknown("lost") if at == 1 else None)
    load = load_of(cluster, puts_of(["a"], repeat=False), 1)
    await load.run()
    assert cluster.machine.get("a#1") == b"other"
    dump = await dump_replica(cast("Client", cluster), 1)
    assert count_lost(load.acknowledged, [dump]) == 1


@pytest.mark.parametrize("error", [Unavailable("nobody"), Overloaded("full")])
async def test_load_repeats_not_done(error: ReplogError, autojump_clock: object) -> None:
    """A write that was definitely not done is sent again and is no unknown one."""
    cluster = only(2, False, error)
    load = load_of(cluster, puts_of(["a b c"], repeat=False), 3)
    await load.run()
    assert load.unknown_count == 0
    assert len(load.acknowledged) == 3
    assert cluster.proposed_count == 4


async def test_load_recovers_only_by_a_later_command(autojump_clock: object) -> None:
    """An acknowledgement of a command that was sent before the failure does not end it."""
    cluster = FakeCluster(always_done)
    load = Load(
        cast("Client", cluster),
        Kv,
        puts_of(["a"], repeat=True),
        in_flight=2,
        writes_min=10,
        seconds_min=1.0,
        writes_max=None,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load.run)
        await load.wait_middle()
        await trio.sleep(0.005)
        failed_at = trio.current_time()
        load.note_failure()
        await load.wait_recovered()
        load.let_end()
    # What was in flight is acknowledged after 5 ms, what is sent next after 15 ms.
    assert load.recovered_at == pytest.approx(failed_at + 0.015)
    assert load.seconds >= 1.0
    assert len(load.acknowledged) == load.written_count == len(load.latencies)


# --- What is shown ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "percent", "at"), [(1, 50, 1), (3, 50, 2), (4, 50, 2), (100, 99, 99), (101, 99, 100)]
)
def test_quantile_is_the_nearest_rank(count: int, percent: int, at: int) -> None:
    """The quantile is the smallest measured latency that so many writes did not exceed."""
    latencies = [float(rank) for rank in range(1, count + 1)]
    assert demo_run._quantile_ms(latencies, percent) == at * 1000


@pytest.mark.parametrize(("columns", "shown"), [(40, 39), (0, 79)])
def test_progress_fits_the_terminal(
    columns: int, shown: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is cut to the terminal's width, so that it never wraps."""
    controlling, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, columns))
    with open(controlling, "rb", buffering=0) as screen, open(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        progress = Progress("fake")
        progress.phase = "x" * 200
        progress.show(1)
        line = screen.read(1000)
    assert line.startswith(b"\rfake: 1 write")
    assert len(line) == len(b"\r") + shown + len(b"\x1b[K")


# --- The judge ----------------------------------------------------------------------------------


def dump_of(items: dict[str, tuple[bytes, int]]) -> ReplicaDump:
    return ReplicaDump(9, items, "")


@pytest.mark.parametrize(
    ("found", "lost"),
    [
        ({"a": (b"1", 3)}, 0),
        ({}, 1),
        ({"a": (b"2", 3)}, 1),
        ({"a": (b"1", 4)}, 1),
        ({"a": (b"1", 3), "b": (b"1", 4)}, 0),
    ],
)
def test_lost_if_missing_or_different_anywhere(
    found: dict[str, tuple[bytes, int]], lost: int
) -> None:
    """A write is lost if one replica lacks it, or has another value or index for it."""
    write = Acknowledged("a", b"1", 3)
    good = dump_of({"a": (b"1", 3)})
    assert count_lost([write], [good, dump_of(found), good]) == lost


def test_lost_settled_by_value_alone() -> None:
    """Of a settled write the index is not known, so only its value counts."""
    write = Acknowledged("a", b"1", None)
    assert count_lost([write], [dump_of({"a": (b"1", 7)})]) == 0
    assert count_lost([write], [dump_of({"a": (b"2", 7)})]) == 1


async def test_dumps_differ_by_one_item(autojump_clock: object) -> None:
    """The digest covers every page: one other value at the end makes it another one."""
    digests = []
    for last in (b"v", b"v", b"w"):
        cluster = FakeCluster(always_done)
        for number in range(7):
            cluster.machine.put(f"k{number}", b"v")
        cluster.machine.put("k9", last)
        digests.append((await dump_replica(cast("Client", cluster), 1)).digest)
    assert digests[0] == digests[1] != digests[2]


async def test_words_counted_across_pages(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    """The most frequent words are those with the most keys, however many pages that takes."""
    monkeypatch.setattr("replog.cli.demo_check._PAGE_ITEMS_MAX", 3)
    text = ["b a c b a b", "d b"]
    cluster = FakeCluster(always_done)
    await load_of(cluster, puts_of(text, repeat=False), 8).run()
    counts = Counter(" ".join(text).split())
    words = await count_words(cast("Client", cluster), Kv, 3)
    assert words == [("b", counts["b"]), ("a", counts["a"]), ("c", counts["c"])]


# --- Side by side -------------------------------------------------------------------------------


def result_of(engine: str, lost: int = 0, durable: bool = True) -> DemoResult:
    return DemoResult(
        engine=engine,
        durable=durable,
        nodes=3,
        writes=30,
        seconds=2.0,
        acknowledged=29,
        unknown=1,
        lost=lost,
        replicas_equal=True,
        killed_node=1,
        new_leader=3,
        leaderless_ms=812.4,
        commits_per_second=14.5,
        p50_ms=1.25,
        p99_ms=900.0,
        applied_index=31,
        in_flight=4,
        words=(("the", 3),),
    )


def test_engines_shown_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    """Each engine has a column, every row lines up, and a loss cannot be overlooked."""
    print_side_by_side([result_of("abc"), result_of("defghi", lost=2)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["abc", "defghi"]
    column = lines[1].index("defghi")
    rows = {line[:23].strip(): line for line in lines[2:11]}
    assert rows["logs"].split()[-3:] == ["synced", "to", "disk"]
    assert rows["time without a leader"][column:] == "812 ms"
    assert rows["latency"][column:] == "p50 1.2 ms, p99 900.0 ms"
    assert rows["lost"][column:].startswith("2   <-- this must never happen")
    assert lines[-1].endswith("--engines abc,defghi")
    assert "NOT durable" not in "".join(lines)


def test_not_durable_said_everywhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is shown of a run whose logs are not durable says so: the verdict, the columns side
    by side, the document, and the line while it runs."""
    result = result_of("abc", durable=False)
    print_result(result)
    first_line = capsys.readouterr().out.splitlines()[0]
    assert "logs NOT durable: a power cut may lose what is acknowledged" in first_line
    print_side_by_side([result, result_of("other", durable=False)])
    shown = capsys.readouterr().out
    assert re.search(r"^ *logs +NOT durable +NOT durable$", shown, re.MULTILINE)
    assert shown.rstrip().endswith("--engines abc,other --sync os")
    assert document_of(result)["durable"] is False
    lines: list[str] = []
    monkeypatch.setattr(ProgressLine, "show", lambda _, text: lines.append(text))
    Progress("abc", is_durable=False).show(7)
    Progress("abc").show(7)
    assert [("NOT durable" in line) for line in lines] == [True, False]


@pytest.mark.parametrize(("arguments", "level"), [([], "always"), (["--sync", "os"], "os")])
def test_sync_level_reaches_the_nodes(
    arguments: list[str], level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The level that is asked for is that of the cluster's configuration, and always by default."""
    found: list[str] = []

    def stop(config: Config, folder: Path) -> NoReturn:
        found.append(config.sync)
        raise Unavailable("enough was seen")

    monkeypatch.setattr(demo_run, "node_processes", stop)
    assert main(["demo", "--engine", engine_names()[0], "--json", *arguments]) == 1
    assert found == [level]
