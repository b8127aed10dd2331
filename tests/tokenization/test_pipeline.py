"""`tokenize()`: the reference's bytes, whatever the workers, engine, chunks, limits and interruptions."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import datasets
import psutil
import pytest
import reference
import tokenizers
from attacks import times
from reference import folder_bytes
from texts import documents, write_parquet

import shardkit
from shardkit import Manifest, open_shard
from shardkit.dataset.journal import JOURNAL_FILE
from shardkit.errors import (
    AuditError,
    DiskFull,
    OutputError,
    ShardkitWarning,
    SourceError,
    TokenizerError,
    UsageError,
    WorkerError,
)
from shardkit.tokenization.local_runner import LocalRunner
from shardkit.tokenization.vocabulary import Vocabulary, with_fast_json

SMALL_CHUNK = 1 << 15
# Where the vocabulary is not the point: one whose workers start in no time.
tokenize = partial(shardkit.tokenize, tokenizer="bytes")
shard_bytes = partial(reference.shard_bytes, tokenizer="bytes")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three parquet files of prose with awkward documents among it, about 200,000 tokens of gpt2, 800,000 bytes."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = documents(900)
    for number in range(3):
        write_parquet(folder / f"{number:03d}.parquet", texts[number * 305 : (number + 1) * 305])
    return folder


@pytest.fixture(scope="module")
def texts() -> list[str | None]:
    return documents(900)[: 3 * 305]


@pytest.mark.usefixtures("fresh_workers")
@pytest.mark.parametrize(
    ("workers", "encoder", "shard_tokens", "chunk_bytes"),
    [
        (1, "fast", 50_000, SMALL_CHUNK),
        (2, "fast", 1_000, 8 << 20),
        (7, "fast", 33_333, 1 << 13),
        (2, "tiktoken", 50_000, SMALL_CHUNK),
        (2, "auto", 10_000_000, SMALL_CHUNK),
    ],
)
def test_the_shards_are_the_references_bytes(
    corpus: Path,
    texts: list[str | None],
    tmp_path: Path,
    workers: int,
    encoder: str,
    shard_tokens: int,
    chunk_bytes: int,
) -> None:
    manifest = tokenize(
        corpus,
        tmp_path / "out",
        tokenizer="gpt2",
        workers=workers,
        encoder=encoder,
        shard_tokens=shard_tokens,
        chunk_bytes=chunk_bytes,
        prefix="edufineweb",
    )
    expected = shard_bytes(texts, shard_tokens, "edufineweb", tokenizer="gpt2")
    assert folder_bytes(tmp_path / "out") == expected
    assert manifest == Manifest.load(tmp_path / "out")
    assert manifest.documents == len(texts)


def test_the_manifest_is_the_same_bytes_at_any_worker_count(corpus: Path, tmp_path: Path) -> None:
    for workers in (1, 3):
        tokenize(corpus, tmp_path / str(workers), workers=workers, shard_tokens=50_000, chunk_bytes=SMALL_CHUNK)
    assert (tmp_path / "1" / "manifest.json").read_bytes() == (tmp_path / "3" / "manifest.json").read_bytes()


def test_the_manifest_says_what_each_source_file_gave(corpus: Path, texts: list[str | None], tmp_path: Path) -> None:
    manifest = tokenize(corpus, tmp_path / "out", shard_tokens=50_000, chunk_bytes=SMALL_CHUNK)
    assert manifest.source is not None
    assert [(f.path, f.rows, f.documents) for f in manifest.source.files] == [
        (f"{n:03d}.parquet", 305, 305) for n in range(3)
    ]
    assert sum(file.tokens for file in manifest.source.files) == manifest.tokens
    documents_before = 0
    for shard in manifest.shards:
        tokens = open_shard(tmp_path / "out" / shard.file)
        assert shard.first_document == documents_before
        assert shard.documents == int((tokens == 256).sum())
        documents_before += shard.documents


def test_a_first_document_longer_than_several_shards_runs_on_across_them(tmp_path: Path) -> None:
    texts: list[str | None] = ["word " * 5_000, "short", None]
    write_parquet(tmp_path / "a.parquet", texts)
    tokenize(tmp_path / "a.parquet", tmp_path / "out", shard_tokens=1_000, workers=1, prefix="p")
    assert folder_bytes(tmp_path / "out") == shard_bytes(texts, 1_000, "p")


def test_a_stream_that_ends_with_a_shard_has_no_empty_shard_after_it(tmp_path: Path) -> None:
    texts: list[str | None] = [""] * 200
    write_parquet(tmp_path / "a.parquet", texts)
    manifest = tokenize(tmp_path / "a.parquet", tmp_path / "out", shard_tokens=100, workers=1, prefix="p")
    assert [shard.tokens for shard in manifest.shards] == [100, 100]


@pytest.mark.parametrize(
    ("option", "count"), [("max_docs", 1), ("max_docs", 137), ("max_tokens", 1), ("max_tokens", 23_456)]
)
def test_limits_end_the_stream_exactly(
    corpus: Path, texts: list[str | None], tmp_path: Path, option: str, count: int
) -> None:
    limits = {option: count}
    manifest = tokenize(
        corpus,
        tmp_path / "out",
        shard_tokens=10_000,
        workers=2,
        chunk_bytes=SMALL_CHUNK,
        val_shards=0,
        prefix="p",
        max_docs=limits.get("max_docs"),
        max_tokens=limits.get("max_tokens"),
    )
    wanted = texts[:count] if option == "max_docs" else texts
    whole = b"".join(data[128:] for data in shard_bytes(wanted, 10_000, "p", 0).values())
    got = b"".join(data[128:] for data in folder_bytes(tmp_path / "out").values())
    assert got == (whole if option == "max_docs" else whole[: 2 * count])
    assert manifest.source is not None
    assert sum(file.documents for file in manifest.source.files) == manifest.documents


def test_transform_and_filter_run_on_every_document_in_the_workers(tmp_path: Path) -> None:
    suffix = "!"

    def louder(text: str) -> str | None:
        return None if text == "drop" else text.upper() + suffix

    def short(text: str) -> bool:
        return len(text) < 20 and re.match(".", text) is not None

    texts = ["one", "drop", "a very long document that goes", "two"]
    manifest = tokenize(
        texts, tmp_path / "out", transform=louder, filter=short, shard_tokens=3, val_shards=0, workers=1, prefix="p"
    )
    assert folder_bytes(tmp_path / "out") == shard_bytes(["ONE!", "TWO!"], 3, "p", 0)
    assert manifest.source is not None
    assert (manifest.source.files[0].rows, manifest.source.files[0].documents) == (4, 2)


def test_a_datasets_dataset_is_a_source(tmp_path: Path) -> None:
    texts = ["first", "second", "third"]
    tokenize(datasets.Dataset.from_dict({"text": texts}), tmp_path / "out", shard_tokens=3, workers=1, prefix="p")
    assert folder_bytes(tmp_path / "out") == shard_bytes(texts, 3, "p")


def test_the_built_in_sample_is_real_prose_and_has_a_train_split(tmp_path: Path) -> None:
    manifest = tokenize("sample", tmp_path / "out", max_tokens=250_000, workers=2)
    assert {split: len(shards) for split, shards in manifest.splits.items()} == {"val": 1, "train": 2}


def test_a_finished_run_called_again_returns_its_manifest_and_writes_nothing(corpus: Path, tmp_path: Path) -> None:
    first = tokenize(corpus, tmp_path / "out", shard_tokens=50_000)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.npy")}
    assert tokenize(corpus, tmp_path / "out", shard_tokens=50_000) == first
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_too_few_tokens_for_a_train_split_names_a_shard_size_that_gives_one(tmp_path: Path) -> None:
    with pytest.warns(ShardkitWarning, match="no train split") as caught:
        tokenize(["a b c"] * 100, tmp_path / "out", shard_tokens=1_000_000, workers=1, val_shards=1)
    size = int(re.search(r"shard_tokens=(\d+)", str(caught[0].message))[1])  # type: ignore[index]
    manifest = tokenize(["a b c"] * 100, tmp_path / "out", shard_tokens=size, workers=1, overwrite=True)
    assert len(manifest.splits["train"]) >= 2


def test_another_run_in_the_same_folder_is_refused_and_the_difference_named(corpus: Path, tmp_path: Path) -> None:
    tokenize(corpus, tmp_path / "out", shard_tokens=50_000)
    with pytest.raises(OutputError, match=r"shard tokens: 50000 there, 40000 now.*overwrite=True"):
        tokenize(corpus, tmp_path / "out", shard_tokens=40_000)
    assert len(tokenize(corpus, tmp_path / "out", shard_tokens=40_000, overwrite=True).shards) > 0


def test_a_damaged_shard_is_noticed_when_a_run_goes_on(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tokenize(corpus, out, shard_tokens=50_000, chunk_bytes=SMALL_CHUNK)
    (out / "manifest.json").unlink()
    victim = sorted(out.glob("*.npy"))[0]
    data = bytearray(victim.read_bytes())
    data[1_000] ^= 1
    victim.write_bytes(data)
    with pytest.raises(OutputError, match=r"has SHA-256 .*: it is damaged.*overwrite=True"):
        tokenize(corpus, out, shard_tokens=50_000, chunk_bytes=SMALL_CHUNK)
    assert not (out / "manifest.json").exists()


def test_a_bad_row_stops_the_run_by_file_and_line_and_can_be_skipped(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"document {i}"}) for i in range(50)]
    lines[30] = "{not json"
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(SourceError, match=r"a\.jsonl, line 31: not JSON.*skip_bad_rows=True"):
        tokenize(tmp_path / "a.jsonl", tmp_path / "bad", shard_tokens=10, workers=1, chunk_bytes=200)
    assert not (tmp_path / "bad" / "manifest.json").exists()
    with pytest.warns(ShardkitWarning, match=r"skipped a\.jsonl, line 31"):
        manifest = tokenize(
            tmp_path / "a.jsonl", tmp_path / "good", shard_tokens=10, workers=1, chunk_bytes=200, skip_bad_rows=True
        )
    assert manifest.source is not None
    assert manifest.source.files[0].skipped_rows == (30,)
    assert manifest.documents == 49


@pytest.mark.usefixtures("fresh_workers")
def test_an_engine_that_is_wrong_stops_the_run_before_anything_is_published(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    from shardkit.tokenization import tokenizer

    def doctored(vocabulary: Vocabulary) -> Vocabulary:
        model = json.loads(with_fast_json(vocabulary).fast_json or "")
        model["model"]["merges"].remove(["Ġt", "he"])
        return dataclasses.replace(vocabulary, fast_json=json.dumps(model))

    monkeypatch.setattr(tokenizer, "with_fast_json", doctored)
    with pytest.raises(AuditError, match=r"parquet, row groups .* differ at token"):
        tokenize(corpus, tmp_path / "out", tokenizer="gpt2", shard_tokens=50_000, chunk_bytes=SMALL_CHUNK)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.usefixtures("fresh_workers")
def test_a_worker_that_dies_is_reported_with_its_chunk_and_the_run_can_go_on(
    corpus: Path, texts: list[str | None], tmp_path: Path
) -> None:
    def deadly(text: str) -> str:
        if "MARK" in text:
            os.kill(os.getpid(), signal.SIGKILL)
        return text

    write_parquet(tmp_path / "a.parquet", [*texts[:200], "MARK"], rows=50)
    with pytest.raises(WorkerError, match=r"died by signal SIGKILL at a\.parquet, row groups"):
        tokenize(tmp_path / "a.parquet", tmp_path / "out", transform=deadly, shard_tokens=5_000, workers=2)


def test_a_disk_that_is_full_at_a_shards_end_leaves_no_file_and_nothing_open(corpus: Path, tmp_path: Path) -> None:
    out, descriptors = tmp_path / "out", []
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limit[1]))
    try:
        for _ in range(3):
            with pytest.raises(DiskFull, match=r"no room to write .*: 20\.1 kB more are needed"):
                tokenize(corpus, out, shard_tokens=10_000, prefix="p")
            gc.collect()  # what tests before this one have left
            descriptors.append(len(os.listdir("/proc/self/fd")))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert len(set(descriptors)) == 1
    assert not list(out.rglob("*.tmp"))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_what_is_wrong_first_in_the_stream_is_reported_first_and_all_before_it_is_kept(
    tmp_path: Path, workers: int
) -> None:
    texts = [text or "" for text in documents(200)]
    lines = [json.dumps({"text": text}) for text in texts]
    folder = tmp_path / "in"
    folder.mkdir()
    both = f"{folder}/*"
    (folder / "b.parquet").write_bytes(b"PAR1 and no more")
    (folder / "a.jsonl").write_text("\n".join([*lines, "{"]) + "\n")
    options = {"workers": workers, "shard_tokens": 10_000, "prefix": "p", "chunk_bytes": 20_000}
    with pytest.raises(SourceError, match=rf"a\.jsonl, line {len(texts) + 1}: not JSON"):
        tokenize(both, tmp_path / "bad row", **options)  # type: ignore[arg-type]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(SourceError, match=r"b\.parquet"):
        tokenize(both, tmp_path / "bad file", **options)  # type: ignore[arg-type]
    whole = folder_bytes(tmp_path / "bad file")
    assert whole == {name: data for name, data in shard_bytes(texts, 10_000, "p").items() if name in whole}
    assert len(whole) == len(shard_bytes(texts, 10_000, "p")) - 1  # the last one was not full yet
    tokenize(both, tmp_path / "enough", max_docs=150, **options)  # type: ignore[arg-type]


def test_a_bug_in_sending_ends_the_run_and_does_not_hang_it(tmp_path: Path) -> None:
    def sabotage(text: str) -> str:
        sys.modules["shardkit.tokenization.worker_process"].__dict__["send_answers"] = None
        return text

    write_parquet(tmp_path / "a.parquet", ["text"] * 10, rows=5)
    with pytest.raises(WorkerError, match=r"died by exit code 1 at a\.parquet, row groups 0-1"):
        tokenize(tmp_path / "a.parquet", tmp_path / "out", transform=sabotage, workers=1, chunk_bytes=1)


def test_a_full_disk_stops_cleanly_and_the_run_goes_on_after_it(
    corpus: Path, texts: list[str | None], tmp_path: Path
) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, limit[1]))
    try:
        with pytest.raises(DiskFull, match=r"no room to write .* more are needed.* run the same command again"):
            tokenize(corpus, tmp_path / "out", shard_tokens=100_000, prefix="p")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    tokenize(corpus, tmp_path / "out", shard_tokens=100_000, prefix="p")
    assert folder_bytes(tmp_path / "out") == shard_bytes(texts, 100_000, "p")


def command(corpus: Path, out: Path, *options: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "shardkit",
        "tokenize",
        str(corpus),
        "--out",
        str(out),
        "--shard-tokens",
        "20000",
        "--prefix",
        "p",
        "--workers",
        "2",
        *options,
    ]


@pytest.mark.parametrize("seed", range(times(2, 12)))
def test_killed_at_any_moment_the_same_command_ends_with_the_same_bytes(
    texts: list[str | None], tmp_path: Path, seed: int
) -> None:
    source = write_parquet(tmp_path / "a.parquet", texts, rows=10)
    out = tmp_path / "out"
    finished_before = 0
    words = command(source, out, "--tokenizer", "bytes", "--shard-tokens", "68000")
    for attempt in range(4):
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 240
        while len(list(out.glob("*.npy"))) < min(8, 1 + seed + 2 * attempt) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        process.wait()
        done = len(list(out.glob("*.npy")))
        assert done >= finished_before  # nothing that was finished is lost
        finished_before = done
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    assert folder_bytes(out) == shard_bytes(texts, 68_000, "p")


def test_ctrl_c_stops_the_command_and_leaves_no_process(corpus: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("sample", tmp_path / "out", "--encoder", "tiktoken"),  # type: ignore[arg-type]
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    while not list((tmp_path / "out").glob("*.npy")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again" in stderr
    assert "Traceback" not in stderr
    deadline = time.monotonic() + 60
    while _alive_in_group(process.pid):
        assert time.monotonic() < deadline, "a process outlives the command"
        time.sleep(0.05)


def test_ctrl_c_while_the_workers_start_is_one_line_and_no_traceback(corpus: Path, tmp_path: Path) -> None:
    for number in range(4):
        process = subprocess.Popen(
            command(corpus, tmp_path / f"out{number}"), stderr=subprocess.PIPE, start_new_session=True, text=True
        )
        while not psutil.Process(process.pid).children():
            time.sleep(0.001)
        time.sleep(0.03 * number)
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        # Python's own way where it came in an exec(), as dataclasses do
        assert process.returncode in (130, -signal.SIGINT)
        assert (
            stderr.strip()
            == "stopped: run the same command again, it goes on from the last finished shard, if there is one"
        )


def test_a_script_without_a_main_guard_works_and_its_functions_travel(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import re\nfrom shardkit import tokenize\n"
        "def shout(text):\n    return re.sub('o', '0', text)\n"
        "manifest = tokenize(['foo'] * 9, 'out', transform=shout, shard_tokens=10, workers=2)\n"
        "print(manifest.documents)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "9", done.stderr


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"workers": 0}, UsageError, "workers is 0: expected a whole number of at least 1"),
        ({"shard_tokens": 0}, UsageError, "shard_tokens is 0"),
        ({"max_tokens": -5}, UsageError, "max_tokens is -5"),
        ({"val_shards": -1}, UsageError, "val_shards is -1"),
        ({"tokenizer": "gpt7"}, TokenizerError, "unknown tokenizer 'gpt7': expected one of .*gpt2"),
        ({"prefix": "my_train"}, UsageError, "neither 'train' nor 'val'"),
        ({"runner": "slurm"}, UsageError, "unknown runner 'slurm'"),
        ({"text_field": "body"}, SourceError, "no column 'body': expected one of id, text"),
        ({"text_field": "number"}, SourceError, "no column 'number'"),
    ],
)
def test_a_wrong_option_is_one_clear_error(
    corpus: Path, tmp_path: Path, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tokenize(corpus, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_empty_source_is_an_error_not_an_empty_dataset(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no documents"):
        tokenize([], tmp_path / "out", workers=1)
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(SourceError, match=r"the source holds no documents \(a\.jsonl\): nothing was written"):
        tokenize(tmp_path / "a.jsonl", tmp_path / "out", workers=1)
    (tmp_path / "b.jsonl").touch()
    with pytest.raises(SourceError, match=r"no documents \(.+ \(a\.jsonl and 1 more\)\)"):
        tokenize([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "out", workers=1)


def test_no_worker_outlives_a_main_process_that_was_killed(corpus: Path, tmp_path: Path) -> None:
    code = (
        "import time; from shardkit.tokenization.local_runner import LocalRunner\n"
        "runner = LocalRunner(2); print(*runner.process_ids, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 60
    while any(_alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers outlive their main process"
        time.sleep(0.05)


def test_no_worker_goes_on_with_a_document_when_the_main_process_was_killed(tmp_path: Path) -> None:
    code = (
        "import time; from pathlib import Path; from shardkit import tokenize\n"
        "def slow(text):\n    Path(text).touch(); time.sleep(60)\n"
        f"tokenize([{str(tmp_path / 'begun')!r}], {str(tmp_path / 'out')!r}, transform=slow, workers=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while _alive_in_group(process.pid):
        assert time.monotonic() < deadline, "a worker outlives its main process"
        time.sleep(0.05)


def environment_of(pid: int) -> dict[str, str]:
    """The environment of a process that was just started, once it is its own: before, it may be its parent's."""
    while "RAYON_NUM_THREADS" not in (environment := psutil.Process(pid).environ()):
        time.sleep(0.01)
    return environment


