"""Follows what each error of the Hub and of the disk advises, and finds that it helps.

A case breaks something, and the error's line must name its remedy; that remedy is applied, and the same command (or the
one that the line gives) must then do what was wanted. Where the remedy is somebody's act at the Hub (a larger plan, a
mended card), the server stops to refuse: that shows only that the command goes on then.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub.constants
import pytest
from disks import fill
from hub_data import make_dataset
from hub_server import Account, HubServer

from shardkit.errors import ShardkitError
from shardkit.remote.pull import pull
from shardkit.remote.push import push

REPO = "alice/demo"
FULL = "Private repository storage limit reached, please upgrade your plan to increase your private storage limit"


@dataclass
class Bench:
    """A dataset here, another of other tokens, a local Hub, and what the cases need of a test."""

    hub: HubServer
    patch: pytest.MonkeyPatch
    folder: Path
    data: Path = field(init=False)
    other: Path = field(init=False)

    def __post_init__(self) -> None:
        self.data, self.other, self.here = self.folder / "data", self.folder / "other", self.folder / "here"
        make_dataset(self.data)
        make_dataset(self.other, seed=1)

    def token(self, value: str) -> None:
        self.patch.setenv("HF_TOKEN", value)

    def fault(self, path: str, code: int, message: str = "injected", method: str = ".*") -> None:
        self.hub.fault("status", method, path, code=code, message=message, times=None)

    def push(self, **options: bool) -> None:
        push(self.data, REPO, **options)

    def pull(self, **options: str) -> None:
        pull(REPO, self.here, **options)

    def seed(self, folder: Path | None = None) -> None:
        self.hub.seed_repo(REPO, {path.name: path for path in (folder or self.data).iterdir()})

    def well(self) -> None:
        """No more faults of the server."""
        self.hub.faults.clear()


Step = Callable[[Bench], object]


@dataclass(frozen=True)
class Case:
    """`broken` makes `wanted` fail with a line that `advice` matches; after `remedy`, `then` must work."""

    name: str
    broken: Step
    wanted: Step
    advice: str
    remedy: Step
    then: Step | None = None


def nothing(_: Bench) -> None:
    pass


def on_the_hub(bench: Bench) -> None:
    """The dataset is there, and this account may read it alone."""
    bench.seed()
    bench.hub.repo(REPO).settings["private"] = True


def gate(bench: Bench) -> None:
    bench.seed()
    bench.hub.repo(REPO).gated = "auto"
    bench.token("hf_other")


def accept(bench: Bench) -> None:
    bench.hub.tokens["hf_other"] = Account("bob", orgs=("alice",))


def damage(bench: Bench) -> None:
    """The store serves other bytes of a shard, until it is sent again."""
    bench.push()
    bench.hub.fault("corrupt", "GET", "train_000001", times=None)


PUSH, PULL = Bench.push, Bench.pull
WRITE = r"with write access at https://huggingface.co/settings/tokens, then `hf auth login`, or set HF_TOKEN"
CASES = [
    Case(
        "no token",
        lambda b: b.patch.delenv("HF_TOKEN"),
        PUSH,
        "needs a token.*set HF_TOKEN",
        lambda b: b.token("hf_write"),
    ),
    Case(
        "a wrong token",
        lambda b: b.token("hf_wrong"),
        PUSH,
        f"not accept the token.*{WRITE}",
        lambda b: b.token("hf_write"),
    ),
    Case(
        "a read-only token",
        lambda b: b.token("hf_read"),
        PUSH,
        f"a read-only token.*{WRITE}",
        lambda b: b.token("hf_write"),
    ),
    Case(
        "another's repo",
        lambda b: b.token("hf_other"),
        PUSH,
        "or push to a repo of yours",
        nothing,
        lambda b: push(b.data, "bob/demo"),
    ),
    Case(
        "no room for the Hub's owner",
        lambda b: b.fault("/objects/batch", 403, FULL),
        PUSH,
        "make room.*run the same command again, it goes on",
        Bench.well,
    ),
    Case(
        "other words for that",
        lambda b: b.fault("/objects/batch", 403, "You have exceeded your private storage allowance."),
        PUSH,
        "make room",
        Bench.well,
    ),
    Case(
        "an account that is not confirmed",
        lambda b: b.fault("repos/create", 403, "Please verify your email address to create repos"),
        PUSH,
        "e-mail address confirmed",
        Bench.well,
    ),
    Case(
        "a plan that is too small",
        lambda b: b.fault("repos/create", 402, "Payment required"),
        PUSH,
        "push to a place of another kind",
        nothing,
        lambda b: push(b.data, str(b.folder / "far")),
    ),
    Case("a limit", lambda b: b.fault("repos/create", 429), PUSH, "run the same command later", Bench.well),
    Case(
        "a Hub that is down",
        lambda b: (b.seed(), b.fault("/resolve/", 503)),
        PULL,
        "run the same command later, it goes on",
        Bench.well,
    ),
    Case(
        "an unfinished dataset",
        lambda b: b.hub.seed_repo(REPO, {".shardkit/journal.jsonl": b"{}\n"}),
        PULL,
        r"run the push .* again to its end, then pull",
        lambda b: push(b.data, REPO, overwrite=True),
    ),
    Case(
        "another dataset there",
        lambda b: b.seed(b.other),
        PUSH,
        "--overwrite",
        nothing,
        lambda b: b.push(overwrite=True),
    ),
    Case("a public repo", Bench.seed, lambda b: b.push(private=True), "push without private=True", nothing, PUSH),
    Case("a name that is wrong", nothing, lambda b: pull("alice/dmo", b.here), "check the name", Bench.seed, PULL),
    Case(
        "a revision that is wrong",
        Bench.seed,
        lambda b: b.pull(revision="v9"),
        "check revision=",
        nothing,
        lambda b: b.pull(revision="main"),
    ),
    Case("conditions to accept", gate, PULL, "accept its conditions on its page", accept),
    Case(
        "offline mode",
        lambda b: (b.seed(), b.patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)),
        PULL,
        "unset HF_HUB_OFFLINE",
        lambda b: b.patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False),
    ),
    Case(
        "damaged bytes there",
        damage,
        PULL,
        "its owner mends it with `shardkit push --repair`",
        lambda b: (b.well(), b.push(repair=True)),
    ),
    Case(
        "another dataset here",
        lambda b: (b.seed(), make_dataset(b.here, seed=2)),
        PULL,
        "pull into another folder",
        nothing,
        lambda b: pull(REPO, b.folder / "new"),
    ),
    Case(
        "a file where a folder should be",
        lambda b: (b.seed(), b.here.write_text("x")),
        PULL,
        "choose another folder",
        nothing,
        lambda b: pull(REPO, b.folder / "new"),
    ),
    Case(
        "a firewall before the file server",
        lambda b: (b.seed(), b.fault("/_cdn/", 403)),
        PULL,
        "run the same command again, it goes on; .* a proxy or firewall",
        Bench.well,
    ),
    Case(
        "a card that the Hub refuses",
        lambda b: b.fault("/commit/", 400, "Invalid metadata in README.md."),
        PUSH,
        r"mend the lines between the two --- at the top of the README\.md",
        Bench.well,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_an_error_of_the_hub_advises_helps(
    case: Case, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(hub, monkeypatch, tmp_path)
    case.broken(bench)
    with pytest.raises(ShardkitError, match=case.advice) as caught:
        case.wanted(bench)
    assert "\n" not in str(caught.value)
    case.remedy(bench)
    (case.then or case.wanted)(bench)


def test_what_a_full_disk_advises_helps(hub: HubServer, small_disk: Path, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "data")
    push(tmp_path / "data", REPO)
    filler = fill(small_disk)
    with pytest.raises(ShardkitError, match=r"no room .* make room"):
        pull(REPO, small_disk / "here")
    with pytest.raises(ShardkitError, match=r"no room .*make room and run the same command again"):
        push(tmp_path / "data", str(small_disk / "far"))
    filler.unlink()
    assert pull(REPO, small_disk / "here") == manifest
    push(tmp_path / "data", str(small_disk / "far"))
    assert pull(str(small_disk / "far"), tmp_path / "back") == manifest


def test_what_a_read_only_disk_advises_helps(hub: HubServer, small_disk: Path, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "data")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    push(tmp_path / "data", REPO)
    with pytest.raises(ShardkitError, match="choose another folder"):
        pull(REPO, small_disk / "here")
    with pytest.raises(ShardkitError, match="choose another place"):
        push(tmp_path / "data", str(small_disk / "far"))
    assert pull(REPO, tmp_path / "another") == manifest
