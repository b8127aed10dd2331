"""Layouts: what is in every row of a split, against the stream itself."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_data import EOT, document_stream, streams, write_stream

import shardkit.batches.layouts
import shardkit.dataset.documents
from shardkit.batches.layouts import LAYOUTS, Layout, make_layout
from shardkit.dataset.token_stream import Tokens, TokenStream
from shardkit.errors import ShardError, UsageError

CUTS = st.lists(st.integers(1, 400), max_size=5)


def open_layout(name: str, stream: TokenStream, seq_len: int) -> Layout:
    return make_layout(name, stream, seq_len, cache=None)


def read_all(layout: Layout, seq_len: int) -> list[list[int]]:
    """Every row, over a buffer that shows what was not written."""
    rows = []
    for row in range(layout.n_rows):
        out = np.full(seq_len + 1, 65534, "<u2")
        layout.read(row, out)
        rows.append(out.tolist())
    return rows


@settings(max_examples=120, deadline=None)
@given(tokens=streams(), cuts=CUTS, seq_len=st.integers(1, 40))
def test_packed_rows_have_every_token_once_as_an_input_and_the_true_last_target(
    tokens: Tokens, cuts: list[int], seq_len: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    layout = open_layout("packed", write_stream(tmp_path_factory.mktemp("s"), tokens, cuts), seq_len)
    whole = [*tokens.tolist(), EOT]  # what follows the split's last document is EOT too
    seen: list[int] = []
    for row, read in enumerate(read_all(layout, seq_len)):
        place = 0
        for token, count in layout.pieces(row):
            assert read[place : place + count] == whole[token : token + count]
            seen += range(token, token + count)
            place += count
        assert read[place:seq_len] == [EOT] * (seq_len - place)
        assert read[seq_len] == whole[seen[-1] + 1]
    assert sorted(seen) == list(range(len(tokens)))


@settings(max_examples=80, deadline=None)
@given(tokens=streams(), cuts=CUTS, seq_len=st.integers(1, 40))
def test_every_target_inside_a_packed_document_is_its_next_token_once_seams_are_set(
    tokens: Tokens, cuts: list[int], seq_len: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    layout = open_layout("packed", write_stream(tmp_path_factory.mktemp("s"), tokens, cuts), seq_len)
    whole = [*tokens.tolist(), EOT]
    for row, read in enumerate(read_all(layout, seq_len)):
        targets, place = read[1:], 0
        for token, count in layout.pieces(row):
            if place and whole[token] != EOT:
                targets[place - 1] = EOT  # the rule that the loader follows
            place += count
        place = 0
        for token, count in layout.pieces(row):
            assert targets[place : place + count] == whole[token + 1 : token + count + 1]
            place += count


@settings(max_examples=100, deadline=None)
@given(tokens=streams(), cuts=CUTS, seq_len=st.integers(1, 40), block=st.integers(1, 40))
def test_document_rows_begin_at_documents_and_share_no_input(
    tokens: Tokens, cuts: list[int], seq_len: int, block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stream = write_stream(tmp_path_factory.mktemp("s"), tokens, cuts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shardkit.batches.layouts, "_BLOCK", block)
        layout = open_layout("document", stream, seq_len)
        most = layout.max_segments()
    assert most == layout.max_segments()
    begins, place = [], 0
    while True:
        place = next((p for p in range(place, len(tokens) - seq_len) if tokens[p] == EOT), len(tokens))
        if place == len(tokens):
            break
        begins.append(place)
        place += seq_len
    assert [layout.pieces(row) for row in range(layout.n_rows)] == [[(begin, seq_len)] for begin in begins]
    assert read_all(layout, seq_len) == [tokens[b : b + seq_len + 1].tolist() for b in begins]
    cropped = len(tokens) - len({p for b in begins for p in range(b, b + seq_len)})
    stats = layout.stats()
    assert (stats.use, stats.pad, stats.crop) == (1.0, 0.0, cropped / len(tokens))


@settings(max_examples=80, deadline=None)
@given(tokens=streams(), cuts=CUTS, others=CUTS, seq_len=st.integers(1, 40), name=st.sampled_from(LAYOUTS))
def test_shard_ends_change_no_row_and_the_count_of_segments_is_exact(
    tokens: Tokens,
    cuts: list[int],
    others: list[int],
    seq_len: int,
    name: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    stream = write_stream(tmp_path_factory.mktemp("s"), tokens, cuts)
    layout = open_layout(name, stream, seq_len)
    rows = read_all(layout, seq_len)
    assert rows == read_all(
        open_layout(name, write_stream(tmp_path_factory.mktemp("s"), tokens, others), seq_len), seq_len
    )
    counts = []
    for row in range(layout.n_rows):
        begins, place = set(), 0
        for token, count in layout.pieces(row):
            begins |= {place, *(place + p for p in np.flatnonzero(tokens[token : token + count] == EOT).tolist())}
            place += count
        counts.append(len(begins) + (place < seq_len))
    assert layout.max_segments() == max(counts, default=0)
    stats = layout.stats()
    used = sum(count for row in range(layout.n_rows) for _, count in layout.pieces(row))
    slots = layout.n_rows * seq_len
    assert (stats.rows, stats.tokens, stats.crop) == (layout.n_rows, len(tokens), (len(tokens) - used) / len(tokens))
    assert not slots or (stats.use, stats.pad) == (used / slots, (slots - used) / slots)


def test_contiguous_rows_are_the_stream_in_windows(tmp_path: Path) -> None:
    tokens = document_stream([5, 20, 0, 9], lead=3)
    layout = open_layout("contiguous", write_stream(tmp_path, tokens, [7, 30]), 8)
    assert read_all(layout, 8) == [tokens[b : b + 9].tolist() for b in (0, 8, 16, 24, 32)][: layout.n_rows]
    assert layout.n_rows == (len(tokens) - 1) // 8


def test_one_document_longer_than_everything_is_split_and_has_one_aligned_row(tmp_path: Path) -> None:
    tokens = document_stream([99])
    stream = write_stream(tmp_path, tokens, [33])
    packed = open_layout("packed", stream, 30)
    assert [packed.pieces(row) for row in range(packed.n_rows)] == [[(0, 30)], [(30, 30)], [(60, 30)], [(90, 10)]]
    assert [row[-1] for row in read_all(packed, 30)] == [30, 60, 90, EOT]
    assert packed.stats().splits == 1
    assert open_layout("document", stream, 30).n_rows == 1
    assert open_layout("document", stream, 100).n_rows == 0  # the last target is not there
    assert read_all(open_layout("packed", stream, 100), 100) == [[*tokens.tolist(), EOT]]


def test_a_split_without_a_single_start_is_one_part_of_a_document(tmp_path: Path) -> None:
    tokens = np.arange(10, dtype="<u2")
    stream = write_stream(tmp_path, tokens, [])
    assert open_layout("document", stream, 4).n_rows == 0
    assert open_layout("document", stream, 4).stats().crop == 1.0
    assert read_all(open_layout("packed", stream, 4), 4) == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [8, 9, EOT, EOT, EOT]]


@pytest.mark.parametrize("seq_len", [16, 66_000])  # the latter's counts need more than 16 bits
def test_a_kept_plan_gives_the_rows_of_a_fresh_one_in_another_process_too(tmp_path: Path, seq_len: int) -> None:
    bodies = [5, 80_000, 0, 3, 40_000, 17, 17, 65_999, 1] + [9] * 50
    stream = write_stream(tmp_path / "s", document_stream([body % 50_000 for body in bodies], lead=7), [30_000])
    fresh = read_all(open_layout("packed", stream, seq_len), seq_len)
    cache = tmp_path / "kept"
    for _ in range(2):
        layout = make_layout("packed", stream, seq_len, cache=cache)
        assert read_all(layout, seq_len) == fresh
        assert layout.stats() == open_layout("packed", stream, seq_len).stats()
    assert read_all(pickle.loads(pickle.dumps(layout)), seq_len) == fresh
    make_layout("packed", stream, seq_len + 1, cache=cache)
    kinds = sorted(path.name.split("-")[0] for path in cache.iterdir() if path.is_dir())
    assert kinds == ["packed", "packed", "starts"]


@settings(max_examples=40, deadline=None)
@given(tokens=streams(), cuts=CUTS, seq_len=st.integers(1, 40), block=st.integers(1, 60))
def test_rows_are_the_same_whether_they_are_found_at_once_or_in_parts_that_are_kept(
    tokens: Tokens, cuts: list[int], seq_len: int, block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stream = write_stream(tmp_path_factory.mktemp("s"), tokens, cuts)
    cache = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shardkit.batches.layouts, "BLOCK_TOKENS", block)
        at_once = [open_layout(name, stream, seq_len) for name in ("packed", "document")]
        patch.setattr(shardkit.batches.layouts, "_PART_BLOCKS", 2)
        patch.setattr(shardkit.batches.layouts, "_BLOCK", 3)
        patch.setattr(shardkit.dataset.documents, "_PART_TOKENS", 50)
        for name, whole in zip(("packed", "document"), at_once, strict=True):
            for _ in range(2):  # made, and found kept
                layout = make_layout(name, stream, seq_len, cache=cache)
                rows = range(layout.n_rows)
                assert [layout.pieces(row) for row in rows] == [whole.pieces(row) for row in range(whole.n_rows)]
                assert (layout.stats(), layout.max_segments()) == (whole.stats(), whole.max_segments())


def test_stats_print_on_one_line(tmp_path: Path) -> None:
    stream = write_stream(tmp_path, document_stream([2, 8, 3, 0, 1, 1]), [])
    lines = [str(open_layout(name, stream, 4).stats()) for name in LAYOUTS]
    assert lines == [
        "contiguous: 5 rows of 4 from 21 tokens: use 100.00%, pad 0.00%, crop 4.76%",
        "document: 3 rows of 4 from 21 tokens in 6 documents: use 100.00%, pad 0.00%, crop 42.86%",
        "packed: 6 rows of 4 from 21 tokens in 6 documents (1 split): use 87.50%, pad 12.50%, crop 0.00%",
    ]


def test_an_unknown_layout_and_an_impossible_eot_are_refused(tmp_path: Path) -> None:
    stream = write_stream(tmp_path, document_stream([2, 8]), [])
    with pytest.raises(UsageError, match=r"layout is 'pack': expected one of contiguous, document, packed"):
        open_layout("pack", stream, 4)
    stream.eot_id = 100257
    with pytest.raises(UsageError, match=r"the EOT id is 100257, the shards .* hold uint16 tokens"):
        open_layout("packed", stream, 4)
    stream.eot_id = None
    for name in ("document", "packed"):
        with pytest.raises(UsageError, match="give eot_id"):
            open_layout(name, stream, 4)


def test_a_shard_cut_short_is_an_error_in_packed_rows_too(tmp_path: Path) -> None:
    stream = write_stream(tmp_path, document_stream([2] * 100), [])
    layout = open_layout("packed", stream, 8)
    layout.read(0, np.empty(9, "<u2"))
    with open(tmp_path / "x_train_000000.npy", "r+b") as file:
        file.truncate(400)
    with pytest.raises(ShardError, match="bytes early: it was cut short"):
        layout.read(layout.n_rows - 1, np.empty(9, "<u2"))
