"""The token stream: windows across shard ends, files that are bounded, closed and tried again, and their checks."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loader_data import write_documents, write_shards

import shardkit.dataset.check
import shardkit.dataset.open_files
import shardkit.dataset.shard_maps
import shardkit.dataset.token_stream
from shardkit.dataset.manifest import Manifest
from shardkit.dataset.shards import ShardHeader, shard_header
from shardkit.dataset.token_stream import open_split
from shardkit.errors import ManifestError, ShardError, UsageError


def mapped_shards() -> int:
    """How many shard files this process has mapped."""
    return sum(line.rstrip().endswith(".npy") for line in Path("/proc/self/maps").read_text().splitlines())


def resident_file_bytes() -> int:
    """Bytes of mapped files that are resident in this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
    return int(line.split()[1]) * 1024


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6), data=st.data(), dtype=st.sampled_from(["<u2", "<u4"])
)
def test_any_stretch_reads_as_if_the_shards_were_one_array(
    lengths: list[int], data: st.DataObject, dtype: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    whole = write_shards(folder, lengths, dtype=dtype)
    _, stream = open_split(folder, "train", verify=False)
    assert stream.tokens == len(whole)
    for _ in range(5):
        begin = data.draw(st.integers(0, len(whole) - 1))
        end = data.draw(st.integers(begin + 1, len(whole)))
        out = np.empty(end - begin, stream.dtype)
        stream.read(begin, out)
        assert out.tolist() == whole[begin:end].tolist()
        run = stream.run(begin, end - begin)
        inside = any(begin >= start and end <= start + n for start, n in zip(stream.starts, lengths, strict=False))
        assert (run is not None) == inside
        assert run is None or run.tolist() == out.tolist()


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6), data=st.data(), pread=st.booleans())
def test_gathered_pieces_lie_end_to_end_as_single_reads_give_them(
    lengths: list[int], data: st.DataObject, pread: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    whole = write_shards(folder, lengths, dtype=data.draw(st.sampled_from(["<u2", "<u4"])))
    _, stream = open_split(folder, "train", verify=False)
    begins = data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=8))
    pieces = [(begin, data.draw(st.integers(1, len(whole) - begin))) for begin in begins]
    expected = [token for begin, count in pieces for token in whole[begin : begin + count].tolist()]
    out = np.zeros(len(expected) + 1, stream.dtype)
    with pytest.MonkeyPatch.context() as patch:
        if not pread:
            patch.setattr(shardkit.dataset.token_stream, "_CAN_PREAD", False)
            patch.delattr(os, "preadv", raising=False)
        assert stream.gather(pieces, out) == len(expected)
    assert out.tolist() == [*expected, 0]


def write_sparse(folder: Path, tokens: int) -> None:
    """A shard that takes no disk, but as many pages as any."""
    with open(folder / "x_train_000000.npy", "wb") as file:
        file.write(shard_header(tokens, np.dtype("<u2")))
        file.truncate(file.tell() + 2 * tokens)


def test_the_resident_set_stays_bounded_while_a_large_shard_is_read(tmp_path: Path) -> None:
    tokens = 200_000_000
    write_sparse(tmp_path, tokens)
    _, stream = open_split(tmp_path, "train", verify=False)
    before, peak, out, size = resident_file_bytes(), 0, np.empty(1 << 16, np.uint16), 1 << 16
    for begin in range(0, tokens - size, size):
        run = stream.run(begin, size)
        assert run is not None
        out[:] = run
        peak = max(peak, resident_file_bytes() - before)
    assert 1 << 20 < peak < 80 << 20
    del run
    stream.close()
    assert resident_file_bytes() - before < 1 << 20
    for begin in range(0, tokens - size, 1 << 20):
        stream.read(begin, out)
        assert resident_file_bytes() - before < 1 << 20


def test_on_a_mount_that_may_drop_nothing_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shardkit.dataset.shard_maps, "is_on_local_disk", lambda path: False)
    tokens = 50_000_000
    write_sparse(tmp_path, tokens)
    _, stream = open_split(tmp_path, "train", verify=False)
    before, out, size = resident_file_bytes(), np.empty(1 << 16, np.uint16), 1 << 16
    for begin in range(0, tokens - size, size):
        assert stream.run(begin, size) is not None
        stream.read(begin, out)
        assert mapped_shards() == 0
    assert resident_file_bytes() - before < 1 << 20