@pytest.mark.usefixtures("fresh_workers")
def test_starting_workers_changes_nothing_in_the_process_that_starts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__file__", "notebook.py", raising=False)

    def state() -> tuple[object, ...]:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        return dict(os.environ), getattr(main, "__file__", None), signal.getsignal(signal.SIGINT), mask

    before, seen, stop = state(), list[tuple[object, ...]](), threading.Event()

    def watch() -> None:
        while not stop.is_set():
            if (now := state()) != before:
                seen.append(now)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with LocalRunner(4) as runner:
            environments = [environment_of(pid) for pid in runner.process_ids]
    finally:
        stop.set()
        watcher.join()
    assert seen == []
    assert state() == before
    assert {environment["RAYON_NUM_THREADS"] for environment in environments} == {"1"}


def test_an_eot_that_a_vocabulary_makes_of_text_counts_as_the_start_of_a_document(tmp_path: Path) -> None:
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<eos>": 0, "a": 1, "b": 2, "[UNK]": 3}, unk_token="[UNK]")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["<eos>"])
    words.save(str(tmp_path / "words.json"))
    manifest = tokenize(
        ["a <eos> b", "b"],
        tmp_path / "out",
        tokenizer=str(tmp_path / "words.json"),
        shard_tokens=100,
        val_shards=0,
        workers=1,
    )
    tokens = open_shard(tmp_path / "out" / manifest.shards[0].file)
    assert tokens.tolist() == [0, 1, 0, 2, 0, 2]
    assert manifest.documents == 3


