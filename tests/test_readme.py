"""README's blocks run from the top to the bottom in one folder, as a newcomer pastes them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer
from texts import write_parquet

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SETS_UP = ("make ", "pip ")  # the clone, not the folder
EIGHT_GPUS = "torchrun"
CARD = "---\nconfigs:\n- config_name: sample-10BT\n  data_files:\n  - split: train\n    path: sample/10BT/*\n---\n"


def steps() -> list[tuple[str, str]]:
    """Each line of a shell block, and each Python block, in README's order."""
    found = []
    for language, block in BLOCK.findall((ROOT / "README.md").read_text()):
        lines = [block] if language == "python" else [line for line in block.splitlines() if line.strip()]
        found += [(language, text) for text in lines if not text.startswith((*SETS_UP, EIGHT_GPUS))]
    return found


def for_this_machine(text: str, commit: str) -> str:
    """The step for the user `alice` of the local Hub, at a commit that there is, and for a CPU."""
    text = text.replace("you/", "alice/").replace("--revision SHA", f"--revision {commit}")
    text = text.replace("--model gpt2-124m", "--model nano --steps 2 --batch-tokens 128 --micro-batch 2")
    return text.replace("--run run --step 1200", "--run run --step 2")


@pytest.mark.timeout(1800)
def test_the_blocks_run_from_top_to_bottom_in_one_folder(served: HubServer, tmp_path: Path) -> None:
    texts = [f"Document number {number} says so. " * 40 for number in range(900)]
    corpus = write_parquet(tmp_path / "corpus.parquet", texts, rows=100).read_bytes()
    home = tmp_path / "home"
    (home / "books").mkdir(parents=True)
    (home / "books" / "a.parquet").write_bytes(corpus)
    for repo in ("HuggingFaceFW/fineweb-edu", "HuggingFaceFW/fineweb"):
        commit = served.seed_repo(repo, {"README.md": CARD.encode(), "sample/10BT/000_00000.parquet": corpus}).oid
    binaries = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": binaries, "PYTHONPATH": str(ROOT), "HF_TOKEN": "hf_write"}
    ran = []
    for language, text in steps():
        words = for_this_machine(text, commit)
        command = [sys.executable, "-c", words] if language == "python" else ["bash", "-c", f"set -e; {words}"]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stdout[-500:], done.stderr[-3000:])
        assert "Traceback" not in done.stderr, (words, done.stderr[-3000:])
        ran.append(language)
    assert ran.count("python") >= 4
    assert ran.count("sh") >= 12
