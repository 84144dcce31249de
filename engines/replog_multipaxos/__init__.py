"""The Multi-Paxos engine of replog (Lamport, Paxos Made Simple, 2001, cited as PMS; van Renesse &
Altinbuken, Paxos Made Moderately Complex, 2015, cited as PMMC; Howard, Malkhi & Spiegelman,
Flexible Paxos, 2016, cited as FPaxos).

``PLUGIN`` is what the entry point ``replog.engines: multipaxos`` names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from replog.engine import Engine, EngineSetup, MessageSpec
from replog.errors import ConfigError, LogDamaged
from replog_multipaxos.messages import MESSAGE_SPECS
from replog_multipaxos.multipaxos import MultiPaxos
from replog_multipaxos.options import MultiPaxosOptions

__all__ = ["PLUGIN", "MultiPaxos", "MultiPaxosOptions"]


class MultiPaxosPlugin:
    """Multi-Paxos behind the engine contract of :mod:`replog.engine`."""

    name: Final = "multipaxos"
    title: Final = "Multi-Paxos with paged promises, holes and flexible quorums (Lamport 2001)"
    options: Final[type] = MultiPaxosOptions
    messages: Final[Sequence[MessageSpec]] = MESSAGE_SPECS

    def agreed(self, options: object, voter_count: int) -> Mapping[str, int]:
        """The sizes of the two quorums; see :meth:`replog.engine.EnginePlugin.agreed`."""
        assert isinstance(options, MultiPaxosOptions)
        phase1, phase2 = options.quorum_sizes(voter_count)
        problems = [
            f"{name}: {size} is not 1 to {voter_count}, the number of nodes"
            for name, size in (("phase1_quorum", phase1), ("phase2_quorum", phase2))
            if not 1 <= size <= voter_count
        ]
        if not problems and phase1 + phase2 <= voter_count:
            problems.append(
                f"phase1_quorum: {phase1} and phase2_quorum = {phase2} do not add up to more than "
                f"the {voter_count} nodes, so two of them need not meet"
            )
        if problems:
            raise ConfigError("engine options", problems)
        return {"phase1_quorum": phase1, "phase2_quorum": phase2}

    def create(self, setup: EngineSetup) -> Engine:
        """Make the engine of one node; see :meth:`replog.engine.EnginePlugin.create`."""
        assert isinstance(setup.options, MultiPaxosOptions)
        check_options(setup, setup.options)
        check_recovered(setup)
        return MultiPaxos(setup)


def check_options(setup: EngineSetup, options: MultiPaxosOptions) -> None:
    """Raise for a preferred node that is no voter, and for other quorums than were agreed on."""
    problems = []
    if options.preferred_node not in (0, *setup.epoch.voter_ids):
        problems.append(
            f"preferred_node: there is no node {options.preferred_node}; name a voter, or 0 for "
            "none"
        )
    for name, size in setup.epoch.agreed:
        asked = getattr(options, name)
        if asked not in (0, size):
            problems.append(
                f"{name}: the cluster was founded with {size}, not {asked}; correct it, or leave "
                "it out"
            )
    if problems:
        raise ConfigError("engine options", problems)


def check_recovered(setup: EngineSetup) -> None:
    """Raise unless the recovered votes are what an acceptor can have left: slots ascend, no vote is
    above the promise, and there is no hole among those known as chosen."""
    entries, hard_state = setup.entries, setup.hard_state
    start = setup.epoch.start_index
    indexes = [entry.index for entry in entries]
    chosen_count = hard_state.commit_hint - start + 1
    if indexes != sorted(set(indexes)) or (indexes and indexes[0] < start):
        raise LogDamaged(
            f"the log of node {setup.node_id} holds a slot twice, or one below {start}; keep this "
            "node stopped"
        )
    if hard_state.commit_hint and indexes[:chosen_count] != list(
        range(start, start + chosen_count)
    ):
        raise LogDamaged(
            f"the log of node {setup.node_id} lacks a slot up to {hard_state.commit_hint}, though "
            "it knew all of them as chosen; keep this node stopped, for a node that lost votes "
            "must not vote"
        )
    if any(entry.term > hard_state.term for entry in entries):
        raise LogDamaged(
            f"the log of node {setup.node_id} holds a vote above its promise {hard_state.term}; "
            "keep this node stopped, for its promise may be lost as well"
        )


PLUGIN: Final = MultiPaxosPlugin()
