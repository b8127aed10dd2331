"""Published `tokenizer.json` files: whatever spells the same vocabulary has the same proof, and nothing else has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vocabulary_data import train_vocabulary

from shardkit.tokenization.engines import make_reference
from shardkit.tokenization.tokenizer import Tokenizer
from shardkit.tokenization.tokenizer_json import canonical_tokenizer_json, special_tokens
from shardkit.tokenization.vocabulary import Vocabulary, load_vocabulary, tokenizer_json_of

Stated = dict[str, Any]
TEXTS = ["a <|endoftext|>b", "<|im_end|>", "it's 1234  words\n\n", "<|endoftext|><|endoftext|> x", "\u00e9\u4e00"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def gpt2() -> Stated:
    """GPT-2's file as `openai-community/gpt2` has it: an old spelling of it."""
    made: Stated = json.loads(tokenizer_json_of(load_vocabulary("gpt2")))
    model = made["model"]
    old = {"dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": ""}
    merges = [" ".join(pair) for pair in model["merges"]]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    end_of_text = special_tokens({"<|endoftext|>": 50256})[0] | {"normalized": True}
    return made | {
        "added_tokens": [end_of_text],
        "pre_tokenizer": byte_level,
        "decoder": byte_level | {"add_prefix_space": True},
        "post_processor": byte_level | {"add_prefix_space": True, "trim_offsets": False},
        "model": {**old, "fuse_unk": False, "vocab": model["vocab"], "merges": merges},
    }


def loaded(stated: Stated, folder: Path, **spelling: Any) -> Vocabulary:
    (folder / "tokenizer.json").write_text(json.dumps(stated, **spelling))
    return load_vocabulary(str(folder / "tokenizer.json"), "<|endoftext|>")


def test_the_published_file_of_gpt2_has_the_proof_that_is_shipped(gpt2: Stated, tmp_path: Path) -> None:
    vocabulary = loaded(gpt2, tmp_path, indent=2, ensure_ascii=False)
    assert vocabulary.proof is not None, "run `python -m shardkit.tokenization.proving` as its first lines say"
    assert (vocabulary.proof.vocabulary, vocabulary.proof.reason) == ("gpt2", None)
    assert Tokenizer(vocabulary).is_fast


def swap_two_ids(stated: Stated) -> None:
    vocab = stated["model"]["vocab"]
    vocab["\u0120the"], vocab["\u0120and"] = vocab["\u0120and"], vocab["\u0120the"]


def remove_a_merge(stated: Stated) -> None:
    stated["model"]["merges"].pop()


def swap_two_merges(stated: Stated) -> None:
    stated["model"]["merges"][:2] = stated["model"]["merges"][1::-1]


def normalize(stated: Stated) -> None:
    stated["normalizer"] = {"type": "NFC"}


def add_a_space(stated: Stated) -> None:
    stated["pre_tokenizer"] = stated["pre_tokenizer"] | {"add_prefix_space": True}


def cut_nothing(stated: Stated) -> None:
    stated["pre_tokenizer"] = stated["pre_tokenizer"] | {"use_regex": False}


def leave_the_space_to_its_default(stated: Stated) -> None:
    stated["pre_tokenizer"] = {"type": "ByteLevel", "trim_offsets": True}


def take_whole_words(stated: Stated) -> None:
    stated["model"] = stated["model"] | {"ignore_merges": True}


def find_a_token_in_the_text(stated: Stated) -> None:
    stated["added_tokens"] = [*stated["added_tokens"], *special_tokens({"<think>": 50257})]
    stated["added_tokens"][1]["special"] = False


CHANGES = [
    swap_two_ids,
    remove_a_merge,
    swap_two_merges,
    normalize,
    add_a_space,
    cut_nothing,
    leave_the_space_to_its_default,
    take_whole_words,
    find_a_token_in_the_text,
]


@pytest.fixture
def small(tmp_path: Path) -> Stated:
    stated: Stated = json.loads(train_vocabulary(tmp_path / "small" / "tokenizer.json", size=600).read_text())
    return stated


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_may_change_an_id_gives_the_vocabulary_another_proof(
    small: Stated, change: Callable[[Stated], None]
) -> None:
    before = canonical_tokenizer_json(json.dumps(small))
    change(small)
    assert canonical_tokenizer_json(json.dumps(small)) != before


