"""What a leader takes when its state machine cannot follow, and what a refusal says and leaves."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from replog.admission import PACE_TICKS, RETRY_MS_MAX, RETRY_MS_MIN, Admission
from replog.errors import DiskFull, NotDone, NotLeader, Overloaded
from replog.limits import Limits
from replog.plugins import engine_names, find_engine
from replog.testing import Cluster, Outcome
from replog.testing.nodes import Proposal
from replog.types import Voter

TICK_MS = 50


def admission(entries_max: int = 100, bytes_max: int = 1 << 20) -> Admission:
    """Of node 1."""
    limits = Limits(
        unapplied_entries_max=entries_max, unapplied_bytes_max=bytes_max, tick_ms=TICK_MS
    )
    return Admission(1, limits)


def paced(per_tick: int, ticks: int = PACE_TICKS + 3) -> Admission:
    """One that has seen so many entries applied in each tick."""
    made = admission()
    for number in range(ticks):
        made.tick(per_tick * number)
    return made


# --- By itself ----------------------------------------------------------------------------------


def test_gap_at_its_limit_is_no_excess() -> None:
    """So many entries may be committed and not applied, and not one more."""
    made = admission(entries_max=100)
    assert not made.is_behind(100, 99)
    assert made.is_behind(101, 0)
    assert made.is_behind(0, 100)


def test_room_is_what_waits_short_of_the_limit() -> None:
    """What waits for its outcome takes the room of what is to come."""
    made = admission(entries_max=100)
    assert [made.room_count(waiting_count) for waiting_count in (0, 99, 100)] == [100, 1, 0]


def test_bytes_are_released_by_what_is_applied() -> None:
    """The bytes of a batch count until all of it is applied, and those of a lost leadership not."""
    made = admission(bytes_max=100)
    made.note_proposed(10, 60)
    assert made.room_bytes(0) == 40
    made.note_proposed(20, 30)
    assert made.room_bytes(9) == 10
    assert made.room_bytes(10) == 70
    made.note_proposed(30, 60)
    assert made.room_bytes(19) == 10
    made.forget()
    assert made.room_bytes(19) == 100


@pytest.mark.parametrize(
    ("per_tick", "waiting_count", "expected"),
    [
        (10, 200, 10 * TICK_MS),
        (10, 1, RETRY_MS_MIN),
        (1000, 1000, TICK_MS // 2),
        (10, 10**6, RETRY_MS_MAX),
        (1000, 200, RETRY_MS_MIN),
        (0, 200, RETRY_MS_MAX),
        (0, 0, RETRY_MS_MIN),
    ],
)
def test_hint_is_the_time_for_a_half(per_tick: int, waiting_count: int, expected: int) -> None:
    """Whoever is refused is to come back when half of what waits is applied, at the latest pace,
    within 10 ms and a second."""
    assert paced(per_tick).retry_after_ms(waiting_count) == expected


def test_hint_before_the_first_tick() -> None:
    """A node that has seen no pace names the longest time if something waits."""
    assert admission().retry_after_ms(5) == RETRY_MS_MAX


def test_hint_goes_by_the_last_ticks() -> None:
    """A machine that has stopped is no quicker for what it did before."""
    made = paced(1000)
    for _ in range(PACE_TICKS + 1):
        made.tick(1000 * (PACE_TICKS + 2))
    assert made.retry_after_ms(200) == RETRY_MS_MAX


@pytest.mark.parametrize(
    ("gap", "waiting_count", "name", "number"),
    [
        (101, 5, "unapplied_entries_max", "101 entries"),
        (0, 100, "unapplied_entries_max", "100 commands"),
        (5, 5, "unapplied_bytes_max", "170 bytes"),
    ],
)
def test_sentence_names_the_limit_and_the_remedy(
    gap: int, waiting_count: int, name: str, number: str
) -> None:
    """The sentence says which limit it was, how much there is, and what to do."""
    made = admission(entries_max=100, bytes_max=100)
    made.note_proposed(500, 170)
    sentence = made.sentence(gap, waiting_count)
    assert f"limits.{name} = 100" in sentence
    assert number in sentence
    assert "try again a little later" in sentence


def test_limit_of_less_than_one_command_is_a_problem() -> None:
    """A configuration in which one command would be too much is refused."""
    limits = Limits(unapplied_bytes_max=1000)
    assert [problem.partition(": ")[0] for problem in limits.problems()] == ["unapplied_bytes_max"]


# --- At a node ----------------------------------------------------------------------------------

SLOW = Limits(apply_entries_max=1, unapplied_entries_max=3)


@pytest.fixture(params=engine_names())
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine."""
    return str(request.param)


