"""What the small operations cost that a command passes through, and what the machine itself costs.

Each measure is one row: a name, and a function that returns the samples in microseconds per
operation.  Every installed engine has its own rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

from replog_bench.micro_engine import engine_measures
from replog_bench.micro_machine import MACHINE_MEASURES
from replog_bench.micro_parts import PART_MEASURES
from replog_bench.report import MicroRow
from replog_bench.sampling import Measure


def find_measures(engines: Sequence[str]) -> dict[str, Measure]:
    """Every measure by its name, with those of ``engines``.

    Raises :class:`~replog.errors.PluginError` for an engine that is not installed.
    """
    found = {**PART_MEASURES}
    for engine in engines:
        found |= engine_measures(engine)
    return found | {**MACHINE_MEASURES}


def run_micro(
    measures: Mapping[str, Measure], *, directory: Path | None, progress: Callable[[str], None]
) -> list[MicroRow]:
    """Measure everything, one row each."""
    rows = []
    for name, measure in measures.items():
        progress(name)
        with tempfile.TemporaryDirectory(prefix="replog-bench-", dir=directory) as made:
            samples = measure.run(Path(made))
        rows.append(MicroRow(name, median(samples), min(samples), measure.note))
    return rows
