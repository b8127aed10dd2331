"""`tokenizers`: the fast engine is `encode_ordinary`, whatever the text; the audit finds one that is not."""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shardkit.errors import AuditError, ShardkitWarning, TokenizerError, UsageError
from shardkit.tokenization.engines import replace_surrogates
from shardkit.tokenization.fast_json import fast_tokenizer_json, find_splits, known_splits
from shardkit.tokenization.tiktoken_files import load_encoding, ranks_sha256
from shardkit.tokenization.tokenizer import Tokenizer
from shardkit.tokenization.vocabulary import load_vocabulary

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)  # every code point, lone surrogates too
DENSE = st.text(st.sampled_from("aAbsS'ld1٣ \t\r\n\0\u00a0\u2028!?<|>_é\u0301日\U0001f600\ud83d\ude00"), max_size=60)
AWKWARD = [
    "",
    " ",
    "\n",
    "\0",
    "a\0b\0\0",
    "<|endoftext|>",
    "x<|endoftext|>y <|endoftext|>",
    "\ud800",
    "a\udc00\ud800b",
    "\ud83d\ude00",
    "\ufeff",
    "\ufeffa\ufeff",
    " " * 10_000,
    "\n" * 9_999 + "x",
    "\r\n\r\n\t  x",
    "'S'LL'd ''ve",
    "1" * 5_000,
    "e\u0301" * 500,
    "\U0001f600\u200d" * 300,
    "\u2028\u00a0\u3000 \u1680",
    "".join(map(chr, range(0x300))),
]


@cache
def tokenizer(name: str = "gpt2", encoder: str = "fast") -> Tokenizer:
    return Tokenizer(name, encoder=encoder)


@cache
def reference(name: str = "gpt2") -> Any:
    return load_encoding(name)


def rows(found: tuple[np.ndarray, np.ndarray]) -> list[list[int]]:
    ids, offsets = found
    assert offsets.dtype == np.int64
    assert ids.dtype.kind == "u"
    assert (offsets[0], offsets[-1]) == (0, len(ids))
    return [ids[a:b].tolist() for a, b in pairwise(offsets)]


@settings(max_examples=200, deadline=None)
@given(st.lists(ANY_TEXT | DENSE, max_size=6))
@example(AWKWARD)
def test_fast_is_tiktoken_on_any_unicode_text(texts: list[str]) -> None:
    assert rows(tokenizer().encode_batch(texts)) == [reference().encode_ordinary(text) for text in texts]


@pytest.mark.parametrize("name", ["gpt2", "bytes", "cl100k_base"])
def test_the_reference_engine_and_bytes_take_awkward_text(name: str) -> None:
    found = rows(tokenizer(name, "tiktoken").encode_batch(AWKWARD))
    if name == "bytes":
        assert found == [list(replace_surrogates(text).encode()) for text in AWKWARD]
    else:
        assert found == [reference(name).encode_ordinary(text) for text in AWKWARD]


@pytest.mark.parametrize("name", ["r50k_base", "p50k_base", "cl100k_base", "o200k_base", "o200k_harmony"])
def test_every_proven_encoding_is_exact_on_awkward_text(name: str) -> None:
    assert tokenizer(name, "auto").is_fast
    expected = [reference(name).encode_ordinary(text) for text in AWKWARD]
    assert rows(tokenizer(name, "auto").encode_batch(AWKWARD)) == expected


def test_fast_is_tiktoken_on_every_code_point() -> None:
    points = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    texts = ["".join(f"a{c}b {c}" for c in points[at : at + 512]) for at in range(0, len(points), 512)]
    expected = reference().encode_ordinary_batch(texts, num_threads=2)
    assert rows(tokenizer().encode_batch(texts)) == expected


def test_a_word_of_five_megabytes_is_encoded_exactly_and_soon() -> None:
    word = "a" * 5_000_000
    (found,) = rows(tokenizer().encode_batch([word]))
    assert found == reference().encode_ordinary(word)


def test_surrogates_become_what_tiktoken_makes_of_them() -> None:
    assert replace_surrogates("a\ud800b") == "a\ufffdb"
    assert replace_surrogates("\ud83d\ude00") == "\U0001f600"
    assert replace_surrogates("\udc00\ud800") == "\ufffd\ufffd"
    plain = "plain \ufeff"
    assert replace_surrogates(plain) is plain


def test_a_special_token_in_the_text_is_text() -> None:
    ids = tokenizer().encode_batch(["<|endoftext|>"])[0].tolist()
    assert ids == [27, 91, 437, 1659, 5239, 91, 29]
    assert 50256 not in ids


