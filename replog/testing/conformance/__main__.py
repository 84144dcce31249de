"""``python -m replog.testing.conformance [ENGINE]``: run the suite and count what passed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial

from replog.plugins import engine_names, find_engine
from replog.testing.conformance import check_engine, scenarios
from replog.testing.scenarios import (
    chosen_plugins,
    chosen_scenarios,
    end_suite,
    judge,
    suite_parser,
)

_EPILOG = """\
examples:
  python -m replog.testing.conformance
  python -m replog.testing.conformance my_engine --only elections
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every scenario passed, 1 if one failed, 2 for a mistake in the arguments."""
    parser = suite_parser(
        "python -m replog.testing.conformance",
        "Run the conformance suite with an installed engine, or with each of them.",
        _EPILOG,
    )
    parser.add_argument("engine", nargs="?", metavar="ENGINE", help="run this engine alone")
    options = parser.parse_args(arguments)
    return end_suite(partial(_run, options), options.json)


def _run(options: argparse.Namespace) -> list[Mapping[str, object]]:
    plugins = chosen_plugins(options.engine, engine_names(), find_engine)
    chosen = chosen_scenarios(scenarios(), options)
    documents: list[Mapping[str, object]] = []
    for plugin in plugins:
        run = partial(check_engine, plugin, None, chosen)
        documents.append({"engine": plugin.name, **judge(plugin.name, run, options.json)})
    return documents


if __name__ == "__main__":
    sys.exit(main())
