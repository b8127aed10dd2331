"""One rank of a run under torchrun, for the loader's tests: reads batches, saves its state, writes its ledger.

loader_rank.py SHARDS RUN BATCH_SIZE STEPS HOLD_AT

`{rank}` in SHARDS stands for the rank. At step HOLD_AT (0: never) rank 0 says so with the file RUN/held and waits to be
killed, before its next batch; the others have theirs and wait for it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from shardkit import ShardkitError
from shardkit.files import atomic_write
from shardkit.loader.loader import ShardLoader

SAVE_EVERY = 5


def main() -> None:
    shards, run = sys.argv[1].format(rank=os.environ["RANK"]), Path(sys.argv[2])
    batch_size, steps, hold_at = map(int, sys.argv[3:])
    span = int(os.environ["SPAN"]) if "SPAN" in os.environ else None
    dist.init_process_group("gloo")
    saved = run / "state.json"
    with ShardLoader.from_env(
        shards, batch_size=batch_size, seq_len=16, seed=3, ledger=run / "ledger", span=span
    ) as loader:
        if saved.exists():
            loader.load_state_dict(json.loads(saved.read_text()))
        (run / f"pid{loader.rank}").write_text(str(os.getpid()))
        dist.barrier()  # every rank has read the state before one writes it anew
        while loader.step < steps:
            while loader.rank == 0 and loader.step == hold_at > 0:
                (run / "held").touch()
                time.sleep(1)
            inputs, _ = loader.next_batch()
            dist.all_reduce(inputs.sum())  # the ranks go in step, as in training
            if loader.step % SAVE_EVERY == 0 and loader.rank == 0:
                atomic_write(saved, json.dumps(loader.state_dict()))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        main()
    except ShardkitError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(1)  # not through the group's exit, which waits for ranks that may be gone
