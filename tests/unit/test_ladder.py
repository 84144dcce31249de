"""The tree keeps the import ladder, and the judge of the ladder is itself proven.

The judge and its rules are in ``ladder.py``; here it looks at every module of the tree, and then at
small modules that break one rule each.
"""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import pytest
from ladder import (
    ENGINE_NAMES_ALLOWED,
    ENGINES,
    MODULES,
    engine_names,
    imports_of,
    misplaced_imports,
    parsed,
    unordered_loops,
)

ENGINE = f"replog_{ENGINES[0]}"
"""The package of some engine."""


def test_modules_found() -> None:
    """The judge looks at the whole tree, not at an empty one."""
    engines = {f"replog_{name}" for name in ENGINES}
    assert engines
    assert {"replog", "replog.types", "replog.engine", *engines} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_downwards(module: str) -> None:
    """A module imports from below its rung only, and nothing that its rung must not touch."""
    problems = misplaced_imports(module, MODULES[module].read_text())
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("module", MODULES)
def test_loops_ordered(module: str) -> None:
    """The deterministic core never goes through a bare set."""
    problems = unordered_loops(module, MODULES[module].read_text())
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("module", MODULES)
def test_shared_code_names_no_engine(module: str) -> None:
    """No identifier and no string of shared code names an engine."""
    problems = engine_names(module, MODULES[module].read_text())
    assert not problems, "\n".join(problems)


def test_engine_exceptions_needed() -> None:
    """Every string that may name an engine in shared code is still there to do so."""
    for module, texts in ENGINE_NAMES_ALLOWED.items():
        source = MODULES[module].read_text()
        assert not [text for text in texts if repr(text).replace("'", '"') not in source], module


def test_imports_acyclic() -> None:
    """No two modules import each other, directly or around corners, when they are loaded."""
    graph = {
        module: {
            item.module
            for item in imports_of(module, parsed(path.read_text()))
            if item.module in MODULES and item.module != module and not item.typing_only
        }
        for module, path in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize(
    ("module", "source", "sentence"),
    [
        ("replog.types", "import replog.quorum", "stands above"),
        ("replog.quorum", "from replog import engine", "stands above"),
        ("replog.quorum", "def f():\n    from replog.wire import pack", "stands above"),
        ("replog.progress", "from .engine import Engine", "stands above"),
        ("replog.engine", "if TYPE_CHECKING:\n    from replog.node import Node", "stands above"),
        (f"{ENGINE}.options", "import time", "must not touch"),
        (f"{ENGINE}.options", "def f():\n    from os import urandom", "must not touch"),
        ("replog.quorum", "import cbor2", "is not for the rung"),
        ("replog.replica", "import trio", "is not for the rung"),
        ("replog.replica", f"import {ENGINE}", "never reach engines"),
        ("replog.wire", "import trio.lowlevel", "is not for the rung"),
        ("replog.wire", f"from {ENGINE}.messages import Vote", "never reach engines"),
        ("replog.storage.wal", "import structlog", "is not for the rung"),
        ("replog.config", "import cbor2", "is not for the rung"),
        ("replog.node", "from replog.testing import freeze_records", "stands above"),
        ("replog.testing.sim", "import trio", "is not for the rung"),
        ("replog.testing.sim", "from replog.node import Node", "never reach node"),
        ("replog.types", "import replog", "stands above"),
        (f"{ENGINE}.leader", "import random", "must not touch"),
        (f"{ENGINE}.leader", "from replog.replica import Replica", "stands above"),
        (f"{ENGINE}.leader", "from replog.storage.wal import Wal", "stands above"),
        ("replog_kv.machine", "from replog.types import Entry", "needs only"),
        ("replog_kv.machine", "import trio", "is not for the rung"),
        ("replog_kv.machine", "from random import random", "must not touch"),
        ("replog_kv", "from replog_kv.commands import COMMAND", "stands above"),
        ("replog.machine", "from pathlib import Path", "must not touch"),
        ("replog_kv.database", "from replog_kv.machine import Kv", "stands above"),
        ("replog_kv.database", "from replog.replica import Replica", "never reach replica"),
        ("replog_kv.commands", f"import {ENGINE}", "never reach engines"),
        ("replog.nowhere", "", "stands on no rung"),
        ("replog.node", "import replog.nowhere", "stands on no rung"),
    ],
)
def test_judge_refuses_import(module: str, source: str, sentence: str) -> None:
    """The judge refuses a module that breaks the ladder, and says why."""
    problems = misplaced_imports(module, source)
    assert [problem for problem in problems if sentence in problem], problems


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("replog.limits", "from replog.types import record"),
        (f"{ENGINE}.leader", "from replog.engine import Engine\nfrom .messages import Vote"),
        ("replog.wire", "import cbor2, os, struct\nfrom replog import entries"),
        ("replog.quorum", "if TYPE_CHECKING:\n    import trio"),
        ("replog.cli.run", "import trio\nfrom replog.testing import freeze_records"),
        ("replog_kv.machine", "from replog import StateMachine, command"),
        ("replog.machine", "if TYPE_CHECKING:\n    from pathlib import Path"),
        ("replog_kv.database", "import os\nfrom replog.storage.files import RealFiles"),
        ("replog_kv.commands", "import trio\nfrom replog.client import Client"),
        ("replog.plugins", "from replog import __version__"),
    ],
)
def test_judge_accepts_import(module: str, source: str) -> None:
    """The judge lets a module pass that keeps the ladder."""
    assert misplaced_imports(module, source) == []


