"""Is what a state machine snapshots the whole of it, and nothing but its state?

:func:`check_machine` is for the tests of whoever writes a machine.  It applies payloads, snapshots
and restores in between, goes on with both, and compares what they answer and show.  It finds a
machine

* that forgets something, or restores it otherwise than it was;
* that keeps something of what it applied before it was restored;
* whose snapshot changes it, or whose frozen view changes with later commands;
* whose chunks only fit together when they are cut as they were made;
* whose chunks differ between replicas of the same state, as with the order of a set;
* whose files, after a restart or a kill, hold another state than their index says;
* that keeps answers, and not in one transaction with their commands.

It cannot find what no payload and no dump shows.  A factory that can be imported by its name is run
once more in a process with another hash seed, for there alone a set has another order; one that is
defined within a function, or in the program itself, is not.

What it finds is an ``AssertionError`` of one sentence.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Final, TypeAlias, cast

from replog.cbor import strict_dumps
from replog.errors import BadCommand, DumpUnavailable, StateMachineError
from replog.machine import (
    NOTHING_APPLIED,
    ApplyContext,
    ConcurrentMachine,
    DurableMachine,
    Machine,
    MachineKind,
    Opened,
    SnapshotMachine,
    answer_keeper,
    digested,
    machine_kind,
)

Factory: TypeAlias = Callable[[], Machine]

CUTS_MAX: Final = 16
"""A machine is snapshotted at so many places among the payloads, unless told otherwise."""

CHILD_SECONDS_MAX: Final = 120
_NOT_IMPORTABLE: Final = 3
"""The exit code of a process that finds no such factory."""

_PIECES: Final = (1, 4093, 70_000)
"""Chunks are restored in pieces of these sizes, which no machine chooses."""

_ITEMS_MAX: Final = 100


def check_machine(
    factory: Factory,
    payloads: Sequence[bytes],
    directory: Path | None = None,
    cuts_max: int = CUTS_MAX,
) -> None:
    """Raise ``AssertionError`` for a machine whose snapshots do not keep the rules.

    ``factory`` makes a new machine without content, ``payloads`` are commands and queries as its
    ``apply`` takes them.  A machine on its own disk gets directories in ``directory``, by default
    in a temporary one.  The payloads are applied about twice per cut.
    """
    assert cuts_max >= 2
    kind = machine_kind(factory())
    if kind is MachineKind.PLAIN:
        raise AssertionError(
            f"{_name(factory)} makes a machine without snapshots; give it snapshot() and restore()"
        )
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        trial = _Trial(factory, payloads, Path(folder), cuts_max)
        try:
            trial.run()
        finally:
            trial.close()


class _Subject:
    """One machine, and how many of the payloads it has applied."""

    def __init__(self, machine: Machine, directory: Path) -> None:
        self.machine = machine
        self.kind = machine_kind(machine)
        self.directory = directory
        self.keeper = answer_keeper(machine)
        self.opened = NOTHING_APPLIED
        if self.kind is MachineKind.DURABLE:
            self.opened = cast("DurableMachine", machine).open(directory)

    def apply(self, number: int, payload: bytes, amid: Callable[[], object] | None = None) -> bytes:
        """What the payload ``number`` (from 1) results in, as bytes; a machine that keeps answers
        keeps that as the answer.  ``amid`` is called in between."""
        mark = _mark(number)
        context = ApplyContext(mark.applied_index, mark.time_ms)
        context.in_session = self.keeper is not None and _is_in_session(number)
        result = self._result(context, payload)
        if self.keeper is not None and context.in_session:
            if amid is not None:
                amid()
            context.in_session = False
            self.keeper.keep_answer(mark.applied_index, result)
        return result

    def _result(self, context: ApplyContext, payload: bytes) -> bytes:
        try:
            return strict_dumps(self.machine.apply(context, payload))
        except StateMachineError as error:
            return f"{type(error).__name__}: {error}".encode()
        except BadCommand as error:
            return f"a result that cannot travel: {error}".encode()

    def take(self) -> Iterable[bytes]:
        if self.kind is MachineKind.IN_MEMORY:
            return cast("SnapshotMachine", self.machine).snapshot()
        return cast("ConcurrentMachine", self.machine).freeze()

    def restore(self, chunks: Iterable[bytes], number: int) -> None:
        if self.kind is MachineKind.DURABLE:
            mark = _mark(number)
            durable = cast("DurableMachine", self.machine)
            durable.restore(chunks, mark.applied_index, mark.time_ms)
        else:
            cast("SnapshotMachine", self.machine).restore(chunks)

    def dump(self) -> list[object]:
        items: list[object] = []
        cursor: bytes | None = b""
        while cursor is not None:
            try:
                page = self.machine.dump(cursor, _ITEMS_MAX)
            except DumpUnavailable as error:
                raise AssertionError(
                    f"what the snapshot forgets would not be seen, for the machine cannot show "
                    f"its state: {error}"
                ) from error
            items += copy.deepcopy(list(page.items))
            cursor = page.cursor
        if (machine := digested(self.machine)) is not None:
            items.append(["state_digest", machine.state_digest])
        return items

    def kept(self, number: int) -> bytes | None:
        """What the payload ``number`` was answered, of a machine that keeps that."""
        index = _mark(number).applied_index
        return None if self.keeper is None else self.keeper.kept_answer(index)

    def close(self) -> None:
        if self.kind is MachineKind.DURABLE:
            cast("DurableMachine", self.machine).close()


class _Trial:
    """One call of :func:`check_machine`."""

    def __init__(
        self, factory: Factory, payloads: Sequence[bytes], folder: Path, cuts_max: int
    ) -> None:
        self._factory = factory
        self._name = _name(factory)
        self._payloads = payloads
        self._folder = folder
        self._cuts = _cuts(len(payloads), cuts_max)
        self._subjects: list[_Subject] = []
        self._results: list[bytes] = []
        """Of the machine that was never snapshotted."""
        self._dumps: dict[int, list[object]] = {}
        """By cut, of that machine."""

    def run(self) -> None:
        self._results, self._dumps = self._walk(self._new())
        again = self._walk(self._new())
        if again != (self._results, self._dumps):
            raise self._wrong("is not deterministic: two of it applied the same and differ")
        snapshots = self._snapshots(self._new())
        used = self._new()
        self._apply(used, 0, len(self._payloads))
        for cut, data in snapshots.items():
            fresh = self._new()
            self._check_restored(fresh, cut, data, "")
            self._check_restored(used, cut, data, ", if it had applied something before")
            fresh.close()
            if used.kind is MachineKind.DURABLE:
                used = self._reopened(used, cut)
        if used.kind is MachineKind.DURABLE:
            self._check_killed(self._new())
        self._check_hash_seed(snapshots)

    def close(self) -> None:
        for subject in self._subjects:
            subject.close()

    # -- steps --

    def _walk(self, subject: _Subject) -> tuple[list[bytes], dict[int, list[object]]]:
        """The results of all payloads, and the dump at each cut."""
        results: list[bytes] = []
        dumps: dict[int, list[object]] = {}
        for number in range(len(self._payloads) + 1):
            if number > 0:
                results.append(subject.apply(number, self._payloads[number - 1]))
            if number in self._cuts:
                dumps[number] = subject.dump()
        return results, dumps

    def _snapshots(self, subject: _Subject) -> dict[int, bytes]:
        """A snapshot at each cut, of one machine that goes on."""
        taken: dict[int, bytes] = {}
        view: tuple[int, Iterable[bytes]] | None = None
        at = 0
        for cut in self._cuts:
            self._apply(subject, at, cut)
            at = cut
            if view is not None:
                # What is consumed now was taken before the commands of this stretch.
                since, frozen = view
                consumed = _in_a_thread(frozen)
                if isinstance(consumed, Exception):
                    raise self._wrong(
                        f"fails when another thread consumes what freeze() returned behind "
                        f"{_count(since)}: {type(consumed).__name__}: {consumed}"
                    ) from consumed
                if consumed != taken[since]:
                    raise self._wrong(
                        f"changes what freeze() returned behind {_count(since)}, with the commands "
                        "that follow; freeze a copy"
                    )
            taken[cut] = _joined(subject.take(), self._name)
            if subject.kind is not MachineKind.IN_MEMORY:
                view = cut, subject.take()
            if subject.dump() != self._dumps[cut]:
                raise self._wrong(f"is changed by taking a snapshot behind {_count(cut)}")
        return taken

    def _check_restored(self, subject: _Subject, cut: int, data: bytes, before: str) -> None:
        """Restore a snapshot, and go on to the last payload."""
        behind = f"restored from its snapshot behind {_count(cut)}{before}"
        try:
            subject.restore(_pieces(data), cut)
        except Exception as error:
            raise self._wrong(
                f"fails with {type(error).__name__} ({error}) when it is {behind}; the same bytes "
                "come back in other chunks"
            ) from error
        if subject.dump() != self._dumps[cut]:
            raise self._wrong(f"shows another state when it is {behind}")
        if _joined(subject.take(), self._name) != data:
            raise self._wrong(
                f"makes other chunks of the same state when it is {behind}; sort what has no order"
            )
        self._apply(subject, cut, len(self._payloads), f" when it is {behind}")
        last = len(self._payloads)
        if subject.dump() != self._dumps[last]:
            raise self._wrong(f"shows another state at the end when it is {behind}")
        if subject.kind is MachineKind.DURABLE:
            subject.restore(_pieces(data), cut)

    def _reopened(self, subject: _Subject, cut: int) -> _Subject:
        """The machine after a restart; it was restored to ``cut`` last."""
        subject.close()
        after = self._open(subject.directory)
        if after.opened != _mark(cut):
            raise self._wrong(
                f"reports {after.opened} after a restart, and was restored as of {_mark(cut)}"
            )
        if after.dump() != self._dumps[cut]:
            raise self._wrong(f"shows another state after a restart behind {_count(cut)}")
        if any(after.kept(number) is not None for number in range(1, len(self._payloads) + 1)):
            raise self._wrong("still has answers that it kept before it was restored")
        return after

    def _check_killed(self, subject: _Subject) -> None:
        """At each cut, open a copy of the files: that is what a killed process leaves."""
        at = 0
        for cut in self._cuts:
            if cut > at:
                self._apply(subject, at, cut - 1)
                amid = partial(self._check_killed_amid, subject, cut)
                subject.apply(cut, self._payloads[cut - 1], amid)
            at = cut
            copied = self._folder / f"killed-{cut}"
            shutil.copytree(subject.directory, copied)
            after = self._open(copied)
            held = self._held(after, cut)
            self._check_kept(after, held)
            self._apply(after, held, cut, f" when it goes on after a kill behind {_count(cut)}")
            if after.dump() != self._dumps[cut]:
                raise self._wrong(
                    f"shows another state when it goes on after a kill behind {_count(cut)}, from "
                    f"{_count(held)} that it reports"
                )
            after.close()
            shutil.rmtree(copied)

    def _check_killed_amid(self, subject: _Subject, number: int) -> None:
        """A command was applied, and its answer is not kept yet."""
        copied = self._folder / f"killed-amid-{number}"
        shutil.copytree(subject.directory, copied)
        after = self._open(copied)
        if self._held(after, number) == number:
            raise self._wrong(
                f"makes the command number {number} durable before its answer is kept; wait for "
                "keep_answer() where context.in_session says so"
            )
        after.close()
        shutil.rmtree(copied)

    def _held(self, after: _Subject, last: int) -> int:
        """How many of the commands up to ``last`` a machine reports after a kill."""
        held = next((n for n in range(last + 1) if _mark(n) == after.opened), None)
        if held is None:
            raise self._wrong(
                f"reports {after.opened} after a kill behind {_count(last)}, which is none of "
                "the commands that it applied"
            )
        return held

    def _check_kept(self, after: _Subject, held: int) -> None:
        """What was answered in sessions is there, of all that a machine reports."""
        for number in filter(_is_in_session, range(1, held + 1)):
            if after.keeper is not None and after.kept(number) != self._results[number - 1]:
                raise self._wrong(
                    f"reports {_count(held)} after a kill, and has not kept what it was given as "
                    f"the answer of the command number {number}"
                )

    def _check_hash_seed(self, snapshots: dict[int, bytes]) -> None:
        """Take the same snapshots where strings have other hashes."""
        if not _is_importable(self._factory):
            return
        seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
        ended = subprocess.run(
            [sys.executable, "-c", f"from {__name__} import run_child; run_child()"],
            input=json.dumps(
                {
                    "module": self._factory.__module__,
                    "name": self._factory.__qualname__,
                    "payloads": [payload.hex() for payload in self._payloads],
                    "cuts": list(snapshots),
                }
            ),
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=CHILD_SECONDS_MAX,
            check=False,
        )
        if ended.returncode == _NOT_IMPORTABLE:
            return
        if ended.returncode:
            lines = ended.stderr.strip().splitlines() or ["no reason given"]
            raise self._wrong(f"fails in a process with another hash seed: {lines[-1]}")
        for cut, digest in zip(snapshots, ended.stdout.split(), strict=True):
            if digest != _digest(snapshots[cut]):
                raise self._wrong(
                    f"makes other chunks of the same state in another process, behind "
                    f"{_count(cut)}: they depend on the order of a set, or on a hash; sort it"
                )

    def _apply(self, subject: _Subject, first: int, last: int, when: str = "") -> None:
        """Apply the payloads behind ``first`` up to ``last``; each result is as it was."""
        for number in range(first + 1, last + 1):
            result = subject.apply(number, self._payloads[number - 1])
            if result != self._results[number - 1]:
                raise self._wrong(
                    f"answers the command number {number} with {result[:80]!r}, and with "
                    f"{self._results[number - 1][:80]!r} when it was never snapshotted{when}"
                )

    def _new(self) -> _Subject:
        return self._open(self._folder / f"machine-{len(self._subjects)}")

    def _open(self, directory: Path) -> _Subject:
        directory.mkdir(exist_ok=True)
        subject = _Subject(self._factory(), directory)
        self._subjects.append(subject)
        return subject

    def _wrong(self, what: str) -> AssertionError:
        return AssertionError(f"the machine of {self._name} {what}")


def run_child() -> None:
    """Print the digest of the snapshot at each cut; what :func:`check_machine` runs apart."""
    asked = json.load(sys.stdin)
    try:
        factory = getattr(importlib.import_module(asked["module"]), asked["name"])
    except (ImportError, AttributeError):
        sys.exit(_NOT_IMPORTABLE)
    with tempfile.TemporaryDirectory() as folder:
        subject = _Subject(factory(), Path(folder))
        at = 0
        for cut in asked["cuts"]:
            for number in range(at + 1, cut + 1):
                subject.apply(number, bytes.fromhex(asked["payloads"][number - 1]))
            at = cut
            print(_digest(_joined(subject.take(), asked["name"])))
        subject.close()


def _mark(number: int) -> Opened:
    """The index and the time of a payload, counted from 1; there are entries of other kinds too."""
    return Opened(3 * number, 1_700_000_000_000 + 10 * number) if number else NOTHING_APPLIED


def _is_in_session(number: int) -> bool:
    """Whether a payload is a command in a session, for a machine that keeps answers."""
    return number % 4 > 0


def _cuts(count: int, cuts_max: int) -> tuple[int, ...]:
    """The places of the snapshots, with the first and the last place among them."""
    places = min(count + 1, cuts_max)
    return tuple(sorted({at * count // max(1, places - 1) for at in range(places)}))


def _joined(chunks: Iterable[bytes], name: str) -> bytes:
    parts = list(chunks)
    odd = next((part for part in parts if not isinstance(part, bytes)), None)
    if odd is not None:
        raise AssertionError(f"the machine of {name} makes a chunk of type {type(odd).__name__}")
    return b"".join(parts)


def _in_a_thread(chunks: Iterable[bytes]) -> bytes | Exception:
    """The chunks as another thread consumes them, or what it met."""
    found: list[bytes | Exception] = []

    def consume() -> None:
        try:
            found.append(b"".join(chunks))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=consume)
    thread.start()
    thread.join()
    return found[0]


def _pieces(data: bytes) -> Iterator[bytes]:
    at = 0
    for size_bytes in cycle(_PIECES):
        if at >= len(data):
            return
        yield data[at : at + size_bytes]
        at += size_bytes


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _count(number: int) -> str:
    return f"{number} command{'' if number == 1 else 's'}"


def _name(factory: Factory) -> str:
    return getattr(factory, "__qualname__", repr(factory))


def _is_importable(factory: Factory) -> bool:
    name = getattr(factory, "__qualname__", "")
    module = sys.modules.get(getattr(factory, "__module__", "") or "")
    return module is not None and name.isidentifier() and getattr(module, name, None) is factory
