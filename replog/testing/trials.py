"""What the simulator must be told of an engine, beside the engine: its *trial*.

The simulator drives any engine that is installed, and judges it by the invariants that hold for
all.  Who makes an engine can tell it more: which options are worth drawing, what commits an entry
if that is no majority, what only this engine promises, and which goals only it can come to.  That
is an object behind an entry point of the group ``replog.trials``, under the engine's own name.  It
stands apart from the code that it judges: it looks at messages, Readys and disks.

An engine without one is simulated with its default options (:class:`PlainTrial`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Final, Protocol, cast

from replog.engine import EnginePlugin
from replog.errors import PluginError
from replog.quorum import Majority, QuorumSystem
from replog.testing.chance import Source
from replog.testing.checks import Check
from replog.testing.goals import Goals
from replog.types import NodeId

GROUP: Final = "replog.trials"


class EngineTrial(Protocol):
    """See the module."""

    @property
    def goals(self) -> Mapping[str, str]:
        """What this engine can come to and not every engine: a sentence for each name."""

    @property
    def acknowledgements(self) -> tuple[str, ...]:
        """The kinds of the messages that acknowledge entries (see
        :func:`replog.testing.network.kind_of`)."""

    def draw_options(self, source: Source, node_count: int) -> object:
        """Options for one run, an instance of the plugin's options class: mostly short timeouts,
        tiny windows and unusual quorums among them."""

    def election_ticks_max(self, options: object) -> int:
        """After how many ticks without a leader every node has tried to lead, back-off aside."""

    def clock_drift_percent(self, options: object) -> int | None:
        """How far clocks may drift where there are leases; ``None``: there are none."""

    def commit_quorum(self, options: object, voters: tuple[NodeId, ...]) -> QuorumSystem:
        """What a committed entry must be durable on."""

    def checks(self, options: object, voters: tuple[NodeId, ...], goals: Goals) -> Sequence[Check]:
        """Fresh instances of the engine's own rules for one run, which also reach its goals."""


class PlainTrial:
    """The trial of an engine that brings none."""

    goals: Mapping[str, str] = {}
    acknowledgements: tuple[str, ...] = ()

    def __init__(self, plugin: EnginePlugin) -> None:
        self._plugin = plugin

    def draw_options(self, source: Source, node_count: int) -> object:
        """The defaults."""
        return cast("object", self._plugin.options())

    def election_ticks_max(self, options: object) -> int:
        """A guess that suits the defaults of most."""
        return 40

    def clock_drift_percent(self, options: object) -> None:
        """The defaults have no leases."""

    def commit_quorum(self, options: object, voters: tuple[NodeId, ...]) -> QuorumSystem:
        """A majority."""
        return Majority(voters)

    def checks(self, options: object, voters: tuple[NodeId, ...], goals: Goals) -> Sequence[Check]:
        """None beyond those for every engine."""
        return ()


def find_trial(plugin: EnginePlugin) -> EngineTrial:
    """The trial that is installed for an engine; raises ``PluginError`` if it cannot be loaded."""
    for point in entry_points(group=GROUP, name=plugin.name):
        try:
            return cast("EngineTrial", point.load())
        except Exception as error:
            raise PluginError(
                f"the trial of the engine {plugin.name!r} ({point.value}) cannot be loaded: {error}"
            ) from error
    return PlainTrial(plugin)
