"""Find engines, state machines, storages and commands by the names that a configuration uses.

A plugin is an object behind an *entry point* of an installed distribution.  What replog brings
itself comes in the same way, except for the storages ``memory`` and ``wal``, which must be there
even where no distribution is installed, as in a source tree.

=========================  ======================================================================
group                      what the entry point names
=========================  ======================================================================
``replog.engines``         an :class:`~replog.engine.EnginePlugin` object
``replog.state_machines``  a class that is called without arguments
``replog.storages``        a ``StoragePlugin`` object (see :mod:`replog.storage`)
``replog.commands``        a :class:`CommandPlugin` object: a word of the command line
=========================  ======================================================================

The rules: the installed distributions are scanned once per process and only when somebody asks,
because a scan costs milliseconds that a program built without names should not pay.  Knowing a name
imports nothing; a plugin is imported when it is found by name.  A broken plugin breaks only itself.
Everything that can be wrong is a :class:`~replog.errors.PluginError` of one sentence.  Names come
from configurations and command lines, never from the network.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Final, Protocol, cast

from replog.errors import PluginError
from replog.types import record

if TYPE_CHECKING:
    import argparse
    from importlib import metadata

    from replog.engine import EnginePlugin
    from replog.machine import Machine
    from replog.storage.plugin import StoragePlugin

ENGINES: Final = "replog.engines"
STATE_MACHINES: Final = "replog.state_machines"
STORAGES: Final = "replog.storages"
COMMANDS: Final = "replog.commands"

NOUNS: Final[Mapping[str, str]] = {
    ENGINES: "engine",
    STATE_MACHINES: "state machine",
    STORAGES: "storage",
    COMMANDS: "command",
}
"""The groups, in the order in which they are shown, and what people call their members."""

STORAGES_BUILT_IN: Final = ("memory", "wal")
OPTION_TYPES: Final[tuple[type, ...]] = (int, float, bool, str)
"""What a field of an engine's options may be: what a line of a configuration can hold."""


class CommandPlugin(Protocol):
    """What an entry point of the group ``replog.commands`` names: ``replog NAME ...``."""

    @property
    def name(self) -> str:
        """The word of the command line."""

    @property
    def title(self) -> str:
        """One line for people."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments behind the word."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it and return the process's exit code."""


@record
class PluginRecord:
    """One installed plugin, as ``replog plugins`` shows it."""

    group: str
    name: str
    title: str
    """One line for people; empty if the plugin is broken."""
    distribution: str
    version: str
    """The version of the distribution."""
    problem: str | None
    """Why it cannot be used, in one sentence; ``None`` for a plugin that works."""


@record
class _Offer:
    """One distribution's claim to one name; loading it imports the plugin."""

    group: str
    name: str
    distribution: str
    version: Callable[[], str]
    load: Callable[[], object]


def engine_names() -> list[str]:
    """The names of the installed engines, sorted."""
    return _names(ENGINES)


def state_machine_names() -> list[str]:
    """The names of the installed state machines, sorted."""
    return _names(STATE_MACHINES)


def storage_names() -> list[str]:
    """The names of the installed storages, sorted."""
    return _names(STORAGES)


def command_names() -> list[str]:
    """The words that plugins add to the command line, sorted."""
    return _names(COMMANDS)


def find_engine(name: str) -> EnginePlugin:
    """The engine plugin of that name; raises :class:`~replog.errors.PluginError`."""
    return cast("EnginePlugin", _find(ENGINES, name))


def find_state_machine(name: str) -> type[Machine]:
    """The state machine class of that name; raises :class:`~replog.errors.PluginError`."""
    return cast("type[Machine]", _find(STATE_MACHINES, name))


def find_storage(name: str) -> StoragePlugin:
    """The storage plugin of that name; raises :class:`~replog.errors.PluginError`."""
    return cast("StoragePlugin", _find(STORAGES, name))


def find_command(name: str) -> CommandPlugin:
    """The command of that name; raises :class:`~replog.errors.PluginError`."""
    return cast("CommandPlugin", _find(COMMANDS, name))


def commands() -> list[CommandPlugin]:
    """Every command that works, by name.

    A broken one must not take the command line down, so it is left out here; :func:`find_command`
    and :func:`installed` tell what is wrong with it.
    """
    working: list[CommandPlugin] = []
    for name in command_names():
        try:
            working.append(find_command(name))
        except PluginError:
            continue
    return working


def installed() -> list[PluginRecord]:
    """Every plugin of every group, by group and name; imports them all."""
    return [_record(offer) for offers in _offers().values() for offer in offers]


def check_offered(group: str, name: str) -> None:
    """Raise :class:`~replog.errors.PluginError` unless exactly one distribution offers the name.

    Imports nothing, so it is what a check of a configuration asks.
    """
    _offer(group, name)


def rescan() -> None:
    """Forget the scan and what was found: distributions have come or gone since."""
    _offers.cache_clear()
    _load.cache_clear()


