"""The clients' programs in the README run as they are shown."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import trio

from replog.config import config_example

from running import leader_of, running_cluster

README = Path(__file__).parents[2] / "README.md"

pytestmark = pytest.mark.net


CLIENTS = ("replog.Client(", "aio.Client(", "blocking.Client(")
"""What each of the programs opens."""


def client_program(client: str) -> str:
    """The block that opens this client."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    (block,) = [block for block in blocks if client in block]
    return str(block)


@pytest.mark.parametrize("client", CLIENTS)
async def test_client_example_reads_what_it_put(client: str, tmp_path: Path) -> None:
    """Run against three nodes, each client's program prints the value that it has put."""
    program = client_program(client)
    addresses = re.findall(r"127\.0\.0\.1:\d+", program)
    assert len(addresses) == 3
    async with running_cluster(tmp_path) as nodes:
        await leader_of(nodes)
        for address, node in zip(addresses, nodes.values(), strict=True):
            program = program.replace(address, str(node.config.node(node.node_id).client))
        ended = await trio.run_process([sys.executable, "-c", program], capture_stdout=True)
        assert ended.stdout == b"b'hello'\n"


@pytest.mark.parametrize("client", CLIENTS)
def test_client_example_fits_the_example_configuration(client: str) -> None:
    """The addresses in a client's program are those of ``replog config example``."""
    for address in re.findall(r"127\.0\.0\.1:\d+", client_program(client)):
        assert f'client = "{address}"' in config_example()
