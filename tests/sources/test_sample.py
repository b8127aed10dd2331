"""`sample`: real prose on every machine, the same each time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from source_data import chunk_texts

from shardkit.sources.chunks import iter_chunks
from shardkit.sources.sample import read_documents, sample_source
from shardkit.sources.source import ReadOptions, Source


@pytest.fixture(scope="module")
def source() -> Source:
    return sample_source(ReadOptions())


def test_the_sample_is_real_prose_of_a_useful_size(source: Source) -> None:
    texts = [t for c in iter_chunks(source, 0, 0, 0, chunk_bytes=1 << 20) for t in chunk_texts(c, source.options)]
    joined = "\n".join(texts)
    assert len(texts) > 2000
    assert 1_000_000 < len(joined) < 10_000_000
    assert joined.count(" the ") > 10_000
    assert min(map(len, texts)) > 50


def test_files_are_named_by_their_place_and_not_by_this_machine(source: Source) -> None:
    names = [file.path for file in source.files]
    assert names[0] == "pydoc_data/topics.py"
    assert names[1:] == sorted(names[1:])
    assert not any(name.startswith("/") or "site-packages" in name or "/test/" in name for name in names)
    assert (source.info.id, source.info.files) == ("sample", ())


def test_another_process_finds_the_same_files_with_the_same_documents(source: Source) -> None:
    code = (
        "from shardkit.sources.sample import *; s = sample_source(ReadOptions());"
        "print([f.path for f in s.files] == eval(input()), len(read_documents(Path(s.files[5].url))))"
    )
    names = repr([file.path for file in source.files])
    done = subprocess.run([sys.executable, "-c", code], input=names, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", str(len(read_documents(Path(source.files[5].url))))]


def test_docstrings_are_read_in_order_without_running_the_module(tmp_path: Path) -> None:
    long = "words " * 20
    (tmp_path / "m.py").write_text(
        f'"""Module {long}"""\nraise SystemExit("it was run")\n'
        f'class A:\n    """Class {long}"""\n    def f(self):\n        """short"""\n'
        f'    def g(self):\n        """Method {long}"""\n'
    )
    assert [text.split()[0] for text in read_documents(tmp_path / "m.py")] == ["Module", "Class", "Method"]
