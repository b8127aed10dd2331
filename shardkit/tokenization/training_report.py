"""What a vocabulary of one's own is worth: bytes a token on text that it was not trained on, beside OpenAI's."""

from __future__ import annotations

import unicodedata
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.errors import ShardkitWarning, TokenizerError
from shardkit.tokenization.tokenizer import Tokenizer

OTHERS = ("gpt2", "cl100k_base", "o200k_base")
_LETTERS = 2000  # of a document decide its script
_LENGTHS = ((1_000, "under 1 kB"), (10_000, "1 to 10 kB"), (1 << 62, "over 10 kB"))


def compare(path: Path, texts: Sequence[str]) -> list[dict[str, Any]]:
    """For all of `texts`, then by length and by script: how many they are, their bytes, and bytes a token with the
    vocabulary at `path` (`trained`) and with OpenAI's, as far as they can be had; a `ShardkitWarning` names
    the others."""
    sizes = np.array([len(text.encode(errors="replace")) for text in texts], np.int64)
    counts = {"trained": _count(Tokenizer(str(path)), texts)}
    absent = dict[str, TokenizerError]()
    for name in OTHERS:
        try:
            counts[name] = _count(Tokenizer(name), texts)
        except TokenizerError as error:  # not on this machine, and no network
            absent[name] = error
    if absent:
        why = next(iter(absent.values()))
        warnings.warn(f"not compared with {', '.join(absent)}: {why}", ShardkitWarning, stacklevel=2)
    groups = {"all": np.ones(len(texts), np.bool_)}
    for label in (_length_of, _script_of):
        labels = np.array([label(text) for text in texts], np.str_)
        groups |= {found: labels == found for found in sorted(set(labels.tolist()), key=_place)}
    return [_row(group, of, sizes, counts) for group, of in groups.items() if sizes[of].sum()]


def _place(label: str) -> tuple[int, str]:
    """Lengths by length, scripts by name."""
    return next((number for number, (_, length) in enumerate(_LENGTHS) if length == label), 0), label


def _row(
    group: str, of: NDArray[np.bool_], sizes: NDArray[np.int64], counts: dict[str, NDArray[np.int64]]
) -> dict[str, Any]:
    rates = {name: round(int(sizes[of].sum()) / max(1, int(count[of].sum())), 3) for name, count in counts.items()}
    return {"text": group, "documents": int(of.sum()), "bytes": int(sizes[of].sum()), **rates}


def _count(tokenizer: Tokenizer, texts: Sequence[str]) -> NDArray[np.int64]:
    return np.diff(tokenizer.encode_batch(texts)[1])


def _length_of(text: str) -> str:
    return next(label for most, label in _LENGTHS if len(text) < most)


def _script_of(text: str) -> str:
    """The script of most letters, by the first word of their Unicode names, as in `LATIN SMALL LETTER A`."""
    letters = Counter(_script_of_letter(char) for char in text[:_LETTERS] if char.isalpha())
    return letters.most_common(1)[0][0] if letters else "no letters"


@lru_cache(maxsize=4096)
def _script_of_letter(char: str) -> str:
    return unicodedata.name(char, "unknown").split(" ")[0].split("-")[0].capitalize()
