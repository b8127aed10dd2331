"""A long text in parts has the ids of the whole, with every vocabulary that says so."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from texts import documents

from shardkit.tokenization import cutting
from shardkit.tokenization.tiktoken_files import load_encoding
from shardkit.tokenization.tokenizer import Tokenizer

CUT = ["gpt2", "r50k_base", "p50k_base", "cl100k_base", "o200k_base"]
# What the patterns make something special of, beside what a text may be cut after and before.
WORDS = ["a", "B", "é", "日", "本", "ा", "हि", "ñ\u0301", "1", "23", "٣", "²", "'s", "'LL", "\u2019s", "_", "/", "#"]
MARKS = [
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\u3000",
    "\u00a0",
    ".",
    ",",
    "(",
    ")",
    "?!",
    "\uff0c",
    "\u3002",
    "...\n\n",
    "-",
]
PIECES = st.sampled_from([*WORDS, *MARKS, "\U0001f600"])
TRICKY = st.lists(PIECES, max_size=60).map("".join)


@cache
def reference(name: str) -> Tokenizer:
    return Tokenizer(name, encoder="tiktoken")


@pytest.mark.parametrize("name", CUT)
@settings(max_examples=150, deadline=None)
@given(text=TRICKY | st.text(max_size=60))
@example("I'll go. It's 12,5 (or 13): word   next\n\n日本\uff0c世界\u3002 end'S")
def test_every_place_where_a_text_may_be_cut_keeps_the_ids(name: str, text: str) -> None:
    encode = reference(name).encode_ordinary
    whole = encode(text)
    for match in cutting._PLACE.finditer(text):
        assert encode(text[: match.end()]) + encode(text[match.end() :]) == whole


def test_all_encodings_of_tiktoken_have_patterns_that_were_tried() -> None:
    import tiktoken

    tried = {load_encoding(name)._pat_str for name in CUT}
    untried = {name for name in tiktoken.list_encoding_names() if load_encoding(name)._pat_str not in tried}
    assert untried <= {"p50k_edit", "o200k_harmony"}, untried


@pytest.mark.parametrize(("name", "encoder"), [("gpt2", "fast"), ("cl100k_base", "tiktoken"), ("bytes", "auto")])
def test_a_long_document_is_encoded_in_parts_and_gives_the_same_ids(
    monkeypatch: pytest.MonkeyPatch, name: str, encoder: str
) -> None:
    tokenizer = Tokenizer(name, encoder=encoder)
    texts = ["short", " ".join(text or "" for text in documents(60)), "", "x" * 3000, "\ud800 lone " * 400]
    expected = [tokenizer.encode_ordinary(text) for text in texts]
    monkeypatch.setattr(cutting, "PART_CHARACTERS", 1000)
    ids, offsets = tokenizer.encode_batch(texts)
    assert [ids[offsets[i] : offsets[i + 1]].tolist() for i in range(5)] == expected


@settings(max_examples=200, deadline=None)
@given(text=TRICKY, most=st.integers(1, 20))
def test_parts_are_the_text_and_no_longer_than_need_be(text: str, most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "PART_CHARACTERS", most)
        parts = list(cutting.parts(text))
        assert cutting.longest_part(text) == max(map(len, parts))
    assert "".join(parts) == text
    places = {match.end() for match in cutting._PLACE.finditer(text)}
    start = 0
    for part in parts:
        if len(part) > most:  # no place in it that would have been soon enough
            assert not places & set(range(start + 1, start + most))
        start += len(part)
        assert start in places | {len(text)}


def test_the_last_place_is_found_however_far_back_it_is() -> None:
    for tail in (0, 10, 5_000, 100_000):
        text = "one two" + "x" * tail
        assert cutting.last_place(text, 0, len(text)) == 3
        assert cutting.last_place(text, 3, len(text)) == 3


def test_what_is_too_long_is_what_has_no_place_to_be_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "LONGEST_RUN", 100)
    monkeypatch.setattr(cutting, "PART_CHARACTERS", 50)
    assert reference("gpt2").why_too_long("a word " * 1000) is None
    assert re.match("2,0.. characters without a space", reference("gpt2").why_too_long("a word " + "x" * 2000) or "")
    assert Tokenizer("bytes").why_too_long("x" * 2000) is None


@pytest.mark.parametrize(
    ("change", "cuts"),
    [
        (lambda t: None, True),
        (lambda t: setattr(t, "normalizer", tokenizers.normalizers.NFC()), False),
        (lambda t: setattr(t, "pre_tokenizer", tokenizers.pre_tokenizers.Metaspace()), False),
        (lambda t: setattr(t, "pre_tokenizer", tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)), False),
        (lambda t: t.add_tokens(["a b"]), False),
    ],
    ids=["as gpt2", "normalizer", "metaspace", "prefix space", "added token"],
)
def test_a_tokenizer_json_is_cut_only_where_it_reads_words_as_gpt2_does(
    tmp_path: Path, change: object, cuts: bool
) -> None:
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["a b c, the one and the other"], trainer)
    change(made)  # type: ignore[operator]
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(str(tmp_path / "tokenizer.json"))
    assert tokenizer.cuts is cuts
    text = "the one, a b and  the\nother; end"
    if cuts:
        for match in cutting._PLACE.finditer(text):
            first, second = text[: match.end()], text[match.end() :]
            found = tokenizer.encode_ordinary(first) + tokenizer.encode_ordinary(second)
            assert found == tokenizer.encode_ordinary(text)
