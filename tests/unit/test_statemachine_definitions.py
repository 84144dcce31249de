"""What may be declared as a command or query, and how a type checker sees it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
import pytest

from replog.machine import ApplyContext
from replog.statemachine import StateMachine, command, query

ROOT = Path(__file__).resolve().parents[2]


class Counter(StateMachine):
    """A machine to inherit from."""

    def __init__(self) -> None:
        self.total = 0

    @command
    def add(self, amount: int, times: int = 1) -> int:
        self.total += amount * times
        return self.total

    @query
    def value(self) -> int:
        return self.total


def call(machine: StateMachine, *request: object) -> object:
    """Apply the request as a foreign client would have encoded it."""
    return machine.apply(ApplyContext(index=1, time_ms=0), cbor2.dumps(list(request)))


# --- definitions -------------------------------------------------------------------------------


def test_inherit_commands() -> None:
    """A subclass has the commands of its bases and mixins; an override may call super."""

    class Reset:
        total: int

        @command
        def reset(self) -> None:
            self.total = 0

    class Loud(Reset, Counter):
        @command
        def add(self, amount: int, times: int = 1) -> int:
            return super().add(amount * 10, times)

    machine = Loud()
    assert call(machine, "add", 2) == 20
    assert call(machine, "value") == 20
    assert call(machine, "reset") is None
    assert call(machine, "value") == 0
    assert call(Counter(), "add", 2) == 2
    assert set(Counter.calls) == {"add", "value"}
    assert set(Loud.calls) == {"add", "value", "reset"}


def test_define_result_type_unknown() -> None:
    """Only parameters are resolved: a result's type may exist for the type checker alone."""

    class Lazy(StateMachine):
        @query
        def get(self, key: str) -> NotImported:  # type: ignore[name-defined]  # noqa: F821
            return key

    assert call(Lazy(), "get", "k") == "k"


def _async_def() -> None:
    class Bad(StateMachine):
        @command
        async def go(self) -> None: ...


def _generator() -> None:
    class Bad(StateMachine):
        @query
        def go(self) -> Any:
            yield 1


def _no_self() -> None:
    class Bad(StateMachine):
        @command
        def go(amount: int) -> None: ...  # noqa: N805


def _no_parameters() -> None:
    class Bad(StateMachine):
        @command  # type: ignore[arg-type]
        def go() -> None: ...


def _static() -> None:
    class Bad(StateMachine):
        @command
        @staticmethod
        def go(amount: int) -> None: ...


def _star_args() -> None:
    class Bad(StateMachine):
        @command
        def go(self, *amounts: int) -> None: ...


def _star_kwargs() -> None:
    class Bad(StateMachine):
        @command  # type: ignore[arg-type]
        def go(self, **amounts: int) -> None: ...


def _keyword_only() -> None:
    class Bad(StateMachine):
        @command
        def go(self, *, amount: int) -> None: ...


def _base_name() -> None:
    class Bad(StateMachine):
        @command
        def apply(self) -> None: ...  # type: ignore[override]


def _context_name() -> None:
    class Bad(StateMachine):
        @query
        def context(self) -> None: ...  # type: ignore[override]


def _private_name() -> None:
    class Bad(StateMachine):
        @command
        def _go(self) -> None: ...


def _twice() -> None:
    class Bad(StateMachine):
        @command
        def go(self) -> None: ...

        @query  # type: ignore[no-redef]
        def go(self, amount: int) -> None: ...  # noqa: F811


def _alias() -> None:
    class Bad(StateMachine):
        @command
        def go(self) -> None: ...

        walk = go


def _hidden() -> None:
    class Bad(Counter):
        def add(self, amount: int, times: int = 1) -> int:
            return 0


def _unannotated() -> None:
    class Bad(StateMachine):
        @command
        def go(self, amount) -> None: ...  # type: ignore[no-untyped-def]


def _tuple_type() -> None:
    class Bad(StateMachine):
        @command
        def go(self, pair: tuple[int, int]) -> None: ...


def _nested_type() -> None:
    class Bad(StateMachine):
        @command
        def go(self, many: list[set[int]] | None) -> None: ...


def _int_keys() -> None:
    class Bad(StateMachine):
        @command
        def go(self, table: dict[int, str]) -> None: ...


def _two_lists() -> None:
    class Bad(StateMachine):
        @command
        def go(self, many: list[int] | list[str]) -> None: ...


def _unknown_type() -> None:
    class Bad(StateMachine):
        @command
        def go(self, amount: NotImported) -> None: ...  # type: ignore[name-defined]  # noqa: F821


