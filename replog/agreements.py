"""What all nodes of a cluster must hold to alike: checks for an engine's options against the epoch.

Some options are agreed on when a cluster is founded (``EnginePlugin.agreed``), and are recorded in
the epoch.  A node may leave them out of its own file, but must not contradict them.
"""

from __future__ import annotations

from collections.abc import Sequence

from replog.errors import UnknownFormat
from replog.types import Epoch


def check_known(epoch: Epoch, names: Sequence[str]) -> None:
    """Raise :class:`~replog.errors.UnknownFormat` unless only ``names`` were agreed on: a name of
    a later release may stand for a rule that this one would break."""
    unknown = [name for name, _ in epoch.agreed if name not in names]
    if unknown:
        raise UnknownFormat(
            f"the cluster was founded with {', '.join(unknown)}, which this release of the engine "
            "does not know; run the release that founded it, or a later one"
        )


def agreement_problems(epoch: Epoch, options: object, names: Sequence[str]) -> list[str]:
    """Every one of the options ``names`` that contradicts what was agreed on, as ``key: sentence``;
    0 is an option that was left out."""
    agreed = dict(epoch.agreed)
    problems = []
    for name in names:
        asked = getattr(options, name)
        if asked in (0, agreed.get(name)):
            continue
        if name in agreed:
            problems.append(
                f"{name}: the cluster was founded with {agreed[name]}, not {asked}; correct it, or "
                "leave it out"
            )
        else:
            problems.append(f"{name}: the cluster was founded without it; leave it out")
    return problems
