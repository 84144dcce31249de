"""Where this folder is in ``PYTHONPATH``, sessions forget what they answered: a node applies every
copy of a command.  It shows that a run would notice."""

from __future__ import annotations

from replog.sessions import Answer, Sessions

_begin = Sessions.begin


def begin_forgetfully(
    self: Sessions, session_id: int, sequence: int, lowest: int, time_ms: int
) -> Answer | None:
    """As ``begin`` of a session that never answered anything."""
    session = self._sessions.get(session_id)
    if session is not None:
        session.answers.clear()
        session.bytes = 0
    return _begin(self, session_id, sequence, 0, time_ms)


Sessions.begin = begin_forgetfully  # type: ignore[method-assign]
