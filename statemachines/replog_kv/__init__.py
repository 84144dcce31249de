"""A replicated key-value store: the first state machine to read, and the one to measure with."""

from replog_kv.machine import Item, ItemRange, Kv, KvError

__all__ = ["Item", "ItemRange", "Kv", "KvError"]
