"""docs/clusters.md: its job scripts, run by bash on this machine as Slurm would on many."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from reference import folder_bytes, shard_bytes
from source_data import lines

from shardkit import pull

ROOT = Path(__file__).parents[2]
TEXTS = [f"document {number} " * 9 for number in range(40)]


def command_in(folder: Path) -> dict[str, str]:
    """An environment in which there is a command `shardkit`."""
    (folder / "shardkit").write_text(f'#!/bin/sh\nexec {sys.executable} -m shardkit "$@"\n')
    (folder / "shardkit").chmod(0o755)
    return {"PYTHONPATH": str(ROOT), "PATH": f"{folder}:{os.environ['PATH']}"}


def test_the_job_arrays_of_the_docs_make_the_dataset(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "clusters.md").read_text()
    scripts = {
        name: re.search(rf"`{name}`:\n\n```bash\n(.*?)```", page, re.DOTALL)[1]  # type: ignore[index]
        for name in ("tokenize.sh", "merge.sh")
    }
    for number in range(3):
        (tmp_path / f"{number}.jsonl").write_bytes(lines(TEXTS[number * 10 : number * 10 + 10]))
    options = "'*.jsonl' --tokenizer bytes --shard-tokens 1000 --prefix p"
    environment = {**os.environ, **command_in(tmp_path)}
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


def test_the_machines_of_the_docs_that_share_no_disk_make_the_dataset(hub: Any, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "clusters.md").read_text()
    machine, merge = re.findall(r"```bash\n(.*?)```", page[page.index("`machine.sh`") :], re.DOTALL)[:2]
    hub.seed_repo("alice/corpus", {f"{n}.jsonl": lines(TEXTS[10 * n : 10 * n + 10]) for n in range(3)})
    options = "alice/corpus --tokenizer bytes --shard-tokens 1000 --prefix p"
    machine = machine.replace("HuggingFaceFW/fineweb-edu", options).replace("< 64", "< 3").replace("/64", "/3")
    environment = {**os.environ, **command_in(tmp_path), "HF_ENDPOINT": hub.endpoint}
    for number, (script, task) in enumerate([(machine, "1"), (machine, "0"), (merge, "1"), (merge, "0")]):
        (tmp_path / f"machine {number}").mkdir()
        command = ["bash", "-e", "-c", script.replace("you/", "alice/"), "script.sh", task, "2"]
        done = subprocess.run(
            command, cwd=tmp_path / f"machine {number}", env=environment, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stderr
    assert "missing: 0" in done.stdout
    pull("alice/edu", tmp_path / "edu")
    assert folder_bytes(tmp_path / "edu") == shard_bytes(TEXTS[:30], 1000, "p", tokenizer="bytes")
    assert not list(tmp_path.glob("machine */**/*.npy"))
