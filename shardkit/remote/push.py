"""`push`, and what `tokenize --push` needs: a dataset to a remote, verified and resumable.

Decides in which order files are written at the remote: it holds a whole dataset once `manifest.json` is there, which is
written last; until then the claim under `.shardkit/` says whose push is in progress (`claim.py`). How bytes travel is
for the remotes and the `Uploader`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from shardkit.arguments import check_texts, place_text, user_path, whole_numbers
from shardkit.bars import TransferBar, shown
from shardkit.dataset.check import check_shard
from shardkit.dataset.folder import MERGE_LINES
from shardkit.dataset.journal_segments import segment_files
from shardkit.dataset.known_files import unchanged
from shardkit.dataset.manifest import MANIFEST_NAME, Manifest
from shardkit.dataset.tokenizer_file import TOKENIZER_NAME, read_tokenizer_files, tokenizer_files
from shardkit.errors import HubError, ManifestError, ShardkitWarning, UsageError
from shardkit.hub_answers import or_mirror
from shardkit.notebook import html_table
from shardkit.remote.address import hint_at_folder, open_remote
from shardkit.remote.card import CARD_NAME, updated_card
from shardkit.remote.claim import another_dataset, check_not_claimed, claim_for, holds_data, mark
from shardkit.remote.interface import CLAIM_FILE, Remote, RemoteFile
from shardkit.remote.listing import names_secrets
from shardkit.remote.repair import served_wrong
from shardkit.remote.uploader import TransferProgress, Uploader


@dataclass(frozen=True, kw_only=True, slots=True)
class PushResult:
    """What a push did. `revision` is the commit that holds the dataset ("" where there are no commits)."""

    repo: str
    revision: str
    sent_files: int
    sent_bytes: int
    skipped_files: int

    def _repr_html_(self) -> str:
        return html_table(
            "Pushed", [(field.name.replace("_", " "), getattr(self, field.name)) for field in fields(self)]
        )


def push(
    directory: str | os.PathLike[str],
    repo: str | os.PathLike[str],
    *,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    overwrite: bool = False,
    repair: bool = False,
    workers: int = 5,
    progress: TransferProgress | bool | None = True,
) -> PushResult:
    """Send the dataset in `directory` to `repo`: what is missing there, checked against its SHA-256, manifest last.

    `repo` is `user/name[/folder]` or `hf://buckets/...` on the Hub, a path, or a URL that fsspec reaches. `revision` is
    a branch, made if need be; `tag` names the resulting commit. With `overwrite` another dataset that is there, or on
    its way, is replaced. With `repair` every shard that is there is read back first, and one that is served wrong, or
    not at all, is sent again. Safe to repeat after any failure. A bar says how far it is; `progress=False` silences it,
    and `progress(file, done_bytes, total_bytes)` is called in its place. Raises `ManifestError` or `ShardError` for one
    that does not verify, `HubError` if the remote holds another (and not `overwrite`), `AuthError`, `UsageError`.

    >>> result = push("out", "./remote")
    >>> result.skipped_files  # nothing was there before
    0
    >>> push("out", "./remote").sent_files  # now everything is
    0
    """
    directory, repo, workers = user_path(directory), place_text(repo), whole_numbers(or_none=False, workers=workers)[0]
    check_texts(tag=tag)
    manifest, manifest_bytes = _load_manifest(directory)
    tokenizer = read_tokenizer_files(directory, manifest.tokenizer)
    _check_local(manifest, directory)
    remote = open_remote(repo, revision=revision)
    if tag is not None and not remote.has_commits:
        raise UsageError(f"{repo} is not a Hub repo: leave --tag={tag} out")
    if remote.local_folder == directory.resolve():
        raise UsageError(f"{repo} is the folder to push itself: give another place")
    with shown(progress, lambda: TransferBar("push")) as tell, hint_at_folder(repo):
        remote.create(private=private)
        wrong = served_wrong(remote, manifest.shards, workers, tell) if repair else []
        remote_files = _claim(remote, manifest, wrong, overwrite=overwrite)
        if overwrite and not remote.has_commits:
            remote_files = {}  # its record says what arrived, not what is there today
        with Uploader(remote, remote_files, workers=workers, progress=tell) as uploader:
            missing = [shard for shard in manifest.shards if not uploader.has(shard)]
            if repair and missing:
                remote.discard(missing)
            for shard in missing:
                uploader.submit(directory / shard.file, shard)
            uploader.flush()
        publish(remote, manifest, manifest_bytes, tokenizer)
    if tag is not None:
        remote.tag(tag, overwrite=overwrite)
    return PushResult(
        repo=remote.name,
        revision=remote.revision,
        sent_files=uploader.sent_files,
        sent_bytes=uploader.sent_bytes,
        skipped_files=len(manifest.shards) - uploader.sent_files,
    )


def publish(
    remote: Remote,
    manifest: Manifest,
    manifest_bytes: bytes,
    tokenizer: Mapping[str, bytes] | None = None,
    *,
    part: Mapping[str, bytes] | None = None,
) -> None:
    """Make what was sent a dataset: check that every shard is there, write the card, the files of its `tokenizer` and,
    last, `manifest.json`. Of one `part` of a dataset the journal stays, with the files of its last lines that are given
    here, and there is no card.

    Does nothing if that is so already. Raises `HubError` if a shard is not there as the manifest says.
    """
    remote_files = remote.files()
    for shard in manifest.shards:
        listed = remote_files.get(shard.file)
        if listed is None or listed.size != shard.bytes or listed.sha256 not in ("", shard.sha256):
            state = "is not there" if listed is None else f"has {listed.size:,} bytes, {shard.bytes:,} were sent"
            raise HubError(
                f"{remote.name}: {shard.file} {state} after the push (does a .gitignore there hold it back, or is "
                f"somebody else pushing?): run the same push again{or_mirror(remote.name)}"
            )
    small: dict[str, bytes | None] = {**(part or {})}
    if part is None:
        old_card = remote.read(CARD_NAME).decode(errors="replace") if CARD_NAME in remote_files else None
        card = updated_card(old_card, manifest, remote.name)
        small |= {} if card == old_card else {CARD_NAME: card.encode()}
    small |= _missing_tokenizer(remote, remote_files, tokenizer or {})
    if MANIFEST_NAME not in remote_files or remote.read(MANIFEST_NAME) != manifest_bytes:
        small[MANIFEST_NAME] = manifest_bytes
    over = segment_files(remote_files) if part is None else []
    over += filter(MERGE_LINES.fullmatch, remote_files)
    small |= dict.fromkeys([*over, *(name for name in remote_files if name == CLAIM_FILE)])
    if small:
        remote.commit([], small, f"Complete the dataset: {manifest.tokens:,} tokens")


def _missing_tokenizer(
    remote: Remote, remote_files: Mapping[str, RemoteFile], tokenizer: Mapping[str, bytes]
) -> Mapping[str, bytes]:
    """The files of the tokenizer, unless there is a `tokenizer.json`; then both are the owner's. Warns
    (`ShardkitWarning`) if it is another than the dataset's."""
    if not tokenizer or TOKENIZER_NAME not in remote_files:
        return {name: data for name, data in tokenizer.items() if name not in remote_files}
    data, listed = tokenizer[TOKENIZER_NAME], remote_files[TOKENIZER_NAME]
    if listed.size != len(data) or remote.read(TOKENIZER_NAME) != data:
        warnings.warn(
            f"{remote.name} holds another {TOKENIZER_NAME} than this dataset's, which stays: remove it there and push "
            "again to have the dataset's own",
            ShardkitWarning,
            stacklevel=4,
        )
    return {}


