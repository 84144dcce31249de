"""The Raft engine of replog (Ongaro & Ousterhout, extended version, 2014; thesis: Ongaro 2014).

``PLUGIN`` is what the entry point ``replog.engines: raft`` names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from replog.agreements import agreement_problems, check_known
from replog.engine import Engine, EngineSetup, MessageSpec
from replog.errors import REJOIN_REMEDY, ConfigError, LogDamaged
from replog.leases import LEASE_NAME, agreed_lease
from replog_raft.messages import MESSAGE_SPECS
from replog_raft.options import RaftOptions
from replog_raft.raft import Raft

__all__ = ["PLUGIN", "Raft", "RaftOptions"]


class RaftPlugin:
    """Raft behind the engine contract of :mod:`replog.engine`."""

    name: Final = "raft"
    title: Final = "Raft with pre-vote, check-quorum and pipelining (Ongaro & Ousterhout 2014)"
    options: Final[type] = RaftOptions
    messages: Final[Sequence[MessageSpec]] = MESSAGE_SPECS

    def agreed(self, options: object, voter_count: int) -> Mapping[str, int]:
        """For how long faith is kept with a leader; a quorum is a majority of the voters."""
        assert isinstance(options, RaftOptions)
        return agreed_lease(options.lease_ms)

    def create(self, setup: EngineSetup) -> Engine:
        """Make the engine of one node.

        Raises :class:`~replog.errors.LogDamaged` for a recovered log that no Raft wrote,
        :class:`~replog.errors.ConfigError` for a preferred node that is no voter and for leases
        that do not fit, and :class:`~replog.errors.UnknownFormat` for something agreed that this
        release does not know.
        """
        assert isinstance(setup.options, RaftOptions)
        check_known(setup.epoch, (LEASE_NAME,))
        check_options(setup, setup.options)
        check_recovered(setup)
        return Raft(setup)


def check_options(setup: EngineSetup, options: RaftOptions) -> None:
    """Raise for a preferred node that is no voter, and for other leases than were agreed on."""
    problems = []
    if options.preferred_node not in (0, *setup.epoch.voter_ids):
        problems.append(
            f"preferred_node: there is no node {options.preferred_node}; name a voter, or 0 for "
            "none"
        )
    problems += agreement_problems(setup.epoch, options, (LEASE_NAME,))
    terms = options.lease_terms(setup.epoch)
    problems += terms.problems(options.heartbeat_ticks, options.election_ticks_min, setup.limits)
    if problems:
        raise ConfigError("engine options", problems)


def check_recovered(setup: EngineSetup) -> None:
    """Raise unless the recovered log is without gaps and its terms never fall (Raft §5.3)."""
    base, runs = setup.log.base, list(setup.log.runs)
    end = max(setup.epoch.start_index - 1, base.index)
    for run in runs:
        if run.first != end + 1:
            raise LogDamaged(
                f"the log of node {setup.node_id} has a gap: entry {run.first} follows entry "
                f"{end}, and a node that lost entries must not vote: {REJOIN_REMEDY}"
            )
        end = run.last
    terms = [base.term, *(run.term for run in runs)]
    if terms != sorted(terms) or terms[-1] > setup.hard_state.term:
        raise LogDamaged(
            f"the terms in the log of node {setup.node_id} fall, or exceed its current term "
            f"{setup.hard_state.term}; its vote may be lost as well: {REJOIN_REMEDY}"
        )


PLUGIN: Final = RaftPlugin()
