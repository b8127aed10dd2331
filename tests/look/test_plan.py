"""`plan`: an epoch exactly as the loader gives it, and what tokenizing a source takes, as far as can be measured."""

from __future__ import annotations

import json
import math
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from file_server import serving
from hypothesis import given, settings
from hypothesis import strategies as st
from loader_data import write_shards, write_tokens

from shardkit import Manifest, ShardkitError, ShardLoader, Tokenizer, UsageError, convert, plan, push, tokenize
from shardkit.cli import main
from shardkit.errors import ShardkitWarning, SourceError
from shardkit.look import probe
from shardkit.look.plan_tokenizing import TokenizingPlan, _Facts, _plan
from shardkit.look.plan_training import TrainingPlan
from shardkit.look.probe import MeasuredRun, SourceSample, sample_source, steady_rate
from shardkit.sources.open import open_source

WORDS = ["some", "words", "of", "very", "different", "lengths", "and", "a", "few", "more", "characterizations"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan") / "data"
    write_tokens(folder, documents=60, tokens_per_shard=400)
    return folder


@pytest.mark.filterwarnings("ignore:.*of all slots are padding")
@settings(max_examples=40)
@given(
    batch_size=st.integers(1, 9),
    seq_len=st.integers(1, 200),
    world_size=st.integers(1, 9),
    layout=st.sampled_from(["contiguous", "document", "packed"]),
    split=st.sampled_from(["train", "val"]),
)
def test_an_epoch_is_the_loaders(
    dataset: Path, batch_size: int, seq_len: int, world_size: int, layout: str, split: str
) -> None:
    cut = {"batch_size": batch_size, "seq_len": seq_len, "world_size": world_size, "layout": layout, "split": split}
    try:
        loader: ShardLoader | None = ShardLoader(dataset, **cut)
    except UsageError:
        loader = None
    if loader is None:
        with pytest.raises(UsageError):
            plan(dataset, **cut)
        return
    found = plan(dataset, **cut, tokens_per_second=1000, dollars_per_hour=7200)
    assert isinstance(found, TrainingPlan)
    with loader:
        assert found.steps_per_epoch == loader.steps_per_epoch == sum(1 for _ in loader)
        assert (found.windows, found.remainder_windows) == (loader.windows_per_epoch, loader.remainder_windows)
        stats = loader.stats()
    slots = found.windows * seq_len
    assert found.tokens - found.cropped_tokens == slots - found.padded_slots == round(stats.use * slots)
    steps = found.steps_per_epoch * batch_size * world_size * seq_len / 1000
    assert found.hours_per_epoch == pytest.approx(steps / 3600)
    assert found.dollars_per_epoch == pytest.approx(steps * 2)


def test_of_a_remote_only_the_manifest_is_read(dataset: Path, tmp_path: Path) -> None:
    push(dataset, f"file://{tmp_path}/far", progress=False)
    for path in (tmp_path / "far").glob("*.npy"):
        path.unlink()
    cut = {"batch_size": 3, "seq_len": 50, "world_size": 2}
    here, there = plan(dataset, **cut), plan(f"file://{tmp_path}/far", **cut)
    assert str(here).splitlines()[1:] == str(there).splitlines()[1:]
    with pytest.raises(UsageError, match="packed.*fetch .*far with `shardkit pull"):
        plan(f"file://{tmp_path}/far", **cut, layout="packed")


def test_bare_shards_are_planned_too(tmp_path: Path) -> None:
    write_shards(tmp_path, [100, 100, 7], dtype="<u2")
    done = CliRunner().invoke(main, ["plan", str(tmp_path), "--batch-size", "2", "--seq-len", "25", "--json"])
    assert json.loads(done.stdout)["steps_per_epoch"] == 4
    assert json.loads(done.stdout)["remainder_windows"] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 4}, "needs both batch_size= and seq_len="),
        ({"batch_size": 4, "seq_len": 8, "tokens_per_second": 0}, "tokens_per_second is 0"),
        ({"tokenizer": "chars"}, "tokenizer=.*of which a sample knows nothing"),
    ],
)
def test_what_cannot_be_planned_is_said(options: dict[str, object], words: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UsageError, match=words):
        plan(tmp_path / "a.txt", **options)  # type: ignore[arg-type]


