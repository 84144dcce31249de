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
* Everything is bounded: the sessions, the answers that one keeps, and their bytes.  An answer too
  large to be kept was done all the same, and says so when it is asked for again.

Pure, and below any encoding: how values become bytes is handed in.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias

from replog.errors import (
    CallerError,
    CommandFailed,
    InvalidResult,
    Overloaded,
    SessionExpired,
    SnapshotDamaged,
    StaleSequence,
    StateMachineError,
)
from replog.types import LogIndex, record

SessionId: TypeAlias = int
"""The index of the entry that opened the session."""

Answer: TypeAlias = "tuple[LogIndex, object, Exception | None]"
"""How a command ended, as a :data:`~replog.types.Waiter` is told."""

FORM: Final = "sessions 1"
"""What the records of a snapshot are (:mod:`replog.chunks`)."""

ANSWER_OVERHEAD_BYTES: Final = 64
"""What an answer counts for beside its value."""

_SESSION: Final = struct.Struct(">BQQQIIII")
_ANSWER: Final = struct.Struct(">BQQQ")
_IS_SESSION, _IS_RESULT, _IS_ERROR = 1, 2, 3
_NOT_KEPT: Final = "AnswerNotKept"
_FOREIGN: Final = (
    "the sessions in a snapshot are not what this release writes; its writer is at fault: take the "
    "snapshot of another node"
)

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


class _Kept:
    """One answer."""

    __slots__ = ("error", "index", "is_packed", "size_bytes", "value")

    def __init__(self, index: LogIndex) -> None:
        self.index = index
        self.value: object = None
        self.is_packed = False
        """Whether ``value`` is the encoding of the result: the machine may change a list later."""
        self.error: tuple[str, str] | None = None
        """The name and the message of a declared error."""
        self.size_bytes = ANSWER_OVERHEAD_BYTES