def led(engine: str, limits: Limits = SLOW) -> Cluster:
    """Three nodes, led by node 1, whose loop gets back late to what it has to apply."""
    cluster = Cluster(find_engine(engine), limits=limits, batched=True)
    cluster.campaign(1)
    cluster.tick(3)
    assert cluster.leader() == 1
    cluster.driver.crowd.lags[1] = 5
    return cluster


def asked(cluster: Cluster, count: int, node_id: int = 1) -> Sequence[Proposal]:
    """So many commands, all in one turn, and a tick after it."""
    made = [cluster.propose(node_id, b"%d" % number) for number in range(count)]
    cluster.tick()
    return made


def overloaded(engine: str) -> tuple[Cluster, Sequence[Proposal]]:
    """A leader that has taken all that it may, and what that is."""
    cluster = led(engine)
    taken = [cluster.propose(1, b"%d" % number) for number in range(SLOW.unapplied_entries_max)]
    assert {each.outcome for each in taken} == {Outcome.PENDING}
    return cluster, taken


def behind(engine: str) -> Cluster:
    """A cluster led by node 2, which has taken nothing, and whose machine has more to apply of what
    node 1 took than it may."""
    cluster = led(engine)
    cluster.driver.crowd.lags.clear()
    cluster.driver.crowd.lags[2] = 1000
    for _ in range(20):
        asked(cluster, SLOW.unapplied_entries_max)
    cluster.transfer(1, 2)
    assert cluster.run_until(lambda: cluster.leader() == 2, ticks_max=10)
    assert gap_of(cluster, 2) > SLOW.unapplied_entries_max
    assert cluster.nodes[2].replica.waiting_count == 0
    return cluster


def gap_of(cluster: Cluster, node_id: int) -> int:
    """What is committed at a node and not applied."""
    replica = cluster.nodes[node_id].replica
    return replica.engine.commit_index - replica.applied_index


def held(cluster: Cluster, node_id: int = 1) -> tuple[int, ...]:
    """All that a node holds for somebody who waits, in counts and bytes."""
    turns = cluster.nodes[node_id].turns
    admission = turns._admission
    counts = (turns.replica.waiting_count, len(turns._payloads), len(turns._waiters))
    return (*counts, turns._submitted_bytes, len(admission._held), admission._held_bytes)


def test_no_more_is_taken_than_may_wait(engine: str) -> None:
    """A leader that has taken so many commands refuses the next, and takes it when one is done;
    what it had taken is done."""
    cluster, taken = overloaded(engine)
    refused = cluster.propose(1, b"refused")
    assert refused.outcome is Outcome.NOT_DONE
    assert isinstance(refused.error, Overloaded)
    assert "3 commands" in str(refused.error)
    assert "limits.unapplied_entries_max = 3" in str(refused.error)
    assert RETRY_MS_MIN <= refused.error.retry_after_ms <= RETRY_MS_MAX
    done = [Outcome.DONE] * len(taken)
    assert cluster.run_until(lambda: [each.outcome for each in taken] == done, ticks_max=50)
    later = cluster.propose(1, b"later")
    assert cluster.run_until(lambda: later.outcome is Outcome.DONE, ticks_max=50)
    cluster.check_committed()


