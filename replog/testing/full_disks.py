"""Full disks in a test cluster: which groups are refused, and when room is sought.

The disk of a node over the real log has a size, and the log's own code finds out.  A modelled disk
has room for so many more groups with entries, and refuses the next one; what has no entries always
fits.  A storage may know that it is full while it has room for some more groups, or not before it
refused one, and both kinds are modelled.

The rules this module keeps are those of :mod:`replog.storage.protocol`: a group that was refused is
the next one, as it is, and nothing behind it becomes durable before; while a storage is full, room
is sought now and then, never beside a write; a node that is down, paused or on a disk that stands
still is not touched.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from replog.errors import StorageFull
from replog.testing.checks import Broken
from replog.testing.disk import Group

if TYPE_CHECKING:
    from replog.testing.driver import Driver
    from replog.testing.nodes import ClusterNode

ROOM_TICKS: Final = 10
"""How long after an attempt to make room the next one follows."""


class RoomSeeker:
    """Writes to the disks of one cluster, be they full or not."""

    __slots__ = ("_driver",)

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def is_full(self, node: ClusterNode) -> bool:
        """What the node's storage says of itself."""
        return node.is_full

    def report(self, node: ClusterNode, is_full: bool) -> None:
        """The node has noticed that its disk is full, or has room again."""
        self._driver.note(node.node_id, "disk_full" if is_full else "has_room")

    def note_turn(self, node: ClusterNode) -> None:
        """The node is about to take a turn: remember what it must know in it and behind it."""
        node.was_full = node.is_full
        if node.was_full:
            node.full_run = node.run

    def persist(self, node: ClusterNode, group: Group) -> bool:
        """Whether there is room for a group, which is on a real log then; else it comes again."""
        log_disk = node.log_disk
        if log_disk is None:
            is_refused = node.disk.refuses(group)
        else:
            if problem := log_disk.rehearse_write(group, self._driver.seed):
                raise Broken(f"I11: node {node.node_id} {problem}")
            is_refused = False
            try:
                log_disk.persist(group)
            except StorageFull:
                is_refused = True
        node.disk.is_refusing = is_refused
        if is_refused:
            self._driver.note(node.node_id, "no_room")
        elif node.full_run == node.run and not node.is_full:
            node.full_run = 0
            self._driver.goals.reach("full_disk_recovered")
        return not is_refused

    def plan(self, node: ClusterNode) -> None:
        """Have room sought soon, if that is needed and not planned already."""
        if (node.is_full or node.disk.is_refusing) and not node.seeks_room:
            node.seeks_room = True
            agenda = self._driver.agenda
            agenda.plan(agenda.now + ROOM_TICKS, partial(self._seek, node, node.run))

    def _seek(self, node: ClusterNode, run: int) -> None:
        if node.run != run or not node.is_up:
            return
        node.seeks_room = False
        if node.is_paused or node.disk.is_held:
            self.plan(node)
        else:
            self._driver.turn(node, partial(self._make_room, node))

    def _make_room(self, node: ClusterNode) -> None:
        """Try to grow again; a group that was refused is tried once more in this turn."""
        if node.log_disk is None:
            node.disk.make_room()
        else:
            node.log_disk.make_room()
        node.disk.is_refusing = False
