"""What replog ships for testing: its own suite uses it, and so can yours.

* :class:`Cluster` runs real replicas of any engine, seeded and synchronous, over a network and
  disks that fail as they are told (``docs/traces.md`` describes what it writes down).
* :func:`simulate` runs whole clusters under faults, from one seed (:mod:`replog.testing.sim`), and
  :mod:`replog.testing.model` walks every order of events within small bounds (``docs/testing.md``).
* :func:`check_history` judges whether a history of clients is linearizable.
* :func:`check_machine` tests what a state machine snapshots and restores
  (``docs/state-machines.md``).
* :mod:`replog.testing.conformance` is what every engine must pass,
  :mod:`replog.testing.storage_conformance` what every storage must.
* :mod:`replog.testing.files` is a disk in memory that forgets what was not synced.
* :func:`freeze_records` makes records truly frozen for a test session.

Nothing in this package is imported by the code that serves users.
"""

from __future__ import annotations

from replog.testing.checks import Check, Violation
from replog.testing.cluster import Cluster
from replog.testing.disk import DiskModel
from replog.testing.faults import Faults, drawn_faults
from replog.testing.freezing import freeze_records, thaw_records
from replog.testing.linearizability import (
    BadHistory,
    Finding,
    ListModel,
    Model,
    Operation,
    RegisterModel,
    Verdict,
    check_history,
)
from replog.testing.machines import check_machine
from replog.testing.network import Flight
from replog.testing.nodes import Outcome, Proposal, Recorder
from replog.testing.registers import DrawnWorkload, RegisterWorkload, Workload
from replog.testing.sim import SimOptions, SimReport, Simulation, simulate

__all__ = [
    "BadHistory",
    "Check",
    "Cluster",
    "DiskModel",
    "DrawnWorkload",
    "Faults",
    "Finding",
    "Flight",
    "ListModel",
    "Model",
    "Operation",
    "Outcome",
    "Proposal",
    "Recorder",
    "RegisterModel",
    "RegisterWorkload",
    "SimOptions",
    "SimReport",
    "Simulation",
    "Verdict",
    "Violation",
    "Workload",
    "check_history",
    "check_machine",
    "drawn_faults",
    "freeze_records",
    "simulate",
    "thaw_records",
]
