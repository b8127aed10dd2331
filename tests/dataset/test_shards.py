"""`shards`: the bytes that `np.save` writes are read and written, and anything else is refused."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardkit import open_shard
from shardkit.dataset.shards import SHARD_NAME, ShardWriter, shard_header, shard_name
from shardkit.errors import ShardError

GOLDEN_HEADER = b"\x93NUMPY\x01\x00v\x00{'descr': '<u2', 'fortran_order': False, 'shape': (100000000,), }"


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write(folder: Path, tokens: np.ndarray, capacity: int, piece: int) -> tuple[bytes, str, int]:
    writer = ShardWriter(folder / "temp", tokens.dtype, capacity)
    for at in range(0, len(tokens), piece):
        writer.write(tokens[at : at + piece])
    made = writer.finish(folder / "final.npy")
    assert not (folder / "temp").exists()
    data = (folder / "final.npy").read_bytes()
    assert made.bytes == len(data)
    assert made.sha256 == hashlib.sha256(data).hexdigest()
    return data, made.sha256, made.tokens


def test_the_header_of_a_hundred_million_tokens_is_frozen() -> None:
    header = shard_header(100_000_000, np.dtype("<u2"))
    assert len(header) == 128
    assert header == GOLDEN_HEADER + b" " * (127 - len(GOLDEN_HEADER)) + b"\n"


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize(("count", "capacity"), [(1, 1), (1, 10**18), (999, 1000), (1000, 1000), (70_001, 100_000)])
def test_a_written_shard_is_what_np_save_writes(tmp_path: Path, dtype: str, count: int, capacity: int) -> None:
    tokens = (np.arange(count) * 7919 % 65_536).astype(dtype)
    data, _, written = write(tmp_path, tokens, capacity, 997)
    assert data == saved(tokens)
    assert written == count
    mapped = open_shard(tmp_path / "final.npy")
    assert mapped.dtype == np.dtype(dtype)
    assert np.array_equal(mapped, np.load(tmp_path / "final.npy"))


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 300), spare=st.integers(0, 5), piece=st.integers(1, 50))
def test_pieces_do_not_show_in_the_file(
    tmp_path_factory: pytest.TempPathFactory, count: int, spare: int, piece: int
) -> None:
    tokens = np.arange(count, dtype="<u2")
    assert write(tmp_path_factory.mktemp("s"), tokens, count + spare, piece)[0] == saved(tokens)


def test_a_strided_array_is_written_as_its_values(tmp_path: Path) -> None:
    assert write(tmp_path, np.arange(20, dtype="<u2")[::3], 100, 3)[0] == saved(np.arange(0, 20, 3, dtype="<u2"))


def test_more_tokens_than_there_is_room_for_are_a_bug_of_the_caller(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "t", np.dtype("<u2"), 3)
    with pytest.raises(ValueError, match="4 uint16 tokens for room 3"):
        writer.write(np.zeros(4, "<u2"))
    with pytest.raises(ValueError, match="uint32 tokens"):
        writer.write(np.zeros(1, "<u4"))
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_a_mapped_shard_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "s.npy").write_bytes(saved(np.arange(5, dtype="<u2")))
    with pytest.raises(ValueError, match="read-only"):
        open_shard(tmp_path / "s.npy")[0] = 1


class Bomb:
    """Unpickling it would create the file named in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.path), "w"))


def test_an_object_array_is_refused_and_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npy"
    np.save(path, np.array([Bomb(tmp_path / "exploded")], dtype=object), allow_pickle=True)
    with pytest.raises(ShardError, match=r"bomb\.npy holds a 1-dimensional object array"):
        open_shard(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 3), "<u2"), "2-dimensional uint16"),
        (np.zeros(3, ">u2"), "1-dimensional >u2"),
        (np.zeros(3, ">u4"), "1-dimensional >u4"),
        (np.zeros(3, "<i4"), "int32"),
        (np.zeros(3, "<f4"), "float32"),
        (np.zeros(3, "u1"), "uint8"),
        (np.zeros((), "<u2"), "0-dimensional"),
        (np.zeros(0, "<u2"), "holds no tokens"),
    ],
)
def test_arrays_that_are_no_shards_are_refused(tmp_path: Path, array: np.ndarray, words: str) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ShardError, match=words):
        open_shard(tmp_path / "x.npy")


