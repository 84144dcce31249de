"""Distributions that exist for one test only: a module and its metadata on the import path.

They are found by the same scan as installed ones, beside whatever else is installed here, so a test
speaks only of the names that it brought.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import dedent

import pytest

from replog import plugins

ENGINE_SOURCE = '''
    """An engine that agrees with nobody, for tests of how engines are found and configured."""

    from __future__ import annotations

    from replog.types import record


    @record
    class Options:
        """What can be set."""

        ticks: int = 10
        """How long it waits.  This second sentence is not for the example."""
        ratio: float = 0.5
        """A share of
        something."""
        eager: bool = True
        """Whether it hurries."""
        label: str = 'a "b" \\\\ c'
        """A name."""

        def problems(self) -> list[str]:
            return [] if self.ticks >= 1 else [f"ticks: must be at least 1, not {self.ticks}"]


    class Fake:
        name = "fake"
        title = "Fake engine, from no paper"
        options = Options
        messages = ()

        def agreed(self, options, voter_count):
            return {}

        def create(self, setup):
            raise NotImplementedError


    PLUGIN = Fake()
'''

MACHINE_SOURCE = '''
    class Tally:
        """Counts what it is given.

        And nothing else.
        """
'''


class FakeSite:
    """A folder of fake distributions on the import path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.modules: list[str] = []

    def add(
        self,
        distribution: str,
        points: Mapping[str, Mapping[str, str]],
        modules: Mapping[str, str] | None = None,
    ) -> None:
        """Install a distribution: its entry points by group and name, its modules by name."""
        for name, source in (modules or {}).items():
            (self.path / f"{name}.py").write_text(dedent(source))
            self.modules.append(name)
        folder = self.path / f"{distribution.replace('-', '_')}-1.2.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Name: {distribution}\nVersion: 1.2\n")
        lines = [
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in named.items())
            for group, named in points.items()
        ]
        (folder / "entry_points.txt").write_text("\n".join(lines))
        plugins.rescan()

    def add_fakes(self) -> None:
        """The engine ``fake`` and the state machine ``tally``."""
        self.add(
            "fake-plugins",
            {
                plugins.ENGINES: {"fake": "fake_engine:PLUGIN"},
                plugins.STATE_MACHINES: {"tally": "fake_machine:Tally"},
            },
            {"fake_engine": ENGINE_SOURCE, "fake_machine": MACHINE_SOURCE},
        )


def fake_site(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSite]:
    """The body of a fixture: a site that is gone, with what it brought, when the test ends."""
    site = FakeSite(path)
    monkeypatch.syspath_prepend(path)
    plugins.rescan()
    yield site
    for name in site.modules:
        sys.modules.pop(name, None)
    plugins.rescan()
