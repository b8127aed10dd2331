"""`manifest.json`: what a dataset directory holds, where it came from, and how to check it. Written last, atomically.

Its presence means that the dataset is complete. Same input and options give the same bytes: no timestamps, no paths of
this machine. Anything that can `np.load` a file can use the shards without it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardkit.dataset.shards import DTYPES, SHARD_NAME, open_shard
from shardkit.errors import ManifestError, ShardError
from shardkit.files import atomic_write

MANIFEST_NAME = "manifest.json"
WORK_DIR = ".shardkit"  # working files; scripts in the wild that look for shards do not look there
PLAN_FOLDER = "plans"  # in .shardkit/: what was worked out about finished shards
FORMAT_VERSION = 1
_EDGE_BYTES = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """One shard file.

    `tokens` and `bytes` (whole file, header included) are exact. `documents` counts the documents that start in the
    shard (its EOT tokens); `first_document` is the ordinal of the first of them in the whole dataset. `sha256` is of
    the whole file: empty where nobody has hashed it (a bare folder), and then `edges`, a hash of the file's first and
    last 4096 bytes, stands in for it in the fingerprint.
    """

    file: str
    split: str
    index: int
    tokens: int
    documents: int
    first_document: int
    sha256: str
    bytes: int
    edges: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A whole dataset. `shards` are in stream order; `tokens` and `documents` are totals over all splits.

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

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        data = _plain(self)
        del data["directory"]
        data["tokens"], data["documents"], data["fingerprint"] = self.tokens, self.documents, self.fingerprint
        for shard in data["shards"]:
            if not shard["edges"]:
                del shard["edges"]
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    def save(self, directory: str | Path) -> Path:
        """Write `manifest.json` into `directory`, atomically."""
        path = Path(directory) / MANIFEST_NAME
        atomic_write(path, self.to_json())
        return path

    @classmethod
    def load(cls, directory: str | Path) -> Manifest:
        """Read and check `manifest.json` of `directory` (or that file itself). Raises `ManifestError`."""
        path = Path(directory)
        if path.name != MANIFEST_NAME:
            path = path / MANIFEST_NAME
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ManifestError(
                f"{path.parent} has no {MANIFEST_NAME}: the dataset is unfinished (run the same command again), or the "
                "folder is another one"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ManifestError(f"cannot read {path}: {error}") from error
        return dataclasses.replace(cls.from_json(text, where=str(path)), directory=path.parent)

    @classmethod
    def from_json(cls, text: str, *, where: str = MANIFEST_NAME) -> Manifest:
        """Parse and check the text of a manifest; `where` names it in errors. Raises `ManifestError`."""
        try:
            data = json.loads(text)
            version = data["format_version"]
            if version != FORMAT_VERSION:
                raise ManifestError(
                    f"{where} has format_version {version!r}, this shardkit reads {FORMAT_VERSION}: install a newer one"
                )
            manifest = _parse(data)
            manifest._check(where)
            stated, totals = data["fingerprint"], (data["tokens"], data["documents"])
        except ManifestError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            detail = f"no {error} in it" if isinstance(error, KeyError) else str(error)
            raise ManifestError(f"{where} is not a shardkit manifest ({detail}): fetch or make it again") from error
        if stated != manifest.fingerprint:
            raise ManifestError(
                f"{where} has fingerprint {stated!r}, its shards give {manifest.fingerprint}: it was edited or "
                "damaged, fetch it again"
            )
        if totals != (manifest.tokens, manifest.documents):
            raise ManifestError(
                f"{where} states {totals[0]} tokens and {totals[1]} documents, its shards add up to {manifest.tokens} "
                f"tokens and {manifest.documents} documents: it was edited or damaged, fetch it again"
            )
        return manifest

    @classmethod
    def of_folder(cls, directory: str | Path) -> Manifest:
        """The manifest of `directory`, or one made from its bare shards, where nothing there is unfinished."""
        directory = Path(directory)
        work = directory / WORK_DIR
        unfinished = work.is_dir() and [path.name for path in work.iterdir()] != [PLAN_FOLDER]
        if (directory / MANIFEST_NAME).exists() or unfinished or not directory.is_dir():
            return cls.load(directory)
        return cls.from_shards(directory)

    @classmethod
    def from_shards(cls, directory: str | Path) -> Manifest:
        """A manifest of a folder of bare `.npy` shards, as `fineweb.py` leaves it: read from names and headers.

        Tokens are exact; hashes are empty (only the edges of each file are read) and documents are not counted.
        Raises `ManifestError` if the folder has no shards named `PREFIX_SPLIT_000000.npy`, or a mixture of datasets.
        """
        directory = Path(directory)
        found = sorted(
            ((int(m["index"]), m, path) for path in directory.glob("*.npy") if (m := SHARD_NAME.match(path.name))),
            key=lambda item: (item[0], item[2].name),
        )
        if not found:
            raise ManifestError(
                f"{directory} holds no {MANIFEST_NAME} and no shards named PREFIX_SPLIT_000000.npy: point at a folder "
                "that `shardkit tokenize` or `fineweb.py` made"
            )
        if len({match["prefix"] for _, match, _ in found}) > 1:
            names = ", ".join(sorted({match["prefix"] for _, match, _ in found}))
            raise ManifestError(f"{directory} holds shards of several datasets ({names}): give each its own folder")
        shards, dtypes = [], set()
        for index, match, path in found:
            tokens = open_shard(path)
            dtypes.add(tokens.dtype.name)
            shards.append(
                ShardInfo(
                    file=path.name, split=match["split"], index=index, tokens=len(tokens), documents=0,
                    first_document=0, sha256="", bytes=path.stat().st_size, edges=_edges(path),
                )
            )  # fmt: skip
        if len(dtypes) > 1:
            raise ManifestError(f"{directory} mixes {' and '.join(sorted(dtypes))} shards: give each its own folder")
        return cls(
            dtype=dtypes.pop(),
            tokens_per_shard=max(s.tokens for s in shards),
            shards=tuple(shards),
            directory=directory,
        )

    def check_files(self, directory: str | Path, *, split: str | None = None) -> None:
        """Check at the door that the shards are there with the right length and dtype; no hashing.

        Raises `ShardError` naming the first file that is not what the manifest says.
        """
        for shard in self.shards:
            if split is not None and shard.split != split:
                continue
            tokens = open_shard(Path(directory) / shard.file)
            if len(tokens) != shard.tokens or tokens.dtype.name != self.dtype:
                raise ShardError(
                    f"{Path(directory) / shard.file} holds {len(tokens):,} {tokens.dtype.name} tokens, the manifest "
                    f"says {shard.tokens:,} {self.dtype}: fetch or make it again"
                )

    def _check(self, where: str) -> None:
        if self.dtype not in DTYPES:
            raise ManifestError(f"{where} has dtype {self.dtype!r}, expected one of {', '.join(DTYPES)}")
        names = [shard.file for shard in self.shards]
        if len(set(names)) != len(names):
            raise ManifestError(f"{where} names a shard twice")
        for shard in self.shards:
            if shard.file != Path(shard.file).name or not SHARD_NAME.match(shard.file):
                raise ManifestError(f"{where} names a shard {shard.file!r}: expected PREFIX_SPLIT_000000.npy")
            if shard.tokens <= 0 or shard.bytes <= 0:
                raise ManifestError(f"{where} gives {shard.file} {shard.tokens} tokens in {shard.bytes} bytes")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def _parse(data: dict[str, Any]) -> Manifest:
    source, tokenizer = data["source"], data["tokenizer"]
    if source is not None:
        files = tuple(SourceFile(**{**f, "skipped_rows": tuple(f["skipped_rows"])}) for f in source["files"])
        source = SourceInfo(**{**source, "files": files})
    return Manifest(
        format_version=data["format_version"],
        shardkit_version=data["shardkit_version"],
        tokenizer=None if tokenizer is None else TokenizerInfo(**tokenizer),
        dtype=data["dtype"],
        tokens_per_shard=data["tokens_per_shard"],
        encoder=data["encoder"],
        source=source,
        shards=tuple(ShardInfo(**shard) for shard in data["shards"]),
    )


def _edges(path: Path) -> str:
    with open(path, "rb") as file:
        head = file.read(_EDGE_BYTES)
        file.seek(max(0, path.stat().st_size - _EDGE_BYTES))
        return hashlib.sha256(head + file.read(_EDGE_BYTES)).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """What one source file gave: `rows` read, `documents` and `tokens` made of them (EOT included).

    `bytes` is the file's size. `skipped_rows` are rows that became no document (blank lines, `--skip-bad-rows`). Where
    `documents == rows - len(skipped_rows)`, the row of every document is known exactly; a `filter` breaks that.
    """

    path: str
    bytes: int
    rows: int = 0
    documents: int = 0
    tokens: int = 0
    skipped_rows: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceInfo:
    """Where the text came from: a Hub dataset at a resolved commit, or local files by name."""

    id: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    text_field: str | None = None
    files: tuple[SourceFile, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerInfo:
    """`name` as given to `--tokenizer`; ids are below `vocab_size`; `ranks_sha256` pins the vocabulary itself."""

    name: str
    vocab_size: int
    eot_id: int
    ranks_sha256: str
