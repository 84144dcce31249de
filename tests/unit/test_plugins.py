"""How engines, state machines, storages and commands are found by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_plugins import ENGINE_SOURCE, FakeSite, fake_site

from replog import plugins
from replog.errors import PluginError
from replog.plugins import COMMANDS, ENGINES, STATE_MACHINES, STORAGES

COMMAND_SOURCE = """
    class Word:
        name = "word"
        title = "Say a word"
        def add_arguments(self, parser): ...
        def run(self, arguments): return 0

    WORD = Word()
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSite]:
    yield from fake_site(tmp_path, monkeypatch)


def _engine(site: FakeSite, old: str, new: str) -> None:
    """Install the fake engine with one thing in its source replaced."""
    assert old in ENGINE_SOURCE
    source = ENGINE_SOURCE.replace(old, new)
    site.add("fakes", {ENGINES: {"fake": "fake_engine:PLUGIN"}}, {"fake_engine": source})


def test_find_engine_installed(site: FakeSite) -> None:
    """An engine is found by the name of its entry point, once per process."""
    site.add_fakes()
    assert "fake" in plugins.engine_names()
    plugin = plugins.find_engine("fake")
    assert plugin.options().problems() == []
    assert plugins.find_engine("fake") is plugin


def test_find_machine_installed(site: FakeSite) -> None:
    """A state machine is found as a class to be called."""
    site.add_fakes()
    assert "tally" in plugins.state_machine_names()
    assert plugins.find_state_machine("tally").__name__ == "Tally"


def test_names_import_nothing(site: FakeSite) -> None:
    """Knowing and checking a name does not import the plugin."""
    site.add("broken", {ENGINES: {"bad": "no_such_module:PLUGIN"}})
    assert "bad" in plugins.engine_names()
    plugins.check_offered(ENGINES, "bad")
    with pytest.raises(PluginError):
        plugins.check_offered(ENGINES, "worse")