def test_with_eot_puts_one_eot_before_each_document_and_narrows() -> None:
    stream = tokenizer().with_eot(*tokenizer().encode_batch(["Hello", "", "world"]))
    assert stream.dtype == np.dtype("<u2")
    assert stream.tolist() == [50256, 15496, 50256, 50256, 6894]
    assert tokenizer().with_eot(*tokenizer().encode_batch([])).tolist() == []


@pytest.mark.parametrize(
    ("name", "dtype", "eot", "vocabulary"),
    [
        ("gpt2", "uint16", 50256, 50257),
        ("r50k_base", "uint16", 50256, 50257),
        ("p50k_base", "uint16", 50256, 50281),
        ("cl100k_base", "uint32", 100257, 100277),
        ("bytes", "uint16", 256, 257),
    ],
)
def test_the_dtype_follows_from_the_vocabulary(name: str, dtype: str, eot: int, vocabulary: int) -> None:
    made = tokenizer(name, "tiktoken")
    assert (made.dtype.name, made.eot_id, made.info.vocab_size) == (dtype, eot, vocabulary)
    assert made.info.name == name


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=40))
def test_decoding_gives_the_text_again(name: str, text: str) -> None:
    made = tokenizer(name, "tiktoken")
    ids = made.encode_batch([text])[0]
    assert made.decode(ids) == text
    assert made.decode([made.eot_id, *ids]) == "<|endoftext|>" + text


def test_bytes_that_are_no_text_decode_to_replacement_characters() -> None:
    assert tokenizer("bytes", "auto").decode([0xFF, 256, 65]) == "\ufffd<|endoftext|>A"


def test_unknown_names_are_one_clear_error() -> None:
    with pytest.raises(
        TokenizerError, match=r"unknown tokenizer 'gpt9': expected one of .*gpt2.*bytes.*tokenizer\.json"
    ):
        Tokenizer("gpt9")
    with pytest.raises(UsageError, match="unknown encoder 'quick': expected one of auto, fast, tiktoken"):
        Tokenizer("gpt2", encoder="quick")


@pytest.mark.parametrize("name", ["gpt2", "bytes", "tokenizer.json"])
def test_a_worker_needs_only_the_vocabulary_that_the_first_instance_loaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = str(train(tmp_path / name, specials=["</s>"])) if name.endswith(".json") else name
    first = Tokenizer(name)
    carried = pickle.loads(pickle.dumps(first.vocabulary))
    monkeypatch.setattr("shardkit.tokenization.tokenizer.load_vocabulary", None)
    monkeypatch.setattr("shardkit.tokenization.vocabulary.fast_tokenizer_json", None)
    again = Tokenizer(carried)
    assert (again.info, again.dtype, again.engine, again.cuts) == (first.info, first.dtype, first.engine, first.cuts)
    assert rows(again.encode_batch(SAMPLE)) == rows(first.encode_batch(SAMPLE))
    assert again.decode(again.encode_ordinary(SAMPLE[1])) == SAMPLE[1]


def test_gpt2_is_the_same_vocabulary_from_the_file_of_r50k_base(monkeypatch: pytest.MonkeyPatch) -> None:
    from shardkit.tokenization import vocabulary

    quick = vocabulary._from_tiktoken.__wrapped__("gpt2")
    monkeypatch.setattr(vocabulary, "seed_tiktoken_cache", lambda name: False)
    slow = vocabulary._from_tiktoken.__wrapped__("gpt2")
    assert (quick.info, quick.encoding) == (slow.info, slow.encoding)
    assert quick.info.name == quick.encoding["name"] == "gpt2"


@pytest.mark.parametrize("name", ["gpt2", "r50k_base", "p50k_base", "cl100k_base", "o200k_base"])
def test_the_known_splits_are_those_that_the_ranks_give(name: str) -> None:
    ranks = reference(name)._mergeable_ranks
    known = known_splits(ranks_sha256(ranks))
    assert known is not None
    tokens = [token for token in sorted(ranks, key=lambda token: ranks[token]) if len(token) > 1]
    some = slice(None) if name == "gpt2" else slice(0, None, 29)
    assert known[some] == find_splits(ranks, tokens[some])
    assert len(known) == len(tokens)


