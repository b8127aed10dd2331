"""The parts of a checkpoint: a wrong or missing part is one clear line, whoever wrote the file."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_data import whole_state, write_dataset

from shardkit import ShardkitError
from trainer.checkpoint import list_checkpoints, newest_checkpoint, save_checkpoint
from trainer.checkpoint_parts import CheckpointError, check_parts
from trainer.train import train

SIZES = json.loads(whole_state(1)["model_config"])
TABLE = "transformer.wte.weight"


def sizes(**change: object) -> str:
    return json.dumps({**SIZES, **change})


WRONG: dict[str, list[Any]] = {
    "step": [-5, 1.0, True, "3", None, 10**30, torch.tensor(3)],
    "loss": [None, "1", torch.tensor(1.0)],
    "val_loss": ["1", 1],
    "last_val_loss": [[]],
    "best": [None, "1"],
    "world_size": [-1, None],
    "eot_id": [-1, 1.5, True],
    "fingerprint": [None, 5],
    "source": [b"bytes", None],
    "tokenizer": [7],
    "loader": [None, {}, "{", "[]", "[" * 100_000],
    "config": [None, "[1]", '{"stepz": 3}', '{"steps": "3"}', '{"lr": true}', '{"seed": null}'],
    "model_config": ["{}", "null", sizes(n_layer=-1), sizes(n_layer=10**9), sizes(vocab_size=10**12), sizes(x=1)],
    "model": [None, [], {}, {TABLE: "x"}, {TABLE: torch.zeros(2, 2)}, {TABLE: torch.zeros(1).expand(128, 128)}],
    "optimizers": [None, {}, [3]],
    "scaler": [None, {"scale": "x"}, {"scale": float("nan")}, []],
    "rng": [None, torch.zeros(5), torch.zeros(1, 3, dtype=torch.uint8)],
    "cuda_rng": [None, torch.ones(3)],
}


@pytest.mark.parametrize("part", WRONG)
def test_a_part_that_is_missing_or_cannot_be_is_named_in_one_line(part: str, tmp_path: Path) -> None:
    whole = whole_state(3)
    assert check_parts({"format": 1, **whole}, tmp_path)["step"] == 3
    for value in WRONG[part]:
        with pytest.raises(CheckpointError, match=part) as refused:
            check_parts({"format": 1, **whole, part: value}, tmp_path / "x.pt")
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 1200
    whole.pop(part)
    with pytest.raises(CheckpointError, match=f"its {part} is missing"):
        check_parts({"format": 1, **whole}, tmp_path / "x.pt")


@pytest.mark.parametrize("value", [None, [], 3, {}, {"format": 2}, {"format": True}, {"format": 1.0}])
def test_what_is_no_checkpoint_of_this_format_is_refused(value: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint of this trainer"):
        check_parts(value, tmp_path)


def wrong_moments(state: dict[str, Any]) -> None:
    state["optimizers"][0]["state"][0]["exp_avg"] = torch.zeros(3)


def no_moments_of_one(state: dict[str, Any]) -> None:
    del state["optimizers"][0]["state"][0]


def moments_without_a_step(state: dict[str, Any]) -> None:
    del state["optimizers"][0]["state"][1]["step"]


def text_for_moments(state: dict[str, Any]) -> None:
    state["optimizers"][0]["state"][1]["step"] = "5"


def no_groups(state: dict[str, Any]) -> None:
    del state["optimizers"][0]["param_groups"]


def groups_of_another_model(state: dict[str, Any]) -> None:
    state["optimizers"][0]["param_groups"][0]["params"] = [0]


def one_optimizer_too_many(state: dict[str, Any]) -> None:
    state["optimizers"] *= 2


def no_random_state(state: dict[str, Any]) -> None:
    state["rng"] = torch.full_like(state["rng"], 255)


def a_loader_of_nowhere(state: dict[str, Any]) -> None:
    state["loader"] = "{}"


def a_loader_beyond_every_number(state: dict[str, Any]) -> None:
    state["loader"] = json.dumps({**json.loads(state["loader"]), "epoch": 1 << 70})


def a_config_out_of_range(state: dict[str, Any]) -> None:
    state["config"] = json.dumps({**json.loads(state["config"]), "beta1": 2.0})


def a_config_of_another_model(state: dict[str, Any]) -> None:
    state["config"] = json.dumps({**json.loads(state["config"]), "n_embd": 64})


def a_config_of_no_number(state: dict[str, Any]) -> None:
    state["config"] = json.dumps({**json.loads(state["config"]), "lr": float("nan")})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, with its data beside it."""
    folder = tmp_path_factory.mktemp("run")
    write_dataset(folder / "data")
    shape = {"model": "nano", "n_layer": 1, "n_embd": 32, "seq_len": 32, "micro_batch": 2, "batch_tokens": 64}
    words = {"data": str(folder / "data"), "device": "cpu", "val_every": 0, "tokenizer": "bytes"}
    train({**words, **shape, "out": str(folder / "run"), "steps": 2})
    return folder


