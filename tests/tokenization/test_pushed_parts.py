"""Parts that are pushed by machines without a shared disk, and merged from there, are what a single run makes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from reference import folder_bytes
from run_data import InProcess
from source_data import lines
from texts import write_parquet
from victim import Victims

from shardkit import Manifest, merge, pull, push
from shardkit.errors import DiskFull, HubError, ManifestError, OutputError, UsageError
from shardkit.tokenization import merge_parts, pipeline

OPTIONS: dict[str, Any] = {
    "tokenizer": "bytes",
    "shard_tokens": 5_000,
    "prefix": "p",
    "chunk_bytes": 2_048,
    "progress": False,
}
# `times` of a strike: threads of a command may count past the very change that it is to be killed at.
COMMAND = ["--tokenizer", "bytes", "--shard-tokens", "5000", "--prefix", "p", "--workers", "1"]
pytestmark = pytest.mark.filterwarnings("ignore::shardkit.errors.ShardkitWarning")
merge = partial(merge, progress=False)


def texts(count: int, seed: int) -> list[str | None]:
    chance = random.Random(seed)
    return ["".join(chance.choices("abc \n", k=chance.choice([0, 5, 90, 400]))) for _ in range(count)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("source")
    write_parquet(folder / "a.parquet", texts(130, 1), rows=11)
    (folder / "b.jsonl").write_bytes(lines([text or "" for text in texts(130, 2)]))
    return f"{folder}/*"


def tokenize(source: str, out: Path, **options: Any) -> Manifest:
    """In this process, with a runner of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "start_runner", lambda *_: InProcess())
        return pipeline.tokenize(source, out, **{**OPTIONS, **options})


def push_parts(source: str, out: Path, count: int, place: str, **options: Any) -> None:
    """Each on a machine of its own, in any order."""
    for index in random.Random(count).sample(range(count), count):
        machine = out / f"machine {index}"
        tokenize(source, machine, part=f"{index}/{count}", push=place, max_disk=60_000, **options)
        assert not folder_bytes(machine / "parts" / f"{index}-of-{count}")


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file() and path.name[0] != "."}


