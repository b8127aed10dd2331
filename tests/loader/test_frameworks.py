"""The programs of docs/frameworks.md, stopped and continued: they are given what the loader alone gives."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from shardkit import ShardLoader, UsageError, merge_ledger, tokenize
from shardkit.errors import ShardkitWarning
from shardkit.loader.batch import DocumentBatch

ROOT = Path(__file__).parents[2]
_PROGRAM = re.compile(r"^## (.+?)\n.*?^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAMS: dict[str, str] = dict(_PROGRAM.findall((ROOT / "docs/frameworks.md").read_text()))
FOR_TORCHTITAN = PROGRAMS.pop("torchtitan")  # a class, for a package that is not here
# An epoch is 7 batches of 8 windows, and 3 windows are over: stopped at its end and in its middle, then in epoch 2.
STEPS = {1: (7, 17), 2: (5, 17)}
BY_EPOCHS = {  # in whole epochs, one where the others are stopped in the first
    "Trainer by epochs": PROGRAMS["transformers' Trainer"].replace(
        "max_steps=steps, save_steps=steps", 'num_train_epochs=-(-steps // 7), save_strategy="epoch"'
    ),
    "Lightning by epochs": PROGRAMS["Lightning"]
    .replace("max_steps=steps", "max_epochs=-(-steps // 7)")
    .replace("every_n_train_steps=1", "every_n_epochs=1"),
}
_REFUSED = """
import sys
from pathlib import Path
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from shardkit import ShardLoader, UsageError

data, run = sys.argv[1], Path(sys.argv[2])
accelerator = Accelerator()
loader = ShardLoader.from_env(data, batch_size=2, seq_len=16, format="dict")
assert accelerator.prepare(loader) is loader
model = GPT2LMHeadModel(GPT2Config(vocab_size=257, n_positions=16, n_embd=8, n_layer=1, n_head=1))
trainer = Trainer(model, TrainingArguments(str(run), max_steps=1, report_to="none"), train_dataset=loader)
ways = {
    "prepared": lambda: next(iter(accelerator.prepare(DataLoader(loader, batch_size=None)))),
    "trainer": trainer.train,
}
for name, way in ways.items():
    try:
        way()
    except UsageError as error:
        (run / f"{name}-{accelerator.process_index}").write_text(str(error))
assert loader.step == 0
"""


class _BaseDataLoader:
    """What torchtitan's has: the `Stateful` protocol, and a config of these two fields."""

    @dataclass(kw_only=True, slots=True)
    class Config:
        dataset: str = ""
        dataset_path: str | None = None


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 59 windows of 16."""
    folder = tmp_path_factory.mktemp("data") / "data"
    texts = ["".join(chr(97 + (number * place) % 26) for place in range(94)) for number in range(10)]
    tokenize(texts, folder, tokenizer="bytes", shard_tokens=300, val_shards=0, workers=1)
    return folder


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders in which every program was run up to each of `STEPS`, by ranks and name."""
    home = tmp_path_factory.mktemp("runs")
    (home / "programs.json").write_text(json.dumps({**PROGRAMS, **BY_EPOCHS, "Refused": _REFUSED}))
    for number in range(2):
        for process in [launch(home, data, ranks, STEPS[ranks][number]) for ranks in STEPS]:
            _, errors = process.communicate(timeout=800)
            assert process.returncode == 0, errors[-4000:]
    return home