@pytest.mark.parametrize(
    "damage",
    [
        wrong_moments,
        no_moments_of_one,
        moments_without_a_step,
        text_for_moments,
        no_groups,
        groups_of_another_model,
        one_optimizer_too_many,
        no_random_state,
        a_loader_of_nowhere,
        a_loader_beyond_every_number,
        a_config_out_of_range,
        a_config_of_another_model,
        a_config_of_no_number,
    ],
)
def test_a_part_that_does_not_fit_the_run_is_one_line(
    damage: Callable[[dict[str, Any]], None], run: Path, tmp_path: Path
) -> None:
    state = torch.load(list_checkpoints(run / "run" / "checkpoints")[-1], weights_only=True)
    damage(state)
    torch.save(state, tmp_path / "damaged.pt")
    with pytest.raises(ShardkitError) as refused:
        train(
            {
                "resume": str(tmp_path / "damaged.pt"),
                "out": str(tmp_path / "out"),
                "data": str(run / "data"),
                "steps": 3,
            }
        )
    assert "\n" not in str(refused.value)


def test_settings_of_an_optimizer_are_the_configs_not_the_files(run: Path, tmp_path: Path) -> None:
    state = torch.load(list_checkpoints(run / "run" / "checkpoints")[-1], weights_only=True)
    for group in state["optimizers"][0]["param_groups"]:
        group["maximize"] = True  # away from the minimum
    torch.save(state, tmp_path / "odd.pt")
    words = {"data": str(run / "data"), "steps": 3}
    train({"resume": str(run / "run"), "out": str(tmp_path / "one"), **words})
    train({"resume": str(tmp_path / "odd.pt"), "out": str(tmp_path / "two"), **words})
    one, two = (torch.load(list_checkpoints(tmp_path / name / "checkpoints")[-1]) for name in ("one", "two"))
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])


def test_auto_passes_over_a_file_that_is_damaged_in_whatever_way(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, whole_state(1), keep=9)
    newest = save_checkpoint(tmp_path, whole_state(2), keep=9)
    data = newest.read_bytes()
    with zipfile.ZipFile(newest) as archive:
        first = archive.infolist()[0]
    central = data.index(b"PK\x01\x02")
    damages = {  # in the zip's directory
        "packed": (central + 10, struct.pack("<H", zipfile.ZIP_DEFLATED)),
        "packed as nobody does": (central + 10, struct.pack("<H", 77)),
        "large": (central + 24, struct.pack("<I", 1 << 31)),
        "elsewhere": (central + 42, struct.pack("<I", first.header_offset + 7)),
        "encrypted": (central + 8, struct.pack("<H", 1)),
        "newer": (central + 6, struct.pack("<H", 99)),
    }
    for name, (place, value) in damages.items():
        newest.write_bytes(data[:place] + value + data[place + len(value) :])
        said: list[str] = []
        assert newest_checkpoint(tmp_path, said.append) == tmp_path / "step_00000001.pt", name
        assert len(said) == 1
        assert said[0].startswith(f"warning: {newest} is ")
    torch.save({"format": 1, **whole_state(2), "step": -5}, newest)
    assert newest_checkpoint(tmp_path, said.append) == tmp_path / "step_00000001.pt"
    assert "its step is a number out of range" in said[-1]
