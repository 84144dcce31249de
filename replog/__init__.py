"""replog: a replicated log, and state machines on top of it.

The public names, and nothing else.  A name below is imported when it is first used, so that
``import replog`` costs little and needs no network library: a program that defines state machines
only, and a command line that prints its version, never load one.

=====================  ==========================================================================
to write               use
=====================  ==========================================================================
a state machine        :class:`StateMachine`, :func:`command`, :func:`query`
a program with a node  :func:`open_node`, :func:`load_config`; :func:`open_log` for the log itself
a client               :class:`Client`; :class:`replog.aio.Client` on asyncio,
                       :class:`replog.blocking.Client` on threads
an ``except`` clause   the classes of :mod:`replog.errors`
=====================  ==========================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from replog.errors import (
    AddressError,
    BackupError,
    BadCommand,
    CallerError,
    CommandFailed,
    CommandTooLarge,
    Compacted,
    ConfigError,
    DirectoryError,
    DirectoryRemade,
    DiskFull,
    DumpUnavailable,
    EntryReplaced,
    FatalError,
    FellBehind,
    FrameError,
    HandshakeError,
    InvalidCommand,
    InvalidResult,
    InvariantViolated,
    LogDamaged,
    MachineDamaged,
    NodeActive,
    NotDone,
    NotLeader,
    NotYet,
    OutcomeUnknown,
    Overloaded,
    PeerError,
    PlatformError,
    PluginError,
    QueryFailed,
    Refused,
    Replaced,
    ReplicaDiverged,
    ReplogError,
    SchemaError,
    SessionExpired,
    SessionFull,
    SnapshotDamaged,
    SnapshotFailed,
    SnapshotGone,
    SnapshotMisplaced,
    SnapshotUnavailable,
    StaleSequence,
    StateMachineCrashed,
    StateMachineError,
    StorageFailed,
    StorageFull,
    TermChanged,
    Unavailable,
    UnknownFormat,
)
from replog.types import ReadLevel, TermId

if TYPE_CHECKING:
    from replog.client import Client, Session
    from replog.config import load_config
    from replog.log import Log, open_log
    from replog.running import open_node
    from replog.statemachine import StateMachine, command, query

__version__ = "0.1.0"

__all__ = [
    "__version__",
    # State machines.
    "StateMachine",
    "command",
    "query",
    # Nodes and clients.
    "open_node",
    "open_log",
    "Log",
    "Client",
    "Session",
    "ReadLevel",
    "TermId",
    "load_config",
    # The caller's errors.
    "ReplogError",
    "CallerError",
    "ConfigError",
    "PluginError",
    "DirectoryError",
    "AddressError",
    "PlatformError",
    "Replaced",
    "ReplicaDiverged",
    "NodeActive",
    "NotDone",
    "NotLeader",
    "Overloaded",
    "DiskFull",
    "CommandTooLarge",
    "BadCommand",
    "EntryReplaced",
    "QueryFailed",
    "NotYet",
    "Compacted",
    "FellBehind",
    "Unavailable",
    "Refused",
    "SessionExpired",
    "SessionFull",
    "StaleSequence",
    "TermChanged",
    "DumpUnavailable",
    "SnapshotUnavailable",
    "SnapshotFailed",
    "SnapshotGone",
    "StorageFull",
    "BackupError",
    "OutcomeUnknown",
    # What state machines declare.
    "StateMachineError",
    "CommandFailed",
    "InvalidCommand",
    "InvalidResult",
    # A peer's errors.
    "PeerError",
    "FrameError",
    "SchemaError",
    "HandshakeError",
    "DirectoryRemade",
    "SnapshotMisplaced",
    # Ours: the node stops.
    "FatalError",
    "LogDamaged",
    "SnapshotDamaged",
    "MachineDamaged",
    "StorageFailed",
    "UnknownFormat",
    "StateMachineCrashed",
    "InvariantViolated",
]

# Hidden from the type checker: it would take every misspelt name for a public one.
if not TYPE_CHECKING:
    _HOMES = {
        "StateMachine": "replog.statemachine",
        "command": "replog.statemachine",
        "query": "replog.statemachine",
        "Log": "replog.log",
        "open_log": "replog.log",
        "open_node": "replog.running",
        "Client": "replog.client",
        "Session": "replog.client",
        "load_config": "replog.config",
    }

    def __getattr__(name):
        """Import a public name from its home on first use."""
        if name not in _HOMES:
            raise AttributeError(f"module 'replog' has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value

    def __dir__():
        """The public names, imported or not."""
        return sorted({*globals(), *__all__})
