"""The rules of the house that a program can check: sizes, forbidden texts, public names."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ladder import parsed

import replog
import replog.errors

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = [
    path
    for folder in ("replog", "engines", "statemachines", "bench")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
SERVING = [path for path in SHIPPED if path.relative_to(ROOT).parts[0] != "bench"]
"""What runs in a node; the benchmark may wait for a process."""
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70

PUBLIC_NAMES = {
    "__version__",
    "Client",
    "Session",
    "TermId",
    "StateMachine",
    "command",
    "load_config",
    "Log",
    "open_log",
    "ReadLevel",
    "open_node",
    "query",
}
"""Besides the error classes.  A name that is added or removed here is a change for every user."""

UNSAFE_MODULES = {"pickle", "marshal", "shelve", "dill"}
"""Reading their formats runs code that the sender chose."""


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def forbidden(source: str) -> list[str]:
    """Each thing that code in a node must not hold, as ``line: sentence``."""
    return [f"{line}: {sentence}" for line, sentence in _forbidden(parsed(source))]


def _forbidden(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [name.name for name in node.names]
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
            for module in modules:
                if module.partition(".")[0] in UNSAFE_MODULES:
                    yield node.lineno, f"imports {module}, which runs what the sender chose"
            if modules == ["time"] and "sleep" in names:
                yield node.lineno, "imports time.sleep, which stops every node of the process"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "time.sleep":
            yield node.lineno, "calls time.sleep, which stops every node of the process"
        elif isinstance(node, ast.ExceptHandler) and _swallows(node):
            yield node.lineno, "catches every error and drops it"


def _swallows(handler: ast.ExceptHandler) -> bool:
    caught = ast.unparse(handler.type) if handler.type else "BaseException"
    empty = all(
        isinstance(statement, ast.Pass | ast.Continue)
        or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        for statement in handler.body
    )
    return empty and re.search(r"\b(Base)?Exception\b", caught) is not None


@pytest.mark.parametrize("path", SHIPPED, ids=_name)
def test_file_not_too_long(path: Path) -> None:
    """A file that needs more than 600 lines is two files."""
    lines = len(path.read_text().splitlines())
    assert lines <= FILE_LINES_MAX, f"{_name(path)} has {lines} lines: split it"


@pytest.mark.parametrize("path", SHIPPED, ids=_name)
def test_functions_not_too_long(path: Path) -> None:
    """No function is longer than 70 lines."""
    long = [
        f"{_name(path)}:{node.lineno}: {node.name} has {lines} lines: split it"
        for node in ast.walk(parsed(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert not long, "\n".join(long)


@pytest.mark.parametrize("path", SERVING, ids=_name)
def test_nothing_forbidden(path: Path) -> None:
    """Nodes unpickle nothing, drop no error unseen and never sleep on the loop."""
    problems = [f"{_name(path)}:{problem}" for problem in forbidden(path.read_text())]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "import time\ntime.sleep(1)",
        "from time import sleep",
        "try:\n    f()\nexcept Exception:\n    pass",
        "try:\n    f()\nexcept:\n    ...",
        "try:\n    f()\nexcept (OSError, BaseException):\n    pass",
    ],
)
def test_forbidden_found(source: str) -> None:
    """Each forbidden thing is recognised."""
    assert forbidden(source)


def test_allowed_passes() -> None:
    """A narrow handler, a broad one that does something and trio's sleep are allowed."""
    assert not forbidden(
        "import time, trio\n"
        "try:\n    f()\nexcept OSError:\n    pass\n"
        "try:\n    f()\nexcept Exception as error:\n    stop(error)\n"
        "await trio.sleep(time.monotonic())\n"
    )


@pytest.mark.parametrize("path", TESTS, ids=_name)
def test_tests_state_claims(path: Path) -> None:
    """Every test says in its docstring what it claims."""
    silent = [
        f"{_name(path)}:{node.lineno}: {node.name} claims nothing: give it a docstring"
        for node in ast.walk(parsed(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert not silent, "\n".join(silent)


def test_public_names_fixed() -> None:
    """The public names are the ones that were decided, with every error class among them."""
    errors = {
        name
        for name, value in vars(replog.errors).items()
        if inspect.isclass(value) and issubclass(value, replog.errors.ReplogError)
    }
    assert set(replog.__all__) == PUBLIC_NAMES | errors
    assert len(replog.__all__) == len(set(replog.__all__))
    assert set(replog.__all__) <= set(dir(replog))


@pytest.mark.parametrize("name", sorted(replog.__all__))
def test_public_name_resolves(name: str) -> None:
    """Every public name can be had from the package, and leads to one object."""
    assert getattr(replog, name) is getattr(replog, name)


def test_unknown_name_refused() -> None:
    """A name that is not public is an AttributeError that says so."""
    with pytest.raises(AttributeError, match="no attribute 'nonesuch'"):
        replog.nonesuch  # type: ignore[attr-defined]  # noqa: B018


def test_import_loads_no_network_library() -> None:
    """``import replog`` and its errors load none of trio, structlog and cbor2."""
    script = (
        "import sys, replog; replog.NotLeader; dir(replog); "
        "print(sorted({'trio', 'structlog', 'cbor2'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "[]"