def launch(home: Path, data: Path, ranks: int, steps: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    arguments = [home / "programs.json", data, home / str(ranks), steps]
    return subprocess.Popen(
        [*command, str(ROOT / "tests/support/framework_rank.py"), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def expected(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The running sums of the ledger of a loader alone."""
    folder = tmp_path_factory.mktemp("expected")
    with ShardLoader(data, batch_size=8, seq_len=16, ledger=folder) as loader:
        assert (loader.steps_per_epoch, loader.remainder_windows) == (7, 3)
        for _ in range(21):
            loader.next_batch()
    return dict(merge_ledger(folder).running)


def test_every_framework_has_a_program() -> None:
    assert list(PROGRAMS) == ["Plain PyTorch", "StatefulDataLoader", "accelerate", "transformers' Trainer", "Lightning"]


@pytest.mark.parametrize("ranks", STEPS)
@pytest.mark.parametrize("name", [*PROGRAMS, *BY_EPOCHS])
def test_a_framework_gives_what_the_loader_alone_gives_also_after_a_stop(
    name: str, ranks: int, runs: Path, expected: dict[int, str]
) -> None:
    ledger = merge_ledger(runs / str(ranks) / name / "ledger")
    steps = 21 if name in BY_EPOCHS else 17
    assert dict(ledger.running) == {end: total for end, total in expected.items() if end <= 8 * steps}


@pytest.mark.parametrize("ranks", STEPS)
@pytest.mark.parametrize("way", ["prepared", "trainer"])
def test_a_loader_in_a_data_loader_that_accelerate_prepared_is_refused(way: str, ranks: int, runs: Path) -> None:
    for rank in range(ranks):
        said = (runs / str(ranks) / "Refused" / f"{way}-{rank}").read_text()
        assert said.startswith("accelerate was given a DataLoader around a ShardLoader, and would share out again")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_torchtitans_trainer_could_build_save_and_load_the_class_of_the_docs(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a stand-in for the base class of torchtitan 0.3, whose `Config.build` calls the class with keywords."""
    stand_in = ModuleType("torchtitan.components.dataloader")
    stand_in.BaseDataLoader = _BaseDataLoader  # type: ignore[attr-defined]
    for name in ("torchtitan", "torchtitan.components"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    names: dict[str, Any] = {"__name__": "docs"}
    exec(compile(FOR_TORCHTITAN, "docs/frameworks.md", "exec"), names)
    ours = names["ShardkitDataLoader"]
    config = ours.Config(dataset=str(data))
    known = {"tokenizer": None, "seq_len": 16, "snapshot_every_n_steps": 1}
    ranks = [ours(config, dp_world_size=2, dp_rank=rank, local_batch_size=4, **known) for rank in range(2)]
    given = [[next(batches)[1] for _ in range(9)] for batches in map(iter, ranks)]  # into the second epoch
    alone = ours(config, dp_world_size=1, dp_rank=0, local_batch_size=8, **known)
    expected = iter(alone)
    for first, second in zip(*given, strict=True):
        inputs, targets = next(expected)
        assert torch.equal(torch.cat([first, second]), targets)
        assert inputs["input"].shape == (8, 16)
    dcp.save({"dataloader": ranks[0]}, checkpoint_id=tmp_path)
    later = ours(config, dp_world_size=1, dp_rank=0, local_batch_size=8, **known)
    dcp.load({"dataloader": later}, checkpoint_id=tmp_path)
    assert torch.equal(next(iter(later))[1], next(expected)[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("layout", ["contiguous", "packed"])
def test_a_dict_batch_trains_a_transformers_model_on_the_targets_of_the_loader(layout: str, data: Path) -> None:
    from transformers.loss.loss_utils import ForCausalLMLoss

    options: dict[str, Any] = {
        "batch_size": 3,
        "seq_len": 16,
        "layout": layout,
        "documents": True,
        "ignore_index": -100,
    }
    loader = ShardLoader[dict[str, torch.Tensor]](data, format="dict", **options)
    for inputs, targets, documents in ShardLoader[DocumentBatch](data, **options):
        batch = loader.next_batch()
        assert list(batch) == ["input_ids", "labels", "shift_labels", "position_ids"]
        assert torch.equal(batch["input_ids"], inputs)
        assert torch.equal(batch["position_ids"], documents.position_ids)
        logits = torch.randn(3, 16, 257)
        loss = ForCausalLMLoss(logits, batch["labels"], 257, shift_labels=batch["shift_labels"])
        assert torch.equal(loss, cross_entropy(logits.flatten(0, 1), targets.flatten()))
        loss = ForCausalLMLoss(logits, batch["labels"], 257)  # a model that does not know them
        assert torch.allclose(loss, cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, :-1].flatten()))


def test_another_format_is_refused(data: Path) -> None:
    with pytest.raises(UsageError, match="format is 'json': expected one of tuple, dict"):
        ShardLoader(data, batch_size=3, seq_len=16, format="json")


_MADE_BEFORE_FIT = """
import sys
from pathlib import Path

import lightning
import torch
import torch.distributed.checkpoint as dcp
from torch.nn.functional import cross_entropy

from shardkit import ShardLoader

data, run = sys.argv[1], Path(sys.argv[2])
loader = ShardLoader.from_env(data, batch_size=4, seq_len=16, ledger=run / "ledger")


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Embedding(257, 8), torch.nn.Linear(8, 257))

    def training_step(self, batch, batch_idx):
        return cross_entropy(self.layers(batch.inputs).flatten(0, 1), batch.targets.flatten())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


trainer = lightning.Trainer(
    max_steps=9,
    strategy="ddp",
    devices=2,
    accelerator="cpu",
    logger=False,
    enable_progress_bar=False,
    enable_checkpointing=False,
)
trainer.fit(Model(), loader)
assert (loader.rank, loader.world_size, loader.step) == (trainer.global_rank, 2, 9)
"""


def test_a_loader_that_was_made_before_lightning_started_its_processes_becomes_each_ranks(
    data: Path, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(_MADE_BEFORE_FIT)
    launched = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK")
    environment = {name: value for name, value in os.environ.items() if name not in launched}
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py", data, tmp_path],
        env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    with ShardLoader(data, batch_size=8, seq_len=16, ledger=tmp_path / "alone") as loader:
        for _ in range(9):
            loader.next_batch()
    ours, alone = merge_ledger(tmp_path / "ledger"), merge_ledger(tmp_path / "alone")
    assert ours.first_difference(alone) is None
    assert max(ours.running) == max(alone.running) == 72


def test_a_data_loader_that_would_make_batches_of_batches_is_warned_of(data: Path) -> None:
    with ShardLoader(data, batch_size=2, seq_len=16) as loader:
        for options in ({}, {"batch_size": 3}):
            with pytest.warns(ShardkitWarning, match="a dimension too many.*Give batch_size=None"):
                next(iter(DataLoader(loader, **options)))
        assert next(iter(DataLoader(loader, batch_size=None)))[0].shape == (2, 16)
        assert next(iter(loader))[0].shape == (2, 16)
