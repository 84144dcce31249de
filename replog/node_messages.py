"""Every message between nodes that belongs to no engine."""

from __future__ import annotations

from typing import Final

from replog.comparison_messages import COMPARISON_SPECS
from replog.transfer_messages import TRANSFER_SPECS

NODE_SPECS: Final = (*TRANSFER_SPECS, *COMPARISON_SPECS)
"""Beside the engine's own, these go over the wire."""

NODE_TYPES: Final[frozenset[type]] = frozenset(spec.record for spec in NODE_SPECS)
"""What tells an engine nothing, its term included."""