def test_shards_are_opened_when_read_and_only_so_many_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shardkit.dataset.shard_maps, "_MAX_MAPS", 3)
    monkeypatch.setattr(shardkit.dataset.open_files, "_most_open", lambda: 3)
    whole = write_shards(tmp_path, [10] * 20)
    files = len(os.listdir("/proc/self/fd"))
    _, stream = open_split(tmp_path, "train", verify=False)
    assert len(os.listdir("/proc/self/fd")) == files
    out = np.empty(25, np.uint16)
    for begin in (0, 170, 40, 0):
        stream.read(begin, out)
        assert out.tolist() == whole[begin : begin + 25].tolist()
        assert files < len(os.listdir("/proc/self/fd")) <= files + 3
    for shard in range(20):
        run = stream.run(10 * shard, 10)
        assert run is not None
        assert run.tolist() == whole[10 * shard : 10 * shard + 10].tolist()
        del run
        assert 1 <= mapped_shards() <= 3
    stream.close()
    assert mapped_shards() == 0
    assert len(os.listdir("/proc/self/fd")) == files


def test_without_preadv_rows_are_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shardkit.dataset.token_stream, "_CAN_PREAD", False)
    monkeypatch.delattr(os, "preadv")
    whole = write_shards(tmp_path, [10, 1, 30, 2])
    _, stream = open_split(tmp_path, "train", verify=False)
    out = np.empty(15, np.uint16)
    for begin in range(28):
        stream.read(begin, out)
        assert out.tolist() == whole[begin : begin + 15].tolist()


def test_a_pickled_stream_has_no_file_and_no_map_with_it(tmp_path: Path) -> None:
    whole = write_shards(tmp_path, [10, 10])
    _, stream = open_split(tmp_path, "train", verify=False)
    out = np.empty(15, np.uint16)
    stream.read(0, out)
    stream.run(0, 5)
    files = len(os.listdir("/proc/self/fd"))
    copy = pickle.loads(pickle.dumps(stream))
    assert mapped_shards() == 1
    assert len(os.listdir("/proc/self/fd")) == files
    copy.read(3, out)
    assert out.tolist() == whole[3:18].tolist()


def test_a_shard_that_is_replaced_before_it_is_read_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, [10, 10])
    _, stream = open_split(tmp_path, "train", verify=False)
    np.save(tmp_path / "x_train_000001.npy", np.zeros(9, "<u2"))
    for _ in range(2):  # nor is it read the second time
        with pytest.raises(ShardError, match=r"x_train_000001.npy has 146 bytes, expected 148: fetch or make it again"):
            stream.read(5, np.empty(10, np.uint16))
    np.save(tmp_path / "x_train_000001.npy", np.zeros(5, "<u4"))
    with pytest.raises(ShardError, match=r"x_train_000001.npy holds 5 uint32 tokens, expected 10 uint16"):
        stream.gather([(0, 3), (12, 3)], np.empty(10, np.uint16))
    (tmp_path / "x_train_000001.npy").unlink()
    with pytest.raises(ShardError, match=r"x_train_000001.npy is missing: fetch or make it again"):
        stream.read(5, np.empty(10, np.uint16))


def test_a_shard_opened_again_is_checked_only_if_it_is_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_shards(tmp_path, [10] * 6)
    monkeypatch.setattr(shardkit.dataset.open_files, "_most_open", lambda: 2)
    headers: list[str] = []
    read_header = shardkit.dataset.check.read_header

    def count(file: BinaryIO, path: Path) -> ShardHeader:
        headers.append(path.name)
        return read_header(file, path)

    monkeypatch.setattr(shardkit.dataset.check, "read_header", count)
    _, stream = open_split(tmp_path, "train", verify=False)
    out = np.empty(5, np.uint16)
    for begin in (0, 10, 20, 30, 40, 50) * 3:
        stream.read(begin, out)
        assert out.tolist() == whole[begin : begin + 5].tolist()
    assert headers == [f"x_train_{index:06d}.npy" for index in range(6)]
    replace(tmp_path / "x_train_000003.npy", np.zeros(5, "<u4"))  # as many bytes
    stream.read(0, out)
    with pytest.raises(ShardError, match=r"x_train_000003.npy holds 5 uint32 tokens, expected 10 uint16"):
        stream.read(30, out)


def replace(path: Path, tokens: np.ndarray) -> None:
    """Another file under that name, as a tool writes it that renames."""
    np.save(path.with_name("new.npy"), tokens)
    os.replace(path.with_name("new.npy"), path)


def test_opening_a_dataset_reads_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write_documents(tmp_path, [("a", [1, 2, 3])] * 10, tokens_per_shard=20)

    def refuse(file: BinaryIO, path: Path) -> ShardHeader:
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr(shardkit.dataset.check, "read_header", refuse)
    _, stream = open_split(tmp_path, "train", verify=False)
    assert stream.tokens == sum(shard.tokens for shard in manifest.splits["train"])
    with pytest.raises(AssertionError, match="was opened"):
        stream.read(0, np.empty(5, np.uint16))


