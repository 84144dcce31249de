"""How the demonstration shows what it found: for programs, for people, and while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from replog.cli.shared import ProgressLine
from replog.types import NodeId, record

_FAILURE_TOO: Final = ", the failure included"

_DURABLE: Final = "synced to disk"
_NOT_DURABLE: Final = "NOT durable"


@record
class DemoResult:
    """What one engine's run showed; its fields are the keys of ``replog demo --json``."""

    engine: str
    durable: bool
    """Whether every node's log survives a power cut."""
    nodes: int
    writes: int
    seconds: float
    """From the first write to the last acknowledgement, the time without a leader included."""
    acknowledged: int
    unknown: int
    lost: int
    replicas_equal: bool
    killed_node: NodeId
    new_leader: NodeId
    leaderless_ms: float
    commits_per_second: float
    p50_ms: float
    p99_ms: float
    applied_index: int
    in_flight: int
    words: Sequence[tuple[str, int]]
    """The most frequent words with their counts."""

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost and all replicas are equal."""
        return self.lost == 0 and self.replicas_equal


def document_of(result: DemoResult) -> dict[str, object]:
    """The result as JSON shows it."""
    document: dict[str, object] = {
        name: getattr(result, name) for name in DemoResult.__annotations__
    }
    document["words"] = [{"word": word, "count": count} for word, count in result.words]
    return document


def print_result(result: DemoResult) -> None:
    """Show the result to people, on standard output."""
    print(
        f"{result.engine}: {result.nodes} nodes, logs {_durability(result)}, "
        f"{result.in_flight} writes in flight"
    )
    for name, text in _rows(result):
        print(f"  {name:<22} {text}")
    print("  the most frequent words, as counted in the cluster:")
    width = max((len(f"{count:,}") for _, count in result.words), default=0)
    for word, count in result.words:
        print(f"    {count:>{width},}  {word}")


def _durability(result: DemoResult) -> str:
    return (
        _DURABLE if result.durable else f"{_NOT_DURABLE}: a power cut may lose what is acknowledged"
    )


def _rows(result: DemoResult) -> Sequence[tuple[str, str]]:
    """What is said of one run, as names and texts."""
    lost = f"{result.lost:,}" + ("" if result.lost == 0 else "   <-- this must never happen")
    equal = "yes, byte for byte" if result.replicas_equal else "NO   <-- this must never happen"
    latency = f"p50 {result.p50_ms:.1f} ms, p99 {result.p99_ms:.1f} ms"
    return (
        ("acknowledged writes", f"{result.acknowledged:,} in {result.seconds:.1f} s"),
        ("commits per second", f"{result.commits_per_second:,.0f}"),
        ("latency", latency + _FAILURE_TOO),
        ("leader killed", f"node {result.killed_node}; node {result.new_leader} took over"),
        ("time without a leader", f"{result.leaderless_ms:.0f} ms"),
        ("unknown, then settled", f"{result.unknown:,}"),
        ("lost", lost),
        ("replicas equal", equal),
    )


def print_side_by_side(results: Sequence[DemoResult]) -> None:
    """Show the runs of several engines in columns, without the words that are in all of them."""
    table: list[Sequence[str]] = [
        ("", *(result.engine for result in results)),
        ("logs", *(_DURABLE if result.durable else _NOT_DURABLE for result in results)),
    ]
    table += [
        (row[0][0], *(text.removesuffix(_FAILURE_TOO) for _, text in row))
        for row in zip(*map(_rows, results), strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print("side by side:")
    for line in table:
        cells = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        print(f"  {'  '.join(cells)}".rstrip())
    level = "" if all(result.durable for result in results) else " --sync os"
    print(
        "one run of each, one after the other: to compare their speed, use\n"
        f"python -m replog_bench throughput --engines {','.join(r.engine for r in results)}{level}"
    )


class Progress:
    """How far the demonstration of one engine is."""

    def __init__(self, engine: str, is_durable: bool = True) -> None:
        self.phase = "starting the nodes"
        """What is being done, in a few words."""
        self._name = engine if is_durable else f"{engine}, {_NOT_DURABLE}"
        self._line = ProgressLine()

    def show(self, acknowledged_count: int) -> None:
        """Rewrite the line."""
        self._line.show(f"{self._name}: {acknowledged_count:,} writes acknowledged; {self.phase}")

    def clear(self) -> None:
        """Leave no trace of the line."""
        self._line.clear()
