"""The bugs that the conformance suite must see in the Raft engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import raft_bugs as planted
from shared_bugs import Bug

BUGS: Final[Mapping[Bug, str]] = {
    planted.vote_before_sync: "crashes.voter_dies_with_answer_out",
    planted.request_before_sync: "crashes.candidate_dies_having_asked",
    planted.acknowledged_before_sync: "crashes.acceptor_dies_with_answer_out",
    planted.repeated_acknowledgement_before_sync: "crashes.acceptor_dies_with_answer_out",
    planted.own_copy_counted_early: "faults.held_majority",
    planted.old_terms_counted: "crashes.old_entry_reaches_majority",
    planted.vote_regardless_of_log: "crashes.two_old_values",
    planted.longer_log_preferred: "crashes.two_old_values",
    planted.repeated_vote_counted: "faults.repeated_answers",
    planted.second_vote: "crashes.voter_dies_with_answer_out",
    planted.vote_forgotten_by_restart: "crashes.voter_dies_with_answer_out",
    planted.always_truncated: "faults.reordering",
    planted.deposed_leader_obeyed: "crashes.old_proposal_comes_late",
    planted.fact_binds_nobody: "snapshots.fact_deposes",
    planted.install_drops_what_follows: "snapshots.install_keeps_what_is_behind",
    planted.trimmed_beyond_the_disk: "snapshots.trim_keeps_what_is_not_durable",
    planted.term_beyond_the_last: "refusals.out_of_range_survived",
}
"""Each with the scenario that finds it."""
