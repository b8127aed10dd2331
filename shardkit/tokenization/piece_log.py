"""Where the pieces of a part's stream end, and which rows their documents are: `.shardkit/pieces.jsonl`, a checked line
a piece.

Written where `max_docs` or `max_tokens` may end the whole's stream somewhere in the part: then the merge, which has no
text, says of the file in which the stream ends what a single run says of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.checked_lines import CheckedLines
from shardkit.dataset.journal import Journal
from shardkit.dataset.manifest import WORK_DIR, SourceFile
from shardkit.errors import OutputError
from shardkit.files import write_error
from shardkit.tokenization.piece_rows import with_piece
from shardkit.tokenization.worker import EncodedChunk

PIECES_FILE = f"{WORK_DIR}/pieces.jsonl"
Place = tuple[int, int, int]


@dataclass(slots=True)
class Piece:
    """A piece of the stream: the `place` of its chunk (file, start, part), whether it is the chunk's `last`, and its
    figures, as an `EncodedChunk` has them."""

    place: Place
    last: bool
    tokens: int
    documents: int
    rows: int
    document_rows: NDArray[np.int64] | None
    skipped: NDArray[np.int64]
    duplicates: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # of no part


class PieceLog:
    """The log of the part in `directory`, to be written on from where `journal` goes on. A context manager.

    Raises `OutputError` if it does not hold up to there: the machine has lost what was not on its disk.
    """

    def __init__(self, directory: Path, journal: Journal) -> None:
        self.path = directory / PIECES_FILE
        self._check, end, tokens = CheckedLines(), 0, 0
        resume = journal.resume
        try:
            self._file: BinaryIO = open(self.path, "a+b")  # noqa: SIM115 (closed at the block's end)
            self._file.seek(0)
            for line, piece, check in _pieces(self._file):
                if piece.place >= (resume.file, resume.start, resume.part):
                    break
                self._check, end, tokens = check, end + len(line), tokens + piece.tokens
            self._file.truncate(end)
        except OSError as error:
            raise write_error(error, self.path, 0) from None
        if tokens + resume.skip_tokens < sum(shard.tokens for shard in journal.shards):
            self._file.close()
            raise OutputError(f"{self.path} does not go as far as the shards beside it: start again with --overwrite")

    def __enter__(self) -> PieceLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def append(self, result: EncodedChunk) -> None:
        """Note the next piece. Raises `OutputError` if it cannot be written."""
        chunk = result.chunk
        rows = None if result.document_rows is None else result.document_rows.tolist()
        counts = [result.count, len(result.eot_positions), result.rows]
        place = [chunk.file, chunk.start, chunk.part]
        line = self._check.seal([place, result.last, *counts, rows, result.skipped.tolist()])
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise write_error(error, self.path, len(line)) from None


def _pieces(file: BinaryIO) -> Iterator[tuple[bytes, Piece, CheckedLines]]:
    """The lines that hold, each with its piece and the checksum after it."""
    check = CheckedLines()
    for line in file:
        check = check.copy()
        if not (records := check.unseal([line])):
            return
        place, last, tokens, documents, rows, document_rows, skipped = records[0]
        piece = Piece(
            place=(place[0], place[1], place[2]),
            last=last,
            tokens=tokens,
            documents=documents,
            rows=rows,
            document_rows=None if document_rows is None else np.asarray(document_rows, np.int64),
            skipped=np.asarray(skipped, np.int64).reshape(-1, 2),
        )
        yield line, piece, check


def files_at(
    directory: Path,
    files: Sequence[SourceFile],
    *,
    tokens: int,
    documents: int,
    max_docs: int | None,
    max_tokens: int | None,
) -> list[SourceFile]:
    """What each of the part's `files` gave, if the stream ends after the part's first `tokens` tokens and `documents`
    documents, because that is `max_docs` or `max_tokens`, which count from the part's beginning.

    Raises `OutputError` if the log in `directory` does not say so.
    """
    path, done, seen = directory / PIECES_FILE, 0, 0
    given = [SourceFile(path=file.path, bytes=file.bytes) for file in files]
    try:
        with open(path, "rb") as file:
            for _, piece, _ in _pieces(file):
                kept = min(piece.tokens, tokens - done)
                whole = kept == piece.tokens
                begun = piece.documents if whole else documents - seen
                number = piece.place[0]
                given[number] = with_piece(given[number], piece, kept, begun, whole=whole)
                done, seen = done + kept, seen + begun
                enough_tokens = max_tokens is not None and done >= max_tokens
                if enough_tokens or ((piece.last or not whole) and max_docs is not None and seen >= max_docs):
                    if (done, seen) != (tokens, documents):
                        break
                    return given
    except (OSError, IndexError) as error:
        raise OutputError(f"cannot read {path}: {error}") from None
    raise OutputError(f"{path} is damaged: tokenize that part again with --overwrite")
