"""The client's program in the README runs as it is shown."""

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


def client_program() -> str:
    """The block that uses ``replog.Client``."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    (block,) = [block for block in blocks if "replog.Client" in block]
    return str(block)


async def test_client_example_reads_what_it_put(tmp_path: Path) -> None:
    """Run against three nodes, the client's program prints the value that it has put."""
    addresses = re.findall(r"127\.0\.0\.1:\d+", client_program())
    assert len(addresses) == 3
    async with running_cluster(tmp_path) as nodes:
        await leader_of(nodes)
        program = client_program()
        for address, node in zip(addresses, nodes.values(), strict=True):
            program = program.replace(address, str(node.config.node(node.node_id).client))
        ended = await trio.run_process([sys.executable, "-c", program], capture_stdout=True)
        assert ended.stdout == b"b'hello'\n"


def test_client_example_fits_the_example_configuration() -> None:
    """The addresses in the client's program are those of ``replog config example``."""
    for address in re.findall(r"127\.0\.0\.1:\d+", client_program()):
        assert f'client = "{address}"' in config_example()
