"""Parts of a dataset, made one by one and merged, are what a single run makes: its bytes, and its manifest."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import folder_bytes
from run_data import InProcess, after, stop
from victim import Victims

from shardkit import Manifest, convert, info, merge, peek, verify
from shardkit.errors import ManifestError, OutputError, ShardkitWarning, SourceError, UsageError
from shardkit.sources import text_files
from shardkit.sources import texts as texts_module
from shardkit.tokenization import pipeline
from shardkit.tokenization.run_progress import TokenizeProgress

OPTIONS: dict[str, Any] = {
    "tokenizer": "bytes",
    "shard_tokens": 5_000,
    "prefix": "p",
    "chunk_bytes": 2_048,
    "skip_bad_rows": True,
    "progress": False,
}
COMMAND = ["--tokenizer", "bytes", "--shard-tokens", "5000", "--prefix", "p", "--skip-bad-rows"]
MERGING = ("shardkit.tokenization.merge", "shardkit.look.next_steps")
SHARDS = 8  # that OPTIONS make of the source
pytestmark = pytest.mark.filterwarnings("ignore::shardkit.errors.ShardkitWarning")


def texts(count: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return ["".join(chance.choices("abc \n", k=chance.choice([0, 5, 90, 400]))) for _ in range(count)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Files of many formats: several row groups, blank and broken lines, documents of several pieces, empty files."""
    folder = tmp_path_factory.mktemp("source")
    pq.write_table(pa.table({"text": texts(120, 1)}), folder / "a.parquet", row_group_size=11)
    lines = [json.dumps({"text": text}) if row % 7 else "broken\n" for row, text in enumerate(texts(130, 2))]
    (folder / "b.jsonl").write_text("\n".join(lines))
    with gzip.open(folder / "c.jsonl.gz", "wt") as file:
        file.write("\n".join(json.dumps({"text": text}) for text in texts(40, 3)))
    (folder / "d.txt").write_text("word " * 300)
    (folder / "e.txt").write_text("")
    pq.write_table(pa.table({"text": texts(20, 4)}), folder / "f.parquet", row_group_size=3)
    return f"{folder}/*"


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "PIECE_BYTES", 700)
    monkeypatch.setattr(text_files, "TEXT_PIECE_BYTES", 200)


def tokenize(source: str, out: Path, **options: Any) -> Manifest:
    """In this process, with a runner of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "start_runner", lambda *_: InProcess())
        return pipeline.tokenize(source, out, **{**OPTIONS, **options})


def tokenize_parts(source: str, out: Path, count: int, **options: Any) -> None:
    for index in range(count):
        tokenize(source, out, part=f"{index}/{count}", **options)


def contents(out: Path) -> dict[str, bytes]:
    """All files of a dataset but those of `.shardkit/`, and what a kill leaves of one that was being written."""
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file() and path.name[0] != "."}


@pytest.fixture(scope="module")
def single(source: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("single") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts_module, "PIECE_BYTES", 700)
        patch.setattr(text_files, "TEXT_PIECE_BYTES", 200)
        tokenize(source, out)
    return contents(out)


@pytest.fixture(scope="module")
def parts(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four parts, to be copied."""
    out = tmp_path_factory.mktemp("parts") / "out"
    tokenize_parts(source, out, 4)
    return out


@pytest.fixture
def out(parts: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(parts, tmp_path / "out"))


