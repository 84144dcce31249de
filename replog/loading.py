"""What a state machine holds when its node starts: filled from a snapshot, or found on its disk.

The rules:

* The log begins behind its base, so a machine that holds less than that must be filled from a
  snapshot first; without one that reaches the base the node does not start.
* Nothing is filled from a snapshot that was not read to its end before, every checksum right.
* A machine in memory is filled from the newest snapshot; one on its own disk goes on from where it
  came, if the log goes on from there.
* A machine on its own disk is not ahead of the log, nor behind what it once reported
  (:mod:`replog.storage.reported`): one of the two disks forgot something then.

All of it blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeAlias, cast

from replog.cbor import strict_dumps, strict_loads
from replog.chunks import unpack_chunks
from replog.control import (
    CLOSING,
    LEARNER,
    OPENING,
    sub_kind_of,
    unpack_closing,
    unpack_learner,
    unpack_opening,
    with_learner,
)
from replog.engine import Engine
from replog.envelope import marks_in, open_envelope
from replog.errors import (
    DirectoryError,
    LogDamaged,
    Overloaded,
    ReplogError,
    SnapshotDamaged,
    StateMachineCrashed,
    StorageFull,
    UnknownFormat,
)
from replog.limits import MIB
from replog.machine import (
    ApplyContext,
    ConcurrentMachine,
    DurableMachine,
    Machine,
    MachineKind,
    Opened,
    answer_keeper,
    machine_kind,
)
from replog.sessions import FORM, Sessions
from replog.statemachine import CommandMachine
from replog.storage.files import FileLayer
from replog.storage.reported import check_reported, read_reported, write_reported
from replog.storage.snapshot_writer import SnapshotInfo
from replog.storage.snapshots import SnapshotStore
from replog.stored_log import StoredLog
from replog.types import (
    NO_TERM,
    ORIGIN_TERM,
    Entry,
    EntryKind,
    EpochNumber,
    LogIndex,
    TermId,
    Voter,
    record,
    unpack_term,
)

SECTION: Final = "machine"
"""The section with the state of the machine."""

SESSIONS_SECTION: Final = "sessions"
"""The section with the sessions of clients; left out where there never was one."""

KNOWN_SECTIONS: Final = frozenset({SECTION, SESSIONS_SECTION})

MACHINE_DIRECTORY: Final = "machine"
"""Where in the node's directory a machine on its own disk keeps its files."""


KeptAnswer: TypeAlias = Callable[[LogIndex], bytes | None]
"""See :meth:`replog.machine.KeepsAnswers.kept_answer`."""

READ_BYTES: Final = 1 * MIB
"""How much of the log is read at a time."""


@record
class Loaded:
    """What a machine holds when its node starts."""

    applied_index: LogIndex
    """Up to where; 0: nothing."""
    time_ms: int
    """The replicated time as of there."""
    learners: tuple[Voter, ...]
    """Who takes part without counting in a quorum, as of ``learners_index``."""
    learners_index: LogIndex
    """``applied_index``, or more: a machine on its own disk may lag behind the newest snapshot."""
    sessions: Sessions
    """Of the clients, as of ``applied_index``."""
    highest_term: TermId = NO_TERM
    """The highest term in the origin of any entry up to ``applied_index``."""


@record
class MachineHome:
    """Where a node keeps what its machine is made from."""

    files: FileLayer
    path: Path
    """The node's directory."""
    machine: str
    """The name of the state machine."""
    epoch: EpochNumber
    """The epoch in force."""


def find_newest(home: MachineHome, store: SnapshotStore, log: StoredLog) -> SnapshotInfo | None:
    """The newest snapshot, which holds everything that the log does not.

    Raises :class:`~replog.errors.LogDamaged` where nothing does,
    :class:`~replog.errors.DirectoryError` for the snapshot of another state machine,
    :class:`~replog.errors.UnknownFormat` for one of another epoch, and what ``store.recover``
    raises.
    """
    newest = store.recover()
    newest_index = 0 if newest is None else newest.meta.last.index
    if newest_index < log.base.index:
        found = "there is no snapshot"
        if newest is not None:
            found = f"the newest snapshot, {newest.path.name}, ends with entry {newest_index}"
        raise LogDamaged(
            f"the log in {home.path} begins behind entry {log.base.index}, and {found}: what is in "
            "between is missing; put the snapshot back that was removed"
        )
    if newest is None:
        return None
    if newest.meta.machine != home.machine:
        raise DirectoryError(
            f"{newest.path} is a snapshot of the state machine {newest.meta.machine!r}, and this "
            f"node runs {home.machine!r}; correct the configuration"
        )
    if newest.meta.epoch.number != home.epoch or newest.meta.last.epoch != home.epoch:
        raise UnknownFormat(
            f"{newest.path} is of epoch {newest.meta.epoch.number}, and this release knows epoch "
            f"{home.epoch} alone; upgrade this node"
        )
    return newest


