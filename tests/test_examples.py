"""The worked example of each public name runs, and says what really comes out."""

from __future__ import annotations

import doctest
import shutil
from pathlib import Path

import pytest

import shardkit

NEEDS_NONE = {"ShardkitError", "UsageError", "__version__"}


def examples_of(name: str) -> list[doctest.DocTest]:
    """The examples in the docstrings of a public name and, for a class, of its methods; skipped ones do not count."""
    public = {name: getattr(shardkit, name) for name in shardkit.__all__}
    tests = doctest.DocTestFinder(exclude_empty=True).find(public[name], name, extraglobs=public)
    return [test for test in tests if any(doctest.SKIP not in example.options for example in test.examples)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `out`, of the built-in sample in shards of 100,000 tokens."""
    folder = tmp_path_factory.mktemp("examples") / "out"
    shardkit.tokenize("sample", folder, shard_tokens=100_000)
    return folder


def test_every_public_name_has_an_example() -> None:
    assert {name for name in shardkit.__all__ if not examples_of(name)} - NEEDS_NONE == set()


@pytest.mark.parametrize("name", [name for name in shardkit.__all__ if name != "__version__"])
def test_the_examples_run(
    name: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(dataset, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in examples_of(name):
        result = runner.run(test)
        assert result.failed == 0, capsys.readouterr().out
        assert result.attempted