def closest(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'wal'?"``, or an empty string if no known word is near."""
    import difflib  # Costs a millisecond, and only a mistake needs it.

    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


@cache
def _offers() -> Mapping[tuple[str, str], tuple[_Offer, ...]]:
    """Everything that is on offer by (group, name), from one scan of the distributions."""
    # Importing the scanner costs more than the scan; a program without names pays neither.
    from importlib import metadata

    found: dict[tuple[str, str], list[_Offer]] = {}
    for name in STORAGES_BUILT_IN:
        found[STORAGES, name] = [_built_in_storage(name)]
    everything = metadata.entry_points()
    for group in NOUNS:
        for point in everything.select(group=group):
            offer = _offer_of(group, point)
            found.setdefault((group, point.name), []).append(offer)
    groups = list(NOUNS)
    keys = sorted(found, key=lambda key: (groups.index(key[0]), key[1]))
    return {key: tuple(sorted(found[key], key=lambda offer: offer.distribution)) for key in keys}


def _offer_of(group: str, point: metadata.EntryPoint) -> _Offer:
    distribution = point.dist
    if distribution is None:
        return _Offer(group, point.name, "an unknown distribution", str, point.load)
    return _Offer(
        group=group,
        name=point.name,
        # A distribution whose metadata is damaged may know neither.
        distribution=distribution.name or "an unnamed distribution",
        version=lambda: distribution.version or "unknown",
        load=point.load,
    )


def _built_in_storage(name: str) -> _Offer:
    def load() -> object:
        from replog.storage import directory

        return directory.STORAGES[name]

    def version() -> str:
        from replog import __version__

        return __version__

    return _Offer(STORAGES, name, "replog", version, load)


def _names(group: str) -> list[str]:
    return [name for offered, name in _offers() if offered == group]


def _offer(group: str, name: str) -> _Offer:
    """The one offer of that name; raises ``PluginError`` if there is none or more than one."""
    noun = NOUNS[group]
    offers = _offers().get((group, name), ())
    if len(offers) == 1:
        return offers[0]
    if offers:
        owners = " and ".join(sorted({offer.distribution for offer in offers}))
        raise PluginError(
            f"the {noun} '{name}' is offered {len(offers)} times, by {owners}; "
            "uninstall all but one"
        )
    names = _names(group)
    if not names:
        raise PluginError(
            f"no {noun} named '{name}' is installed, nor any other; install a distribution that "
            f"has an entry point of the group {group}"
        )
    raise PluginError(
        f"no {noun} named '{name}' is installed (installed: {', '.join(names)})"
        + closest(name, names)
    )


def _find(group: str, name: str) -> object:
    _offer(group, name)
    return _load(group, name)


@cache
def _load(group: str, name: str) -> object:
    """Import the plugin and hold it against its protocol; raises ``PluginError``."""
    offer = _offer(group, name)
    whose = f"the {NOUNS[group]} '{name}' of {offer.distribution}"
    try:
        plugin = offer.load()
        fault = _machine_fault(plugin) if group == STATE_MACHINES else _object_fault(offer, plugin)
    except Exception as error:
        # Foreign code runs here: whatever it raises is a fault of this one plugin.
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise PluginError(f"{whose} cannot be loaded: {type(error).__name__}: {reason}") from error
    if fault:
        raise PluginError(f"{whose} cannot be used: {fault}")
    return plugin


def _object_fault(offer: _Offer, plugin: object) -> str:
    """What the plugin object lacks of its protocol, or an empty string."""
    if isinstance(plugin, type):
        return f"its entry point names the class {plugin.__name__}, not an object of it"
    lacking = [
        attribute
        for attribute, asked in vars(_protocol(offer.group)).items()
        if not attribute.startswith("_")
        and not (
            hasattr(plugin, attribute)
            and (isinstance(asked, property) or callable(getattr(plugin, attribute)))
        )
    ]
    if lacking:
        return f"it lacks {', '.join(lacking)}"
    name = getattr(plugin, "name", None)
    if name != offer.name:
        return f"its entry point is named '{offer.name}' but it calls itself '{name}'"
    return _options_fault(cast("EnginePlugin", plugin).options) if offer.group == ENGINES else ""


def _protocol(group: str) -> type:
    """The protocol of the group's plugin objects; imported where a plugin is, and no earlier."""
    if group == ENGINES:
        from replog.engine import EnginePlugin

        return EnginePlugin
    if group == STORAGES:
        from replog.storage.plugin import StoragePlugin

        return StoragePlugin
    assert group == COMMANDS, group
    return CommandPlugin


def _options_fault(options: object) -> str:
    """Why a configuration cannot be read into the options class, or an empty string."""
    if not (isinstance(options, type) and dataclasses.is_dataclass(options)):
        return "its options are not a record class"
    if not callable(getattr(options, "problems", None)):
        return "its options lack the method problems"
    try:
        types = option_types(options)
    except Exception as error:
        return f"the types of its options cannot be resolved: {error}"
    for field in dataclasses.fields(options):
        if types[field.name] not in OPTION_TYPES:
            return f"its option {field.name} is no int, float, bool or str"
        if field.default is dataclasses.MISSING:
            return f"its option {field.name} has no default"
    return ""


def option_types(options: type) -> Mapping[str, type]:
    """The type of each field of an options class or of ``Limits``."""
    assert dataclasses.is_dataclass(options), options
    types = typing.get_type_hints(options)
    return {field.name: types[field.name] for field in dataclasses.fields(options)}


def _machine_fault(machine: object) -> str:
    """Why a node cannot make the state machine, or an empty string."""
    import inspect

    if not isinstance(machine, type):
        return "its entry point names no class"
    try:
        inspect.signature(machine).bind()
    except TypeError:
        return f"the class {machine.__name__} cannot be called without arguments"
    except ValueError:
        return ""  # A class made in C that tells no signature: making one will show.
    return ""


def _record(offer: _Offer) -> PluginRecord:
    title = ""
    problem: str | None = None
    try:
        plugin = _find(offer.group, offer.name)
    except PluginError as error:
        problem = str(error)
    else:
        said = plugin.__doc__ if offer.group == STATE_MACHINES else getattr(plugin, "title", "")
        title = (str(said or "").strip().splitlines() or [""])[0]
    return PluginRecord(
        group=offer.group,
        name=offer.name,
        title=title,
        distribution=offer.distribution,
        version=offer.version(),
        problem=problem,
    )
