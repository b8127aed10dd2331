"""One rank of the programs in docs/frameworks.md, one after the other, for tests/loader/test_frameworks.py.

framework_rank.py PROGRAMS DATA RUNS STEPS

PROGRAMS is a JSON file of programs by name. Each is run up to STEPS in the folder RUNS/NAME: all in one process and one
process group, for importing the frameworks takes longer than all of the training.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist


def run(name: str, program: str, *args: str) -> None:
    """Run `program` as a script with `args`."""
    sys.argv = [name, *args]
    exec(compile(program, name, "exec"), {"__name__": "__main__"})
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState, PartialState

        for state in (AcceleratorState, GradientState, PartialState):
            state._shared_state.clear()


def main() -> None:
    programs, data, runs, steps = sys.argv[1:]
    dist.init_process_group("gloo")
    dist.init_process_group = dist.destroy_process_group = lambda *_, **__: None  # the programs have this one
    for name, program in json.loads(Path(programs).read_text()).items():
        folder = Path(runs) / name
        folder.mkdir(parents=True, exist_ok=True)
        dist.barrier()
        run(name, program, data, str(folder), steps)
    dist.barrier()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
    os._exit(0)  # not through the exits of what the frameworks leave
