"""A bucket on the Hub as a remote: files that change in place, without commits and without SHA-256, sent by Xet.

What has arrived whole is written down in an upload record, as at S3, with the hash that the bucket lists for it. A
shard is sent first, which shows nothing in the bucket, and named there afterwards, many in one call. A bucket has no
write on a condition: who may claim the place is settled by tickets (`_in_turn`).
"""

from __future__ import annotations

import hashlib
import random
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils._runtime import is_xet_available

from shardkit import network
from shardkit.dataset.manifest import MANIFEST_NAME, WORK_DIR, ShardInfo
from shardkit.errors import HubError, UsageError
from shardkit.files import sha256_file
from shardkit.network import with_retries
from shardkit.remote.bucket_client import BucketClient
from shardkit.remote.claim import always_changing, still_ours
from shardkit.remote.hub_client import SilentError
from shardkit.remote.interface import CLAIM_FILE, PlaceChanged, RemoteFile, by_folder, check_small
from shardkit.remote.upload_record import UploadRecord, is_record, stated_shards

if TYPE_CHECKING:
    from huggingface_hub import BucketFile

Result = TypeVar("Result")
TICKET_SECONDS = 60.0  # a ticket that is older was left by a push that was killed
_ADDRESS = re.compile(r"hf://buckets/(?P<id>[\w.-]+/[\w.-]+?)(?P<folder>(/[^/@?#\\]+)*)/?")
_TICKET = re.compile(rf"{re.escape(WORK_DIR)}/turn-(?P<mark>[0-9a-f]{{16}})-[0-9a-f]{{8}}\.json")


