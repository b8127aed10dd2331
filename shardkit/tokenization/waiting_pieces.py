"""Pieces of files that were given out whole, while they wait in the main process for the files before theirs: what
grows with the number of their documents lies on the disk."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from shardkit.files import write_error
from shardkit.tokenization.tokens_on_disk import PieceOnDisk, TokensOnDisk
from shardkit.tokenization.worker import EncodedChunk

_SMALL_BYTES = 4096  # of an array that stays in memory
_ARRAYS = ("eot_positions", "document_rows", "skipped")


class WaitingPiece(NamedTuple):
    """A piece without those of its arrays that are on the disk."""

    piece: EncodedChunk
    arrays: dict[str, PieceOnDisk]


class WaitingPieces:
    """They wait in nameless files in `folder`; in memory, where these cannot be written."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._disk: TokensOnDisk | None = None

    def put(self, piece: EncodedChunk) -> WaitingPiece:
        """Have a piece wait, which is changed."""
        arrays: dict[str, PieceOnDisk] = {}
        with suppress(OSError):
            for name in _ARRAYS:
                array = getattr(piece, name)
                if array is not None and array.nbytes > _SMALL_BYTES:
                    if self._disk is None or self._disk.is_full:
                        self._disk = TokensOnDisk(self._folder)
                    arrays[name] = self._disk.add(array.ravel())
                    setattr(piece, name, array[:0].copy())
        return WaitingPiece(piece, arrays)

    def take(self, waiting: WaitingPiece) -> EncodedChunk:
        """The piece as it was. Raises `OutputError`."""
        piece, arrays = waiting
        try:
            for name, array in arrays.items():
                setattr(piece, name, array.read().reshape(-1, *getattr(piece, name).shape[1:]))
        except OSError as error:
            raise write_error(error, Path(self._folder), 0) from None
        return piece
