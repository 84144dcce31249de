"""What is noted and judged of one run of one node, where its turn meets its replica.

It stands between the two (see :mod:`replog.testing.watched`) and tells the driver.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from replog.testing.nodes import ClusterNode, Proposal
from replog.types import LogIndex, Ready, Waiter

if TYPE_CHECKING:
    from replog.testing.driver import Driver


class RunWatcher:
    """Watches the replica of one run of one node, on behalf of the driver."""

    __slots__ = ("_driver", "_node")

    def __init__(self, driver: Driver, node: ClusterNode) -> None:
        self._driver = driver
        self._node = node

    def wake(self) -> None:
        """The node asks for another turn."""
        self._node.wants_turn = True

    def handle_step(self, message: object) -> None:
        """Judge what is taken in."""
        self._driver.invariants.check_taken(self._node, message)

    def handle_ready(self, ready: Ready) -> None:
        """Judge what is handed out, and remember what must not leave yet."""
        node = self._node
        self._driver.observe(node)
        self._driver.invariants.check_ready(node, ready)
        node.issued_writes_count += ready.writes
        for message in ready.messages_after_sync:
            _, waits_for = node.after_sync.setdefault(id(message), (message, []))
            waits_for.append(node.issued_writes_count)

    def handle_advanced(self, ready: Ready) -> None:
        """See what came of it; where nothing was written, nothing did."""
        if ready.writes:
            self._driver.observe(self._node)

    def handle_installed(self, last_index: LogIndex) -> None:
        """Take what the snapshot stands for as applied."""
        node, driver = self._node, self._driver
        driver.note(node.node_id, "install", index=last_index)
        driver.goals.reach("snapshot_installed")
        driver.members.note_installed(node)
        node.applied = driver.invariants.stands_for(node, last_index)
        node.handed_index = max(node.handed_index, last_index)
        node.installed_index = last_index

    def handle_apply(self, ready: Ready) -> None:
        """Judge and note what is applied."""
        node, driver = self._node, self._driver
        driver.invariants.check_applied(node, ready.committed)
        for entry in ready.committed:
            node.applied.append(entry)
            driver.note(node.node_id, "apply", entry)

    def handle_offered(self, waiters: Sequence[Waiter]) -> None:
        """They are not held any more, whatever becomes of them."""
        node = self._node
        self._driver.invariants.check_offered(node)
        self._driver.crowd.check_offered(node, waiters)
        node.unproposed = [each for each in node.unproposed if each not in waiters]

    def handle_proposed(self, waiters: Sequence[Waiter], first_index: LogIndex) -> None:
        """Note what was proposed where."""
        for index, waiter in enumerate(waiters, first_index):
            if isinstance(waiter, Proposal):
                waiter.index, waiter.term = index, self._node.replica.engine.term
                waiter.stamp_ms = self._driver.time_ms(self._node)
                self._driver.note(
                    waiter.node_id,
                    "propose",
                    f"p{waiter.number}",
                    index=index,
                    payload=waiter.payload,
                )