def load_machine(
    machine: Machine,
    home: MachineHome,
    store: SnapshotStore,
    newest: SnapshotInfo | None,
    log: StoredLog,
) -> Loaded:
    """Have a machine hold what it can before the log is applied to it.

    Raises :class:`~replog.errors.SnapshotDamaged`, :class:`~replog.errors.MachineDamaged`,
    :class:`~replog.errors.DirectoryError` for a machine that cannot be filled from the snapshot
    there is, and :class:`~replog.errors.StorageFailed`.
    """
    kind = machine_kind(machine)
    if kind is MachineKind.DURABLE:
        loaded = _open_machine(cast(DurableMachine, machine), home, store, newest, log)
    else:
        loaded = Loaded(0, 0, (), 0, new_sessions())
    is_held = loaded.applied_index >= log.base.index
    if newest is None or (is_held and kind is MachineKind.DURABLE):
        return loaded
    if kind is MachineKind.PLAIN:
        raise DirectoryError(
            f"{newest.path} is a snapshot, and the state machine {home.machine!r} cannot be filled "
            "from one; give it the methods that it had when the snapshot was taken"
        )
    store.verify(newest, KNOWN_SECTIONS)
    return fill_machine(machine, store, newest)


def new_sessions() -> Sessions:
    """No sessions yet; answers are kept as they travel."""
    return Sessions(strict_dumps, strict_loads)


@contextmanager
def told_of_machine(when: str) -> Iterator[None]:
    """Whatever a state machine raises but replog's own errors is its author's affair, and is told
    as such; raises :class:`~replog.errors.StateMachineCrashed`."""
    try:
        yield
    except ReplogError:
        raise
    except Exception as crash:
        raise StateMachineCrashed(
            f"the state machine raised {type(crash).__name__}: {crash} as {when}; mend it and "
            "start the node again"
        ) from crash


def reloaded(
    engine: Engine,
    machine: Machine,
    store: SnapshotStore,
    newest: SnapshotInfo | None,
    loaded: Loaded,
) -> Loaded:
    """What a machine holds when the engine is made: all that the engine will not hand out.

    An engine that does not trust its log up to the newest snapshot begins behind that; a machine on
    its own disk may not have come so far.
    """
    if engine.status().applied_index == loaded.applied_index:
        return loaded
    assert newest is not None
    store.verify(newest, KNOWN_SECTIONS)
    return fill_machine(machine, store, newest)


def close_machine(machine: Machine) -> None:
    """Have a machine on its own disk release its files."""
    if machine_kind(machine) is MachineKind.DURABLE:
        cast(DurableMachine, machine).close()


def _open_machine(
    machine: DurableMachine,
    home: MachineHome,
    store: SnapshotStore,
    newest: SnapshotInfo | None,
    log: StoredLog,
) -> Loaded:
    """Open a machine's own files, and remember how far it says that it came."""
    files, path = home.files, home.path / MACHINE_DIRECTORY
    if MACHINE_DIRECTORY not in files.names(home.path):
        files.make_directory(path)
        files.sync_directory(home.path)
    opened = machine.open(path)
    reported = read_reported(files, home.path)
    check_reported(
        path,
        opened.applied_index,
        reported,
        max(log.base.index, log.runs.last_index),
        0 if newest is None else newest.meta.last.index,
    )
    if opened.applied_index != reported:
        try:
            write_reported(files, home.path, opened.applied_index)
        except StorageFull:
            if opened.applied_index < reported:
                raise
            # A full disk must not keep a node down: the machine is only held to less.
    learners: tuple[Voter, ...] = ()
    index, time_ms, sessions, highest_term = 0, 0, new_sessions(), NO_TERM
    if newest is not None:
        meta = newest.meta
        learners, index, time_ms = meta.learners, meta.last.index, meta.time_ms
        highest_term = meta.highest_term
        _read_sessions(sessions, store, newest)
        is_lagging = index > opened.applied_index
        if is_lagging and (sessions.were_used or not _is_of_term(log, opened, highest_term)):
            # Who had sent what as of the machine's own index, or which term was the highest then,
            # nobody can tell any more.
            store.verify(newest, KNOWN_SECTIONS)
            return fill_machine(machine, store, newest)
    keeper = answer_keeper(machine)
    kept_answer = _keep_nothing if keeper is None else keeper.kept_answer
    for entry in _entries(log, max(index, log.base.index) + 1, opened.applied_index):
        highest_term = max(highest_term, unpack_term(entry.body[ORIGIN_TERM]))
        stamped_ms = replay_session(sessions, entry, time_ms, highest_term, kept_answer)
        time_ms = max(time_ms, stamped_ms)
        if entry.kind == EntryKind.CONTROL and sub_kind_of(entry) == LEARNER:
            learners = with_learner(learners, unpack_learner(entry))
    return Loaded(
        opened.applied_index,
        opened.time_ms,
        learners,
        max(index, opened.applied_index),
        sessions,
        highest_term,
    )