def test_machine_that_cannot_follow_refuses(engine: str) -> None:
    """A leader refuses commands while too much is committed and not applied, whoever took that; it
    takes them when it has caught up."""
    cluster = behind(engine)
    refused = cluster.propose(2, b"refused")
    cluster.tick()
    assert isinstance(refused.error, Overloaded)
    assert "limits.unapplied_entries_max = 3" in str(refused.error)
    assert RETRY_MS_MIN <= refused.error.retry_after_ms <= RETRY_MS_MAX
    assert cluster.run_until(lambda: gap_of(cluster, 2) == 0, ticks_max=200)
    later = cluster.propose(2, b"later")
    assert cluster.run_until(lambda: later.outcome is Outcome.DONE, ticks_max=50)
    cluster.check_committed()


def test_refused_leaves_nothing(engine: str) -> None:
    """What is refused has no waiter and counts for no bytes, however much of it comes."""
    cluster, _ = overloaded(engine)
    node = cluster.nodes[1]
    before, last_index = held(cluster), node.replica.status().last_index
    told: list[object] = []
    for _ in range(100):
        with pytest.raises(Overloaded):
            node.turns.submit(bytes(1000), lambda *outcome: told.append(outcome))
    assert held(cluster) == before
    cluster.tick(50)
    assert held(cluster) == (0, 0, 0, 0, *held(cluster)[4:])
    assert node.turns._admission.room_bytes(node.replica.applied_index) == SLOW.unapplied_bytes_max
    assert node.replica.status().last_index == last_index + SLOW.unapplied_entries_max
    assert told == [], "who is refused by an error is not told a second time"


def test_refused_batch_leaves_nothing(engine: str) -> None:
    """Commands that were held for a turn, and came too late for it, are refused and let go."""
    cluster = behind(engine)
    turns = cluster.nodes[2].turns
    before = held(cluster, 2)
    told: list[Exception | None] = []
    turns._submitted_bytes_max = 1 << 20  # as it was before the entries were committed
    for _ in range(3):
        turns.submit(b"x", lambda index, result, error: told.append(error))  # noqa: ARG005
    turns._propose_submitted()
    assert held(cluster, 2) == before
    assert len(told) == 3
    for refusal in told:
        assert isinstance(refusal, Overloaded)
        assert "unapplied_entries_max" in str(refusal)


def test_bytes_of_unapplied_commands_are_bounded(engine: str) -> None:
    """A leader takes no more while what it has proposed and not applied is above the limit."""
    limits = Limits(apply_entries_max=1, unapplied_bytes_max=5000, command_bytes_max=1000)
    cluster = led(engine, limits)
    outcomes: list[Proposal] = []
    for _ in range(8):
        outcomes += [cluster.propose(1, bytes(1000)) for _ in range(5)]
        cluster.tick()
    refused = [each for each in outcomes if each.outcome is Outcome.NOT_DONE]
    assert refused
    for each in refused:
        assert "unapplied_bytes_max = 5000" in str(each.error)
    assert cluster.run_until(
        lambda: all(each.outcome is not Outcome.PENDING for each in outcomes), ticks_max=300
    )
    assert cluster.nodes[1].turns._admission._held_bytes <= 5000
    (later,) = asked(cluster, 1)
    assert cluster.run_until(lambda: later.outcome is Outcome.DONE, ticks_max=50)


def test_follower_behind_names_the_leader(engine: str) -> None:
    """A node that does not lead says who does, however far its machine is behind, and however much
    it is asked."""
    cluster = behind(engine)
    cluster.transfer(2, 1)
    assert cluster.run_until(lambda: cluster.leader() == 1, ticks_max=10)
    cluster.tick(2)
    assert gap_of(cluster, 2) > SLOW.unapplied_entries_max
    refused = [cluster.propose(2, b"%d" % number) for number in range(9)]
    cluster.tick()
    for each in refused:
        assert isinstance(each.error, NotLeader)
        assert each.error.leader_id == 1


