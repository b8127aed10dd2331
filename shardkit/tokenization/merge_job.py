"""One job of a merge: its share of the shards, and its files in `.shardkit/merge/`, which others leave alone.

Several may be at work in one folder, also of merges in different numbers of jobs (3 of 16 beside 0 of 1). Each holds
the lock of its name, `3-of-16.lock`, as long as it lives; what is there of others that have died is removed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from shardkit.dataset.folder import MERGE_FOLDER, PART_NAME, PARTS_FOLDER
from shardkit.errors import OutputError, SourceError
from shardkit.files import remove_tree
from shardkit.locks import hold_lock
from shardkit.remote.address import hint_at_folder
from shardkit.tokenization.merge_parts import PartsHere, PartsThere
from shardkit.tokenization.merge_plan import MergePlan
from shardkit.tokenization.merge_shards import Tell


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeJob:
    """Job `index` of `count` (`--part`) of a merge in `directory`, of the parts in it or at `repo`."""

    repo: str | None
    directory: Path
    index: int
    count: int
    keep_parts: bool
    tell: Tell | None

    @property
    def name(self) -> str:
        return f"{self.index}-of-{self.count}"

    @property
    def folder(self) -> Path:
        return self.directory / MERGE_FOLDER

    @property
    def lines_file(self) -> Path:
        """Where it notes its shards."""
        return self.folder / f"{self.name}.jsonl"

    @property
    def temp(self) -> Path:
        """The file of the shard that it is making."""
        return self.folder / f"{self.name}.tmp"

    @property
    def leaving(self) -> Path:
        """The folder of its shards that wait to be sent: other jobs in this folder may make some of the same names."""
        return self.folder / f"{self.name}.leaving"

    def numbers(self, plan: MergePlan) -> list[int]:
        """The numbers of the shards that it makes. Raises `SourceError` if there are none at all."""
        if not (total := len(plan.lengths)):
            raise SourceError("the parts hold no documents: nothing was merged")
        return [number for number in range(total) if number * self.count // total == self.index]

    @contextmanager
    def plan(self) -> Iterator[MergePlan]:
        """What is to be made of the parts. While the block runs this process holds the job's lock, and, of parts at a
        remote, what was fetched of them. Raises `LockHeld` if another process has the job, and as `MergePlan` does."""
        busy = f"another process is merging part {self.index}/{self.count} of {self.directory}: wait for it"
        with ExitStack() as stack:
            stack.enter_context(hold_lock(self.folder / f"{self.name}.lock", busy=busy, remove=True))
            self._remove_where(
                lambda job, suffix: (
                    job != self.name
                    and not job.endswith(f"-of-{self.count}")
                    and suffix in (".parts", ".tmp", ".leaving")
                )
            )
            if self.repo is None:
                yield MergePlan(self.directory, PartsHere(self.directory))
                return
            stack.enter_context(hint_at_folder(self.repo))
            parts = stack.enter_context(PartsThere(self.repo, self.folder / f"{self.name}.parts"))
            yield MergePlan(self.directory, parts)

    def remove(self) -> None:
        """When the dataset is complete: remove the parts in the folder, unless they are kept, and last what says that
        they are merged. A job that is still at work here finds the dataset at its end, and removes what it left."""
        if self.repo is None and not self.keep_parts:
            self._remove_parts()
        self._remove_where(lambda job, suffix: True)  # noqa: ARG005
        with suppress(OSError):  # a job is at work, or something of somebody else's is in it
            self.folder.rmdir()

    def _remove_parts(self) -> None:
        """Renamed first, so that others see all of them or none, unless something of somebody else's is beside them."""
        parts, going = self.directory / PARTS_FOLDER, self.folder / "parts.going"
        with suppress(OSError):
            if not parts.is_symlink() and all(PART_NAME.fullmatch(name) for name in os.listdir(parts)):
                shutil.rmtree(going, ignore_errors=True)
                self.folder.mkdir(parents=True, exist_ok=True)
                parts.rename(going)
        shutil.rmtree(going, ignore_errors=True)
        for folder in parts.glob("*-of-*"):
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            parts.rmdir()

    def _remove_where(self, chosen: Callable[[str, str], bool]) -> None:
        """Remove the chosen files, by their job and suffix, of jobs that are not at work."""
        found: dict[str, list[Path]] = {}
        with suppress(OSError):
            for path in self.folder.iterdir():
                job, _, suffix = path.name.removeprefix(".").partition(".")  # of one half written, `.NAME.PID.tmp`
                if PART_NAME.fullmatch(job) and chosen(job, f".{suffix}"):
                    found.setdefault(job, []).append(path)
        for job, paths in found.items():
            with suppress(OutputError), hold_lock(self.folder / f"{job}.lock", busy="it is at work", remove=True):
                for path in paths:
                    if not path.name.startswith(f"{job}.lock"):
                        remove_tree(path)
