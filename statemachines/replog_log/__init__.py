"""The state machine ``log``: none, for whoever wants the log itself."""

from __future__ import annotations

from replog_log.machine import LogOnly

__all__ = ["LogOnly"]
