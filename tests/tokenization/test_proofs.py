"""Proofs: what makes an engine differ is found, is left to the reference, and is known again."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacks import LONG
from hypothesis import given
from hypothesis import strategies as st
from reference import folder_bytes
from texts import prose, write_parquet
from tqdm import tqdm
from vocabulary_data import train_vocabulary

from shardkit import Manifest, tokenize
from shardkit.errors import ShardkitWarning, UsageError
from shardkit.sources.open import open_source
from shardkit.tokenization import battery, differences, proofs, proving, tokenizer
from shardkit.tokenization.differences import MOST_GUARDED, Differences
from shardkit.tokenization.engines import Engine, fast_engine, make_reference, reference_engine
from shardkit.tokenization.guard import TokenBatch, guard_engine, make_search
from shardkit.tokenization.proofs import Proof, as_ranges, find_proof, proof_key, save_proof
from shardkit.tokenization.run_spec import RunSpec
from shardkit.tokenization.tokenizer import Tokenizer
from shardkit.tokenization.vocabulary import load_vocabulary, with_fast_json

ENCODINGS = ["gpt2", "r50k_base", "p50k_base", "p50k_edit", "cl100k_base", "o200k_base", "o200k_harmony"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDKIT_CACHE", str(tmp_path / "cache"))


def code_points(texts: Sequence[str]) -> TokenBatch:
    """A reference whose tokens are the text's code points."""
    flat = np.array([ord(char) for text in texts for char in text], np.uint32)
    return flat, np.cumsum([0, *map(len, texts)])


def planted(is_wrong: Callable[[str], bool]) -> Callable[[Sequence[str]], TokenBatch]:
    """An engine that gives other ids for the texts of which `is_wrong` is true."""

    def encode(texts: Sequence[str]) -> TokenBatch:
        ids = [ord(char) + wrong for text, wrong in zip(texts, map(is_wrong, texts), strict=True) for char in text]
        return np.array(ids, np.uint32), np.cumsum([0, *map(len, texts)])

    return encode


def look(is_wrong: Callable[[str], bool], batches: list[list[str]]) -> Differences:
    found = Differences(planted(is_wrong), code_points)
    found.look(batches)
    return found


# what a comparison finds -------------------------------------------------------------------------------------------