def test_texts_of_a_class_that_the_workers_do_not_know_are_texts(tmp_path: Path) -> None:
    class Text(str):
        pass

    tokenize([Text("first"), Text("second")], tmp_path / "out", shard_tokens=3, workers=1, prefix="p")
    assert folder_bytes(tmp_path / "out") == shard_bytes(["first", "second"], 3, "p")


def test_a_transform_that_goes_to_another_folder_does_not_take_the_shards_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def astray(text: str) -> str:
        os.chdir("/")
        return text

    monkeypatch.chdir(tmp_path)
    tokenize(["x" * 100_000], "out", transform=astray, shard_tokens=200_000, workers=1, prefix="p")
    assert folder_bytes(tmp_path / "out") == shard_bytes(["x" * 100_000], 200_000, "p")


def test_a_shard_is_in_the_journal_long_before_the_next_one_is_full(tmp_path: Path) -> None:
    journal = tmp_path / "out" / JOURNAL_FILE

    def texts() -> Iterator[str]:
        yield "x" * 100_000
        deadline = time.monotonic() + 60
        while len(journal.read_bytes().splitlines()) < 2:  # the run's first line, and the shard's
            assert time.monotonic() < deadline
            time.sleep(0.01)
            yield "y"

    tokenize(texts(), tmp_path / "out", shard_tokens=100_000, workers=1, chunk_bytes=1, prefix="p")
    assert len(folder_bytes(tmp_path / "out")) == 2


@pytest.mark.usefixtures("fresh_workers")
def test_a_runner_that_is_left_ends_its_workers() -> None:
    with LocalRunner(2) as runner:
        workers = runner.process_ids
        assert all(_alive(pid) for pid in workers)
    assert not any(_alive(pid) for pid in workers)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _alive_in_group(group: int) -> bool:
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return any(_alive(pid) and _group(pid) == group for pid in pids)


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
