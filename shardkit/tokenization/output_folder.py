"""The output folder of a run: whose it is, who may write to it, whether the run is complete in it."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shardkit.arguments import check_texts
from shardkit.dataset.check import check_shard
from shardkit.dataset.folder import remove_half_written, shard_files
from shardkit.dataset.journal import JOURNAL_FILE, Journal, forget_unused
from shardkit.dataset.known_files import KnownFiles, SeenShards
from shardkit.dataset.manifest import MANIFEST_NAME, WORK_DIR, Manifest, TokenizerInfo
from shardkit.dataset.shards import shard_name
from shardkit.dataset.tokenizer_file import TOKENIZER_NAME, own_tokenizer_paths, tokenizer_files, write_tokenizer_files
from shardkit.dataset.typed_json import parse_json
from shardkit.errors import ManifestError, OutputError, ShardError, TokenizerError, UsageError
from shardkit.files import read_small_file, write_error
from shardkit.lock_owners import OWNER_SUFFIX
from shardkit.locks import hold_lock
from shardkit.sources.open import DEFAULT_SOURCE
from shardkit.tokenization.run_spec import RunSpec
from shardkit.tokenization.tiktoken_files import is_encoding
from shardkit.tokenization.tokenizer import Tokenizer

_LOCK = "lock"
_LOCK_FILES = {_LOCK, _LOCK + OWNER_SUFFIX}


class OwnFolder:
    """An output folder that is ours. `keep_journal` says whether its journal stays where our run makes nothing: it does
    if it was there before, as another run's claim on a place ends by it alone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.keep_journal = (directory / JOURNAL_FILE).exists()


@contextmanager
def claim(directory: Path, *, overwrite: bool) -> Iterator[OwnFolder]:
    """Own `directory` while the block runs: made if missing, refused if it is foreign or another process is at work.

    `overwrite` lets a finished dataset pass, and files that are no shards; all of it stays until `clear`. A block that
    raises before anything was made leaves nothing behind that was not there. Raises `OutputError`.
    """
    try:
        if directory.exists() and not directory.is_dir():
            raise OutputError(f"{directory} is a file: --out expects a folder")
    except OSError as error:  # a name that is too long
        raise write_error(error, directory, 0) from None
    work = directory / WORK_DIR
    if directory.is_dir() and not (directory / JOURNAL_FILE).exists():
        _refuse_foreign(directory, overwrite=overwrite)
    busy = f"another process is writing to {directory}: wait for it, or choose another --out"
    with _empty_folders_removed(directory), hold_lock(work / _LOCK, busy=busy) as lock:
        try:
            folder = OwnFolder(directory)
            for temp in work.glob("*.tmp"):
                temp.unlink()
            remove_half_written(directory)
        except OSError as error:
            raise write_error(error, directory, 0) from None
        try:
            yield folder
        except BaseException:
            with suppress(OSError, OutputError):
                if lock.is_ours():  # else the folder is another's by now
                    _leave_nothing(folder)
            raise


@contextmanager
def _empty_folders_removed(directory: Path) -> Iterator[None]:
    """Remove what the block made of `directory` and the folders above it, as far as it is empty at the end."""
    made = [directory / WORK_DIR, *(path for path in (directory, *directory.parents) if not path.exists())]
    try:
        yield
    finally:
        with suppress(OSError):  # the first one that is not empty
            for folder in made:
                folder.rmdir()


def _leave_nothing(folder: OwnFolder) -> None:
    """Where a run that failed has made nothing, remove its journal and, if there is nothing else, the lock's file."""
    if not folder.keep_journal:
        forget_unused(folder.directory)
    work = folder.directory / WORK_DIR
    if {path.name for path in work.iterdir()} <= _LOCK_FILES:  # an owner's file goes with the lock
        (work / _LOCK).unlink()  # while it is held: whoever waits for it finds that it is gone


_WAY_OUT = "if it was pushed, go on with the same --push, else start again with --overwrite"


def finished(directory: Path, journal: Journal, spec: RunSpec) -> Manifest | None:
    """The manifest if this very run is complete in `directory`; None if there is more to do.

    Checks that every shard that the journal or the manifest names is there with the right size. Raises `OutputError`
    for one that is not, and as `own_manifest` does.
    """
    try:
        KnownFiles(directory).check_sizes(journal.shards)  # which lists the folder, and opens none that is right
        if (manifest := own_manifest(directory, journal, spec)) is None:
            return None
        for shard in manifest.shards:
            check_shard(directory / shard.file, shard, dtype=manifest.dtype)
    except ShardError as error:
        raise OutputError(f"{error}; {_WAY_OUT}") from None
    return manifest


def own_manifest(directory: Path, journal: Journal, spec: RunSpec) -> Manifest | None:
    """The manifest in `directory`, if there is one. Raises `OutputError` if it is not what this run ends with."""
    if not (directory / MANIFEST_NAME).exists():
        return None
    try:
        manifest = Manifest.load(directory)
    except ManifestError as error:
        raise OutputError(f"{error}; {_WAY_OUT}") from None
    if not spec.makes(manifest) or list(manifest.shards[: len(journal.shards)]) != journal.shards:
        raise OutputError(f"{directory / MANIFEST_NAME} is of another dataset than this run makes; {_WAY_OUT}")
    return manifest


def complete(manifest: Manifest, seen: SeenShards, tokenizer: bytes) -> Manifest:
    """Write the manifest of a run that is at its end, and its `tokenizer.json` if that is what the bytes of `tokenizer`
    are, if every shard is there as it was written or hashed by this process. Returns it with its folder. Raises
    `OutputError`."""
    try:
        for shard in manifest.shards:
            seen.check(shard)
    except ShardError as error:
        raise OutputError(f"{error}; no manifest is written, start again with --overwrite") from None
    if not write_tokenizer_files(seen.directory, tokenizer_files(manifest.tokenizer, tokenizer)):
        raise OutputError(
            f"{seen.directory} holds another {TOKENIZER_NAME} than this dataset's: move it away, then run the same "
            "command again"
        )
    manifest.save(seen.directory)
    return dataclasses.replace(manifest, directory=seen.directory)