def _bad_default() -> None:
    class Bad(StateMachine):
        @command
        def go(self, amount: int = None) -> None: ...  # type: ignore[assignment]  # noqa: RUF013


@pytest.mark.parametrize(
    ("define", "sentence"),
    [
        (_async_def, "Bad.go is async"),
        (_generator, "Bad.go is a generator"),
        (_no_self, "Bad.go has no self"),
        (_no_parameters, "Bad.go has no self"),
        (_static, "decorate a method, not <staticmethod"),
        (_star_args, r"Bad.go: the parameter '\*amounts' has no place"),
        (_star_kwargs, r"Bad.go: the parameter '\*\*amounts' has no place"),
        (_keyword_only, "Bad.go: the parameter 'amount' has no place"),
        (_base_name, "Bad.apply cannot be a command"),
        (_context_name, "Bad.context cannot be a command"),
        (_private_name, "Bad._go cannot be a command"),
        (_twice, "Bad.go is defined twice"),
        (_alias, "Bad.walk is a second name for the command 'go'"),
        (_hidden, "Bad.add hides a command"),
        (_unannotated, "Bad.go: the parameter 'amount' has no type"),
        (_tuple_type, "Bad.go: the parameter 'pair' has the type .*tuple.*CBOR cannot carry"),
        (_nested_type, r"the parameter 'many' has the type set\[int\]"),
        (_int_keys, "the keys of a dict travel as str only"),
        (_two_lists, "the parameter 'many' has a union of two kinds of list"),
        (_unknown_type, "'amount' is annotated 'NotImported', which is not known in the module"),
        (_bad_default, "the parameter 'amount' has None where int is declared"),
    ],
)
def test_define_mistake(define: Callable[[], None], sentence: str) -> None:
    """A class that cannot be what its author meant is refused when it is made."""
    with pytest.raises(TypeError, match=sentence):
        define()


def test_define_again() -> None:
    """The same class may be defined any number of times, as a reload does."""

    def define() -> type[StateMachine]:
        class Again(StateMachine):
            @command
            def go(self) -> None: ...

        return Again

    assert define().calls.keys() == define().calls.keys() == {"go"}


def test_set_attribute_named_like_command() -> None:
    """An attribute cannot take the name of a command, which would hide it on the instance."""

    class Confused(StateMachine):
        def __init__(self) -> None:
            self.value = 0

        @query  # type: ignore[no-redef]
        def value(self) -> int:
            return 0

    with pytest.raises(
        AttributeError, match=r"Confused.value is a command or query; give the attr"
    ):
        Confused()


# --- types -----------------------------------------------------------------------------------

TYPED = """
from typing import ParamSpec, TypeVar, assert_type
from replog.machine import Machine
from replog.statemachine import Call, StateMachine, command, query

P = ParamSpec("P")
R = TypeVar("R")

class Node:
    async def call(self, call: Call[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        raise NotImplementedError

class Store(StateMachine):
    @command
    def put(self, key: str, value: bytes) -> int:
        return 1

    @query
    def get(self, key: str, default: bytes | None = None) -> bytes | None:
        return default

async def use(node: Node) -> None:
    machine: Machine = Store()
    assert_type(await node.call(Store.put, "k", b"v"), int)
    assert_type(await node.call(Store.get, "k"), bytes | None)
    assert_type(await node.call(Store.get, key="k", default=b""), bytes | None)
    assert_type(Store().put("k", b"v"), int)
    assert_type(Store.put.encode("k", b"v"), bytes)
    await node.call(Store.put, "k", "v")  # mistake
    await node.call(Store.put, "k")  # mistake
    await node.call(Store.put, "k", b"v", 3)  # mistake
    await node.call(Store.get, name="k")  # mistake
    number: int = await node.call(Store.get, "k")  # mistake
    await node.call(Store.remove, "k")  # mistake
    Store().put("k", 3)  # mistake
    Store.put.encode(3, b"v")  # mistake
    Store.put("k", b"v")  # mistake
    Store().put = 3  # mistake
"""


@pytest.mark.slow
def test_types_checked(tmp_path: Path) -> None:
    """A type checker accepts every correct call and refuses every mistaken one."""
    pytest.importorskip("mypy")
    snippet = tmp_path / "snippet.py"
    snippet.write_text(TYPED)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-pretty", str(snippet)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    mistakes = {n for n, line in enumerate(TYPED.splitlines(), 1) if line.endswith("# mistake")}
    found = {int(line.split(":")[1]) for line in checked.stdout.splitlines() if ": error:" in line}
    assert found == mistakes, checked.stdout + checked.stderr
