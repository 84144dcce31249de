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

Queries travel through the log like commands, which makes them linearizable.  A query must not
change state; that cannot be enforced here, and one that does will break when queries are answered
without an entry.

The payload of a call is a CBOR array: the name, then the arguments in the order of the signature.
Names and orders are therefore for ever; a parameter may be added at the end, with a default, and
entries that lack it are applied with the default.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from types import FunctionType, MethodType, NoneType, UnionType
from typing import (
    Any,
    ClassVar,
    Concatenate,
    Final,
    Generic,
    Never,
    NewType,
    ParamSpec,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    overload,
)

import cbor2

from replog.cbor import strict_dumps, strict_loads
from replog.errors import BadCommand, DumpUnavailable, InvalidCommand, SchemaError
from replog.machine import ApplyContext, DumpPage

__all__ = ["ApplyContext", "Call", "DumpPage", "StateMachine", "command", "query"]

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")

SHAPES_MAX: Final = 64
"""Above so many combinations of argument types, a call's arguments are checked one by one."""

_Fit: TypeAlias = "Callable[[object], object]"
"""Checks a value to the bottom and returns it, or raises :class:`_MisfitError`."""

_Run: TypeAlias = "Callable[[object, list[object]], object]"
"""Runs a decoded request on a machine, or answers ``_UNFIT``."""

_UNFIT: Final = object()
_Kinds: TypeAlias = "Mapping[type, _Fit | None]"
"""The exact types that a place accepts; ``None``: the type alone is enough."""

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
        self.is_query = is_query
        self.function = function
        """Takes the machine, then the arguments."""
        self.__doc__ = function.__doc__
        self._signature = _command_signature(function)
        parameters = self._signature.parameters.values()
        self._names = tuple(parameter.name for parameter in parameters)
        self._kinds = tuple(_parameter_kinds(function, parameter) for parameter in parameters)
        self._arity = len(self._names)
        self._arity_min = [p.default is inspect.Parameter.empty for p in parameters].count(True)
        self.plain_requests = frozenset(
            (str, *shape)
            for count in range(self._arity_min, self._arity + 1)
            for shape in _plain_shapes(self._kinds[:count])
        )
        """The types of a name and its arguments that need no further check."""

    def __set_name__(self, owner: type, name: str) -> None:
        # The first name stays; a second one is reported when the state machine's class is made,
        # because errors raised here reach the author wrapped in a RuntimeError (Python 3.11).
        self.name = self.name or name

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
        return strict_dumps([self.name, *values])

    def plain_run(self) -> _Run:
        """A function that runs a decoded request if it is a list of plain arguments, and answers
        ``_UNFIT`` if it is not.

        Spelled out for the usual numbers of arguments: checking and passing each one by name takes
        half the time of a check and a call for any number of them.
        """
        function: Callable[..., object] = self.function
        kinds = [_plain_kinds(place) for place in self._kinds]
        if self._arity == 1:
            return _plain_run_of_one(function, *kinds)
        if self._arity == 2:
            return _plain_run_of_two(function, *kinds)
        plain_requests = self.plain_requests

        def run(machine: object, request: list[object]) -> object:
            if type(request) is list and tuple(map(type, request)) in plain_requests:
                return function(machine, *request[1:])
            return _UNFIT

        return run

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
                fitted.append(_fit_value(kinds, value))
            except _MisfitError as misfit:
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


