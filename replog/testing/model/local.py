"""One node of the model: a real engine, its disk, and the Readys that are on their way to it.

What a node does next depends on nothing but itself and the action that comes to it, so it is
computed here, apart from the network and the other nodes: :meth:`LocalModel.act` makes of one
:class:`Local` and one action another, and never changes the first.  The rules:

* **Actions**: a message arrives, the oldest pending Ready becomes durable, the node crashes and
  starts again from its disk, it campaigns, it is given a command.  Time does not pass.
* **The driver's part** is the contract of :mod:`replog.engine`: after each action ``ready()`` until
  it returns ``None``; what may leave at once leaves; the rest waits for its sync.  A crash loses
  what is pending, as a whole.
* **What one node can be judged by** is judged here (I1 of its own runs, I2 and I3 of what it hands
  out, I4, I7, and the engine's own ``check``).  What it has led, reported and stored goes into its
  :class:`Facts`, which survive crashes and by which the whole cluster is judged
  (:mod:`replog.testing.model.judge`).
* **A sync that cannot matter** is taken at once when ``is_reduced``: that of a Ready which writes
  nothing, has none ahead of it and leaves the engine as it is.  It changes neither engine nor disk,
  so it commutes with everything that the node might do before, and it only lets messages leave.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from enum import Enum
from typing import Final, TypeAlias

from replog.engine import Engine, EnginePlugin, EngineSetup
from replog.envelope import pack_envelope
from replog.errors import NotDone
from replog.limits import Limits
from replog.stored_log import HeldLog
from replog.types import (
    NO_NODE,
    Entry,
    EntryKind,
    Epoch,
    HardState,
    LogIndex,
    NodeId,
    Ready,
    Role,
    Term,
    Voter,
    record,
)

OPTIONS_WITHOUT_TIME: Final[Mapping[str, object]] = {
    "automatic_elections": False,
    "election_ticks_min": 0,
}
"""What is set in an engine's options where it has an option of that name: an election begins when
it is told to and asks nobody whether he hears a leader, for without time he would hear it for
ever."""


class ActionKind(Enum):
    """What can happen to a node."""

    DELIVER = "deliver"
    SYNC = "sync"
    CRASH = "crash"
    CAMPAIGN = "campaign"
    PROPOSE = "propose"


@record
class Action:
    """One thing that happens to one node."""

    kind: ActionKind
    message: object = None
    """Of ``DELIVER``."""
    command_number: int = 0
    """Of ``PROPOSE``: which of the commands, from 1; no two are alike."""


@record
class Facts:
    """What a node has done for ever, whatever happens to it."""

    led: tuple[Term, ...]
    """The terms in which one of its runs led, in that order."""
    reported: tuple[bytes, ...]
    """The bodies that its runs handed out to be applied, from the first index on."""
    durable: tuple[tuple[LogIndex, bytes], ...]
    """What is on its disk, by index."""


class Local:
    """One node at one moment; never changed once it is made."""

    __slots__ = (
        "engine",
        "entries",
        "handed_index",
        "hard_state",
        "led",
        "node_id",
        "pending",
        "reported",
        "role",
        "term",
    )

    def __init__(self, node_id: NodeId, engine: Engine) -> None:
        self.node_id = node_id
        self.engine = engine
        self.hard_state: HardState | None = None
        """On disk; ``None``: never written."""
        self.entries: tuple[Entry, ...] = ()
        """On disk, ascending by index."""
        self.pending: tuple[Ready, ...] = ()
        """Not durable yet, oldest first."""
        self.led: tuple[Term, ...] = ()
        self.reported: tuple[bytes, ...] = ()
        self.handed_index: LogIndex = 0
        """What this run handed out last."""
        self.role = Role.FOLLOWER
        self.term: Term = 0

    def copy(self) -> Local:
        """A copy with an engine of its own, to be turned into the next moment."""
        copy: Local = object.__new__(Local)
        for name in Local.__slots__:
            setattr(copy, name, getattr(self, name))
        copy.engine = self.engine.clone()
        return copy

    def key(self) -> Hashable:
        """Equal for two moments from which a node goes on alike and is judged alike.

        Whole values, no digest: two moments are never taken for one by accident.
        """
        pending = tuple(
            (
                ready.hard_state,
                ready.truncate_from,
                tuple(ready.entries),
                tuple(ready.messages_after_sync),
            )
            for ready in self.pending
        )
        on_disk = (self.hard_state, self.entries)
        return (
            self.engine.key(),
            on_disk,
            pending,
            self.led,
            self.reported,
            self.handed_index,
        )

    @property
    def pending_writes(self) -> int:
        """How many writes are on their way to the disk."""
        return sum(1 for ready in self.pending if ready.writes)

    def facts(self) -> Facts:
        """What the cluster is judged by."""
        return Facts(
            self.led,
            self.reported,
            tuple((entry.index, entry.body) for entry in self.entries),
        )


class Step:
    """What one action made of one node."""

    __slots__ = ("after", "applied", "is_replacing", "problem", "sent", "synced")

    def __init__(self, after: Local) -> None:
        self.after = after
        self.sent: list[object] = []
        """The messages that left, in that order."""
        self.synced: list[Ready] = []
        self.applied: list[Entry] = []
        self.is_replacing = False
        """Whether something on the disk was voided, or replaced by another value."""
        self.problem = ""
        """The rule that was broken, as a sentence."""


ActOn: TypeAlias = Callable[[Step], object]


class RuleBroken(Exception):
    """A rule does not hold; the sentence says which."""


class LocalModel:
    """What each action makes of a node of one engine."""

    def __init__(
        self,
        plugin: EnginePlugin,
        node_count: int,
        options: object,
        is_reduced: bool,
    ) -> None:
        self._plugin = plugin
        self._options: object = timeless_options(options)
        self._is_reduced = is_reduced
        voters = tuple(Voter(node_id, node_id) for node_id in range(1, node_count + 1))
        agreed = tuple(sorted(plugin.agreed(self._options, node_count).items()))
        self._epoch = Epoch(1, plugin.name, voters, start_index=1, agreed=agreed)

    def start(self, node_id: NodeId) -> Step:
        """The first run of a node, with nothing on its disk."""
        engine = self._engine(node_id, None, ())
        step = Step(Local(node_id, engine))
        self._carry_out(step, self._take_ready)
        return step

    def act(self, before: Local, action: Action) -> Step | None:
        """What the action makes of the node; ``None`` when the node cannot do it now.

        An error that the engine raises is a broken rule as well: no correct peer made it.
        """
        if action.kind is ActionKind.SYNC and not before.pending:
            return None
        step = Step(before.copy())
        after = step.after
        match action.kind:
            case ActionKind.DELIVER:
                self._carry_out(step, lambda each: each.after.engine.step(action.message))
            case ActionKind.SYNC:
                self._carry_out(step, self._sync)
            case ActionKind.CRASH:
                self._carry_out(step, self._restart)
            case ActionKind.CAMPAIGN:
                self._carry_out(step, lambda each: each.after.engine.campaign())
            case ActionKind.PROPOSE:
                data = pack_envelope(command_payload(action.command_number), time_ms=0)
                try:
                    after.engine.propose_batch((data,), EntryKind.COMMAND)
                except NotDone:
                    return None
        if not step.problem:
            self._carry_out(step, self._take_ready)
        if not step.problem and action.kind is not ActionKind.CRASH:
            self._carry_out(step, lambda each: check_term(before, each.after))
        return step

    def _carry_out(self, step: Step, act: ActOn) -> None:
        """Do something to the node; what it raises becomes the step's problem."""
        try:
            act(step)
        except RuleBroken as broken:
            step.problem = str(broken)
        except Exception as error:
            reason = str(error) or "an assertion does not hold"
            step.problem = f"node {step.after.node_id} stopped: {type(error).__name__}: {reason}"

    def _engine(
        self, node_id: NodeId, hard_state: HardState | None, entries: Sequence[Entry]
    ) -> Engine:
        return self._plugin.create(
            EngineSetup(
                node_id=node_id,
                epoch=self._epoch,
                hard_state=hard_state or HardState(self._epoch.number, 0, NO_NODE),
                log=HeldLog(entries),
                limits=Limits(),
                options=self._options,
                seed=0,
                nonce=0,
            )
        )

    def _restart(self, step: Step) -> None:
        """Crash and start again: what was not on disk is lost."""
        after = step.after
        after.pending = ()
        after.handed_index = 0
        after.role = Role.FOLLOWER
        after.engine = self._engine(after.node_id, after.hard_state, after.entries)
        after.term = after.engine.term
        on_disk = after.hard_state.term if after.hard_state else 0
        if after.term < on_disk:
            raise RuleBroken(
                f"I7: node {after.node_id} starts in term {after.term}, below {on_disk} on its disk"
            )

    def _sync(self, step: Step) -> None:
        """Make the oldest pending Ready durable, tell the engine, let its messages leave."""
        after = step.after
        ready, after.pending = after.pending[0], after.pending[1:]
        if ready.hard_state is not None:
            check_hard_state(after.node_id, after.hard_state, ready.hard_state)
            after.hard_state = ready.hard_state
        written = written_over(after.entries, ready)
        kept = {entry.index: entry.body for entry in written}
        step.is_replacing = any(kept.get(old.index) != old.body for old in after.entries)
        after.entries = written
        step.synced.append(ready)
        after.engine.advance(ready)
        step.sent += ready.messages_after_sync

    def _take_ready(self, step: Step) -> None:
        """Do what the engine wants done, until it wants nothing more."""
        after = step.after
        while True:
            while (ready := after.engine.ready()) is not None:
                step.sent += ready.messages
                after.pending = (*after.pending, ready)
                for entry in ready.committed:
                    check_handed_out(after, entry)
                    step.applied.append(entry)
            if not (self._is_reduced and self._sync_of_nothing(step)):
                break
        after.engine.check()
        note_role(after)

    def _sync_of_nothing(self, step: Step) -> bool:
        """Take the sync of the oldest pending Ready if it cannot matter when that is."""
        after = step.after
        if not after.pending or after.pending[0].writes:
            return False
        probe = after.engine.clone()
        probe.advance(after.pending[0])
        if probe.key() != after.engine.key():
            return False
        self._sync(step)
        return True