@pytest.fixture
def _few_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of a character that makes a difference, only the first 50,000 are tried."""
    few = battery.characters()[:50_000]
    monkeypatch.setattr(differences, "characters", lambda: few)


def test_a_character_that_makes_a_difference_is_the_guard_and_so_are_all_of_its_kind() -> None:
    kind = {chr(c) for c in range(0x1E00, 0x1E10)}
    found = look(lambda text: any(f"{char} " in text for char in kind), [["abc", "x" * 200 + "\u1e07 \u00e9" * 3]])
    assert (found.guard, found.reason) == (kind, None)


@pytest.mark.usefixtures("_few_characters")
def test_of_two_characters_the_guard_has_the_one_that_fewer_could_replace() -> None:
    found = look(lambda text: any(f"\u017f{chr(c)}" in text for c in range(0x4E00, 0x4E40)), [["\u017f\u4e00"]])
    assert found.guard == {"\u017f"}


@pytest.mark.usefixtures("_few_characters")
def test_differences_of_several_kinds_in_one_text_are_all_found() -> None:
    found = look(lambda text: "\u180e" in text or "\u0378\n" in text, [["\u180e a \u0378\n"], ["\u0378\n"]])
    assert found.guard == {"\u180e", "\u0378"}
    assert found.strings == 2


def test_a_difference_without_a_character_beyond_ascii_is_a_reason_and_ends_the_comparison() -> None:
    found = look(lambda text: "q'z" in text, [["\u00e9" * 50 + "xxq'zyy" + "\u00e9" * 50], ["never looked at"]])
    assert found.reason == 'differs from the reference at "q\'z"'
    assert found.strings == 1


@pytest.mark.usefixtures("_few_characters")
def test_more_characters_than_an_exception_would_have_are_a_reason() -> None:
    found = look(lambda text: any("\u4e00" <= char <= "\u9fff" for char in text), [["\u4e00"]])
    assert found.reason is not None
    assert f"differs from the reference at {0x9FFF - 0x4E00 + 1:,} characters" in found.reason
    assert MOST_GUARDED < 0x9FFF - 0x4E00


@pytest.mark.usefixtures("_few_characters")
def test_a_panic_of_the_engine_is_a_difference() -> None:
    class Panic(BaseException):
        pass

    def encode(texts: Sequence[str]) -> TokenBatch:
        if any("\u0f0b" in text for text in texts):
            raise Panic
        return code_points(texts)

    found = Differences(encode, code_points)
    found.look([["fine"], ["a\u0f0bb"]])
    assert found.guard == {"\u0f0b"}


PLANTED: dict[str, Callable[[str], bool]] = {
    "one code point of another plane": lambda text: "\U000203aa" in text,
    "one that is not assigned": lambda text: "\u0378b" in text,
    "one of private use": lambda text: "a\U0010fffd " in text,
    "a blank before a blank": lambda text: "\u180e  " in text,
    "a contraction by case folding": lambda text: "S'\u017f'DK" in text,
    "a mark after its base": lambda text: "e\u0323\u0301" in text,
    "a decomposed syllable": lambda text: "\u1112\u1161\u11c2" in text,
    "a letter of title case after an apostrophe": lambda text: "'\u01c5" in text,
    "a long run": lambda text: "\u3000" * 100 in text,
}


@pytest.mark.usefixtures("_few_characters")
@pytest.mark.parametrize("fault", PLANTED)
def test_the_battery_catches_a_planted_fault(fault: str) -> None:
    is_wrong = PLANTED[fault]
    batches = [batch for batch in every_batch() if any(map(is_wrong, batch))]
    found = look(is_wrong, batches[:1])
    assert found.guard
    assert found.reason is None


@pytest.mark.parametrize("text", ["\n \r", "a'L", "  1", "'VE", "1111", "!\n\n", "\t " * 2, "zz", "\x7f~"])
def test_the_battery_has_what_ascii_patterns_can_confuse(text: str) -> None:
    assert any(text in other for batch in every_batch() for other in batch)


@cache
def every_batch() -> list[list[str]]:
    return list(battery.battery(["zz", "word"], ["prose"]))


def test_the_battery_has_every_code_point_and_every_token() -> None:
    texts = [text for batch in every_batch() for text in batch]
    assert len(set("".join(texts))) == 0x110000 - 0x800  # surrogates are no text
    assert {"zz", " word", "wordword", "prose"} <= set(texts)


@cache
def engine_of_o200k() -> Engine:
    """Which takes seconds to load."""
    return fast_engine(with_fast_json(load_vocabulary("o200k_base")))


# what is shipped ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_of_tiktoken_has_a_proof_for_the_engine_that_is_installed(name: str) -> None:
    proof = load_vocabulary(name).proof
    assert proof is not None, "another engine or battery: run `python -m shardkit.tokenization.proving`"
    assert proof.reason is None
    assert Tokenizer(name).is_fast
    assert Tokenizer(name).exact_as == "tiktoken"


def test_a_proof_made_now_says_what_the_shipped_one_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every sixteenth batch, and the first with the character of the guard; `make torture` makes it whole."""
    vocabulary, all_batches = load_vocabulary("o200k_base"), battery.battery

    def some(*texts: Any) -> Iterator[list[str]]:
        found = False
        for number, batch in enumerate(all_batches(*texts)):
            first = not found and any("'\u017f" in text for text in batch)
            found = found or first
            if LONG or number % 16 == 0 or first:
                yield batch

    monkeypatch.setattr(proving, "battery", some)
    monkeypatch.setattr(proving, "fast_engine", lambda _: engine_of_o200k())
    made = proving.prove(vocabulary)
    shipped = vocabulary.proof
    assert shipped is not None
    assert (made.key, made.engine, made.guard, made.reason) == (shipped.key, shipped.engine, "17F", None)


def test_an_engine_with_two_ids_swapped_is_no_use() -> None:
    vocabulary = with_fast_json(load_vocabulary("gpt2"))
    stated = json.loads(vocabulary.fast_json or "")
    ids = stated["model"]["vocab"]
    ids["Ġthe"], ids["Ġand"] = ids["Ġand"], ids["Ġthe"]
    wrong = dataclasses.replace(vocabulary, fast_json=json.dumps(stated))
    proof = proving.compare(wrong, battery.battery([" and"]))
    assert proof.reason == "differs from the reference at ' and'"


def test_without_the_guard_the_engine_would_be_wrong_and_with_it_it_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary, text = load_vocabulary("o200k_base"), "LS'\u017f'DK"
    reference = make_reference(vocabulary)
    alone = engine_of_o200k().encode_batch([text])[0].tolist()
    monkeypatch.setattr(tokenizer, "fast_engine", lambda _: engine_of_o200k())
    assert alone != reference.encode(text)
    texts = ["plain", text, "", "a" + text, "LS'\u0180'DK", "end"]
    assert same(Tokenizer(vocabulary).encode_batch(texts), reference_engine(reference).encode_batch(texts))


def same(one: TokenBatch, other: TokenBatch) -> bool:
    return one[0].tolist() == other[0].tolist() and one[1].tolist() == other[1].tolist()


# the guard ---------------------------------------------------------------------------------------------------------

