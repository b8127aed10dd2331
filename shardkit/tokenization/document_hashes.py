"""What tells documents with the same tokens: a hash of 16 bytes of each, without its end of text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

HASH_BYTES = 16  # of a set, some 100 bytes of memory a document


class DocumentHashes:
    """Hashes the documents of a stream that comes in pieces."""

    def __init__(self) -> None:
        self._begun: Any = None  # the hash of the document that goes on in the next piece

    def of(self, tokens: NDArray[np.unsignedinteger], starts: Iterable[int], *, ends: bool) -> list[bytes]:
        """The hashes of the documents that end in a piece, in order: before each of `starts`, where the EOTs are, and,
        if the piece `ends` with a document, at its end."""
        found, at = [], 0
        for start in starts:
            if self._begun is not None:
                found.append(self._end(tokens[at:start]))
            self._begun, at = hashlib.blake2b(digest_size=HASH_BYTES), start + 1
        if self._begun is not None and ends:
            found.append(self._end(tokens[at:]))
        elif self._begun is not None:
            self._begun.update(tokens[at:].tobytes())
        return found

    def _end(self, tokens: NDArray[np.unsignedinteger]) -> bytes:
        self._begun.update(tokens.tobytes())
        digest: bytes = self._begun.digest()
        self._begun = None
        return digest


def hashes_of_stream(blocks: Iterable[NDArray[np.unsignedinteger]], documents: int, eot_id: int) -> Iterator[bytes]:
    """The hashes of the first `documents` documents of a stream."""
    hashes, left = DocumentHashes(), documents
    for block in blocks if documents else ():
        for digest in hashes.of(block, np.flatnonzero(block == eot_id).tolist(), ends=False)[:left]:
            yield digest
            left -= 1
        if not left:
            return
    yield from hashes.of(np.empty(0, np.uint16), (), ends=True)[:left]
