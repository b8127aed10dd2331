"""`diff`: the first token that differs, however the two streams are cut into shards, and what the manifests say."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from loader_data import EOT, write_documents

from shardkit import Manifest, ShardLoader, UsageError, diff, push, tokenize
from shardkit.cli import main
from shardkit.errors import StateError
from shardkit.look.diff import DatasetDiff, LedgerDiff
from shardkit.look.state_diff import StateDiff
from trainer.checkpoint import save_checkpoint

Rows = list[tuple[str, list[int]]]
rows = st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 2), max_size=4)), min_size=1, max_size=6)
sizes = st.integers(3, 9)


def compared(a: Path, b: Path) -> DatasetDiff:
    found = diff(a, b, progress=False)
    assert isinstance(found, DatasetDiff)
    return found


def stream(documents: Rows) -> list[int]:
    return [token for _, ids in documents for token in (EOT, *ids)]


@settings(max_examples=40)
@given(a=rows, b=rows, size_a=sizes, size_b=sizes)
def test_the_first_difference_is_found_however_the_streams_are_cut(a: Rows, b: Rows, size_a: int, size_b: int) -> None:
    a, b = ([(name, ids) for name in "ab" for held, ids in rows if held == name] for rows in (a, b))  # file after file
    with tempfile.TemporaryDirectory() as folder:
        for name, documents, size in (("a", a, size_a), ("b", b, size_b)):
            (Path(folder) / name).mkdir()
            write_documents(Path(folder) / name, documents, tokens_per_shard=size)
        found = compared(Path(folder, "a"), Path(folder, "b"))
    one, other = stream(a), stream(b)
    both = min(len(one), len(other))
    first = next((n for n in range(both) if one[n] != other[n]), None if len(one) == len(other) else both)
    assert (found.same, found.at_token) == (first is None, first)
    for side, tokens in zip(found.first_difference, (one, other), strict=False):
        assert first is not None
        if first == len(tokens):
            assert side.id is None
            continue
        assert side.id == tokens[first]
        assert side.document == tokens[: first + 1].count(EOT) - 1


TEXTS = [f"Text {number} of many." for number in range(60)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders `a`; `cut`, in other shards; `other`, in which a word of document 40 is another one."""
    folder = tmp_path_factory.mktemp("diff")
    texts = TEXTS.copy()
    for name, shard_tokens in (("a", 300), ("cut", 170), ("other", 300)):
        if name == "other":
            texts[40] = "Text 40 of few."
        (folder / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        tokenize(
            str(folder / "in.jsonl"), folder / name, tokenizer="bytes", shard_tokens=shard_tokens, workers=1, prefix="x"
        )
    return folder


def test_what_is_the_same_by_its_hashes_is_not_read(made: Path) -> None:
    found = compared(made / "a", made / "a")
    assert (found.same, found.tokens_compared, found.differs) == (True, 0, ())


def test_the_same_tokens_in_other_shards_are_the_same(made: Path) -> None:
    found = compared(made / "a", made / "cut")
    assert (found.same, found.tokens_compared) == (True, Manifest.load(made / "a").tokens)
    assert [difference.what for difference in found.differs] == ["tokens a shard", "shards"]


def test_both_sides_of_the_first_difference_are_shown(made: Path, tmp_path: Path) -> None:
    push(made / "other", f"file://{tmp_path}/far", progress=False)
    done = CliRunner().invoke(main, ["diff", str(made / "a"), f"file://{tmp_path}/far"])
    assert done.exit_code == 1
    assert "document 40, in.jsonl, row 40: 't 40 of many." in done.stdout
    assert "document 40, in.jsonl, row 40: 't 40 of few." in done.stdout
    found = compared(made / "a", made / "other")
    assert [chr(side.id or 0) for side in found.first_difference] == ["m", "f"]
    assert {difference.what for difference in found.differs} == {"tokens", "first file whose rows differ"}
    assert found.tokens_compared < 300  # of the shards before it the hashes are the same


def test_the_command_says_that_all_is_the_same_by_its_exit_code_too(made: Path) -> None:
    done = CliRunner().invoke(main, ["diff", str(made / "a"), str(made / "cut"), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["same"] is True


def test_two_ledgers_are_compared(made: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("same", 0)):
        with ShardLoader(made / "a", batch_size=4, seq_len=16, seed=seed, ledger=tmp_path / name) as loader:
            for _ in range(3):
                loader.next_batch()
    found = diff(tmp_path / "one", tmp_path / "same")
    assert isinstance(found, LedgerDiff)
    assert (found.same, found.differ_before_row) == (True, None)
    with pytest.raises(UsageError, match="are a ledger and no ledger"):
        diff(made / "a", tmp_path / "one")


def test_two_states_of_loaders_go_on_with_the_same_rows_or_not(made: Path, tmp_path: Path) -> None:
    def saved(name: str, batch_size: int, steps: int, **options: Any) -> Path:
        with ShardLoader(made / "a", batch_size=batch_size, seq_len=16, **options) as loader:
            for _ in range(steps):
                loader.next_batch()
            (tmp_path / name).write_text(json.dumps(loader.state_dict()))
        return tmp_path / name

    here = saved("here.json", 4, 2)
    found = diff(here, saved("same.json", 2, 4))  # other batches, the same rows
    assert isinstance(found, StateDiff)
    assert (found.same, [str(each) for each in found.differs]) == (True, ["step: 2 | 4"])
    further = diff(here, saved("further.json", 4, 3))
    assert isinstance(further, StateDiff)
    assert not further.same
    assert "window: 8 | 12" in map(str, further.differs)
    done = CliRunner().invoke(main, ["diff", str(here), str(saved("seed.json", 4, 2, seed=1))])
    assert (done.exit_code, "seed: 0 | 1" in done.stdout) == (1, True)
    for text, says in (("{", "not a loader's state as JSON"), ('{"a": 1}', "not the state of a ShardLoader")):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(StateError, match=says):
            diff(here, tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text(here.read_text().replace('"window": 8', '"window": 9'))
    with pytest.raises(StateError, match="bad.json: the state is damaged"):
        diff(here, tmp_path / "bad.json")


def test_checkpoints_of_the_trainer_hold_states_that_are_compared(made: Path, tmp_path: Path) -> None:
    def checkpoint(run: str, steps: int) -> Path:
        with ShardLoader(made / "a", batch_size=4, seq_len=16) as loader:
            for _ in range(steps):
                loader.next_batch()
            state = {"loader": json.dumps(loader.state_dict()), "config": json.dumps({"version": 1}), "best": 0.0}
        return save_checkpoint(tmp_path / run, {**state, "step": steps, "val_loss": None, "x": torch.ones(9)}, keep=9)

    first, again, further = checkpoint("one", 2), checkpoint("other", 2), checkpoint("other", 3)
    assert diff(first, again).same
    found = diff(first, further)
    assert isinstance(found, StateDiff)
    assert "window: 8 | 12" in map(str, found.differs)
    torch.save({"loader": {"version": 1}}, tmp_path / "none.pt")
    data = first.read_bytes()
    (tmp_path / "cut.pt").write_bytes(data.replace(b'"window": 8', b'"window": 9'))
    (tmp_path / "text.pt").write_bytes(b"PK\x05\x06")
    for name, says in (
        ("none.pt", "it holds 0 of them"),
        ("cut.pt", "CRC|damaged"),
        ("text.pt", "not a loader"),
    ):
        with pytest.raises(StateError, match=says):
            diff(first, tmp_path / name)
