"""Increments in a session while leaders are killed: each is done once, and answered as it was.

::

    python tests/net/exactly_once.py --increments 10000 --kills 6 --library asyncio
    python tests/net/exactly_once.py --forgetful

Three real nodes, and a client's program (``counting_load.py``) with 64 increments in flight.  After
every so many answers the leader is killed with SIGKILL and started again.  In the end the counter
is as high as there were increments, and the answers are all different: 1, 2, 3 and so on.

With ``--freeze`` leaders are stopped for four seconds instead, and go on as if nothing had been.

With ``--forgetful`` the nodes forget what they answered in a session (``forgetful/``), and the same
run ends with exit status 1: so it would notice.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

import trio

from replog import Client
from replog.cli.demo_nodes import NodeProcesses, node_processes
from replog.config import local_config
from replog.plugins import engine_names
from replog.types import NodeId

HERE: Final = Path(__file__).parent
SECONDS_MAX: Final = 240.0
FROZEN_SECONDS: Final = 4.0
"""Long enough for an election, and for the client to ask the others who leads."""

LIBRARIES: Final = ("trio", "asyncio", "blocking")


@dataclass(frozen=True, slots=True)
class Counted:
    """How a run ended."""

    increments: int
    total: int
    """The counter in the end."""
    answers: list[int]
    """What the increments were answered, each the counter behind it."""
    repeated: int
    """Increments that were sent again after an unknown outcome."""
    kills: int
    seconds: float

    @property
    def is_exact(self) -> bool:
        """Whether each increment was done once and answered as it was."""
        everything = list(range(1, self.increments + 1))
        return self.total == self.increments and sorted(self.answers) == everything


async def count(
    folder: Path,
    engine: str,
    library: str,
    increments: int,
    kills: int,
    *,
    is_forgetful: bool = False,
    is_frozen: bool = False,
) -> Counted:
    """One run in an empty folder; ``is_frozen``: leaders are stopped for a while, not killed."""
    config = local_config(folder / "data", nodes=3, engine=engine, state_machine="counter")
    begun = monotonic()
    paths = [str(HERE / "counting"), os.environ.get("PYTHONPATH", "")]
    if is_forgetful:
        paths.insert(0, str(HERE / "forgetful"))
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with trio.fail_after(SECONDS_MAX):
        async with node_processes(config, folder, env) as nodes:
            await nodes.wait_leader()
            addresses = ",".join(str(node.client) for node in config.nodes)
            load = await trio.lowlevel.open_process(
                [
                    sys.executable,
                    str(HERE / "counting_load.py"),
                    library,
                    addresses,
                    f"{increments}",
                ],
                stdout=subprocess.PIPE,
            )
            try:
                strike = _freeze if is_frozen else _kill
                killed, last = await _strike_along(nodes, load, increments, kills, strike)
            finally:
                load.kill()
                await load.wait()
            async with Client(config) as client:
                total = await client.call(_counter().get)
    return Counted(
        increments, total, last["answers"], last["repeated"], killed, monotonic() - begun
    )


async def _kill(nodes: NodeProcesses, leader_id: NodeId) -> None:
    nodes.kill(leader_id)
    await nodes.wait_ended(leader_id)
    await nodes.start(leader_id)


async def _freeze(nodes: NodeProcesses, leader_id: NodeId) -> None:
    os.kill(nodes.pid(leader_id), signal.SIGSTOP)
    await trio.sleep(FROZEN_SECONDS)
    os.kill(nodes.pid(leader_id), signal.SIGCONT)


async def _strike_along(
    nodes: NodeProcesses,
    load: trio.Process,
    increments: int,
    kills: int,
    strike: Callable[[NodeProcesses, NodeId], Awaitable[None]],
) -> tuple[int, dict[str, list[int]]]:
    """Strike a leader whenever so many more were answered; the number of strikes, and the load's
    last line."""
    assert load.stdout is not None
    killed = 0
    line, text = {"answered": 0}, b""
    async for data in load.stdout:
        *complete, text = (text + data).split(b"\n")
        for each in complete:
            line = json.loads(each)
            due = increments * (killed + 1) // (kills + 1)
            if killed < kills and line.get("answered", 0) >= due:
                await strike(nodes, await nodes.wait_leader())
                killed += 1
    assert "answers" in line, f"the load ended early, with exit status {await load.wait()}"
    return killed, line


def _counter() -> type:
    sys.path.insert(0, str(HERE / "counting"))
    import counting

    sys.path.pop(0)
    return counting.Counter


def main() -> None:
    """Run what the arguments say; exit status 1 where a count is wrong."""
    parser = argparse.ArgumentParser(description="Increments in a session while leaders are killed")
    parser.add_argument("--engine", choices=engine_names(), default=engine_names()[0])
    parser.add_argument("--library", choices=LIBRARIES, default=LIBRARIES[0])
    parser.add_argument("--increments", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--forgetful", action="store_true", help="without deduplication")
    parser.add_argument("--freeze", action="store_true", help="stop leaders, and let them go on")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counted = trio.run(
            lambda: count(
                Path(folder),
                asked.engine,
                asked.library,
                asked.increments,
                asked.kills,
                is_forgetful=asked.forgetful,
                is_frozen=asked.freeze,
            )
        )
    twice = len(counted.answers) - len(set(counted.answers))
    print(
        f"{asked.engine}, {asked.library}{', without deduplication' if asked.forgetful else ''}: "
        f"{counted.increments} increments in {counted.seconds:.1f} s, {counted.kills} leaders "
        f"{'frozen' if asked.freeze else 'killed'}, {counted.repeated} increments sent again after "
        f"an unknown outcome; the counter is {counted.total}, and {twice} answers came twice"
    )
    sys.exit(0 if counted.is_exact else 1)


if __name__ == "__main__":
    main()