def test_a_part_without_a_row_is_made_once_and_is_complete_after_that(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words")
    for expected in (1, 0):
        for index in range(3):
            seen: list[TokenizeProgress] = []
            tokenize(str(tmp_path / "a.txt"), tmp_path / "out", part=f"{index}/3", progress=seen.append)
            assert len(seen) == expected, index


@pytest.mark.parametrize("look", [info, verify, peek, partial(convert, out="elsewhere", to="llmc"), Manifest.load])
def test_whoever_looks_at_parts_that_are_not_merged_is_told_to_merge(parts: Path, look: Callable[[Path], Any]) -> None:
    with pytest.raises(ManifestError, match=f"unfinished, `shardkit merge {parts}` makes it of the parts"):
        look(parts)


@pytest.mark.parametrize(("count", "jobs"), [(1, 1), (4, 3), (7, 20), (50, 2)])
def test_parts_made_and_merged_in_any_order_are_the_single_runs_files(
    source: str, single: dict[str, bytes], tmp_path: Path, count: int, jobs: int
) -> None:
    chance = random.Random(count)
    for index in chance.sample(range(count), count):
        tokenize(source, tmp_path, part=f"{index}/{count}")
    for number, job in enumerate(chance.sample(range(jobs), jobs), 1):
        merged = merge(tmp_path, part=f"{job}/{jobs}", progress=False)
        assert (merged.missing == 0) == (number == jobs) == (merged.manifest is not None)
    assert contents(tmp_path) == single
    assert len(folder_bytes(tmp_path)) == merged.shards == SHARDS
    assert merged.manifest == Manifest.load(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*single, ".shardkit"}
    assert list((tmp_path / ".shardkit").iterdir()) == []
    again = merge(tmp_path, progress=False)
    assert (again.made, again.missing, again.manifest) == (0, 0, merged.manifest)


def has_ab(text: str) -> bool:
    return "ab" in text or not text


def without_a(text: str) -> str | None:
    return None if text.startswith("a") else text


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 5),
    jobs=st.integers(1, 3),
    options=st.fixed_dictionaries(
        {},
        optional={
            "max_docs": st.integers(1, 330),
            "max_tokens": st.integers(1, 42_000),
            "filter": st.just(has_ab),
            "transform": st.just(without_a),
            "val_shards": st.integers(0, 3),
            "shard_tokens": st.sampled_from([300, 7_777, 1_000_000]),
            "chunk_bytes": st.sampled_from([300, 100_000]),
        },
    ),
)
def test_whatever_decides_what_a_run_makes_the_merge_makes_the_same(
    source: str, tmp_path_factory: pytest.TempPathFactory, count: int, jobs: int, options: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    tokenize(source, folder / "single", **options)
    tokenize_parts(source, folder / "out", count, **options)
    for job in range(jobs):
        merge(folder / "out", part=f"{job}/{jobs}", progress=False)
    assert contents(folder / "out") == contents(folder / "single")


def test_a_part_that_is_killed_goes_on_and_is_the_same_part(
    source: str, single: dict[str, bytes], tmp_path: Path
) -> None:
    part = ["tokenize", source, "--out", tmp_path, "--part", "0/2", "--workers", "1", *COMMAND]
    with Victims() as victims:
        for at in range(5, 30):
            assert victims.run(part, [tmp_path], at=at, what="kill").code == -signal.SIGKILL
            if folder_bytes(tmp_path / "parts" / "0-of-2"):
                break
        tokenize(source, tmp_path, part="1/2", chunk_bytes=8 << 20)
        with pytest.raises(
            OutputError, match=r"part 0/2 of .* is not finished: run `shardkit tokenize` with part='0/2'"
        ):
            merge(tmp_path, progress=False)
        assert victims.run(part, [tmp_path]).code == 0
    merge(tmp_path, progress=False)
    assert contents(tmp_path) == single


def test_a_part_with_limits_that_is_stopped_again_and_again_knows_its_pieces(source: str, tmp_path: Path) -> None:
    options = {"shard_tokens": 900, "filter": has_ab, "max_docs": 120, "chunk_bytes": 1_000}
    tokenize(source, tmp_path / "single", **options)
    part = {"part": "0/2", **options}
    for shards in range(1, 8):
        with pytest.raises(KeyboardInterrupt):
            tokenize(source, tmp_path / "out", progress=after(shards, stop), **part)
    tokenize_parts(source, tmp_path / "out", 2, **options)
    merge(tmp_path / "out", progress=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "single")


def test_a_log_of_pieces_that_is_not_whole_is_refused_by_the_part_and_by_the_merge(source: str, tmp_path: Path) -> None:
    options = {"max_docs": 120, "shard_tokens": 900}
    log = tmp_path / "parts" / "0-of-2" / ".shardkit" / "pieces.jsonl"
    with pytest.raises(KeyboardInterrupt):
        tokenize(source, tmp_path, part="0/2", progress=after(5, stop), **options)
    log.write_bytes(log.read_bytes()[:100])
    with pytest.raises(OutputError, match=r"pieces.jsonl does not go as far as the shards beside it: start again with"):
        tokenize(source, tmp_path, part="0/2", **options)
    tokenize(source, tmp_path, part="0/2", overwrite=True, **options)
    tokenize(source, tmp_path, part="1/2", **options)
    lines = bytearray(log.read_bytes())
    lines[lines.index(b"true")] ^= 1
    log.write_bytes(lines)
    with pytest.raises(OutputError, match=r"pieces.jsonl is damaged: tokenize that part again with overwrite=True"):
        merge(tmp_path, progress=False)
    assert not (tmp_path / "manifest.json").exists()


def test_a_merge_that_is_killed_20_times_ends_with_the_single_runs_files(source: str, tmp_path: Path) -> None:
    tokenize(source, tmp_path / "single", shard_tokens=400)
    tokenize_parts(source, tmp_path / "out", 3, shard_tokens=400)
    command, made = ["merge", tmp_path / "out"], list[int]()
    with Victims(*MERGING) as victims:
        for number in range(20):
            ended = victims.run(command, [tmp_path / "out"], at=5 + number % 9, what="kill")
            assert ended.code == -signal.SIGKILL
            made.append(len(folder_bytes(tmp_path / "out")))
            with pytest.raises(ManifestError, match="is unfinished"):
                Manifest.of_folder(tmp_path / "out")
        ended = victims.run(command, [tmp_path / "out"])
        assert ended.code == 0, ended.stderr
    assert made == sorted(made)
    assert 20 < made[-1] < len(folder_bytes(tmp_path / "single"))
    assert contents(tmp_path / "out") == contents(tmp_path / "single")


def test_a_merge_that_is_killed_at_any_change_to_its_files_goes_on(source: str, tmp_path: Path) -> None:
    few = str(Path(source).parent / "[df]*")
    tokenize(few, tmp_path / "single", shard_tokens=1500)
    tokenize_parts(few, tmp_path / "parts", 2, shard_tokens=1500)
    shards = len(folder_bytes(tmp_path / "single"))
    with Victims(*MERGING) as victims:
        at, ended = 0, -signal.SIGKILL
        while ended == -signal.SIGKILL:
            at += 1
            out = Path(shutil.copytree(tmp_path / "parts", tmp_path / f"{at}"))
            ended = victims.run(["merge", out], [out], at=at, what="kill").code
            before = len(folder_bytes(out))
            merged = merge(out, progress=False)
            assert merged.made + before in (shards, shards + 1)  # one may have its name, and no line yet
            assert contents(out) == contents(tmp_path / "single")
            assert not (out / "parts").exists()
    assert ended == 0
    assert at > 3 * shards


def test_a_merge_that_is_killed_while_it_removes_the_parts_removes_them_when_it_is_called_again(
    out: Path, single: dict[str, bytes]
) -> None:
    merge(out, progress=False, keep_parts=True)
    assert len(list((out / "parts").iterdir())) == 4
    shutil.rmtree(out / "parts" / "1-of-4")
    merge(out, progress=False)
    assert len(list((out / "parts").iterdir())) == 3, "what was kept is not removed by a later call"
    (out / ".shardkit" / "merge").mkdir()
    assert merge(out, progress=False).made == 0
    assert not (out / "parts").exists()
    assert contents(out) == single


@pytest.mark.parametrize("calls", [1, 7])
def test_a_job_whose_shards_another_one_makes_and_ends_with_finds_the_dataset(
    out: Path, single: dict[str, bytes], calls: int
) -> None:
    left = [calls]

    def overtake(*_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            assert merge(out, progress=False).manifest is not None

    merged = merge(out, part="0/2", progress=overtake)
    assert left[0] <= 0
    assert merged.manifest is not None
    assert contents(out) == single
    assert not (out / "parts").exists()
    assert list((out / ".shardkit").iterdir()) == []


def test_one_job_is_not_run_twice_at_once(out: Path) -> None:
    def twice(*_: object) -> None:
        with pytest.raises(OutputError, match="another process is merging part 1/2 of .*: wait for it"):
            merge(out, part="1/2", progress=False)

    assert merge(out, part="1/2", progress=twice).made == SHARDS // 2


def damaged(out: Path) -> None:
    path = out / "parts" / "2-of-4" / "p_train_000000.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def shard_gone(out: Path) -> None:
    (out / "parts" / "1-of-4" / "p_train_000000.npy").unlink()


def another_count(out: Path) -> None:
    shutil.copytree(out / "parts" / "0-of-4", out / "parts" / "0-of-3")


def a_gap(out: Path) -> None:
    journal = out / "parts" / "1-of-4" / ".shardkit" / "journal.jsonl"
    journal.write_bytes((out / "parts" / "2-of-4" / ".shardkit" / "journal.jsonl").read_bytes())


def strange_shard(out: Path) -> None:
    (out / "p_train_000007.npy").write_bytes(b"mine")


def no_parts(out: Path) -> None:
    shutil.rmtree(out / "parts")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_parts, r"holds no parts: `shardkit tokenize SRC --part 0/N --out .*` makes the first of N"),
        (lambda out: shutil.rmtree(out / "parts" / "3-of-4"), r"part 3/4 of .* is missing: run `shardkit tokenize`"),
        (another_count, r"holds some of 3 and some of 4 parts: remove those"),
        (
            damaged,
            r"part 2/4 is damaged, .*2-of-4/p_train_000000.npy has SHA-256 .*: tokenize it again with part='2/4'",
        ),
        (shard_gone, r"part 1/4 is damaged, .*p_train_000000.npy is missing: tokenize it again"),
        (a_gap, r"1-of-4.* does not name the shards beside it: run `shardkit tokenize` with part='1/4' again"),
        (strange_shard, r"holds p_train_000007.npy: choose another out="),
    ],
)
def test_parts_that_make_no_dataset_are_refused_in_one_line_and_nothing_is_written(
    out: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(out)
    with pytest.raises(OutputError, match=message) as refusal:
        merge(out, progress=False)
    assert "\n" not in str(refusal.value)
    assert not (out / "manifest.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_shards": 2}, r"2-of-4 is of another run than 0-of-4 \(val shards: 2 there, 1 in part 0\): remove"),
        ({"tokenizer": "chars"}, r"\(encoder: .* vocabulary: "),
        ({"max_docs": 9}, r"\(max docs: 9 there, null in part 0\)"),
        ({"chunk_bytes": 512}, r"\(chunk bytes: 512 there, 2048 in part 0\)"),
    ],
)
def test_parts_of_different_runs_are_refused_with_the_option_that_differs(
    source: str, out: Path, options: dict[str, Any], message: str
) -> None:
    shutil.rmtree(out / "parts" / "2-of-4")
    tokenize(source, out, part="2/4", **options)
    with pytest.raises(OutputError, match=message):
        merge(out, progress=False)


