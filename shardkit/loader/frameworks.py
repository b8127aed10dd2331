"""Refuses what training frameworks may do to a loader and a `ShardLoader` does not allow, or warns of it.

It gives one rank's batches, in order: they can be neither read in workers nor divided again between ranks.
docs/frameworks.md has a program for each framework; tests run them.
"""

from __future__ import annotations

import warnings
from types import FrameType

from torch.utils.data import get_worker_info

from shardkit.errors import ShardkitWarning, UsageError


def refuse_workers() -> None:
    """Raise `UsageError` in a DataLoader's worker: its copy of the loader would move, the training loop's would not."""
    if get_worker_info() is not None:
        raise UsageError(
            "a ShardLoader reads in the process that trains: in DataLoader workers it would begin each epoch anew and "
            "lose its place at a resume. Give num_workers=0, or loop over the loader itself (for a GPU it reads ahead "
            "in a thread)"
        )


def refuse_second_sharing(caller: str) -> None:
    """Raise `UsageError` where the module `caller` is accelerate's: there a DataLoader around a loader was prepared.

    From such a DataLoader each rank would get a part of one rank's part. It calls its dataset's `set_epoch` before it
    reads, which is how it is recognised.
    """
    if caller.partition(".")[0] == "accelerate":
        raise UsageError(
            "accelerate was given a DataLoader around a ShardLoader, and would share out again what is this rank's "
            "part already: prepare model and optimizer only, and loop over the loader itself (transformers' Trainer: "
            "return it from get_train_dataloader), see docs/frameworks.md"
        )


def warn_of_batching(reader: FrameType) -> None:
    """Warn (`ShardkitWarning`) where the frame that reads a loader is a DataLoader's that makes batches: of batches.

    A DataLoader does so unless it has `batch_size=None`. Nothing that it is given says that it has batches already.
    """
    if reader.f_globals.get("__name__") != "torch.utils.data._utils.fetch":
        return
    if getattr(reader.f_locals.get("self"), "auto_collation", False):
        warnings.warn(
            "a DataLoader around a ShardLoader makes batches of its batches: inputs get a dimension too many, as (1, "
            "batch_size, seq_len). Give batch_size=None to the DataLoader, or loop over the loader itself",
            ShardkitWarning,
            stacklevel=2,
        )
