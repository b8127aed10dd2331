"""A failed upload is reported and tried again, whatever ended it; the end of the run says what is at the remote."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from trainer_data import whole_state

from trainer import checkpoint_upload
from trainer.checkpoint import save_checkpoint
from trainer.checkpoint_upload import LAST_TRIES, Uploader


class Panic(BaseException):
    """As a client written in Rust raises it."""


def client_errors() -> Iterator[BaseException]:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    response = httpx2.Response(502, request=httpx2.Request("POST", "https://hub/commit?X-Amz-Signature=secret"))
    yield httpx2.ConnectError("connection refused")
    yield httpx2.ReadTimeout("timed out")
    yield HfHubHTTPError("502 Server Error: https://user:pw@hub/commit?X-Amz-Signature=secret", response=response)
    yield KeyError("what a client forgot")
    yield Panic("panicked at 'hf_abcdefgh12345678'\nnote: a backtrace")
    yield SystemExit(3)
    yield OSError("no route")


class Place:
    """A remote that raises what it is told to, then takes what comes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, errors: list[BaseException]) -> None:
        self.errors, self.has, self.tried = errors, list[str](), threading.Semaphore(0)
        monkeypatch.setattr(checkpoint_upload, "_push_hub", self.push)
        monkeypatch.setattr(checkpoint_upload, "FIRST_WAIT_SECONDS", 0.001)
        monkeypatch.setattr(checkpoint_upload, "LONGEST_WAIT_SECONDS", 0.001)

    def push(self, stage: Path, repo: str) -> None:
        self.tried.release()
        if self.errors:
            raise self.errors.pop(0)
        assert (stage / "checkpoints" / f"{stage.name}.pt").exists()
        self.has.append(stage.name)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[int], Path]:
    return lambda step: save_checkpoint(tmp_path / "run" / "checkpoints", whole_state(step), keep=1)


def test_no_error_of_any_client_ends_the_uploads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, save: Callable[[int], Path]
) -> None:
    errors = list(client_errors())
    place, said = Place(monkeypatch, list(errors)), list[str]()
    uploader = Uploader(tmp_path / "run", "user/repo", said.append)
    uploader.submit(save(1))
    for _ in range(len(errors) + 1):
        assert place.tried.acquire(timeout=60)
    uploader.submit(save(2))
    uploader.close()
    assert place.has == ["step_00000001", "step_00000002"]
    assert [line[:47] for line in said[: len(errors)]] == ["warning: step_00000001 was not pushed to user/r"] * len(
        errors
    )
    assert said[-1] == "pushed    user/repo has step_00000002"
    assert all(
        "\n" not in line and "secret" not in line and "pw@" not in line and "hf_abc" not in line for line in said
    )


def test_the_end_says_what_was_pushed_last_where_the_last_one_was_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, save: Callable[[int], Path]
) -> None:
    place, said = Place(monkeypatch, []), list[str]()
    uploader = Uploader(tmp_path / "run", "user/repo", said.append)
    uploader.submit(save(1))
    assert place.tried.acquire(timeout=60)
    place.errors += [OSError(f"down {number}") for number in range(99)]
    uploader.submit(save(2))
    uploader.close()
    assert said[-1] == "warning: user/repo has step_00000001, step_00000002 was not pushed"
    assert 99 - len(place.errors) >= LAST_TRIES
    assert not (tmp_path / "run" / ".upload").exists()


def test_a_newer_checkpoint_takes_the_place_of_one_that_could_not_be_sent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, save: Callable[[int], Path]
) -> None:
    place, said = Place(monkeypatch, [OSError("down")]), list[str]()
    monkeypatch.setattr(checkpoint_upload, "FIRST_WAIT_SECONDS", 3600.0)
    monkeypatch.setattr(checkpoint_upload, "LONGEST_WAIT_SECONDS", 3600.0)
    uploader = Uploader(tmp_path / "run", "user/repo", said.append)
    uploader.submit(save(1))
    assert place.tried.acquire(timeout=60)
    uploader.submit(save(2))
    uploader.close()
    assert place.has == ["step_00000002"]
    assert said[-1] == "pushed    user/repo has step_00000002"


def test_a_disk_without_room_for_the_copy_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, save: Callable[[int], Path]
) -> None:
    place, said = Place(monkeypatch, []), list[str]()
    uploader = Uploader(tmp_path / "run", "user/repo", said.append)
    path = save(1)
    (tmp_path / "run" / ".upload").write_text("in the way")
    uploader.submit(path)
    uploader.close()
    assert said[0].startswith("warning: step_00000001 is not pushed to user/repo: ")
    assert said[-1] == "warning: user/repo has no checkpoint of this run, step_00000001 was not pushed"
    assert not place.has
