"""What a user implements: a class with commands and queries.

A state machine consumes the log: every replica applies the same commands in the same order and so
computes the same state.  That needs commands to be deterministic: no clock
(``self.context.time_ms`` is the replicated time), no randomness, no I/O, no iteration over a set.

::

    class Counter(StateMachine):
        def __init__(self) -> None:
            self.total = 0

        @command
        def add(self, amount: int) -> int:
            self.total += amount
            return self.total

        @query
        def value(self) -> int:
            return self.total

``Counter().add(3)`` is an ordinary call, for a unit test.  ``await node.call(Counter.add, 3)`` and
``await client.call(Counter.add, 3)`` send the same call through the log, type-checked: what a
decorated method is on the *class* is a :class:`Call` that knows its name, arguments and result.

Arguments and results travel as CBOR: None, bool, int (64 bits), float, str, bytes, lists and dicts
of them.  A raised :class:`~replog.errors.StateMachineError` is a replicated result: raise it before
anything is changed, because nothing is rolled back.  Any other exception stops the node, because
skipping an entry would make replicas differ.

**A hostile client must not be able to stop a node**, so the types that a signature declares are
checked twice: when a payload is admitted and again when it is applied.  That the payload is strict
CBOR, and nothing follows it, is checked when it is admitted.

* ``int``, ``str``, ``bytes``, ``float``, ``bool``, ``None``, ``list``, ``dict`` and unions of them
  (``X | None``) are checked exactly: a bool is not an int.  An int where a float is declared
  becomes a float.
* ``list[X]`` and ``dict[str, X]`` are checked to the bottom; plain ``list`` and ``dict`` only at
  the top.
* ``object`` (or ``Any``) is whatever CBOR can carry: the command checks it itself.
* Every other annotation, and a missing one, is refused when the class is made.

What stays with the author are the *values*: a command that divides by its argument, or compares the
items of a plain ``list``, first checks them and raises a declared error.

A query is answered by one replica from its own state, without an entry (``docs/reads.md``), so it
must not change anything: that cannot be enforced here, and one that does makes replicas differ.
One that is proposed as a command goes through the log like any other, and does not wait there
(:class:`~replog.errors.NotYet`).

Its snapshot is its attributes, so a machine whose attributes are None, bools, ints, floats, strs,
bytes, lists and dicts needs nothing more.  Any other writes ``snapshot`` and ``restore``, or
``freeze`` and ``restore`` (:mod:`replog.machine` has their rules, :mod:`replog.chunks` the pieces).
A machine on its own disk derives from :class:`CommandMachine`.

The payload of a call is a CBOR array: the name, then the arguments in the order of the signature.
Names and orders are therefore for ever; a parameter may be added at the end, with a default, and
entries that lack it are applied with the default.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FunctionType, MethodType
from typing import (
    ClassVar,
    Concatenate,
    Final,
    Generic,
    Never,
    ParamSpec,
    TypeAlias,
    TypeVar,
    overload,
)

import cbor2

from replog.argument_kinds import (
    UNFIT,
    MisfitError,
    PlainRun,
    fit_value,
    parameter_kinds,
    plain_kinds,
    plain_run_of_one,
    plain_run_of_two,
    plain_shapes,
)
from replog.attributes import CONTEXT_NAME, pack_attributes, unpack_attributes
from replog.cbor import strict_dumps, strict_loads
from replog.errors import BadCommand, DumpUnavailable, InvalidCommand, NotYet, SchemaError
from replog.machine import NOTHING_APPLIED, ApplyContext, DumpPage, Opened
from replog.quick_calls import NAME_END, QuickRun, head_of, quick_run
from replog.quick_cbor import call_head, pack_call

__all__ = [
    "NOTHING_APPLIED",
    "ApplyContext",
    "Call",
    "CommandMachine",
    "DumpPage",
    "Opened",
    "StateMachine",
    "command",
    "query",
]

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")

_Refusal: TypeAlias = "type[BadCommand] | type[InvalidCommand]"
"""The same sentence is the caller's error at admission and a replicated result at apply."""


