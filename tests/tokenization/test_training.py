"""`train-tokenizer`: a file that is the same each time, that others load, and that says what it is worth."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
import tiktoken
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import prose, write_parquet

from shardkit import Tokenizer, bars, tokenize
from shardkit.cli import main
from shardkit.errors import OutputError, ShardkitWarning, SourceError, TokenizerError, UsageError
from shardkit.sources.open import open_source
from shardkit.tokenization import training, training_report
from shardkit.tokenization.training import EOT, PATTERNS, Trained, train_tokenizer
from shardkit.tokenization.training_report import compare

SIZE = 600


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for number in range(3):
        write_parquet(folder / f"{number}.parquet", [*prose(300)[number * 100 : number * 100 + 100], None, ""])
    return folder


@pytest.fixture(scope="module")
def trained(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_tokenizer(source, tmp_path_factory.mktemp("trained") / "out", vocab_size=SIZE)


@pytest.fixture
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the report is not the point: without OpenAI's vocabularies, which take seconds to load."""
    monkeypatch.setattr(training_report, "OTHERS", ())


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_same_text_gives_the_same_file(source: Path, tmp_path: Path, pattern: str) -> None:
    made = [train_tokenizer(source, tmp_path / out, vocab_size=SIZE, pattern=pattern) for out in ("a", "b")]
    assert made[0].path.read_bytes() == made[1].path.read_bytes()
    assert made[0].sha256 == made[1].sha256
    assert made[0].vocab_size == SIZE
    text = "It's 2024 here,\n\n  and don't   forget: na\u00efve caf\u00e9 \u65e5\u672c \U0001f600\r\n"
    tokenizer = Tokenizer(str(tmp_path / "a"))
    assert tokenizer.eot_id == SIZE - 1
    assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text