BEYOND_ASCII = st.text(st.characters(min_codepoint=0x80, exclude_categories=["Cs"]), min_size=1, max_size=40)
SMALL = "ab\u00e9\u180e\u4e00\U0001f600"


@given(BEYOND_ASCII, st.text(max_size=20))
def test_a_search_finds_a_text_with_any_of_the_characters(characters: str, text: str) -> None:
    has_any = make_search(characters)
    assert has_any(text) == bool(set(text) & set(characters))
    assert has_any(text + characters[-1])


@given(st.sets(st.sampled_from(SMALL[2:])), st.lists(st.text(st.sampled_from(SMALL), max_size=5), max_size=8))
def test_documents_with_a_guarded_character_go_to_the_reference_and_no_others(left: set[str], texts: list[str]) -> None:
    ids, offsets = guard_engine(planted(lambda text: True), code_points, "".join(left))(texts)
    expected = [[ord(char) + (not left & set(text)) for char in text] for text in texts]
    assert [ids[a:b].tolist() for a, b in pairwise(offsets)] == expected


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_a_proof_writes_and_reads_its_characters(characters: str) -> None:
    written = as_ranges(characters)
    assert dataclasses.replace(EXAMPLE, guard=written).guarded == "".join(sorted(set(characters)))
    assert written.isascii()


# the cache ---------------------------------------------------------------------------------------------------------

EXAMPLE = Proof(key="k" * 32, vocabulary="v", engine="e 1", reference="r 1", strings=5, guard="17F 4E00-4E09")


