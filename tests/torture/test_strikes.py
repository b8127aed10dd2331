"""Every command, struck at its changes to files: killed, an error from the disk, a folder that is gone.

After each strike nothing is believed that is not so: a place with a `manifest.json` holds that dataset, whole. The same
command again ends with what it ends with when nothing happens.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from attacks import SECRET, times
from loader_data import write_tokens
from texts import documents, write_parquet
from victim import Ended, Victims

from shardkit import Manifest, pull, push, tokenize
from shardkit.look.verify import verify

ERRORS = ["ENOSPC", "EIO", "EACCES", "EROFS", "EMFILE", "EDQUOT"]


@dataclass(frozen=True)
class Command:
    """A command whose files are below one folder: what is there before it, its words, and where datasets may be."""

    prepare: Callable[[Path], None]
    words: Callable[[Path], list[object]]
    places: tuple[str, ...]
    ends_in: str  # the place that holds the dataset at its end


def corpus(at: Path) -> None:
    (at / "corpus").mkdir(parents=True)
    write_parquet(at / "corpus" / "a.parquet", documents(60), rows=10)


def dataset(at: Path) -> None:
    write_tokens(at / "out")


def dataset_over_another(at: Path) -> None:
    dataset(at)
    write_tokens(at / "was", seed=7)
    push(at / "was", str(at / "remote"))


def remote(at: Path) -> None:
    write_tokens(at / "data")
    push(at / "data", str(at / "remote"))


def tokenizing(*options: object) -> Callable[[Path], list[object]]:
    def words(at: Path) -> list[object]:
        fixed = ["--tokenizer", "bytes", "--prefix", "a", "--shard-tokens", "30000", "--workers", "1"]
        given = [at / "remote" if option == "REMOTE" else option for option in options]
        return ["tokenize", at / "corpus", "--out", at / "out", *fixed, *given]

    return words


def overwritten(at: Path) -> None:
    """A folder that holds another dataset of ours."""
    corpus(at)
    tokenize(at / "corpus", at / "out", tokenizer="bytes", prefix="b", shard_tokens=50_000, workers=1)
    shutil.copytree(at / "out", at / "was", ignore=shutil.ignore_patterns(".shardkit"))


COMMANDS = {
    "tokenize": Command(corpus, tokenizing(), ("out",), "out"),
    "tokenize --overwrite": Command(overwritten, tokenizing("--overwrite"), ("out",), "out"),
    "tokenize --push": Command(corpus, tokenizing("--push", "REMOTE"), ("out", "remote"), "remote"),
    "tokenize --push --max-disk": Command(
        corpus, tokenizing("--push", "REMOTE", "--max-disk", "200kB"), ("out", "remote"), "remote"
    ),
    "push": Command(dataset, lambda at: ["push", at / "out", at / "remote"], ("out", "remote"), "remote"),
    "push --overwrite": Command(
        dataset_over_another,
        lambda at: ["push", at / "out", at / "remote", "--overwrite"],
        ("out", "remote"),
        "remote",
    ),
    "pull": Command(remote, lambda at: ["pull", at / "remote", at / "out"], ("remote", "out"), "out"),
}


def shards_of(place: Path) -> dict[str, bytes]:
    """The dataset at a place, which must be whole."""
    verify(place)
    return {shard.file: (place / shard.file).read_bytes() for shard in Manifest.load(place).shards}


def datasets_in(at: Path, command: Command) -> Iterator[dict[str, bytes]]:
    """The datasets that somebody would find in the places of a command."""
    for place in command.places:
        if (at / place / "manifest.json").exists():
            yield shards_of(at / place)


@pytest.fixture(scope="module")
def victims() -> Iterator[Victims]:
    with Victims(HF_TOKEN=SECRET) as found:
        yield found


@pytest.fixture(scope="module")
def bare_victims() -> Iterator[Victims]:
    """Whose commands and workers meet their limits as they import what they need, too."""
    with Victims(bare=True, HF_TOKEN=SECRET) as found:
        yield found


class Field:
    """A command and the folder where it is struck, made anew before each strike."""

    def __init__(self, command: Command, folder: Path, victims: Victims) -> None:
        self.command, self.victims = command, victims
        self.start, self.at = folder / "start", folder / "now"
        self.command.prepare(self.start)
        self.reset()
        done = self.strike()
        assert done.code == 0, done.stderr
        self.changes = done.changes
        self.right = shards_of(self.at / self.command.ends_in)
        was = self.start / "was"
        self.may_be = [self.right] + ([shards_of(was)] if was.exists() else [])

    def reset(self) -> None:
        shutil.rmtree(self.at, ignore_errors=True)
        shutil.copytree(self.start, self.at)

    def strike(self, **orders: Any) -> Ended:
        return self.victims.run(self.command.words(self.at), watched=[self.at], **orders)

    def assert_survived(self, struck: Ended) -> None:
        struck.assert_clean()
        assert SECRET not in struck.stderr
        for found in datasets_in(self.at, self.command):
            assert found in self.may_be, "a manifest that is not true"
        again = self.strike()
        assert again.code == 0, again.stderr
        assert shards_of(self.at / self.command.ends_in) == self.right


Fields = Callable[[str], Field]


@pytest.fixture(scope="module")
def field_of(tmp_path_factory: pytest.TempPathFactory, victims: Victims) -> Fields:
    """The field of a command, made once for all its attacks."""
    return cache(lambda name: Field(COMMANDS[name], tmp_path_factory.mktemp("field"), victims))


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_a_change_to_a_file_it_ends_the_same(name: str, field_of: Fields, tally: Any) -> None:
    field = field_of(name)
    moments = range(1, field.changes + 1)
    chosen = sorted(random.Random(name).sample(moments, min(len(moments), times(1, 80))))
    for moment in chosen:
        field.reset()
        killed = field.strike(at=moment, what="kill")
        assert killed.code in (-9, 0)  # 0: threads made fewer changes this time
        field.assert_survived(killed)
    tally(f"{name}, SIGKILL at a change to a file", len(chosen))


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_again_and_again_it_ends_the_same(name: str, field_of: Fields, tally: Any) -> None:
    field = field_of(name)
    count = times(1, 4)
    for seed in range(count):
        rng = random.Random(f"{name} {seed}")
        field.reset()
        for _ in range(times(2, 4)):
            field.strike(at=rng.randint(1, field.changes), what="kill")
        field.assert_survived(field.strike(at=rng.randint(1, field.changes), what="kill"))
    tally(f"{name}, SIGKILL again and again", (1 + times(2, 4)) * count)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_error_of_the_disk_is_one_line_and_the_command_ends_the_same_afterwards(
    name: str, field_of: Fields, tally: Any
) -> None:
    field = field_of(name)
    count = times(1, 40)
    for number in range(count):
        rng = random.Random(f"{name} {number}")
        moment = 1 + number % field.changes if count > field.changes else rng.randint(1, field.changes)
        field.reset()
        lasts = rng.choice([1, 10**9])
        field.assert_survived(field.strike(at=moment, what=rng.choice(ERRORS), times=lasts))
    tally(f"{name}, an error of the disk", count)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "tokenize --overwrite"])
def test_a_folder_that_vanishes_is_one_line_and_the_command_ends_the_same_afterwards(
    name: str, field_of: Fields, tally: Any
) -> None:
    field = field_of(name)
    made = [place for place in field.command.places if not (field.start / place).exists()]
    count = times(1, 15)
    for number in range(count):
        rng = random.Random(f"{name} {number}")
        field.reset()
        gone = field.at / rng.choice(made or ["remote"])
        struck = field.strike(at=rng.randint(1, field.changes), what="vanish", vanishing=str(gone))
        if struck.code == 0 and gone.exists():  # else it was removed after all was done
            assert gone.name != field.command.ends_in or shards_of(gone) == field.right
        field.assert_survived(struck)
    tally(f"{name}, a folder removed", count)


@pytest.mark.parametrize("name", COMMANDS)
def test_few_descriptors_or_little_room_are_one_line(
    name: str, field_of: Fields, bare_victims: Victims, tally: Any
) -> None:
    field = field_of(name)
    count = times(1, 12)
    for number in range(count):
        rng = random.Random(f"{name} {number}")
        limits = [{"files": rng.randint(12, 60)}, {"bytes of a file": rng.randint(1, 90_000)}]
        field.reset()
        limit = limits[(number + [*COMMANDS].index(name)) % 2]
        field.assert_survived(bare_victims.run(field.command.words(field.at), watched=[field.at], limits=limit))
    tally(f"{name}, few descriptors or little room", count)


def test_pulled_after_all_that_it_is_the_dataset(tmp_path: Path) -> None:
    remote(tmp_path)
    pull(str(tmp_path / "remote"), tmp_path / "out")
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "data")
