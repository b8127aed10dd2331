"""README's blocks run from the top to the bottom in one folder, as a newcomer pastes them: into a shell, and those of
Python into one interpreter, as in a notebook."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest
from hub_server import HubServer
from texts import write_parquet

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SETS_UP = ("make ", "pip ")  # the clone, not the folder
EIGHT_GPUS = "torchrun"
NOTEBOOK = """
import json, sys
for line in sys.stdin:
    exec(compile(json.loads(line), "README.md", "exec"), {"__name__": "__main__"})
    print("the block has run", flush=True)
"""
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
    tiny = "--model nano --n-layer 1 --n-head 2 --n-embd 32 --steps 2 --batch-tokens 128 --micro-batch 2"
    text = text.replace("--model gpt2-124m", tiny)
    return text.replace("--run run --step 1200", "--run run --step 2")


class Notebook:
    """Python blocks, each with names of its own, in one process."""

    def __init__(self, **options: Any) -> None:
        self._errors = TemporaryFile("w+")  # noqa: SIM115 (closed by `end`)
        self._process = subprocess.Popen(
            [sys.executable, "-c", NOTEBOOK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            **options,
        )

    def run(self, block: str) -> bool:
        """Whether it ran to its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(block) + "\n")
        self._process.stdin.flush()
        return any(line == "the block has run\n" for line in self._process.stdout)

    def end(self) -> tuple[int, str]:
        """Its exit code, and what it said on stderr."""
        self._process.communicate()
        self._errors.seek(0)
        with self._errors:
            return self._process.returncode, self._errors.read()


@pytest.mark.timeout(1800)
def test_the_blocks_run_from_top_to_bottom_in_one_folder(served: HubServer, tmp_path: Path) -> None:
    texts = [f"Document number {number} says so. " * 40 for number in range(300)]
    corpus = write_parquet(tmp_path / "corpus.parquet", texts, rows=100).read_bytes()
    home = tmp_path / "home"
    (home / "books").mkdir(parents=True)
    (home / "books" / "a.parquet").write_bytes(corpus)
    for repo in ("HuggingFaceFW/fineweb-edu", "HuggingFaceFW/fineweb"):
        commit = served.seed_repo(repo, {"README.md": CARD.encode(), "sample/10BT/000_00000.parquet": corpus}).oid
    binaries = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": binaries, "PYTHONPATH": str(ROOT), "HF_TOKEN": "hf_write"}
    environment["OMP_NUM_THREADS"] = "1"
    notebook = Notebook(cwd=home, env=environment)
    ran = []
    for language, text in steps():
        words = for_this_machine(text, commit)
        ran.append(language)
        if language == "python":
            assert notebook.run(words), (words, notebook.end())
            continue
        done = subprocess.run(
            ["bash", "-c", f"set -e; {words}"], cwd=home, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, (words, done.stdout[-500:], done.stderr[-3000:])
        assert "Traceback" not in done.stderr, (words, done.stderr[-3000:])
    code, errors = notebook.end()
    assert code == 0, errors[-3000:]
    assert "Traceback" not in errors, errors[-3000:]
    assert ran.count("python") >= 4
    assert ran.count("sh") >= 12