def test_a_proof_that_was_saved_is_found_again() -> None:
    assert find_proof(EXAMPLE.key) is None
    save_proof(EXAMPLE)
    assert find_proof(EXAMPLE.key) == EXAMPLE


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        "\x00",
        json.dumps(dataclasses.asdict(EXAMPLE) | {"guard": "ZZ"}),
        json.dumps(dataclasses.asdict(EXAMPLE) | {"guard": "110000"}),
        json.dumps(dataclasses.asdict(EXAMPLE) | {"guard": "1-2-3"}),
        json.dumps(dataclasses.asdict(EXAMPLE) | {"guard": "61"}),
        json.dumps(dataclasses.asdict(EXAMPLE) | {"strings": "5"}),
        json.dumps(dataclasses.asdict(EXAMPLE) | {"key": "another"}),
    ],
)
def test_a_damaged_proof_is_none(content: str, tmp_path: Path) -> None:
    save_proof(EXAMPLE)
    (tmp_path / "cache" / "proofs" / f"{EXAMPLE.key}.json").write_text(content)
    assert find_proof(EXAMPLE.key) is None


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for name in ("SHARDKIT_CACHE", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    save_proof(EXAMPLE)
    assert find_proof(EXAMPLE.key) is None


def test_ranks_pattern_engine_and_battery_each_make_it_another_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {proof_key("ranks", "pattern"), proof_key("other", "pattern"), proof_key("ranks", "other")}
    monkeypatch.setattr(proofs, "version", lambda package: "9.9")
    keys.add(proof_key("ranks", "pattern"))
    monkeypatch.setattr(battery, "VERSION", -1)
    keys.add(proof_key("ranks", "pattern"))
    assert len(keys) == 5


# a run -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def vocabulary_file(tmp_path: Path) -> Path:
    return train_vocabulary(tmp_path / "tokenizer.json", size=500)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    texts = [*prose(60), "a\u1e07 b", "\u1e07"]
    return write_parquet(tmp_path / "a.parquet", [*texts, None])


def quick_battery(tokens: object, prose: object = (), added: object = ()) -> list[list[str]]:
    return [["a b", "it's", "\u1e07 \u00e9"]]


def run(source: Path, out: Path, tokenizer: Path, *, encoder: str = "auto") -> tuple[Manifest, list[str]]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        manifest = tokenize(
            source, out, tokenizer=str(tokenizer), encoder=encoder, workers=2, shard_tokens=5_000, val_shards=0
        )
    return manifest, [str(warning.message) for warning in said if issubclass(warning.category, ShardkitWarning)]


def test_a_run_over_much_text_proves_an_unknown_vocabulary_once_and_says_so(
    source: Path, vocabulary_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proving, "battery", quick_battery)
    few, said = run(source, tmp_path / "few", vocabulary_file)
    assert (few.encoder["engine"], said) == ("tokenizers", [])
    monkeypatch.setattr(proving, "WORTH_BYTES", 1)
    first, said = run(source, tmp_path / "first", vocabulary_file)
    assert [line.split(":")[0] for line in said] == [
        f"comparing the fast engine with the reference for {vocabulary_file}"
    ]
    assert first.encoder["engine"] == "fastokens"
    assert first.encoder["guarded_characters"] == "0"
    assert find_proof(first.encoder["proof"]) is not None
    again, said = run(source, tmp_path / "again", vocabulary_file)
    assert (again, said) == (first, [])
    assert folder_bytes(tmp_path / "first") == folder_bytes(tmp_path / "few")


def test_texts_are_much_if_they_can_be_counted_before_they_are_read(
    vocabulary_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proving, "battery", quick_battery)
    monkeypatch.setattr(proving, "WORTH_BYTES", 1_000)
    texts = ["a text of thirty characters..."] * 40
    rows, bar = [{"text": text} for text in texts], tqdm(iter(texts), total=len(texts), disable=True)
    sources = {"few": texts[:10], "once": iter(texts), "bar": bar, "many": texts, "rows": rows}
    for name, source in sources.items():
        made, _ = run(source, tmp_path / name, vocabulary_file)  # type: ignore[arg-type]
        assert made.documents == (10 if name == "few" else 40)
        assert made.encoder["engine"] == ("fastokens" if name in ("many", "rows") else "tokenizers"), name


def test_workers_leave_guarded_documents_to_the_reference(
    source: Path, vocabulary_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = load_vocabulary(str(vocabulary_file))
    assert vocabulary.proof_key is not None
    engine = f"fastokens {version('fastokens')}"
    save_proof(dataclasses.replace(EXAMPLE, key=vocabulary.proof_key, engine=engine, guard="1E07"))
    guarded, said = run(source, tmp_path / "guarded", vocabulary_file)
    assert said == []
    assert guarded.encoder["guarded_characters"] == "1"
    run(source, tmp_path / "reference", vocabulary_file, encoder="tiktoken")
    assert folder_bytes(tmp_path / "guarded") == folder_bytes(tmp_path / "reference")


def test_an_engine_that_is_wrong_is_not_used_and_the_run_says_why(
    source: Path, vocabulary_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proving, "battery", quick_battery)
    monkeypatch.setattr(proving, "WORTH_BYTES", 1)
    monkeypatch.setattr(proving, "fast_engine", lambda _: Engine("fastokens", "0", lambda texts: code_points(texts)))
    for out in ("first", "again"):
        manifest, said = run(source, tmp_path / out, vocabulary_file)
        assert manifest.encoder["engine"] == "tokenizers"
        assert "is encoded by the reference, tokenizers " in said[-1]
        assert "slower: fastokens 0 differs from the reference at '" in said[-1]


def test_a_run_with_small_limits_needs_no_proof(
    vocabulary_file: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proving, "battery", None)  # would fail
    monkeypatch.setattr(proving, "WORTH_BYTES", 20_000)
    for limit in ("max_docs", "max_tokens"):
        options: dict[str, Any] = {limit: 3, "val_shards": 0}
        made = tokenize(source, tmp_path / limit, tokenizer=str(vocabulary_file), workers=1, **options)
        assert made.encoder["engine"] == "tokenizers"


def test_a_machine_with_another_engine_than_the_proof_is_of_is_refused() -> None:
    vocabulary = load_vocabulary("gpt2")
    assert vocabulary.proof is not None
    other = dataclasses.replace(vocabulary.proof, engine="fastokens 0.0.1")
    with pytest.raises(UsageError, match=r"the run was begun with fastokens 0\.0\.1: install the same version"):
        Tokenizer(dataclasses.replace(vocabulary, proof=other))


def test_a_vocabulary_that_the_engine_cannot_load_stays_on_the_reference(
    vocabulary_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Panic(BaseException):
        pass

    def panics(vocabulary: object) -> None:
        raise Panic("out of bounds")

    monkeypatch.setattr(proving, "fast_engine", panics)
    assert proving.prove(load_vocabulary(str(vocabulary_file))).reason == "cannot load it (out of bounds)"


@pytest.mark.usefixtures("_few_characters")
def test_very_many_kinds_of_differences_are_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert differences._MOST_KINDS == 64
    monkeypatch.setattr(differences, "_MOST_KINDS", 8)  # each costs a second
    kinds = [chr(0x1000 + 2 * number) for number in range(12)]
    found = look(lambda text: any(char * 2 in text for char in kinds), [[char * 2] for char in kinds])
    assert found.reason is not None
    assert found.kinds == 9


def test_a_run_may_go_on_with_another_engine_that_is_exact(source: Path) -> None:
    opened = open_source(source)
    identities = [
        RunSpec(
            source=opened,
            tokenizer=Tokenizer("gpt2", encoder=encoder),
            prefix="p",
            tokens_per_shard=100,
            val_shards=1,
            max_docs=None,
            max_tokens=None,
            transform=None,
            filter=None,
            chunk_bytes=100,
        ).identity()
        for encoder in ("tiktoken", "fast", "auto")
    ]
    assert identities[0] == identities[1] == identities[2]
