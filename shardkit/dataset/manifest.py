"""`manifest.json`: what a dataset directory holds, where it came from, and how to check it. Written last, atomically.

Its presence means that the dataset is complete. Same input and options give the same bytes: no timestamps, no paths of
this machine. Anything that can `np.load` a file can use the shards without it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardkit.arguments import user_path
from shardkit.dataset.check import check_shard
from shardkit.dataset.consistency import check_shards, check_tokenizer, check_tokens_per_shard
from shardkit.dataset.folder import (
    INCOMING_FOLDER,
    MANIFEST_NAME,
    MERGE_FOLDER,
    PLAN_FOLDER,
    PUSHING_FILE,
    WORK_DIR,
    parts_hint,
    pushed_to,
    read_bare_shards,
)
from shardkit.dataset.journal import JOURNAL_FILE
from shardkit.dataset.records import ShardInfo, SourceFile, SourceInfo, TokenizerInfo
from shardkit.dataset.typed_json import parse_json, read_record
from shardkit.errors import ManifestError
from shardkit.files import atomic_write, counted, read_small_file
from shardkit.hub_address import parse_short
from shardkit.notebook import html_table
from shardkit.redaction import public_address

__all__ = [
    "MANIFEST_NAME",
    "PLAN_FOLDER",
    "WORK_DIR",
    "Manifest",
    "ShardInfo",
    "SourceFile",
    "SourceInfo",
    "TokenizerInfo",
]
FORMAT_VERSION = 1
_TOTALS = ("tokens", "documents", "fingerprint")  # stated, and found again from the shards


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A whole dataset. `shards` are in stream order; `tokens` and `documents` are totals over all splits.

    >>> from shardkit import Manifest
    >>> manifest = Manifest.load("out")
    >>> {split: len(shards) for split, shards in manifest.splits.items()}
    {'val': 1, 'train': 5}
    >>> manifest.dtype, manifest.tokens_per_shard, manifest.tokenizer.name
    ('uint16', 100000, 'gpt2')

    `directory` is the folder that it was read from: a convenience of this process, never saved and never compared.
    """

    dtype: str
    tokens_per_shard: int
    shards: tuple[ShardInfo, ...]
    tokenizer: TokenizerInfo | None = None
    source: SourceInfo | None = None
    encoder: Mapping[str, str] = field(default_factory=dict)
    shardkit_version: str = ""
    format_version: int = FORMAT_VERSION
    directory: Path | None = field(default=None, compare=False, repr=False)

    @property
    def tokens(self) -> int:
        """Tokens in all shards."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        """Documents in all shards, by their EOT tokens."""
        return sum(shard.documents for shard in self.shards)

    @property
    def skipped_duplicates(self) -> int | None:
        """Documents that `--skip-duplicates` left out; None where it was not asked for, or nobody has counted."""
        found = [file.duplicates for file in self.source.files] if self.source else []
        return sum(number for number in found if number is not None) if found and None not in found else None

    @property
    def splits(self) -> dict[str, list[ShardInfo]]:
        """The shards of each split, in stream order."""
        result: dict[str, list[ShardInfo]] = {}
        for shard in self.shards:
            result.setdefault(shard.split, []).append(shard)
        return result

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of what decides batches: dtype, and each shard's split, length and content hash, in order."""
        content = [self.dtype, *([s.split, s.tokens, s.sha256 or s.edges] for s in self.shards)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def __repr__(self) -> str:
        splits = ", ".join(f"{split} {len(shards):,}" for split, shards in self.splits.items())
        made_with = f", {self.tokenizer.name}" if self.tokenizer else ""
        counts = [counted(self.tokens, "token"), *([counted(self.documents, "document")] if self.documents else [])]
        return (
            f"<Manifest{f' of {self.directory}' if self.directory else ''}: {', '.join(counts)}, "
            f"{counted(len(self.shards), 'shard')} ({splits}), {self.dtype}{made_with}>"
        )

    def _repr_html_(self) -> str:
        names = ("split", "shards", "tokens", *(["documents"] if self.documents else []))
        rows = [
            (split, len(shards), sum(shard.tokens for shard in shards), sum(shard.documents for shard in shards))
            for split, shards in self.splits.items()
        ]
        source = self.source and f"of {self.source.id}"
        words = [str(part) for part in (self.directory, self.dtype, self.tokenizer, source) if part]
        return html_table(", ".join(["Manifest", *words]), [row[: len(names)] for row in rows], names)

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        data = _plain(self)
        del data["directory"]
        data["tokens"], data["documents"], data["fingerprint"] = self.tokens, self.documents, self.fingerprint
        if data["tokenizer"] and not data["tokenizer"]["file_sha256"]:
            del data["tokenizer"]["file_sha256"]
        for shard in data["shards"]:
            if not shard["edges"]:
                del shard["edges"]
        for file in data["source"]["files"] if data["source"] else ():
            for name in ("skipped_maps", "unlisted_rows"):  # which most have not
                if not file[name]:
                    del file[name]
            if file["duplicates"] is None:
                del file["duplicates"]
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    def save(self, directory: str | Path) -> Path:
        """Write `manifest.json` into `directory`, atomically."""
        path = user_path(directory) / MANIFEST_NAME
        atomic_write(path, self.to_json())
        return path

    @classmethod
    def load(cls, directory: str | Path) -> Manifest:
        """Read and check `manifest.json` of `directory` (or that file itself). Raises `ManifestError`."""
        path = user_path(directory)
        if path.name != MANIFEST_NAME:
            path = path / MANIFEST_NAME
        try:
            text = read_small_file(path)
        except (FileNotFoundError, NotADirectoryError):
            raise ManifestError(_without_manifest(path.parent)) from None
        except OSError as error:
            raise ManifestError(f"cannot read {path}: {error.strerror or error}") from None
        return dataclasses.replace(cls.from_json(text, where=str(path)), directory=path.parent)

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str = MANIFEST_NAME) -> Manifest:
        """Parse and check the text of a manifest; `where` names it in errors. Raises `ManifestError`."""
        try:
            data = parse_json(text)
            if isinstance(data, dict):  # a newer version may state more
                version = data.get("format_version")
                if type(version) is int and version != FORMAT_VERSION:
                    raise ManifestError(
                        f"{where} has format_version {version!r:.60}, this shardkit reads {FORMAT_VERSION}: install a "
                        "newer one"
                    )
                data = {field.name: data[field.name] for field in dataclasses.fields(_Stated) if field.name in data}
            stated = read_record(_Stated, data)
        except ValueError as error:
            raise ManifestError(f"{where} is not a shardkit manifest ({error}): fetch or make it again") from None
        manifest = cls(**{name: getattr(stated, name) for name in data if name not in _TOTALS})
        try:
            manifest._check(stated)
        except ValueError as error:
            raise ManifestError(
                f"{where} states what cannot be ({error}): it was edited or damaged, fetch it again"
            ) from None
        return manifest

    @classmethod
    def of_folder(cls, directory: str | Path) -> Manifest:
        """The manifest of `directory`, or one made from its bare shards where it has none.

        Without a manifest, the journal of a tokenization, the incoming files of a pull, those of a merge or the claim
        of a push say that the folder is unfinished; nothing else in `.shardkit/` does. Raises `ManifestError` as `load`
        and `from_shards` do.
        """
        directory = user_path(directory)
        if (directory / MANIFEST_NAME).exists() or is_unfinished(directory) or not directory.is_dir():
            return cls.load(directory)
        return cls.from_shards(directory)

    @classmethod
    def from_shards(cls, directory: str | Path) -> Manifest:
        """A manifest of a folder of bare `.npy` shards, as `fineweb.py` leaves it, or of the `.bin` files of llm.c or
        nanoGPT: read from names and headers.

        Tokens are exact; hashes are empty (only the edges of each file are read) and documents are not counted.
        Raises `ManifestError` if the folder has no shards named `PREFIX_SPLIT_000000.npy`, or a mixture of datasets.
        """
        directory = user_path(directory)
        shards, dtype = read_bare_shards(directory)
        return cls(
            dtype=dtype, tokens_per_shard=max(s.tokens for s in shards), shards=tuple(shards), directory=directory
        )

    def check_files(self, directory: str | Path, *, split: str | None = None) -> None:
        """Check that every shard in `directory` (those of `split`, where it is given) has the right size and header.

        Nothing is hashed. Raises `ShardError` naming the first file that is not what the manifest says.
        """
        for shard in self.shards:
            if split in (None, shard.split):
                check_shard(user_path(directory) / shard.file, shard, dtype=self.dtype)

    def _check(self, stated: _Stated) -> None:
        """Check that all that the manifest states goes together. Raises `ValueError`."""
        check_shards(self.shards)
        check_tokens_per_shard(self.shards, dtype=self.dtype, tokens_per_shard=self.tokens_per_shard)
        if self.tokenizer is not None:
            check_tokenizer(self.tokenizer, self.dtype)
        for name in _TOTALS:
            if getattr(stated, name) != getattr(self, name):
                raise ValueError(
                    f"it states {name} {getattr(stated, name)!r:.80}, its shards give {getattr(self, name)}"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stated:
    """What `manifest.json` states."""

    format_version: int
    shardkit_version: str
    tokenizer: TokenizerInfo | None
    dtype: str
    tokens_per_shard: int
    encoder: Mapping[str, str]
    source: SourceInfo | None
    shards: tuple[ShardInfo, ...]
    tokens: int
    documents: int
    fingerprint: str


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def is_unfinished(directory: Path) -> bool:
    """Whether something is at work in a folder without a manifest, or was killed: a tokenization, a pull, a merge or a
    push to it. Nothing else in `.shardkit/` says that."""
    return any((directory / name).exists() for name in (JOURNAL_FILE, INCOMING_FOLDER, MERGE_FOLDER, PUSHING_FILE))


def _without_manifest(directory: Path) -> str:
    """The error for a folder without a manifest, or for what is none: a name on the Hub, a URL."""
    name = re.sub(r":/(?=[^/])", "://", str(directory))  # a path has no double slashes
    if place := pushed_to(directory):
        return f"{directory} has no shards, which were sent away: the dataset lies at {place}: `shardkit pull {place}`"
    if parts := parts_hint(directory):
        return f"{directory} has no {MANIFEST_NAME}: the dataset is unfinished, {parts}"
    if directory.is_dir():
        return (
            f"{directory} has no {MANIFEST_NAME}: the dataset is unfinished (run the same command again), or the "
            "folder is another one"
        )
    if directory.exists():
        return f"{directory} is a file: give the folder of a dataset"
    if "://" in name or (parse_short(name) is not None and not name.startswith(".")):
        return (
            f"there is no folder {public_address(name)} here: if it is a dataset elsewhere, fetch it with `shardkit "
            f"pull {public_address(name)}`, and give the folder that it comes into"
        )
    return f"there is no folder {directory}: check the path (`shardkit pull` fetches a dataset)"
