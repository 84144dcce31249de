"""Where a client looks for the leader next; it decides the order and does not wait or connect.

Any node names the leader, as far as it knows, when it welcomes a client and when it does not take a
command.  Such a hint is tried first, but may be stale, and two nodes may name each other: so within
one round every address is tried once at most, and whoever searches pauses between the rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from replog.address import Address
from replog.errors import AddressError
from replog.frames import ServerHello
from replog.types import NO_NODE, NodeId


def parse_addresses(nodes: str | Iterable[str]) -> list[str]:
    """The addresses in one spelling; raises :class:`~replog.errors.AddressError`.

    ``nodes`` is a list, or a text with commas.
    """
    texts = nodes.split(",") if isinstance(nodes, str) else nodes
    addresses = [str(Address.parse(text.strip())) for text in texts if text.strip()]
    if not addresses:
        raise AddressError("a client needs the address of a node at least; write it as host:port")
    return addresses


class LeaderSearch:
    """Which address to try next.

    A round tries the address of the latest hint and then every other known one, each once; the
    caller pauses between rounds.  Known are the addresses that the client was given, for ever, and
    the members that the last welcoming node named.
    """

    __slots__ = ("_given", "_hint", "_members", "_reasons", "_tried", "cluster_id", "leader_id")

    def __init__(
        self, addresses: Sequence[str], members: Mapping[NodeId, str], cluster_id: str
    ) -> None:
        """``members`` are those of a configuration, if there is one."""
        self.leader_id: NodeId = NO_NODE
        """The leader as far as is known."""
        self.cluster_id = cluster_id
        """Empty until the first node has said which cluster it is; no other will do then."""
        self._given = tuple(addresses)
        self._members = dict(members)
        self._hint = ""
        self._tried: dict[str, bool] = {}
        """The addresses of this round, and whether trying again would be of no use."""
        self._reasons: dict[str, str] = {}

    @property
    def members(self) -> Mapping[NodeId, str]:
        """The addresses of the nodes, as far as is known."""
        return self._members

    def addresses(self) -> Iterable[str]:
        """Every known address, the most promising first."""
        likely = [self._hint] if self._hint else []
        return dict.fromkeys((*likely, *self._given, *self._members.values()))

    def next_address(self) -> str | None:
        """What to try now; ``None``: this round is over."""
        return next((address for address in self.addresses() if address not in self._tried), None)

    def begin_round(self) -> None:
        """Every address may be tried again."""
        self._tried.clear()

    @property
    def is_hopeless(self) -> bool:
        """Whether every address of this round answered that it will not do."""
        return bool(self._tried) and all(self._tried.values())

    def note_failed(self, address: str, reason: str, *, is_refusal: bool = False) -> None:
        """The leader was not found there; ``is_refusal``: and waiting will not change that."""
        self._tried[address] = is_refusal
        self._reasons[address] = reason
        if address == self._hint:
            self._hint = ""

    def note_members(self, hello: ServerHello) -> None:
        """A node has named the cluster and its members."""
        self.cluster_id = hello.cluster_id
        self._members = dict(hello.members)

    def note_hello(self, address: str, hello: ServerHello) -> bool:
        """A node has welcomed the client; True: it leads, so the search is over."""
        self.note_members(hello)
        if hello.leader_id == hello.node_id:
            self.leader_id = hello.node_id
            self._hint = address
            self._reasons.clear()
            return True
        knows = f"node {hello.leader_id} does" if hello.leader_id else "it knows no leader"
        self.note_failed(address, f"node {hello.node_id} does not lead, {knows}")
        self.note_hint(hello.leader_id, self._members.get(hello.leader_id, ""))
        return False

    def note_hint(self, leader_id: NodeId, address: str) -> None:
        """A node has named the leader; ``NO_NODE``: it knows of none."""
        self.leader_id = leader_id
        if leader_id != NO_NODE:
            self._hint = address or self._members.get(leader_id, "")

    def reasons(self) -> str:
        """Why the leader was not found, by address."""
        found = "; ".join(f"{address}: {reason}" for address, reason in self._reasons.items())
        return found or "no attempt to connect has ended yet"