def test_an_encoding_without_known_splits_gets_the_same_merges(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {token: rank for token, rank in reference()._mergeable_ranks.items() if rank < 3_000}
    assert known_splits(ranks_sha256(ranks)) is None
    merges = json.loads(fast_tokenizer_json(ranks, reference()._pat_str))["model"]["merges"]
    whole = json.loads(fast_tokenizer_json(reference()._mergeable_ranks, reference()._pat_str))["model"]["merges"]
    assert merges == whole[: len(merges)]
    assert len(merges) == 3_000 - 256


# the audit ---------------------------------------------------------------------------------------------------------


def doctored() -> str:
    """The fast engine's file with the ids of two common words swapped."""
    data = json.loads(fast_tokenizer_json(reference()._mergeable_ranks, reference()._pat_str))
    vocabulary = data["model"]["vocab"]
    vocabulary["Ġthe"], vocabulary["Ġand"] = vocabulary["Ġand"], vocabulary["Ġthe"]
    return json.dumps(data)


def test_the_audit_names_the_document_that_a_wrong_engine_gets_wrong() -> None:
    wrong = Tokenizer(dataclasses.replace(load_vocabulary("gpt2"), fast_json=doctored()), encoder="fast")
    right, bad = "nothing amiss", "we saw the sea and more"
    ids, offsets = wrong.encode_batch([right, bad])
    wrong.audit(right, ids[: offsets[1]], "a.parquet, row 0")
    with pytest.raises(AuditError) as caught:
        wrong.audit(bad, ids[offsets[1] :], "a.parquet, row 1")
    message = str(caught.value)
    assert message.startswith("a.parquet, row 1: fastokens ")
    assert "differ at token 2 (expected [262, 5417, 290, 517], got [290, 5417, 262, 517])" in message
    assert "encoder='tiktoken'" in message


@pytest.mark.parametrize("ids", [[], [464], [464, 3797, 0], [464, 3797, 5000]])
def test_the_audit_sees_missing_and_surplus_tokens(ids: list[int]) -> None:
    tokenizer().audit("The cat", np.array([464, 3797], "<u4"), "x")
    with pytest.raises(AuditError, match=f"differ at token {min(len(ids), 2)}"):
        tokenizer().audit("The cat", np.array(ids, "<u4"), "x")


def test_a_vocabulary_that_is_no_byte_pair_vocabulary_is_refused() -> None:
    ranks = {bytes([b]): b for b in range(256)} | {b"abcd": 256}
    with pytest.raises(TokenizerError, match=r"b'abcd' cannot be built"):
        fast_tokenizer_json(ranks, reference()._pat_str)


# tokenizer.json ----------------------------------------------------------------------------------------------------

SAMPLE = ["the quick brown fox jumps over the lazy dog, and the cat sees the dog. " * 3, "naïve café — 日本語 1234"]


def train(path: Path, *, specials: list[str], max_length: int | None = None) -> Path:
    """A small byte-level BPE in a `tokenizer.json`."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(SAMPLE, trainer)
    if max_length is not None:
        made.enable_truncation(max_length)
        made.enable_padding(length=max_length)
    made.save(str(path))
    return path


@pytest.mark.parametrize("encoder", ["auto", "fast"])
def test_a_tokenizer_json_encodes_as_its_own_library_does(tmp_path: Path, encoder: str) -> None:
    path = train(tmp_path / "tokenizer.json", specials=["<|endoftext|>"])
    made = Tokenizer(str(path), encoder=encoder)
    own = tokenizers.Tokenizer.from_file(str(path))
    texts = [*SAMPLE, "", "\0", "日本 \U0001f600"]
    assert rows(made.encode_batch(texts)) == [own.encode(text, add_special_tokens=False).ids for text in texts]
    assert made.eot_id == own.token_to_id("<|endoftext|>")
    assert made.decode(made.encode_batch(texts[:1])[0]) == texts[0]
    for text in ("x<|endoftext|>y", "\ud800"):
        (found,) = rows(made.encode_batch([text]))
        assert made.eot_id not in found
        assert found == made.encode_ordinary(text)


@pytest.mark.parametrize("encoder", ["auto", "fast"])
def test_the_length_limit_and_padding_of_a_tokenizer_json_are_not_for_datasets(tmp_path: Path, encoder: str) -> None:
    limited = train(tmp_path / "limited.json", specials=["</s>"], max_length=8)
    free = train(tmp_path / "free.json", specials=["</s>"])
    texts = [SAMPLE[0], "a"]
    found = rows(Tokenizer(str(limited), encoder=encoder).encode_batch(texts))
    assert found == rows(Tokenizer(str(free)).encode_batch(texts))


def test_ids_with_holes_decide_the_dtype_by_the_largest(tmp_path: Path) -> None:
    path = train(tmp_path / "tokenizer.json", specials=["</s>"])
    data = json.loads(path.read_text())
    last = max(data["model"]["vocab"], key=data["model"]["vocab"].get)
    data["model"]["vocab"][last] = 70_000
    path.write_text(json.dumps(data))
    made = Tokenizer(str(path))
    assert (made.info.vocab_size, made.dtype.name) == (70_001, "uint32")


def test_the_end_of_text_token_is_the_configs_or_a_usual_name(tmp_path: Path) -> None:
    path = train(tmp_path / "tokenizer.json", specials=["[STOP]", "</s>"])
    assert Tokenizer(str(path)).eot_id == 1
    for eos in ("[STOP]", {"content": "[STOP]"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
        with pytest.warns(
            ShardkitWarning, match=r"separated by '\[STOP\]', which is not the end of text of a well-known"
        ):
            assert Tokenizer(str(path)).eot_id == 0
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "[NONE]"}))
    with pytest.raises(TokenizerError, match=r"has no token '\[NONE\]', the eos_token of its tokenizer_config.json"):
        Tokenizer(str(path))
    for text in (
        "{",
        "[" * 100_000,
        "[]",
        "3",
        '{"eos_token": 3}',
        '{"eos_token": ["a"]}',
        '{"eos_token": {"content": 1}}',
    ):
        (tmp_path / "tokenizer_config.json").write_text(text)
        with pytest.raises(TokenizerError, match=r"cannot read .*tokenizer_config\.json"):
            Tokenizer(str(path))


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\xfe", b"not json", b"[" * 100_000])
def test_a_file_that_is_no_tokenizer_json_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"x\.json is not a tokenizer\.json"):
        Tokenizer(str(tmp_path / "x.json"))
    with pytest.raises(TokenizerError, match=r"cannot read tokenizer .*none\.json"):
        Tokenizer(str(tmp_path / "none.json"))


def test_importing_the_module_loads_no_engine() -> None:
    import subprocess

    code = (
        "import sys, shardkit.tokenization.tokenizer; print({'tiktoken', 'fastokens', 'tokenizers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_tokenizer_json_without_a_vocabulary_or_of_many_gigabytes_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    model = {"type": "BPE", "vocab": {}, "merges": []}
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    with pytest.raises(TokenizerError, match="has an empty vocabulary"):
        Tokenizer(str(path))
    with open(path, "r+b") as file:
        file.truncate(6 << 30)
    with pytest.raises(TokenizerError, match=r"cannot read tokenizer .*: it has 6\.4 GB, more than"):
        Tokenizer(str(path))


@pytest.mark.parametrize(("name", "ids"), [("cl100k_base", [100256, 64]), ("gpt2", [60_000, 64]), ("bytes", [300, 97])])
def test_an_id_that_no_token_has_decodes_to_a_replacement_character(name: str, ids: list[int]) -> None:
    assert tokenizer(name, "tiktoken").decode(ids) == "\ufffda"


def config(folder: Path, eos: str) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))


@pytest.mark.parametrize("turn", ["<|im_end|>", "<|eot_id|>", "<end_of_turn>"])
def test_what_ends_a_turn_of_a_chat_separates_no_documents_where_there_is_an_end_of_text(
    turn: str, tmp_path: Path
) -> None:
    path = train(tmp_path / "tokenizer.json", specials=[turn, "<|endoftext|>"])
    config(tmp_path, turn)
    assert Tokenizer(str(path)).eot_id == 1
    alone = train(tmp_path / "tokenizer.json", specials=[turn])
    with pytest.warns(ShardkitWarning, match="documents are separated by '.*', which is not the end of text"):
        assert Tokenizer(str(alone)).eot_id == 0


def test_the_end_of_text_may_be_named(tmp_path: Path) -> None:
    path = train(tmp_path / "tokenizer.json", specials=["[A]", "[B]", "</s>"])
    config(tmp_path, "[A]")
    named = load_vocabulary(str(path), "[B]")
    assert (named.info.eot_id, named.end_of_text) == (1, "[B]")
    assert load_vocabulary(str(tmp_path), "[B]").info == named.info
    with pytest.raises(TokenizerError, match=r"tokenizer.json has no token '\[C\]': give eot= one of its tokens"):
        load_vocabulary(str(path), "[C]")
    assert load_vocabulary("cl100k_base", "<|endofprompt|>").info.eot_id == 100276
    assert load_vocabulary("cl100k_base").end_of_text == load_vocabulary("bytes").end_of_text == "<|endoftext|>"
    for name in ("gpt2", "bytes"):
        with pytest.raises(TokenizerError, match=rf"{name} has no special token 'x': eot is one of <\|endoftext\|>"):
            load_vocabulary(name, "x")