def test_a_folder_of_tokens_is_no_source_and_a_file_of_text_is_no_dataset(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="data is a dataset of tokens: give batch_size= and seq_len= to plan training"):
        plan(dataset)
    with pytest.raises(UsageError, match="data is a dataset of tokens, not a source of text: `shardkit info .*data`"):
        tokenize(dataset, tmp_path / "out", progress=False)
    convert(dataset, tmp_path / "others", to="nanogpt", progress=False)
    with pytest.raises(UsageError, match="others is a dataset of tokens"):
        plan(tmp_path / "others")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    for source in (tmp_path / "a.jsonl", "sample", "-", str(tmp_path / "*.jsonl")):
        with pytest.raises(UsageError, match="is text, no dataset: without batch_size= and seq_len= its tokenizing"):
            plan(source, batch_size=2, seq_len=8)
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "others"}


def test_text_beside_shards_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(bytes(100))  # as in nanoGPT's data/shakespeare_char
    (tmp_path / "input.txt").write_text("text " * 100)
    with pytest.warns(ShardkitWarning, match="only its txt files are read, not train.bin"):
        assert open_source(tmp_path).files[0].path == "input.txt"


@pytest.mark.parametrize(
    "option",
    [
        {"world_size": 2},
        {"layout": "packed"},
        {"eot_id": 3},
        {"tokens_per_second": 5.0},
    ],
)
def test_an_option_of_training_is_refused_with_a_source(option: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UsageError, match=f"{min(option)} is of training, .*: leave it out"):
        plan(tmp_path / "a.txt", **option)


@pytest.mark.parametrize(
    "option",
    [
        {"name": "x"},
        {"revision": "x"},
        {"include": "x*"},
        {"text_field": "body"},
        {"separator": "x"},
        {"skip_bad_rows": True},
        {"where": "a > 1"},
        {"sample": 0.5},
        {"out": "x"},
        {"tokenizer": "bytes"},
        {"shard_tokens": 5},
        {"workers": 1},
        {"upload_rate": 5},
    ],
)
def test_an_option_of_a_source_is_refused_with_a_dataset(option: dict[str, Any], dataset: Path) -> None:
    flag = f"--{min(option).replace('_', '-')}"
    with ShardkitError.naming_flags(), pytest.raises(UsageError, match=f"{flag} is of tokenizing a source, .* out"):
        plan(dataset, batch_size=2, seq_len=8, **option)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv", "a.parquet", "a.arrow"])