def timeless_options(options: object) -> object:
    """The options of an engine for which no time passes; see :data:`OPTIONS_WITHOUT_TIME`."""
    assert dataclasses.is_dataclass(options)
    assert not isinstance(options, type)
    names = [field.name for field in dataclasses.fields(options)]
    changes = {name: value for name, value in OPTIONS_WITHOUT_TIME.items() if name in names}
    return dataclasses.replace(options, **changes)


def command_payload(number: int) -> bytes:
    """The payload of one of the commands."""
    return b"c%d" % number


def written_over(entries: Sequence[Entry], ready: Ready) -> tuple[Entry, ...]:
    """What the disk holds after the write of ``ready`` (:mod:`replog.storage.protocol`)."""
    held = {entry.index: entry for entry in entries}
    if ready.truncate_from is not None:
        held = {index: held[index] for index in held if index < ready.truncate_from}
    held |= {entry.index: entry for entry in ready.entries}
    return tuple(held[index] for index in sorted(held))


def check_hard_state(node_id: NodeId, before: HardState | None, after: HardState) -> None:
    """I4: on disk the (epoch, term) never falls, and a vote, once given in a term, stays."""
    if before is None:
        return
    if (after.epoch, after.term) < (before.epoch, before.term):
        raise RuleBroken(f"I4: node {node_id} wrote term {after.term} over {before.term}")
    is_same_term = (after.epoch, after.term) == (before.epoch, before.term)
    if is_same_term and before.voted_for not in (NO_NODE, after.voted_for):
        raise RuleBroken(
            f"I4: node {node_id} changed its vote of term {after.term} from node "
            f"{before.voted_for} to node {after.voted_for}"
        )


