"""``replog inspect``: what a node's directory holds, and the first damage in it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from replog.cli.shared import (
    add_json_option,
    complain,
    examples,
    print_json,
    print_table,
    printable,
)

if TYPE_CHECKING:
    from replog.storage.inspection import Inspection

_EXAMPLES: Final = """
replog inspect data/node-1
replog inspect data/node-1 --json
"""

_DESCRIPTION: Final = """\
Show what a node's directory holds: the segments of its log, the hard state and its second copy,
the snapshots.  Everything is read to its end and judged as the next start of the node would judge
it; nothing is changed, and the node may be running.  Exit code 0: healthy, or empty (founded and
never written); 1: damaged; 2: no such directory, or not a node's."""

RUNS_SHOWN_MAX: Final = 20
"""So many stretches of the log are listed, the last ones."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments behind the word."""
    parser.description = _DESCRIPTION
    parser.epilog = examples(_EXAMPLES)
    parser.add_argument("directory", metavar="DIR", type=Path, help="the directory of one node")
    add_json_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Inspect it; 1 if it is damaged."""
    # Loaded only now: a command line that prints its help needs no storage.
    from replog.storage.inspection import DAMAGED, inspect_directory

    found = inspect_directory(arguments.directory)
    if arguments.json:
        print_json(document(found))
    else:
        _print(found)
    for sentence in found.damage:
        complain(sentence)
    return 1 if found.verdict == DAMAGED else 0


def document(found: Inspection) -> Mapping[str, object]:
    """What ``--json`` prints."""
    identity, state = found.identity, found.state
    hard_state, base, runs = state.hard_state, state.places.base, list(state.places.runs)
    return {
        "directory": str(found.path),
        "cluster_id": identity.cluster_id,
        "node_id": identity.node_id,
        "incarnation": identity.incarnation,
        "birth": identity.birth,
        "engine": identity.engine,
        "state": found.verdict,
        "damage": found.damage,
        "hard_state": None
        if hard_state is None
        else {
            "epoch": hard_state.epoch,
            "term": hard_state.term,
            "voted_for": hard_state.voted_for,
            "commit_hint": hard_state.commit_hint,
        },
        "second_copy": None
        if found.vouched is None
        else {
            "epoch": found.vouched.epoch,
            "term": found.vouched.term,
            "voted_for": found.vouched.voted_for,
            "segment": found.vouched.segment,
            "oldest_segment": found.vouched.oldest_segment,
        },
        "base": None if not base.index else {"index": base.index, "term": base.term},
        "entries": sum(run.last - run.first + 1 for run in runs),
        "run_count": len(runs),
        "last_runs": [
            {"first": run.first, "last": run.last, "epoch": run.epoch, "term": run.term}
            for run in runs[-RUNS_SHOWN_MAX:]
        ],
        "segments": [
            {
                "file": segment.file,
                "bytes": segment.size_bytes,
                "used_bytes": segment.used_bytes,
                "torn_bytes": segment.torn_bytes,
                "groups": segment.groups,
                "first_sequence": segment.first_sequence,
                "last_sequence": segment.last_sequence,
                "records": dict(sorted(segment.records.items())),
            }
            for segment in found.segments
        ],
        "snapshots": [
            {
                "file": snapshot.file,
                "bytes": snapshot.size_bytes,
                "index": snapshot.index,
                "term": snapshot.term,
                "machine": snapshot.machine,
                "checksum": f"{snapshot.checksum:08x}",
            }
            for snapshot in found.snapshots
        ],
    }


def _print(found: Inspection) -> None:
    identity, places = found.identity, found.state.places
    print(
        f"{found.path}: node {identity.node_id} of cluster {printable(identity.cluster_id)}, "
        f"engine {printable(identity.engine)}: {found.verdict}"
    )
    hard_state = found.state.hard_state
    if hard_state is not None:
        print(
            f"hard state: epoch {hard_state.epoch}, term {hard_state.term}, voted for "
            f"{hard_state.voted_for or 'nobody'}; known as committed: {hard_state.commit_hint}"
        )
    if found.vouched is not None:
        print(
            f"its second copy: epoch {found.vouched.epoch}, term {found.vouched.term}, voted for "
            f"{found.vouched.voted_for or 'nobody'}; newest segment {found.vouched.segment}"
        )
    runs = list(places.runs)
    count = sum(run.last - run.first + 1 for run in runs)
    print(f"log: {count} entries in {len(runs)} runs, behind entry {places.base.index}")
    if found.segments:
        print()
        print_table(
            ("SEGMENT", "BYTES", "USED", "TORN", "GROUPS", "SEQUENCE", "RECORDS"),
            [
                (
                    segment.file,
                    str(segment.size_bytes),
                    str(segment.used_bytes),
                    str(segment.torn_bytes),
                    str(segment.groups),
                    f"{segment.first_sequence}-{segment.last_sequence}",
                    " ".join(f"{name}:{n}" for name, n in sorted(segment.records.items())),
                )
                for segment in found.segments
            ],
        )
    if runs:
        print()
        print_table(
            ("FIRST", "LAST", "EPOCH", "TERM"),
            [
                (str(run.first), str(run.last), str(run.epoch), str(run.term))
                for run in runs[-RUNS_SHOWN_MAX:]
            ],
        )
    if found.snapshots:
        print()
        print_table(
            ("SNAPSHOT", "BYTES", "INDEX", "TERM", "MACHINE"),
            [
                (
                    snapshot.file,
                    str(snapshot.size_bytes),
                    str(snapshot.index),
                    str(snapshot.term),
                    printable(snapshot.machine),
                )
                for snapshot in found.snapshots
            ],
        )
