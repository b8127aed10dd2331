"""What other systems lack is done without; the workflows, and what the project says of itself, hold together."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hub_server import HubServer
from reference import folder_bytes, shard_bytes
from texts import documents, write_parquet

from shardkit import ShardLoader, __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
LIKE_WINDOWS = Path(__file__).parent / "support" / "like_windows"
STREAM = """
import sys
import numpy as np
from shardkit import ShardLoader
with ShardLoader(sys.argv[1], batch_size=4, seq_len=64, span=1, cache="cache") as loader:
    np.save("batch.npy", loader.next_batch()[0].numpy())
"""


def test_what_windows_lacks_is_done_without(served: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = documents(400)
    served.seed_repo("alice/text", {"a.parquet": write_parquet(tmp_path / "a.parquet", texts, rows=10)})
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(LIKE_WINDOWS), os.environ["PYTHONPATH"]]))

    def use(*words: str) -> None:
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr

    options = ["--tokenizer", "bytes", "--shard-tokens", "150000", "--prefix", "p", "--workers", "2"]
    use("-m", "shardkit", "tokenize", "hf://datasets/alice/text/a.parquet", "--out", "out", *options)
    assert folder_bytes(tmp_path / "out") == shard_bytes(texts, 150_000, "p", tokenizer="bytes")
    use("-m", "shardkit", "push", "out", "alice/tokens")
    use("-c", STREAM, "alice/tokens")
    with ShardLoader(tmp_path / "out", batch_size=4, seq_len=64, span=1) as loader:
        assert np.array_equal(np.load(tmp_path / "batch.npy"), loader.next_batch()[0].numpy())


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSIONS = {"3.10", "3.11", "3.12", "3.13"}


def test_the_versions_of_python_that_are_named_are_tested_and_so_are_three_systems() -> None:
    named = {entry.rpartition(" ")[2] for entry in PROJECT["classifiers"] if ":: Python :: 3." in entry}
    runs = read(".github/workflows/test.yml")["jobs"]["test"]["strategy"]["matrix"]["include"]
    assert named == VERSIONS == {run["python"] for run in runs if run["os"].startswith("ubuntu")}
    assert PROJECT["requires-python"] == f">={min(VERSIONS, key=lambda text: int(text[2:]))}"
    smoke = read(".github/workflows/test.yml")["jobs"]["windows"]
    systems = {run["os"].partition("-")[0] for run in runs} | {smoke["runs-on"].partition("-")[0]}
    assert systems == {"ubuntu", "macos", "windows"}


def test_on_windows_at_least_every_command_of_the_demo_is_run() -> None:
    command = re.compile(r"\b(shardkit|trainer) (tokenize|info|verify|peek|push|pull|diff|train|sample|export)\b")
    demo = set(command.findall((ROOT / "Makefile").read_text().partition("\ndemo:")[2].partition("@echo")[0]))
    steps = read(".github/workflows/test.yml")["jobs"]["windows"]["steps"]
    assert len(demo) == 9
    assert demo <= set(command.findall("\n".join(step.get("run", "") for step in steps)))


def test_a_release_is_tested_built_checked_and_published_without_a_secret() -> None:
    text = (ROOT / ".github/workflows/release.yml").read_text()
    jobs = read(".github/workflows/release.yml")["jobs"]
    assert jobs["test"]["uses"] == "./.github/workflows/test.yml"
    assert "workflow_call" in read(".github/workflows/test.yml")[True]  # `on` is a truth value in YAML 1.1
    assert (jobs["build"]["needs"], jobs["publish"]["needs"]) == ("test", "build")
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in text
    check = next(step["run"] for step in jobs["build"]["steps"] if step.get("run", "").startswith("grep"))
    for tag, code in ((f"v{__version__}", 0), ("v0.0.1", 1)):
        words = ["bash", "-c", check]
        assert subprocess.run(words, cwd=ROOT, env={**os.environ, "GITHUB_REF_NAME": tag}).returncode == code


def test_the_version_is_said_alike_everywhere() -> None:
    assert read("CITATION.cff")["version"] == __version__
    assert read("CITATION.cff")["license"] == PROJECT["license"]
    heading = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading is not None
    assert re.fullmatch(rf"{re.escape(__version__)} \((unreleased|\d{{4}}-\d\d-\d\d)\)", heading[1])


def test_the_form_of_a_bug_asks_for_what_is_needed_by_commands_that_there_are() -> None:
    fields = {field["id"]: field for field in read(".github/ISSUE_TEMPLATE/bug.yml")["body"] if "id" in field}
    required = {name for name, field in fields.items() if field.get("validations", {}).get("required")}
    assert required == {"command", "output", "expected", "machine"}
    assert "shardkit --version" in fields["machine"]["attributes"]["placeholder"]
