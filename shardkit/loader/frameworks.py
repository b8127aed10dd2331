"""What training frameworks do to a loader that a `ShardLoader` cannot bear: it gives one rank's batches, in order.

docs/frameworks.md has a program for each framework; tests run them.
"""

from __future__ import annotations

from torch.utils.data import get_worker_info

from shardkit.errors import UsageError


def refuse_workers() -> None:
    """Raise `UsageError` in a DataLoader's worker: the loader that the training loop has would not move."""
    if get_worker_info() is not None:
        raise UsageError(
            "a ShardLoader reads in the process that trains: in DataLoader workers it would begin each epoch anew and "
            "lose its place at a resume. Give num_workers=0, or loop over the loader itself (for a GPU it reads ahead "
            "in a thread)"
        )


def refuse_second_sharing(caller: str) -> None:
    """Raise `UsageError` where the module `caller` is accelerate's: there a DataLoader around a loader was prepared.

    Of such a DataLoader each rank would get a part of one rank's part. It tells its dataset the epoch on every rank
    before it reads, which is what gives it away.
    """
    if caller.partition(".")[0] == "accelerate":
        raise UsageError(
            "accelerate was given a DataLoader around a ShardLoader, and would share out again what is this rank's "
            "part already: prepare model and optimizer only, and loop over the loader itself (transformers' Trainer: "
            "return it from get_train_dataloader), see docs/frameworks.md"
        )
