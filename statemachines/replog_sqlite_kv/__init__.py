"""The state machine ``sqlite-kv``: a replicated key-value store on its own disk."""

from __future__ import annotations

from replog_sqlite_kv.machine import Item, ItemRange, KvError, SqliteKv

__all__ = ["Item", "ItemRange", "KvError", "SqliteKv"]
