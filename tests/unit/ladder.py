"""The import ladder: who may import whom, and what the deterministic core must not touch.

Every module under ``replog/``, ``engines/``, ``statemachines/`` and ``bench/`` stands on a rung and
imports from lower rungs, or from its own rung within its own package.  The rules are judged on the
syntax tree, so an import inside a function or under ``TYPE_CHECKING`` counts as well; what
is imported for types only may come from any outside package, but not from a higher rung.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSION = "replog.__version__"
SOURCE_ROOTS = (".", "engines", "statemachines", "bench")
ENGINES = sorted(at.name.removeprefix("replog_") for at in (ROOT / "engines").glob("replog_*"))


@dataclass(frozen=True)
class Rung:
    """A step of the ladder; the order of ``LADDER`` is from the ground up."""

    name: str
    modules: tuple[str, ...]
    """Patterns of module names; ``x.*`` is everything within the package ``x``."""
    outside: frozenset[str] = frozenset()
    """Packages beyond the standard library that may be imported at run time."""
    pure: bool = False
    """No clock, randomness, I/O or thread, and no order that can differ between two runs."""
    never: tuple[str, ...] = ()
    """Lower rungs that are out of reach all the same."""


LADDER = (
    Rung("records", ("replog.types", "replog.errors", "replog.limits"), pure=True),
    Rung(
        "parts",
        (
            "replog.quorum",
            "replog.progress",
            "replog.runs",
            "replog.stored_log",
            "replog.tail",
            "replog_raft.logview",
            "replog.jitter",
            "replog.epoch",
            "replog.reads",
            "replog.agreements",
            "replog.leases",
            "replog.sessions",
            "replog.control",
            "replog.envelope",
            "replog.entries",
            "replog.machine",
            "replog.chunks",
            "replog.changes",
            "replog.pages",
            "replog.formation",
        ),
        pure=True,
    ),
    # A judge of histories shares nothing with what it judges, and judges alike every time.
    Rung("histories", ("replog.testing.linearizability",), pure=True, never=("parts",)),
    Rung("contract", ("replog.engine",), pure=True),
    Rung("engines", ("replog_ENGINE", "replog_ENGINE.*"), pure=True),
    # What is compared is what clients are told, in the encoding in which they are told it.
    Rung("digests", ("replog.digests",), outside=frozenset({"cbor2"}), pure=True),
    Rung(
        "replica",
        ("replog.replica", "replog.queries", "replog.logpages"),
        pure=True,
        never=("engines",),
    ),
    Rung(
        "formats",
        (
            "replog.wire",
            "replog.wire.*",
            "replog.cbor",
            "replog.quick_cbor",
            "replog.frames",
            "replog.requests",
            "replog.storage",
            "replog.storage.*",
            "replog.argument_kinds",
            "replog.quick_calls",
            "replog.attributes",
            "replog.statemachine",
            "replog.transport",
            "replog.transport.protocol",
            "replog.transport.memory",
            # The number stands in the package's own module, and asking for it loads nothing.
            VERSION,
        ),
        outside=frozenset({"cbor2"}),
        never=("engines", "replica"),
    ),
    # Between nodes, without an engine, a socket, a thread or a file of its own.
    Rung(
        "transfer",
        (
            "replog.transfer",
            "replog.transfer_*",
            "replog.comparison_messages",
            "replog.node_messages",
        ),
        pure=True,
        never=("engines", "replica"),
    ),
    Rung("loading", ("replog.loading",), never=("engines",)),
    Rung(
        "turns",
        (
            "replog.turns",
            "replog.admission",
            "replog.snapshots",
            "replog.comparison",
            "replog.handing_over",
        ),
        pure=True,
        never=("engines",),
    ),
    Rung(
        "configuration",
        (
            "replog.plugins",
            "replog.config",
            "replog.config_*",
            "replog.address",
            "replog.free_ports",
            "replog.founding",
            "replog.backup",
        ),
        never=("engines", "replica"),
    ),
    # All that a client decides, as values: whoever drives them has the sockets and the clock.
    Rung(
        "client core",
        (
            "replog.client_actions",
            "replog.client_core",
            "replog.client_lines",
            "replog.client_logic",
            "replog.client_outcomes",
            "replog.client_questions",
            "replog.client_queue",
            "replog.client_search",
            "replog.client_pauses",
            "replog.client_session",
        ),
        pure=True,
        never=("engines", "replica"),
    ),
    # The clients that need no trio; what they share with the one that does stands here too.
    Rung(
        "asyncio clients",
        ("replog.aio", "replog.blocking", "replog.client_async", "replog.client_surface"),
        never=("engines", "replica"),
    ),
    Rung(
        "node",
        (
            "replog.node",
            # The part of a node that speaks with clients; the node owns it.
            "replog.failures",
            "replog.jobs",
            "replog.opening",
            "replog.reports",
            "replog.running",
            "replog.server",
            "replog.sync_thread",
            "replog.waiting",
            "replog.wakeup",
            "replog.transport.*",
        ),
        # trio hands out what outcome makes, and brings it along.
        outside=frozenset({"trio", "outcome", "structlog", "cbor2"}),
        never=("engines",),
    ),
    Rung(
        "testing",
        ("replog.testing", "replog.testing.*"),
        outside=frozenset({"cbor2", "pytest"}),
        never=("engines", "node"),
    ),
    # The walk through a model goes the same way every time, so it may be compared by its counts.
    Rung(
        "model checker",
        (
            "replog.testing.model",
            "replog.testing.model.bounds",
            "replog.testing.model.judge",
            "replog.testing.model.local",
            "replog.testing.model.render",
            "replog.testing.model.search",
            "replog.testing.model.space",
        ),
        pure=True,
        never=("engines", "replica", "node"),
    ),
    # What the simulator is told of an engine, and judges it by; it stands apart from the engine.
    Rung(
        "trials",
        ("replog_ENGINE.trial", "replog_ENGINE.checks", "replog_ENGINE.limit_checks"),
        pure=True,
        never=("node",),
    ),
    Rung(
        "surface",
        (
            "replog",
            "replog.__main__",
            "replog.client",
            "replog.client_link",
            "replog.log",
            "replog.rejoin",
            "replog.cli",
            "replog.cli.*",
        ),
        outside=frozenset({"trio", "structlog", "cbor2"}),
        never=("engines",),
    ),
    # Where a state machine on its own disk keeps its files; what it computes stays above.
    Rung("machine files", ("replog_MACHINE.database",), never=("engines", "replica", "node")),
    Rung("state machines", ("replog_MACHINE", "replog_MACHINE.*"), pure=True, never=("engines",)),
    Rung(
        "commands",
        ("replog_MACHINE.commands",),
        outside=frozenset({"trio", "structlog", "cbor2"}),
        never=("engines",),
    ),
    Rung(
        "bench",
        ("replog_bench", "replog_bench.*"),
        outside=frozenset({"trio", "structlog", "cbor2"}),
    ),
)
ORDER = {rung.name: at for at, rung in enumerate(LADDER)}

IMPURE = frozenset(
    {
        "asyncio", "datetime", "io", "logging", "multiprocessing", "os", "pathlib", "random",
        "secrets", "select", "signal", "socket", "subprocess", "tempfile", "threading", "time",
        "uuid",
    }
)  # fmt: skip
"""Standard modules that read a clock, roll dice, do I/O or start threads."""

MACHINE_IMPORTS = frozenset(
    {
        "replog",
        "replog.changes",
        "replog.chunks",
        "replog.pages",
        "replog.statemachine",
        "replog.errors",
    }
)
"""All of ours that a state machine needs; its part of the command line is a rung of its own."""

ENGINE_NAMES_ALLOWED = {
    "replog.config_text": frozenset({"raft"}),
    "replog.cli.check": frozenset({"raft"}),
    "replog.cli.sim": frozenset({"raft"}),
}
"""Strings that shared code may hold although they name an engine: the defaults of a new file, and
the examples of a help text."""

_ENGINE_PACKAGE = re.compile("|".join(rf"\breplog_{name}\b" for name in ENGINES))

_ENGINE_NAME = re.compile(
    "|".join(f"(?<![cdgk]){name}" for name in ("raft", "paxos", *ENGINES)), re.IGNORECASE
)
"""The look-behind lets craft, draft, graft and kraft pass."""


@dataclass(frozen=True)
class Import:
    """One imported module, and how."""

    module: str
    line: int
    typing_only: bool


def _modules() -> dict[str, Path]:
    """Every module of ours by its dotted name."""
    found: dict[str, Path] = {}
    for root in SOURCE_ROOTS:
        base = ROOT / root
        for package in sorted(base.glob("replog*")):
            for path in sorted(package.rglob("*.py")):
                parts = path.relative_to(base).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


@cache
def parsed(source: str) -> ast.Module:
    """The syntax tree of a source, which no rule changes."""
    return ast.parse(source)


@cache
def rung_of(module: str) -> Rung | None:
    """The rung that a module stands on, by its very name before a pattern; ``None``: unplaced."""
    top, dot, rest = module.partition(".")
    if (ROOT / "engines" / top).is_dir():
        module = "replog_ENGINE" + dot + rest
    elif (ROOT / "statemachines" / top).is_dir():
        module = "replog_MACHINE" + dot + rest
    named = [rung for rung in LADDER if module in rung.modules]
    matched = [
        rung for rung in LADDER if any(fnmatchcase(module, pattern) for pattern in rung.modules)
    ]
    return next(iter(named + matched), None)


def imports_of(module: str, tree: ast.AST) -> list[Import]:
    """Every import of a module, wherever it stands; relative ones are made absolute."""
    package = module if MODULES.get(module, Path()).name == "__init__.py" else None
    package = package or module.rpartition(".")[0]
    found: list[Import] = []

    def visit(node: ast.AST, typing_only: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            negated = isinstance(node.test, ast.UnaryOp)
            for child in node.body:
                visit(child, typing_only or not negated)
            for child in node.orelse:
                visit(child, typing_only or negated)
            return
        if isinstance(node, ast.Import):
            found.extend(Import(name.name, node.lineno, typing_only) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
                base = f"{above}.{base}" if base else above
            names = [f"{base}.{name.name}" for name in node.names]
            # "from package import module" imports the module, and the package on the way only.
            found.extend(
                Import(
                    name if name in MODULES or name == VERSION else base, node.lineno, typing_only
                )
                for name in names
            )
        for inner in ast.iter_child_nodes(node):
            visit(inner, typing_only)

    visit(tree, False)
    return found


def misplaced_imports(module: str, source: str) -> list[str]:
    """Each import of ``module`` that the ladder forbids, as a sentence."""
    rung = rung_of(module)
    if rung is None:
        return [f"{module}: stands on no rung; give it one in LADDER of tests/unit/ladder.py"]
    found: list[str] = []
    for item in imports_of(module, parsed(source)):
        where = f"{module}:{item.line}: imports {item.module}"
        top = item.module.partition(".")[0]
        if top == "replog" or top.startswith("replog_"):
            found += [f"{where}, {why}" for why in _ours_forbidden(module, rung, item.module)]
        elif top in sys.stdlib_module_names:
            # What is imported for types only does nothing.
            if rung.pure and top in IMPURE and not item.typing_only:
                found.append(f"{where}, which the deterministic {rung.name} must not touch")
        elif top not in rung.outside and not item.typing_only:
            found.append(f"{where}, which is not for the rung {rung.name!r}")
    return list(dict.fromkeys(found))


def _ours_forbidden(module: str, rung: Rung, target: str) -> Iterator[str]:
    own = target.partition(".")[0] == module.partition(".")[0]
    if rung.name == "state machines" and not own:
        if target not in MACHINE_IMPORTS:
            yield "but a state machine needs only " + ", ".join(sorted(MACHINE_IMPORTS))
        return
    other = rung_of(target)
    if other is None:
        yield "which stands on no rung"
    elif other.name in rung.never:
        yield f"but {rung.name} never reach {other.name}"
    elif ORDER[other.name] > ORDER[rung.name]:
        yield f"which stands above it ({other.name} over {rung.name})"
    elif other is rung and not own:
        yield "another package of the same rung"


class _SetWalk(ast.NodeVisitor):
    """Finds loops over bare sets: literals, calls, and names annotated or assigned as sets.

    Names are known per function, attributes per module.
    """

    def __init__(self, tree: ast.AST) -> None:
        self.lines: list[int] = []
        self.scopes: list[set[str]] = [set()]
        self.attributes = {
            target.attr
            for node in ast.walk(tree)
            for target in self._set_targets(node)
            if isinstance(target, ast.Attribute)
        } | {
            # The fields of a class are attributes of its instances.
            target.id
            for cls in ast.walk(tree)
            if isinstance(cls, ast.ClassDef)
            for node in cls.body
            for target in self._set_targets(node)
            if isinstance(target, ast.Name)
        }
        self.visit(tree)

    def _set_targets(self, node: ast.AST) -> list[ast.expr]:
        if isinstance(node, ast.AnnAssign) and _is_set_type(node.annotation):
            return [node.target]
        if isinstance(node, ast.Assign) and _is_set_made(node.value):
            return node.targets
        return []

    def _is_set(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Name):
            return any(node.id in scope for scope in self.scopes)
        if isinstance(node, ast.Attribute):
            return node.attr in self.attributes
        if isinstance(node, ast.BinOp) and isinstance(
            node.op, ast.BitAnd | ast.BitOr | ast.Sub | ast.BitXor
        ):
            return self._is_set(node.left) or self._is_set(node.right)
        return _is_set_made(node)

    def _loop(self, iterated: ast.expr) -> None:
        if self._is_set(iterated):
            self.lines.append(iterated.lineno)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        self.scopes.append({a.arg for a in arguments if _is_set_type(a.annotation)})
        self.generic_visit(node)
        self.scopes.pop()

    def visit_Assign(self, node: ast.Assign) -> None:
        self._note(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._note(node)

    def _note(self, node: ast.stmt) -> None:
        self.scopes[-1] |= {t.id for t in self._set_targets(node) if isinstance(t, ast.Name)}
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        self._loop(node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._loop(node.iter)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        ordering = isinstance(node.func, ast.Name) and node.func.id in (
            "list", "tuple", "iter", "enumerate", "map", "filter", "zip",
        )  # fmt: skip
        for argument in node.args if ordering else ():
            self._loop(argument)
        popped = isinstance(node.func, ast.Attribute) and node.func.attr == "pop"
        if popped and not node.args and isinstance(node.func, ast.Attribute):
            self._loop(node.func.value)
        self.generic_visit(node)


def _is_set_type(annotation: ast.expr | None) -> bool:
    text = ast.unparse(annotation).strip("'\"") if annotation is not None else ""
    return (
        re.match(r"(builtins\.|typing\.)?(set|frozenset|Set|AbstractSet|FrozenSet)\b", text)
        is not None
    )


def _is_set_made(node: ast.expr) -> bool:
    if isinstance(node, ast.Set | ast.SetComp):
        return True
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("set", "frozenset")
    )


def unordered_loops(module: str, source: str) -> list[str]:
    """Each loop over a bare set in a pure module, as a sentence."""
    rung = rung_of(module)
    if rung is None or not rung.pure:
        return []
    return [
        f"{module}:{line}: goes through a bare set, whose order can differ: sort it first"
        for line in sorted(_SetWalk(parsed(source)).lines)
    ]


def engine_names(module: str, source: str) -> list[str]:
    """Each identifier or string of shared code that names an engine, as a sentence.

    Comments and docstrings (any string that stands alone as a statement) may say what an engine
    does; a docstring must not name an engine's package, which another installation may lack.
    """
    if module.partition(".")[0] != "replog":
        return []
    tree = parsed(source)
    prose = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    allowed = ENGINE_NAMES_ALLOWED.get(module, frozenset())
    found: list[str] = []
    for node in ast.walk(tree):
        refused = _ENGINE_PACKAGE if id(node) in prose else _ENGINE_NAME
        for text in _names_in(node):
            if text not in allowed and (name := refused.search(text)):
                line = getattr(node, "lineno", 0)
                text = name[0] if id(node) in prose else text
                found.append(f"{module}:{line}: shared code names an engine: {text!r}")
    return found


def _names_in(node: ast.AST) -> Iterator[str]:
    """The identifiers and strings that a node holds itself."""
    for _, value in ast.iter_fields(node):
        for text in value if isinstance(value, list) else (value,):
            if isinstance(text, str):
                yield text
