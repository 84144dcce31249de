"""Making a new cluster: the founding record, and the directories of its nodes.

A cluster begins by an explicit act, once.  The record that it leaves names every voter with a
random incarnation; a node counts only as the incarnation that the record names, so a directory that
was lost and made anew cannot pass for the one that voted.

Founding is all or nothing as far as can be known beforehand: every directory is looked at before
anything is made.  What fails only later, as on a full disk, takes the record with it as long as no
directory was made from it; from then on the record stays, because a directory holds what it says.
"""

from __future__ import annotations

import fcntl
import os
import shlex
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import TypeAlias

from replog import plugins
from replog.config import Config, agreed_options
from replog.errors import DirectoryError
from replog.storage.directory import IDENTITY_NAME, check_unpopulated, init_directory
from replog.storage.files import RealFiles
from replog.storage.identity import FoundingRecord, new_founding, read_founding, write_founding
from replog.storage.plugin import StoragePlugin
from replog.types import NodeId

MadeDirectory: TypeAlias = tuple[NodeId, Path]
"""A node and its directory; two nodes on two machines may have the same path."""


def founding_path(config: Config, beside: Path) -> Path:
    """Where ``replog init`` writes the record of a configuration that lies at ``beside``."""
    return beside.with_name(f"{config.cluster_id}.founding")


def found_cluster(
    config: Config, record_path: Path, node_id: NodeId | None = None
) -> list[MadeDirectory]:
    """Make the founding record and the directory of every node, or of ``node_id`` alone.

    Returns what was made, in the order of the configuration.  Raises
    :class:`~replog.errors.DirectoryError` before anything is made when one of the directories
    cannot be used, two of them are one, or the record exists, and
    :class:`~replog.errors.ConfigError` for options of the engine that do not fit the cluster.
    """
    agreed = agreed_options(config)
    wanted = check_foundable(config, record_path, node_id)
    founding = new_founding(
        config.cluster_id, config.engine, config.storage, [node.id for node in config.nodes], agreed
    )
    record_path.parent.mkdir(parents=True, exist_ok=True)
    write_founding(record_path, founding)
    try:
        return [_make_directory(config, founding, each) for each, _ in wanted]
    except BaseException as error:
        made = [each for each, path in wanted if os.path.lexists(path / IDENTITY_NAME)]
        if not made:
            record_path.unlink()
        elif isinstance(error, DirectoryError):
            raise DirectoryError(
                f"{error}; what was made stays ({record_path} and the directory of node "
                f"{', '.join(map(str, made))}), so when this is mended, make the others with "
                f"{joining(record_path)} ID"
            ) from error
        raise


def check_foundable(
    config: Config, record_path: Path, node_id: NodeId | None, leftovers: Collection[str] = ()
) -> list[MadeDirectory]:
    """Which directories a founding would make, where it can; makes nothing.

    ``leftovers`` are names that may be in them already.  Raises what :func:`found_cluster` raises
    before it makes anything.
    """
    node_ids = [node.id for node in config.nodes] if node_id is None else [node_id]
    wanted = [(each, config.node(each).directory) for each in node_ids]
    plugin = plugins.find_storage(config.storage)
    _check_apart(wanted)
    for _, path in wanted:
        check_usable(path, plugin, leftovers)
    if os.path.lexists(record_path):
        who = "ID, for one node at a time" if node_id is None else str(node_id)
        raise DirectoryError(
            f"{record_path} exists already, and a founding record is made once; to make a "
            f"directory from it, add {joining(record_path)} {who}"
        )
    return wanted


def join_founding(config: Config, record_path: Path, node_id: NodeId) -> MadeDirectory:
    """Make one node's directory from a record that was made elsewhere."""
    founding = read_matching(config, record_path)
    return _make_directory(config, founding, node_id)


def read_matching(config: Config, record_path: Path) -> FoundingRecord:
    """The founding record of the cluster that a configuration describes; raises
    :class:`~replog.errors.DirectoryError`."""
    founding = read_founding(record_path)
    check_matching(config, founding, str(record_path))
    return founding


