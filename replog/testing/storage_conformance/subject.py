"""What a storage scenario is, what it is about, and the run of a storage with a model beside it.

The model is :class:`~replog.storage.replay.Replay`, the meaning of a sequence of writes.  A
:class:`JudgedRun` keeps two of them: of what was encoded, which is what can be read, and of what
was persisted, which is what the next run must find.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeAlias

from replog.entries import ENTRY_OVERHEAD_BYTES_MAX, pack_entries
from replog.storage.files import FileLayer, RealFiles
from replog.storage.plugin import StorageHome, StoragePlugin
from replog.storage.protocol import Recovered, Storage, Write
from replog.storage.replay import Replay
from replog.stored_log import StoredLog, all_entries
from replog.testing import scenarios as suite
from replog.testing.disk import is_same
from replog.testing.files import ForgetfulFiles, Keep, KeepNothing
from replog.testing.scenarios import Skipped
from replog.types import Entry, EntryId, EntryKind, HardState, LogIndex, Term, entry_body, record

CLUSTER_ID = "conformance"
NODE_ID = 3
INCARNATION = 77


class Ground(Protocol):
    """Where the directories of a scenario are."""

    @property
    def files(self) -> FileLayer:
        """The disk."""

    def new_path(self) -> Path:
        """A new, empty directory."""

    def crashed(self, path: Path) -> Path:
        """A directory as the sudden end of the program leaves it, or of the machine; it may be a
        copy in another place.  Whoever used it goes on without being told."""


class RealGround:
    """Directories of this machine, in ``folder``; a crash is the end of the program."""

    def __init__(self, folder: Path) -> None:
        self.files: FileLayer = RealFiles()
        self._folder = folder
        self._count = 0

    def new_path(self) -> Path:
        """See :class:`Ground`."""
        path = self._next()
        self.files.make_directory(path)
        return path

    def crashed(self, path: Path) -> Path:
        """See :class:`Ground`: a copy, so that whoever uses the directory may go on."""
        return Path(shutil.copytree(path, self._next()))

    def _next(self) -> Path:
        self._count += 1
        return self._folder / f"node-{self._count}"


class ForgetfulGround:
    """Directories on a disk in memory; a crash is a power cut, and loses what was not synced."""

    def __init__(self) -> None:
        self.files: FileLayer = ForgetfulFiles()
        self._count = 0

    def new_path(self) -> Path:
        """See :class:`Ground`."""
        self._count += 1
        path = Path(PurePosixPath(f"/node-{self._count}"))
        self.files.make_directory(path)
        self.files.sync_directory(path.parent)
        return path

    def crashed(self, path: Path) -> Path:
        """See :class:`Ground`: nothing is kept but what was synced."""
        assert isinstance(self.files, ForgetfulFiles)
        self.files.crash(KeepNothing())
        return path


@record
class Subject:
    """The storage under test, and where it is tested."""

    plugin: StoragePlugin
    ground: Ground

    def home(self) -> StorageHome:
        """A new home, in which nothing was founded."""
        path = self.ground.new_path()
        return StorageHome(self.ground.files, path, CLUSTER_ID, NODE_ID, INCARNATION)

    def found(self, home: StorageHome) -> StorageHome:
        """Found a storage, as the making of a node's directory does it."""
        self.plugin.found(home)
        home.files.sync_directory(home.path)
        return home

    def begin(self, *, is_synced: bool = True) -> JudgedRun:
        """The first run of a new storage."""
        return JudgedRun(self, replace(self.found(self.home()), is_synced=is_synced))

    def expect_durable(self) -> None:
        """Raise :class:`Skipped` for a storage that says that it is not durable."""
        if not self.plugin.durable:
            raise Skipped("it says that it is not durable, and this is about what outlives a run")


Scenario: TypeAlias = suite.Scenario[Subject]
"""One claim about every storage, and the run that shows it."""


def scenarios_of(
    topic: str, functions: Sequence[Callable[[Subject], None]]
) -> tuple[Scenario, ...]:
    """Functions as scenarios: the name from their name, the claim from their docstring."""
    found: list[Scenario] = []
    for function in functions:
        claim = " ".join((function.__doc__ or "").split())
        assert claim, f"{function.__name__} claims nothing"
        found.append(Scenario(f"{topic}.{function.__name__}", claim, function))
    return tuple(found)