def test_a_headerless_memmap_is_refused_with_a_hint(tmp_path: Path) -> None:
    np.arange(1000, dtype="<u2").tofile(tmp_path / "x.npy")
    with pytest.raises(ShardError, match=r"x\.npy has no \.npy header .* `shardkit convert FOLDER"):
        open_shard(tmp_path / "x.npy")


@pytest.mark.parametrize("change", [-1, -2, -200, 1, 2])
def test_a_file_that_is_not_as_long_as_its_header_says_is_refused(tmp_path: Path, change: int) -> None:
    data = saved(np.arange(100, dtype="<u2"))
    (tmp_path / "x.npy").write_bytes(data[:change] if change < 0 else data + b"\0" * change)
    with pytest.raises(ShardError, match=f"has {328 + change:,} bytes, its header says 328 \\(100 tokens\\)"):
        open_shard(tmp_path / "x.npy")


@pytest.mark.parametrize("length", [0, 3, 6, 8, 9, 40, 127])
def test_a_file_cut_inside_its_header_is_refused(tmp_path: Path, length: int) -> None:
    (tmp_path / "x.npy").write_bytes(saved(np.arange(100, dtype="<u2"))[:length])
    with pytest.raises(ShardError, match=r"header"):
        open_shard(tmp_path / "x.npy")


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 127), junk=st.binary(min_size=1, max_size=12))
def test_a_damaged_header_is_a_shard_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, at: int, junk: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.npy"
    data = bytearray(saved(np.arange(100, dtype="<u2")))
    data[at : at + len(junk)] = junk
    path.write_bytes(data[:328])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's own, of odd escapes in what it parses
        try:
            opened = open_shard(path)
        except ShardError:
            return
    assert opened.nbytes <= 200


def test_a_missing_shard_and_a_folder_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"cannot open shard .*none\.npy: No such file"):
        open_shard(tmp_path / "none.npy")
    with pytest.raises(ShardError, match="cannot open shard"):
        open_shard(tmp_path)


def test_names_are_those_of_fineweb_py() -> None:
    assert shard_name("edufineweb", "train", 1) == "edufineweb_train_000001.npy"
    assert shard_name("x", "val", 1_234_567) == "x_val_1234567.npy"
    match = SHARD_NAME.match("my_train_like_set_val_000000.npy")
    assert match is not None
    assert (match["prefix"], match["split"], match["index"]) == ("my_train_like_set", "val", "000000")
    assert SHARD_NAME.match("x_train_00001.npy") is None


@pytest.mark.parametrize(
    "header",
    [
        *(
            "'shape': (100.0,)",
            "'shape': ('100',)",
            "'shape': {100: 0}",
            "'shape': [100]",
            "'shape': 100",
            "'shape': 1e9",
        ),
        *("'shape': (1e999,)", "'shape': (True,)", "'shape': (-1,)", "'shape': (-0.0,)", "'shape': (None,)"),
        *(
            f"'shape': ({'9' * 4000},)",
            f"'shape': ({'9' * 4299},)",
            f"'shape': ({2**62},)",
            "'shape': (100,), 'more': 1",
        ),
        *("'shape': (100,), 'descr': None", "'shape': (100,), 'descr': 3", "'shape': (100,), 'descr': ['<u2']"),
        *("'shape': (100,), 'descr': '(9999999999999999999,)u2'", "'shape': (100,), 'descr': 'a5'", "'shape'"),
        *("'shape': (100,), 'descr': '<u2,<u2'", "'shape': (100,), 'fortran_order': 1", "'shape': (1).__class__"),
        "'shape': " + "(" * 300 + "100" + ")" * 300,
    ],
)
def test_headers_that_numpy_refuses_or_that_no_shard_has_are_refused(tmp_path: Path, header: str) -> None:
    text = ("{'descr': '<u2', 'fortran_order': False, " + header + "}").encode()
    path = tmp_path / "x_train_000000.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's own, of names that it will forget
        with pytest.raises(ShardError, match=r"x_train_000000\.npy (has a damaged \.npy header|holds a)") as caught:
            open_shard(path)
    assert len(str(caught.value)) < 400


def test_a_version_that_numpy_does_not_know_is_refused(tmp_path: Path) -> None:
    data = saved(np.arange(100, dtype="<u2"))
    for version in (b"\0\0", b"\1\1", b"\4\0", b"\xff\xff"):
        (tmp_path / "x.npy").write_bytes(data[:6] + version + data[8:])
        with pytest.raises(ShardError, match="damaged"):
            open_shard(tmp_path / "x.npy")