@pytest.fixture(scope="module")
def single(source: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("single") / "out"
    tokenize(source, out)
    assert len(folder_bytes(out)) > 6
    return contents(out)


@pytest.fixture(scope="module")
def four(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place that has four parts, to be copied."""
    folder = tmp_path_factory.mktemp("four")
    push_parts(source, folder, 4, str(folder / "far"))
    return folder / "far"


@pytest.fixture
def far(four: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(four, tmp_path / "far"))


@pytest.mark.parametrize("count", [1, 4, 7])
def test_parts_that_were_pushed_are_merged_to_the_single_runs_files(
    source: str, single: dict[str, bytes], tmp_path: Path, count: int
) -> None:
    far = tmp_path / "far"
    push_parts(source, tmp_path, count, str(far))
    merged = merge(str(far), tmp_path / "out")
    assert contents(tmp_path / "out") == single
    assert merged.manifest == Manifest.load(tmp_path / "out")
    assert list((tmp_path / "out" / ".shardkit").iterdir()) == []
    before = {path: path.read_bytes() for path in far.rglob("*") if path.is_file()}
    again = merge(str(far), tmp_path / "out")
    assert (again.made, again.missing, again.manifest) == (0, 0, merged.manifest)
    assert before == {path: path.read_bytes() for path in far.rglob("*") if path.is_file()}, "the parts stay"


@pytest.mark.parametrize("place", ["alice/parts/first", "hf://buckets/alice/parts/first"])
def test_parts_in_a_folder_of_a_repo_or_bucket_are_merged_there_from_too(
    hub: Any, source: str, single: dict[str, bytes], tmp_path: Path, place: str
) -> None:
    push_parts(source, tmp_path, 2, place, private=True)
    for job in (1, 0):
        hub.reset_log()
        merged = merge(place, tmp_path / "out", part=f"{job}/2")
        assert hub.count("GET", "/api/") <= 2, "one listing of all parts"
        assert hub.count("GET", r"/resolve/.*parts/[01]-of-2/(manifest|\.shardkit/journal)\.json") == 4
    assert merged.missing == 0
    assert contents(tmp_path / "out") == single
    part = pull(f"{place}/parts/1-of-2", tmp_path / "part")
    assert part.tokens == sum(len(tokens) for tokens in folder_bytes(tmp_path / "part").values()) // 2 - 64 * len(
        part.shards
    )
    with pytest.raises(
        HubError, match=f"{place} holds parts of a dataset, .*`shardkit merge .*{place} --out DIR` makes"
    ):
        pull(place, tmp_path / "none")
    with pytest.raises(UsageError, match=f"{place} is no folder here: to merge parts that are at a remote, give out="):
        merge(place)


def has_ab(text: str) -> bool:
    return "ab" in text or not text


@pytest.mark.parametrize(
    "options", [{"max_docs": 77}, {"max_tokens": 21_111, "filter": has_ab}, {"val_shards": 3, "shard_tokens": 300}]
)
def test_limits_and_other_options_give_the_single_runs_files_after_a_move_to_an_empty_machine(
    source: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    options = {"shard_tokens": 2_000, **options}
    tokenize(source, tmp_path / "single", **options)
    far = str(tmp_path / "far")
    for shards in (1, 2):
        stopped = {"part": "0/3", "push": far, "max_disk": 60_000, **options}
        with pytest.raises(KeyboardInterrupt):
            tokenize(source, tmp_path / f"lost {shards}", progress=when_there(Path(far), "0-of-3", shards), **stopped)
    push_parts(source, tmp_path, 3, far, **options)
    merge(far, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "single")


def when_there(far: Path, part: str, shards: int) -> Callable[[Any], None]:
    """A `progress` that stops the run when the journal at the place names so many shards."""

    def progress(now: Any) -> None:
        journal = far / "parts" / part / ".shardkit" / "journal.jsonl"
        while now.shards > shards:
            if journal.read_bytes().count(b"\n") > shards:
                raise KeyboardInterrupt

    return progress


def test_a_part_whose_machine_is_killed_is_made_to_its_end_by_another(
    source: str, single: dict[str, bytes], tmp_path: Path
) -> None:
    far = tmp_path / "far"
    lost, found = tmp_path / "lost", tmp_path / "found"
    part = ["tokenize", source, "--part", "0/2", "--push", far, "--max-disk", "60kB", *COMMAND]
    with Victims() as victims:
        at, journal = 40, far / "parts" / "0-of-2" / ".shardkit" / "journal.jsonl"
        while not journal.exists() or journal.read_bytes().count(b"\n") < 2:
            assert (
                victims.run([*part, "--out", lost], [lost, far], at=at, what="kill", times=9**9).code == -signal.SIGKILL
            )
            at += 20
        tokenize(source, tmp_path / "other", part="1/2", push=str(far), chunk_bytes=8 << 20)
        with pytest.raises(OutputError, match=r"part 0/2 of .*far is not finished: run `shardkit tokenize` with part="):
            merge(str(far), tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert victims.run([*part, "--out", found], [found]).code == 0
    merge(str(far), tmp_path / "out")
    assert contents(tmp_path / "out") == single


def test_a_merge_from_a_place_that_is_killed_anywhere_goes_on_and_keeps_few_shards_here(
    far: Path, single: dict[str, bytes], tmp_path: Path
) -> None:
    out, command = tmp_path / "out", ["merge", far, "--out", tmp_path / "out"]
    with Victims("shardkit.tokenization.merge", "shardkit.look.next_steps") as victims:
        for at in range(3, 100, 24):
            victims.run(command, [out], at=at, what="kill", times=9**9).assert_clean()
            fetched = list(out.glob(".shardkit/merge/*.parts/**/*.npy"))
            assert len(fetched) <= 2 + merge_parts.FETCHED_AHEAD
        assert victims.run(command, [out]).code == 0
    assert contents(out) == single
    assert list((out / ".shardkit").iterdir()) == []


def another_run(far: Path, source: str, machine: Path) -> None:
    shutil.rmtree(far / "parts" / "2-of-4")
    tokenize(source, machine, part="2/4", push=str(far), val_shards=2)


def lost_shard(far: Path, source: str, machine: Path) -> None:
    sorted((far / "parts" / "1-of-4").glob("*.npy"))[0].unlink()


def damaged_shard(far: Path, source: str, machine: Path) -> None:
    path = sorted((far / "parts" / "1-of-4").glob("*.npy"))[0]
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")


def damaged_journal(far: Path, source: str, machine: Path) -> None:
    (far / "parts" / "2-of-4" / ".shardkit" / "journal.jsonl").write_bytes(b"{")


def another_part(far: Path, source: str, machine: Path) -> None:
    shutil.rmtree(far / "parts" / "2-of-4")
    shutil.copytree(far / "parts" / "1-of-4", far / "parts" / "2-of-4")


def another_count(far: Path, source: str, machine: Path) -> None:
    shutil.copytree(far / "parts" / "0-of-4", far / "parts" / "0-of-3")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda far, *_: shutil.rmtree(far / "parts"), r"far holds no parts: `shardkit tokenize SRC --part 0/N --out"),
        (lambda far, *_: shutil.rmtree(far / "parts" / "3-of-4"), r"part 3/4 of .*far is missing: run `shardkit token"),
        (another_count, r"far/parts holds some of 3 and some of 4 parts: remove those"),
        (another_run, r"far/parts/2-of-4 is of another run than 0-of-4 \(val shards: 2 there, 1 in part 0"),
        (another_part, r"far/parts/2-of-4 does not begin where the part before it ends: .*; remove that folder there"),
        (
            lambda far, *_: (far / "parts" / "2-of-4" / "manifest.json").write_text("{"),
            r"part 2/4 of .*far cannot be read \(.*2-of-4/manifest.json is not .*\): remove that folder there",
        ),
        (
            damaged_journal,
            r"part 2/4 of .*far cannot be read \(.*journal.jsonl is damaged .*\): remove that folder there",
        ),
        (
            lost_shard,
            r"part 1/4 is damaged, .*1-of-4 has not p_train_000000.npy as its manifest.json says: remove that",
        ),
        (damaged_shard, r"part 1/4 is damaged, .*1-of-4 gives p_train_000000.npy with other bytes than its manifest.j"),
    ],
)
def test_parts_at_a_place_that_make_no_dataset_are_refused_in_one_line(
    source: str, far: Path, tmp_path: Path, damage: Callable[..., object], message: str
) -> None:
    damage(far, source, tmp_path / "machine")
    with pytest.raises(OutputError, match=message) as refusal:
        merge(str(far), tmp_path / "out")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_folder_with_another_dataset_is_not_taken_for_the_one_of_the_parts(
    source: str, far: Path, tmp_path: Path
) -> None:
    tokenize(source, tmp_path / "out", max_docs=5)
    with pytest.raises(OutputError, match="out holds another dataset than these parts make: choose another out="):
        merge(str(far), tmp_path / "out")


def test_a_finished_part_that_is_called_again_anywhere_sends_nothing(source: str, far: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in far.rglob("*") if path.is_file()}
    first = tokenize(source, tmp_path / "a", part="1/4", push=str(far), max_disk=60_000)
    with pytest.raises(OutputError, match="part 0/4 of .*a is missing"):
        merge(tmp_path / "a")
    tokenize(source, tmp_path / "a", part="0/4", push=str(far), max_disk=60_000)
    with pytest.raises(OutputError, match=f"part 0/4 of .*a is at {far}: `shardkit merge {far} --out OUT`"):
        merge(tmp_path / "a")
    assert tokenize(source, tmp_path / "b", part="1/4", push=str(far)) == first
    assert Manifest.load(tmp_path / "b" / "parts" / "1-of-4") == first
    assert before == {path: path.stat().st_mtime_ns for path in far.rglob("*") if path.is_file()}
    assert not any(path.name in (".shardkit/push.json", "README.md") for path in far.rglob("*"))


def bytes_below(folder: Path) -> int:
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # it has just gone
                total += os.stat(os.path.join(here, name)).st_size
    return total


@pytest.mark.parametrize("place", ["alice/merged", "hf://buckets/alice/merged", "far"])
def test_jobs_that_share_nothing_push_the_single_runs_files(
    hub: Any, single: dict[str, bytes], far: Path, tmp_path: Path, place: str
) -> None:
    place = str(tmp_path / "merged") if place == "far" else place
    for number, job in enumerate((2, 0, 1), 1):
        machine = tmp_path / f"machine {job}"
        most = [0]

        def look(*_: object, machine: Path = machine, most: list[int] = most) -> None:
            most.append(bytes_below(machine))

        merged = merge(str(far), machine, part=f"{job}/3", push=place, max_disk=130_000, progress=look)
        assert 0 < max(most) <= 130_000
        assert not folder_bytes(machine)
        assert (merged.missing == 0) == (number == 3) == (merged.manifest is not None)
    assert merge(str(far), tmp_path / "late", part="1/3", push=place).made == 0
    manifest = pull(place, tmp_path / "out")
    assert manifest == merged.manifest
    assert contents(tmp_path / "out") == single
    if place.startswith("alice"):
        assert not any(name.startswith(".shardkit") for name in hub.files(place))


def test_parts_in_a_folder_are_merged_to_a_remote_through_that_folder(
    far: Path, single: dict[str, bytes], tmp_path: Path
) -> None:
    merged = tmp_path / "merged"
    assert merge(far, part="0/2", push=str(merged), max_disk=100_000).missing > 0
    assert (far / "parts").exists()
    with pytest.raises(HubError, match="another dataset is on its way to .*merged"):
        push(pull(str(far / "parts" / "0-of-4"), tmp_path / "part").directory or "", str(merged))
    assert merge(far, part="1/2", push=str(merged)).missing == 0
    assert contents(merged).items() >= single.items()
    assert not (far / "parts").exists()
    assert not folder_bytes(far)
    with pytest.raises(ManifestError, match=f"the dataset lies at {merged}"):
        Manifest.load(far)


def test_a_merge_that_pushes_is_killed_anywhere_and_goes_on_on_an_empty_machine(
    far: Path, single: dict[str, bytes], tmp_path: Path
) -> None:
    merged = tmp_path / "merged"
    command: list[object] = ["merge", far, "--push", merged, "--max-disk", "150kB", "--out"]
    at, code = 10, -signal.SIGKILL
    with Victims("shardkit.tokenization.merge", "shardkit.look.next_steps") as victims:
        while code == -signal.SIGKILL:
            machine = tmp_path / f"killed at {at}"
            ended = victims.run([*command, machine], [machine, merged], at=at, what="kill", times=9**9)
            ended.assert_clean()
            at, code = at + 15, ended.code
    assert code == 0, ended.stderr
    assert at > 60
    assert pull(str(merged), tmp_path / "out").tokens == Manifest.load(merged).tokens
    assert contents(tmp_path / "out") == single
    assert not (merged / ".shardkit").exists()


def test_a_merge_is_not_pushed_to_where_something_else_is_or_with_too_little_disk(
    source: str, far: Path, tmp_path: Path
) -> None:
    other, out = str(tmp_path / "other"), tmp_path / "out"
    tokenize(source, tmp_path / "a", max_docs=30, push=other)
    with pytest.raises(OutputError, match="other holds another dataset than these parts make: push to another place"):
        merge(str(far), out, push=other)
    with pytest.raises(
        DiskFull, match=r"max_disk=30\.0 kB has no room for 6 shards of 10\.1 kB: give 60768 bytes or more"
    ):
        merge(str(far), out, push=str(tmp_path / "new"), max_disk=30_000)
    with pytest.raises(UsageError, match="is the folder of the merge itself"):
        merge(str(far), out, push=str(out))
    with pytest.raises(UsageError, match="say how to push: give push=REPO too"):
        merge(str(far), out, max_disk=30_000)
    assert not out.exists()
    assert not (tmp_path / "new").exists()


def overtaken(jobs: Callable[[], object]) -> Callable[[str, int, int], None]:
    """A `progress` of a job, while whose second shard is made other `jobs` do all the work."""
    seen: set[str] = set()

    def progress(file: str, *_: int) -> None:
        seen.add(file)
        if len(seen) == 2 and "" not in seen:
            seen.add("")
            jobs()

    return progress


@pytest.mark.parametrize(
    ("place", "machine"),
    [("alice/merged", "first"), ("hf://buckets/alice/merged", "first"), ("far", "first"), ("far", "slow")],
)
def test_a_job_whose_work_others_have_done_meanwhile_ends_well_and_leaves_nothing_at_the_place(
    hub: Any, single: dict[str, bytes], far: Path, tmp_path: Path, place: str, machine: str
) -> None:
    place = str(tmp_path / "merged") if place == "far" else place
    first = partial(merge, str(far), tmp_path / machine, push=place)
    slow = merge(str(far), tmp_path / "slow", part="0/2", push=place, progress=overtaken(first))
    assert slow.missing == 0
    assert not folder_bytes(tmp_path / "slow")
    assert list((tmp_path / "slow" / ".shardkit").iterdir()) == [tmp_path / "slow" / ".shardkit" / "pushed-to"]
    pull(place, tmp_path / "out")
    assert contents(tmp_path / "out") == single
    names = hub.files(place) if place.startswith("alice") else os.listdir(place) if place.startswith("/") else []
    assert not any(name.startswith(".shardkit") for name in names)


def test_a_job_that_others_overtake_in_one_folder_finds_the_dataset_and_leaves_nothing(
    single: dict[str, bytes], far: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    slow = merge(str(far), out, part="0/2", progress=overtaken(partial(merge, str(far), out)))
    assert (slow.missing, slow.manifest) == (0, Manifest.load(out))
    assert contents(out) == single
    assert list((out / ".shardkit").iterdir()) == []


@pytest.mark.parametrize("part", [None, "1/2"])
def test_where_the_whole_dataset_is_and_no_parts_are_any_more_nothing_is_left_to_do(
    hub: Any, far: Path, tmp_path: Path, part: str | None
) -> None:
    out = tmp_path / "out"
    made = merge(str(far), out, push=str(far)).manifest
    shutil.rmtree(far / "parts")
    again = merge(str(far), out, part=part, push=str(far))
    assert (again.made, again.missing, again.manifest) == (0, 0, made)
    lies = f"far holds no parts, the whole dataset lies at .*far: `shardkit pull {far} DIR` fetches it$"
    for elsewhere in ({}, {"push": str(tmp_path / "other")}, {"push": "alice/none"}):
        with pytest.raises(OutputError, match=lies):
            merge(str(far), out, part=part, **elsewhere)
    pulled = pull(str(far), tmp_path / "pulled")
    assert merge(str(far), tmp_path / "pulled", part=part).manifest == pulled
    with pytest.raises(OutputError, match="holds a finished dataset already: `shardkit push .*pulled REPO` sends it$"):
        merge(tmp_path / "pulled", part=part, push=str(tmp_path / "other"))
    push(tmp_path / "pulled", str(tmp_path / "other"))
    assert merge(tmp_path / "pulled", part=part, push=str(tmp_path / "other")).manifest == made


@pytest.mark.parametrize("place", ["here", "far", "alice/parts"])
def test_the_datasets_tokenizer_is_that_of_any_part_that_has_it_still(
    hub: Any, source: str, single: dict[str, bytes], tmp_path: Path, place: str
) -> None:
    names = {"tokenizer.json", "tokenizer_config.json"}
    parts = tmp_path / place / "parts"
    place = str(tmp_path / place) if "/" not in place else place
    push_parts(source, tmp_path, 2, place)
    for part, lost in (("0-of-2", set()), ("1-of-2", names)):
        if "alice" in place:
            HfApi().delete_file(f"parts/{part}/tokenizer.json", "alice/parts", repo_type="dataset")
        else:
            (parts / part / "tokenizer.json").unlink()
        here = Path(shutil.copytree(place, tmp_path / f"here {part}")) if "here" in place else None
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            merge(here or place, here or tmp_path / part)
        assert single.keys() - contents(here or tmp_path / part).keys() == lost
        assert ["no part has the tokenizer.json any more" in str(each.message) for each in said] == [True] * bool(lost)


def test_a_job_that_finds_no_parts_any_more_finds_the_dataset_that_others_pushed(
    single: dict[str, bytes], far: Path, tmp_path: Path
) -> None:
    merged = str(tmp_path / "merged")
    slow = merge(far, part="0/2", push=merged, progress=overtaken(partial(merge, far, push=merged)))
    assert (slow.missing, slow.manifest) == (0, Manifest.load(merged))
    assert not (far / "parts").exists()
    assert merge(far, push=merged) == slow
    assert contents(Path(merged)).items() >= single.items()
    for elsewhere in ({}, {"push": str(tmp_path / "other")}):
        with pytest.raises(OutputError, match=f"far holds no parts any more, .*: the dataset lies at {merged}$"):
            merge(far, **elsewhere)


def test_a_merge_of_other_parts_is_refused_before_it_leaves_a_claim(source: str, far: Path, tmp_path: Path) -> None:
    short, out = str(tmp_path / "short"), tmp_path / "out"
    push_parts(source, tmp_path, 2, short, max_docs=9)
    assert merge(str(far), out, part="0/2").missing > 0
    with pytest.raises(OutputError, match="names shards that were merged from other parts"):
        merge(short, out, part="0/2", push=str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_where_a_limit_leaves_less_than_a_shard_the_bound_of_the_disk_has_room_for_those_of_the_parts(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "", "not read": "{"-" * 400}"}}\n' * 29)
    (tmp_path / "b.jsonl").write_text(f'{{"text": "{"-" * 400}"}}\n' * 30)
    push_parts(f"{tmp_path}/*.jsonl", tmp_path, 2, str(tmp_path / "far"), max_docs=30)
    assert merge(str(tmp_path / "far"), tmp_path / "out").manifest.shards[-1].bytes < 1_000
    with pytest.raises(DiskFull, match=r"has no room for 6 shards of 10\.1 kB: give 60768 bytes or more"):
        merge(str(tmp_path / "far"), tmp_path / "again", push=str(tmp_path / "new"), max_disk=30_000)


def test_what_a_killed_job_left_here_is_in_no_way_of_jobs_of_another_number(
    single: dict[str, bytes], far: Path, tmp_path: Path
) -> None:
    machine, merged = tmp_path / "machine", tmp_path / "merged"
    merge(str(far), machine, part="0/2", push=str(merged))
    left = machine / ".shardkit" / "merge" / "0-of-1.parts" / "parts" / "0-of-4"
    left.mkdir(parents=True)
    shutil.copy(far / "parts" / "0-of-4" / "p_train_000000.npy", left)
    shutil.copy(merged / "p_val_000000.npy", machine)
    here: list[list[str]] = []
    merge(str(far), machine, part="2/3", push=str(merged), progress=lambda *_: here.append(os.listdir(machine)))
    assert not left.exists()
    assert {name for names in here for name in names}.isdisjoint({"p_val_000000.npy"})
    for job in (0, 1):
        missing = merge(str(far), machine, part=f"{job}/3", push=str(merged)).missing
    assert missing == 0
    assert contents(merged).items() >= single.items()
    assert not folder_bytes(machine)


def test_parts_at_a_place_may_be_links_and_what_is_no_part_is_not_looked_at(
    single: dict[str, bytes], far: Path, tmp_path: Path
) -> None:
    (far / "parts" / "2-of-4").rename(tmp_path / "on another disk")
    (far / "parts" / "2-of-4").symlink_to(tmp_path / "on another disk")
    for name in ("0-of-0", "lost+found"):
        (far / "parts" / name).mkdir()
    merge(str(far), tmp_path / "out")
    assert contents(tmp_path / "out") == single


def test_a_part_that_was_pushed_from_a_folder_is_looked_for_where_it_is_with_out_too(
    source: str, far: Path, tmp_path: Path
) -> None:
    tokenize(source, tmp_path / "a", part="0/4", push=str(far), max_disk=60_000)
    with pytest.raises(OutputError, match=f"part 0/4 of .*a is at {far}: `shardkit merge {far} --out OUT`"):
        merge(tmp_path / "a", tmp_path / "out")


def test_half_a_dataset_in_a_folder_is_taken_for_no_whole_one(far: Path, tmp_path: Path) -> None:
    merge(str(far), tmp_path / "merging", part="0/2")
    merge(str(far), tmp_path / "out", part="0/2", push=str(tmp_path / "pushing"))
    for folder in (tmp_path / "merging", tmp_path / "pushing"):
        assert folder_bytes(folder)
        with pytest.raises(ManifestError, match=r"has no manifest\.json: the dataset is unfinished"):
            Manifest.of_folder(folder)
        with pytest.raises(HubError, match=r"is unfinished, its manifest\.json has not come yet"):
            pull(str(folder), tmp_path / "pulled")