def test_a_damaged_part_that_is_made_again_is_merged(source: str, single: dict[str, bytes], out: Path) -> None:
    damaged(out)
    with pytest.raises(OutputError, match="part 2/4 is damaged"):
        merge(out, progress=False)
    with pytest.raises(OutputError, match="holds another run"):
        tokenize(source, out, part="2/4", val_shards=3)
    tokenize(source, out, part="2/4", overwrite=True)
    assert 0 < merge(out, progress=False).made < SHARDS
    assert contents(out) == single


def test_shards_merged_from_other_parts_are_refused(source: str, out: Path, tmp_path: Path) -> None:
    merge(out, part="0/2", progress=False)
    shutil.rmtree(out / "parts")
    tokenize_parts(source, out, 2, max_docs=200)
    with pytest.raises(
        OutputError, match=r"0-of-2.jsonl names shards that were merged from other parts than there are"
    ):
        merge(out, part="1/2", progress=False)


def test_a_shard_that_was_lost_after_its_line_is_made_again(out: Path, single: dict[str, bytes]) -> None:
    merge(out, part="0/2", progress=False)
    sorted(out.glob("*.npy"))[0].unlink()
    merge(out, part="1/2", progress=False)
    assert not (out / "manifest.json").exists()
    assert merge(out, progress=False).made == 1
    assert contents(out) == single


