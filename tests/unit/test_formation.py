"""The rule of formation: who may take part, and what nobody accepts twice."""

from __future__ import annotations

from itertools import permutations

import pytest

from replog.errors import DirectoryRemade
from replog.formation import NOBODY_MET, Formation, MetRecord


class Directory:
    """A directory with a birth, of which a run may end at any moment; it keeps what was saved."""

    def __init__(self, node_id: int, birth: int, count: int = 3) -> None:
        self.node_id = node_id
        self.birth = birth
        self.voters = range(1, count + 1)
        self.saved = NOBODY_MET
        self.restart()

    def restart(self) -> None:
        """A crash, and the next run: what was not saved is forgotten."""
        self.formation = Formation(self.node_id, self.birth, self.voters, self.saved)

    def save(self) -> None:
        self.saved = self.formation.record()
        self.formation.handle_saved(self.saved)

    def hear(self, other: Directory) -> None:
        """Take in what the other one says of itself at this moment."""
        self.formation.hear(other.node_id, other.birth, other.formation.told)


def call(caller: Directory, called: Directory) -> None:
    """A whole handshake: hello, save, welcome, save."""
    called.hear(caller)
    called.save()
    caller.hear(called)
    caller.save()


def founded(count: int = 3) -> list[Directory]:
    return [Directory(node_id, 100 * node_id, count) for node_id in range(1, count + 1)]


def test_single_node_formed_at_once() -> None:
    """A node without others waits for nobody."""
    assert Formation(1, 7, [1], NOBODY_MET).is_formed


@pytest.mark.parametrize("order", list(permutations([(1, 2), (1, 3), (2, 3)])), ids=str)
def test_round_of_handshakes_forms_all(order: list[tuple[int, int]]) -> None:
    """When each has called each, in whatever order, all are formed; and not before all others know
    a node."""
    nodes = founded()
    for one, other in order:
        for caller, called in ((one, other), (other, one)):
            call(nodes[caller - 1], nodes[called - 1])
            for node in nodes:
                knowing = [each for each in nodes if (node.node_id, node.birth) in each.saved.met]
                assert not node.formation.is_formed or len(knowing) == 2
    assert [node.formation.waits_for for node in nodes] == [(), (), ()]


def test_majority_is_not_enough() -> None:
    """Who is known to most of the others waits for the last one."""
    nodes = founded(5)
    for other in nodes[1:4]:
        call(nodes[0], other)
    assert nodes[0].formation.waits_for == (5,)
    assert not nodes[0].formation.is_formed


def test_second_birth_refused() -> None:
    """A node that was met under one birth is refused under another, and told why."""
    one, two, _ = founded()
    call(one, two)
    anew = Directory(1, 101)
    with pytest.raises(DirectoryRemade, match="node 1's directory was made anew") as caught:
        two.hear(anew)
    assert caught.value.node_id == 1
    with pytest.raises(DirectoryRemade, match="node 1's directory was made anew"):
        anew.hear(two)
    assert not two.formation.accepts(1, 101)
    assert two.formation.accepts(1, 100)
    assert two.formation.record().met == ((1, 100),)


def test_same_birth_is_no_news() -> None:
    """Who calls again is no news, and nothing is to be saved."""
    one, two, _ = founded()
    call(one, two)
    assert two.formation.is_saved
    two.hear(one)
    two.formation.meet(1, 100)
    record = two.formation.record()
    assert record.met == ((1, 100),)


def test_told_is_durable() -> None:
    """What was heard is not told before it is saved: a crash takes back no word."""
    one, two, _ = founded()
    two.hear(one)
    assert two.formation.told == ()
    assert not two.formation.is_saved
    two.restart()
    assert two.formation.told == ()
    two.hear(one)
    two.save()
    assert two.formation.told == ((1, 100),)
    two.restart()
    assert two.formation.told == ((1, 100),)


def test_formed_when_that_is_durable() -> None:
    """To be known by all counts when it is saved here, and then for ever."""
    one, two = founded(2)
    two.hear(one)
    two.save()
    one.hear(two)
    assert not one.formation.is_formed
    one.save()
    assert one.formation.is_formed
    one.restart()
    assert one.formation.is_formed


def test_welcome_lost() -> None:
    """When the other side has recorded us and its word was lost, the next call brings it."""
    one, two = founded(2)
    two.hear(one)
    two.save()
    one.restart()
    two.restart()
    call(one, two)
    assert one.formation.is_formed


def test_calls_that_cross() -> None:
    """When both call at once, each hears a hello that tells nothing and a welcome that tells it
    all."""
    one, two = founded(2)
    hello_one, hello_two = one.formation.told, two.formation.told
    two.formation.hear(1, one.birth, hello_one)
    one.formation.hear(2, two.birth, hello_two)
    one.save()
    two.save()
    welcome_one, welcome_two = one.formation.told, two.formation.told
    two.formation.hear(1, one.birth, welcome_one)
    one.formation.hear(2, two.birth, welcome_two)
    one.save()
    two.save()
    assert one.formation.is_formed
    assert two.formation.is_formed


def test_formed_beside_forming() -> None:
    """A formed node goes on while another one is still forming, and helps it to form."""
    one, two, three = founded()
    call(one, two)
    call(one, three)
    assert one.formation.is_formed
    assert two.formation.waits_for == (1, 3)
    call(two, one)
    call(two, three)
    assert two.formation.is_formed


def test_lost_record_forms_again() -> None:
    """A directory that lost its record and kept its birth is told by the others whom they have met,
    refuses whom it had refused, and forms again."""
    nodes = founded()
    for one in nodes:
        for other in nodes:
            if one is not other:
                call(one, other)
    one, two, three = nodes
    two.saved = NOBODY_MET
    two.restart()
    assert two.formation.waits_for == (1, 3)
    call(two, one)
    anew = Directory(3, 301)
    with pytest.raises(DirectoryRemade):
        two.hear(anew)
    assert two.formation.waits_for == (3,)
    call(two, three)
    assert two.formation.is_formed


def test_hearsay_changes_nothing_known() -> None:
    """What others say of a third node stands behind what this node has met itself; and who is
    formed takes over nothing."""
    two = Formation(2, 200, range(1, 4), MetRecord(met=((3, 301),)))
    two.hear(1, 100, ((2, 200), (3, 300), (9, 9)))
    assert two.record() == MetRecord(met=((1, 100), (3, 301)), known_by=(1,))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_one_wiped_after_formation_never_forms(count: int) -> None:
    """A directory made anew in place of a formed one is refused by each of the others, whatever it
    tries and whoever else is made anew, as long as one is left."""
    nodes = founded(count)
    for one in nodes:
        for other in nodes:
            if one is not other:
                call(one, other)
    anew = [Directory(node.node_id, node.birth + 1, count) for node in nodes[1:]]
    for one in (nodes[0], *anew):
        for other in (nodes[0], *anew):
            if one is not other:
                try:
                    call(one, other)
                except DirectoryRemade:
                    continue
    assert [each.formation.is_formed for each in anew] == [False] * (count - 1)
