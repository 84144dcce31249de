"""What a command that was not answered ends with."""

from __future__ import annotations

from replog.client_actions import Command, Line
from replog.client_core import ClientCore
from replog.client_outcomes import of_deadline
from replog.errors import Unavailable
from replog.frames import FrameCodec, ServerHello
from replog.limits import Limits


def found_leader() -> Line[None]:
    """A line to a leader that has just welcomed the client."""
    codec = FrameCodec(Limits())
    core = ClientCore[Command[None]](codec, requests_max=10, cluster_id="")
    core.hello()
    core.receive(codec.encode(ServerHello(1, "test", 1, 1, ())))
    return Line("127.0.0.1:1", core, 0.0, None)


def test_deadline_when_the_leader_was_just_found() -> None:
    """A command that is not sent is put down to others that wait only where there are some."""
    leading, late = found_leader(), Command[None]("propose", b"late", 0.0, 0.5, None)
    failure = of_deadline(late, leading, "node 1: it does not lead")
    assert isinstance(failure, Unavailable)
    assert "no leader took the command within 0.5 s" in str(failure)
    assert "it does not lead" in str(failure)
    for _ in range(3):
        leading.core.request("propose", b"x", Command[None]("propose", b"x", 0.0, 0.5, None))
    failure = of_deadline(late, leading, "")
    assert "leaves 3 others unanswered" in str(failure)