def check_term(before: Local, after: Local) -> None:
    """I7: a term never falls within a run."""
    if after.term < before.term:
        raise RuleBroken(
            f"I7: node {after.node_id} is in term {after.term} after it was in {before.term}"
        )


def check_handed_out(local: Local, entry: Entry) -> None:
    """I3: index after index without a gap; I2: the value that an earlier run handed out there."""
    if entry.index != local.handed_index + 1:
        raise RuleBroken(
            f"I3: node {local.node_id} applies entry {entry.index} after {local.handed_index}"
        )
    local.handed_index = entry.index
    if entry.index > len(local.reported):
        local.reported = (*local.reported, entry.body)
    elif local.reported[entry.index - 1] != entry.body:
        raise RuleBroken(
            f"I2: node {local.node_id} applies another value at index {entry.index} than it did "
            "before its crash"
        )


def note_role(local: Local) -> None:
    """I1: no run of a node leads in a term in which it, or an earlier one, has led before."""
    was_leading = local.role is Role.LEADER and local.term == local.engine.term
    local.role, local.term = local.engine.soft_state.role, local.engine.term
    if local.role is not Role.LEADER or was_leading:
        return
    if local.term in local.led:
        raise RuleBroken(
            f"I1: node {local.node_id} becomes leader in term {local.term}, in which it led before"
        )
    local.led = (*local.led, local.term)