@settings(max_examples=50)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_every_text_comes_back(trained: Trained, text: str) -> None:
    tokenizer = Tokenizer(str(trained.path), encoder="tiktoken")
    ids = tokenizer.encode_ordinary(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eot_id not in ids


def test_transformers_loads_it_and_the_fast_engine_runs_it(trained: Trained, source: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(trained.path.parent))
    assert (len(theirs), theirs.eos_token, theirs.eos_token_id) == (SIZE, EOT, SIZE - 1)
    sets = [
        tokenize(
            source, tmp_path / encoder, tokenizer=str(trained.path.parent), encoder=encoder, workers=1, val_shards=0
        )
        for encoder in ("fast", "tiktoken")
    ]
    assert sets[0].encoder["engine"] == "fastokens"
    assert sets[0].fingerprint == sets[1].fingerprint
    text = prose(5)[4]
    assert theirs(text, add_special_tokens=False)["input_ids"] == Tokenizer(str(trained.path)).encode_ordinary(text)


def test_what_is_measured_on_was_not_trained_on(trained: Trained) -> None:
    assert trained.documents == 300  # null and empty rows are none
    assert trained.held_out == [prose(300)[number] for number in range(49, 300, 50)]
    assert trained.text_bytes == sum(len(text.encode()) for text in prose(300)) - sum(
        len(text.encode()) for text in trained.held_out
    )


def test_the_report_has_bytes_a_token_in_all_and_by_length_and_script(trained: Trained) -> None:
    texts = ["a" * 100, "\u043f\u0440\u0438\u0432\u0435\u0442 " * 300, "\u65e5\u672c\u8a9e" * 50, "12 34"]
    rows = {row["text"]: row for row in compare(trained.path, texts)}
    assert list(rows) == ["all", "under 1 kB", "1 to 10 kB", "Cjk", "Cyrillic", "Latin", "no letters"]
    assert (rows["all"]["documents"], rows["all"]["bytes"]) == (4, sum(len(text.encode()) for text in texts))
    for name in ("gpt2", "cl100k_base", "o200k_base"):
        expected = len(texts[1].encode()) / len(tiktoken.get_encoding(name).encode_ordinary(texts[1]))
        assert rows["Cyrillic"][name] == pytest.approx(expected, abs=1e-3)
    assert rows["Latin"]["trained"] == pytest.approx(
        100 / len(Tokenizer(str(trained.path)).encode_ordinary("a" * 100)), abs=1e-3
    )


def test_of_a_long_source_text_from_all_over_it_is_read(tmp_path: Path) -> None:
    for number in range(8):
        write_parquet(tmp_path / f"{number}.parquet", [f"file {number} " + text for text in prose(40)])
    whole = sum(path.stat().st_size for path in tmp_path.iterdir())
    chunks = list(training._sampled(open_source(tmp_path), whole // 2, lambda *_: None))
    files = {texts[0].split()[1] for texts in chunks}
    assert 1 < len(files) < 8
    assert "0" in files
    assert max(map(int, files)) >= 4
    everything = list(training._sampled(open_source(tmp_path), 1 << 40, lambda *_: None))
    assert {texts[0].split()[1] for texts in everything} == set("01234567")


@pytest.mark.usefixtures("unreported")
def test_the_command_prints_the_report_and_the_run_it_is_for(source: Path, tmp_path: Path) -> None:
    words = ["train-tokenizer", str(source), "--out", str(tmp_path / "out"), "--vocab-size", "500", "--json"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout.splitlines()[-1])
    assert said["vocab_size"] == 500
    assert said["bytes_per_token"][0]["text"] == "all"
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 1
    assert again.stderr == f"error: {tmp_path / 'out'} holds a tokenizer.json: choose another --out, or move it away\n"
    people = CliRunner().invoke(main, [*words[:2], "--out", str(tmp_path / "b"), "--vocab-size", "500"])
    assert "  all (6 documents): trained " in people.stdout


@pytest.mark.usefixtures("unreported")
def test_ctrl_c_says_what_it_leaves(monkeypatch: pytest.MonkeyPatch, source: Path, tmp_path: Path) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_train", interrupted)
    result = CliRunner().invoke(main, ["train-tokenizer", str(source), "--out", str(tmp_path / "out")])
    assert result.exit_code == 130
    assert result.stderr.startswith("stopped: if --out has no tokenizer.json, nothing was made")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("unreported")
def test_what_cannot_be_trained_on_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with gzip.open(tmp_path / "bad.jsonl.gz", "wb") as file:
        file.write(b'{"text": "good"}\nnot json\n')
    for source, options, error, words in (
        (tmp_path / "empty.txt", {}, SourceError, "has no text to train on"),
        (tmp_path / "bad.jsonl.gz", {}, SourceError, "bad.jsonl.gz.*skip_bad_rows=True"),
        (["a"], {"vocab_size": 256}, UsageError, "vocab_size is 256: expected from 257"),
        (["a"], {"pattern": "gpt5"}, UsageError, "unknown pattern='gpt5': expected one of gpt2, gpt4, gpt4o"),
        (["a"], {"max_bytes": 0}, UsageError, "max_bytes is 0"),
    ):
        with pytest.raises(error, match=words):
            train_tokenizer(source, tmp_path / "out", **options)  # type: ignore[arg-type]
        assert not (tmp_path / "out").exists()
    assert train_tokenizer(tmp_path / "bad.jsonl.gz", tmp_path / "out", skip_bad_rows=True).documents == 1
    with pytest.raises(OutputError, match="holds a tokenizer"):
        train_tokenizer(["a"], tmp_path / "out")


def test_it_says_how_much_it_has_read_and_that_it_trains(source: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    trained = train_tokenizer(
        source, tmp_path, vocab_size=SIZE, progress=lambda *now: told.append(now), max_bytes=10_000_000
    )
    doing, read, expected = zip(*told, strict=True)
    assert doing == (*["reading"] * (len(told) - 1), "training")
    assert list(read) == sorted(read)
    assert read[-1] == expected[-1] >= trained.text_bytes > 0
    assert all(now <= end for now, end in zip(read, expected, strict=True))


def test_the_command_shows_its_progress_and_says_why_others_are_not_in_the_report(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bars, "_FIRST_LINE_SECONDS", 0.0)
    monkeypatch.setattr(bars, "_SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(training_report, "OTHERS", ("gpt2", "none"))

    def load(name: str) -> Tokenizer:
        if name in training_report.OTHERS:
            raise TokenizerError(f"{name} is not here")
        return Tokenizer(name)

    monkeypatch.setattr(training_report, "Tokenizer", load)
    line = ["train-tokenizer", str(source), "--out", str(tmp_path), "--vocab-size", str(SIZE)]
    with pytest.warns(ShardkitWarning, match=r"^not compared with gpt2, none: gpt2 is not here$"):
        done = CliRunner().invoke(main, line, catch_exceptions=False)
    assert re.search(r"train-tokenizer: reading, [0-9.]+ kB of [0-9.]+ kB\n", done.stderr)
    assert re.search(r"train-tokenizer: training, .*\ntrain-tokenizer: comparing, ", done.stderr, re.DOTALL)