def _is_of_term(log: StoredLog, opened: Opened, highest_term: TermId) -> bool:
    """Whether the last entry that a machine holds is of the highest term of a later snapshot, so
    that this was the highest then, too."""
    index = opened.applied_index
    if not log.base.index < index <= log.runs.last_index:
        return False
    (entry,) = log.read(index, index, READ_BYTES)
    return unpack_term(entry.body[ORIGIN_TERM]) == highest_term


def _read_sessions(sessions: Sessions, store: SnapshotStore, info: SnapshotInfo) -> None:
    """Read the sessions of a snapshot alone, which stand at its beginning."""
    with store.open(info) as reader:
        for name, chunks in reader.sections(KNOWN_SECTIONS):
            if name == SESSIONS_SECTION:
                sessions.restore(unpack_chunks(FORM, chunks))
            return


def replay_session(
    sessions: Sessions,
    entry: Entry,
    time_ms: int,
    highest_term: TermId,
    kept_answer: KeptAnswer,
) -> int:
    """Have sessions learn of an entry that the machine holds already, and return the time in it.
    ``highest_term``: in an origin up to this very entry.

    That its command was done is known then; what it answered, if the machine has kept it.  Raises
    :class:`~replog.errors.MachineDamaged` where that is the answer of another command.
    """
    if entry.kind == EntryKind.CONTROL and sub_kind_of(entry) == OPENING:
        opened_ms, terms = unpack_opening(entry)
        with suppress(Overloaded):
            sessions.open(entry.index, terms, max(time_ms, opened_ms))
        return opened_ms
    if entry.kind == EntryKind.CONTROL and sub_kind_of(entry) == CLOSING:
        sessions.close(unpack_closing(entry))
    if entry.kind != EntryKind.COMMAND:
        return time_ms
    stamped_ms, _ = open_envelope(entry)
    marks = marks_in(entry)
    if marks.session is not None:
        session_id, sequence, lowest = marks.session
        is_new = sessions.begin(session_id, sequence, lowest, max(time_ms, stamped_ms)) is None
        if is_new and marks.term in (None, highest_term):
            packed = kept_answer(entry.index)
            if packed is None:
                sessions.finish_unkept(session_id, sequence, entry.index)
            else:
                sessions.finish_packed(session_id, sequence, entry.index, packed)
    return stamped_ms


def _keep_nothing(_: LogIndex) -> None:
    """A machine that keeps no answers."""


def _entries(log: StoredLog, first: LogIndex, last: LogIndex) -> Iterator[Entry]:
    """The entries of a log from ``first`` to ``last``, all of which are there."""
    while first <= last:
        entries = log.read(first, last, READ_BYTES)
        yield from entries
        first = entries[-1].index + 1


def fill_machine(machine: Machine, store: SnapshotStore, info: SnapshotInfo) -> Loaded:
    """Fill a machine from a snapshot that was verified, and say what it holds then.

    Raises :class:`~replog.errors.SnapshotDamaged`, :class:`~replog.errors.StorageFailed`, and
    whatever the machine raises.
    """
    meta = info.meta
    is_filled = False
    sessions = new_sessions()
    with store.open(info) as reader:
        for name, chunks in reader.sections(KNOWN_SECTIONS):
            if name == SESSIONS_SECTION:
                sessions.restore(unpack_chunks(FORM, chunks))
                continue
            is_filled = True
            with told_of_machine("it was filled from a snapshot"):
                if machine_kind(machine) is MachineKind.DURABLE:
                    durable = cast(DurableMachine, machine)
                    durable.restore(chunks, meta.last.index, meta.time_ms)
                else:
                    if isinstance(machine, CommandMachine):
                        # What a snapshot does not say itself: as of when it is.
                        machine.context = ApplyContext(meta.last.index, meta.time_ms)
                    cast(ConcurrentMachine, machine).restore(chunks)
    if not is_filled:
        raise SnapshotDamaged(
            f"{info.path} lacks the section {SECTION!r}, although it is intact; its writer "
            "is at fault; remove it and take another one"
        )
    return Loaded(
        meta.last.index,
        meta.time_ms,
        meta.learners,
        meta.last.index,
        sessions,
        meta.highest_term,
    )
