"""``check_machine`` passes a machine that keeps the rules, and finds each way to break one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from replog.chunks import pack_chunks, unpack_chunks
from replog.machine import ApplyContext, DumpPage, Machine
from replog.statemachine import NOTHING_APPLIED, CommandMachine, Opened, StateMachine, command
from replog.testing import check_machine
from replog.testing.machines import Factory


class Names(StateMachine):
    """Keeps names and counts calls; the attributes are the snapshot."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.calls_count = 0

    @command
    def add(self, name: str) -> int:
        self.calls_count += 1
        self.names[name] = self.calls_count
        return self.calls_count


PAYLOADS = [Names.add.encode(f"name {number % 13}") for number in range(40)]


class Frozen(Names):
    """The same, frozen."""

    def freeze(self) -> Iterable[bytes]:
        return _packed(dict(self.names), self.calls_count)

    def restore(self, chunks: Iterable[bytes]) -> None:
        self.calls_count, self.names = _unpacked(chunks)


def _packed(names: dict[str, int], count: int) -> Iterator[bytes]:
    lines = (f"{number} {name}".encode() for name, number in sorted(names.items()))
    yield from pack_chunks("names 1", (str(count).encode(), *lines))


def _unpacked(chunks: Iterable[bytes]) -> tuple[int, dict[str, int]]:
    count, *lines = (line.decode() for line in unpack_chunks("names 1", chunks))
    pairs = (line.split(" ", 1) for line in lines)
    return int(count), {name: int(number) for number, name in pairs}


class Kept(CommandMachine):
    """The same, in a file that is written behind every third command."""

    calls_count: int
    names: dict[str, int]

    @command
    def add(self, name: str) -> int:
        self.calls_count += 1
        self.names[name] = self.calls_count
        return self.calls_count

    def open(self, directory: Path) -> Opened:
        self.path = directory / "names"
        self.calls_count, self.names = 0, {}
        if not self.path.exists():
            return NOTHING_APPLIED
        head, data = self.path.read_bytes().split(b"\n", 1)
        self.calls_count, self.names = _unpacked([data])
        self.last = Opened(*map(int, head.split()))
        return self.last

    def apply(self, context: ApplyContext, payload: bytes) -> object:
        result = super().apply(context, payload)
        self.last = Opened(context.index, context.time_ms)
        if self.calls_count % 3 == 0:
            self.store()
        return result

    def store(self) -> None:
        head = b"%d %d\n" % (self.last.applied_index, self.last.time_ms)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_bytes(head + b"".join(self.freeze()))
        os.replace(temporary, self.path)

    def freeze(self) -> Iterable[bytes]:
        return _packed(dict(self.names), self.calls_count)

    def restore(self, chunks: Iterable[bytes], index: int, time_ms: int) -> None:
        self.calls_count, self.names = _unpacked(chunks)
        self.last = Opened(index, time_ms)
        self.store()

    def dump(self, cursor: bytes, items_max: int) -> DumpPage:
        return DumpPage([self.calls_count, self.names], None)

    def close(self) -> None: ...


class Keeping(Kept):
    """Keeps answers, too, in the same file."""

    answers: dict[int, bytes]
    awaits = False

    def open(self, directory: Path) -> Opened:
        self.answers = {}
        found = super().open(directory)
        if found != NOTHING_APPLIED:
            self.answers = eval((directory / "answers").read_text())[found.applied_index]
        return found

    def apply(self, context: ApplyContext, payload: bytes) -> object:
        self.awaits = context.in_session
        return super().apply(context, payload)

    def keep_answer(self, index: int, answer: bytes) -> None:
        self.answers[index] = answer
        self.awaits = False
        if self.calls_count % 3 == 0:
            self.store()

    def kept_answer(self, index: int) -> bytes | None:
        return self.answers.get(index)

    def forget_answers(self, upto: int) -> None:
        """They are few."""

    def store(self) -> None:
        if not self.awaits:
            # The file that is replaced last says which of these count.
            last = self.last.applied_index
            (self.path.parent / "answers").write_text(repr({last: self.answers}))
            super().store()

    def freeze(self) -> Iterable[bytes]:
        return super().freeze()

    def restore(self, chunks: Iterable[bytes], index: int, time_ms: int) -> None:
        self.answers = {}
        super().restore(chunks, index, time_ms)