def _load_manifest(directory: Path) -> tuple[Manifest, bytes]:
    """The manifest and its bytes as they are now: the folder may be given another dataset before all is sent."""
    with unchanged(directory / MANIFEST_NAME):
        return Manifest.load(directory), (directory / MANIFEST_NAME).read_bytes()


def _check_local(manifest: Manifest, directory: Path) -> None:
    """What would be published, names, sizes and headers; the hashes are checked as the shards go up."""
    if names_secrets((directory / MANIFEST_NAME).read_bytes(), manifest):
        raise ManifestError(
            f"{directory / MANIFEST_NAME} holds the user, password or query of its source's address, as an earlier "
            'version wrote it: nothing was published; clean it with `python -c "from shardkit import Manifest; '
            f"Manifest.load('{directory}').save('{directory}')\"`, then push again"
        )
    for shard in manifest.shards:
        if len(shard.sha256) != 64:
            raise ManifestError(
                f"{directory / MANIFEST_NAME} has no SHA-256 for {shard.file}: a dataset that cannot be verified is "
                "not pushed; make it with `shardkit tokenize`"
            )
        check_shard(directory / shard.file, shard, dtype=manifest.dtype)


def _claim(remote: Remote, manifest: Manifest, wrong: Sequence[str], *, overwrite: bool) -> dict[str, RemoteFile]:
    """Refuse or clear what is not this dataset, leave our mark if there is something to do, and list what is there.

    Files that are `wrong` whatever the listing says are cleared too.
    """
    ours = mark(fingerprint=manifest.fingerprint)
    wanted = {shard.file: RemoteFile(shard.bytes, shard.sha256) for shard in manifest.shards}

    def begin(files: Mapping[str, RemoteFile], held: bytes | None) -> dict[str, bytes | None] | None:
        same = MANIFEST_NAME in files and _fingerprint(remote.read(MANIFEST_NAME)) == manifest.fingerprint
        whole = all(files.get(name) == file for name, file in wanted.items()) and (remote.has_commits or not overwrite)
        whole = whole and not wrong
        if same and whole and held is None:
            return None
        if not overwrite:
            check_not_claimed(remote, held, ours)
        strangers = [
            name
            for name, listed in sorted(files.items(), key=lambda item: (item[0] != MANIFEST_NAME, item[0]))
            if holds_data(name)
            and wanted.get(name) != listed
            and not (held == ours and name in wanted and not listed.sha256)
        ]
        if same:  # what is not right is sent again, and what else is there is somebody's who put it there later
            strangers = [] if whole else [MANIFEST_NAME]
        elif strangers and not overwrite:
            raise HubError(another_dataset(remote, f"{strangers[0]} and {len(strangers) - 1} other files"))
        strangers += [name for name in wrong if name in files]
        if MANIFEST_NAME in strangers and not same:
            strangers += _their_tokenizer(remote, files)
        return dict.fromkeys(strangers)  # the old manifest first: from here on nobody takes what is there for a dataset

    return claim_for(remote, ours, begin)


def _their_tokenizer(remote: Remote, files: Mapping[str, RemoteFile]) -> list[str]:
    """The files of the tokenizer of the dataset that is there, as far as they are as a push wrote them."""
    try:
        info = Manifest.from_json(remote.read(MANIFEST_NAME)).tokenizer
    except ManifestError:
        return []
    written = tokenizer_files(info, remote.read(TOKENIZER_NAME)) if TOKENIZER_NAME in files else {}
    return [name for name, data in written.items() if name in files and remote.read(name) == data]


def _fingerprint(manifest: bytes) -> str:
    try:
        return Manifest.from_json(manifest).fingerprint
    except ManifestError:
        return ""
