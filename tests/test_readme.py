"""README's blocks run from the top to the bottom in one folder, as a newcomer pastes them: each line into a shell,
Python into an interpreter. `tests/test_docs.py` runs the pages of `docs/`, and looks at what is not run here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cache_data import environment
from hub_server import HubServer
from pages import ROOT, for_this_machine, steps_of
from texts import write_parquet

CARD = "---\nconfigs:\n- config_name: sample-10BT\n  data_files:\n  - split: train\n    path: sample/10BT/*\n---\n"


@pytest.mark.timeout(1800)
def test_the_blocks_run_from_top_to_bottom_in_one_folder(served: HubServer, tmp_path: Path) -> None:
    texts = [f"Document number {number} says so. " * 40 for number in range(300)]
    corpus = write_parquet(tmp_path / "corpus.parquet", texts, rows=100).read_bytes()
    home = tmp_path / "home"
    home.mkdir()
    files = {"README.md": CARD.encode(), "sample/10BT/000_00000.parquet": corpus}
    served.seed_repo("HuggingFaceFW/fineweb-edu", files)
    binaries = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ours = {**os.environ, **environment(served.endpoint), "PATH": binaries, "OMP_NUM_THREADS": "1"}
    ran = []
    for step in steps_of("README.md")[0]:
        words = for_this_machine(step.text)
        command = ["bash", "-c", f"set -e; {words}"] if step.language == "sh" else [sys.executable, "-c", words]
        done = subprocess.run(command, cwd=home, env=ours, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stdout[-500:], done.stderr[-3000:])
        assert "Traceback" not in done.stderr, (words, done.stderr[-3000:])
        ran.append(step.language)
    assert ran.count("python") >= 1
    assert ran.count("sh") >= 9
    assert ROOT.joinpath("README.md").read_text().count("\n") < 130