class JudgedRun:
    """A run of one storage after the other on one home, beside the models of them.

    Used as a context, it closes the storage.
    """

    def __init__(self, subject: Subject, home: StorageHome) -> None:
        self.subject = subject
        self.home = home
        self._persisted: list[Sequence[Write]] = []
        self._encoded: deque[tuple[object, Sequence[Write]]] = deque()
        self.model = Replay()
        """What was encoded."""
        self.storage: Storage
        self.log: StoredLog
        self._open()

    def __enter__(self) -> JudgedRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.storage.close()

    def _open(self) -> None:
        """Recover, and compare with what was persisted."""
        self.model = replayed(self._persisted)
        self._encoded.clear()
        self.storage = self.subject.plugin.open(self.home)
        try:
            recovered = self.storage.recover()
            self.log = recovered.log
            self._check_hard_state(recovered)
            self.check()
        except BaseException:
            self.storage.close()
            raise

    def _check_hard_state(self, recovered: Recovered) -> None:
        found, wanted = recovered.hard_state, self.model.hard_state
        assert found == wanted, f"recovered the hard state {found}, and {wanted} was persisted"

    def encode(self, *writes: Write) -> object:
        """Encode one group, to be persisted after those before it."""
        group = self.storage.encode(writes)
        self._encoded.append((group, writes))
        for write in writes:
            self.model.apply(write)
        return group

    def persist(self) -> None:
        """Persist the oldest group that was encoded and is not persisted; it stays that when the
        storage refuses it."""
        group, writes = self._encoded[0]
        self.storage.persist(group)
        self._encoded.popleft()
        self._persisted.append(writes)

    @property
    def is_waiting(self) -> bool:
        """Whether a group was encoded and is not persisted."""
        return bool(self._encoded)

    def note_persisted(self) -> None:
        """Everything that was encoded was persisted by somebody else."""
        self._persisted += [writes for _, writes in self._encoded]
        self._encoded.clear()

    def write(self, *writes: Write) -> None:
        """Encode one group and persist it."""
        self.encode(*writes)
        self.persist()

    def check(self) -> None:
        """Compare what can be read with what was encoded."""
        check_log(self.log, self.model.log)

    def reopen(self) -> None:
        """Close the storage and open it again; what was only encoded is lost."""
        self.storage.close()
        self._open()

    def crash_amid(self, files: ForgetfulFiles, keep: Keep) -> None:
        """Open the storage as a power cut within a call leaves it: of what was not persisted the
        oldest group may be found, whole, and nothing else; a second power cut changes nothing."""
        files.crash(keep)
        if self._encoded:
            with_oldest = [*self._persisted, self._encoded[0][1]]
            storage = self.subject.plugin.open(self.home)
            try:
                if is_same(storage.recover(), replayed(with_oldest).recovered()):
                    self._persisted = with_oldest
            finally:
                storage.close()
        self._open()
        files.crash(KeepNothing())
        self._open()

    def crash(self) -> None:
        """Open the storage as a crash leaves it; what was only encoded is lost."""
        before, path = self.storage, self.subject.ground.crashed(self.home.path)
        if path != self.home.path:
            before.close()  # the other one, which knows of no crash
        self.home = replace(self.home, path=path)
        self._open()


def replayed(groups: Sequence[Sequence[Write]]) -> Replay:
    """The model of some groups."""
    model = Replay()
    for writes in groups:
        for write in writes:
            model.apply(write)
    return model


def check_log(log: StoredLog, wanted: StoredLog) -> None:
    """Compare a log with what it must hold: base, runs, and every entry."""
    assert log.base == wanted.base, f"the base is {log.base}, not {wanted.base}"
    runs, runs_wanted = list(log.runs), list(wanted.runs)
    assert runs == runs_wanted, f"the runs are {runs}, not {runs_wanted}"
    for found, entry in zip(all_entries(log), all_entries(wanted), strict=True):
        assert found == entry, f"{described(entry)} is read back as {described(found)}"


def check_read(log: StoredLog, wanted: StoredLog, first: LogIndex, last: int, size: int) -> None:
    """One stretch is read as :meth:`~replog.stored_log.StoredLog.read` promises, within ``size``
    bytes."""
    found = log.read(first, last, size)
    reach = wanted.runs.reach(first, last)
    assert found, f"nothing is read from {first} on"
    assert len(found) <= reach - first + 1, f"{len(found)} entries are read, and {first} to {reach}"
    for at, entry in enumerate(found):
        (right,) = wanted.read(first + at, first + at, 0)
        assert entry == right, f"{described(right)} is read as {described(entry)}"
    read_bytes = len(pack_entries(found))
    assert len(found) == 1 or read_bytes <= size, f"{read_bytes} bytes are read, and {size} asked"
    if found[-1].index < reach:
        following = wanted.read(found[-1].index + 1, found[-1].index + 1, 0)
        size_bytes = sum(len(each.body) + ENTRY_OVERHEAD_BYTES_MAX for each in (*found, *following))
        assert size_bytes > size, f"{len(found)} entries are read, and more fit into {size} bytes"


def described(entry: Entry) -> str:
    """An entry in a few words, however large it is."""
    start = entry.data[:20]
    return f"entry {entry.index} of term {entry.term} ({len(entry.data)} bytes: {start!r})"


def entry(index: LogIndex, term: Term = 1, data: bytes | None = None) -> Entry:
    """A command, whose data tells index and term unless it is given."""
    content = b"%d of %d" % (index, term) if data is None else data
    return Entry(1, index, term, entry_body(EntryKind.COMMAND, 1, term, index, content))


def entries(first: LogIndex, last: LogIndex, term: Term = 1) -> list[Entry]:
    """Commands at contiguous indexes."""
    return [entry(index, term) for index in range(first, last + 1)]


def state(term: Term, voted_for: int = 0, commit_hint: LogIndex = 0) -> Write:
    """A write of a hard state."""
    return Write(HardState(1, term, voted_for, commit_hint), None, ())


def put(*items: Entry, truncate_from: LogIndex | None = None) -> Write:
    """A write of entries, after a truncation."""
    return Write(None, truncate_from, items)


def based(index: LogIndex, term: Term = 1) -> Write:
    """A write of a base."""
    return Write(None, None, (), EntryId(1, term, index))
