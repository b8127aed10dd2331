"""The ends of remote parquet files, which hold their footers: fetched for several files ahead, in parallel."""

from __future__ import annotations

from collections.abc import Sequence

from shardkit.sources.read_ahead import ReadAhead, Span
from shardkit.sources.source import InputFile, Piece

_FILES_AHEAD = 8
_END_BYTES = 1 << 20  # that a footer mostly fits into
_LEAST_BYTES = 64 << 10  # that pyarrow reads of any file's end
_MOST_BYTES = 64 << 20  # of a footer; what says that it is longer is damaged


class Footers:
    """The footers of those of `files` that are remote parquet files, over `connections`."""

    def __init__(self, files: Sequence[InputFile], connections: ReadAhead) -> None:
        self.connections = connections
        self.files = files
        self._asked: dict[int, Span] = {}
        self._here: dict[int, Piece | None] = {}

    def footer(self, number: int) -> Piece | None:
        """The end of file `number`, with its footer (all of a small file); None for a local file, and after `discard`.
        Those of the next files are asked for. Raises `SourceError`."""
        if not self._needs(number):
            return None
        self._ask_from(number)
        if number not in self._here:
            self._here = {number: self._end(self._asked.pop(number))}
        return self._here[number]

    def is_ready(self, number: int) -> bool:
        """Whether `footer` would have to wait for nothing, as far as can be told."""
        if not self._needs(number) or number in self._here:
            return True
        self._ask_from(number)
        return self.connections.has_come(self._asked[number], self._asked[number].stop)

    def _ask_from(self, number: int) -> None:
        for later in range(number, min(number + _FILES_AHEAD, len(self.files))):
            if self._needs(later) and later not in self._asked and later not in self._here:
                file = self.files[later]
                start = max(0, file.bytes - _END_BYTES)
                self._asked[later] = self.connections.ask(file, start, file.bytes, urgent=True)

    def discard(self, number: int) -> None:
        """Something is wrong with the footer of file `number`: it is not given any more."""
        self._here[number] = None

    def _needs(self, number: int) -> bool:
        file = self.files[number]
        return file.is_remote and file.format == "parquet" and file.bytes > 0

    def _end(self, span: Span) -> Piece:
        """The end of a file, of which `span` is a part, that holds its footer."""
        end = self._bytes_of(span)
        count = min(max(_LEAST_BYTES, int.from_bytes(end[-8:-4], "little") + 8), span.file.bytes)
        if len(end) < count <= _MOST_BYTES:
            end = self._bytes_of(self.connections.ask(span.file, span.stop - count, span.stop, urgent=True))
        if count < len(end) < span.file.bytes // 2:  # of a small file all that is here may be of use
            end = end[-count:]
        return span.stop - len(end), end

    def _bytes_of(self, span: Span) -> bytes:
        data = bytes(self.connections.wait(span, span.stop))
        self.connections.release(span)
        return data
