"""What each rank runs under torchrun in the tests of several ranks: `trainer_worker.py MODE DATA OUT [WORDS]`."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any

import torch

import trainer.__main__
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


def _note_sent(note: Callable[[int], object]) -> None:
    """Have each broadcast from here on noted: the bytes of its tensor."""
    usual = torch.distributed.broadcast

    def noting(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        note(tensor.numel() * tensor.element_size())
        return usual(tensor, *args, **options)

    torch.distributed.broadcast = noting
    # broadcast_object_list looks its function up in its own module
    torch.distributed.distributed_c10d.broadcast = noting


def apart(_data: Path, out: Path) -> None:
    """The command line on nodes without a common disk: each `{rank}` in its words is this rank's number.

    What is broadcast is noted in `OUT/sent_RANK`: bytes, a line a tensor.
    """
    file = open(out / f"sent_{os.environ['RANK']}", "w", buffering=1)  # noqa: SIM115 (the process ends with it)
    _note_sent(lambda size: file.write(f"{size}\n"))
    main([word.replace("{rank}", os.environ["RANK"]) for word in sys.argv[4:]])


class _Left(BaseException):
    """A command line has ended with a code."""


def _left(code: int) -> None:
    raise _Left(code)


def scenes(file: Path, out: Path) -> None:
    """Command lines as in `apart`, one after the other in one group of ranks, which takes longer to start than all of
    them to run. FILE has their words by name; `OUT/NAME_RANK.json` gets the code that each rank left with, what it said
    and what was broadcast."""
    rank, group, sent = os.environ["RANK"], torch.distributed, list[int]()
    group.init_process_group("gloo")
    group.init_process_group = group.destroy_process_group = lambda *_, **__: None  # they have this one
    trainer.__main__._leave = _left
    _note_sent(sent.append)
    for name, words in json.loads(file.read_text()).items():
        sent.clear()
        group.barrier()
        code = None
        with redirect_stdout(StringIO()) as stdout, redirect_stderr(StringIO()) as stderr:
            try:
                main([word.replace("{rank}", rank) for word in words])
            except _Left as left:
                code = left.args[0]
        said = {"code": code, "stdout": stdout.getvalue(), "stderr": stderr.getvalue(), "sent": sent}
        (out / f"{name}_{rank}.json").write_text(json.dumps(said))
    group.barrier()
    _leave(0)


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


MODES = (measure, fail, apart, scenes, killed_in_update, killed_in_save)

if __name__ == "__main__":
    {mode.__name__: mode for mode in MODES}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
