"""One rank of a run under torchrun, for test_loader_torchrun.py: reads batches, saves its state, writes its ledger.

loader_rank.py SHARDS RUN BATCH_SIZE STEPS SECONDS_A_STEP
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from shardkit.files import atomic_write
from shardkit.loader.loader import ShardLoader

SAVE_EVERY = 5


def main() -> None:
    shards, run, batch_size, steps, pause = sys.argv[1], Path(sys.argv[2]), *map(float, sys.argv[3:])
    span = int(os.environ["SPAN"]) if "SPAN" in os.environ else None
    dist.init_process_group("gloo")
    saved = run / "state.json"
    with ShardLoader.from_env(
        shards, batch_size=int(batch_size), seq_len=16, seed=3, ledger=run / "ledger", span=span
    ) as loader:
        if saved.exists():
            loader.load_state_dict(json.loads(saved.read_text()))
        (run / f"pid{loader.rank}").write_text(str(os.getpid()))
        dist.barrier()  # every rank has read the state before one writes it anew
        while loader.step < steps:
            inputs, _ = loader.next_batch()
            dist.all_reduce(inputs.sum())  # the ranks go in step, as in training
            if loader.step % SAVE_EVERY == 0 and loader.rank == 0:
                atomic_write(saved, json.dumps(loader.state_dict()))
            time.sleep(pause)
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