@settings(max_examples=40, deadline=None)
@given(most=st.integers(1, 30), data=st.data())
def test_a_read_that_gives_less_than_it_was_asked_for_is_read_on(
    most: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    whole = write_shards(folder, [40, 7, 40])
    _, stream = open_split(folder, "train", verify=False)
    preadv = os.preadv
    begins = data.draw(st.lists(st.integers(0, 60), min_size=1, max_size=4))
    pieces = [(begin, data.draw(st.integers(1, 87 - begin))) for begin in begins]
    expected = [token for begin, count in pieces for token in whole[begin : begin + count].tolist()]
    out = np.zeros(len(expected), np.uint16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            os, "preadv", lambda file, views, place: preadv(file, (memoryview(views[0]).cast("B")[:most],), place)
        )
        assert stream.gather(pieces, out) == len(expected)
        assert out.tolist() == expected
        begin, count = pieces[0]
        stream.read(begin, out[:count])
        assert out[:count].tolist() == whole[begin : begin + count].tolist()
        stream.read(0, out[:1])
        os.truncate(folder / "x_train_000000.npy", 128 + 60)
        with pytest.raises(ShardError, match=r"x_train_000000.npy ends 4 bytes early"):
            stream.read(25, np.empty(7, np.uint16))


READER = """
import os, resource, sys
import numpy as np
from shardkit.dataset.token_stream import open_split
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
stream = open_split(sys.argv[1], "train", verify=False)[1]
host = [open(os.devnull) for _ in range(int(sys.argv[2]))]
out = np.empty(10, np.uint16)
for _ in range(2):
    for begin in range(0, stream.tokens, 10):
        stream.read(begin, out)
        assert out.tolist() == list(range(begin, begin + 10)), begin
assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits
numbers = os.listdir("/proc/self/fd") if sys.argv[3] == "list" else []
ours = [int(number) for number in numbers if os.path.realpath(f"/proc/self/fd/{number}").endswith(".npy")]
print(len(ours), min(ours, default=0))
"""


def read_under_limits(folder: Path, soft: int, hard: int, *, host_files: int, listed: bool = True) -> list[int]:
    """How many shards a process of these limits has open when it has read them twice, and the lowest descriptor."""
    command = ["sh", "-c", f'ulimit -S -n {soft}; ulimit -H -n {hard}; exec "$@"', "sh", sys.executable, "-c", READER]
    arguments = [str(folder), str(host_files), "list" if listed else ""]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit is never raised")
def test_shards_stay_open_beyond_the_limit_that_the_host_has_to_itself(tmp_path: Path) -> None:
    write_shards(tmp_path, [10] * 300)
    assert read_under_limits(tmp_path, 64, 1024, host_files=40) == [300, 64]
    assert read_under_limits(tmp_path, 64, 128, host_files=40) == [64, 64]  # as many as the limits allow


MANY = """
import os, sys
import numpy as np
from shardkit.dataset.token_stream import open_split
from shardkit.errors import ShardError
streams = [open_split(folder, "train", verify=False)[1] for folder in sys.argv[1:]]
out = np.empty(10, np.uint16)
for begin in range(0, streams[0].tokens, 10):
    for stream in streams:
        stream.read(begin, out)
        assert out.tolist() == stream.run(begin, 10).tolist() == list(range(begin, begin + 10)), begin
print(len(os.listdir("/proc/self/fd")))
streams[0].close()
host = []
try:
    while True:
        host.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
try:
    streams[0].read(0, out)
except ShardError as error:
    os.close(host.pop())
    sys.exit(str(error))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts the descriptors in /proc")
def test_streams_of_several_datasets_keep_to_one_limit_and_a_host_that_leaves_none_is_told_so(tmp_path: Path) -> None:
    for number in range(6):
        write_shards(tmp_path / f"{number}", [10] * 40)
    command = ["sh", "-c", 'ulimit -n 128; exec "$@"', "sh", sys.executable, "-c", MANY]
    folders = [str(tmp_path / f"{number}") for number in range(6)]
    done = subprocess.run([*command, *folders], capture_output=True, text=True, check=False)
    assert done.stderr == (
        f"cannot open shard {tmp_path}/0/x_train_000000.npy: Too many open files: allow more open files "
        "(ulimit -n 4096)\n"
    )
    assert int(done.stdout) <= 64 + 6 * 4 + 8  # half of the limit, four maps a stream, and what Python has open


def test_a_host_that_needs_its_descriptors_takes_none_from_reading(tmp_path: Path) -> None:
    write_shards(tmp_path, [10] * 100)
    assert read_under_limits(tmp_path, 64, 64, host_files=20)[0] == 32  # half are left to others
    read_under_limits(tmp_path, 64, 64, host_files=50, listed=False)


def test_a_shard_that_is_cut_short_while_it_is_open_is_an_error_not_a_crash(tmp_path: Path) -> None:
    write_shards(tmp_path, [10, 10])
    _, stream = open_split(tmp_path, "train", verify=False)
    stream.read(5, np.empty(10, np.uint16))
    os.truncate(tmp_path / "x_train_000000.npy", 128 + 14)
    with pytest.raises(ShardError, match=r"x_train_000000.npy ends 6 bytes early"):
        stream.read(5, np.empty(10, np.uint16))
    with pytest.raises(ShardError, match=r"x_train_000000.npy ends 4 bytes early"):
        stream.gather([(1, 2), (6, 3)], np.empty(10, np.uint16))


def test_a_folder_that_is_no_finished_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no folder .*/nowhere: give a folder of shards"):
        open_split(tmp_path / "nowhere", "train", verify=False)
    with pytest.raises(ManifestError, match=r"holds no manifest.json and no shards"):
        open_split(tmp_path, "train", verify=False)
    write_shards(tmp_path, [10, 10])
    open_split(tmp_path, "train", verify=False)
    (tmp_path / ".shardkit").mkdir()
    open_split(tmp_path, "train", verify=False)
    (tmp_path / ".shardkit" / "journal.jsonl").touch()  # a tokenization that has not come to its end
    with pytest.raises(ManifestError, match="unfinished"):
        open_split(tmp_path, "train", verify=False)


def test_a_gap_between_bare_shards_is_refused_unless_it_is_meant(tmp_path: Path) -> None:
    write_shards(tmp_path, [10] * 9)
    for index in (2, 3, 6):
        (tmp_path / f"x_train_{index:06d}.npy").unlink()
    with pytest.raises(ManifestError, match="has shards 0 to 8, but lacks 2, 3, 6: fetch them"):
        open_split(tmp_path, "train", verify=False)
    _, stream = open_split(Manifest.from_shards(tmp_path), "train", verify=False)
    assert stream.tokens == 60


def test_a_split_without_shards_says_what_would_have_made_one(tmp_path: Path) -> None:
    write_shards(tmp_path / "all_val", [30, 31], vals=2)
    with pytest.raises(UsageError, match=r"no 'train' shard \(it has val with 2, 61 tokens.*shard_tokens=30 or less"):
        open_split(tmp_path / "all_val", "train", verify=False)
    write_shards(tmp_path / "all_train", [30])
    with pytest.raises(UsageError, match=r"no 'val' shard .*val_shards=1"):
        open_split(tmp_path / "all_train", "val", verify=False)
    with pytest.raises(UsageError, match=r"no 'test' shard .*split='train'"):
        open_split(tmp_path / "all_train", "test", verify=False)
    write_shards(tmp_path / "both", [30, 31], vals=1)
    with pytest.raises(UsageError, match=r"no 'test' shard .*give split='val' or 'train'"):
        open_split(tmp_path / "both", "test", verify=False)


def test_a_shard_that_is_not_what_the_manifest_says_is_refused_at_the_door(tmp_path: Path) -> None:
    write_documents(tmp_path, [("a", [1, 2, 3])] * 10, tokens_per_shard=20)
    path = tmp_path / "x_train_000001.npy"
    tokens = np.load(path)
    np.save(path, tokens[:-1])
    with pytest.raises(ShardError, match="has 166 bytes, expected 168"):
        open_split(tmp_path, "train", verify=False)
    np.save(path, tokens[::-1])
    open_split(tmp_path, "train", verify=False)
    with pytest.raises(ShardError, match="has SHA-256"):
        open_split(tmp_path, "train", verify=True)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ShardError, match="has 167 bytes, expected 168"):
        open_split(tmp_path, "train", verify=False)


def test_a_manifest_stands_for_the_folder_it_was_read_from(tmp_path: Path) -> None:
    written = write_documents(tmp_path, [("a", [1, 2, 3])] * 10, tokens_per_shard=20)
    manifest, stream = open_split(written, "train", verify=True)
    assert (manifest, stream.directory) == (written, tmp_path)
    assert str(tmp_path) not in written.to_json()
    with pytest.raises(UsageError, match="was not read from a folder"):
        open_split(Manifest.from_json(written.to_json()), "train", verify=False)
    bare = tmp_path / "bare"
    write_shards(bare, [10])
    open_split(Manifest.from_shards(bare), "train", verify=False)
    with pytest.raises(UsageError, match="no hashes to verify against"):
        open_split(bare, "train", verify=True)