@pytest.mark.parametrize(
    "source",
    [
        "for x in {1, 2}: pass",
        "for x in set(names): pass",
        "a = [x for x in frozenset(names)]",
        "a = list({x for x in names})",
        "votes: set[int] = make()\nfor x in votes: pass",
        "def f(nodes: frozenset[int]) -> None:\n    for x in nodes: pass",
        "def f(nodes: Set[int]) -> int:\n    return [x for x in nodes - {3}]",
        "class A:\n    votes: set[int]\n    def f(self):\n        for x in self.votes: pass",
        "class A:\n    def f(self):\n        self.v = set()\n        return self.v.pop()",
    ],
)
def test_judge_refuses_bare_set(source: str) -> None:
    """The judge refuses a loop over a bare set in the core, and only there."""
    assert unordered_loops("replog.quorum", source), source
    assert unordered_loops("replog.node", source) == []


@pytest.mark.parametrize(
    "source",
    [
        "for x in sorted({1, 2}): pass",
        "ok = 3 in {1, 2}",
        "def f(a: set[int]): return len(a)\ndef g(a: list[int]): return [x for x in a]",
        "names = [1]\nnames.pop()",
    ],
)
def test_judge_accepts_order(source: str) -> None:
    """The judge lets sorted sets, membership and lists pass."""
    assert unordered_loops("replog.quorum", source) == []


@pytest.mark.parametrize(
    "source",
    ["if engine == 'raft': pass", "def f(raft): pass", f"import {ENGINE}", "x = f'a {y} Paxos'",
     "class RaftNode: pass", "f(paxos_ballot=1)", f'"""See :mod:`~{ENGINE}.leader`."""'],
)  # fmt: skip
def test_judge_refuses_engine_name(source: str) -> None:
    """The judge refuses code that names an engine in shared code, and only there."""
    assert engine_names("replog.node", source)
    assert engine_names(f"{ENGINE}.leader", source) == []


def test_judge_accepts_engine_in_prose() -> None:
    """Comments and docstrings may say what Raft does, and a draft is no engine."""
    source = '"""As in Raft."""\nx = 1  # Raft\n"""Paxos too."""\ndraft = "drafted"\n'
    assert engine_names("replog.node", source) == []
