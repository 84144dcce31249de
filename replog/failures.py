"""Which of the errors that end a block of tasks is the one to tell."""

from __future__ import annotations

from replog.errors import FatalError


def main_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What ended the block: what stopped the node, else the only error, else all of them.

    When a node stops, whoever waits on it inside the block fails as well; that is no news.
    """
    leaves: list[BaseException] = []
    groups = [group]
    while groups:
        for error in groups.pop().exceptions:
            if isinstance(error, BaseExceptionGroup):
                groups.append(error)
            else:
                leaves.append(error)
    for error in leaves:
        if isinstance(error, FatalError):
            return error
    return leaves[0] if len(leaves) == 1 else group
