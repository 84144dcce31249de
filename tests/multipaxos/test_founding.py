"""The sizes of the quorums: from a configuration into the founding record, and to the engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import replog
from replog.config import Config, local_config
from replog.config_text import config_toml
from replog.errors import ConfigError, DirectoryError
from replog.founding import found_cluster, founding_path
from replog.storage.identity import read_founding
from replog_multipaxos import MultiPaxosOptions


def asking_for(folder: Path, phase1: int, phase2: int) -> Config:
    """A configuration of one node or three that asks for these sizes."""
    options = MultiPaxosOptions(phase1_quorum=phase1, phase2_quorum=phase2)
    return local_config(folder, nodes=3, engine="multipaxos", engine_options=options)


def test_sizes_are_recorded(tmp_path: Path) -> None:
    """What a configuration asks for at the founding is in the record."""
    config = asking_for(tmp_path, 3, 1)
    record = founding_path(config, tmp_path / "cluster.toml")
    found_cluster(config, record)
    assert read_founding(record).agreed == (("phase1_quorum", 3), ("phase2_quorum", 1))


def test_impossible_sizes_found_nothing(tmp_path: Path) -> None:
    """Sizes that need not meet are refused before anything is made, by the key that is wrong."""
    config = asking_for(tmp_path, 1, 1)
    record = founding_path(config, tmp_path / "cluster.toml")
    with pytest.raises(ConfigError, match=r"engine\.multipaxos\.phase1_quorum"):
        found_cluster(config, record)
    assert list(tmp_path.iterdir()) == []


def test_impossible_sizes_in_a_file(tmp_path: Path) -> None:
    """A file with such sizes is refused when it is read."""
    path = tmp_path / "cluster.toml"
    path.write_text(config_toml(asking_for(tmp_path, 5, 1)))
    with pytest.raises(ConfigError, match="phase1_quorum: 5 is not 1 to 3"):
        replog.load_config(path)


async def test_other_sizes_later_refused(tmp_path: Path) -> None:
    """A node whose file asks for other sizes than were recorded does not start; one whose file
    leaves them out does."""
    config = asking_for(tmp_path, 3, 1)
    found_cluster(config, founding_path(config, tmp_path / "cluster.toml"))
    other = replace(config, engine_options=MultiPaxosOptions(phase2_quorum=2), source="c.toml")
    sentence = r"c\.toml: engine\.multipaxos\.phase2_quorum: .* founded with 1, not 2"
    with pytest.raises(ConfigError, match=sentence):
        async with replog.open_node(other, node=1):
            pass
    silent = replace(config, engine_options=MultiPaxosOptions())
    async with replog.open_node(silent, node=1) as node:
        assert node.status().engine == "multipaxos"


async def test_directory_of_another_engine_refused(tmp_path: Path) -> None:
    """A directory that Multi-Paxos wrote is refused under another engine's name, and why."""
    config = asking_for(tmp_path, 0, 0)
    found_cluster(config, founding_path(config, tmp_path / "cluster.toml"))
    with pytest.raises(DirectoryError, match="not committed means something else to each"):
        async with replog.open_node(replace(config, engine="other"), node=1):
            pass
