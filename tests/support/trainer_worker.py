"""What each rank runs under torchrun in the tests of several ranks: `trainer_worker.py MODE DATA OUT [WORDS]`."""

from __future__ import annotations

import os
import signal
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch

from trainer.__main__ import _leave, main
from trainer.config import make_config
from trainer.distributed import find_world, finish, start
from trainer.hellaswag import HellaSwagItem, score_hellaswag
from trainer.optim import Learner
from trainer.run import Run
from trainer.train import open_data

MICRO_BATCHES = (1, 2, 4)
LAYOUTS = ({"layout": "contiguous"}, {"layout": "packed", "document_mask": True})


def measure(data: Path, out: Path) -> None:
    """Into `out`: first gradient, validation loss and HellaSwag, for several micro-batches and layouts."""
    world = find_world("cpu")
    start(world)
    results = []
    for micro, layout in product(MICRO_BATCHES, LAYOUTS):
        given = {
            "data": str(data),
            "out": str(out),
            "model": "nano",
            "n_layer": 2,
            "n_head": 2,
            "n_embd": 32,
            "seq_len": 32,
            "micro_batch": micro,
            "batch_tokens": 512,
            "steps": 2,
            "val_tokens": 1024,
            "device": "cpu",
            "val_every": 1,
            **layout,
        }
        config = make_config(given)
        manifest = open_data(config, world)
        run = Run(config, world, manifest, None)
        run.learner.accumulate(run.loader.next_batch, run.micro_steps)
        items = [HellaSwagItem([[n, k, 3 * n % 200, 7] for k in range(4)], [1] * 4, n % 4) for n in range(21)]
        run.val_loss = None
        run._validate()
        gradient = torch.cat([p.grad.flatten() for p in run.learner.model.parameters() if p.grad is not None])
        results.append(
            {
                "micro": micro,
                "layout": layout["layout"],
                "gradient": gradient,
                "val_loss": run.last_val_loss,
                "hellaswag": score_hellaswag(run.learner.model, items, world, torch.float32),
            }
        )
        run.close()
    if world.is_main:
        torch.save(results, out / "results.pt")
    finish()
    _leave(0)


def fail(data: Path, out: Path) -> None:
    """The command line, in which rank 1 alone meets a bug in its second step while the others go on."""
    usual, steps = Learner.update, iter(range(500))

    def broken(self: Learner, rate: float) -> torch.Tensor:
        if self.world.rank == 1 and next(steps) == 1:
            raise ZeroDivisionError("a bug on rank 1")
        return usual(self, rate)

    Learner.update = broken
    words = ["--data", data, "--out", out, "--model", "nano", "--n-embd", "32", "--seq-len", "32", "--micro-batch", "2"]
    words += ["--batch-tokens", "256", "--steps", "500", "--device", "cpu", "--val-every", "0"]
    main(["train", *map(str, words)])


def apart(_data: Path, out: Path) -> None:
    """The command line on nodes without a common disk: each `{rank}` in its words is this rank's number.

    What is broadcast is noted in `OUT/sent_RANK`: bytes, a line a tensor.
    """
    rank, usual, sent = os.environ["RANK"], torch.distributed.broadcast, []

    def noting(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        sent.append(tensor.numel() * tensor.element_size())
        (out / f"sent_{rank}").write_text("\n".join(map(str, sent)))
        return usual(tensor, *args, **options)

    torch.distributed.broadcast = noting
    # broadcast_object_list looks its function up in its own module
    torch.distributed.distributed_c10d.broadcast = noting
    main([word.replace("{rank}", rank) for word in sys.argv[4:]])


def killed_in_update(_data: Path, step: Path) -> None:
    """The command line, killed before update `step` of the weights."""
    usual, steps = Learner.update, iter(range(1, int(str(step)) + 1))

    def dying(self: Learner, rate: float) -> torch.Tensor:
        if next(steps) == int(str(step)):
            os.kill(os.getpid(), signal.SIGKILL)
        return usual(self, rate)

    Learner.update = dying
    main(sys.argv[4:])


def killed_in_save(_data: Path, step: Path) -> None:
    """The command line, killed when the checkpoint of `step` is written but has not its name yet."""
    usual = os.replace

    def dying(source: Any, target: Any) -> None:
        if Path(target).name == f"step_{int(str(step)):08d}.pt":
            os.kill(os.getpid(), signal.SIGKILL)
        usual(source, target)

    os.replace = dying
    main(sys.argv[4:])


MODES = (measure, fail, apart, killed_in_update, killed_in_save)

if __name__ == "__main__":
    {mode.__name__: mode for mode in MODES}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
