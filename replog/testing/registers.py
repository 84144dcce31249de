"""What simulated clients ask by default: registers by key, and the machine that holds them.

The machine is as small as a machine can be and still show every anomaly: a lost write, a stale
read, a command applied twice.  Each write writes a value that was never written before, and a key
serves for a while and is then left alone, so that histories stay short enough to be judged (see
:mod:`replog.testing.linearizability`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from random import Random
from typing import Final, Protocol

from replog.errors import BadCommand, StateMachineError
from replog.machine import ApplyContext, DumpPage, Machine
from replog.testing.linearizability import Model, Operation, RegisterModel
from replog.testing.nodes import Outcome, Proposal
from replog.testing.queries import Query
from replog.types import record

KEYS_AT_A_TIME: Final = 4
OPERATIONS_PER_KEY: Final = 40

_WORDS: Final = {b"get": 2, b"put": 3, b"cas": 4}


class NoValue(StateMachineError):
    """There is nothing to compare with: what a machine declares is a result like any other."""


class Registers:
    """Registers by key: ``get k``, ``put k v`` and ``cas k old new`` (``-``: no value), which
    raises :class:`NoValue` where a value is expected and there is none."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}

    def apply(self, context: ApplyContext, payload: bytes) -> object:
        """Apply one command; see the class."""
        action, key, *arguments = payload.split(b" ")
        values = self._values
        if action == b"get":
            return values.get(key)
        if action == b"put":
            values[key] = arguments[0]
            return None
        if values.get(key, b"-") != arguments[0]:
            if key not in values:
                raise NoValue(f"{key!r} has no value")
            return False
        values[key] = arguments[1]
        return True

    def answer(self, payload: bytes) -> object:
        """Only ``get`` is a query; see :class:`~replog.machine.Machine`."""
        if not payload.startswith(b"get "):
            raise BadCommand(f"{payload!r} is no query of registers: get k")
        return self._values.get(payload[4:])

    def check_payload(self, payload: bytes) -> None:
        """Refuse what is no command; see :class:`~replog.machine.Machine`."""
        words = payload.split(b" ")
        if _WORDS.get(words[0]) != len(words):
            raise BadCommand(f"{payload!r} is no command of registers: get k, put k v, cas k v w")

    def dump(self, cursor: bytes, items_max: int) -> DumpPage:
        """The registers by key, from the one at ``cursor`` on."""
        keys = [key for key in sorted(self._values) if key >= cursor]
        items = tuple((key, self._values[key]) for key in keys[:items_max])
        return DumpPage(items, keys[items_max] if len(keys) > items_max else None)

    def freeze(self) -> Iterable[bytes]:
        """Each register as its key and its value; see
        :class:`~replog.machine.ConcurrentMachine`."""
        return (b"%b %b " % (key, value) for key, value in sorted(self._values.items()))

    def restore(self, chunks: Iterable[bytes]) -> None:
        """See :class:`~replog.machine.ConcurrentMachine`."""
        words = b"".join(chunks).split(b" ")
        self._values = dict(zip(words[:-1:2], words[1::2], strict=True))


class Workload(Protocol):
    """What the clients of a simulation ask, of which machine, and how the answers are judged."""

    @property
    def command_bytes_max(self) -> int:
        """The largest payload that :meth:`draw` gives; limits are drawn to fit it."""

    def machine(self) -> Machine:
        """A new machine, for one run of one node."""

    def draw(self, random: Random, number: int) -> bytes:
        """The payload of the ``number``-th command, from 1."""

    def draw_query(self, random: Random, number: int) -> bytes:
        """The payload of a query, beside the ``number``-th command; empty: there are none."""

    def model(self) -> Model | None:
        """What the machine means, to judge histories by; ``None``: they are not judged."""

    def operation(self, proposal: Proposal) -> Operation:
        """A proposal that is done or unknown, in the words of the model."""

    def reading(self, query: Query) -> Operation:
        """A linearizable query that was served, in the words of the model."""


class RegisterWorkload:
    """Reads, writes and conditional writes of a few keys at a time."""

    command_bytes_max = 32

    def machine(self) -> Machine:
        """See :class:`Workload`."""
        return Registers()

    def draw(self, random: Random, number: int) -> bytes:
        """See :class:`Workload`; each value is the number of its command."""
        key = key_of(random, number)
        kind = random.random()
        if kind < 0.4:
            return b"get " + key
        if kind < 0.8:
            return b"put %b %d" % (key, number)
        # The chance that an older value is still there falls with its age.
        expected = b"-" if kind < 0.85 else b"%d" % max(1, number - random.randint(1, 20))
        return b"cas %b %b %d" % (key, expected, number)

    def draw_query(self, random: Random, number: int) -> bytes:
        """See :class:`Workload`; a key that is written just now."""
        return b"get " + key_of(random, number)

    def model(self) -> Model | None:
        """See :class:`Workload`."""
        return RegisterModel()

    def operation(self, proposal: Proposal) -> Operation:
        """See :class:`Workload`."""
        action, key, *arguments = proposal.payload.split(b" ")
        values: list[Hashable] = [None if value == b"-" else value for value in arguments]
        is_known = proposal.outcome is Outcome.DONE
        # To the model a comparison with nothing is one that fails.  A second copy in a session is
        # told of the same error by its name.
        is_declared = isinstance(proposal.error, StateMachineError)
        result = False if is_declared else proposal.result
        return Operation(
            client=proposal.client,
            key=key,
            action=(action.decode(), *values),
            result=result,
            invoked=proposal.began,
            returned=proposal.ended if is_known else None,
        )

    def reading(self, query: Query) -> Operation:
        """See :class:`Workload`."""
        action, key = query.payload.split(b" ")
        return Operation(
            client=query.client,
            key=key,
            action=(action.decode(),),
            result=query.result,
            invoked=query.began,
            returned=query.ended,
        )


def key_of(random: Random, number: int) -> bytes:
    """A key that serves while the ``number``-th command is drawn."""
    generation = number // (OPERATIONS_PER_KEY * KEYS_AT_A_TIME)
    return b"k%d" % (generation * KEYS_AT_A_TIME + random.randrange(KEYS_AT_A_TIME))


@record
class DrawnWorkload:
    """Any machine, with payloads from a function; only determinism and agreement are judged.

    Subclass it, or write a :class:`Workload` of your own, to have histories judged as well.
    """

    make_machine: Callable[[], Machine]
    payloads: Sequence[bytes]
    """What is proposed, drawn at random, again and again; one at least."""

    @property
    def command_bytes_max(self) -> int:
        """See :class:`Workload`."""
        return max(map(len, self.payloads), default=0)

    def machine(self) -> Machine:
        """See :class:`Workload`."""
        return self.make_machine()

    def draw(self, random: Random, number: int) -> bytes:
        """See :class:`Workload`."""
        return random.choice(self.payloads)

    def draw_query(self, random: Random, number: int) -> bytes:
        """See :class:`Workload`; there are none."""
        return b""

    def model(self) -> Model | None:
        """See :class:`Workload`."""
        return None

    def operation(self, proposal: Proposal) -> Operation:
        """See :class:`Workload`; never asked for, as there is no model."""
        raise NotImplementedError("histories of this workload are not judged")

    def reading(self, query: Query) -> Operation:
        """See :class:`Workload`; never asked for, as there are no queries."""
        raise NotImplementedError("this workload has no queries")
