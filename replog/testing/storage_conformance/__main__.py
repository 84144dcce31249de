"""``python -m replog.testing.storage_conformance``: run the suite and count what passed."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from replog.plugins import find_storage, storage_names
from replog.storage.plugin import StoragePlugin
from replog.testing.scenarios import (
    Mistake,
    chosen_plugins,
    chosen_scenarios,
    end_suite,
    judge,
    suite_parser,
)
from replog.testing.storage_conformance import (
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
    parser = suite_parser(
        "python -m replog.testing.storage_conformance",
        "Run the conformance suite with an installed storage, or with each of them.",
        _EPILOG,
    )
    parser.add_argument("--storage", metavar="NAME", help="run this storage alone")
    parser.add_argument(
        "--folder", metavar="PATH", type=Path, help="where to make the nodes' directories"
    )
    parser.add_argument(
        "--power-cuts",
        action="store_true",
        help="run on a disk in memory, on which a crash takes away what was not synced; for "
        "storages that use the file layer of their home",
    )
    options = parser.parse_args(arguments)
    return end_suite(partial(_run, options), options.json)


def _run(options: argparse.Namespace) -> list[Mapping[str, object]]:
    plugins = chosen_plugins(options.storage, storage_names(), find_storage)
    chosen = chosen_scenarios(scenarios(), options)
    if options.folder is not None and not options.folder.is_dir():
        raise Mistake(f"{options.folder} is no directory; make it first")
    return [_judge(plugin, chosen, options) for plugin in plugins]


def _judge(
    plugin: StoragePlugin, chosen: Sequence[Scenario], options: argparse.Namespace
) -> Mapping[str, object]:
    with tempfile.TemporaryDirectory(prefix="storages-", dir=options.folder) as folder:
        if options.power_cuts:
            subject = on_forgetful_files(plugin)
        else:
            subject = on_real_files(plugin, Path(folder))
        document = judge(plugin.name, partial(check_storage, subject, chosen), options.json)
    return {"storage": plugin.name, "durable": plugin.durable, **document}


if __name__ == "__main__":
    sys.exit(main())
