"""The classes of failure in ``docs/testing.md``: what some of them do to a cluster, step by step.

That every kind of fault is survived, in any mixture, is what the seeds show (``test_seeds.py``).
"""

from __future__ import annotations

from random import Random

import pytest

from replog.errors import FrameError
from replog.limits import Limits
from replog.plugins import engine_names, find_engine
from replog.testing.cluster import Cluster
from replog.testing.disk import DiskModel
from replog.testing.nodes import Outcome
from replog.types import NO_NODE
from replog.wire import FrameReader, MessageCodec

ENGINES = pytest.mark.parametrize("engine", engine_names())
LEADER_TICKS = 400


@ENGINES
@pytest.mark.parametrize("is_deaf", [False, True])
def test_one_way_cut_deposes_nobody(engine: str, is_deaf: bool) -> None:
    """A node that hears nothing, or that nobody hears, does not keep the others from working."""
    cluster = led(engine)
    others = [node_id for node_id in cluster.nodes if node_id != 3]
    cluster.cut((other, 3) if is_deaf else (3, other) for other in others)
    leader = cluster.leader()
    for _ in range(10):
        proposal = cluster.propose(cluster.leader(), b"x")
        cluster.tick(20)
        assert proposal.outcome is Outcome.DONE
    assert cluster.leader() == leader


@ENGINES
def test_lost_memory_is_kept_out(engine: str) -> None:
    """A node whose disk was made anew hears from nobody any more, and the others go on."""
    cluster = led(engine)
    cluster.crash(3)
    cluster.wipe(3)
    cluster.restart(3)
    assert cluster.is_out(3)
    done = cluster.propose(cluster.leader(), b"x")
    cluster.tick(100)
    assert done.outcome is Outcome.DONE
    assert not cluster.applied(3)


@ENGINES
def test_failing_disk_stops_the_node(engine: str) -> None:
    """A node whose sync fails answers nothing more; it is silent, not wrong."""
    cluster = led(engine, DiskModel(is_real=True))
    log_disk = cluster.nodes[3].log_disk
    assert log_disk is not None
    log_disk.set_fault(Random(1))
    done = [cluster.propose(cluster.leader(), b"x") for _ in range(3)]
    cluster.tick(5)
    assert {proposal.outcome for proposal in done} == {Outcome.DONE}
    assert not cluster.nodes[3].is_up


@ENGINES
def test_altered_frame_refused(engine: str) -> None:
    """Whichever bit of a frame flips on its way, no message comes out of it."""
    cluster = led(engine)
    cluster.hold(lambda _: True)
    cluster.propose(cluster.leader(), b"x")
    flight = next(iter(cluster.network.held.values()))
    plugin = find_engine(engine)
    codec = MessageCodec(plugin.messages, Limits())
    frame = codec.encode(flight.message)
    for bit in range(8 * len(frame)):
        altered = bytearray(frame)
        altered[bit // 8] ^= 1 << bit % 8
        try:
            assert FrameReader(codec.frame_limits).feed(bytes(altered)) == []
        except FrameError:
            continue


def led(engine: str, disk_model: DiskModel | None = None) -> Cluster:
    """Three nodes, the first or second of them leading."""
    cluster = Cluster(find_engine(engine), node_count=3, disk_model=disk_model)
    cluster.campaign(1)
    assert cluster.run_until(lambda: cluster.leader() != NO_NODE, LEADER_TICKS)
    assert cluster.leader() == 1
    cluster.tick(5)
    return cluster
