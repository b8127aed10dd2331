"""Where the parts that are merged lie: in a folder, or at a remote, from which their shards come as they are needed."""

from __future__ import annotations

import os
import re
import tempfile
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from shardkit.dataset.folder import MANIFEST_NAME, PART_NAME, PARTS_FOLDER, PUSHED_TO_FILE, WORK_DIR
from shardkit.dataset.journal import JOURNAL_FILE
from shardkit.dataset.known_files import SeenShards
from shardkit.dataset.manifest import Manifest, ShardInfo
from shardkit.dataset.tokenizer_file import TOKENIZER_NAME, read_tokenizer_files
from shardkit.errors import ManifestError, OutputError, ShardError
from shardkit.files import atomic_write, remove_tree, write_error
from shardkit.redaction import public_address
from shardkit.remote.address import open_remote, place_below
from shardkit.remote.download import WantedFile, fetch_right, fetch_tokenizer
from shardkit.remote.interface import Remote, RemoteFile
from shardkit.remote.listing import read_journal
from shardkit.remote.threads import TransferThreads, waits_for_threads
from shardkit.tokenization.part_folders import REMADE_THERE, FinishedPart, finished_parts
from shardkit.tokenization.piece_log import PIECES_FILE
from shardkit.waits import result_of

FETCHED_AHEAD = 3  # shards of parts, while the tokens of one before them are moved
_LOOKS_AT_ONCE = 8


class Parts(Protocol):
    """The parts of one dataset, `listed` in order. They are finished, and each has its small files in its folder. At
    most `most_fetched` of their shards are here only while they are needed."""

    listed: list[FinishedPart]
    most_fetched: int

    def expect(self, shards: Iterable[tuple[FinishedPart, ShardInfo]]) -> None:
        """From now on these are asked for, in that order."""

    def check(self, part: FinishedPart, shard: ShardInfo) -> None:
        """Return when `shard` is in the part's folder as it was when it was made; it stays until the next is asked for.

        Raises `OutputError` for one that is damaged, and what keeps it away.
        """

    def tokenizer_files(self, dataset: Manifest) -> dict[str, bytes]:
        """Name and content of the files of the dataset's tokenizer, from any part that has them; empty if none has."""


class PartsHere:
    """Those in a folder. Raises `OutputError` if one is missing or unfinished, or they do not fit together."""

    most_fetched = 0

    def __init__(self, directory: Path) -> None:
        self.listed = finished_parts(directory)
        self._seen = {part.index: SeenShards(part.folder) for part in self.listed}

    def expect(self, shards: Iterable[tuple[FinishedPart, ShardInfo]]) -> None:
        """Nothing to do: they are here."""

    def tokenizer_files(self, dataset: Manifest) -> dict[str, bytes]:
        found = (read_tokenizer_files(part.folder, dataset.tokenizer) for part in self.listed)
        return next(filter(None, found), {})

    def check(self, part: FinishedPart, shard: ShardInfo) -> None:
        try:
            self._seen[part.index].check(shard)
        except ShardError as error:
            reason = re.split("[,:] fetch or make", str(error))[0]  # which is what mends a dataset
            again = f"tokenize it again with --part '{part.index}/{len(self.listed)}' and --overwrite"
            raise OutputError(f"part {part.index}/{len(self.listed)} is damaged, {reason}: {again}") from None