def test_sessions_are_refused_and_learners_are_not(engine: str) -> None:
    """A leader that is behind opens and closes no session, says when to come back, and goes on
    taking in who lost its disk."""
    cluster = behind(engine)
    turns = cluster.nodes[2].turns
    before = held(cluster, 2)
    with pytest.raises(Overloaded, match="unapplied_entries_max") as opening:
        turns.open_session(lambda *_: None)
    with pytest.raises(Overloaded, match="unapplied_entries_max"):
        turns.close_session(1, lambda *_: None)
    assert opening.value.retry_after_ms >= RETRY_MS_MIN
    assert held(cluster, 2) == before
    turns.admit(Voter(3, 77), lambda *_: None)
    assert held(cluster, 2)[0] == before[0] + 1


def test_engine_that_refuses_is_given_a_hint(engine: str) -> None:
    """An engine knows its limits and no pace; its refusal says when to come back all the same."""
    limits = Limits(uncommitted_bytes_max=1000, command_bytes_max=500)
    cluster = led(engine, limits)
    cluster.isolate(1)
    for _ in range(4):
        cluster.propose(1, bytes(500))
        cluster.tick()
    refused = [each.error for each in cluster.proposals if isinstance(each.error, Overloaded)]
    assert refused
    for error in refused:
        assert RETRY_MS_MIN <= error.retry_after_ms <= RETRY_MS_MAX
    with pytest.raises(Overloaded) as opening:
        cluster.nodes[1].turns.open_session(lambda *_: None)
    assert opening.value.retry_after_ms >= RETRY_MS_MIN


def test_full_disk_says_a_second(engine: str) -> None:
    """A leader with a full disk has looked for room, or begun to hand over, after a second."""
    cluster = led(engine, Limits())
    cluster.fill_disk(1)
    asked(cluster, 2)
    refused = asked(cluster, 1)[0].error
    assert isinstance(refused, DiskFull)
    assert refused.retry_after_ms == 1000


def test_waiting_for_a_turn_is_bounded() -> None:
    """Above the bytes that may be submitted between two turns the limit is named."""
    limits = Limits(uncommitted_bytes_max=500, command_bytes_max=500)
    cluster = led(engine_names()[0], limits)
    turns = cluster.nodes[1].turns
    told: list[NotDone] = []
    for _ in range(3):
        try:
            turns.submit(bytes(300), lambda *_: None)
        except Overloaded as refusal:
            told.append(refusal)
    assert [refusal.retry_after_ms for refusal in told if isinstance(refusal, Overloaded)] == [
        RETRY_MS_MIN,
        RETRY_MS_MIN,
    ]
    assert "limits.uncommitted_bytes_max = 500" in str(told[0])
    assert turns._submitted_bytes == 300


def test_leadership_lost_forgets_what_was_held(engine: str) -> None:
    """What a deposed leader had proposed may never be applied, and does not count when it leads
    again."""
    limits = Limits(unapplied_bytes_max=1000, command_bytes_max=500)
    cluster = led(engine, limits)
    cluster.driver.crowd.lags[1] = 0
    cut = cluster.isolate(1)
    for _ in range(4):
        cluster.propose(1, bytes(500))
        cluster.settle()
    assert cluster.nodes[1].turns._admission._held_bytes == 1000
    assert isinstance(cluster.proposals[-1].error, Overloaded)
    assert cluster.run_until(lambda: cluster.leader() not in (0, 1), ticks_max=200)
    cluster.mend(cut)
    cluster.tick(30)
    assert cluster.nodes[1].turns._admission._held_bytes == 0
    cluster.transfer(cluster.leader(), 1)
    assert cluster.run_until(lambda: cluster.leader() == 1, ticks_max=200)
    assert cluster.run_until_done(bytes(500), ticks_max=50)