class StateMachine:
    """The base of a state machine: implements :class:`~replog.machine.Machine` by table.

    A subclass needs no ``super().__init__()``.  Commands are inherited, also from plain mixins; an
    override is decorated again and may call ``super()``.
    """

    context: ApplyContext = ApplyContext(index=0, time_ms=0)
    """The index and the time of the command being applied; set before each one.

    An attribute and not a parameter, so that a command's signature is exactly what is sent.  A
    unit test of a command that reads it sets it.
    """

    _runs: ClassVar[Mapping[str, _Run]] = {}
    calls: ClassVar[Mapping[str, Call[..., object]]] = {}
    """Every command and query of the class, by name."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.calls = _collect_calls(cls)
        cls._runs = {name: call.plain_run() for name, call in cls.calls.items()}

    def apply(self, context: ApplyContext, payload: bytes) -> object:
        """Apply one command and return its result; see :meth:`replog.machine.Machine.apply`.

        Raises :class:`~replog.errors.InvalidCommand` for a payload that is no command of this
        class; it is a replicated result, so what is hostile or too new cannot stop the node.
        """
        self.context = context
        # Most calls are a name and plain arguments.  Their encoding was checked when they were
        # admitted, so it is not checked again: that would take a third of the time.
        try:
            request = cbor2.loads(payload)
            run = self._runs[request[0]]
        except (cbor2.CBORError, LookupError, TypeError, ValueError):
            return self._apply_strictly(payload)
        result = run(self, request)
        return self._apply_strictly(payload) if result is _UNFIT else result

    def _apply_strictly(self, payload: bytes) -> object:
        """Apply what is no plain call, or find out why it is no call at all."""
        try:
            request = strict_loads(payload)
        except SchemaError:
            # The cause is left out: its words may differ between releases of the decoder.
            raise InvalidCommand("the payload is not one strict CBOR value") from None
        call, arguments = self._match(request, InvalidCommand)
        return call.function(self, *arguments)

    def check_payload(self, payload: bytes) -> None:
        """Raise :class:`~replog.errors.BadCommand` unless ``payload`` is a command of this class.

        What :meth:`Call.encode` of this class made always passes.
        """
        try:
            request = strict_loads(payload)
        except SchemaError as error:
            raise BadCommand(f"the payload is not one strict CBOR value: {error}") from None
        self._match(request, BadCommand)

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
        names = sorted(name for name in vars(self) if name != "context" and name.encode() > cursor)
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


_BASE_NAMES: Final = frozenset(vars(StateMachine)) | frozenset(vars(object))


def _collect_calls(cls: type[StateMachine]) -> dict[str, Call[..., object]]:
    """The table of a class; raises ``TypeError`` for names that would not mean what they say."""
    table: dict[str, Call[..., object]] = {}
    for owner in reversed(cls.__mro__):
        if owner is StateMachine or owner is object:
            continue
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


# What follows compiles annotations into checks, once per class.


class _MisfitError(Exception):
    """A value is not of a declared type; the text says what it is and what was wanted."""


def _float_fit(value: object) -> object:
    assert type(value) is int
    return float(value)


_ANYTHING: Final[_Kinds] = dict.fromkeys((NoneType, bool, int, float, str, bytes, list, dict))
_NAMED_KINDS: Final[Mapping[object, _Kinds]] = {
    **{kind: {kind: None} for kind in (NoneType, bool, int, str, bytes, list, dict)},
    None: {NoneType: None},
    float: {float: None, int: _float_fit},
    object: _ANYTHING,
    Any: _ANYTHING,
}


def _parameter_kinds(function: Callable[..., object], parameter: inspect.Parameter) -> _Kinds:
    """What one parameter accepts; its default must be acceptable too."""
    where = f"{function.__qualname__}: the parameter {parameter.name!r}"
    annotation: object = parameter.annotation
    if annotation is inspect.Parameter.empty:
        raise TypeError(f"{where} has no type; annotate it, with object to check it yourself")
    if isinstance(annotation, str):
        # Parameters are resolved one by one: a result's type may be known to the checker alone.
        try:
            annotation = eval(annotation, inspect.unwrap(function).__globals__)
        except Exception as error:
            raise TypeError(
                f"{where} is annotated {annotation!r}, which is not known in the module ({error}); "
                "import or define it at the top level"
            ) from error
    try:
        kinds = _annotation_kinds(annotation)
        if parameter.default is not inspect.Parameter.empty:
            _fit_value(kinds, parameter.default)
    except _MisfitError as misfit:
        raise TypeError(f"{where} has {misfit}") from None
    return kinds


def _annotation_kinds(annotation: object) -> _Kinds:
    """Compile one annotation; raises :class:`_MisfitError` for what cannot be checked or sent."""
    if isinstance(annotation, NewType):
        return _annotation_kinds(annotation.__supertype__)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Union or origin is UnionType:
        return _union_kinds([_annotation_kinds(member) for member in arguments])
    if origin is list:
        items = _annotation_kinds(arguments[0])
        return {list: None if items is _ANYTHING else _list_fit(items)}
    if origin is dict:
        if arguments[0] is not str:
            raise _MisfitError(
                f"the type {annotation!r}, but the keys of a dict travel as str only"
            )
        items = _annotation_kinds(arguments[1])
        return {dict: None if items is _ANYTHING else _dict_fit(items)}
    # An annotation need not be hashable, so the table is searched by identity.
    for known, kinds in _NAMED_KINDS.items():
        if annotation is known:
            return kinds
    raise _MisfitError(
        f"the type {annotation!r}, which CBOR cannot carry; use None, bool, int, float, str, "
        "bytes, list, dict or a union of them, or object to check it yourself"
    )


def _union_kinds(members: Sequence[_Kinds]) -> _Kinds:
    merged: dict[type, _Fit | None] = {}
    for member in members:
        for kind, fit in member.items():
            if kind in merged and kind in (list, dict) and (fit or merged[kind]):
                raise _MisfitError(f"a union of two kinds of {kind.__name__}; declare one")
            # An int that is declared itself stays an int, also beside a float.
            merged[kind] = fit if kind not in merged else None
    return merged


def _list_fit(items: _Kinds) -> _Fit:
    def fit_list(value: object) -> object:
        assert type(value) is list
        return [_fit_value(items, item) for item in value]

    return fit_list


def _dict_fit(items: _Kinds) -> _Fit:
    def fit_dict(value: object) -> object:
        assert type(value) is dict
        # The keys need no look: no other keys than str are ever read or sent.
        return {key: _fit_value(items, item) for key, item in value.items()}

    return fit_dict


def _fit_value(kinds: _Kinds, value: object) -> object:
    """The value, of an accepted type to the bottom; raises :class:`_MisfitError`."""
    kind = type(value)
    if kind not in kinds:
        wanted = " or ".join(_kind_name(accepted) for accepted in kinds)
        raise _MisfitError(f"{_kind_name(kind)} where {wanted} is declared")
    fit = kinds[kind]
    return value if fit is None else fit(value)


def _kind_name(kind: type) -> str:
    return "None" if kind is NoneType else kind.__name__


def _plain_kinds(kinds: _Kinds) -> frozenset[type]:
    """The types of an argument that need no look inside the value."""
    return frozenset(kind for kind, fit in kinds.items() if fit is None)


def _plain_run_of_one(function: Callable[..., object], kinds: frozenset[type]) -> _Run:
    def run(machine: object, request: list[object]) -> object:
        if type(request) is list and len(request) == 2:
            _, first = request
            if type(first) in kinds:
                return function(machine, first)
        return _UNFIT

    return run


def _plain_run_of_two(
    function: Callable[..., object], first_kinds: frozenset[type], second_kinds: frozenset[type]
) -> _Run:
    def run(machine: object, request: list[object]) -> object:
        if type(request) is list and len(request) == 3:
            _, first, second = request
            if type(first) in first_kinds and type(second) in second_kinds:
                return function(machine, first, second)
        return _UNFIT

    return run


def _plain_shapes(kinds: Sequence[_Kinds]) -> list[tuple[type, ...]]:
    """Every combination of argument types that needs no look inside a value.

    One lookup of ``tuple(map(type, arguments))`` then checks a whole call, number of arguments
    included; what is not found here is checked one by one.
    """
    plain = [list(_plain_kinds(place)) for place in kinds]
    if math.prod(map(len, plain)) > SHAPES_MAX:
        return []
    return list(product(*plain))