def test_scan_happens_once(site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distributions are scanned once, and again only after ``rescan``."""
    site.add_fakes()
    plugins.engine_names()
    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda: pytest.fail("scanned a second time")
    )
    plugins.find_engine("fake")
    plugins.storage_names()


def test_import_scans_nothing() -> None:
    """Importing the modules of plugins and configuration loads neither scanner, trio nor log."""
    program = (
        "import sys, replog.config, replog.plugins\n"
        "costly = {'importlib.metadata', 'trio', 'structlog', 'cbor2', 'difflib'}\n"
        "sys.exit(str(costly & set(sys.modules)) if costly & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_find_engine_unknown(site: FakeSite) -> None:
    """An unknown name is answered with the installed ones and the nearest of them."""
    site.add_fakes()
    with pytest.raises(PluginError) as caught:
        plugins.find_engine("fakke")
    sentence = str(caught.value)
    assert sentence.startswith("no engine named 'fakke' is installed (installed: ")
    assert sentence.endswith("; did you mean 'fake'?")


def test_find_engine_none(monkeypatch: pytest.MonkeyPatch, site: FakeSite) -> None:
    """Where no engine at all is installed, the sentence names the group of entry points."""
    monkeypatch.setattr(sys, "path", [str(site.path)])
    plugins.rescan()
    with pytest.raises(PluginError, match=r"nor any other.*replog\.engines"):
        plugins.find_engine("fake")


def test_find_engine_offered_twice(site: FakeSite) -> None:
    """Two distributions with one name are both named, and neither is taken."""
    site.add_fakes()
    site.add("rival", {ENGINES: {"fake": "fake_engine:PLUGIN"}})
    with pytest.raises(PluginError, match="offered 2 times, by fake-plugins and rival"):
        plugins.find_engine("fake")
    with pytest.raises(PluginError, match="offered 2 times"):
        plugins.check_offered(ENGINES, "fake")
    assert plugins.engine_names().count("fake") == 1


def test_find_storage_shadowed(site: FakeSite) -> None:
    """A distribution cannot put its own storage in the place of a built-in one."""
    site.add("rival", {STORAGES: {"wal": "rival:WAL"}})
    with pytest.raises(PluginError, match="by replog and rival"):
        plugins.find_storage("wal")


def test_find_engine_import_fails(site: FakeSite) -> None:
    """A plugin that cannot be imported says why in one sentence, and the others still work."""
    site.add_fakes()
    site.add(
        "broken",
        {ENGINES: {"bad": "bad_engine:PLUGIN", "gone": "fake_engine:NOTHING"}},
        {"bad_engine": "raise OSError('no disk\\nno hope')"},
    )
    with pytest.raises(PluginError) as caught:
        plugins.find_engine("bad")
    assert str(caught.value) == "the engine 'bad' of broken cannot be loaded: OSError: no disk"
    with pytest.raises(PluginError, match="AttributeError"):
        plugins.find_engine("gone")
    assert plugins.find_engine("fake").name == "fake"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("messages = ()", "", "it lacks messages"),
        ("def create", "def make", "it lacks create"),
        ('name = "fake"', 'name = "raft2"', "is named 'fake' but it calls itself 'raft2'"),
        ("PLUGIN = Fake()", "PLUGIN = Fake", "names the class Fake"),
        ("options = Options", "options = Options()", "its options are not a record class"),
        ("def problems", "def faults", "lack the method problems"),
        ("ticks: int = 10", "ticks: int", "its option ticks has no default"),
        ("ticks: int = 10", "ticks: int | None = 10", "its option ticks is no int, float"),
        ("ticks: int = 10", "ticks: Nowhere = 10", "types of its options cannot be resolved"),
    ],
)
def test_find_engine_incomplete(site: FakeSite, old: str, new: str, fault: str) -> None:
    """A plugin that lacks what its protocol asks for is refused with what it lacks."""
    _engine(site, old, new)
    with pytest.raises(PluginError, match=f"^the engine 'fake' of fakes cannot be used: .*{fault}"):
        plugins.find_engine("fake")


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("def Tally(): ...", "names no class"),
        ("class Tally:\n    def __init__(self, size): ...", "cannot be called without arguments"),
    ],
)
def test_find_machine_unfit(site: FakeSite, source: str, fault: str) -> None:
    """A state machine must be a class that is called without arguments."""
    site.add("m", {STATE_MACHINES: {"tally": "fake_machine:Tally"}}, {"fake_machine": source})
    with pytest.raises(PluginError, match=fault):
        plugins.find_state_machine("tally")


def test_find_storage_built_in() -> None:
    """The built-in storages are there by name, without any entry point."""
    for name in plugins.STORAGES_BUILT_IN:
        assert name in plugins.storage_names()
        assert plugins.find_storage(name).name == name


def test_find_storage_all_built_in() -> None:
    """Every storage that replog brings can be named."""
    from replog.storage.directory import STORAGES as TABLE

    assert sorted(TABLE) == sorted(plugins.STORAGES_BUILT_IN)


def test_commands_broken_left_out(site: FakeSite) -> None:
    """One broken command leaves the others on the command line, and can be asked what it lacks."""
    site.add(
        "words",
        {COMMANDS: {"word": "words:WORD", "mumble": "words:MUMBLE"}},
        {"words": COMMAND_SOURCE},
    )
    names = [command.name for command in plugins.commands()]
    assert "word" in names
    assert "mumble" not in names
    assert "mumble" in plugins.command_names()
    with pytest.raises(PluginError, match="MUMBLE"):
        plugins.find_command("mumble")


def test_installed_lists_all(site: FakeSite) -> None:
    """The list of what is installed has every plugin with its origin, broken ones with why."""
    site.add_fakes()
    site.add("broken", {ENGINES: {"bad": "no_such_module:PLUGIN"}})
    records = {(plugin.group, plugin.name): plugin for plugin in plugins.installed()}
    fake = records[ENGINES, "fake"]
    assert (fake.title, fake.distribution, fake.version, fake.problem) == (
        "Fake engine, from no paper",
        "fake-plugins",
        "1.2",
        None,
    )
    assert records[STATE_MACHINES, "tally"].title == "Counts what it is given."
    assert records[STORAGES, "wal"].distribution == "replog"
    bad = records[ENGINES, "bad"]
    assert bad.title == ""
    assert "no_such_module" in (bad.problem or "")


def test_closest_near_and_far() -> None:
    """A hint is given for a slip of the hand only."""
    assert plugins.closest("tick_m", ["tick_ms", "frame_bytes_max"]) == "; did you mean 'tick_ms'?"
    assert plugins.closest("zebra", ["tick_ms"]) == ""
