"""How far the model checker goes: the bounds of a space."""

from __future__ import annotations

from typing import Final

from replog.types import record

COPY_BITS: Final = 4
IN_FLIGHT_MAX: Final = (1 << COPY_BITS) - 1
"""More copies of one message than this cannot be told apart."""

NODES_MAX: Final = 9


@record
class Bounds:
    """How far the model goes; the space is finite because of them."""

    nodes: int = 3
    commands: int = 1
    """How many commands clients give to leaders."""
    terms: int = 2
    """How many times a node is told to campaign."""
    in_flight: int = 2
    """How many messages may be on their way that are still going to arrive."""
    crashes: int = 1
    """How many times a node crashes and starts again."""
    duplicates: int = 0
    """How many times a message that arrives stays on its way, to arrive once more."""
    pending: int = 1
    """How many writes may be on their way to one disk: what would make them more waits until one is
    durable or lost.  What writes nothing need not wait."""
    candidates: int = 0
    """How many nodes campaign at all: those with the lowest ids; 0: as many as there are ``terms``.
    Where an engine does no more with ids than compare those of candidates, so many lose nothing:
    others would be the same by other names."""

    @property
    def candidate_count(self) -> int:
        """How many nodes campaign at all."""
        return min(self.candidates or self.terms, self.nodes)

    def named(self) -> dict[str, int]:
        """Every bound by its name, as it holds."""
        found: dict[str, int] = {name: getattr(self, name) for name in BOUND_NAMES}
        return found | {"candidates": self.candidate_count}

    def problems(self) -> list[str]:
        """Every bound that makes no sense, as ``option: sentence``."""
        least = {"nodes": 1, "terms": 1, "in_flight": 1, "pending": 1}
        most = {"nodes": NODES_MAX, "in_flight": IN_FLIGHT_MAX}
        found: list[str] = []
        for name in BOUND_NAMES:
            value, option = getattr(self, name), name.replace("_", "-")
            if value < least.get(name, 0):
                found.append(f"{option}: must be at least {least.get(name, 0)}, not {value}")
            if value > most.get(name, value):
                found.append(f"{option}: must be at most {most[name]}, not {value}")
        return found


BOUND_NAMES: Final[tuple[str, ...]] = tuple(Bounds.__annotations__)
