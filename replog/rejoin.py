"""Bringing a lost node back: an empty directory under a new incarnation, taken in as a learner.

A node that lost its directory has forgotten what it voted, promised and acknowledged, so it must
not count as the one that did.  It comes back in three steps, each of which may be repeated:

1. Some node of the cluster tells the founding record, if the node is not there.
2. A directory is made from it under an incarnation of its own, with a backup as its first snapshot
   if one is given, durably.
3. The leader has a ``CONTROL`` entry committed that names this incarnation
   (:mod:`replog.control`).  Where it is applied, the new incarnation is heard and the old one is
   not; it gets every entry, or a snapshot, and counts in no quorum.  The voters that are left must
   be a quorum of all voters, as before.

The directory comes first, and whole: an incarnation that nobody has is never taken in; a backup
stands in front of the entry that names the incarnation; and when the last answer was lost, the same
incarnation is asked for again, which changes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import trio

from replog import plugins
from replog.backup import backup_names, find_backup, init_from_backup, read_backup
from replog.cbor import strict_dumps
from replog.client_link import FAILURES, Link, ask_once, open_link, reason_of
from replog.config import Config, NodeConfig
from replog.errors import (
    DirectoryError,
    DiskFull,
    EntryReplaced,
    NodeActive,
    NotDone,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    ReplogError,
    Unavailable,
)
from replog.founding import check_matching, check_usable
from replog.frames import FrameCodec, Outcome, Reply
from replog.storage.directory import (
    IDENTITY_NAME,
    STARTED_NAME,
    init_directory,
    read_identity,
)
from replog.storage.files import RealFiles
from replog.storage.identity import FoundingRecord, draw_incarnation, unpack_founding
from replog.storage.snapshot_writer import SnapshotInfo
from replog.transport.connection import closing
from replog.types import LogIndex, NodeId, Voter, record

_ASK_SECONDS_MAX: Final = 5.0
"""How long one node may take to answer before another one is asked."""
_PAUSE_SECONDS: Final = 0.2
"""Between two rounds of asking."""
_PASSING: Final = frozenset(
    made.__name__
    for made in (NotLeader, NodeActive, Overloaded, DiskFull, EntryReplaced, Unavailable)
)
"""What a node may refuse for and grant a little later, or another node may."""


@record
class LearnerDirectory:
    """The directory of a node that comes back."""

    path: Path
    learner: Voter
    is_new: bool
    """Whether it was made just now, and not by an earlier call that was interrupted."""
    backup: SnapshotInfo | None
    """The snapshot that it begins with."""


def coming_back(config: Config, node_id: NodeId, file: Path | None = None) -> Voter:
    """As whom a node comes back: the incarnation of the directory that an earlier call has made,
    or a fresh one.  Makes nothing.

    Raises :class:`~replog.errors.DirectoryError` and :class:`~replog.errors.BackupError` where
    :func:`make_learner`, given the backup ``file``, would whatever the founding record says.
    """
    path = config.node(node_id).directory
    if (path / IDENTITY_NAME).exists():
        incarnation = _resumable_incarnation(config, node_id)
        if file is not None:
            find_backup(file, path)
        return Voter(node_id, incarnation)
    names = () if file is None else backup_names(read_backup(file))
    check_usable(path, plugins.find_storage(config.storage), names)
    return Voter(node_id, draw_incarnation())


async def fetch_founding(config: Config, learner: Voter, seconds: float) -> FoundingRecord:
    """The founding record, as another node tells it that does not hear the one that is to come
    back.

    Raises :class:`~replog.errors.Unavailable` when none does for so long,
    :class:`~replog.errors.NodeActive` when that is because the node is there, and
    :class:`~replog.errors.DirectoryError` when the record is of another cluster than the
    configuration.
    """
    reasons: dict[NodeId, str] = {}
    is_active = False
    with trio.move_on_after(seconds):
        while True:
            is_heard = False
            for node in _others(config, learner.node_id):
                try:
                    reply, value = await _ask(config, node, "founding", _packed(learner))
                except (*FAILURES, ReplogError) as failure:
                    reasons[node.id] = reason_of(failure)
                    continue
                if reply.outcome is Outcome.DONE and isinstance(value, bytes):
                    name = f"the founding record of node {node.id}"
                    founding = unpack_founding(Path(name), value)
                    check_matching(config, founding, name)
                    return founding
                reasons[node.id] = reply.message or "it answered with something else"
                if is_heard := reply.code == NodeActive.__name__:
                    break
            is_active = is_heard
            await trio.sleep(_PAUSE_SECONDS)
    if is_active:
        raise NodeActive(learner.node_id)
    raise Unavailable(
        f"no other node of cluster '{config.cluster_id}' answered ({_told(reasons)}); a node is "
        "taken in by those that are left, so see that they run"
    )


def make_learner(
    config: Config, learner: Voter, founding: FoundingRecord, file: Path | None = None
) -> LearnerDirectory:
    """Make the directory of :func:`coming_back`, with a backup as its first snapshot if a ``file``
    is given; all of it is durable on return.  One that an earlier call has made stays as it is.

    Raises :class:`~replog.errors.DirectoryError`, and what
    :func:`replog.backup.init_from_backup` and :func:`replog.backup.find_backup` raise.  Blocks.
    """
    path = config.node(learner.node_id).directory
    if (path / IDENTITY_NAME).exists():
        learner = Voter(learner.node_id, _resumable_incarnation(config, learner.node_id))
        found = None if file is None else find_backup(file, path)
        return LearnerDirectory(path, learner, False, found)
    placed: SnapshotInfo | None = None
    if file is not None:
        placed = init_from_backup(file, path, founding, learner)
    else:
        plugin = plugins.find_storage(config.storage)
        init_directory(RealFiles(), path, founding, learner.node_id, plugin, learner.incarnation)
    return LearnerDirectory(path, learner, True, placed)


async def admit_learner(config: Config, learner: Voter, seconds: float) -> LogIndex:
    """Have the cluster take a learner in, and return the index up to which the node that says so
    had applied.

    Asks one node after the other until one leads and has done it.  Raises
    :class:`~replog.errors.NotDone` for what no node will ever grant, and
    :class:`~replog.errors.OutcomeUnknown` when the time is over: to ask again does no harm.
    """
    reasons: dict[NodeId, str] = {}
    with trio.move_on_after(seconds):
        while True:
            for node in _others(config, learner.node_id):
                try:
                    reply, _ = await _ask(config, node, "rejoin", _packed(learner))
                except (*FAILURES, ReplogError) as failure:
                    reasons[node.id] = reason_of(failure)
                    continue
                if reply.outcome is Outcome.DONE:
                    return reply.index
                reasons[node.id] = reply.message
                if reply.outcome is Outcome.NOT_DONE and reply.code not in _PASSING:
                    raise NotDone(reply.message)
            await trio.sleep(_PAUSE_SECONDS)
    raise OutcomeUnknown(
        f"node {learner.node_id} was not taken in within {seconds:g} s, as far as is known "
        f"({_told(reasons)}); its directory is made, so run the same again when that is mended"
    )


async def _ask(config: Config, node: NodeConfig, verb: str, body: bytes) -> tuple[Reply, object]:
    """One request to one node, over a connection of its own."""
    codec = FrameCodec(config.limits)
    with trio.fail_after(_ASK_SECONDS_MAX):
        link: Link[None] = await open_link(
            str(node.client), codec, config.limits, config.cluster_id
        )
        with closing(link.connection):
            return await ask_once(link, verb, body)


def _packed(learner: Voter) -> bytes:
    return strict_dumps([learner.node_id, learner.incarnation])


def _others(config: Config, node_id: NodeId) -> list[NodeConfig]:
    return [node for node in config.nodes if node.id != node_id]


def _told(reasons: dict[NodeId, str]) -> str:
    told = (f"node {node_id}: {reason}" for node_id, reason in sorted(reasons.items()))
    return "; ".join(told) or "nothing came"


def _resumable_incarnation(config: Config, node_id: NodeId) -> int:
    """The incarnation in a directory that an earlier call has made; raises for any other."""
    path = config.node(node_id).directory
    identity = read_identity(RealFiles(), path)
    if (identity.cluster_id, identity.node_id) != (config.cluster_id, node_id):
        raise DirectoryError(
            f"{path} belongs to node {identity.node_id} of cluster {identity.cluster_id!r}, not to "
            f"node {node_id} of cluster {config.cluster_id!r}; correct the configuration"
        )
    if identity.is_founding and not (path / STARTED_NAME).exists():
        raise DirectoryError(
            f"{path} is the directory that node {node_id} was founded with, so the node is not "
            "lost: start it.  Only if it is damaged, or was made anew from the founding record, "
            "remove it and run this again: the node then comes back without a vote"
        )
    if (path / STARTED_NAME).exists():
        raise DirectoryError(
            f"{path} has served its one run, as the storage {identity.storage!r} keeps nothing: "
            "remove it and run this again"
        )
    return identity.incarnation
