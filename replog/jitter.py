"""Timeouts that differ without being random: a pure function from what names an attempt to ticks.

Raft §5.2 draws election timeouts at random.  Here a hash stands for the die, so that clones agree
and replays are exact; whoever draws names the attempt among the parts, since an attempt that failed
must not repeat its timing.
"""

from __future__ import annotations

_MASK = (1 << 64) - 1


def draw_ticks(ticks_min: int, ticks_max: int, *parts: int) -> int:
    """A number from ``ticks_min`` to ``ticks_max``, both included, that ``parts`` decide."""
    mixed = 0
    for part in parts:
        mixed = _mix(mixed ^ (part & _MASK))
    return ticks_min + mixed % (ticks_max - ticks_min + 1)


def _mix(value: int) -> int:
    """SplitMix64's output function: every bit of the input changes about half of the output."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
