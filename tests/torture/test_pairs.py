"""Two commands at once on one folder or repo, one of them killed or not: one dataset, or a refusal in one line.

Whatever the order in which the two get on: a place with a `manifest.json` holds one of the two datasets, whole, and
whoever is told that a command has done its work finds that work, or that of the command which came after it.
"""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attacks import SECRET, times
from loader_data import write_tokens
from texts import documents, write_parquet
from victim import Ended, Victims

from shardkit import Manifest, pull, push
from shardkit.errors import ShardkitError
from shardkit.look.verify import verify

Words = Callable[[Path], list[object]]
FIXED = ["--tokenizer", "bytes", "--prefix", "a", "--shard-tokens", "30000", "--workers", "1"]


def prepared(at: Path) -> None:
    """Two datasets of the same shard names and sizes, and one of them at a remote; two corpora."""
    write_tokens(at / "a", seed=1)
    write_tokens(at / "b", seed=2)
    push(at / "a", str(at / "full"))
    for name, first in (("one", 0), ("two", 60)):
        (at / name).mkdir()
        write_parquet(at / name / "a.parquet", documents(120)[first : first + 60], rows=10)


def tokenizing(corpus: str, out: str, *options: str) -> Words:
    return lambda at: ["tokenize", at / corpus, "--out", at / out, *FIXED, *_paths(at, options)]


def _paths(at: Path, options: tuple[str, ...]) -> list[object]:
    return [at / option[1:] if option.startswith("/") else option for option in options]


def words(command: str, *options: str) -> Words:
    return lambda at: [command, *_paths(at, options)]


# The two commands, and the places where they may leave a dataset.
PAIRS: dict[str, tuple[Words, Words, tuple[str, ...]]] = {
    "tokenize twice": (tokenizing("one", "out"), tokenizing("one", "out"), ("out",)),
    "tokenize two corpora into one folder": (tokenizing("one", "out"), tokenizing("two", "out"), ("out",)),
    "tokenize and tokenize --overwrite": (
        tokenizing("one", "out"),
        tokenizing("two", "out", "--overwrite"),
        ("out",),
    ),
    "push twice": (words("push", "/a", "/remote"), words("push", "/a", "/remote"), ("remote",)),
    "push two datasets to one place": (
        words("push", "/a", "/remote"),
        words("push", "/b", "/remote"),
        ("remote",),
    ),
    "push and push --overwrite": (
        words("push", "/a", "/remote"),
        words("push", "/b", "/remote", "--overwrite"),
        ("remote",),
    ),
    "tokenize --push of two corpora to one place": (
        tokenizing("one", "out1", "--push", "/remote"),
        tokenizing("two", "out2", "--push", "/remote"),
        ("remote", "out1", "out2"),
    ),
    "tokenize --push --max-disk of two corpora to one place": (
        tokenizing("one", "out1", "--push", "/remote", "--max-disk", "200kB"),
        tokenizing("two", "out2", "--push", "/remote", "--max-disk", "200kB"),
        ("remote",),
    ),
    "tokenize --push and push to one place": (
        tokenizing("one", "out1", "--push", "/remote"),
        words("push", "/b", "/remote"),
        ("remote", "out1"),
    ),
    "pull twice": (words("pull", "/full", "/got"), words("pull", "/full", "/got"), ("got",)),
    "pull and push --overwrite": (
        words("pull", "/full", "/got"),
        words("push", "/b", "/full", "--overwrite"),
        ("got", "full"),
    ),
    "verify and push --overwrite": (
        words("verify", "/full"),
        words("push", "/b", "/full", "--overwrite"),
        ("full",),
    ),
}


def dataset_at(place: Path) -> tuple[bytes, ...] | None:
    """The dataset at a place, which must be whole if it has a manifest."""
    if not (place / "manifest.json").exists():
        return None
    verify(place)
    return tuple((place / shard.file).read_bytes() for shard in Manifest.load(place).shards)


@pytest.fixture(scope="module")
def victims() -> Iterator[Victims]:
    with Victims(HF_TOKEN=SECRET) as found:
        yield found


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("start")
    prepared(at)
    return at