def test_a_source_without_a_byte_is_said_to_be_empty(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(SourceError, match=f"{name} (is empty|has no bytes)"):
        plan(tmp_path / name, tokenizer="bytes", progress=False)


def test_a_pipe_cannot_be_planned_and_nothing_is_asked_of_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for source in ("-", tmp_path / "pipe"):
        with pytest.raises(UsageError, match="is a pipe: a plan is of files"):
            plan(source)


def write_source(folder: Path) -> Path:
    """A file of documents that become longer: a sample of its beginning would be wrong."""
    chance, path = random.Random(0), folder / "in.jsonl"
    texts = (" ".join(chance.choices(WORDS, k=chance.randrange(1, 20 + number // 10))) for number in range(1500))
    path.write_text("".join(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(texts)))
    return path


def test_a_source_that_is_read_to_its_end_is_known_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_RUN_SECONDS", math.inf)  # also on a machine that is busy
    source = write_source(tmp_path)
    found = plan(source, out=tmp_path / "out", tokenizer="bytes", workers=1, shard_tokens=20_000, progress=False)
    made = tokenize(source, tmp_path / "out", tokenizer="bytes", workers=1, shard_tokens=20_000, progress=False)
    assert isinstance(found, TokenizingPlan)
    assert (found.tokens, found.tokens_error, found.documents) == (made.tokens, 0, made.documents)
    assert (found.shards, found.dataset_bytes) == (len(made.shards), sum(shard.bytes for shard in made.shards))
    assert found.memory_bytes > 10_000_000
    assert "tokens, documents and time, exactly: all of it" in found.measured[0]
    assert not any("beginning" in line for line in found.assumed)
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out"}


def test_a_source_over_the_network_has_its_rate_too(tmp_path: Path) -> None:
    write_source(tmp_path)
    with serving(tmp_path) as server:
        words = ["plan", f"{server.url}/in.jsonl", "--tokenizer", "bytes", "--workers", "1", "--out", str(tmp_path)]
        done = CliRunner().invoke(main, [*words, "--upload-rate", "1MB", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [step["step"] for step in found["steps"]] == ["fetch", "read", "encode", "write", "upload"]
    assert found["steps"][-1]["seconds"] == pytest.approx(found["dataset_bytes"] / 1e6)
    assert found["source_bytes"] == (tmp_path / "in.jsonl").stat().st_size


def test_a_sample_from_all_over_a_source_has_its_tokens_within_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_CHUNKS", 12)
    monkeypatch.setattr(probe, "_CHUNK_BYTES", 4096)
    monkeypatch.setattr(probe, "_ENCODED_BYTES", 2048)
    source = open_source(write_source(tmp_path))
    sample = sample_source(source, Tokenizer("bytes"), lambda *_: None)
    size, whole = source.files[0].bytes, tokenize_all(tmp_path / "in.jsonl")
    assert 10 <= len(sample.tokens) < 40
    found, error = sample.total(sample.tokens, size), sample.error(sample.tokens, size)
    assert abs(found - whole.tokens) <= error < whole.tokens / 4


def tokenize_all(source: Path) -> Manifest:
    with tempfile.TemporaryDirectory() as folder:
        return tokenize(source, Path(folder) / "out", tokenizer="bytes", workers=1, progress=False)


def test_the_rate_of_a_run_is_the_lines_once_it_goes() -> None:
    seen = [(0, 3.0), (100, 3.1), (200, 3.2), *((tokens, 2.0 + tokens / 100) for tokens in range(300, 1001, 100))]
    rate, start = steady_rate(seen)
    assert (rate, start) == (pytest.approx(100), pytest.approx(2))
    assert steady_rate([(50, 5.0), (100, 10.0)]) == (10.0, 0.0)
    assert steady_rate([(7, 1.0)] * 9) == (7.0, 0.0)
    assert steady_rate([]) == (0.0, 0.0)


def test_the_slowest_step_is_the_bottleneck_and_more_machines_pay_up_to_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 1000)
    sample = SourceSample([10.0, 10.0], [40.0, 40.0], [1.0, 1.0], [10.0, 12.0], 8, 2, 1.0, 3.0)
    run = MeasuredRun(seconds=9.0, start_seconds=5.0, tokens=9, tokens_per_second=0.1, memory_bytes=7, workers=2)
    facts = _Facts(open_source(tmp_path / "a.txt"), 1000, sample, run, disk_rate=1e6, workers=2)
    found = _plan(facts, Tokenizer("bytes"), tmp_path, 100, None, 3.6)
    assert (found.tokens, found.shards, found.bottleneck) == (1100, 11, "encode")
    assert found.seconds == 11005.0
    assert found.dollars == 11.01
    assert [round(step.seconds) for step in found.steps[:2]] == [324, 10676]  # 1/80 s a byte, 3/2 s a token
    assert found.machines == 37  # of which each has five minutes of work
    slow = _plan(facts, Tokenizer("bytes"), tmp_path, 100, 1, None)  # a byte a second
    assert (slow.bottleneck, slow.steps[-1].step, slow.steps[-1].seconds, slow.machines) == (
        "encode",
        "upload",
        3608,
        4,
    )
