"""`tokenize --push`: finished shards leave for the remote while the next are made; the run can move to a new machine.

The journal travels with the shards, in segments. On a machine that has nothing, the remote's journal says where the
stream goes on; it never names a shard that is not at the remote.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any

from shardkit.dataset.folder import PUSHED_TO_FILE
from shardkit.dataset.journal import (
    JOURNAL_FILE,
    Journal,
    counted_shards,
    differences,
    first_line,
    parse_journal,
    read_local,
    whole_lines,
)
from shardkit.dataset.journal_segments import SentSegments, segment_files
from shardkit.dataset.manifest import MANIFEST_NAME, Manifest, ShardInfo
from shardkit.dataset.tokenizer_file import tokenizer_files
from shardkit.errors import HubError, OutputError, ShardkitWarning, UsageError
from shardkit.files import atomic_write, counted, is_on_local_disk
from shardkit.remote.claim import another_dataset, check_not_claimed, claim_for, holds_data
from shardkit.remote.interface import CLAIM_FILE, Remote, RemoteFile
from shardkit.remote.push import publish
from shardkit.remote.uploader import Uploader
from shardkit.tokenization.piece_log import PIECES_FILE
from shardkit.tokenization.pushed_run import RemoteRun, run_mark
from shardkit.tokenization.run_size import check_room, room_for_next
from shardkit.tokenization.run_spec import RunSpec
from shardkit.tokenization.runner import Destination, Runner

_IF_OVER = "if it is over, give the --out that it had, or `shardkit push --overwrite` a finished dataset there"


def adopt_journal(directory: Path, run: RemoteRun, identity: Mapping[str, Any]) -> None:
    """Put the remote's journal into `directory` if it is further than the one in it, or the only one.

    Raises `HubError` if it is of another run than the one that `identity` describes or the one in `directory`,
    `UsageError` if the remote is `directory` itself.
    """
    _check_place(run, directory, identity)
    if run.journal is None:
        return
    path = directory / JOURNAL_FILE
    there, here = parse_journal(run.journal, where=run.remote.name), read_local(directory)
    if here is not None:
        both = min(len(here.shards), len(there.shards))
        if here.identity != there.identity or here.shards[:both] != there.shards[:both]:
            raise HubError(
                f"{run.remote.name} holds another run than {directory}: push to another repo, or choose another --out"
            )
    if here is None or len(there.lines) > len(here.lines):
        path.parent.mkdir(parents=True, exist_ok=True)
        if PIECES_FILE in run.files:
            atomic_write(directory / PIECES_FILE, run.remote.read(PIECES_FILE))
        atomic_write(path, run.journal)


def forget_lost(directory: Path, run: RemoteRun) -> None:
    """Have the journal in `directory` end before the first shard that is neither there nor at the remote, with a
    warning: it and those after it are made again. Shards that nodes sent, and that were not acknowledged when the run
    was killed, are such ones. Where the remote knows nothing of this run, nothing is forgotten."""
    if run.journal is None or (here := read_local(directory)) is None:
        return
    for shard in here.shards:
        at_remote = run.files.get(shard.file) == RemoteFile(shard.bytes, shard.sha256)
        if not at_remote and not (directory / shard.file).exists():
            warnings.warn(
                f"{shard.file} is neither in {directory} nor acknowledged at {run.remote.name}: the run makes "
                f"{counted(len(here.shards) - shard.index, 'shard')} again, from this one on",
                ShardkitWarning,
                stacklevel=3,
            )
            atomic_write(directory / JOURNAL_FILE, b"".join(here.lines[: 1 + shard.index]))
            return


def claim_before_overwrite(
    run: RemoteRun, directory: Path, spec: RunSpec, *, private: bool, max_disk: int | None
) -> None:
    """Meet all that may keep the run of `spec` from its place now, while `directory` still holds what it replaces.

    Raises as `adopt_journal`, `claim_place` and `LivePush` do.
    """
    _check_place(run, directory, spec.identity())
    if run.manifest is not None:
        spec.check_is_this_run(run.manifest, run.remote.name)
        return
    check_room(spec, max_disk)
    claim_place(run, first_line(spec.identity()), private=private)


def _check_place(run: RemoteRun, directory: Path, identity: Mapping[str, Any]) -> None:
    """Refuse a place that is `directory` itself, or that holds another run than `identity` describes."""
    if run.remote.local_folder == directory.resolve():
        raise UsageError(f"--push {run.remote.name} is the output folder itself: give another place")
    if run.journal is None:
        return
    there = parse_journal(run.journal, where=run.remote.name)
    if differ := differences(there.identity, identity):
        ways = "call it as there to go on with it" if there.shards else _IF_OVER
        raise HubError(
            f"{run.remote.name} holds another run with {counted_shards(there.shards)} ({'; '.join(differ)}): {ways}, "
            "or push to another repo"
        )


def claim_place(run: RemoteRun, head: bytes, *, private: bool = False) -> dict[str, RemoteFile]:
    """Make the place if need be, and leave our mark and the journal's first line, `head`, there, so that nobody takes a
    part for a dataset, or the place for another one. Returns the files that are there.

    Raises `HubError` if another dataset is there, or on its way.
    """
    remote = run.remote
    remote.create(private=private)
    ours = run_mark(head)

    def begin(files: Mapping[str, RemoteFile], held: bytes | None) -> dict[str, bytes | None]:
        check_not_claimed(remote, held, ours)
        if JOURNAL_FILE in files and remote.read(JOURNAL_FILE).startswith(head):
            return {}
        if strangers := [name for name in sorted(files) if name == JOURNAL_FILE or holds_data(name)]:
            raise HubError(another_dataset(remote, f"{strangers[-1]} and {len(strangers) - 1} other files"))
        # Segments without a first one are the rest of a run whose end was cut short: they must not seem of this run.
        return {**dict.fromkeys(segment_files(files)), JOURNAL_FILE: head}

    return claim_for(remote, ours, begin)


def tidy_place(run: RemoteRun, head: bytes, *, is_part: bool) -> None:
    """Where the run whose journal begins with `head` completed its dataset and was killed then: take away its claim and
    its journal, which would keep every other push from the place."""
    remote, ours = run.remote, run_mark(head)
    if run.manifest is not None and CLAIM_FILE in run.files and remote.claimed_by() == ours:
        remote.claim(ours, ours, {}, "Complete the dataset")
        publish(remote, run.manifest, remote.read(MANIFEST_NAME), part={} if is_part else None)


def note_place(directory: Path, remote: Remote) -> None:
    """Say in `directory`, which keeps no shard of the dataset, where it lies, for those who look for it there."""
    atomic_write(directory / PUSHED_TO_FILE, named_place(remote))


def named_place(remote: Remote) -> str:
    """What `note_place` says of it."""
    return str(remote.local_folder or remote.name)


class LivePush:
    """The shards of one run on their way to a remote, each with the journal's line about it. A context manager.

    Made with an earlier session's `journal`, it hands in the shards that are not at the remote yet. `max_disk` bounds
    the bytes of this run on this disk: the shard being written, those on their way, the journal (of very many shards
    only a part, `room_for_next`); a shard is deleted here once it has arrived. Raises `DiskFull` if the bound has no
    room for two shards (one on its way, one being written), `HubError` if the remote holds another dataset,
    `OutputError` if a shard is in neither place.
    """

    def __init__(
        self,
        spec: RunSpec,
        directory: Path,
        journal: Journal,
        run: RemoteRun,
        *,
        private: bool = False,
        max_disk: int | None = None,
    ) -> None:
        self._spec, self._directory, self._journal = spec, directory, journal
        check_room(spec, max_disk)
        files = claim_place(run, journal.lines[0], private=private)
        there = whole_lines(run.journal) if run.journal is not None else journal.lines[:1]
        same = takewhile(lambda pair: pair[0] == pair[1], zip(there, journal.lines, strict=False))
        self._segments = SentSegments(journal.lines, sum(1 for _ in same))
        self.keeps_files, self._max_disk = max_disk is None, max_disk
        self.fills_this_disk = not self.keeps_files  # with shards that wait to be sent, up to `max_disk`
        self.uploader = Uploader(run.remote, files, workers=2, delete_local=not self.keeps_files, max_bytes=max_disk)
        try:
            if not self.keeps_files:  # shards are about to leave the folder: it holds no whole dataset any more
                (directory / MANIFEST_NAME).unlink(missing_ok=True)
            for shard in journal.shards:
                self._hand_in_again(shard)
        except BaseException:
            self.uploader.close()
            raise

    def __enter__(self) -> LivePush:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.uploader.__exit__(kind, error, at)  # which waits for what is in flight, but not after a Ctrl-C

    def send_from(self, runner: Runner, repo: str) -> None:
        """Have the machines of `runner` send to `repo` what they write, if no shard is to stay here (`max_disk`), they
        are other machines than this one, and they can reach the place."""
        folder = self.uploader.remote.local_folder
        if self._max_disk is not None and (folder is None or not is_on_local_disk(folder)):
            at_a_time = self._max_disk // self._spec.shard_bytes
            destination = Destination(str(folder or repo), run_mark(self._journal.lines[0]), at_a_time)
            self.fills_this_disk = not runner.send_to(destination)

    def wait_for_room(self) -> None:
        """Wait until one more shard fits below `max_disk`."""
        if self._max_disk is not None:
            self.uploader.wait_for_room(room_for_next(self._spec, self._journal_bytes(), self._max_disk))

    def submit(self, shard: ShardInfo, receipt: str | None = None) -> None:
        """Hand in a shard that is finished and in the journal; returns at once. With the `receipt` of an upload it was
        sent already.

        Of one that the remote has, nothing is committed: its line goes with the next one that is sent.
        """
        self.uploader.submit(
            self._directory / shard.file,
            shard,
            None if self.uploader.has(shard) else partial(self._lines_up_to, shard.index + 2),
            receipt=receipt,
        )

    def complete(self, manifest: Manifest) -> None:
        """Wait until every shard has arrived, then complete the dataset at the remote: card, and manifest last."""
        self.uploader.flush()
        publish(
            self.uploader.remote,
            manifest,
            manifest.to_json().encode(),
            tokenizer_files(manifest.tokenizer, self._spec.tokenizer.file),
            part=None if self._spec.part is None else self._lines_up_to(len(self._journal.lines)),
        )

    def _lines_up_to(self, end: int) -> dict[str, bytes]:
        """The small files that say what the journal does before line `end`, as far as the remote has them not."""
        pieces = {PIECES_FILE: (self._directory / PIECES_FILE).read_bytes()} if self._spec.may_be_cut else {}
        return {**pieces, **self._segments.up_to(end)}

    def _hand_in_again(self, shard: ShardInfo) -> None:
        """Submit a shard of an earlier session, unless the remote has it."""
        path = self._directory / shard.file
        if self.uploader.has(shard):
            if not self.keeps_files and path.exists():
                self.uploader.submit(path, shard)  # which deletes it here, if the remote is ours
        elif path.exists():
            self.submit(shard)
        else:
            raise OutputError(
                f"{path} is missing here and at {self.uploader.remote.name}, the journal names it: give the place that "
                "it was pushed to, or start again with --overwrite"
            )

    def _journal_bytes(self) -> int:
        """Of the journal, and of a part's log of pieces, which is begun when the first piece is made."""
        pieces = self._directory / PIECES_FILE
        return self._journal.path.stat().st_size + (pieces.stat().st_size if pieces.exists() else 0)
