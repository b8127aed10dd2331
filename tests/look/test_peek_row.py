"""Forensics: the text that is shown for a row is the text that the loader gave there, and its source is right."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from shardkit import ShardLoader, Tokenizer, UsageError, peek, tokenize
from shardkit.cli import main
from shardkit.errors import StateError
from shardkit.look.peek_row import peek_row, peek_run

TEXTS = [f"Document number {number} says {'more and ' * (number % 7)}nothing." for number in range(120)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 documents, two thirds of them in one file and the rest in another; val takes the first shard."""
    home = tmp_path_factory.mktemp("forensics")
    (home / "texts").mkdir()
    for name, texts in (("a.jsonl", TEXTS[:80]), ("b.jsonl", TEXTS[80:])):
        (home / "texts" / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenize(str(home / "texts"), home / "set", shard_tokens=300, workers=1)
    return home / "set"


def options(**changed: Any) -> dict[str, Any]:
    """What the loaders below are given."""
    return {"split": "train", "seq_len": 24, "shuffle": True, "seed": 3, **changed}


@pytest.mark.parametrize("layout", ["contiguous", "document", "packed"])
def test_a_row_shows_the_text_that_the_loader_gave(layout: str, folder: Path) -> None:
    tokenizer = Tokenizer("gpt2")
    loader = ShardLoader(folder, batch_size=3, seq_len=24, rank=1, world_size=2, seed=3, layout=layout)
    for step in range(loader.steps_per_epoch + 1):
        inputs, _ = loader.next_batch()
        row = step % 3
        found = peek_row(folder, **options(layout=layout), step=step, rank=1, row=row, batch_size=3, world_size=2)
        assert tokenizer.decode(inputs[row].tolist()).startswith(found.text)  # padding is not shown
        assert found.epoch == (6 * step + 3 + row) // loader.windows_per_epoch
        located = loader.locate(step=step, rank=1, row=row)
        assert (found.documents[0].shard, found.documents[0].offset) == (located.shard, located.offset)


def test_each_document_of_a_row_names_its_file_and_row(folder: Path) -> None:
    seen = set()
    for step in range(30):
        found = peek_row(folder, **options(layout="packed", seq_len=64), step=step, batch_size=1)
        texts = found.text.split("<|endoftext|>")[1:]
        documents = [one for one in found.documents if one.source_row is not None]
        for text, one in zip(reversed(texts), reversed(documents), strict=False):  # a part of one may lead
            assert one.source_row is not None
            number = one.source_row + (80 if one.source_file == "b.jsonl" else 0)
            assert one.document == number
            assert TEXTS[number].startswith(text) or text in TEXTS[number]
            seen.add(one.source_file)
    assert seen == {"a.jsonl", "b.jsonl"}


def test_a_row_of_a_mixture_is_of_its_own_dataset(folder: Path) -> None:
    mixture = [(str(folder), 1.0), (str(folder), 1.0)]
    loader = ShardLoader(mixture, batch_size=4, seq_len=24, seed=3)
    inputs, _ = loader.next_batch()
    for row in range(4):
        found = peek_row(mixture, **options(), step=0, row=row, batch_size=4)
        assert found.text == Tokenizer("gpt2").decode(inputs[row].tolist())


def run_log(run: Path, folder: Path, *entries: dict[str, Any]) -> Path:
    """A run's log as the trainer writes it; the last line is torn."""
    run.mkdir()
    lines = [json.dumps(entry) + "\n" for entry in entries]
    (run / "log.jsonl").write_text("".join(lines) + '{"step": 9')
    return run


def test_a_run_needs_nothing_but_its_log(folder: Path, tmp_path: Path) -> None:
    loader = ShardLoader(folder, batch_size=2, seq_len=24, seed=3)
    facts = {"folder": str(folder), "micro_batch": 2, "world_size": 1, "micro_steps": 2}
    first = {"after_step": 0, **facts, "loader": loader.state_dict()}
    batches = [loader.next_batch()[0] for _ in range(8)]
    second = {"after_step": 4, **facts, "loader": loader.state_dict(), "micro_batch": 1, "micro_steps": 4}
    resumed = ShardLoader(folder, batch_size=1, seq_len=24, seed=3)
    resumed.load_state_dict(loader.state_dict())
    later = [resumed.next_batch()[0] for _ in range(8)]
    run = run_log(
        tmp_path / "run", folder, first, *({"step": s} for s in (1, 2, 3, 4)), second, {"step": 5}, {"step": 6}
    )
    decode = Tokenizer("gpt2").decode
    for step, micro_step, row, expected in (
        (1, 0, 0, batches[0][0]),
        (1, 1, 1, batches[1][1]),
        (4, 1, 0, batches[7][0]),
        (5, 0, 0, later[0][0]),
        (6, 3, 0, later[7][0]),
    ):
        assert peek_run(run, step=step, micro_step=micro_step, row=row).text == decode(expected.tolist())
    for wrong, message in (
        ({"step": 7}, "has no step 7 of which it knows the data: expected 1 to 6"),
        ({"step": 0}, "has no step 0"),
        ({"step": 1, "micro_step": 2}, "micro_step is 2: expected 0 to 1"),
        ({"step": 1, "row": 2}, "row=2"),
    ):
        with pytest.raises(UsageError, match=message):
            peek_run(run, **wrong)
    with pytest.raises(UsageError, match="give the folder of a training run"):
        peek_run(tmp_path, step=1)


def test_a_run_whose_dataset_is_another_by_now_is_refused(folder: Path, tmp_path: Path) -> None:
    state = {**ShardLoader(folder, batch_size=2, seq_len=24, seed=3).state_dict(), "fingerprint": "other"}
    entry = {
        "after_step": 0,
        "folder": str(folder),
        "micro_batch": 2,
        "world_size": 1,
        "micro_steps": 1,
        "loader": state,
    }
    with pytest.raises(StateError, match="saved with fingerprint 'other'"):
        peek_run(run_log(tmp_path / "run", folder, entry, {"step": 1}), step=1)


def test_a_place_that_is_none_is_refused(folder: Path) -> None:
    for place, message in (
        ({"step": -1, "batch_size": 1}, "step is -1"),
        ({"step": 0, "batch_size": 0}, "batch_size is 0"),
        ({"step": 0, "batch_size": 2, "row": 2}, "rank is 0, row=2: expected 0 to 0 and 0 to 1"),
        ({"step": 0, "batch_size": 2, "rank": 1}, "for 1 ranks and batches of 2"),
    ):
        with pytest.raises(UsageError, match=message):
            peek(folder, **options(), **place)  # type: ignore[arg-type]
    lengths = ((0, "seq_len is 0: expected a whole number of at least 1"), (10**6, "0 windows of 1,000,000"))
    for length, message in lengths:
        with pytest.raises(UsageError, match=message):
            peek_row(folder, **options(seq_len=length), step=0, batch_size=1)


def test_the_command_peeks_into_a_remote_and_into_bare_shards(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARDKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "bare").mkdir()
    for shard in folder.glob("*.npy"):
        shutil.copy(shard, tmp_path / "bare")
    row = ["--step", "1", "--batch-size", "2", "--seq-len", "24", "--layout", "packed", "--json"]
    texts = []
    for place in ([str(folder)], [folder.as_uri()], [str(tmp_path / "bare"), "--eot-id", "50256"]):
        done = CliRunner().invoke(main, ["peek", *place, *row])
        assert done.exit_code == 0, done.output
        texts.append(json.loads(done.stdout.splitlines()[-1])["text"])
    assert len(set(texts)) == 1


@pytest.mark.parametrize(
    "change",
    [
        *(
            {name: value}
            for name in ("micro_batch", "micro_steps", "world_size")
            for value in (None, "2", 1.0, True, [])
        ),
        *({"loader": value} for value in (None, 3, [], {}, {"fingerprint": "a"})),
        *({"folder": value} for value in (None, 3, ["a"])),
        {"eot_id": "x"},
    ],
)
def test_a_log_whose_line_on_the_data_is_damaged_is_refused(
    folder: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    state = ShardLoader(folder, batch_size=2, seq_len=24, seed=3).state_dict()
    entry = {"after_step": 0, "folder": str(folder), "micro_batch": 2, "world_size": 1, "micro_steps": 1}
    odd: list[Any] = [{"step": "x"}, {"after_step": "x"}, {"after_step": None}, {"step": 1e999}, {"step": True}, [], 3]
    run = run_log(tmp_path / "run", folder, {**entry, "loader": state, **change}, {"step": 1, "loss": math.nan}, *odd)
    with open(run / "log.jsonl", "a") as log:
        log.write("\n" + "[" * 100_000 + "\n")
    with pytest.raises(UsageError, match="does not say which data step 1 was given"):
        peek_run(run, step=1)
