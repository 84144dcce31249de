"""Asking each node for itself: one connection, one question, one answer.  Or one request.

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
from replog.client_link import Link, ask_once, open_link, reason_of, watch_silence
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
    failure: ReplogError | None = None
    """What it refused, if it did."""

    def number(self, key: str) -> int:
        """A number of the status; 0 if there is none."""
        value = (self.status or {}).get(key)
        return value if isinstance(value, int) else 0

    def text(self, key: str) -> str:
        """A text of the status; empty if there is none."""
        value = (self.status or {}).get(key)
        return value if isinstance(value, str) else ""

    def nodes(self, key: str) -> Sequence[NodeId]:
        """A list of nodes in the status; empty if there is none."""
        value = (self.status or {}).get(key)
        if isinstance(value, list) and all(isinstance(each, int) for each in value):
            return value
        return ()

    @property
    def is_learner(self) -> bool:
        """Whether the node says that it has no vote."""
        return (self.status or {}).get("voter") is False

    @property
    def lost_voters(self) -> Sequence[NodeId]:
        """The voters in whose place learners are, as far as the node has applied."""
        return self.nodes_of("learners")

    def nodes_of(self, key: str) -> Sequence[NodeId]:
        """The nodes that the objects of a list in the status name; empty if there is none."""
        listed = (self.status or {}).get(key)
        found = [each.get("node") for each in listed] if isinstance(listed, list) else []
        return [each for each in found if isinstance(each, int)]

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
    highest term counts: a deposed leader may not know it yet.  A learner counts in no quorum.
    """
    term = max((answer.number("term") for answer in answers), default=0)
    current = [answer for answer in answers if answer.number("term") == term]
    leading = [answer for answer in current if answer.text("role") == Role.LEADER.value]
    if len(leading) != 1:
        return None
    leader_id = leading[0].number("node")
    followers_count = sum(
        answer.number("leader") == leader_id for answer in current if not answer.is_learner
    )
    needed_count = leading[0].number("commit_quorum") or members_count // 2 + 1
    return leader_id if followers_count >= needed_count else None


async def ask_status(address: str, seconds: float) -> NodeAnswer:
    """Ask one node for its status; whatever goes wrong is the answer's ``problem``."""
    return await _ask_map(address, "status", seconds, "")


async def ask_snapshot(
    address: str, seconds: float, cluster_id: str, node_id: NodeId
) -> NodeAnswer:
    """Have a node take a snapshot, which may take long; ``status`` of the answer is what it is,
    and whatever goes wrong is its ``problem``.  An empty ``cluster_id``: any cluster will do."""
    answer = await _ask_map(address, "snapshot", seconds, cluster_id)
    if answer.node_id not in (None, node_id):
        problem = f"node {answer.node_id} answers there; correct the address"
        return replace(answer, node_id=node_id, status=None, problem=problem)
    return replace(answer, node_id=node_id)


async def _ask_map(address: str, verb: str, seconds: float, cluster_id: str) -> NodeAnswer:
    """Send one request without a body, whose answer is a map."""
    hello: ServerHello | None = None
    refusal: ReplogError | None = None
    problem = f"no answer within {seconds:g} s"
    with trio.move_on_after(seconds):
        try:
            link: Link[None] = await open_link(address, _CODEC, _LIMITS, cluster_id)
            hello = link.hello
            with closing(link.connection):
                status = await _ask(link, verb)
        except (OSError, trio.TooSlowError) as failure:
            problem = reason_of(failure)
        except ReplogError as failure:
            problem, refusal = str(failure), failure
        else:
            return NodeAnswer(address, hello.node_id, status, None, hello)
    node_id = hello.node_id if hello is not None else None
    return NodeAnswer(address, node_id, None, problem, hello, refusal)


async def _ask(link: Link[None], verb: str) -> Mapping[str, object]:
    """The answer to one request; a node that is not heard of any more gives none."""
    failed: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_silence, link, _LIMITS.connection_idle_ms / 1000)
        try:
            reply, value = await ask_once(link, verb, b"")
        except (OSError, ReplogError) as failure:
            failed = failure
        nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed
    if reply.outcome is not Outcome.DONE:
        raise failure_of(reply, link.hello.node_id, 0)
    if not isinstance(value, dict):
        raise SchemaError(f"the node's answer to {verb!r} is no map")
    return cast("Mapping[str, object]", value)


def _members(answers: Iterable[NodeAnswer]) -> Mapping[NodeId, str]:
    """Every member that a node named, with its address."""
    found: dict[NodeId, str] = {}
    for answer in answers:
        if answer.hello is not None:
            found.update(answer.hello.members)
    return found
