"""What a node does with a message, by its role: the name of a method of the engine.

Total: every role knows what to do with every message; see ``Raft.step``.
"""

from __future__ import annotations

from typing import Final

from replog.types import Role
from replog_raft.messages import (
    AppendEntries,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    ReadReply,
    ReadRequest,
    RequestVote,
    TimeoutNow,
    Vote,
)

TABLE: Final[dict[Role, dict[type, str]]] = {
    Role.FOLLOWER: {
        RequestVote: "handle_request_vote",
        Vote: "ignore",
        AppendEntries: "handle_append_entries",
        AppendReply: "ignore",
        Heartbeat: "handle_heartbeat",
        HeartbeatReply: "ignore",
        TimeoutNow: "handle_timeout_now",
        InstallSnapshot: "handle_install_snapshot",
        ReadRequest: "ignore",
        ReadReply: "handle_read_reply",
    },
    Role.PRE_CANDIDATE: {
        RequestVote: "handle_request_vote",
        Vote: "handle_pre_vote_reply",
        AppendEntries: "handle_append_entries",
        AppendReply: "ignore",
        Heartbeat: "handle_heartbeat",
        HeartbeatReply: "ignore",
        TimeoutNow: "handle_timeout_now",
        InstallSnapshot: "handle_install_snapshot",
        ReadRequest: "ignore",
        ReadReply: "handle_read_reply",
    },
    Role.CANDIDATE: {
        RequestVote: "handle_request_vote",
        Vote: "handle_vote_reply",
        AppendEntries: "handle_append_entries",
        AppendReply: "ignore",
        Heartbeat: "handle_heartbeat",
        HeartbeatReply: "ignore",
        TimeoutNow: "ignore",
        InstallSnapshot: "handle_install_snapshot",
        ReadRequest: "ignore",
        ReadReply: "handle_read_reply",
    },
    Role.LEADER: {
        RequestVote: "handle_request_vote",
        Vote: "ignore",
        AppendEntries: "refuse_second_leader",
        AppendReply: "handle_append_reply",
        Heartbeat: "refuse_second_leader",
        HeartbeatReply: "handle_heartbeat_reply",
        TimeoutNow: "ignore",
        InstallSnapshot: "refuse_second_leader",
        ReadRequest: "handle_read_request",
        ReadReply: "ignore",
    },
}
"""Of messages of the node's own term: what has passed the rule of terms."""
