"""The sessions of clients: each command is applied once, however often it is sent.

A client whose command has no answer cannot know whether it was done.  In a *session* it sends the
command again, under the same number, and gets the answer of the first time (Raft §8, thesis §6.3).
For that every replica keeps the answers that a session has not said to have; they are a part of the
replicated state, changed by entries alone, and travel in snapshots.

The rules:

* A session is opened by an entry (:mod:`replog.control`), and its id is the index of that entry.
  What it may hold and how long it may be idle stand in the entry: the replicas need not be
  configured alike.
* A command carries its session, a sequence number that the client gives once, and the *lowest*
  sequence number that the client has no answer for yet.  What is below that is forgotten.
* A command whose answer is kept is not applied: its answer is that of the first time.  One below
  the lowest is refused and never applied.  So each is applied once, in the order of the log.
* A session that was idle for too long, by the replicated time, is gone, and so is one that was
  closed.  A command in it is refused and not applied: that it was not done *before* is not said.
* Everything is bounded: the sessions, the answers that one keeps, those that all of them keep, and
  their bytes.  Above a number of answers no command is applied but the *lowest* of each session,
  so that every session goes on; a command whose answer does not fit into the bytes was done all the
  same, and its second copy is told so.

Pure, and below any encoding: how values become bytes is handed in.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeAlias

from replog.errors import (
    CallerError,
    CommandFailed,
    InvalidResult,
    MachineDamaged,
    Overloaded,
    SessionExpired,
    SessionFull,
    SnapshotDamaged,
    StaleSequence,
    StateMachineError,
)
from replog.types import LogIndex, record

SessionId: TypeAlias = int
"""The index of the entry that opened the session."""

Answer: TypeAlias = "tuple[LogIndex, object, Exception | None]"
"""How a command ended, as a :data:`~replog.types.Waiter` is told."""

FORM: Final = "sessions 3"
"""What the records of a snapshot are (:mod:`replog.chunks`)."""

ANSWER_OVERHEAD_BYTES: Final = 64
"""What an answer counts for beside its value."""

ANSWER_MEMORY_BYTES: Final = 256
"""What an answer takes of a process's memory beside its value, roughly and seldom more."""

_SESSION: Final = struct.Struct(">BQQQIIIII")
_ANSWER: Final = struct.Struct(">BQQQ")
_IS_SESSION, _IS_RESULT, _IS_ERROR, _IS_UNKEPT = 1, 2, 3, 4

NOT_KEPT: Final = "AnswerNotKept"
"""The name of the declared error that is told instead of an answer that is not kept."""

LOST: Final = "was lost when the node that was asked again started anew"
_TOO_LARGE: Final = "was too large to be kept for a client that asks again"
_NO_ROOM: Final = "found no room beside those of all other sessions"
_REASONS: Final = (LOST, _TOO_LARGE, _NO_ROOM)
"""Why an answer is not kept; which of these it is, is what is kept of it."""

_FOREIGN: Final = (
    "the sessions in a snapshot are not what this release writes; its writer is at fault: take the "
    "snapshot of another node"
)

NAME_CHARACTERS_MAX: Final = 1000
"""So much is kept of the name of a declared error."""

_INT_MIN: Final = -(1 << 63)
_INT_MAX: Final = (1 << 64) - 1
"""The integers that travel, as :mod:`replog.cbor` has it."""

_PLAIN_BYTES: Final = {type(None): 1, bool: 1, int: 9, float: 9}
"""The types whose values nobody can change later, with the bytes that they count for."""


@record
class SessionTerms:
    """What a session may hold; written into the entry that opens it."""

    idle_ms_max: int
    """By the replicated time; a session without commands for longer is gone."""
    answers_max: int
    """Commands whose answers it has not said to have."""
    answer_bytes_max: int
    """Bytes of those answers."""
    sessions_max: int
    """Sessions of the cluster, this one included."""
    all_bytes_max: int
    """Bytes of the answers of all sessions together, above which this one keeps no more; and at
    ``ANSWER_MEMORY_BYTES`` for each, how many answers there may be before one more is kept."""