def required(out: str | os.PathLike[str] | None) -> str | os.PathLike[str]:
    """`out`, which has no default for this source. Raises `UsageError`."""
    if out is None:
        raise UsageError("no output folder: give --out DIR")
    return out


def default_prefix(source_id: str) -> str:
    """`edufineweb` for FineWeb-Edu, as `fineweb.py` has it, else the source's own name, made safe."""
    if source_id == DEFAULT_SOURCE:
        return "edufineweb"
    stem = Path(source_id.rstrip("/")).name.split(".")[0]
    name = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")
    return name if name and "train" not in name and "val" not in name else "tokens"


def check_prefix(prefix: str) -> str:
    """`prefix`, if shards named with it can be told apart by scripts that look for `train` and `val` in a name."""
    check_texts(prefix=prefix)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", prefix) or "train" in prefix or "val" in prefix:
        raise UsageError(
            f"--prefix {prefix!r}: expected letters, digits, '_', '.', '-', and neither 'train' nor 'val' in it "
            "(scripts choose files by those words)"
        )
    return prefix


def _refuse_foreign(directory: Path, *, overwrite: bool) -> None:
    try:
        names = sorted(path.name for path in directory.iterdir() if path.name != WORK_DIR)
    except PermissionError:
        raise OutputError(f"no permission to read {directory}: choose another --out") from None
    _listed_shards(directory)
    if not names or overwrite:
        return
    if MANIFEST_NAME in names:
        raise OutputError(
            f"{directory} holds a finished dataset that was not made here: choose another --out, or replace it with "
            "--overwrite"
        )
    raise OutputError(
        f"{directory} is not empty and no run of ours (it holds {names[0]}): choose another --out, or --overwrite to "
        "write beside what is there"
    )


def _listed_shards(directory: Path) -> list[Path]:
    """The shard files in `directory`, each named by our own manifest or journal.

    Raises `OutputError`, naming it, for a manifest that is none of ours, and for a shard that neither names.
    """
    try:
        named = _named_by_journal(directory)
        if (directory / MANIFEST_NAME).exists():
            named |= {shard.file for shard in Manifest.load(directory).shards}
    except ManifestError as error:
        raise OutputError(
            f"{error}; shardkit removes what its own manifest names and nothing else: move it away, or choose another "
            "--out"
        ) from None
    found = sorted(shard_files(directory))
    if foreign := [path.name for path in found if path.name not in named]:
        raise OutputError(
            f"{directory} holds {foreign[0]}{f' and {len(foreign) - 1} more' if len(foreign) > 1 else ''}, which no "
            "journal or manifest of shardkit's names: move that away, or choose another --out (--overwrite removes "
            "what shardkit made, nothing else)"
        )
    return found


def _named_by_journal(directory: Path) -> set[str]:
    """The shards that the journal names, in lines that hold or not, and the next one, which a run that was killed may
    have finished after its last line."""
    path, named = directory / JOURNAL_FILE, set[str]()
    damage = (ValueError, KeyError, TypeError, IndexError)
    try:
        lines = read_small_file(path).splitlines()
    except OSError:  # there is none, or nothing that could be one
        lines = []
    for line in lines:
        with suppress(*damage):
            named.add(str(parse_json(line)["shard"]["file"]))
    with suppress(*damage):
        prefix = str(parse_json(lines[0])["identity"]["prefix"])
        named |= {shard_name(prefix, split, len(named)) for split in ("val", "train")}
    return named


def _own_tokenizer(directory: Path) -> list[Path]:
    """The files of the tokenizer in `directory`, as far as they are as shardkit wrote them for the manifest there, or
    at the end of the run whose journal is there."""
    infos = [Manifest.load(directory).tokenizer] if (directory / MANIFEST_NAME).exists() else []
    with suppress(ValueError, KeyError, TypeError, IndexError, OSError, TokenizerError):
        identity = parse_json(read_small_file(directory / JOURNAL_FILE).splitlines()[0])["identity"]
        sha256, eot_id = str(identity["vocabulary"]), int(identity["end of text"])
        infos.append(TokenizerInfo(name="", vocab_size=0, eot_id=eot_id, ranks_sha256=sha256))
        name = str(identity["tokenizer"])
        if (directory / TOKENIZER_NAME).exists() and (name == "bytes" or is_encoding(name)):
            made = Tokenizer(name, encoder="tiktoken").info_with_file
            infos.append(dataclasses.replace(made, eot_id=eot_id))
    return list(dict.fromkeys(path for info in infos if info for path in own_tokenizer_paths(directory, info)))


def clear(directory: Path) -> None:
    """Remove what shardkit made in `directory` before (the shards that its manifest or journal names, these two, the
    files of the tokenizer, other working files) and nothing else. Raises `OutputError`, and removes nothing, if other
    shards are there.

    For `--overwrite`, once everything else about the run is known to be right: a typing error must not cost a dataset.
    """
    shards, tokenizer = _listed_shards(directory), _own_tokenizer(directory)
    try:
        for path in tokenizer:  # while the manifest still says that they are ours
            path.unlink()
        (directory / MANIFEST_NAME).unlink(missing_ok=True)  # first: what is left is no longer a complete dataset
        for path in shards:
            path.unlink()
        for path in (directory / WORK_DIR).iterdir():
            if path.name not in _LOCK_FILES:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        raise write_error(error, directory, 0) from None
