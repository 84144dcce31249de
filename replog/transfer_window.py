"""The window of a transfer: which pieces of a file are asked for, have come, and are being written.

At most ``WINDOW`` pieces are between the first byte that is not written and the first that was not
asked for, so no more of the file is ever in memory.  Pieces may come in any order and are written
in theirs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

WINDOW: Final = 4
"""Pieces of one snapshot that are asked for at a time."""


class Piece:
    """Some bytes of the file that were asked for."""

    __slots__ = ("data", "is_writing", "offset", "size_bytes")

    def __init__(self, offset: int, size_bytes: int) -> None:
        self.offset = offset
        self.size_bytes = size_bytes
        self.data: bytes | None = None
        """``None``: has not come yet."""
        self.is_writing = False


class Window:
    """The pieces of one file that is ``size_bytes`` long; see the module."""

    __slots__ = ("_pieces", "offset", "piece_bytes", "size_bytes")

    def __init__(self, offset: int, size_bytes: int, piece_bytes: int) -> None:
        assert 0 <= offset <= size_bytes
        self.offset = offset
        """Everything before it is written."""
        self.size_bytes = size_bytes
        self.piece_bytes = piece_bytes
        """How much is asked for at a time."""
        self._pieces: deque[Piece] = deque()
        """They touch each other, and the first begins at ``offset``."""

    @property
    def is_complete(self) -> bool:
        """Whether the whole file is written."""
        return self.offset == self.size_bytes

    @property
    def held_bytes(self) -> int:
        """How much is in memory."""
        return sum(len(piece.data) for piece in self._pieces if piece.data is not None)

    def extend(self) -> Sequence[Piece]:
        """Pieces that are to be asked for now, for there is room for them."""
        fresh: list[Piece] = []
        end = self.offset + sum(piece.size_bytes for piece in self._pieces)
        while len(self._pieces) < WINDOW and end < self.size_bytes:
            piece = Piece(end, min(self.piece_bytes, self.size_bytes - end))
            self._pieces.append(piece)
            fresh.append(piece)
            end += piece.size_bytes
        return fresh

    def missing(self) -> Sequence[Piece]:
        """What was asked for and has not come."""
        return [piece for piece in self._pieces if piece.data is None]

    def take(self, offset: int, data: bytes) -> bool:
        """Keep bytes that came; whether they were asked for and are the first.

        A peer may give less than it was asked for.  Then it is asked for no more than that from
        here on, and what was asked for behind it is forgotten, for it lies elsewhere now.
        """
        awaited = self.missing()
        piece = next((piece for piece in awaited if piece.offset == offset), None)
        if piece is None or len(data) > piece.size_bytes:
            return False
        if len(data) < piece.size_bytes:
            if piece is not awaited[0]:
                return False
            while self._pieces[-1] is not piece:
                self._pieces.pop()
            piece.size_bytes = self.piece_bytes = len(data)
        piece.data = data
        return True

    def next_to_write(self) -> Piece | None:
        """The next piece in order, if it has come; it counts as being written from now on."""
        for piece in self._pieces:
            if not piece.is_writing:
                if piece.data is None:
                    return None
                piece.is_writing = True
                return piece
        return None

    def advance(self) -> None:
        """The first piece is written."""
        piece = self._pieces.popleft()
        assert piece.is_writing
        self.offset += piece.size_bytes
