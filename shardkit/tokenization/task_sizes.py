"""How many chunks a task of a cluster encodes: the more, the less the main process has to do, and the more must be
encoded again where a worker dies."""

from __future__ import annotations

from dataclasses import dataclass

TASK_BYTES = 128 << 20  # of tokens, which a worker holds until all are encoded
_TASK_SECONDS = 2.0  # of a worker: a task costs the main process some 3 ms
_SHARES = 16  # of the chunks so far, as many for each worker: so none has much to do when the others are done


@dataclass(slots=True)
class TaskSizes:
    """How many `chunks` were encoded, and what they took: bytes of tokens, and seconds of a worker."""

    chunks: int = 0
    token_bytes: int = 0
    seconds: float = 0.0

    def note(self, chunks: int, token_bytes: int, seconds: float) -> None:
        """So many more were encoded."""
        self.chunks += chunks
        self.token_bytes += token_bytes
        self.seconds += seconds

    def chunks_a_task(self, workers: int, most_bytes: int) -> int:
        """How many chunks the next task has, of tokens of at most `most_bytes`: at least one."""
        by_bytes = self.chunks * min(most_bytes, TASK_BYTES) / max(1, self.token_bytes)
        by_seconds = self.chunks * _TASK_SECONDS / max(1e-3, self.seconds)
        return max(1, int(min(by_bytes, by_seconds, self.chunks / (_SHARES * workers))))
