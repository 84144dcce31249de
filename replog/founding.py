"""Making a new cluster: the founding record, and the directories of its nodes.

A cluster begins by an explicit act, once.  The record that it leaves names every voter with a
random incarnation; a node counts only as the incarnation that the record names, so a directory that
was lost and made anew cannot pass for the one that voted.
"""

from __future__ import annotations

from pathlib import Path

from replog import plugins
from replog.config import Config
from replog.errors import DirectoryError
from replog.storage.directory import IDENTITY_NAME, init_directory
from replog.storage.files import RealFiles
from replog.storage.identity import FoundingRecord, new_founding, read_founding, write_founding
from replog.types import NodeId


def founding_path(config: Config, beside: Path) -> Path:
    """Where ``replog init`` writes the record of a configuration that lies at ``beside``."""
    return beside.with_name(f"{config.cluster_id}.founding")


def found_cluster(config: Config, record_path: Path, node_id: NodeId | None = None) -> list[Path]:
    """Make the founding record and the directory of every node, or of ``node_id`` alone.

    Returns the directories.  Raises :class:`~replog.errors.DirectoryError` before anything is
    made when one of them is populated.
    """
    node_ids = [node.id for node in config.nodes] if node_id is None else [node_id]
    for each in node_ids:
        path = config.node(each).directory
        if (path / IDENTITY_NAME).exists():
            raise DirectoryError(
                f"{path} is already the directory of a node; start it with `replog serve`, or "
                "choose other directories for a new cluster"
            )
    founding = new_founding(
        config.cluster_id, config.engine, config.storage, [node.id for node in config.nodes]
    )
    record_path.parent.mkdir(parents=True, exist_ok=True)
    write_founding(record_path, founding)
    return [_make_directory(config, founding, each) for each in node_ids]


def join_founding(config: Config, record_path: Path, node_id: NodeId) -> Path:
    """Make one node's directory from a record that was made elsewhere."""
    founding = read_founding(record_path)
    ours = (config.cluster_id, config.engine, config.storage)
    theirs = (founding.cluster_id, founding.engine, founding.storage)
    if ours != theirs:
        raise DirectoryError(
            f"{record_path} founds cluster {theirs[0]!r} with engine {theirs[1]!r} and storage "
            f"{theirs[2]!r}, but {config.source} describes {ours[0]!r} with {ours[1]!r} and "
            f"{ours[2]!r}; correct one of the two"
        )
    return _make_directory(config, founding, node_id)


def bootstrap_cluster(config: Config, node_id: NodeId) -> None:
    """Make the whole cluster's directories if none exists yet; for programs on one machine.

    Raises :class:`~replog.errors.DirectoryError` when this node's directory is missing although
    another's exists: a node that lost its directory must not vote as if it were new.
    """
    own = config.node(node_id).directory
    if (own / IDENTITY_NAME).exists():
        return
    for node in config.nodes:
        if (node.directory / IDENTITY_NAME).exists():
            raise DirectoryError(
                f"{own} is not the directory of a node although node {node.id} of the cluster has "
                f"one ({node.directory}); a node that lost its directory must not vote as if it "
                "were new"
            )
    found_cluster(config, founding_path(config, own.parent / config.cluster_id))


def _make_directory(config: Config, founding: FoundingRecord, node_id: NodeId) -> Path:
    path = config.node(node_id).directory
    plugin = plugins.find_storage(config.storage)
    init_directory(RealFiles(), path, founding, node_id, plugin)
    return path
