"""What replog ships for testing: its own suite uses it, and so can yours.

* :class:`Cluster` runs real replicas of any engine, seeded and synchronous, over a network and
  disks that fail as they are told (``docs/traces.md`` describes what it writes down).
* :mod:`replog.testing.files` is a disk in memory that forgets what was not synced.
* :func:`freeze_records` makes records truly frozen for a test session.

Nothing in this package is imported by the code that serves users.
"""

from __future__ import annotations

from replog.testing.checks import Check, Violation
from replog.testing.cluster import Cluster
from replog.testing.faults import Faults, drawn_faults
from replog.testing.freezing import freeze_records, thaw_records
from replog.testing.network import Flight
from replog.testing.nodes import Outcome, Proposal, Recorder

__all__ = [
    "Check",
    "Cluster",
    "Faults",
    "Flight",
    "Outcome",
    "Proposal",
    "Recorder",
    "Violation",
    "drawn_faults",
    "freeze_records",
    "thaw_records",
]
