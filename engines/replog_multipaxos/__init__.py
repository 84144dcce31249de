"""The Multi-Paxos engine of replog (Lamport, Paxos Made Simple, 2001, cited as PMS; van Renesse &
Altinbuken, Paxos Made Moderately Complex, 2015, cited as PMMC; Howard, Malkhi & Spiegelman,
Flexible Paxos, 2016, cited as FPaxos).

``PLUGIN`` is what the entry point ``replog.engines: multipaxos`` names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from replog.agreements import agreement_problems, check_known
from replog.engine import Engine, EngineSetup, MessageSpec
from replog.errors import REJOIN_REMEDY, ConfigError, DirectoryError, LogDamaged
from replog.leases import LEASE_NAME, agreed_lease
from replog_multipaxos.messages import MESSAGE_SPECS
from replog_multipaxos.multipaxos import MultiPaxos
from replog_multipaxos.options import MultiPaxosOptions

__all__ = ["PLUGIN", "MultiPaxos", "MultiPaxosOptions"]


QUORUM_NAMES: Final = ("phase1_quorum", "phase2_quorum")
"""The options that say how large the two quorums are."""

AGREED_NAMES: Final = (*QUORUM_NAMES, LEASE_NAME)
"""What all nodes of a cluster must hold to alike."""


class MultiPaxosPlugin:
    """Multi-Paxos behind the engine contract of :mod:`replog.engine`."""

    name: Final = "multipaxos"
    title: Final = "Multi-Paxos with paged promises, holes and flexible quorums (Lamport 2001)"
    options: Final[type] = MultiPaxosOptions
    messages: Final[Sequence[MessageSpec]] = MESSAGE_SPECS

    def agreed(self, options: object, voter_count: int) -> Mapping[str, int]:
        """The sizes of the two quorums, and for how long faith is kept with a leader; see
        :meth:`replog.engine.EnginePlugin.agreed`."""
        assert isinstance(options, MultiPaxosOptions)
        given = {name: getattr(options, name) for name in QUORUM_NAMES if getattr(options, name)}
        problems = [
            f"{name}: {size} is not 1 to {voter_count}, the number of nodes"
            for name, size in given.items()
            if not 1 <= size <= voter_count
        ]
        phase1, phase2 = options.quorum_sizes(voter_count)
        if not problems and phase1 + phase2 <= voter_count:
            problems.append(
                f"phase1_quorum: {phase1} and phase2_quorum = {phase2} do not add up to more than "
                f"the {voter_count} nodes, so two of them need not meet"
            )
        if problems:
            raise ConfigError("engine options", problems)
        sizes = dict(zip(QUORUM_NAMES, (phase1, phase2), strict=True))
        return {**sizes, **agreed_lease(options.lease_ms)}

    def create(self, setup: EngineSetup) -> Engine:
        """Make the engine of one node; see :meth:`replog.engine.EnginePlugin.create`."""
        assert isinstance(setup.options, MultiPaxosOptions)
        check_agreed(setup)
        check_options(setup, setup.options)
        check_recovered(setup)
        return MultiPaxos(setup)


def check_agreed(setup: EngineSetup) -> None:
    """Raise unless what was recorded at the founding is what :meth:`MultiPaxosPlugin.agreed` may
    have said: a name of a later release may stand for a rule that this one would break."""
    check_known(setup.epoch, AGREED_NAMES)
    voter_count = len(setup.epoch.voter_ids)
    sizes = dict.fromkeys(QUORUM_NAMES, voter_count // 2 + 1) | dict(setup.epoch.agreed)
    phase1, phase2 = (sizes[name] for name in QUORUM_NAMES)
    if not 1 <= min(phase1, phase2) <= max(phase1, phase2) <= voter_count < phase1 + phase2:
        raise DirectoryError(
            f"the cluster of {voter_count} nodes was founded with quorums of {phase1} and {phase2} "
            "nodes, which need not meet or cannot be reached; the record in this node's directory "
            "was altered: restore it from another node's"
        )


def check_options(setup: EngineSetup, options: MultiPaxosOptions) -> None:
    """Raise for a preferred node that is no voter, and for other quorums or leases than were agreed
    on."""
    problems = []
    if options.preferred_node not in (0, *setup.epoch.voter_ids):
        problems.append(
            f"preferred_node: there is no node {options.preferred_node}; name a voter, or 0 for "
            "none"
        )
    problems += agreement_problems(setup.epoch, options, AGREED_NAMES)
    terms = options.lease_terms(setup.epoch)
    problems += terms.problems(options.heartbeat_ticks, options.election_ticks_min, setup.limits)
    if problems:
        raise ConfigError("engine options", problems)


def check_recovered(setup: EngineSetup) -> None:
    """Raise unless the recovered votes are what an acceptor can have left: no vote is
    above the promise, and there is no hole among the slots known as chosen."""
    log, hard_state = setup.log, setup.hard_state
    reach = max(setup.epoch.start_index - 1, log.base.index)
    runs = list(log.runs)
    if runs and runs[0].first <= reach:
        raise LogDamaged(
            f"the log of node {setup.node_id} holds a slot below {reach + 1}, where it begins; "
            f"{REJOIN_REMEDY}"
        )
    for run in runs:
        if run.first == reach + 1:
            reach = run.last
    if hard_state.commit_hint > reach:
        raise LogDamaged(
            f"the log of node {setup.node_id} lacks a slot up to {hard_state.commit_hint}, though "
            "it knew all of them as chosen, and a node that lost votes must not vote: "
            f"{REJOIN_REMEDY}"
        )
    if any(run.term > hard_state.term for run in runs):
        raise LogDamaged(
            f"the log of node {setup.node_id} holds a vote above its promise {hard_state.term}; "
            f"its promise may be lost as well: {REJOIN_REMEDY}"
        )


PLUGIN: Final = MultiPaxosPlugin()