class Call(Generic[P, R_co]):
    """A command or query as its class shows it: a name, a signature and how to encode a call.

    On an instance it is the bound method.  Made by :func:`command` and :func:`query`.
    """

    def __init__(self, function: Callable[..., R_co], *, is_query: bool) -> None:
        """Compile the checks of ``function``; raises ``TypeError`` if it cannot be a command."""
        self.name = ""
        """The name on the wire; empty until the class is made."""
        self._head = b""
        """How the payload of a call begins."""
        self.is_query = is_query
        self.function = function
        """Takes the machine, then the arguments."""
        self.__doc__ = function.__doc__
        self._signature = _command_signature(function)
        parameters = self._signature.parameters.values()
        self._names = tuple(parameter.name for parameter in parameters)
        self._kinds = tuple(parameter_kinds(function, parameter) for parameter in parameters)
        self._arity = len(self._names)
        self._arity_min = [p.default is inspect.Parameter.empty for p in parameters].count(True)
        self.plain_requests = frozenset(
            (str, *shape)
            for count in range(self._arity_min, self._arity + 1)
            for shape in plain_shapes(self._kinds[:count])
        )
        """The types of a name and its arguments that need no further check."""

    def __set_name__(self, owner: type, name: str) -> None:
        # The first name stays; a second one is reported when the state machine's class is made,
        # because errors raised here reach the author wrapped in a RuntimeError (Python 3.11).
        self.name = self.name or name
        self._head = call_head(self.name, self._arity)

    @overload
    def __get__(self, instance: None, owner: type) -> Call[P, R_co]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> Callable[P, R_co]: ...

    def __get__(self, instance: object, owner: type) -> Call[P, R_co] | Callable[P, R_co]:
        return self if instance is None else MethodType(self.function, instance)

    def __set__(self, instance: object, value: Never) -> None:
        raise AttributeError(
            f"{type(instance).__name__}.{self.name} is a command or query; give the attribute "
            "another name"
        )

    def __repr__(self) -> str:
        kind = "query" if self.is_query else "command"
        return f"<{kind} {self.name}{self._signature}>"

    def encode(self, *args: P.args, **kwargs: P.kwargs) -> bytes:
        """The payload of one call, with defaults filled in.

        Raises :class:`~replog.errors.BadCommand` for arguments that the signature does not admit.
        Plain positional arguments cost no ``inspect``: only named or left-out ones are bound.
        """
        assert self.name, "a command belongs into the body of a class"
        values: Sequence[object] = args
        if kwargs or len(args) != self._arity:
            values = self._bind(args, kwargs)
        if (str, *map(type, values)) not in self.plain_requests:
            values = self.fit(values, BadCommand)
        return pack_call(self._head, values) or strict_dumps([self.name, *values])

    def plain_run(self) -> PlainRun:
        """A function that runs a decoded request if it is a list of plain arguments, and answers
        ``UNFIT`` if it is not.

        Spelled out for the usual numbers of arguments: checking and passing each one by name takes
        half the time of a check and a call for any number of them.
        """
        function: Callable[..., object] = self.function
        kinds = [plain_kinds(place) for place in self._kinds]
        if self._arity == 1:
            return plain_run_of_one(function, *kinds)
        if self._arity == 2:
            return plain_run_of_two(function, *kinds)
        plain_requests = self.plain_requests

        def run(machine: object, request: list[object]) -> object:
            if type(request) is list and tuple(map(type, request)) in plain_requests:
                return function(machine, *request[1:])
            return UNFIT

        return run

    def quick_run(self, function: Callable[..., object]) -> tuple[bytes, QuickRun] | None:
        """How the usual payloads of this call begin, and what passes their arguments to
        ``function`` (:mod:`replog.quick_calls`); ``None`` where the signature is another one."""
        return quick_run(self.name, function, [plain_kinds(place) for place in self._kinds])

    def _bind(self, args: Sequence[object], kwargs: Mapping[str, object]) -> Sequence[object]:
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise BadCommand(f"{self.name}{self._signature}: {error}") from None
        bound.apply_defaults()
        return bound.args

    def fit(self, values: Sequence[object], refusal: _Refusal) -> Sequence[object]:
        """Check the arguments one by one and return them, or raise ``refusal``.

        The sentence is a replicated result, so it is made of nothing that differs between
        replicas, such as the repr of an annotation.
        """
        if not self._arity_min <= len(values) <= self._arity:
            wanted = f"{self._arity_min} to {self._arity}"
            if self._arity_min == self._arity:
                wanted = str(self._arity)
            raise refusal(
                f"{self.name} takes {wanted} arguments ({', '.join(self._names)}), "
                f"not {len(values)}"
            )
        fitted: list[object] = []
        for name, kinds, value in zip(self._names, self._kinds, values, strict=False):
            try:
                fitted.append(fit_value(kinds, value))
            except MisfitError as misfit:
                raise refusal(f"{self.name}: the argument {name!r} has {misfit}") from None
        return fitted


