"""``python -m replog.testing.conformance [ENGINE]``: run the suite and count what passed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from replog.errors import PluginError
from replog.plugins import engine_names, find_engine
from replog.testing.conformance import Result, check_engine, scenarios

_EPILOG = """\
examples:
  python -m replog.testing.conformance
  python -m replog.testing.conformance my_engine --only elections
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every scenario passed, 1 if one failed, 2 for a mistake in the arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m replog.testing.conformance",
        description="Run the conformance suite with an installed engine, or with each of them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("engine", nargs="?", metavar="ENGINE", help="run this engine alone")
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="scenarios whose names hold this text"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    options = parser.parse_args(arguments)
    chosen = [scenario for scenario in scenarios() if options.only in scenario.name]
    names = engine_names() if options.engine is None else [options.engine]
    try:
        plugins = [find_engine(name) for name in names]
    except PluginError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not chosen:
        print(f"error: no scenario has {options.only!r} in its name", file=sys.stderr)
        return 2

    def report(result: Result) -> None:
        if not options.json:
            word = "FAILED" if result.failure else "skipped" if result.skipped else "ok"
            print(f"  {word:<7}  {result.scenario.name}", flush=True)

    documents: list[dict[str, object]] = []
    for plugin in plugins:
        if not options.json:
            print(plugin.name)
        results = check_engine(plugin, chosen=chosen, report=report)
        failed = [result for result in results if result.failure]
        skipped = [result for result in results if result.skipped]
        passed_count = len(results) - len(failed) - len(skipped)
        documents.append(
            {
                "engine": plugin.name,
                "passed": passed_count,
                "failed": {result.scenario.name: result.failure for result in failed},
                "skipped": {result.scenario.name: result.skipped for result in skipped},
            }
        )
        if not options.json:
            for result in failed:
                print(f"\n{result.scenario.name}: {result.scenario.claim}\n{result.failure}")
            for result in skipped:
                print(f"\n{result.scenario.name} was skipped: {result.skipped}")
            skipped_text = f", {len(skipped)} skipped" if skipped else ""
            print(f"{plugin.name}: {passed_count} of {len(results)} scenarios passed{skipped_text}")
    if options.json:
        print(json.dumps(documents, indent=2))
    return 1 if any(document["failed"] for document in documents) else 0


if __name__ == "__main__":
    sys.exit(main())