@pytest.mark.parametrize("factory", [Names, Frozen, Kept, Keeping])
def test_good_machine_passes(factory: Factory, tmp_path: Path) -> None:
    """A machine of each kind that keeps the rules passes, and leaves no files."""
    check_machine(factory, PAYLOADS, tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_payloads_pass() -> None:
    """Without any payload the empty machine alone is checked."""
    check_machine(Names, [])


class Forgetful(Names):
    """Does not write the count."""

    def snapshot(self) -> Iterable[bytes]:
        return _packed(self.names, 0)

    def restore(self, chunks: Iterable[bytes]) -> None:
        self.calls_count, self.names = _unpacked(chunks)


class Adding(Frozen):
    """Restores into what is there."""

    def freeze(self) -> Iterable[bytes]:
        return super().freeze()

    def restore(self, chunks: Iterable[bytes]) -> None:
        self.calls_count, names = _unpacked(chunks)
        self.names.update(names)


class Moving(Frozen):
    """Freezes the dict itself."""

    def freeze(self) -> Iterable[bytes]:
        return _packed(self.names, self.calls_count)

    def restore(self, chunks: Iterable[bytes]) -> None:
        super().restore(chunks)


class Iterating(Frozen):
    """Goes through the dict itself while it changes."""

    def freeze(self) -> Iterable[bytes]:
        yield b""
        for name in self.names:
            yield f"{self.names[name]} {name}\n".encode()

    def restore(self, chunks: Iterable[bytes]) -> None:
        lines = b"".join(chunks).decode().splitlines()
        self.names = {name: int(at) for at, name in (line.split(" ", 1) for line in lines)}
        self.calls_count = max(self.names.values(), default=0)


class Cutting(Names):
    """Takes each chunk for a thing of its own."""

    def snapshot(self) -> Iterable[bytes]:
        yield str(self.calls_count).encode()
        for name, number in sorted(self.names.items()):
            yield f"{number} {name}".encode()

    def restore(self, chunks: Iterable[bytes]) -> None:
        count, *lines = (chunk.decode() for chunk in chunks)
        pairs = (line.split(" ", 1) for line in lines)
        self.calls_count, self.names = int(count), {name: int(at) for at, name in pairs}


class Breaking(Cutting):
    """Finds no number where a chunk begins."""

    def snapshot(self) -> Iterable[bytes]:
        for part in (self.calls_count, *sorted(self.names.items())):
            yield f"- {part}".encode()

    def restore(self, chunks: Iterable[bytes]) -> None:
        self.calls_count, *_ = (int(chunk.removeprefix(b"- ")) for chunk in chunks)


class Unordered(Names):
    """Writes the names in the order of a set."""

    def snapshot(self) -> Iterable[bytes]:
        lines = (f"{self.names[name]} {name}".encode() for name in set(self.names))
        return pack_chunks("names 1", (str(self.calls_count).encode(), *lines))

    def restore(self, chunks: Iterable[bytes]) -> None:
        self.calls_count, self.names = _unpacked(chunks)


class Hashed(Names):
    """Writes the names in the order of their hashes, the same in one process."""

    def snapshot(self) -> Iterable[bytes]:
        lines = (f"{self.names[name]} {name}".encode() for name in sorted(self.names, key=hash))
        return pack_chunks("names 1", (str(self.calls_count).encode(), *lines))

    def restore(self, chunks: Iterable[bytes]) -> None:
        self.calls_count, self.names = _unpacked(chunks)


class Spent(Names):
    """Loses a name by being snapshotted."""

    def snapshot(self) -> Iterable[bytes]:
        chunks = list(_packed(self.names, self.calls_count))
        self.names.pop("name 3", None)
        return chunks

    def restore(self, chunks: Iterable[bytes]) -> None:
        self.calls_count, self.names = _unpacked(chunks)


class Drifting(Names):
    """Answers by a count that all machines share."""

    shared = 0

    @command
    def add(self, name: str) -> int:
        Drifting.shared += 1
        return Drifting.shared


class Lagging(Kept):
    """Says less than it holds."""

    def store(self) -> None:
        self.last = Opened(max(0, self.last.applied_index - 3), max(0, self.last.time_ms - 10))
        super().store()


class Timeless(Kept):
    """Does not keep the time."""

    def store(self) -> None:
        self.last = Opened(self.last.applied_index, 0)
        super().store()


class Fleeting(Kept):
    """Does not store what it restored."""

    def freeze(self) -> Iterable[bytes]:
        return super().freeze()

    def restore(self, chunks: Iterable[bytes], index: int, time_ms: int) -> None:
        self.calls_count, self.names = _unpacked(chunks)
        self.last = Opened(index, time_ms)


class Early(Keeping):
    """Makes a command durable before it has the answer."""

    def apply(self, context: ApplyContext, payload: bytes) -> object:
        return super().apply(ApplyContext(context.index, context.time_ms), payload)


class Dropping(Keeping):
    """Keeps no more than the last answer."""

    def keep_answer(self, index: int, answer: bytes) -> None:
        self.answers = {}
        super().keep_answer(index, answer)


class Mingling(Keeping):
    """Keeps an answer under another index."""

    def keep_answer(self, index: int, answer: bytes) -> None:
        super().keep_answer(index - 1, answer)


class Clinging(Keeping):
    """Has answers left when it was restored."""

    def freeze(self) -> Iterable[bytes]:
        return super().freeze()

    def restore(self, chunks: Iterable[bytes], index: int, time_ms: int) -> None:
        Kept.restore(self, chunks, index, time_ms)


class Wordless(Names):
    """Chunks that are no bytes."""

    def snapshot(self) -> Iterable[bytes]:
        return ["text"]  # type: ignore[list-item]

    def restore(self, chunks: Iterable[bytes]) -> None: ...


class Hiding(Names):
    """Has no dump."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def snapshot(self) -> Iterable[bytes]:
        return _packed(self.names, self.calls_count)

    def restore(self, chunks: Iterable[bytes]) -> None:
        self.calls_count, self.names = _unpacked(chunks)


@pytest.mark.parametrize(
    ("factory", "sentence"),
    [
        (CommandMachine, "without snapshots"),
        (Forgetful, "shows another state when it is restored"),
        (Adding, "if it had applied something before"),
        (Moving, "changes what freeze\\(\\) returned"),
        (Iterating, "what freeze\\(\\) returned"),
        (Cutting, "shows another state when it is restored"),
        (Breaking, "fails with ValueError .* other chunks"),
        (Unordered, "order of a set|sort what has no order"),
        (Hashed, "other chunks of the same state in another process"),
        (Spent, "changed by taking a snapshot"),
        (Drifting, "not deterministic"),
        (Lagging, "reports .* after a restart"),
        (Timeless, "reports .* after a restart"),
        (Fleeting, "reports .* after a restart"),
        (Early, "durable before its answer is kept"),
        (Dropping, "has not kept"),
        (Mingling, "has not kept"),
        (Clinging, "still has answers"),
        (Wordless, "chunk of type str"),
        (Hiding, "cannot show its state"),
    ],
)
def test_broken_machine_found(factory: type[Machine], sentence: str, tmp_path: Path) -> None:
    """Each way to break a rule is found, with a sentence that names the class."""
    with pytest.raises(AssertionError, match=sentence) as caught:
        check_machine(factory, PAYLOADS, tmp_path)
    if factory not in (Hiding,):
        assert factory.__name__ in str(caught.value)


def test_kill_with_wrong_index_found(tmp_path: Path) -> None:
    """A machine that writes its state more often than its index is found by a kill."""

    class Hasty(Kept):
        def store(self) -> None:
            if self.calls_count % 6 != 3 or self.path.with_suffix(".tmp").exists():
                super().store()
                return
            kept = self.last
            self.last = Opened(kept.applied_index - 3, kept.time_ms - 10)
            super().store()
            self.last = kept

        def freeze(self) -> Iterable[bytes]:
            return super().freeze()

        def restore(self, chunks: Iterable[bytes], index: int, time_ms: int) -> None:
            self.calls_count, self.names = _unpacked(chunks)
            self.last = Opened(index, time_ms)
            super().store()

    with pytest.raises(AssertionError, match="after a kill"):
        check_machine(Hasty, PAYLOADS, tmp_path)
