"""`info`: what a dataset folder holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shardkit.arguments import user_path
from shardkit.dataset.known_files import KnownFiles
from shardkit.dataset.manifest import Manifest, TokenizerInfo
from shardkit.errors import ShardError
from shardkit.files import counted, format_bytes
from shardkit.look.result_lines import ShownAsLines


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitInfo:
    """A split: how many shards, tokens and documents (None: nobody knows) it has, and the bytes of its files."""

    split: str
    shards: int
    tokens: int
    documents: int | None
    bytes: int

    def __str__(self) -> str:
        counts = [counted(self.shards, "shard"), counted(self.tokens, "token")]
        counts += [] if self.documents is None else [counted(self.documents, "document")]
        return "  ".join([self.split, *counts, format_bytes(self.bytes)])


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInfo(ShownAsLines):
    """What is in a dataset folder: totals over all splits, how it was made and of what (None where nothing says it;
    `made_with` are the options that chose or changed the texts, `skipped_duplicates` what `--skip-duplicates` left
    out), `damage` (which shards are missing or cut; None if none are), and its splits."""

    dataset: str
    tokens: int
    documents: int | None
    tokens_per_shard: int
    dtype: str
    tokenizer: TokenizerInfo | None
    encoder: str | None
    source: str | None
    source_files: int | None
    made_with: str | None
    skipped_duplicates: int | None
    fingerprint: str
    damage: str | None
    splits: tuple[SplitInfo, ...]


def info(directory: str | Path) -> DatasetInfo:
    """What is in the dataset folder `directory`, by its manifest, or by its shards' headers where it has none.

    Raises `ManifestError` or `ShardError` for a folder that holds no whole dataset.

    >>> found = info("out")
    >>> found.tokenizer.name, [split.split for split in found.splits]
    ('gpt2', ['val', 'train'])
    """
    directory = user_path(directory)
    manifest = Manifest.of_folder(directory)
    source = manifest.source
    origin = [source.id, source.config, source.split, source.revision, source.options.get("path")] if source else []
    return DatasetInfo(
        dataset=str(directory),
        tokens=manifest.tokens,
        documents=manifest.documents or None,
        tokens_per_shard=manifest.tokens_per_shard,
        dtype=manifest.dtype,
        tokenizer=manifest.tokenizer,
        encoder=encoder_words(manifest) or None,
        source=" ".join(str(part) for part in origin if part) or None,
        source_files=len(source.files) if source else None,
        made_with=_options(manifest) or None,
        skipped_duplicates=manifest.skipped_duplicates,
        fingerprint=manifest.fingerprint,
        damage=_damage(manifest, directory),
        splits=tuple(
            SplitInfo(
                split=split,
                shards=len(shards),
                tokens=sum(shard.tokens for shard in shards),
                documents=sum(shard.documents for shard in shards) if manifest.documents else None,
                bytes=sum(shard.bytes for shard in shards),
            )
            for split, shards in manifest.splits.items()
        ),
    )


def _options(manifest: Manifest) -> str:
    """What was chosen of the source, and what was done with it, beside the address."""
    options = manifest.source.options if manifest.source else {}
    said = {name.replace("_", "-"): value for name, value in options.items() if name not in ("path", "sources")}
    return ", ".join(name if value is True else f"{name} {value}" for name, value in said.items())


def _damage(manifest: Manifest, directory: Path) -> str | None:
    """Which shards are not there, or not as long as the manifest says; None if all are."""
    known, wrong = KnownFiles(directory), list[str]()
    for shard in manifest.shards:
        try:
            known.check_sizes([shard])
        except ShardError as error:
            wrong.append(str(error))
    more = f" ({len(wrong) - 1} more of {len(manifest.shards)} shards too)" if len(wrong) > 1 else ""
    return f"{wrong[0]}{more}" if wrong else None


def encoder_words(manifest: Manifest) -> str:
    """The engine that made a dataset, its version, and of how many characters documents were left to the reference."""
    facts = manifest.encoder
    words = " ".join(facts[name] for name in ("engine", "version") if name in facts)
    guarded = facts.get("guarded_characters", "0")
    return words if guarded == "0" else f"{words}, documents with one of {guarded} characters by the reference"
