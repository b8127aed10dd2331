"""docs/clusters.md: its job scripts, run by bash on this machine as Slurm would on many."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from reference import folder_bytes, shard_bytes
from source_data import lines

ROOT = Path(__file__).parents[2]
TEXTS = [f"document {number} " * 9 for number in range(40)]


def test_the_job_arrays_of_the_docs_make_the_dataset(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "clusters.md").read_text()
    scripts = {
        name: re.search(rf"`{name}`:\n\n```bash\n(.*?)```", page, re.DOTALL)[1]  # type: ignore[index]
        for name in ("tokenize.sh", "merge.sh")
    }
    for number in range(3):
        (tmp_path / f"{number}.jsonl").write_bytes(lines(TEXTS[number * 10 : number * 10 + 10]))
    options = "'*.jsonl' --tokenizer bytes --shard-tokens 1000 --prefix p"
    (tmp_path / "shardkit").write_text(f'#!/bin/sh\nexec {sys.executable} -m shardkit "$@"\n')
    (tmp_path / "shardkit").chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for name, script in scripts.items():
        count = int(re.search(r"_ID/([0-9]+)", script)[1])  # type: ignore[index]
        assert f"--array=0-{count - 1} " in script
        (tmp_path / name).write_text(
            script.replace(f"_ID/{count}", "_ID/2").replace("HuggingFaceFW/fineweb-edu", options)
        )
    for name in scripts:
        for task in ("1", "0"):
            slurm = {"SLURM_ARRAY_TASK_ID": task, "SLURM_CPUS_PER_TASK": "1"}
            done = subprocess.run(["bash", name], cwd=tmp_path, env=environment | slurm, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    assert "missing: 0" in done.stdout
    assert "shardkit push edu USER/NAME" in done.stdout
    assert folder_bytes(tmp_path / "edu") == shard_bytes(TEXTS[:30], 1000, "p", tokenizer="bytes")
    assert (tmp_path / "edu" / "manifest.json").exists()
