"""Who may write to a remote: two pushes never mix, or replace, each other's shards without being asked to.

The first to write leaves a mark of its dataset (or run) in the claim file, and goes on writing only while that mark is
there. The mark is removed when the dataset's `manifest.json` is written. Two pushes of the same dataset have the same
mark, so both may write. A remote accepts a claim, and the Hub every commit, only if nothing has changed since the
listing that it is based on.
"""

from __future__ import annotations

import json
import os
import random
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from shardkit import network
from shardkit.dataset.manifest import MANIFEST_NAME, WORK_DIR, ShardInfo
from shardkit.dataset.shards import SHARD_NAME
from shardkit.dataset.tokenizer_file import TOKENIZER_CONFIG_NAME, TOKENIZER_NAME
from shardkit.errors import HubError, ShardkitWarning
from shardkit.files import counted
from shardkit.remote.interface import CLAIM_FILE, PlaceChanged, Remote, RemoteFile

_LONGEST_STEP = 32  # of the first wait
LOOKS = 50  # at a place that changes each time, before it is given up
_CORPUS = re.compile(r"\.(parquet|arrow|(jsonl|json|csv|tsv)(\.(gz|zst|xz|bz2))?|txt\.(gz|zst|xz|bz2))$|^data/.*\.txt$")
Small = Mapping[str, bytes | None]


def mark(**of: str) -> bytes:
    """The content of the claim file while the dataset or run that `of` describes is on its way."""
    return json.dumps(of).encode()


def claim_for(
    remote: Remote, ours: bytes, begin: Callable[[Mapping[str, RemoteFile], bytes | None], Small | None]
) -> dict[str, RemoteFile]:
    """Look at the place, claim it with the mark `ours`, and return the files that are there then.

    `begin(files, held)` is asked what to write with the claim, by name (None deletes a file), where `held` is the mark
    that is there; it raises to refuse, and returns None if there is nothing to write at all. It is asked again if
    somebody else wrote meanwhile.
    """
    for look in range(LOOKS):
        files = remote.files()
        held = remote.claimed_by()
        if (held is None) != (CLAIM_FILE not in files):
            continue  # it has come or gone between the two looks
        try:
            small = begin(files, held)
        except HubError:
            remote.release()
            raise
        if small is None:
            return files
        if held is None and MANIFEST_NAME not in files:
            warn_of_corpus(remote, files)
        clears = any(holds_data(name) for name in small)
        try:
            remote.claim(ours, held, small, "Make way for another dataset" if clears else "Begin")
        except PlaceChanged:
            step_aside(remote, look)
            continue
        return {name: listed for name, listed in files.items() if name not in small}
    raise always_changing(remote)


def step_aside(remote: Remote, times: int) -> None:
    """Wait, not in step with others, and longer the more often they came first: many parts of a dataset are committed
    to one repo of the Hub."""
    remote.stopping.wait(random.random() * network.FIRST_WAIT_SECONDS * min(2**times, _LONGEST_STEP))


def warn_of_corpus(remote: Remote, files: Mapping[str, RemoteFile]) -> None:
    """Warn (`ShardkitWarning`) of text or tables at a place that no dataset of ours has been at. What a dataset in a
    folder of it has beside its shards is none."""
    ours = {MANIFEST_NAME, TOKENIZER_NAME, TOKENIZER_CONFIG_NAME, WORK_DIR}
    if corpus := [name for name in files if _CORPUS.search(name) and ours.isdisjoint(name.split("/"))]:
        warnings.warn(
            f"{remote.name} holds a corpus ({counted(len(corpus), 'file')} of text or tables, {min(corpus)} first): "
            "the shards come beside it, and the Hub's viewer and `load_dataset` read the corpus alone; a place of "
            "their own keeps the two apart",
            ShardkitWarning,
            stacklevel=2,
        )


def is_written(remote: Remote, files: Mapping[str, RemoteFile], shards: Sequence[ShardInfo], small: Small) -> bool:
    """Whether all of this is at the remote, which lists `files`: by a commit whose answer was lost, or by others."""
    return all(files.get(shard.file) == RemoteFile(shard.bytes, shard.sha256) for shard in shards) and all(
        (remote.read(name) if name in files else None) == content for name, content in small.items()
    )


def is_completed_with(
    remote: Remote, files: Mapping[str, RemoteFile], shards: Sequence[ShardInfo], small: Small
) -> bool:
    """Whether a dataset is at the remote, which lists `files`, that nobody is writing, with all of this: but for
    working files, which may have gone when it was completed."""
    lasting = {name: content for name, content in small.items() if not name.startswith(f"{WORK_DIR}/")}
    return is_complete(files) and is_written(remote, files, shards, lasting)


def still_ours(remote: Remote, ours: bytes | None, shards: Sequence[ShardInfo], small: Small) -> bool:
    """Whether the place has our claim, the mark `ours`. If not, another push of the same must have completed it: raises
    `HubError` if all of this is not there."""
    if (held := remote.claimed_by()) == ours:
        return True
    if held is not None or not is_completed_with(remote, remote.files(), shards, small):
        raise not_ours_any_more(remote)
    return False


def is_complete(files: Mapping[str, RemoteFile]) -> bool:
    """Whether a dataset is there that nobody is writing."""
    return MANIFEST_NAME in files and CLAIM_FILE not in files


def always_changing(remote: Remote) -> HubError:
    """The error for a place that was another one each time that we were about to write."""
    return HubError(f"{remote.name} is being written by others all the time: run the same command again later")


def not_ours_any_more(remote: Remote) -> HubError:
    """The error for a place whose claim was ours and is another's now, or nobody's."""
    return HubError(
        f"{remote.name} is not ours any more: another push there replaced this one, or completed the dataset; look at "
        "what it holds, then run the same command again, or push to another place"
    )


def check_not_claimed(remote: Remote, held: bytes | None, ours: bytes) -> None:
    """Refuse a place that somebody else has claimed. Raises `HubError`."""
    if held not in (None, ours):
        raise HubError(
            f"another dataset is on its way to {remote.name} (a push that is running, or was stopped): push to another "
            "place, or `shardkit push --overwrite` to replace what is there"
        )


def another_dataset(remote: Remote, what: str) -> str:
    """The error message for a remote that holds something else, `what`."""
    return (
        f"{remote.name} holds another dataset ({what}): push to another repo, or `shardkit push --overwrite` to "
        "replace what is there"
    )


def holds_data(name: str) -> bool:
    """Whether a file at a remote, by its name, is a part of a dataset: its manifest, or a shard (llm.c's too).

    Other files there (`pytorch_model.bin`) are none of ours.
    """
    return name == MANIFEST_NAME or SHARD_NAME.fullmatch(re.sub(r"\.bin$", ".npy", name)) is not None


def create_file(whole: Path, target: Path, content: bytes) -> bool:
    """Write the file `target` of this machine only if there is none, all of it at once, by way of `whole`.

    False if there is one, or if the folder of `whole` was tidied away this moment.
    """
    try:
        whole.write_bytes(content)
        try:
            os.link(whole, target)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            with open(target, "xb") as created:
                created.write(content)
        finally:
            whole.unlink()
    except (FileExistsError, FileNotFoundError):
        return False
    return True
