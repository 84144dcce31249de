"""Simulated clients that repeat a command in its session until it is answered.

Each opens a session with some node, asks for one command at a time, and sends it again under the
same number, to any node, when its patience ends or the answer is no answer: the outcome is unknown,
the node does not lead, it is overloaded.  What is judged:

* I6: what such a client is told is what applying the command came to when it was applied.
* I21: what is applied, and what is refused, is what the rules say (``session_rules.py``); and a
  command that its client waits for is never refused as acknowledged.
* Where machines keep answers, a copy that comes after a restart is told the first answer, too.
* A copy that reaches a session which was reported closed before is not done.
* Some commands are for one term only, also some of clients without sessions; and whoever asks a
  leader for its term is told the highest one as of then (I27).
* The history of the *commands* (not of their copies) is linearizable, with those that were given up
  or refused by an expired session after an unknown outcome as unknown (I13).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final

from replog.envelope import SessionMark
from replog.errors import NotDone, SessionExpired, SessionFull, StaleSequence, TermChanged
from replog.limits import MIB
from replog.testing.checks import Broken
from replog.testing.driver import QUIET, Driver
from replog.testing.judged_machine import JudgedKeeper, Results, is_lost, is_unkept
from replog.testing.nodes import ClusterNode, Outcome, Proposal
from replog.testing.session_rules import SessionRules, check_sessions
from replog.types import EntryKind, LogIndex, NodeId, TermId

if TYPE_CHECKING:
    from replog.testing.cluster import Cluster

COPIES_MAX: Final = 8
"""After so many copies a client gives a command up."""

LATE_CHANCE: Final = 0.1
"""How likely a copy is to arrive a second time, as it would over a network, so late: ..."""

LATE_TICKS_MAX: Final = 40

REFUSED_TICKS: Final = 3
"""How long a client waits when its command was refused."""

CLIENT_NUMBERS: Final = 100
"""In a history these clients are numbered from here on; the others stand below."""

HURRY_CHANCE: Final = 0.15
"""How likely a client is to send another copy although the last one may still be answered."""

AGAIN_CHANCE: Final = 0.25
"""How likely a client that forgets is to ask again for what it was answered."""

CLOSE_CHANCE: Final = 0.1
"""How likely a client that waits for nothing is to close its session, ..."""

ABANDON_CHANCE: Final = 0.3
"""... or, out of these, to forget it, where sessions that are idle are soon gone."""

ABANDONED_IDLE_MS_MAX: Final = 3000
"""That is, after so long at most."""

TERM_CHANCE: Final = 0.3
"""How likely a command is to be for one term only: that in which a node believes to be, ..."""

NEXT_TERM_CHANCE: Final = 0.05
"""... or, out of these, the next one."""

PLAIN_TERM_CHANCE: Final = 0.05
"""How likely a command without a session is to be for the term in which its node is, ..."""

PAST_TERM_CHANCE: Final = 0.01
"""... or, out of these, for the one before."""

ACKNOWLEDGE_CHANCE: Final = 0.5
"""How likely a client that was refused, for there are too many answers, is to acknowledge all."""

ANSWER_BYTES_KEPT: Final = 500
"""A session keeps some six answers in so many bytes, where machines keep them over a restart."""

ASK_TERM_CHANCE: Final = 0.15
"""How likely a client that sends a copy is to ask that node for its term, too."""


def drawn_session_limits(random: Random, answers_outlive: bool) -> Mapping[str, int]:
    """The limits of sessions in one run; ``answers_outlive``: machines keep them over a restart, so
    there are to be some, of which some are too large to be kept."""
    sessions_max, idle_ms_max = random.choice((2, 4096)), random.choice((300, 3000, 1 << 30))
    answers_max, bytes_max = random.choice((1, 64)), random.choice((1, 1000))
    all_bytes_max = random.choice((1, 500, 1200, MIB))  # 1 answer of all together, 2, 5, many
    if answers_outlive:
        idle_ms_max, answers_max, bytes_max, all_bytes_max = 1 << 30, 64, ANSWER_BYTES_KEPT, MIB
    return {
        "sessions_max": sessions_max,
        "session_idle_ms_max": idle_ms_max,
        "session_answers_max": answers_max,
        "session_answer_bytes_max": bytes_max,
        "sessions_bytes_max": all_bytes_max,
    }


def drawn_term(dice: float, node: ClusterNode) -> TermId | None:
    """The term for which alone a command without a session is, if it is; ``dice``: from 0 to 1."""
    if dice >= PLAIN_TERM_CHANCE:
        return None
    status = node.replica.engine.status()
    return TermId(status.epoch, max(0, status.term - (dice < PAST_TERM_CHANCE)))


class SessionClient:
    """One client: its session, and the command that it waits for."""

    __slots__ = (
        "answered",
        "asked_at",
        "command",
        "copies",
        "forgotten_max",
        "is_crowded",
        "lowest",
        "number",
        "opening_at",
        "sequence",
        "session_id",
        "term",
    )

    def __init__(self, number: int, forgotten_max: int) -> None:
        self.number = number
        self.forgotten_max = forgotten_max
        """The answers of so many commands before its last it may forget, and ask for again."""
        self.term: TermId | None = None
        """In which a leader said that it leads; ``None``: it did not since the last command."""
        self.session_id: LogIndex = 0
        """0: it has none (any more)."""
        self.opening_at = -1
        """When it asked for one and was not answered; -1: it did not."""
        self.sequence = 0
        """Of its last command in the session; 0: there was none."""
        self.lowest = 1
        """It has acknowledged what is below, though it need not have forgotten so many."""
        self.is_crowded = False
        """Whether it was refused because too many answers are kept, of its own or of all."""
        self.answered: dict[int, Proposal] = {}
        """Its commands in the session that were answered and not acknowledged, by number."""
        self.command: Proposal | None = None
        """What it waits for: no copy of its own, it stands for all of them."""
        self.copies = 0
        """How many of it were sent, ..."""
        self.asked_at = 0
        """... and when the last one was."""


class SessionClients:
    """All clients of one run; see the module."""

    def __init__(
        self,
        driver: Driver,
        nodes: Mapping[NodeId, ClusterNode],
        results: Results,
        random: Random,
        forgotten_max: Sequence[int],
        patience_ticks: int,
        idle_ms_max: int,
        choose_node: Callable[[float], NodeId],
    ) -> None:
        """``forgotten_max``: of each client, the answers of how many commands before its last it
        may forget, and ask for again.  ``idle_ms_max``: who is idle for longer is gone.
        ``choose_node`` makes a node of a number from 0 to 1, or 0 where none runs."""
        self._driver = driver
        self._nodes = nodes
        self._results = results
        self._random = random
        self._patience_ticks = patience_ticks
        self._idle_ms_max = idle_ms_max
        self._choose_node = choose_node
        self._clients = [
            SessionClient(number, each) for number, each in enumerate(forgotten_max, 1)
        ]
        self._closed_at: dict[LogIndex, int] = {}
        """By session, when its closing was reported."""
        self.commands: list[Proposal] = []
        """Every command that was asked for, one for all of its copies."""
        self._told_terms: list[tuple[LogIndex, TermId]] = []
        """In which term leaders said that they lead, each with what was applied there."""

    # -- asking --

    def tick(self, ask_chance: float, draw: Callable[[], bytes], is_open: bool) -> None:
        """Let each client do what it likes; ``is_open``: new commands may be asked for."""
        now = self._driver.agenda.now
        for client in self._clients:
            # Drawn whatever happens, so that a shorter run is a prefix of a longer one.
            dice, guess, hurry = (self._random.random() for _ in range(3))
            payload = draw()
            node_id = self._choose_node(guess)
            if not node_id:
                continue
            node = self._nodes[node_id]
            if client.command is not None:
                is_late = now - client.asked_at >= self._patience_ticks
                if is_late or (hurry < HURRY_CHANCE and now > client.asked_at):
                    self._send_copy(client, node)
            elif not client.session_id:
                if client.opening_at < 0 or now - client.opening_at >= self._patience_ticks:
                    client.opening_at = now
                    self._driver.turn(node, partial(self._open, client, node))
            elif hurry > 1 - CLOSE_CHANCE:
                if dice < ABANDON_CHANCE and self._idle_ms_max <= ABANDONED_IDLE_MS_MAX:
                    client.session_id = 0
                else:
                    self._driver.turn(node, partial(self._close, client, node))
            elif client.answered and hurry < AGAIN_CHANCE:
                sequences = [*client.answered]
                sequence = sequences[int(dice * 1000) % len(sequences)]
                self._propose(client, node, sequence, client.answered[sequence])
            elif is_open and dice < ask_chance:
                self._begin(client, node, payload)
                self._send_copy(client, node)

    def _open(self, client: SessionClient, node: ClusterNode) -> None:
        try:
            node.turns.open_session(partial(self._hear_opened, client))
        except NotDone as refusal:
            self._driver.note(node.node_id, "refuse", reason=type(refusal).__name__)
            client.opening_at = -1

    def _hear_opened(
        self, client: SessionClient, index: LogIndex, session_id: object, error: Exception | None
    ) -> None:
        """Who asked twice may have two sessions: the other one is left to expire."""
        client.opening_at = -1
        if error is not None or client.session_id:
            return
        entry = self._driver.invariants.chosen.get(index)
        if entry is None or entry.kind != EntryKind.CONTROL or session_id != index:
            raise Broken(
                f"I6: session {session_id} was reported open, and entry {index} is another"
            )
        client.session_id, client.sequence, client.lowest, client.answered = index, 0, 1, {}
        client.is_crowded = False

    def _close(self, client: SessionClient, node: ClusterNode) -> None:
        """Whether that is heard or not, the client opens another one."""
        session_id, client.session_id = client.session_id, 0
        try:
            node.turns.close_session(session_id, partial(self._hear_closed, session_id))
        except NotDone as refusal:
            self._driver.note(node.node_id, "refuse", reason=type(refusal).__name__)

    def _hear_closed(
        self, session_id: LogIndex, index: LogIndex, _: object, error: Exception | None
    ) -> None:
        if error is None:
            self._closed_at[session_id] = self._driver.next_moment()

    def _begin(self, client: SessionClient, node: ClusterNode, payload: bytes) -> None:
        client.sequence += 1
        command = Proposal(len(self.commands) + 1, node.node_id, payload, _hear_nothing)
        dice = self._random.random()
        if dice < TERM_CHANCE:
            status = node.replica.engine.status()
            is_ahead = dice < TERM_CHANCE * NEXT_TERM_CHANCE
            command.expected = client.term or TermId(status.epoch, status.term + is_ahead)
            client.term = None
        command.client, command.began = CLIENT_NUMBERS + client.number, self._driver.next_moment()
        client.command, client.copies = command, 0
        for sequence in [number for number in client.answered if number < self._lowest(client)]:
            del client.answered[sequence]
        self.commands.append(command)

    def _send_copy(self, client: SessionClient, node: ClusterNode) -> None:
        command = client.command
        assert command is not None
        client.asked_at = self._driver.agenda.now
        if client.copies >= COPIES_MAX:
            self._end(client, Outcome.UNKNOWN)
            return
        client.copies += 1
        if self._random.random() < ASK_TERM_CHANCE:
            self._driver.turn(node, partial(self._ask_term, client, node))
            if not node.is_running:
                return  # it crashed over that, and hears of no command
        if client.is_crowded and self._random.random() < ACKNOWLEDGE_CHANCE:
            client.is_crowded, client.lowest, client.answered = False, client.sequence, {}
        mark = self._propose(client, node, client.sequence, command)
        if self._random.random() < LATE_CHANCE:
            due = self._driver.agenda.now + self._random.randint(1, LATE_TICKS_MAX)
            late = partial(self._arrive_late, node, command, client.number, mark)
            self._driver.agenda.plan(due, late)

    def _ask_term(self, client: SessionClient, node: ClusterNode) -> None:
        try:
            node.turns.read_term(partial(self._hear_term, client))
        except NotDone as refusal:
            self._driver.note(node.node_id, "refuse", reason=type(refusal).__name__)

    def _hear_term(
        self, client: SessionClient, index: LogIndex, term: object, error: Exception | None
    ) -> None:
        if error is None:
            assert isinstance(term, TermId)
            client.term = term
            self._told_terms.append((index, term))

    def _lowest(self, client: SessionClient) -> int:
        """The lowest number that a client has not acknowledged."""
        return max(client.lowest, client.sequence - client.forgotten_max)

    def _propose(
        self, client: SessionClient, node: ClusterNode, sequence: int, command: Proposal
    ) -> SessionMark:
        """Send a copy of a command, and say what it is marked with."""
        mark = (client.session_id, sequence, self._lowest(client))
        expected = command.expected
        self._driver.propose(node, command.payload, -client.number, mark=mark, expected=expected)
        return mark

    def _arrive_late(
        self, node: ClusterNode, command: Proposal, number: int, mark: SessionMark
    ) -> None:
        """A copy was long on its way to a node; its client may be at another command by now.  In
        calm nothing comes late: who is asked then would have no time to answer."""
        if node.is_running and self._driver.faults is not QUIET:
            expected = command.expected
            self._driver.propose(node, command.payload, -number, mark=mark, expected=expected)

    def ask_again(self, cluster: Cluster, ticks_max: int) -> None:
        """Have each client ask once more for what it was answered and has not acknowledged; it must
        be answered within so many ticks of calm, each time."""
        for client in self._clients:
            if not client.session_id:
                continue
            for sequence in list(client.answered):
                asked = partial(self._is_answered, cluster, client, sequence)
                if not cluster.run_until(asked, ticks_max):
                    raise cluster.violation(
                        f"L2: client {client.number} asks again for command {sequence} of session "
                        f"{client.session_id}, and is not answered in {ticks_max} ticks"
                    )

    def _is_answered(self, cluster: Cluster, client: SessionClient, sequence: int) -> bool:
        """Whether the last copy of a command was answered; sends another one where it is due."""
        copies = self._driver.proposals
        mark = (client.session_id, sequence, self._lowest(client))
        last = copies[-1] if copies and copies[-1].mark == mark else None
        if last is not None and last.outcome in (Outcome.PENDING, Outcome.DONE):
            return last.outcome is Outcome.DONE
        leader_id = cluster.leader()
        if leader_id:
            command = client.answered[sequence]
            self._propose(client, self._nodes[leader_id], sequence, command)
        return False

    # -- hearing --

    def handle_ended(self, copy: Proposal) -> None:
        """A copy was answered; the first answer to any of them is the command's."""
        client = self._clients[-copy.client - 1]
        if copy.outcome is Outcome.DONE:
            self._judge_answer(copy)
        if isinstance(copy.error, StaleSequence):
            self._driver.goals.reach("late_copy_refused")
        command = client.command
        assert copy.mark is not None
        closed_at = self._closed_at.get(copy.mark[0])
        if closed_at is not None and copy.began > closed_at:
            if isinstance(copy.error, SessionExpired):
                self._driver.goals.reach("closed_session_refused")
            if copy.outcome is Outcome.DONE:
                raise Broken(
                    f"I21: session {copy.mark[0]} was reported closed, and then a command in it "
                    "was answered"
                )
        if command is None or copy.mark[:2] != (client.session_id, client.sequence):
            return  # a late answer to what was answered or given up
        if isinstance(copy.error, StaleSequence):
            raise Broken(
                f"I21: client {client.number} awaits command {client.sequence} of session "
                f"{client.session_id}, and is told that it has acknowledged it"
            )
        if copy.outcome is Outcome.DONE:
            command.result, command.error = copy.result, copy.error
            command.index = command.answer_index = copy.answer_index
            if client.forgotten_max:
                client.answered[client.sequence] = command
            if is_unkept(copy.error):
                self._end(client, Outcome.UNKNOWN)
            else:
                self._end(client, Outcome.DONE)
        elif isinstance(copy.error, SessionExpired):
            self._driver.goals.reach("session_expired")
            # Another copy may have been done while the session lived.
            self._end(client, Outcome.NOT_DONE if client.copies == 1 else Outcome.UNKNOWN)
            client.session_id = 0
        elif isinstance(copy.error, TermChanged):
            self._driver.goals.reach("term_changed")
            # Where the term is still to come, another copy may be done in it.
            is_known = copy.error.is_final or client.copies == 1
            self._end(client, Outcome.NOT_DONE if is_known else Outcome.UNKNOWN)
        elif copy.outcome is Outcome.NOT_DONE:
            # Another node, or this one a little later, may take it.
            now = self._driver.agenda.now
            client.asked_at = now - self._patience_ticks + REFUSED_TICKS
            client.is_crowded = isinstance(copy.error, SessionFull)

    def _judge_answer(self, copy: Proposal) -> None:
        machine = self._nodes[copy.node_id].machine
        if not is_unkept(copy.error):
            self._results.judge_answer(copy)
        elif is_lost(copy.error) and isinstance(machine, JudgedKeeper):
            raise Broken(
                f"I21: node {copy.node_id} has a machine that keeps answers, and client "
                f"{-copy.client} is told that the one of entry {copy.answer_index} is lost"
            )
        if copy.answer_index != copy.index:
            self._driver.goals.reach("retry_deduplicated")
            recalled = machine.recalled if isinstance(machine, JudgedKeeper) else ()
            if copy.answer_index in recalled and not is_unkept(copy.error):
                self._driver.goals.reach("answer_outlived_restart")
            if self._results.has_applied(copy.index):
                raise Broken(
                    f"I21: entry {copy.index} was applied, and its client is told the answer of "
                    f"entry {copy.answer_index}"
                )

    def _end(self, client: SessionClient, outcome: Outcome) -> None:
        command = client.command
        assert command is not None
        command.outcome, command.ended = outcome, self._driver.next_moment()
        client.command = None

    # -- what must hold in the end --

    def ended(self) -> Sequence[Proposal]:
        """The commands whose histories are judged."""
        known = (Outcome.DONE, Outcome.UNKNOWN, Outcome.PENDING)
        found = [command for command in self.commands if command.outcome in known]
        for command in found:
            if command.outcome is Outcome.PENDING:
                command.outcome = Outcome.UNKNOWN
        return found

    def check_log(self) -> None:
        """Every command was dealt with as the rules say, and its client told so."""
        upto = max([node.replica.applied_index for node in self._nodes.values()])
        rules = check_sessions(
            self._driver.invariants.chosen,
            upto,
            self._driver.proposals,
            self._results,
            self._told_terms,
            self._driver.goals,
        )
        for node in self._nodes.values():
            if node.is_running and node.replica.applied_index == upto:
                self._check_table(node, rules)

    def _check_table(self, node: ClusterNode, rules: SessionRules) -> None:
        """A node that has applied all holds the sessions that the rules say, with the answers."""
        held = node.replica.sessions.numbers(rules.time_ms)
        if held != rules.numbers():
            raise Broken(
                f"I21: node {node.node_id} has these commands in the sessions that are not gone: "
                f"{held}, and by the rules there are {rules.numbers()}"
            )


def _hear_nothing(*_: object) -> None:
    """A command is ended by its client."""
