"""What must hold between the values of a configuration, whatever they were read from.

The rules work on :class:`NodeDraft` records, of which any field may be missing because its value
could not be read; so the mistakes between values are found in the same pass as those within them.

Two nodes count as *on one machine* if they advertise the same host to their peers.  Only there can
they collide in what belongs to a machine: a directory, or an address that is listened on.  Nodes on
different machines may all listen on ``0.0.0.0:7001`` and live in ``/var/lib/replog``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Final

from replog.address import Address
from replog.types import NODE_ID_MAX, NodeId

CLUSTER_ID_CHARACTERS_MAX: Final = 64
NODES_MAX: Final = 64
"""More voters than this only slow a cluster down; the bound keeps the pairwise rules cheap."""


@dataclass(slots=True)
class NodeDraft:
    """What could be read of one node; ``None`` where the value is missing or wrong."""

    key: str
    """The path of the node's table, such as ``node[2]``."""
    id: NodeId | None = None
    peer: Address | None = None
    client: Address | None = None
    directory: Path | None = None
    peer_listen: Address | None = None
    client_listen: Address | None = None


@dataclass(slots=True)
class _Use:
    """One address in the configuration, and what it is for."""

    key: str
    address: Address
    machine: str | None
    """``None`` if it is not known: then it is nobody's machine."""
    advertised: bool
    listened: bool


def cluster_id_problem(cluster_id: str) -> str:
    """Why this is no cluster id, or an empty string."""
    if not 1 <= len(cluster_id) <= CLUSTER_ID_CHARACTERS_MAX:
        return (
            f"must have 1 to {CLUSTER_ID_CHARACTERS_MAX} characters, "
            f"but this one has {len(cluster_id)}"
        )
    if not (cluster_id.isascii() and cluster_id.isprintable() and " " not in cluster_id):
        return "must be printable ASCII without spaces, so that it reads the same everywhere"
    if "/" in cluster_id or cluster_id in (".", ".."):
        return "must be fit to name a file: without '/', and neither '.' nor '..'"
    return ""


def node_id_problem(node_id: NodeId) -> str:
    """Why this is no node id, or an empty string."""
    return "" if 1 <= node_id <= NODE_ID_MAX else f"must be 1 to {NODE_ID_MAX}, not {node_id}"


def nodes_problems(nodes: Sequence[NodeDraft]) -> list[str]:
    """Every rule about the nodes as a whole that does not hold, each with its key's path."""
    if not nodes:
        return ["node: there is no node; write one [[node]] table for each"]
    if len(nodes) > NODES_MAX:
        return [f"node: {len(nodes)} nodes are more than the {NODES_MAX} that one cluster may have"]
    uses = [use for node in nodes for use in _uses(node)]
    return [
        *_ids_problems(nodes),
        *_addresses_problems(uses),
        *_directories_problems(nodes),
    ]


def _ids_problems(nodes: Iterable[NodeDraft]) -> Iterable[str]:
    first: dict[NodeId, NodeDraft] = {}
    for node in nodes:
        if node.id is None:
            continue
        earlier = first.setdefault(node.id, node)
        if earlier is not node:
            yield f"{node.key}.id: {node.id} is taken by {earlier.key}; ids must differ"


def _directories_problems(nodes: Iterable[NodeDraft]) -> Iterable[str]:
    first: dict[tuple[str, Path], NodeDraft] = {}
    for node in nodes:
        machine = _machine(node)
        if node.directory is None or machine is None:
            continue
        earlier = first.setdefault((machine, node.directory), node)
        if earlier is not node:
            yield (
                f"{node.key}.directory: {node.directory} is taken by {earlier.key} on the same "
                "host; every node needs a directory of its own"
            )


def _addresses_problems(uses: Sequence[_Use]) -> Iterable[str]:
    for use in uses:
        address = use.address
        if use.advertised and address.is_wildcard:
            yield (
                f"{use.key}: nobody can connect to {address.host}; give the host that others "
                f"reach, and put {address} into {use.key.rpartition('.')[2]}_listen"
            )
        elif use.advertised and address.port == 0:
            yield f"{use.key}: nobody can connect to port 0; give the port that others reach"
    for earlier, later in combinations(uses, 2):
        if _collide(earlier, later):
            yield (
                f"{later.key}: {later.address} collides with {earlier.key} = {earlier.address}; "
                "give each its own port"
            )


def _uses(node: NodeDraft) -> list[_Use]:
    """The addresses of a node; one that is both advertised and listened on counts once."""
    machine = _machine(node)
    found: list[_Use] = []
    for name, advertised, listened in (
        ("peer", node.peer, node.peer_listen),
        ("client", node.client, node.client_listen),
    ):
        key = f"{node.key}.{name}"
        if advertised is not None:
            same = advertised == listened
            found.append(_Use(key, advertised, machine, advertised=True, listened=same))
        if listened is not None and listened != advertised:
            key += "_listen"
            found.append(_Use(key, listened, machine, advertised=False, listened=True))
    return found


def _collide(one: _Use, other: _Use) -> bool:
    """Whether two uses of addresses exclude each other."""
    if one.address.port != other.address.port or one.address.port == 0:
        return False
    on_one_machine = one.machine is not None and one.machine == other.machine
    if one.address == other.address:
        return on_one_machine or (one.advertised and other.advertised)
    # A wildcard takes its port on every interface of the machine.
    wildcard = one.address.is_wildcard or other.address.is_wildcard
    return on_one_machine and one.listened and other.listened and wildcard


def _machine(node: NodeDraft) -> str | None:
    """What stands for the machine of the node: the host that it advertises to its peers."""
    if node.peer is None:
        return None
    return "loopback" if node.peer.is_loopback else node.peer.host