class Sessions:
    """Every session of a cluster, as of the last entry that was applied."""

    __slots__ = ("_decode", "_encode", "_sessions", "were_used")

    def __init__(
        self, encode: Callable[[object], bytes], decode: Callable[[bytes], object]
    ) -> None:
        """``encode`` makes bytes of a result, the same on every replica, or raises a
        :class:`~replog.errors.CallerError`; ``decode`` takes them back."""
        self._encode = encode
        self._decode = decode
        self._sessions: dict[SessionId, _Session] = {}
        """Ascending by id."""
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

    def close(self, session_id: SessionId) -> None:
        """End a session; who is closed already stays so."""
        self._sessions.pop(session_id, None)

    def begin(
        self, session_id: SessionId, sequence: int, lowest: int, time_ms: int
    ) -> Answer | None:
        """A command of a session has come up; its answer if that is known, ``None``: apply it, and
        call :meth:`finish` with what came of it."""
        session = self._sessions.get(session_id)
        if session is None or time_ms - session.time_ms > session.terms.idle_ms_max:
            self._sessions.pop(session_id, None)
            return 0, None, SessionExpired(session_id)
        session.time_ms = time_ms
        if lowest > session.lowest:
            self._acknowledge(session, lowest)
        if sequence < session.lowest:
            return 0, None, StaleSequence(session_id, sequence, session.lowest)
        kept = session.answers.get(sequence)
        if kept is not None:
            return self._answer(kept)
        if len(session.answers) >= session.terms.answers_max:
            return (
                0,
                None,
                Overloaded(
                    f"session {session_id} has {len(session.answers)} commands whose answers it "
                    "has not said to have; wait for some of them"
                ),
            )
        return None

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
        kept = _Kept(index)
        if error is not None:
            name = error.name if isinstance(error, CommandFailed) else type(error).__name__
            kept.error = (name, str(error))
            kept.size_bytes += 4 * (len(name) + len(kept.error[1]))
        else:
            self._keep_result(kept, result)
        room = session.terms.answer_bytes_max - session.bytes - ANSWER_OVERHEAD_BYTES
        if kept.size_bytes - ANSWER_OVERHEAD_BYTES > room:
            kept = _unkept(index, "was too large to be kept for a client that asks again")
        session.answers[sequence] = kept
        session.bytes += kept.size_bytes

    def finish_unkept(self, session_id: SessionId, sequence: int, index: LogIndex) -> None:
        """A command was applied, and what came of it is lost."""
        session = self._sessions[session_id]
        kept = _unkept(index, "was lost when the node that was asked again started anew")
        session.answers[sequence] = kept
        session.bytes += kept.size_bytes

    def _keep_result(self, kept: _Kept, result: object) -> None:
        size_bytes = _PLAIN_BYTES.get(type(result))
        if size_bytes is not None:
            kept.value = result
        elif type(result) is bytes:
            kept.value = result
            size_bytes = len(result)
        else:
            # Also a str: how many bytes it has depends on its characters.
            try:
                encoded = self._encode(result)
            except CallerError as error:
                kept.error = (InvalidResult.__name__, str(error))
                encoded = b""
            kept.value, kept.is_packed = encoded, True
            size_bytes = len(encoded)
        kept.size_bytes += size_bytes

    def _answer(self, kept: _Kept) -> Answer:
        if kept.error is not None:
            return kept.index, None, CommandFailed(*kept.error)
        value = self._decode(kept.value) if kept.is_packed else kept.value  # type: ignore[arg-type]
        return kept.index, value, None

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
                session.bytes -= kept.size_bytes

    def _drop_expired(self, time_ms: int) -> None:
        for session_id, session in list(self._sessions.items()):
            if time_ms - session.time_ms > session.terms.idle_ms_max:
                del self._sessions[session_id]

    # -- snapshots --

    def freeze(self) -> Sequence[bytes]:
        """All of it as of now, as records that :meth:`restore` takes; the same on every replica of
        the same applied index."""
        records: list[bytes] = []
        for session_id, session in self._sessions.items():
            terms = session.terms
            records.append(
                _SESSION.pack(
                    _IS_SESSION,
                    session_id,
                    session.time_ms,
                    session.lowest,
                    terms.idle_ms_max,
                    terms.answers_max,
                    terms.answer_bytes_max,
                    terms.sessions_max,
                )
            )
            for sequence, kept in sorted(session.answers.items(), key=_sequence_of):
                records.append(self._pack_answer(sequence, kept))
        return records

    def _pack_answer(self, sequence: int, kept: _Kept) -> bytes:
        if kept.error is not None:
            name, message = (text.encode() for text in kept.error)
            head = _ANSWER.pack(_IS_ERROR, sequence, kept.index, kept.size_bytes)
            return b"".join((head, len(name).to_bytes(2), name, message))
        head = _ANSWER.pack(_IS_RESULT, sequence, kept.index, kept.size_bytes)
        return head + (kept.value if kept.is_packed else self._encode(kept.value))  # type: ignore[operator]

    def restore(self, records: Iterable[bytes]) -> None:
        """Replace everything by what was frozen; raises
        :class:`~replog.errors.SnapshotDamaged` and then keeps what there was."""
        sessions: dict[SessionId, _Session] = {}
        session: _Session | None = None
        for content in records:
            if content[:1] == bytes([_IS_SESSION]) and len(content) == _SESSION.size:
                _, session_id, time_ms, lowest, *terms = _SESSION.unpack(content)
                session = sessions[session_id] = _Session(SessionTerms(*terms), time_ms)
                session.lowest = lowest
                continue
            if session is None or len(content) < _ANSWER.size:
                raise SnapshotDamaged(_FOREIGN)
            sequence, kept = self._unpack_answer(content)
            session.answers[sequence] = kept
            session.bytes += kept.size_bytes
        self._sessions = sessions
        self.were_used = True

    def _unpack_answer(self, content: bytes) -> tuple[int, _Kept]:
        kind, sequence, index, size_bytes = _ANSWER.unpack_from(content)
        kept, rest = _Kept(index), content[_ANSWER.size :]
        kept.size_bytes = size_bytes
        if kind == _IS_RESULT:
            # Packed or not is nobody's business but this object's: both answer the same.
            kept.value, kept.is_packed = rest, True
        elif kind == _IS_ERROR:
            length = int.from_bytes(rest[:2])
            name, message = rest[2 : 2 + length], rest[2 + length :]
            kept.error = (name.decode(errors="replace"), message.decode(errors="replace"))
        else:
            raise SnapshotDamaged(_FOREIGN)
        return sequence, kept


def _unkept(index: LogIndex, why: str) -> _Kept:
    kept = _Kept(index)
    kept.error = (_NOT_KEPT, f"the command was done at entry {index}, and its answer {why}")
    return kept


def _sequence_of(item: tuple[int, _Kept]) -> int:
    return item[0]
