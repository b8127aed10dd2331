"""One rank of the programs in docs/frameworks.md, one after the other, for tests/loader/test_frameworks.py.

framework_rank.py PROGRAMS DATA RUNS PORTS STEPS

PROGRAMS is a JSON file of programs by name. Each is run up to STEPS in the folder RUNS/NAME: all in one process, for
importing the frameworks takes longer than all of the training. PORTS are as many as there are programs, by commas.
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
    if dist.is_initialized():
        dist.destroy_process_group()
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState, PartialState

        for state in (AcceleratorState, GradientState, PartialState):
            state._shared_state.clear()


def main() -> None:
    programs, data, runs, ports, steps = sys.argv[1:]
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)  # a process group for each program
    for (name, program), port in zip(json.loads(Path(programs).read_text()).items(), ports.split(","), strict=True):
        folder = Path(runs) / name
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["MASTER_PORT"] = port
        run(name, program, data, str(folder), steps)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
    sys.stdout.flush()
    os._exit(0)  # not through the exits of threads that the frameworks leave
