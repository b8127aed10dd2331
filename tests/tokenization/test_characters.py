"""The vocabulary `chars`: ids are places in the sorted characters, whatever the source and the workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from texts import prose, write_parquet
from tqdm import tqdm

from shardkit import Manifest, Tokenizer, tokenize
from shardkit.errors import ShardkitError, SourceError, TokenizerError, UsageError
from shardkit.look.peek import peek_document
from shardkit.sources.open import open_source
from shardkit.tokenization.characters import character_vocabulary
from shardkit.tokenization.vocabulary import load_vocabulary


def ids_of(folder: Path, manifest: Manifest) -> list[int]:
    return [int(i) for shard in manifest.shards for i in np.load(folder / shard.file)]


def expected(texts: list[str]) -> list[int]:
    """As the tutorials do it: `stoi = {c: i for i, c in enumerate(sorted(set(text)))}`."""
    characters = sorted(set("".join(texts)))
    return [i for text in texts for i in [len(characters), *(characters.index(c) for c in text)]]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_text_file_is_the_tutorials_ids(workers: int, tmp_path: Path) -> None:
    text = "First Citizen:\nBefore we proceed, hear me speak.\n\nAll:\nSpeak, speak! \u00e9\U0001f600\n" * 20
    (tmp_path / "input.txt").write_text(text)
    out = tmp_path / "out"
    manifest = tokenize(tmp_path / "input.txt", out, tokenizer="chars", workers=workers, val_shards=0, shard_tokens=500)
    assert ids_of(out, manifest) == expected([text])
    assert manifest.tokenizer is not None
    assert (manifest.tokenizer.name, manifest.tokenizer.vocab_size) == ("chars", len(set(text)) + 1)


def test_a_dataset_of_characters_needs_nothing_else(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    texts = [text[:400] for text in prose(30)]
    write_parquet(tmp_path / "a.parquet", [*texts])
    tokenize(tmp_path / "a.parquet", tmp_path / "out", tokenizer="chars", workers=1, shard_tokens=3_000)
    manifest = Manifest.load(tmp_path / "out")
    assert ids_of(tmp_path / "out", manifest) == expected(texts)
    assert peek_document(tmp_path / "out", 7, max_tokens=500).text == texts[7]
    tokenizer = Tokenizer.of_dataset(manifest)
    assert tokenizer.decode(tokenizer.encode_ordinary(texts[3])) == texts[3]
    theirs = AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    assert theirs(texts[3], add_special_tokens=False)["input_ids"] == tokenizer.encode_ordinary(texts[3])
    assert theirs.eos_token_id == tokenizer.eot_id
    (tmp_path / "out" / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"not beside its manifest \(chars\)"):
        Tokenizer.of_dataset(manifest)


def test_a_transform_decides_which_characters_there_are(tmp_path: Path) -> None:
    manifest = tokenize(
        ["abc", "xyz", "no"],
        tmp_path / "out",
        tokenizer="chars",
        transform=str.upper,
        filter=lambda text: text != "NO",
        workers=1,
        val_shards=0,
    )
    assert ids_of(tmp_path / "out", manifest) == expected(["ABC", "XYZ"])


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1, max_size=5))
def test_any_text_comes_back(texts: list[str]) -> None:
    source = open_source(texts)
    if not any(texts):
        with pytest.raises(SourceError, match="has no text, so there are no characters"):
            character_vocabulary(source, transform=None, filter=None)
        return
    vocabulary = character_vocabulary(source, transform=None, filter=None)
    tokenizer, characters = Tokenizer(vocabulary), sorted(set("".join(texts)))
    assert tokenizer.eot_id == len(characters)
    for text in texts:
        ids = tokenizer.encode_ordinary(text)
        assert ids == [characters.index(c) for c in text]
        assert tokenizer.decode(ids) == text


def test_a_character_that_was_not_there_is_an_error_and_not_dropped(tmp_path: Path) -> None:
    tokenizer = Tokenizer(character_vocabulary(open_source(["abc"])))
    with pytest.raises(TokenizerError, match="'d' is no character of chars"):
        tokenizer.encode_ordinary("abdc")

    class Changing(list[str]):
        def __iter__(self) -> Iterator[str]:
            self[0] += chr(0x4E00 + len(self[0]))  # another text each time
            return super().__iter__()

    with pytest.raises(SourceError, match="is no character of chars"):
        tokenize(Changing(["ab", "b"]), tmp_path / "out", tokenizer="chars", workers=1, val_shards=0)


def test_a_long_text_without_a_blank_is_cut_anywhere(tmp_path: Path) -> None:
    text = "abcdefghij" * 900_000  # longer than a piece, and than an engine is given at once
    (tmp_path / "input.txt").write_text(text)
    out = tmp_path / "out"
    manifest = tokenize(tmp_path / "input.txt", out, tokenizer="chars", workers=1, val_shards=0)
    assert (manifest.tokens, manifest.documents) == (len(text) + 1, 1)
    assert (np.load(out / manifest.shards[0].file)[1:].reshape(-1, 10) == np.arange(10)).all()


def test_the_limits_of_a_run_bound_what_is_read_for_it() -> None:
    texts = [f"{chr(0x4E00 + number)}" * 1000 for number in range(20_000)]
    source = open_source(texts)
    everything = character_vocabulary(source).info.vocab_size
    assert everything == 20_001
    assert character_vocabulary(source, max_docs=5).info.vocab_size < everything
    assert character_vocabulary(source, max_tokens=5).info.vocab_size < everything


def test_what_cannot_have_it_is_one_line(tmp_path: Path) -> None:
    for once in (iter(["a"]), tqdm(iter(["a"]), total=1, disable=True)):
        with pytest.raises(UsageError, match="reads the source twice, and an iterator can be read once"):
            tokenize(once, tmp_path / "out", tokenizer="chars")
    with pytest.raises(UsageError, match="chars has one end of text: leave eot= out"):
        tokenize(["a"], tmp_path / "out", tokenizer="chars", eot="x")
    with pytest.raises(TokenizerError, match="made of the text of one dataset"):
        load_vocabulary("chars")
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "good"}\n\xff\n')
    with pytest.raises(ShardkitError, match=r"bad\.jsonl"):
        tokenize(tmp_path / "bad.jsonl", tmp_path / "out", tokenizer="chars", workers=1)
