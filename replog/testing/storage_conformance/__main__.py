"""``python -m replog.testing.storage_conformance``: run the suite and count what passed."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from replog.errors import PluginError
from replog.plugins import find_storage, storage_names
from replog.storage.plugin import StoragePlugin
from replog.testing.storage_conformance import (
    Result,
    Scenario,
    check_storage,
    on_forgetful_files,
    on_real_files,
    scenarios,
)

_EPILOG = """\
examples:
  python -m replog.testing.storage_conformance
  python -m replog.testing.storage_conformance --storage wal --power-cuts
  python -m replog.testing.storage_conformance --storage my_storage --only reading --folder /data
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every scenario passed, 1 if one failed, 2 for a mistake in the arguments."""
    options = _parser().parse_args(arguments)
    chosen = [scenario for scenario in scenarios() if options.only in scenario.name]
    names = storage_names() if options.storage is None else [options.storage]
    try:
        plugins = [find_storage(name) for name in names]
    except PluginError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not chosen:
        print(f"error: no scenario has {options.only!r} in its name", file=sys.stderr)
        return 2
    if options.folder is not None and not options.folder.is_dir():
        print(f"error: {options.folder} is no directory; make it first", file=sys.stderr)
        return 2
    documents = [_judge(plugin, chosen, options) for plugin in plugins]
    if options.json:
        print(json.dumps(documents, indent=2))
    return 1 if any(document["failed"] for document in documents) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m replog.testing.storage_conformance",
        description="Run the conformance suite with an installed storage, or with each of them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--storage", metavar="NAME", help="run this storage alone")
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="scenarios whose names hold this text"
    )
    parser.add_argument(
        "--folder", metavar="PATH", type=Path, help="where to make the nodes' directories"
    )
    parser.add_argument(
        "--power-cuts",
        action="store_true",
        help="run on a disk in memory, on which a crash takes away what was not synced; for "
        "storages that use the file layer of their home",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return parser


def _judge(
    plugin: StoragePlugin, chosen: Sequence[Scenario], options: argparse.Namespace
) -> dict[str, object]:
    """Run one storage, print what came of it, and return it as a document."""

    def report(result: Result) -> None:
        if not options.json:
            word = "FAILED" if result.failure else "excused" if result.excused else "ok"
            print(f"  {word:<7}  {result.scenario.name}", flush=True)

    if not options.json:
        print(plugin.name)
    with tempfile.TemporaryDirectory(prefix="storages-", dir=options.folder) as folder:
        subject = (
            on_forgetful_files(plugin)
            if options.power_cuts
            else on_real_files(plugin, Path(folder))
        )
        results = check_storage(subject, chosen, report)
    failed = [result for result in results if result.failure]
    excused = [result for result in results if result.excused]
    passed_count = len(results) - len(failed) - len(excused)
    if not options.json:
        for result in failed:
            print(f"\n{result.scenario.name}: {result.scenario.claim}\n{result.failure}")
        for reason in dict.fromkeys(result.excused for result in excused):
            print(f"\n{plugin.name} is excused: {reason}")
        excused_text = f", {len(excused)} excused" if excused else ""
        print(f"{plugin.name}: {passed_count} of {len(results)} scenarios passed{excused_text}")
    return {
        "storage": plugin.name,
        "durable": plugin.durable,
        "passed": passed_count,
        "failed": {result.scenario.name: result.failure for result in failed},
        "excused": {result.scenario.name: result.excused for result in excused},
    }


if __name__ == "__main__":
    sys.exit(main())
