"""Founding a storage, and whose it is."""

from __future__ import annotations

from dataclasses import replace

from replog.errors import DirectoryError
from replog.storage.plugin import StorageHome
from replog.testing.storage_conformance.subject import (
    INCARNATION,
    NODE_ID,
    JudgedRun,
    Scenario,
    Subject,
    entries,
    put,
    scenarios_of,
    state,
)
from replog.types import NO_ENTRY


def fresh_holds_nothing(subject: Subject) -> None:
    """A storage that was founded and never written recovers no hard state and an empty log that
    begins at the very beginning."""
    with subject.begin() as run:
        assert run.log.base == NO_ENTRY
        assert len(run.log.runs) == 0


def fresh_again_and_again(subject: Subject) -> None:
    """To open a storage and write nothing leaves it as it was founded."""
    subject.expect_durable()
    with subject.begin() as run:
        for _ in range(3):
            run.reopen()


def says_how_durable(subject: Subject) -> None:
    """A storage says that it is durable where its plugin does and what is written is synced, and
    nowhere else."""
    with subject.begin() as run:
        assert run.storage.durable == subject.plugin.durable
    with subject.begin(is_synced=False) as run:
        assert not run.storage.durable, "it says that it is durable, and need not sync anything"
        run.write(state(1), put(*entries(1, 3)))
        run.check()
        if subject.plugin.durable:
            run.reopen()


def found_again_before_use(subject: Subject) -> None:
    """What an interrupted founding left is replaced: a storage that was never written may be
    founded once more, and is that of the last founding."""
    subject.expect_durable()
    home = subject.found(subject.home())
    later = subject.found(replace(home, incarnation=INCARNATION + 1))
    with JudgedRun(subject, later) as run:
        run.write(state(1, voted_for=2))
        run.reopen()


def used_is_not_founded(subject: Subject) -> None:
    """Founding over a storage that was written to is refused and changes nothing."""
    subject.expect_durable()
    contents = ((state(1),), (state(0), put(*entries(1, 2))))
    for content in contents:
        with subject.begin() as run:
            run.write(*content)
            run.storage.close()
            refused(subject, run.home)
            run.reopen()


def refused(subject: Subject, home: StorageHome) -> None:
    """Founding is refused with the error that names a directory."""
    try:
        subject.plugin.found(home)
    except DirectoryError:
        return
    raise AssertionError("a storage that was written to is founded anew")


def owns_its_files(subject: Subject) -> None:
    """The plugin knows its files by their names, those beside an open storage as well, and claims
    none of the directory's own."""
    with subject.begin() as run:
        seen = set(run.home.files.names(run.home.path))
        run.write(state(1), put(*entries(1, 9)))
        seen.update(run.home.files.names(run.home.path))
        run.storage.close()
        seen.update(run.home.files.names(run.home.path))
    unknown = sorted(name for name in seen if not subject.plugin.owns(name))
    assert not unknown, f"it does not own {unknown}"
    for name in ("identity", "identity.tmp", "lock", "started", "founding", "notes.txt"):
        assert not subject.plugin.owns(name), f"it claims {name}"


def of_another_refused(subject: Subject) -> None:
    """The storage of another cluster, node or incarnation is refused, and left as it was."""
    subject.expect_durable()
    with subject.begin() as run:
        run.write(state(4, voted_for=1), put(*entries(1, 3)))
        run.storage.close()
        for other in (
            replace(run.home, cluster_id="another"),
            replace(run.home, node_id=NODE_ID + 1),
            replace(run.home, incarnation=INCARNATION + 1),
        ):
            storage = None
            try:
                storage = subject.plugin.open(other)
                storage.recover()
            except DirectoryError:
                continue
            finally:
                if storage is not None:
                    storage.close()
            raise AssertionError(
                f"node {other.node_id}, incarnation {other.incarnation}, of cluster "
                f"{other.cluster_id!r} recovers what is not its own"
            )
        run.reopen()


SCENARIOS: tuple[Scenario, ...] = scenarios_of(
    "founding",
    (
        fresh_holds_nothing,
        fresh_again_and_again,
        says_how_durable,
        found_again_before_use,
        used_is_not_founded,
        owns_its_files,
        of_another_refused,
    ),
)