def test_gpt2_with_two_ids_swapped_has_no_proof(gpt2: Stated, tmp_path: Path) -> None:
    other: Stated = json.loads(json.dumps(gpt2))
    swap_two_ids(other)
    assert loaded(other, tmp_path).proof is None


def spell_out(stated: Stated) -> None:
    stated["model"] = {"dropout": None, "continuing_subword_prefix": "", "end_of_word_suffix": ""} | stated["model"]
    stated["model"]["vocab"] = dict(reversed(stated["model"]["vocab"].items()))
    stated["model"]["merges"] = [" ".join(pair) for pair in stated["model"]["merges"]]
    stated["pre_tokenizer"] = stated["pre_tokenizer"] | {"trim_offsets": False}


def leave_to_defaults(stated: Stated) -> None:
    for name in ("type", "dropout", "byte_fallback", "ignore_merges", "fuse_unk"):
        stated["model"].pop(name, None)
    stated["pre_tokenizer"].pop("use_regex")


def repeat_the_text(stated: Stated) -> None:
    twice = [{"Sequence": {"id": "A", "type_id": 0}}] * 2
    stated["post_processor"] = {"type": "TemplateProcessing", "single": twice, "pair": [], "special_tokens": {}}
    stated["post_processor"]["pair"] = [*twice, {"Sequence": {"id": "B", "type_id": 0}}]


def cut_and_pad(stated: Stated) -> None:
    stated["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 100}, "direction": "Right", "pad_to_multiple_of": None}
    stated["padding"] = padding | {"pad_id": 0, "pad_type_id": 0, "pad_token": "!"}


def decode_otherwise(stated: Stated) -> None:
    stated["decoder"] = {"type": "Fuse"}


def add_special_tokens(stated: Stated) -> None:
    stated["added_tokens"] = [*stated["added_tokens"], *special_tokens({"words": 600, "\u00e9": 601})]
    stated["added_tokens"][-1] |= {"lstrip": True, "rstrip": True, "normalized": True}


@pytest.mark.parametrize(
    "change", [spell_out, leave_to_defaults, repeat_the_text, cut_and_pad, decode_otherwise, add_special_tokens]
)
def test_a_change_that_changes_no_id_leaves_the_vocabulary_its_proof(
    small: Stated, tmp_path: Path, change: Callable[[Stated], None]
) -> None:
    before = loaded(small, tmp_path)
    change(small)
    after = loaded(small, tmp_path, indent=1)
    assert (after.proof_key, after.fast_json) == (before.proof_key, before.fast_json)
    assert after.tokenizer_json != before.tokenizer_json
    references = [make_reference(vocabulary) for vocabulary in (before, after)]
    assert len({str([reference.encode(text) for text in TEXTS]) for reference in references}) == 1
    ids = [Tokenizer(vocabulary, encoder="fast").encode_batch(TEXTS)[0].tolist() for vocabulary in (before, after)]
    assert ids == [[number for text in TEXTS for number in references[0].encode(text)]] * 2


def test_beside_a_token_that_is_found_in_the_text_the_special_ones_count(small: Stated, tmp_path: Path) -> None:
    tokens = special_tokens({"<|tool": 600, "|tool>": 601})
    tokens[1]["special"] = False
    small["added_tokens"] += tokens
    with_both = loaded(small, tmp_path)
    found = make_reference(with_both).encode("<|tool>")  # the special one begins earlier, and hides the other
    small["added_tokens"].remove(tokens[0])
    alone = loaded(small, tmp_path)
    assert with_both.proof_key != alone.proof_key
    assert make_reference(alone).encode("<|tool>") != found


def test_special_tokens_stay_where_ids_would_have_holes_without_them(small: Stated) -> None:
    vocab = small["model"]["vocab"]
    specials = [token["content"] for token in small["added_tokens"]]
    small["model"]["vocab"] = {token: number for token, number in vocab.items() if token not in specials}
    assert [token["content"] for token in json.loads(canonical_tokenizer_json(json.dumps(small)))["added_tokens"]] == (
        specials
    )
