"""The nodes of the demonstration: real processes, which never outlive it.

Each is ``replog serve --until-stdin-closes`` on the other end of a pipe that only this process
holds: should this process end in whatever way, SIGKILL included, the pipe closes and the nodes end
themselves.  Otherwise they are ended when the block ends, each by its own process id.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from replog.cli.asking import NodeAnswer, ask_status, followed_leader
from replog.config import Config
from replog.config_text import config_toml
from replog.errors import Unavailable
from replog.founding import found_cluster, founding_path
from replog.types import NodeId

STOP_SECONDS_MAX: Final = 5.0
"""How long a node may take to end cleanly before it is killed."""

_POLL_SECONDS: Final = 0.02
_ANSWER_SECONDS: Final = 1.0


class NodeProcesses:
    """The processes of one cluster's nodes; made by :func:`node_processes`."""

    def __init__(
        self, config: Config, config_path: Path, folder: Path, env: Mapping[str, str] | None
    ) -> None:
        self.config = config
        self._env = env
        self._config_path = config_path
        self._folder = folder
        self._processes: dict[NodeId, trio.Process] = {}

    async def start(self, node_id: NodeId) -> None:
        """Start a node; it may not answer yet."""
        # -P: the working directory may hold modules that are named like ours.
        command = [
            *(sys.executable, "-P", "-m", "replog", "serve", "--until-stdin-closes"),
            *("--config", str(self._config_path), "--node", str(node_id)),
            *("--log-format", "json"),
        ]
        with self.log_path(node_id).open("ab") as log:
            self._processes[node_id] = await trio.lowlevel.open_process(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log, env=self._env
            )

    def log_path(self, node_id: NodeId) -> Path:
        """Where the node's log is."""
        return self._folder / f"node-{node_id}.log"

    def pid(self, node_id: NodeId) -> int:
        """The process id of a node that was started."""
        return self._processes[node_id].pid

    def kill(self, node_id: NodeId) -> None:
        """End a node as a crash would: SIGKILL, without a word to it."""
        self._processes[node_id].send_signal(signal.SIGKILL)

    async def wait_ended(self, node_id: NodeId) -> int:
        """Wait for the end of a node's process and return its exit status."""
        process = self._processes[node_id]
        status = await process.wait()
        assert process.stdin is not None
        await process.stdin.aclose()
        return status

    async def stop(self, node_id: NodeId) -> int:
        """Ask a node to end, kill it if it does not, and return its exit status."""
        process = self._processes[node_id]
        if process.poll() is None:
            process.terminate()
            with trio.move_on_after(STOP_SECONDS_MAX):
                return await self.wait_ended(node_id)
            process.kill()
        return await self.wait_ended(node_id)

    async def stop_all(self) -> None:
        """End every node, all at once."""
        async with trio.open_nursery() as nursery:
            for node_id in self._processes:
                nursery.start_soon(self.stop, node_id)

    async def statuses(self) -> list[NodeAnswer]:
        """What every node says of itself, in the order of the configuration."""
        answers: dict[NodeId, NodeAnswer] = {}

        async def ask(node_id: NodeId, address: str) -> None:
            answers[node_id] = await ask_status(address, _ANSWER_SECONDS)

        async with trio.open_nursery() as nursery:
            for node in self.config.nodes:
                nursery.start_soon(ask, node.id, str(node.client))
        return [answers[node.id] for node in self.config.nodes]

    async def wait_leader(self) -> NodeId:
        """Wait until a majority follows one leader, and return its id."""
        while True:
            leader_id = followed_leader(await self.statuses(), len(self.config.nodes))
            if leader_id is not None:
                return leader_id
            self._check_running()
            await trio.sleep(_POLL_SECONDS)

    async def wait_answer(self, node_id: NodeId) -> None:
        """Wait until a node that was started answers."""
        address = str(self.config.node(node_id).client)
        while (await ask_status(address, _ANSWER_SECONDS)).status is None:
            self._check_running()
            await trio.sleep(_POLL_SECONDS)

    async def wait_equal(self) -> int:
        """Wait until every node has applied everything that is committed; the last index of it.

        Nothing may be written meanwhile.
        """
        while True:
            answers = await self.statuses()
            applied = {answer.number("applied_index") for answer in answers}
            commits = {answer.number("commit_index") for answer in answers}
            if len(applied | commits) == 1 and min(applied) > 0:
                return min(applied)
            self._check_running()
            await trio.sleep(_POLL_SECONDS)

    def _check_running(self) -> None:
        """Raise :class:`~replog.errors.Unavailable` if a node ended that nobody killed."""
        for node_id, process in self._processes.items():
            status = process.poll()
            if status is not None and status != -signal.SIGKILL:
                said = _last_line(self.log_path(node_id)) or "it left no word"
                raise Unavailable(f"node {node_id} ended with exit status {status}: {said}")


@asynccontextmanager
async def node_processes(
    config: Config, folder: Path, env: Mapping[str, str] | None = None
) -> AsyncIterator[NodeProcesses]:
    """Found a cluster in ``folder``, start all of its nodes, and end them with the block.

    ``env`` is the environment of the nodes (``None``: that of this process).
    """
    config_path = folder / "cluster.toml"
    config_path.write_text(config_toml(config), encoding="utf-8")
    found_cluster(config, founding_path(config, config_path))
    processes = NodeProcesses(config, config_path, folder, env)
    try:
        for node in config.nodes:
            await processes.start(node.id)
        yield processes
    finally:
        with trio.CancelScope(shield=True):
            await processes.stop_all()


def _last_line(path: Path) -> str:
    """The last line of a log, or an empty string."""
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            return "".join(deque(lines, maxlen=1)).strip()
    except OSError:
        return ""
