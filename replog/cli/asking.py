"""Asking each node for itself: one connection, one question, one answer.

A :class:`~replog.client.Client` looks for the leader; here the point is to hear from every node,
from a lonely one too.  A node that cannot be asked is an answer as well, with the reason in a
sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, cast

import trio

from replog.client_core import failure_of
from replog.client_link import Link, ask_once, open_link, reason_of
from replog.errors import ReplogError, SchemaError
from replog.frames import FrameCodec, Outcome, ServerHello
from replog.limits import Limits
from replog.transport.connection import closing
from replog.types import NodeId, Role, record

_LIMITS: Final = Limits()
_CODEC: Final = FrameCodec(_LIMITS)


@record
class NodeAnswer:
    """What one node said of itself, or why it did not."""

    address: str
    node_id: NodeId | None
    """``None``: it is not known who is there."""
    status: Mapping[str, object] | None
    """``None``: it did not answer."""
    problem: str | None
    """Why it did not answer; ``None`` if it did."""
    hello: ServerHello | None
    """How it introduced itself; ``None`` if it did not."""

    def number(self, key: str) -> int:
        """A number of the status; 0 if there is none."""
        value = (self.status or {}).get(key)
        return value if isinstance(value, int) else 0

    def text(self, key: str) -> str:
        """A text of the status; empty if there is none."""
        value = (self.status or {}).get(key)
        return value if isinstance(value, str) else ""

    def flag(self, key: str) -> bool:
        """A truth of the status; False if there is none."""
        return (self.status or {}).get(key) is True


@record
class ClusterAnswer:
    """What the nodes of a cluster said, together."""

    cluster_id: str | None
    """``None``: no node answered."""
    leader_id: NodeId | None
    """The leader that enough nodes follow; ``None``: there is none."""
    answers: Sequence[NodeAnswer]
    """One for each node, by id; strangers whose id is not known come last."""


async def ask_cluster(addresses: Sequence[str], seconds: float) -> ClusterAnswer:
    """Ask the nodes at ``addresses`` and every other one that they name, all at once."""
    answers: dict[str, NodeAnswer] = {}

    async def ask(address: str) -> None:
        answers[address] = await ask_status(address, seconds)

    asked: dict[str, None] = {}
    named = dict.fromkeys(addresses)
    while named:
        asked |= named
        async with trio.open_nursery() as nursery:
            for address in named:
                nursery.start_soon(ask, address)
        members = _members(answers.values())
        # A node that was asked under another name than the cluster gives it is not asked again.
        known = {answer.node_id for answer in answers.values()}
        named = {
            address: None
            for node_id, address in members.items()
            if address not in asked and node_id not in known
        }
    members = _members(answers.values())
    ids = {address: node_id for node_id, address in members.items()}
    by_node: dict[NodeId | str, NodeAnswer] = {}
    for address, answer in answers.items():
        node_id = answer.node_id if answer.node_id is not None else ids.get(address)
        # The same node under two addresses counts once, and an answer counts more than none.
        key = address if node_id is None else node_id
        if key not in by_node or by_node[key].status is None:
            by_node[key] = replace(answer, node_id=node_id)
    ordered = sorted(
        by_node.values(), key=lambda answer: (answer.node_id is None, answer.node_id or 0)
    )
    hellos = [answer.hello for answer in ordered if answer.hello is not None]
    return ClusterAnswer(
        cluster_id=hellos[0].cluster_id if hellos else None,
        leader_id=followed_leader(ordered, len(members) or len(ordered)),
        answers=ordered,
    )


def followed_leader(answers: Sequence[NodeAnswer], members_count: int) -> NodeId | None:
    """The leader that enough nodes follow to commit, itself among them; ``None``: there is none.

    How many are enough the leader says, for a cluster may have been founded with another quorum
    than a majority; where it does not, a majority of the members is.  Only what is said of the
    highest term counts: a deposed leader may not know it yet.
    """
    term = max((answer.number("term") for answer in answers), default=0)
    current = [answer for answer in answers if answer.number("term") == term]
    leading = [answer for answer in current if answer.text("role") == Role.LEADER.value]
    if len(leading) != 1:
        return None
    leader_id = leading[0].number("node")
    followers_count = sum(answer.number("leader") == leader_id for answer in current)
    needed_count = leading[0].number("commit_quorum") or members_count // 2 + 1
    return leader_id if followers_count >= needed_count else None


async def ask_status(address: str, seconds: float) -> NodeAnswer:
    """Ask one node for its status; whatever goes wrong is the answer's ``problem``."""
    hello: ServerHello | None = None
    problem = f"no answer within {seconds:g} s"
    with trio.move_on_after(seconds):
        try:
            link: Link[None] = await open_link(address, _CODEC, _LIMITS, "")
            hello = link.hello
            with closing(link.connection):
                status = await _ask(link)
        except (OSError, trio.TooSlowError) as failure:
            problem = reason_of(failure)
        except ReplogError as failure:
            problem = str(failure)
        else:
            return NodeAnswer(address, hello.node_id, status, None, hello)
    node_id = hello.node_id if hello is not None else None
    return NodeAnswer(address, node_id, None, problem, hello)


async def _ask(link: Link[None]) -> Mapping[str, object]:
    reply, value = await ask_once(link, "status", b"")
    if reply.outcome is not Outcome.DONE:
        raise failure_of(reply, link.hello.node_id, 0)
    if not isinstance(value, dict):
        raise SchemaError("the node's status is no map")
    return cast("Mapping[str, object]", value)


def _members(answers: Iterable[NodeAnswer]) -> Mapping[NodeId, str]:
    """Every member that a node named, with its address."""
    found: dict[NodeId, str] = {}
    for answer in answers:
        if answer.hello is not None:
            found.update(answer.hello.members)
    return found