def command(function: Callable[Concatenate[S, P], R]) -> Call[P, R]:
    """Make a method a command: a call that goes through the log and may change the state.

    Raises ``TypeError``, while the class is made, for what cannot be a command: no ``self``,
    ``async def``, a generator, ``*args``, keyword-only parameters, a parameter without a type that
    CBOR can carry, a name that the class body already gave to another command.
    """
    _check_unique(function)
    return Call(function, is_query=False)


def query(function: Callable[Concatenate[S, P], R]) -> Call[P, R]:
    """Make a method a query: like a command, but it must leave the state as it is.

    Nothing enforces that.  Raises like :func:`command`.
    """
    _check_unique(function)
    return Call(function, is_query=True)


class CommandMachine:
    """The commands of a state machine: implements :class:`~replog.machine.Machine` by table.

    The base of a machine on its own disk, which adds the methods of
    :class:`~replog.machine.DurableMachine`; every other one derives from :class:`StateMachine`.
    """

    context: ApplyContext = ApplyContext(index=0, time_ms=0)
    """The index and the time of the command being applied; set before each one.  While the machine
    is filled from a snapshot, those as of which that was taken.

    An attribute and not a parameter, so that a command's signature is exactly what is sent.  A
    unit test of a command that reads it sets it.
    """

    _runs: ClassVar[Mapping[str, PlainRun]] = {}
    _quick_runs: ClassVar[Mapping[bytes, QuickRun]] = {}
    """By how a payload begins, what runs it; of the calls for which there is such a thing."""
    _quick_queries: ClassVar[Mapping[bytes, QuickRun]] = {}
    """The same of the queries alone."""
    _quick_checks: ClassVar[Mapping[bytes, QuickRun]] = {}
    """The same, but for what does nothing."""
    calls: ClassVar[Mapping[str, Call[..., object]]] = {}
    """Every command and query of the class, by name."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.calls = _collect_calls(cls)
        cls._runs = {name: call.plain_run() for name, call in cls.calls.items()}
        calls = cls.calls.values()
        cls._quick_runs = dict(filter(None, [call.quick_run(call.function) for call in calls]))
        cls._quick_checks = dict(filter(None, [call.quick_run(_do_nothing) for call in calls]))
        queries = [call for call in calls if call.is_query]
        cls._quick_queries = dict(filter(None, [call.quick_run(call.function) for call in queries]))
        _check_snapshot_methods(cls)

    def apply(self, context: ApplyContext, payload: bytes) -> object:
        """Apply one command and return its result; see :meth:`replog.machine.Machine.apply`.

        Raises :class:`~replog.errors.InvalidCommand` for a payload that is no command of this
        class; it is a replicated result, so what is hostile or too new cannot stop the node.
        """
        self.context = context
        try:
            # head_of, spelled out: this is run for every command on every replica.
            quick = self._quick_runs.get(payload[: payload[1] - NAME_END])
        except IndexError:
            quick = None
        if quick is not None:
            try:
                result = quick(self, payload)
            except NotYet as nothing:
                return nothing.result  # a query that was proposed; what is applied cannot wait
            if result is not UNFIT:
                return result
        return self._apply_decoded(payload)

    def _apply_decoded(self, payload: bytes) -> object:
        """Apply what :mod:`replog.quick_calls` does not know."""
        # Most are still a name and plain arguments.  Their encoding was checked when they were
        # admitted, so it is not checked again: that would take a third of the time.
        try:
            request = cbor2.loads(payload)
            run = self._runs[request[0]]
        except (cbor2.CBORError, LookupError, TypeError, ValueError):
            return self._apply_strictly(payload)
        try:
            result = run(self, request)
        except NotYet as nothing:
            return nothing.result
        return self._apply_strictly(payload) if result is UNFIT else result

    def _apply_strictly(self, payload: bytes) -> object:
        """Apply what is no plain call, or find out why it is no call at all."""
        try:
            request = strict_loads(payload)
        except SchemaError:
            # The cause is left out: its words may differ between releases of the decoder.
            raise InvalidCommand("the payload is not one strict CBOR value") from None
        call, arguments = self._match(request, InvalidCommand)
        try:
            return call.function(self, *arguments)
        except NotYet as nothing:
            return nothing.result

    def answer(self, payload: bytes) -> object:
        """Run a query on the state as it is; see :meth:`replog.machine.Machine.answer`.

        ``context`` is that of the last command.  Raises :class:`~replog.errors.BadCommand` for a
        command.
        """
        quick = self._quick_queries.get(head_of(payload))
        if quick is not None and (result := quick(self, payload)) is not UNFIT:
            return result
        call, arguments = self._matched(payload)
        if not call.is_query:
            raise BadCommand(f"{call.name} is a command, which goes through the log; propose it")
        return call.function(self, *arguments)

    def check_payload(self, payload: bytes) -> None:
        """Raise :class:`~replog.errors.BadCommand` unless ``payload`` is a command of this class.

        What :meth:`Call.encode` of this class made always passes.
        """
        check = self._quick_checks.get(head_of(payload))
        if check is None or check(self, payload) is UNFIT:
            self._matched(payload)

    def _matched(self, payload: bytes) -> tuple[Call[..., object], Sequence[object]]:
        """The call that a payload is, with its arguments; raises ``BadCommand`` if it is none."""
        try:
            request = strict_loads(payload)
        except SchemaError as error:
            raise BadCommand(f"the payload is not one strict CBOR value: {error}") from None
        return self._match(request, BadCommand)

    def _match(
        self, request: object, refusal: _Refusal
    ) -> tuple[Call[..., object], Sequence[object]]:
        """The call that ``request`` names, with arguments that fit it."""
        if type(request) is not list or not request or type(request[0]) is not str:
            raise refusal("the payload is not an array of a command's name and its arguments")
        call = self.calls.get(request[0])
        if call is None:
            # !a and not !r: what is printable differs between releases of Python.
            raise refusal(f"there is no command or query named {request[0][:64]!a}")
        arguments: Sequence[object] = request[1:]
        if tuple(map(type, request)) not in call.plain_requests:
            arguments = call.fit(arguments, refusal)
        return call, arguments

    def dump(self, cursor: bytes, items_max: int) -> DumpPage:
        """A page of the instance's attributes as ``[name, value]``, in the order of their names.

        Good for small machines; one with a large state overrides this.  Raises
        :class:`~replog.errors.DumpUnavailable` when an attribute holds what CBOR cannot carry.
        ``context`` is left out, and attributes in ``__slots__`` are not seen.
        """
        assert items_max >= 1
        names = sorted(
            name for name in vars(self) if name != CONTEXT_NAME and name.encode() > cursor
        )
        items = [[name, self._picture(name)] for name in names[:items_max]]
        more = len(names) > items_max
        return DumpPage(items=items, cursor=names[items_max - 1].encode() if more else None)

    def _picture(self, name: str) -> object:
        """A copy of one attribute, so that a page does not change with the state."""
        try:
            return strict_loads(strict_dumps(vars(self)[name]))
        except (BadCommand, SchemaError) as error:
            raise DumpUnavailable(
                f"the attribute {name!r} of {type(self).__name__} cannot be shown ({error}); give "
                "the class a dump() of its own"
            ) from None


def _do_nothing(machine: object, *arguments: object) -> None:
    """Stands in for a call of which only the arguments are to be looked at."""


def _check_snapshot_methods(cls: type[CommandMachine]) -> None:
    """Refuse methods of which one could not read what the other wrote.

    ``restore`` reads what ``freeze`` made, and where there is none, what ``snapshot`` made; so one
    class defines both of them, and no class below it replaces only one.
    """
    places: dict[str, int] = {}
    for name in ("snapshot", "freeze", "restore"):
        place = next((n for n, owner in enumerate(cls.__mro__) if name in vars(owner)), None)
        # A command of that name takes no snapshot.
        if place is not None and not isinstance(vars(cls.__mro__[place])[name], Call):
            places[name] = place
    nowhere = len(cls.__mro__)
    restored_at = places.get("restore", nowhere)
    snapshot_at = places.get("snapshot", nowhere)
    # A snapshot() below the other two would never be called.
    if places.get("freeze", snapshot_at) != restored_at or snapshot_at < restored_at:
        raise TypeError(
            f"{cls.__name__} has snapshot(), freeze() or restore() from different classes, and one "
            "could not read what the other wrote; define restore() in the same class body as "
            "freeze(), or as snapshot() where there is no freeze()"
        )


def _collect_calls(cls: type[CommandMachine]) -> dict[str, Call[..., object]]:
    """The table of a class; raises ``TypeError`` for names that would not mean what they say."""
    table: dict[str, Call[..., object]] = {}
    for owner in reversed(cls.__mro__):
        for name, value in vars(owner).items():
            if not isinstance(value, Call):
                if name in table:
                    raise TypeError(
                        f"{owner.__name__}.{name} hides a command; decorate it with @command or "
                        "@query, or rename it"
                    )
                continue
            if name in _BASE_NAMES or name.startswith("_"):
                raise TypeError(
                    f"{owner.__name__}.{name} cannot be a command: the name belongs to "
                    "StateMachine or is private; rename it"
                )
            if value.name != name:
                raise TypeError(
                    f"{owner.__name__}.{name} is a second name for the command {value.name!r}; "
                    "define a command of its own"
                )
            table[name] = value
    return table


class StateMachine(CommandMachine):
    """The base of a state machine in memory: commands, and snapshots of its attributes.

    A subclass needs no ``super().__init__()``.  Commands are inherited, also from plain mixins; an
    override is decorated again and may call ``super()``.
    """

    def snapshot(self) -> Iterable[bytes]:
        """All attributes but ``context``; see :meth:`replog.machine.SnapshotMachine.snapshot`.

        Raises :class:`~replog.errors.SnapshotUnavailable` for an attribute that CBOR would not give
        back as the very same (:mod:`replog.attributes`), and for ``__slots__``.
        """
        return pack_attributes(self)

    def restore(self, chunks: Iterable[bytes]) -> None:
        """Replace all attributes but ``context`` by those of a snapshot; one that it lacks is gone.

        Raises :class:`~replog.errors.SnapshotDamaged` and :class:`~replog.errors.UnknownFormat`,
        and changes nothing then.
        """
        found = unpack_attributes(chunks)
        attributes = vars(self)
        for name in [name for name in attributes if name != CONTEXT_NAME]:
            del attributes[name]
        attributes.update(found)


_BASE_NAMES: Final = frozenset(
    name for base in (StateMachine, CommandMachine, object) for name in vars(base)
)


def _check_unique(function: object) -> None:
    """Refuse a second command of the same name in one class body, which would replace the first.

    A class's namespace shows only the last one, so this looks while the body still runs.
    """
    frame = inspect.currentframe()
    decorator = frame.f_back if frame else None
    body = decorator.f_back if decorator else None
    name = getattr(function, "__name__", "")
    if body is not None and isinstance(body.f_locals.get(name), Call):
        raise TypeError(f"{getattr(function, '__qualname__', name)} is defined twice; rename one")


def _command_signature(function: object) -> inspect.Signature:
    """The signature without ``self``; raises ``TypeError`` for what cannot be a command."""
    if not isinstance(function, FunctionType):
        raise TypeError(f"@command and @query decorate a method, not {function!r}")
    name = function.__qualname__
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{name} is async; a command is synchronous, so that none half-finishes")
    if inspect.isgeneratorfunction(function):
        raise TypeError(f"{name} is a generator, whose body would not run; return a list instead")
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    if not parameters or parameters[0].name != "self":
        raise TypeError(f"{name} has no self; make it the first parameter")
    for parameter in parameters:
        if parameter.kind not in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        ):
            raise TypeError(
                f"{name}: the parameter {str(parameter).split(':')[0]!r} has no place of its own; "
                "commands take neither *args, **kwargs nor keyword-only parameters"
            )
    return signature.replace(parameters=parameters[1:])