class _Session:
    """One session; changes at every command."""

    __slots__ = ("answers", "bytes", "lowest", "terms", "time_ms")

    def __init__(self, terms: SessionTerms, time_ms: int) -> None:
        self.terms = terms
        self.time_ms = time_ms
        """The replicated time of its last command."""
        self.lowest = 0
        """Everything below was acknowledged by the client."""
        self.answers: dict[int, _Kept] = {}
        """By sequence number, in the order in which they were given."""
        self.bytes = 0


_Kept: TypeAlias = "tuple[LogIndex, int, int, object]"
"""One answer: the index, the form of the value (below), the bytes that it counts for, the value.  A
plain tuple, because one is made for every command in a session."""

_NOTHING: Final[_Kept] = (0, 0, 0, None)

_PLAIN, _PACKED, _ERROR, _UNKEPT = 0, 1, 2, 3
"""A value that nobody can change later; the encoding of one that the machine may change, as a list;
the name and the message of a declared error; the place in ``_REASONS`` of why it is not kept."""


class Sessions:
    """Every session of a cluster, as of the last entry that was applied."""

    __slots__ = ("_bytes", "_count", "_decode", "_encode", "_quiet_ms", "_sessions", "were_used")

    def __init__(
        self, encode: Callable[[object], bytes], decode: Callable[[bytes], object]
    ) -> None:
        """``encode`` makes bytes of a result, the same on every replica, or raises a
        :class:`~replog.errors.CallerError`; ``decode`` takes them back."""
        self._encode = encode
        self._decode = decode
        self._sessions: dict[SessionId, _Session] = {}
        """Ascending by id."""
        self._count = 0
        """The answers of all of them."""
        self._bytes = 0
        """The bytes that those count for."""
        self._quiet_ms = -1
        """Up to this time, by an earlier look, none is gone."""
        self.were_used = False
        """Whether one was ever asked for, here or on any replica; all may be gone since."""

    def __len__(self) -> int:
        """How many there are, with those that are gone by time but not looked for since."""
        return len(self._sessions)

    # -- entries --

    def open(self, session_id: SessionId, terms: SessionTerms, time_ms: int) -> None:
        """Begin a session; raises :class:`~replog.errors.Overloaded` when there are too many."""
        self.were_used = True
        if len(self._sessions) >= terms.sessions_max:
            self._drop_expired(time_ms)
        if len(self._sessions) >= terms.sessions_max:
            raise Overloaded(
                f"the cluster holds {len(self._sessions)} sessions of clients, and this one may be "
                f"one of {terms.sessions_max} (limits.sessions_max); close some, or try again when "
                "idle ones are gone"
            )
        assert session_id not in self._sessions
        self._sessions[session_id] = _Session(terms, time_ms)
        self._quiet_ms = min(self._quiet_ms, time_ms + terms.idle_ms_max)

    def close(self, session_id: SessionId) -> None:
        """End a session; who is closed already stays so."""
        session = self._sessions.pop(session_id, None)
        if session is not None:
            self._count -= len(session.answers)
            self._bytes -= session.bytes

    def begin(
        self, session_id: SessionId, sequence: int, lowest: int, time_ms: int
    ) -> Answer | None:
        """A command of a session has come up; its answer if that is known, ``None``: apply it, and
        call :meth:`finish` with what came of it."""
        session = self._sessions.get(session_id)
        if session is None or time_ms - session.time_ms > session.terms.idle_ms_max:
            self.close(session_id)
            return 0, None, SessionExpired(session_id)
        session.time_ms = time_ms
        answers = session.answers
        if lowest > session.lowest:
            self._acknowledge(session, lowest)
        if sequence < session.lowest:
            return 0, None, StaleSequence(session_id, sequence, session.lowest)
        kept = answers.get(sequence)
        if kept is not None:
            return self._answer(kept)
        # The lowest one is always done: the session goes on with it, however much others hoard, and
        # has at most this one above the bounds, for it is forgotten when another is the lowest.
        if sequence > session.lowest and (full := self._fullness(session_id, session, time_ms)):
            return 0, None, full
        return None

    def _fullness(
        self, session_id: SessionId, session: _Session, time_ms: int
    ) -> SessionFull | None:
        """Why no command of a session is done now but the lowest; ``None``: others are, too."""
        if len(session.answers) >= session.terms.answers_max:
            said = (
                f"session {session_id} has {len(session.answers)} commands whose answers it has "
                "not said to have; acknowledge them"
            )
        elif self._is_full(session.terms, time_ms):
            said = (
                f"the sessions of all clients have {self._count} commands whose answers they have "
                "not said to have, for which limits.sessions_bytes_max leaves no room; close those "
                "that nobody uses"
            )
        else:
            return None
        return SessionFull(
            f"{said}, or wait for command {session.lowest} of session {session_id}, which is done "
            "at any rate"
        )

    def _is_full(self, terms: SessionTerms, time_ms: int) -> bool:
        """Whether there are too many answers, also when the sessions are dropped that are gone.

        By the number alone: of their bytes a replica may know less than others, which have kept
        answers that it has lost, and all of them must refuse the same.
        """
        answers_max = -(-terms.all_bytes_max // ANSWER_MEMORY_BYTES)
        if self._count >= answers_max:
            self._drop_expired(time_ms)
        return self._count >= answers_max

    def finish(
        self,
        session_id: SessionId,
        sequence: int,
        index: LogIndex,
        result: object,
        error: StateMachineError | None,
    ) -> None:
        """Keep what came of a command that :meth:`begin` had applied."""
        session = self._sessions[session_id]
        value_bytes = _PLAIN_BYTES.get(type(result)) if error is None else None
        if type(result) is int and not _INT_MIN <= result <= _INT_MAX:
            value_bytes = None  # it cannot travel, nor stand in a snapshot
        form, value = _PLAIN, result
        if value_bytes is None:
            form, value, value_bytes = self._kept_value(result, error)
        size_bytes = ANSWER_OVERHEAD_BYTES + value_bytes
        terms = session.terms
        if session.bytes + size_bytes > terms.answer_bytes_max:
            self._finish_without(session, sequence, index, _TOO_LARGE)
        elif self._bytes + size_bytes > terms.all_bytes_max:
            self._finish_without(session, sequence, index, _NO_ROOM)
        else:
            self._keep(session, sequence, (index, form, size_bytes, value))

    def finish_unkept(self, session_id: SessionId, sequence: int, index: LogIndex) -> None:
        """A command was applied, and what came of it is lost."""
        self._finish_without(self._sessions[session_id], sequence, index, LOST)

    def packed_answer(self, session_id: SessionId, sequence: int) -> bytes:
        """What :meth:`finish` has kept, as :meth:`finish_packed` takes it after a restart."""
        return self._pack_answer(sequence, self._sessions[session_id].answers[sequence])

    def finish_packed(
        self, session_id: SessionId, sequence: int, index: LogIndex, packed: bytes
    ) -> None:
        """A command was applied before a restart, and ``packed`` is what was kept of it then.

        Raises :class:`~replog.errors.MachineDamaged` for what was kept of another command.
        """
        session = self._sessions[session_id]
        try:
            found, kept = self._unpack_answer(packed)
        except (SnapshotDamaged, struct.error):
            found, kept = 0, _NOTHING
        if (found, kept[0]) != (sequence, index):
            raise MachineDamaged(
                f"what the state machine kept as the answer of entry {index} is not that of "
                f"command {sequence} of session {session_id}: its files are damaged, or it mixes "
                "answers up; remove its directory, and it is filled again"
            )
        self._keep(session, sequence, kept)

    def answers(self) -> Iterator[Answer]:
        """Every answer that is kept, of all sessions; for whoever judges them."""
        for session in self._sessions.values():
            yield from map(self._answer, session.answers.values())

    def numbers(self, time_ms: int) -> dict[SessionId, list[int]]:
        """By session that is not gone at ``time_ms``, the numbers of the commands whose answers it
        keeps, ascending; for whoever judges them."""
        return {
            session_id: sorted(session.answers)
            for session_id, session in self._sessions.items()
            if time_ms - session.time_ms <= session.terms.idle_ms_max
        }

    def _finish_without(self, session: _Session, sequence: int, index: LogIndex, why: str) -> None:
        kept = (index, _UNKEPT, ANSWER_OVERHEAD_BYTES, _REASONS.index(why))
        self._keep(session, sequence, kept)

    def _keep(self, session: _Session, sequence: int, kept: _Kept) -> None:
        session.answers[sequence] = kept
        session.bytes += kept[2]
        self._bytes += kept[2]
        self._count += 1

    def _kept_value(
        self, result: object, error: StateMachineError | None
    ) -> tuple[int, object, int]:
        """What came of a command in a form that can be kept, with the bytes that it counts for."""
        if error is not None:
            name = error.name if isinstance(error, CommandFailed) else type(error).__name__
            name, message = _packable(name[:NAME_CHARACTERS_MAX]), _packable(str(error))
            return _ERROR, (name, message), 4 * (len(name) + len(message))
        if type(result) is bytes:
            return _PLAIN, result, len(result)
        # Also a str: how many bytes it has depends on its characters.
        try:
            encoded = self._encode(result)
        except CallerError as failure:
            return _ERROR, (InvalidResult.__name__, str(failure)), 0
        return _PACKED, encoded, len(encoded)

    def _answer(self, kept: _Kept) -> Answer:
        index, form, _, value = kept
        if form == _ERROR:
            return index, None, CommandFailed(*value)  # type: ignore[misc]
        if form == _UNKEPT:
            why = _REASONS[value]  # type: ignore[call-overload]
            sentence = f"the command was done at entry {index}, and its answer {why}"
            return index, None, CommandFailed(NOT_KEPT, sentence)
        if form == _PACKED:
            value = self._decode(value)  # type: ignore[arg-type]
        return index, value, None

    def _acknowledge(self, session: _Session, lowest: int) -> None:
        """The client has every answer below ``lowest``."""
        answers, before = session.answers, session.lowest
        session.lowest = lowest
        # Usually one or a few; but the number may be far ahead of the last, from a hostile client.
        passed: Iterable[int] = range(before, lowest)
        if lowest - before > len(answers):
            passed = [sequence for sequence in answers if sequence < lowest]
        for sequence in passed:
            kept = answers.pop(sequence, None)
            if kept is not None:
                session.bytes -= kept[2]
                self._bytes -= kept[2]
                self._count -= 1

    def _drop_expired(self, time_ms: int) -> None:
        """Drop what is gone by now, so that there is room for others."""
        if time_ms <= self._quiet_ms:
            return  # as a look at each would show, which takes long where there are many
        last_ms = {
            session_id: session.time_ms + session.terms.idle_ms_max
            for session_id, session in self._sessions.items()
        }
        for session_id, session_ms in last_ms.items():
            if session_ms < time_ms:
                self.close(session_id)
        # Who sends a command from now on lasts longer; one that is opened, see there.
        self._quiet_ms = min((ms for ms in last_ms.values() if ms >= time_ms), default=time_ms)

    # -- snapshots --

    def freeze(self) -> Iterator[bytes]:
        """All of it as of now, as records that :meth:`restore` takes; the same on every replica of
        the same applied index.

        They are made as they are asked for, which another thread may do: no answer ever changes,
        and the tables are copied here, some 20 ms for as many as the limits allow by default.
        """
        frozen = [
            (self._pack_session(session_id, session), session.answers.copy())
            for session_id, session in self._sessions.items()
        ]
        return self._packed(frozen)

    def _packed(self, frozen: Iterable[tuple[bytes, dict[int, _Kept]]]) -> Iterator[bytes]:
        for head, answers in frozen:
            yield head
            for sequence, kept in sorted(answers.items(), key=_sequence_of):
                yield self._pack_answer(sequence, kept)

    def _pack_session(self, session_id: SessionId, session: _Session) -> bytes:
        terms = session.terms
        return _SESSION.pack(
            _IS_SESSION,
            session_id,
            session.time_ms,
            session.lowest,
            terms.idle_ms_max,
            terms.answers_max,
            terms.answer_bytes_max,
            terms.sessions_max,
            terms.all_bytes_max,
        )

    def _pack_answer(self, sequence: int, kept: _Kept) -> bytes:
        index, form, size_bytes, value = kept
        if form == _ERROR:
            name, message = (text.encode() for text in value)  # type: ignore[attr-defined]
            head = _ANSWER.pack(_IS_ERROR, sequence, index, size_bytes)
            return b"".join((head, len(name).to_bytes(2), name, message))
        if form == _UNKEPT:
            head = _ANSWER.pack(_IS_UNKEPT, sequence, index, size_bytes)
            return head + bytes([value])  # type: ignore[list-item]
        head = _ANSWER.pack(_IS_RESULT, sequence, index, size_bytes)
        return head + (value if form == _PACKED else self._encode(value))  # type: ignore[operator]

    def restore(self, records: Iterable[bytes]) -> None:
        """Replace everything by what was frozen; raises
        :class:`~replog.errors.SnapshotDamaged` and then keeps what there was."""
        sessions: dict[SessionId, _Session] = {}
        session: _Session | None = None
        count = size_bytes = 0
        for content in records:
            if content[:1] == bytes([_IS_SESSION]) and len(content) == _SESSION.size:
                _, session_id, time_ms, lowest, *terms = _SESSION.unpack(content)
                if session_id in sessions:
                    raise SnapshotDamaged(_FOREIGN)
                session = sessions[session_id] = _Session(SessionTerms(*terms), time_ms)
                session.lowest = lowest
                continue
            if session is None or len(content) < _ANSWER.size:
                raise SnapshotDamaged(_FOREIGN)
            sequence, kept = self._unpack_answer(content)
            if sequence in session.answers:
                raise SnapshotDamaged(_FOREIGN)
            session.answers[sequence] = kept
            session.bytes += kept[2]
            size_bytes += kept[2]
            count += 1
        self._sessions, self._count, self._bytes = sessions, count, size_bytes
        self._quiet_ms = -1
        self.were_used = True

    def _unpack_answer(self, content: bytes) -> tuple[int, _Kept]:
        kind, sequence, index, size_bytes = _ANSWER.unpack_from(content)
        rest = content[_ANSWER.size :]
        if kind == _IS_RESULT:
            # Packed or not is nobody's business but this object's: both answer the same.
            return sequence, (index, _PACKED, size_bytes, rest)
        if kind == _IS_UNKEPT and len(rest) == 1 and rest[0] < len(_REASONS):
            return sequence, (index, _UNKEPT, size_bytes, rest[0])
        if kind != _IS_ERROR:
            raise SnapshotDamaged(_FOREIGN)
        length = int.from_bytes(rest[:2])
        name, message = rest[2 : 2 + length], rest[2 + length :]
        texts = (name.decode(errors="replace"), message.decode(errors="replace"))
        return sequence, (index, _ERROR, size_bytes, texts)


def _packable(text: str) -> str:
    """A text that has an encoding: a machine may put anything into its errors."""
    return text.encode(errors="backslashreplace").decode()


def _sequence_of(item: tuple[int, _Kept]) -> int:
    return item[0]
