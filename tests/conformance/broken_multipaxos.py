"""The bugs that the conformance suite must see in the Multi-Paxos engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import paxos_bugs as planted
from shared_bugs import Bug

BUGS: Final[Mapping[Bug, str]] = {
    planted.promise_before_sync: "crashes.voter_dies_between_leaders",
    planted.prepare_before_sync: "crashes.candidate_dies_having_asked",
    planted.accepted_before_sync: "crashes.acceptor_dies_with_answer_out",
    planted.repeated_accepted_before_sync: "crashes.acceptor_dies_with_answer_out",
    planted.own_vote_counted_early: "faults.held_majority",
    planted.own_vote_preferred: "crashes.two_old_values",
    planted.told_vote_preferred: "crashes.two_old_values",
    planted.open_slots_emptied: "crashes.two_old_values",
    planted.last_told_vote_wins: "crashes.two_old_values",
    planted.learn_raises_no_promise: "crashes.lagging_node_learns_late",
    planted.accepts_below_promise: "crashes.old_proposal_comes_late",
    planted.old_acceptances_counted: "crashes.old_answer_comes_late",
    planted.votes_told_as_facts: "crashes.asked_node_has_an_old_value",
    planted.hint_covers_open_slots: "crashes.open_value_stays_open",
    planted.fact_binds_nobody: "snapshots.snapshot_brings_its_senders_term",
    planted.install_drops_votes: "snapshots.install_keeps_what_is_behind",
    planted.base_not_told: "snapshots.trim_tells_the_disk",
    planted.far_slots_taken: "refusals.out_of_range_survived",
}
"""Each with the scenario that finds it."""