class BucketRemote:
    """A folder of a bucket on the Hub (or at `HF_ENDPOINT`); the token is the client's own."""

    commit_files = 50
    has_commits = False

    def __init__(self, address: str) -> None:
        match = _ADDRESS.fullmatch(address)
        folder = match["folder"].strip("/") if match else ""
        if match is None or {".", ".."} & {*folder.split("/"), *match["id"].split("/")}:
            raise UsageError(f"{address} is no bucket: write hf://buckets/user/name or hf://buckets/user/name/folder")
        self.name = f"hf://buckets/{match['id']}" + (f"/{folder}" if folder else "")
        self.stopping = threading.Event()
        self._bucket = BucketClient(match["id"], self.stopping)
        self._folder = folder
        self._listed: dict[str, BucketFile] = {}
        self._record = UploadRecord({})
        self._stated: dict[str, tuple[int, str]] = {}  # what the manifest there says of its shards
        self._sent: dict[str, str] = {}  # Xet hashes of shards that have arrived, by file, until they are acknowledged
        self._written: dict[str, tuple[str, bytes]] = {}  # small files as we wrote or read them: Xet hash and content
        self._mark: bytes | None = None
        self._distrusted: set[str] = set()
        self._xet_is_silent = False

    @property
    def local_folder(self) -> Path | None:
        return None

    @property
    def revision(self) -> str:
        return ""

    @property
    def default_folder(self) -> str:
        return self.name.rpartition("/")[2]

    def exists(self) -> bool:
        return self._call("look at", self._bucket.exists)

    def create(self, *, private: bool) -> None:
        self._call("create", partial(self._bucket.create, private=private))
        if private and not self._call("look at", self._bucket.is_private):
            raise HubError(f"{self.name} exists and is public: push without --private, or make it private on its page")

    def files(self, listed: dict[str, BucketFile] | None = None) -> dict[str, RemoteFile]:
        def look(listed: dict[str, BucketFile] | None = listed) -> dict[str, RemoteFile]:
            found = self._bucket.files(self._folder) if listed is None else listed
            self._listed = {file: item for path, item in found.items() if (file := self._file_of(path))}
            small = {file: self._read(file) for file in self._listed if is_record(file) or file == MANIFEST_NAME}
            if MANIFEST_NAME in small:  # who lists a dataset reads it next
                self._written[MANIFEST_NAME] = (self._listed[MANIFEST_NAME].xet_hash, small[MANIFEST_NAME])
            self._stated = stated_shards(small.pop(MANIFEST_NAME, b"{}"))
            self._record = UploadRecord(small)
            return {file: RemoteFile(item.size, self._sha256_of(file, item)) for file, item in self._listed.items()}

        def look_again() -> dict[str, RemoteFile]:
            try:
                return look()
            except EntryNotFoundError:  # somebody else may have taken a file away since it was listed
                return look(None)

        return self._call("list", look_again)

    def subfolders(self, folder: str) -> dict[str, dict[str, BucketFile]]:
        above = self._path(folder)
        return by_folder(self._call("list", partial(self._bucket.files, above)), above)

    def _file_of(self, path: str) -> str:
        """The name of what the bucket has at `path`; "" if it is none of the dataset's folder and working files."""
        file = path.removeprefix(f"{self._folder}/" if self._folder else "")
        return file if file.rpartition("/")[0] in ("", WORK_DIR) else ""

    def _sha256_of(self, file: str, item: BucketFile) -> str:
        """The SHA-256 that the record or the manifest there has for a listed file; "" for none, or other bytes."""
        size, sha256 = self._record.entries.get(file) or self._stated.get(file) or (-1, "")
        is_that = size == item.size and self._record.versions.get(file, item.xet_hash) == item.xet_hash
        return sha256 if is_that else ""

    def read(self, file: str) -> bytes:
        return self._call(f"read {file}", partial(self._read, file))

    def _read(self, file: str) -> bytes:
        listed = self._listed.get(file)
        check_small(self.name, file, listed.size if listed is not None else 0)
        xet_hash, content = self._written.get(file, ("", b""))
        if listed is not None and listed.xet_hash == xet_hash:
            return content
        return self._bucket.read(self._path(file))

    def fetch(self, file: str, folder: Path, *, again: bool) -> tuple[Path, str]:  # noqa: ARG002 (no copy here is trusted)
        listed = self._listed.get(file)
        if listed is not None and is_xet_available() and not self._xet_is_silent:
            path = Path(tempfile.mkdtemp(dir=folder)) / Path(file).name  # a call left to itself disturbs nobody there
            try:
                self._call(f"download {file}", partial(self._bucket.fetch_by_xet, listed, path))
                return path, sha256_file(path)
            except SilentError:
                self._xet_is_silent = True  # from here on by HTTP, which goes on from where a connection broke
        path = folder / Path(file).name
        with open(path, "wb", buffering=0) as target:
            return path, self._call(f"download {file}", self._bucket.download(self._path(file), target))

    def claimed_by(self) -> bytes | None:
        def get() -> bytes | None:
            path = self._path(CLAIM_FILE)
            found = self._bucket.look_at([path]).get(path)
            xet_hash, content = self._written.get(CLAIM_FILE, ("", b""))
            if found is None:
                return None
            check_small(self.name, CLAIM_FILE, found.size)
            return content if found.xet_hash == xet_hash else self._bucket.read(path)

        return self._call(f"read {CLAIM_FILE}", get)

    def claim(self, mark: bytes, held: bytes | None, small: Mapping[str, bytes | None], message: str) -> None:
        if held != mark:
            seen = _without_claim(self._listed)
            with self._in_turn(mark) as is_recent:
                if self.claimed_by() != held or not is_recent():
                    raise PlaceChanged(f"{self.name} has changed meanwhile")
                self._write({CLAIM_FILE: mark})
            self._mark = mark
            self.files()
            if _without_claim(self._listed) != seen:  # others were there between the look and the claim
                raise PlaceChanged(f"{self.name} has changed meanwhile")
        self._mark = mark
        self.commit([], small, message)

    @contextmanager
    def _in_turn(self, mark: bytes) -> Iterator[Callable[[], bool]]:
        """A time in which no other push claims the place for something else.

        Each push leaves a ticket and then looks for tickets of others: of any two, one at least sees the other's. Who
        sees one takes his own away, and tries again after a while. A ticket that stays was left by a killed push. What
        is yielded says whether ours is still too recent to be taken for such a one.
        """
        ours, seen_at, start = hashlib.sha256(mark).hexdigest()[:16], dict[str, float](), time.monotonic()
        while True:
            ticket, taken = f"{WORK_DIR}/turn-{ours}-{uuid.uuid4().hex[:8]}.json", time.monotonic()
            self._write({ticket: mark})
            listed = self._call("list", partial(self._bucket.files, self._path(WORK_DIR)))
            matches = [_TICKET.fullmatch(self._file_of(path)) for path in listed]
            others = [match[0] for match in matches if match and match["mark"] != ours]
            if not others:
                break
            now = time.monotonic()
            left = [other for other in others if now - seen_at.setdefault(other, now) > TICKET_SECONDS]
            self._write(dict.fromkeys([ticket, *left]))
            wait = random.random() * network.FIRST_WAIT_SECONDS  # not in step with others
            if now - start > 10 * TICKET_SECONDS or self.stopping.wait(wait):
                raise always_changing(self)
        try:
            yield lambda: time.monotonic() - taken < TICKET_SECONDS / 2
        finally:
            self._write({ticket: None})

    def release(self) -> None:
        if self._mark is not None and self.claimed_by() == self._mark:
            self._write({CLAIM_FILE: None})

    def discard(self, shards: Sequence[ShardInfo]) -> None:
        self._distrusted |= {shard.file for shard in shards}

    def prepare(self, files: Sequence[tuple[Path, ShardInfo]]) -> None:
        """Nothing to do: nothing is asked before an upload."""

    def upload(self, path: Path, shard: ShardInfo) -> str:
        def send() -> str:
            ((xet_hash, size),) = self._bucket.send([path], again=shard.file in self._distrusted)
            if size != shard.bytes:
                raise OSError(f"{size:,} of {shard.bytes:,} bytes arrived")
            return xet_hash

        self._sent[shard.file] = xet_hash = self._call(f"upload {shard.file}", send)
        return xet_hash

    def received(self, shard: ShardInfo, receipt: str) -> None:
        self._sent[shard.file] = receipt

    def commit(self, shards: Sequence[ShardInfo], small: Mapping[str, bytes | None], message: str) -> None:  # noqa: ARG002
        if not still_ours(self, self._mark, shards, small):
            return
        sent = {shard.file: self._sent.pop(shard.file) for shard in shards}
        if sent:
            named = {self._path(file): xet_hash for file, xet_hash in sent.items()}
            self._call(f"add {next(iter(sent))} to", partial(self._bucket.change, named))
        if small.get(MANIFEST_NAME) is not None:
            self._check_shards()
        arrived = {shard.file: (shard.bytes, shard.sha256) for shard in shards}
        if small.get(MANIFEST_NAME, b"") is None:  # from here on the record alone says what has arrived
            arrived = {file: entry for file, entry in self._stated.items() if file not in small} | arrived
        # The record names what is in the bucket already; a journal in `small` no shard that the record does not.
        self._write({**self._record.remove(small), **self._record.add(arrived, sent), **small})
        # What completed the dataset may have been another push of it, while we wrote.
        if small.get(MANIFEST_NAME) is not None or (shards and not still_ours(self, self._mark, shards, {})):
            self._write(dict.fromkeys(self._record.files))

    def tag(self, name: str, *, overwrite: bool) -> None:  # noqa: ARG002
        raise UsageError(f"{self.name} is not a Hub repo: leave --tag={name} out")

    def _check_shards(self) -> None:
        """Refuse to complete a dataset of which the bucket lists other bytes than were sent. Raises `HubError`."""
        for file, xet_hash in self._record.versions.items():
            listed = self._listed.get(file)
            if file in self._record.entries and (listed is None or listed.xet_hash != xet_hash):
                raise HubError(
                    f"{self.name}: {file} has other bytes than were sent (is somebody else pushing?): run the same "
                    "push again"
                )

    def _write(self, small: Mapping[str, bytes | None]) -> None:
        """Write small files, and delete those that are None, in their order; the manifest in a call of its own."""
        for (gone, _), group in groupby(small.items(), key=lambda item: (item[1] is None, item[0] == MANIFEST_NAME)):
            files = dict(group)
            if gone:
                paths = [self._path(file) for file in files]
                self._call(f"delete {next(iter(files))}", partial(self._bucket.change, {}, paths))
                continue
            what, sent = f"write {next(iter(files))}", {content: xet for xet, content in self._written.values()}
            new = [content for content in files.values() if content is not None and content not in sent]
            hashes = self._call(what, partial(self._bucket.send, new)) if new else []
            sent |= {content: xet_hash for content, (xet_hash, _) in zip(new, hashes, strict=True)}
            self._written |= {file: (sent[content], content) for file, content in files.items() if content is not None}
            self._call(what, partial(self._bucket.change, {self._path(file): self._written[file][0] for file in files}))

    def _path(self, file: str) -> str:
        return f"{self._folder}/{file}" if self._folder else file

    def _call(self, what: str, action: Callable[[], Result]) -> Result:
        return with_retries(action, self.name, what, self.stopping)


def _without_claim(listing: Mapping[str, BucketFile]) -> dict[str, str]:
    """The listing but for the claim and tickets: Xet hashes by file."""
    return {file: item.xet_hash for file, item in listing.items() if file != CLAIM_FILE and not _TICKET.fullmatch(file)}
