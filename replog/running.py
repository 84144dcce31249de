"""One node in a program of its own: opened, run, and stopped with a block."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from os import PathLike
from pathlib import Path

import trio

from replog import plugins
from replog.config import SYNC_LEVELS, Config, load_config
from replog.failures import main_error
from replog.founding import bootstrap_cluster
from replog.loading import close_machine
from replog.machine import Machine
from replog.node import Node
from replog.opening import check_voters, open_state
from replog.storage.directory import open_directory
from replog.types import NodeId


@asynccontextmanager
async def open_node(
    config: Config | str | PathLike[str],
    node: NodeId,
    machine: Machine | None = None,
    bootstrap: bool = False,
) -> AsyncIterator[Node]:
    """Run one node of a cluster for as long as the block lasts.

    ``config`` is a :class:`~replog.config.Config` or the path of a TOML file; ``machine`` is the
    node's own state machine (default: a new one of the kind that the configuration names).  With
    ``bootstrap`` the directories of the whole cluster are made if none exists yet, which suits
    programs and tests on one machine; otherwise ``replog init`` made them.

    Leaving the block stops the node cleanly.  An error that stops the node cancels the block and
    is raised out of it.  Raises :class:`~replog.errors.ConfigError`,
    :class:`~replog.errors.DirectoryError`, :class:`~replog.errors.AddressError`,
    :class:`~replog.errors.PlatformError` and, for damage, a :class:`~replog.errors.FatalError`.
    """
    if not isinstance(config, Config):
        config = load_config(Path(config))
    own = config.node(node)
    if machine is None:
        machine = plugins.find_state_machine(config.state_machine)()
    if bootstrap:
        bootstrap_cluster(config, node)
    with open_directory(
        own.directory,
        cluster_id=config.cluster_id,
        node_id=node,
        engine=config.engine,
        storage=config.storage,
        plugin=plugins.find_storage(config.storage),
    ) as directory:
        check_voters(config, directory)
        storage = directory.open_storage(is_synced=config.sync == SYNC_LEVELS[0])
        try:
            # Reading a long log, or filling the machine, would hold up the program's other tasks.
            state = await trio.to_thread.run_sync(open_state, config, directory, storage, machine)
            running = Node(config, directory, storage, machine, state)
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(running.run)
                    yield running
                    nursery.cancel_scope.cancel()
            except BaseExceptionGroup as group:
                error = main_error(group)
                raise error from error.__cause__
        finally:
            storage.close()
            close_machine(machine)