@pytest.fixture(scope="module")
def right(start: Path, victims: Victims, tmp_path_factory: pytest.TempPathFactory) -> set[Any]:
    """All datasets that there may be."""
    found = {dataset_at(start / "a"), dataset_at(start / "b")}
    for corpus in ("one", "two"):
        out = tmp_path_factory.mktemp("right") / "out"
        assert victims.run(["tokenize", start / corpus, "--out", out, *FIXED], watched=[]).code == 0
        found.add(dataset_at(out))
    assert len(found) == 4
    return found


@pytest.mark.parametrize("name", PAIRS)
def test_two_at_once_leave_one_dataset_or_a_refusal(
    name: str, start: Path, right: set[Any], tmp_path: Path, victims: Victims, tally: Any
) -> None:
    first, second, places = PAIRS[name]
    count = times(2, 12)
    for number in range(count):
        at = tmp_path / "now"
        shutil.copytree(start, at)
        rng = random.Random(f"{name} {number}")
        orders = [{"at": rng.randint(1, 40), "what": "kill"} if rng.random() < 0.4 else {} for _ in range(2)]
        both = [(first(at), orders[0]), (second(at), orders[1])]
        rng.shuffle(both)
        begun = [victims.start(command, watched=[at], **order) for command, order in both]
        ended = [victims.wait(one) for one in begun]
        done = any(one.code == 0 for one, (command, _) in zip(ended, both, strict=True) if command[0] != "verify")
        looked = [command[0] == "verify" for command, _ in both]
        _assert_sound(ended, looked, done, at, places, right)
        shutil.rmtree(at)
    tally(f"{name}, at once, one killed or none", count)


def _assert_sound(
    ended: list[Ended], looked: list[bool], done: bool, at: Path, places: tuple[str, ...], right: set[Any]
) -> None:
    for one, looked_at_shards in zip(ended, looked, strict=True):
        one.assert_clean(looked_at_shards=looked_at_shards)
    for place in places:
        found = dataset_at(at / place)
        assert found is None or found in right, f"{place} holds what nobody made"
        if found is not None:  # somebody else gets that very one
            pull(str(at / place), at / "elsewhere" / place)
            assert dataset_at(at / "elsewhere" / place) == found
    if done:
        made = [dataset_at(at / place) for place in places]
        assert any(found is not None for found in made), "said to be done, and nothing is there"


def test_after_two_at_once_each_can_be_finished_or_says_what_to_do(
    start: Path, right: set[Any], tmp_path: Path, victims: Victims, tally: Any
) -> None:
    count = times(1, 6)
    for number, (name, (first, second, places)) in itertools.product(range(count), list(PAIRS.items())[:6]):
        at = tmp_path / "now"
        shutil.copytree(start, at)
        rng = random.Random(f"{name} {number}")
        begun = [
            victims.start(command(at), watched=[at], at=rng.randint(1, 40), what="kill") for command in (first, second)
        ]
        for one in begun:
            victims.wait(one)
        again = victims.run(first(at), watched=[at])
        again.assert_clean()
        if again.code:
            assert any(word in again.stderr for word in ("holds another", "overwrite", "is not this one")), again.stderr
        else:
            assert dataset_at(at / places[0]) in right
        shutil.rmtree(at)
    tally("two commands killed, then one again", 6 * count)


def test_a_reader_of_what_is_replaced_gets_one_dataset_or_an_error(
    start: Path, right: set[Any], tmp_path: Path, victims: Victims, tally: Any
) -> None:
    count = times(3, 30)
    for number in range(count):
        at = tmp_path / "now"
        shutil.copytree(start, at)
        change = victims.start(["push", at / "b", at / "full", "--overwrite"], watched=[at])
        try:
            pull(str(at / "full"), at / "got")
        except ShardkitError:
            assert not (at / "got" / "manifest.json").exists()
        assert victims.wait(change).code == 0
        found = dataset_at(at / "got")
        assert found is None or found in right, number
        shutil.rmtree(at)
    tally("a pull from what is being replaced", count)