class PartsThere:
    """Those at the place REPO; a context manager. Their small files come into `folder`, which is ours alone, and of
    their shards the one that was asked for last, with a few of those that are expected next.

    Raises as `PartsHere`, and `HubError`.
    """

    most_fetched = 1 + FETCHED_AHEAD

    def __init__(self, repo: str, folder: Path) -> None:
        self._repo, self._folder = repo, folder
        self._remotes: dict[str, Remote] = {}
        self._tokenizers: dict[str, dict[str, RemoteFile]] = {}  # as listed
        self._expected: deque[tuple[FinishedPart, ShardInfo]] = deque()
        self._coming: dict[Path, Future[None]] = {}
        self._here: Path | None = None
        remove_tree(folder)  # of a job that was killed
        self._threads = TransferThreads(_LOOKS_AT_ONCE, "shardkit-parts")
        try:
            root = open_remote(repo)
            below = {name: at for name, at in root.subfolders(PARTS_FOLDER).items() if PART_NAME.fullmatch(name)}
            for look in [self._threads.submit(partial(self._look_at, *folder)) for folder in below.items()]:
                result_of(look)
            self.listed = finished_parts(folder, root.name)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def __enter__(self) -> PartsThere:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for remote in self._remotes.values():
            remote.stopping.set()
        self._threads.close(wait=waits_for_threads(kind))
        remove_tree(self._folder)

    def expect(self, shards: Iterable[tuple[FinishedPart, ShardInfo]]) -> None:
        self._expected = deque(shards)

    def tokenizer_files(self, dataset: Manifest) -> dict[str, bytes]:
        for part in self.listed:
            listed = self._tokenizers.get(part.folder.name, {})
            if files := fetch_tokenizer(self._remotes[part.folder.name], listed, part.folder, dataset):
                return files
        return {}

    def check(self, part: FinishedPart, shard: ShardInfo) -> None:
        path = part.folder / shard.file
        if path == self._here:
            return
        if self._here is not None:
            self._here.unlink(missing_ok=True)
        self._begin(part, shard)
        while self._expected and self._expected.popleft() != (part, shard):
            pass
        for following in islice(self._expected, FETCHED_AHEAD):
            self._begin(*following)
        self._here = path
        try:
            result_of(self._coming.pop(path))
        except OSError as failure:  # of this disk: the remote's are `HubError`s
            raise write_error(failure, Path(failure.filename or path), shard.bytes) from None

    def _begin(self, part: FinishedPart, shard: ShardInfo) -> None:
        """Have a shard fetched, unless it is on its way."""
        if (path := part.folder / shard.file) not in self._coming:
            self._coming[path] = self._threads.submit(partial(self._fetch, part, shard))

    def _fetch(self, part: FinishedPart, shard: ShardInfo) -> None:
        incoming = Path(tempfile.mkdtemp(dir=part.folder))
        remote = self._remotes[part.folder.name]
        path = fetch_right(remote, WantedFile.of(shard), incoming)
        if path is None:
            raise _damaged(part.folder.name, remote, f"gives {shard.file} with other bytes than its")
        os.replace(path, part.folder / shard.file)
        remove_tree(incoming)

    def _look_at(self, name: str, listed: Any) -> None:
        """Fetch the small files of the part in the folder of that name, `listed` with the others, as far as there are
        any yet."""
        remote = self._remotes[name] = open_remote(place_below(self._repo, f"{PARTS_FOLDER}/{name}"))
        files, folder = remote.files(listed), self._folder / PARTS_FOLDER / name
        (folder / WORK_DIR).mkdir(parents=True)
        if PUSHED_TO_FILE in files:  # in a folder from which the part was pushed on
            atomic_write(folder / PUSHED_TO_FILE, remote.read(PUSHED_TO_FILE))
        if MANIFEST_NAME not in files:
            return
        try:
            text = remote.read(MANIFEST_NAME)
            manifest = Manifest.from_json(text, where=f"{remote.name}/{MANIFEST_NAME}")
            journal = b"".join(read_journal(remote, files).lines) if JOURNAL_FILE in files else None
        except (ManifestError, OutputError) as error:
            part = f"{name.replace('-of-', '/')} of {public_address(self._repo)}"
            raise OutputError(f"part {part} cannot be read ({error}): {REMADE_THERE}") from None
        for shard in manifest.shards:
            listed = files.get(shard.file)
            if listed is None or listed.size != shard.bytes or listed.sha256 not in ("", shard.sha256):
                raise _damaged(name, remote, f"has not {shard.file} as its")
        if journal is not None:
            atomic_write(folder / JOURNAL_FILE, journal)
        if PIECES_FILE in files:
            atomic_write(folder / PIECES_FILE, remote.read(PIECES_FILE))
        self._tokenizers[name] = {file: listed for file, listed in files.items() if file == TOKENIZER_NAME}
        atomic_write(folder / MANIFEST_NAME, text)


def _damaged(name: str, remote: Remote, how: str) -> OutputError:
    return OutputError(
        f"part {name.replace('-of-', '/')} is damaged, {remote.name} {how} {MANIFEST_NAME} says: {REMADE_THERE}"
    )
