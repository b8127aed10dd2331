"""Evaluation: a pinned range, bits per byte, HellaSwag, and what frequencies alone can reach."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from trainer_data import write_dataset

from shardkit import Tokenizer, UsageError
from trainer.distributed import find_world
from trainer.evaluate import bits_per_byte, open_val_range, unigram_entropy, validate
from trainer.hellaswag import HellaSwagError, load_hellaswag, score_hellaswag
from trainer.model import Model, ModelConfig

WORLD = find_world("cpu")


def make(positions: int = 32) -> Model:
    torch.manual_seed(0)
    return Model(ModelConfig(vocab_size=257, n_layer=1, n_head=2, n_embd=32, n_positions=positions))


@pytest.mark.parametrize("tokens", [33, 100, 1000, 1999, 10**9])
def test_the_loss_is_the_mean_over_the_first_whole_windows_of_the_split(tmp_path: Path, tokens: int) -> None:
    manifest = write_dataset(tmp_path)
    val = open_val_range(manifest, tokens=tokens, seq_len=32)
    assert val.windows == min(tokens, 1999) // 32
    stream = np.load(next(tmp_path.glob("*_val_*.npy"))).astype(np.int64)
    model, losses = make(), []
    for window in range(val.windows):
        rows = torch.from_numpy(stream[window * 32 : window * 32 + 33])[None]
        losses.append(model.token_losses(rows[:, :-1], rows[:, 1:]))
    expected = float(torch.cat(losses).double().mean())
    assert math.isclose(validate(model, val, WORLD, torch.float32), expected, rel_tol=1e-6)


def test_with_a_mask_each_document_of_the_range_is_alone(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path, document_tokens=10)
    val = open_val_range(manifest, tokens=1000, seq_len=32, eot_id=256)
    assert (val.windows, val.seq_len) == (31, 32)  # the range is the one without a mask
    stream = np.load(next(tmp_path.glob("*_val_*.npy"))).astype(np.int64)
    model, losses = make(), []
    for window in range(val.windows):
        row = stream[window * 32 : window * 32 + 33]
        cuts = [0, *(1 + np.flatnonzero(row[1:32] == 256)), 32]
        for begin, end in pairwise(cuts):
            part = torch.from_numpy(row[begin : end + 1])[None]  # its last target is the next one's EOT
            losses.append(model.token_losses(part[:, :-1], part[:, 1:]).flatten())
    expected = torch.cat(losses).double()
    assert len(expected) == 31 * 32
    loss = validate(model, val, WORLD, torch.float32)
    assert math.isclose(loss, float(expected.mean()), rel_tol=1e-6)
    text_bytes = val.count_bytes(Tokenizer("bytes"))
    assert math.isclose(
        bits_per_byte(loss, val, text_bytes), float(expected.sum()) / math.log(2) / text_bytes, rel_tol=1e-6
    )


def test_a_split_shorter_than_a_window_is_refused(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path, val=30)
    with pytest.raises(UsageError, match=r"has 30 tokens in split 'val'.*--val-every 0"):
        open_val_range(manifest, tokens=1000, seq_len=32)


def test_bits_per_byte_of_a_guess_among_all_bytes_is_eight(tmp_path: Path) -> None:
    np.save(tmp_path / "x_val_000000.npy", np.frombuffer(b"abcdefgh" * 20, np.uint8).astype("<u2"))
    np.save(tmp_path / "x_train_000001.npy", np.frombuffer(b"abcdefgh" * 20, np.uint8).astype("<u2"))
    from shardkit import Manifest

    val = open_val_range(Manifest.from_shards(tmp_path), tokens=128, seq_len=32)
    text_bytes = val.count_bytes(Tokenizer("bytes"))
    assert text_bytes == 128
    assert math.isclose(bits_per_byte(math.log(256), val, text_bytes), 8.0)


def test_an_end_of_text_counts_no_bytes(tmp_path: Path) -> None:
    tokens = [256, *"añb".encode(), 256, *b"xyz", 256]
    np.save(tmp_path / "x_val_000000.npy", np.array(tokens, "<u2"))
    from shardkit import Manifest

    val = open_val_range(Manifest.from_shards(tmp_path), tokens=len(tokens) - 1, seq_len=3)
    assert val.count_bytes(Tokenizer("bytes")) == 7


def test_unigram_entropy_is_that_of_the_frequencies(tmp_path: Path) -> None:
    from shardkit import Manifest

    np.save(tmp_path / "x_train_000000.npy", np.array([5, 5, 9, 7] * 10, "<u2"))
    np.save(tmp_path / "x_train_000001.npy", np.array([5, 5, 300, 300] * 10, "<u2"))
    manifest = Manifest.from_shards(tmp_path)
    shares = np.array([40, 10, 10, 20]) / 80
    assert math.isclose(unigram_entropy(manifest), float(-(shares * np.log(shares)).sum()))
    assert math.isclose(unigram_entropy(manifest, most_tokens=40), 1.5 * math.log(2))


def hellaswag_file(path: Path, items: list[tuple[str, list[str], int]]) -> Path:
    lines = [json.dumps({"ctx": ctx, "endings": endings, "label": label}) for ctx, endings, label in items]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_hellaswag_takes_the_likeliest_ending_summed_and_normalized(tmp_path: Path) -> None:
    """A bigram model that likes only `a` after anything: by sum the short ending wins, by mean the one full of a."""
    model = Model(ModelConfig(vocab_size=257, n_layer=0, n_head=0, n_embd=0, n_positions=64))
    with torch.no_grad():
        model.head.zero_()
        model.head[:, ord("a")] = 5.0
    endings = ["q", "aaaaaaaaaaq", "qqqq", "qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq"]
    path = hellaswag_file(tmp_path / "h.jsonl", [("ctx", endings, 0), ("ctx", endings, 1), ("ctx", endings, 2)] * 5)
    items = load_hellaswag(str(path), Tokenizer("bytes"))
    assert items[0].starts == [3] * 4
    assert score_hellaswag(model, items, WORLD, torch.float32) == (1 / 3, 1 / 3)
    assert score_hellaswag(model, items[::3], WORLD, torch.float32) == (1.0, 0.0)
    assert score_hellaswag(model, items[1::3], WORLD, torch.float32) == (0.0, 1.0)


def test_a_context_longer_than_the_model_is_cut_at_its_front(tmp_path: Path) -> None:
    path = hellaswag_file(tmp_path / "h.jsonl", [("c" * 100, ["ab", "cd", "ef", "gh"], 3)])
    items = load_hellaswag(path.as_uri(), Tokenizer("bytes"))
    assert score_hellaswag(make(positions=16), items, WORLD, torch.float32)[0] in (0.0, 1.0)


@pytest.mark.parametrize("text", ["", "{}\n", "not json\n"])
def test_a_file_that_is_no_hellaswag_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "h.jsonl").write_text(text)
    with pytest.raises(HellaSwagError):
        load_hellaswag(str(tmp_path / "h.jsonl"), Tokenizer("bytes"))
    with pytest.raises(HellaSwagError, match="cannot read"):
        load_hellaswag(str(tmp_path / "none.jsonl"), Tokenizer("bytes"))
