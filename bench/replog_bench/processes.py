"""The child processes of a measurement: started, heard, bounded in time and always ended.

A child says its results on stdout, one JSON object per line; the first line says that it is ready
(and, say, on which port).  What it is told comes the same way on its stdin.  Children die with the
block that started them, on errors and Ctrl-C as well; should this process be killed outright, each
child's own alarm ends it.
"""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from types import TracebackType
from typing import IO, TypeAlias

from replog.errors import ReplogError

Line: TypeAlias = Mapping[str, object]

STOP_SECONDS = 2.0
"""How long a child may take to end when it is asked to, before it is killed."""


class ChildFailed(ReplogError):
    """A child process ended, or stayed silent, when a line was expected of it."""


def limit_lifetime(seconds: float) -> None:
    """Have the kernel end *this* process after ``seconds``, whatever it is doing."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def say(**line: object) -> None:
    """Give the parent one line."""
    print(json.dumps(line), flush=True)


def hear() -> Line:
    """The parent's next line; blocks.  Ends this process when the parent is gone."""
    line = sys.stdin.readline()
    if not line:
        sys.exit("the parent ended")
    heard = json.loads(line)
    assert isinstance(heard, dict)
    return heard


@dataclass
class Child:
    """One started process."""

    name: str
    process: subprocess.Popen[bytes]
    messages: IO[bytes]
    """Where its stderr goes."""
    buffer: bytearray = field(default_factory=bytearray)

    def tell(self, **line: object) -> None:
        """Give the child one line; raises :class:`ChildFailed` when it has ended."""
        stdin = self.process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(line).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise ChildFailed(f"{self.name} ended{self._last_words()}") from None

    def line(self, seconds: float) -> Line:
        """The next line it says; raises :class:`ChildFailed` when none comes within ``seconds``."""
        stdout = self.process.stdout
        assert stdout is not None
        deadline = monotonic() + seconds
        while b"\n" not in self.buffer:
            readable, _, _ = select.select([stdout], [], [], max(0.0, deadline - monotonic()))
            data = stdout.read1() if readable else b""  # type: ignore[attr-defined]
            if not data:
                what = "ended" if readable else f"said nothing for {seconds:g} s"
                raise ChildFailed(f"{self.name} {what}{self._last_words()}")
            self.buffer += data
        line, _, rest = bytes(self.buffer).partition(b"\n")
        self.buffer[:] = rest
        said = json.loads(line)
        assert isinstance(said, dict)
        return said

    def release(self) -> None:
        """Wait for its end, which is certain, and close its pipes."""
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        self.messages.close()

    def _last_words(self) -> str:
        self.messages.seek(0)
        words = self.messages.read().decode(errors="replace").strip()
        return f": {words[-2000:]}" if words else " without a message"


class Processes:
    """A block's children: ``with Processes() as processes: processes.start(...)``."""

    def __init__(self) -> None:
        self._children: list[Child] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for child in self._children:
            child.process.terminate()
        deadline = monotonic() + STOP_SECONDS
        for child in self._children:
            try:
                child.process.wait(max(0.0, deadline - monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
            child.release()

    def kill(self, child: Child) -> None:
        """End one of them at once, as a crash would."""
        self._children.remove(child)
        child.process.kill()
        child.release()

    def start(self, name: str, module: str, arguments: Sequence[str]) -> Child:
        """Run ``python -m module arguments``."""
        messages = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the block
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
        )
        child = Child(name, process, messages)
        self._children.append(child)
        return child