def check_matching(config: Config, founding: FoundingRecord, name: str) -> None:
    """Raise :class:`~replog.errors.DirectoryError` unless the record, called ``name``, is of the
    cluster that the configuration describes."""
    ours = (config.cluster_id, config.engine, config.storage)
    theirs = (founding.cluster_id, founding.engine, founding.storage)
    if ours != theirs:
        raise DirectoryError(
            f"{name} founds cluster {theirs[0]!r} with engine {theirs[1]!r} and storage "
            f"{theirs[2]!r}, but {config.source} describes {ours[0]!r} with {ours[1]!r} and "
            f"{ours[2]!r}; correct one of the two"
        )


def bootstrap_cluster(config: Config, node_id: NodeId) -> None:
    """Make the whole cluster's directories if none exists yet; for programs on one machine.

    Several programs may do so at once: one makes them, the others wait.  A record without any
    directory is what an interrupted bootstrap left, and is used.  Raises
    :class:`~replog.errors.DirectoryError` when this node's directory is missing although
    another's exists: a node that lost its directory must not vote as if it were new.
    """
    own = config.node(node_id).directory
    if (own / IDENTITY_NAME).exists():
        return
    record_path = founding_path(config, own.parent / config.cluster_id)
    with _alone_in(record_path.parent):
        if (own / IDENTITY_NAME).exists():
            return  # made by another program while we waited
        for node in config.nodes:
            if (node.directory / IDENTITY_NAME).exists():
                raise DirectoryError(
                    f"{own} is not the directory of a node although node {node.id} of the cluster "
                    f"has one ({node.directory}); a node that lost its directory must not vote as "
                    "if it were new: bring it back with `replog rejoin`"
                )
        if record_path.exists():
            for node in config.nodes:
                join_founding(config, record_path, node.id)
        else:
            found_cluster(config, record_path)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other bootstraps out of a folder, which is made if it is missing; waits for them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise DirectoryError(
            f"{folder} cannot be used for a cluster: {error.strerror or error}"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _check_apart(wanted: Sequence[MadeDirectory]) -> None:
    """Raise unless every node gets a directory of its own, outside of every other's."""
    places = [(each, Path(os.path.realpath(path))) for each, path in wanted]
    for (one, place), (other, other_place) in combinations(places, 2):
        if place == other_place or place in other_place.parents or other_place in place.parents:
            raise DirectoryError(
                f"nodes {one} and {other} would share {os.path.commonpath((place, other_place))} "
                "on this machine; make each directory on the machine of its node, with --node, or "
                "give every node a directory of its own"
            )


def check_usable(path: Path, plugin: StoragePlugin, leftovers: Collection[str] = ()) -> None:
    """Raise if ``path`` can certainly not be made a node's directory; makes nothing."""
    existing = next(each for each in (path, *path.parents) if os.path.lexists(each))
    if not existing.is_dir():
        raise DirectoryError(
            f"{path} cannot be made a node's directory: {existing} is no directory; choose another "
            "path, or move that file away"
        )
    if existing == path:
        # Init takes the directory away from everybody else, and only its owner can.
        is_ours = os.geteuid() in (0, path.stat().st_uid)
    else:
        is_ours = os.access(existing, os.R_OK | os.W_OK | os.X_OK)
    if not is_ours:
        raise DirectoryError(
            f"{path} cannot be made a node's directory: {existing} belongs to another user; choose "
            "another path, or have the directory made and given to this user"
        )
    if existing == path:
        check_unpopulated(RealFiles(), path, plugin, leftovers)


def joining(record_path: Path) -> str:
    """The options that make a directory from a record, up to the node's id."""
    return f"--founding {shlex.quote(str(record_path))} --node"


def _make_directory(config: Config, founding: FoundingRecord, node_id: NodeId) -> MadeDirectory:
    path = config.node(node_id).directory
    plugin = plugins.find_storage(config.storage)
    init_directory(RealFiles(), path, founding, node_id, plugin)
    return node_id, path
