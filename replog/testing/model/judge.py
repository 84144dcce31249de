"""What must hold between the nodes in every state of the model, and what a space must contain.

The judge knows the nodes by their :class:`~replog.testing.model.local.Facts` alone: in which terms
they led, what they handed out to be applied, what is on their disks.  Facts outlive crashes, so a
rule that is to hold for ever along a path is a rule about one state, and one verdict serves every
state with the same facts.

* **I1** No two nodes led in one term.
* **I2** One value per index: what one node handed out, no other hands out otherwise.
* **I5** What any node ever handed out is on the disks of a quorum: then, and ever after.

A space proves only as much as happens in it.  So the states with a certain picture are counted,
too: see :data:`GOALS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Final

from replog.quorum import QuorumSystem
from replog.testing.model.local import Facts
from replog.types import EntryKind, NodeId, Term, record

GOALS: Final[tuple[str, ...]] = (
    "leader elected",
    "leader changed",
    "entry committed",
    "command committed",
    "command committed, leader changed",
)
"""What is counted by states; the first bit of a :attr:`Verdict.goals` is the first of them."""


@record
class Verdict:
    """What the judge says of some nodes together."""

    problem: str
    """The rule that does not hold, as a sentence; empty: all do."""
    goals: int
    """The bits of the :data:`GOALS` that are seen."""


class Judge:
    """Judges each combination of facts once."""

    def __init__(self, quorum: QuorumSystem) -> None:
        self._quorum = quorum
        self._verdicts: dict[tuple[int, ...], tuple[Verdict, tuple[Facts, ...]]] = {}

    def verdict(self, facts: tuple[Facts, ...]) -> Verdict:
        """What is to be said of the nodes with these facts, in the order of their ids."""
        # Whoever asks keeps one object for equal facts, so its identity is a cheap name for it.
        key = tuple(map(id, facts))
        found = self._verdicts.get(key)
        if found is None:
            problem = leaders_problem(facts) or values_problem(facts) or self._lost(facts)
            found = self._verdicts[key] = (Verdict(problem, goals_of(facts)), facts)
        return found[0]

    @property
    def seen(self) -> list[tuple[Facts, ...]]:
        """Every combination that was judged, in that order."""
        return [facts for _, facts in self._verdicts.values()]

    def _lost(self, facts: Sequence[Facts]) -> str:
        """I5: the body of each index that was handed out is on a quorum of the disks."""
        for index, body in enumerate(chosen_log(facts), 1):
            holders: list[NodeId] = [
                node_id for node_id, each in enumerate(facts, 1) if (index, body) in each.durable
            ]
            if not self._quorum.is_quorum(holders):
                held = ", ".join(map(str, holders)) or "none"
                return (
                    f"I5: entry {index} was handed out to be applied, and is on the disks of no "
                    f"quorum (on those of: {held})"
                )
        return ""


def leaders_problem(facts: Sequence[Facts]) -> str:
    """I1: one leader per term."""
    leaders: dict[Term, NodeId] = {}
    for node_id, each in enumerate(facts, 1):
        for term in each.led:
            if leaders.setdefault(term, node_id) != node_id:
                return f"I1: node {node_id} leads in term {term}, in which node {leaders[term]} led"
    return ""


def values_problem(facts: Sequence[Facts]) -> str:
    """I2: one value per index."""
    for (one, first), (other, second) in combinations(enumerate(facts, 1), 2):
        for index, (mine, theirs) in enumerate(
            zip(first.reported, second.reported, strict=False), 1
        ):
            if mine != theirs:
                return (
                    f"I2: nodes {one} and {other} were handed out different values at index {index}"
                )
    return ""


def chosen_log(facts: Sequence[Facts]) -> tuple[bytes, ...]:
    """The bodies that anybody was handed out, from the first index on."""
    return max((each.reported for each in facts), key=len)


def goals_of(facts: Sequence[Facts]) -> int:
    """The bits of the goals that show in these facts."""
    chosen = chosen_log(facts)
    term_count = sum(len(each.led) for each in facts)
    has_command = any(body[0] == EntryKind.COMMAND for body in chosen)
    seen = (
        term_count >= 1,
        term_count >= 2,
        bool(chosen),
        has_command,
        has_command and term_count >= 2,
    )
    return sum(1 << at for at, is_seen in enumerate(seen) if is_seen)
