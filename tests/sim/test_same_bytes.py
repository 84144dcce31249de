"""A seed is a run: the same bytes in every process, whatever the hash seed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from replog.plugins import engine_names
from replog.testing.sim import SimOptions, Simulation

SEED = 4711


def traced(engine: str, seed: int, hash_seed: str) -> bytes:
    """The whole trace of a seed, from a process of its own."""
    command = [sys.executable, "-m", "replog", "sim", "--engine", engine, "--seed", str(seed)]
    done = subprocess.run(
        [*command, "--trace", "-"],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        stdout=subprocess.PIPE,
        timeout=120,
        check=True,
    )
    return done.stdout


def seed_of(engine: str, is_real: bool) -> int:
    """The first seed, from ``SEED`` on, that runs over the real log, or over the modelled disk."""
    return next(
        seed
        for seed in range(SEED, SEED + 100)
        if Simulation(SimOptions(engine, seed)).is_real is is_real
    )


@pytest.mark.parametrize("is_real", [False, True])
@pytest.mark.parametrize("engine", engine_names())
def test_seed_repeats_under_any_hash_seed(engine: str, is_real: bool) -> None:
    """Two hash seeds make the same trace, byte by byte, with the modelled disk and the real log."""
    seed = seed_of(engine, is_real)
    one = traced(engine, seed, "0")
    assert one.count(b"\n") > 1_000
    assert one == traced(engine, seed, "12345")
