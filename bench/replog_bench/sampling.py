"""How a small operation is measured: the samples of its cost in microseconds.

Costs below a millisecond are taken over a batch of operations; what waits for the disk or for
another process is taken one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TypeAlias

Samples: TypeAlias = list[float]


@dataclass(frozen=True, slots=True)
class Measure:
    """One row to be measured."""

    note: str
    """What is measured, for people."""
    run: Callable[[Path], Samples]
    """Given a directory for its files; microseconds per operation, a sample at a time."""


def per_operation(
    operation: Callable[[], object], *, divide: int = 1, samples: int = 15
) -> Samples:
    """Samples of at least 5 ms each; ``divide`` is how many operations one call does."""
    calls = 1
    while (took := _seconds(operation, calls)) < 0.005:
        calls = max(calls * 2, int(calls * 0.006 / max(took, 1e-6)))
    return [_seconds(operation, calls) / calls / divide * 1e6 for _ in range(samples)]


def _seconds(operation: Callable[[], object], calls: int) -> float:
    start = perf_counter()
    for _ in range(calls):
        operation()
    return perf_counter() - start


def one_by_one(operation: Callable[[], object], samples: int) -> Samples:
    """Each call a sample."""
    return [_seconds(operation, 1) * 1e6 for _ in range(samples)]