def test_parts_are_not_begun_where_something_else_is(source: str, out: Path, tmp_path: Path) -> None:
    merge(out, progress=False)
    with pytest.raises(OutputError, match="holds a finished dataset, and no part of one that is to be made"):
        tokenize(source, out, part="0/4", overwrite=True)
    with pytest.raises(OutputError, match="holds a finished dataset that was not made here"):
        tokenize(source, out)
    tokenize(source, tmp_path / "run")
    (tmp_path / "run" / "manifest.json").unlink()
    with pytest.raises(OutputError, match="holds a run without part=: choose another out="):
        tokenize(source, tmp_path / "run", part="0/4")
    assert not (out / "parts").exists()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("4/4", r"part=4/4: parts count from 0, the last one of 4 is 3/4"),
        ("0/0", "expected 1 to"),
        ("1", "is no part: expected I/N, as 0/64 for the first of 64"),
        ("a/b", "is no part"),
        (3, "is no part"),
    ],
)
def test_what_is_no_part_is_refused(source: str, tmp_path: Path, part: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tokenize(source, tmp_path / "out", part=part)
    with pytest.raises(UsageError, match=message):
        merge(tmp_path / "out", part=part, progress=False)
    assert not (tmp_path / "out").exists()


def test_a_part_is_one_of_files(source: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="part= cuts files, and this source is an iterable"):
        pipeline.tokenize(["a", "b"], tmp_path / "out", part="0/2")
    assert not (tmp_path / "out").exists()


def test_parts_without_documents_make_no_dataset(source: str, tmp_path: Path) -> None:
    tokenize_parts(source, tmp_path, 2, filter=lambda text: False)
    with pytest.raises(SourceError, match="the parts hold no documents: nothing was merged"):
        merge(tmp_path, progress=False)


def test_a_bad_row_of_a_file_that_is_cut_is_named_from_where_the_part_begins(source: str, tmp_path: Path) -> None:
    lines = Path(source).parent / "b.jsonl"
    with pytest.raises(SourceError, match=r"b.jsonl, line [0-9]+ from byte [0-9]+ on: not JSON"):
        tokenize(str(lines), tmp_path, part="1/2", skip_bad_rows=False)


def test_a_merge_warns_where_there_is_no_train_split(source: str, tmp_path: Path) -> None:
    tokenize_parts(source, tmp_path, 2, val_shards=50)
    with pytest.warns(ShardkitWarning, match="so there is no train split"):
        merge(tmp_path, progress=False)
