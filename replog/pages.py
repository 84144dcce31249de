"""Results of any size, a page at a time.

A result has to fit into a frame, and whoever asks cannot know how large it will be.  So a query
whose result may be large gives out a page of it, and says where the next one begins.
``client.items`` asks for one page after the other, and gives its caller the items.

The convention: the first argument of such a query is where to go on, ``None`` at first; what it
returns is an :class:`ItemsPage`.  A page may be empty and not the last.  The state may change
between two pages, so a cursor names a place in the order of the items and holds no state; then each
item that is there all the time comes exactly once, from whichever node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from replog.errors import SchemaError


class ItemsPage(TypedDict):
    """A page of items, as a query of a machine gives it out."""

    items: list[Any]
    next: Any
    """What the next page is asked for with; None: this one is the last."""


class PageCursor:
    """Where somebody stands who reads all items."""

    __slots__ = ("_encode", "_next", "is_at_end")

    def __init__(self, encode: Callable[[object], bytes]) -> None:
        """``encode`` makes the payload of a query of where to go on."""
        self._encode = encode
        self._next: object = None
        self.is_at_end = False

    @property
    def payload(self) -> bytes:
        """The query for the next page."""
        return self._encode(self._next)

    def take(self, page: object) -> Sequence[Any]:
        """A page has come; its items.

        Raises :class:`~replog.errors.SchemaError` for what is no page, or one that would be asked
        for again for ever.
        """
        match page:
            case {"items": list(items), "next": following}:
                if following is not None and following == self._next:
                    raise SchemaError(
                        f"the next page of items begins where the last one did, at {following!r}; "
                        "mend the query"
                    )
                self._next, self.is_at_end = following, following is None
                return items
        raise SchemaError(
            "what came is no page of items; ask a query that gives out replog.pages.ItemsPage"
        )
