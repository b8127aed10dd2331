"""Source files that change while they are read, or between a killed run and the next: all of the old, or a refusal."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attacks import SECRET, times
from victim import Victims

from shardkit import Manifest, open_shard

ROWS = 400
FIXED = ["--tokenizer", "bytes", "--prefix", "a", "--shard-tokens", "20000", "--workers", "1"]


def write(path: Path, word: str) -> None:
    """A file of the same size for any word of the same length."""
    path.write_text("".join(json.dumps({"text": f"{word} {number:06d} " * 20}) + "\n" for number in range(ROWS)))
    os.utime(path, ns=(0, 10**18))  # long ago: a change within one tick of the clock leaves no trace


def rewritten(path: Path, rng: random.Random) -> None:
    """The same number of bytes, written into the file in place."""
    new = path.with_name("new")
    write(new, "new")
    content = new.read_bytes()
    new.unlink()
    with open(path, "r+b") as file:
        file.write(content)


def replaced(path: Path, rng: random.Random) -> None:
    """Another file of the same size under its name."""
    write(path.with_name("new"), "new")
    os.utime(path.with_name("new"))
    os.replace(path.with_name("new"), path)


def cut(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def appended(path: Path, rng: random.Random) -> None:
    with open(path, "ab") as file:
        file.write(b'{"text": "more"}\n' * 50)


def removed(path: Path, rng: random.Random) -> None:
    path.unlink()


CHANGES: dict[str, Callable[[Path, random.Random], None]] = {
    change.__name__: change for change in (rewritten, replaced, cut, appended, removed)
}


@pytest.fixture(scope="module")
def victims() -> Iterator[Victims]:
    with Victims(HF_TOKEN=SECRET) as found:
        yield found


@pytest.fixture(scope="module")
def right(victims: Victims, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[int]]]:
    """The dataset of the old file, of the new one of the same size, and of the old one with more at its end."""
    found = {}
    for word in ("old", "new", "appended"):
        folder = tmp_path_factory.mktemp(word)
        write(folder / "a.jsonl", "new" if word == "new" else "old")
        if word == "appended":
            appended(folder / "a.jsonl", random.Random(0))
        assert victims.run(["tokenize", folder / "a.jsonl", "--out", folder / "out", *FIXED], watched=[]).code == 0
        found[word] = dataset_in(folder / "out")
    return found


def prepared(at: Path) -> list[object]:
    """The command that tokenizes the old file, which is in the new folder `at`."""
    at.mkdir()
    write(at / "a.jsonl", "old")
    return ["tokenize", at / "a.jsonl", "--out", at / "out", *FIXED]


def dataset_in(out: Path) -> list[list[int]]:
    return [open_shard(out / shard.file).tolist() for shard in Manifest.load(out).shards]


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_while_it_is_read_is_refused_or_was_read_before(
    change: str, right: dict[str, Any], tmp_path: Path, victims: Victims, tally: Any
) -> None:
    count = times(2, 15)
    for number in range(count):
        rng, at = random.Random(f"{change} {number}"), tmp_path / str(number)
        running = victims.start(prepared(at), watched=[at])
        time.sleep(rng.uniform(0, 0.5))  # at any moment; whatever the moment, what is said must be so
        CHANGES[change](at / "a.jsonl", rng)
        ended = victims.wait(running)
        ended.assert_clean()
        if ended.code == 0:
            found = dataset_in(at / "out")
            after = right["appended" if change == "appended" else "new"]  # it changed before it was listed
            assert found in (right["old"], after), "old and new, mixed"
        else:
            assert not (at / "out" / "manifest.json").exists()
        shutil.rmtree(at)
    tally(f"a source that is {change} while it is read", count)


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_before_a_run_goes_on_is_refused(
    change: str, right: dict[str, Any], tmp_path: Path, victims: Victims, tally: Any
) -> None:
    count = times(2, 15)
    for number in range(count):
        rng, at = random.Random(f"{change} {number}"), tmp_path / str(number)
        command = prepared(at)
        victims.run(command, watched=[at / "out"], at=rng.randint(8, 40), what="kill")
        had = bool(list((at / "out").glob("*.npy")))
        CHANGES[change](at / "a.jsonl", rng)
        again = victims.run(command, watched=[at])
        again.assert_clean()
        if again.code == 0 and had:
            assert dataset_in(at / "out") == right["old"], "old and new, mixed"
        shutil.rmtree(at)
    tally(f"a source that was {change} between two runs", count)
