"""What a node finds in its directory: its log, its snapshots, its machine, and whom it has met.

All of it blocks: a long log is read, and a machine may be filled from gigabytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from replog import plugins
from replog.config import Config, options_error
from replog.control import check_not_replaced, learners_at
from replog.engine import EngineSetup, MessageSpec
from replog.errors import ConfigError, DirectoryError, UnknownFormat
from replog.formation import Formation, MetRecord
from replog.loading import MachineHome, find_newest, load_machine, reloaded
from replog.machine import Machine
from replog.replica import Replica
from replog.snapshots import SnapshotSetup
from replog.storage.directory import NodeDirectory
from replog.storage.identity import Identity
from replog.storage.protocol import Recovered, Storage
from replog.types import NO_ENTRY, NO_NODE, EpochNumber, HardState, Voter, record


@record
class OpenedState:
    """What a node begins with."""

    replica: Replica
    """Its machine holds what it can before the log is applied to it."""
    snapshots: SnapshotSetup
    messages: Sequence[MessageSpec]
    """Of the engine's protocol."""
    formation: Formation
    """Whom the directory has met, and whom it waits for."""


def open_state(
    config: Config, directory: NodeDirectory, storage: Storage, machine: Machine
) -> OpenedState:
    """Recover the log and the snapshots, fill the machine, and make the engine.

    Raises a :class:`~replog.errors.FatalError` or :class:`~replog.errors.DirectoryError` for
    damage, and :class:`~replog.errors.ConfigError` for options that do not fit the cluster.
    """
    identity = directory.identity
    epoch = identity.founding.epoch
    own = Voter(identity.node_id, identity.incarnation)
    recovered = storage.recover()
    check_epoch(directory.path, recovered, epoch.number)
    store = directory.open_snapshots()
    home = MachineHome(directory.files, directory.path, config.state_machine, epoch.number)
    newest = find_newest(home, store, recovered.log)
    loaded = load_machine(machine, home, store, newest, recovered.log)
    plugin = plugins.find_engine(identity.engine)
    setup = EngineSetup(
        node_id=identity.node_id,
        epoch=epoch,
        hard_state=recovered.hard_state or HardState(epoch.number, 0, NO_NODE),
        log=recovered.log,
        limits=config.limits,
        options=config.engine_options,
        seed=identity.incarnation,
        nonce=int.from_bytes(os.urandom(8), "big") >> 1,
        snapshot=NO_ENTRY if newest is None else newest.meta.last,
        applied_index=loaded.applied_index,
        learners=learners_at(own, epoch, loaded.learners),
    )
    check_not_replaced(own, own in epoch.voters, loaded.learners)
    try:
        engine = plugin.create(setup)
    except ConfigError as error:
        raise options_error(config, error) from error
    loaded = reloaded(engine, machine, store, newest, loaded)
    engine.set_learners(learners_at(own, epoch, loaded.learners))
    replica = Replica(
        engine,
        machine,
        config.limits,
        loaded.sessions,
        loaded.applied_index,
        loaded.time_ms,
        loaded.learners,
        own,
        own in epoch.voters,
        loaded.learners_index,
        loaded.highest_term,
    )
    return OpenedState(
        replica,
        SnapshotSetup(store, newest, config.state_machine, epoch),
        plugin.messages,
        formation_of(identity, directory.open_met().load()),
    )


def formation_of(identity: Identity, recorded: MetRecord) -> Formation:
    """The formation of a node.  Who came later than the founding voters waits for nobody: the
    entry that took it in was committed by those who are formed."""
    voters = identity.founding.voters if identity.is_founding else ()
    ids = [voter.node_id for voter in voters]
    return Formation(identity.node_id, identity.birth, ids, recorded)


def check_voters(config: Config, directory: NodeDirectory) -> None:
    """Refuse a configuration that describes other nodes than the cluster was founded with."""
    described = sorted(node.id for node in config.nodes)
    founded = [voter.node_id for voter in directory.identity.founding.voters]
    if described != founded:
        raise DirectoryError(
            f"{directory.path} belongs to a cluster that was founded with the nodes "
            f"{', '.join(map(str, founded))}, but {config.source} describes the nodes "
            f"{', '.join(map(str, described))}; correct the configuration: the members of a "
            "cluster cannot be changed yet"
        )


def check_epoch(path: Path, recovered: Recovered, epoch: EpochNumber) -> None:
    """Stop at state of another epoch, which only a later release can have written.

    Raises :class:`~replog.errors.UnknownFormat`.
    """
    hard_state = recovered.hard_state
    found = {run.epoch for run in recovered.log.runs} - {epoch}
    if hard_state is not None and hard_state.epoch != epoch:
        found.add(hard_state.epoch)
    if found:
        raise UnknownFormat(
            f"{path} holds state of epoch {max(found)}, and this release knows epoch {epoch} "
            "alone; upgrade this node"
        )
