"""What a node does with a message of its own ballot, by its role.

Total: every role knows what to do with every message; see ``MultiPaxos.step``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

from replog.types import Role
from replog_multipaxos import acceptor, election, learner, reading
from replog_multipaxos import leader as leading
from replog_multipaxos.messages import (
    Accept,
    Accepted,
    Commit,
    CommitReply,
    Learn,
    LearnRequest,
    Message,
    Nack,
    Prepare,
    Promise,
    ReadReply,
    ReadRequest,
    TakeOver,
    Trimmed,
)

if TYPE_CHECKING:
    from replog_multipaxos.multipaxos import MultiPaxos

Handler: TypeAlias = Callable[..., None]


def ignore(engine: MultiPaxos, message: Message) -> None:
    """A stale answer, or an order that does not apply to the role."""


def refuse_second_owner(engine: MultiPaxos, message: Accept | Commit) -> None:
    """Somebody else acts at our ballot."""
    engine.check_owner(message)


_IN_EVERY_ROLE: Final[dict[type, Handler]] = {
    Prepare: acceptor.handle_prepare,
    Nack: election.handle_nack,
    LearnRequest: learner.handle_learn_request,
    Learn: learner.handle_learn,
    Trimmed: learner.handle_trimmed,
}

TABLE: Final[dict[Role, dict[type, Handler]]] = {
    Role.FOLLOWER: {
        **_IN_EVERY_ROLE,
        Promise: ignore,
        Accept: acceptor.handle_accept,
        Accepted: ignore,
        Commit: acceptor.handle_commit,
        CommitReply: ignore,
        ReadRequest: ignore,
        ReadReply: reading.handle_read_reply,
        TakeOver: election.handle_take_over,
    },
    Role.PRE_CANDIDATE: {
        **_IN_EVERY_ROLE,
        Promise: election.handle_pre_promise,
        Accept: acceptor.handle_accept,
        Accepted: ignore,
        Commit: acceptor.handle_commit,
        CommitReply: ignore,
        ReadRequest: ignore,
        ReadReply: reading.handle_read_reply,
        TakeOver: election.handle_take_over,
    },
    Role.CANDIDATE: {
        **_IN_EVERY_ROLE,
        Promise: election.handle_promise,
        Accept: refuse_second_owner,
        Accepted: ignore,
        Commit: refuse_second_owner,
        CommitReply: ignore,
        ReadRequest: ignore,
        ReadReply: reading.handle_read_reply,
        TakeOver: ignore,
    },
    Role.LEADER: {
        **_IN_EVERY_ROLE,
        Promise: leading.handle_late_promise,
        Accept: refuse_second_owner,
        Accepted: leading.handle_accepted,
        Commit: refuse_second_owner,
        CommitReply: leading.handle_commit_reply,
        ReadRequest: reading.handle_read_request,
        ReadReply: ignore,
        TakeOver: ignore,
    },
}
"""What a node does with a message of its own ballot, by role.  Total; see ``MultiPaxos.step``."""
