"""A package that is not installed is one line with the command that installs it, on every way that leads to it.

Each test looks at a process of its own in which the import fails, as it does where the package is not there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from trainer_data import LONG_SECONDS, ROOT, TINY, without_notes, write_dataset

from shardkit.errors import MissingPackage, ShardkitError, machine_fault
from shardkit.extras import PACKAGES, install

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BLOCKER = """
import os
from importlib.machinery import PathFinder

find = PathFinder.find_spec
hidden = os.environ["BLOCKED"].split()

@staticmethod
def find_spec(name, *rest, **named):
    return None if name.partition(".")[0] in hidden else find(name, *rest, **named)

PathFinder.find_spec = find_spec
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder)
    return folder


def run_without(package: str, folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    (folder / "blocker").mkdir(exist_ok=True)
    (folder / "blocker" / "sitecustomize.py").write_text(BLOCKER)
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"PYTHONPATH": f"{folder / 'blocker'}:{ROOT}", "BLOCKED": package, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONG_SECONDS,
        check=False,
    )


def said_without(package: str, folder: Path, *words: str | Path) -> str:
    """The one line of a command that ends for want of `package`."""
    done = run_without(package, folder, *words)
    said = without_notes(done.stderr)
    assert (done.returncode, said.count("\n")) == (1, 1), done.stdout + done.stderr
    return said.removeprefix("error: ").rstrip("\n")


TORCH = "torch, needed by ShardLoader and the trainer, is not installed: " + install("torch")


def test_without_torch_the_name_of_the_loader_says_what_to_install(tmp_path: Path) -> None:
    done = run_without("torch", tmp_path, "-c", "from shardkit import ShardLoader")
    assert done.stderr.splitlines()[-1] == "shardkit.errors.MissingPackage: " + TORCH
    code = "try:\n    from shardkit import ShardLoader\nexcept ImportError as error:\n    print(error)"
    assert run_without("torch", tmp_path, "-c", code).stdout == TORCH + "\n"


def test_without_torch_a_star_imports_what_there_is(tmp_path: Path) -> None:
    done = run_without(
        "torch", tmp_path, "-c", "from shardkit import *; print(tokenize.__name__, 'ShardLoader' in dir())"
    )
    assert done.stdout == "tokenize False\n", done.stderr


def test_where_torch_is_a_module_that_somebody_made_up_the_import_is_as_ever(tmp_path: Path) -> None:
    script = "import sys, types; sys.modules['torch'] = types.ModuleType('torch'); import shardkit; print('well')"
    assert run_without("matplotlib", tmp_path, "-c", script).stdout == "well\n"


@pytest.mark.parametrize("words", ["train --data d --out o", "eval o", "sample o", "export o x"])
def test_without_torch_every_command_of_the_trainer_is_one_line(tmp_path: Path, words: str) -> None:
    (tmp_path / "o").mkdir()
    assert said_without("torch", tmp_path, "-m", "trainer", *words.split()) == TORCH


def test_without_torch_the_commands_that_need_none_work(tmp_path: Path, data: Path) -> None:
    for words in (("-m", "shardkit", "verify", data), ("-m", "trainer", "--help")):
        assert run_without("torch", tmp_path, *words).returncode == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Path, str]:
    """The folder of `run`, a training without matplotlib and safetensors, and what it said."""
    folder = tmp_path_factory.mktemp("trained")
    words = ("train", "--data", data, "--out", "run", *TINY, "--steps", "2", "--val-every", "1")
    done = run_without("matplotlib safetensors", folder, "-m", "trainer", *words)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_without_matplotlib_training_says_once_that_there_is_no_picture(trained: tuple[Path, str]) -> None:
    said = " ".join(trained[1].split())
    assert said.count("no loss.png") == 1
    assert "note: no loss.png: matplotlib, needed by loss.png, is not installed: " + install("matplotlib") in said
    assert not (trained[0] / "run" / "loss.png").exists()


def test_without_safetensors_training_works_and_an_export_is_one_line(
    tmp_path: Path, trained: tuple[Path, str]
) -> None:
    expected = "safetensors, needed by an exported model, is not installed: " + install("safetensors")
    run = trained[0] / "run"
    assert said_without("safetensors", tmp_path, "-m", "trainer", "export", run, "out") == expected
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_bytes(b"")
    assert said_without("safetensors", tmp_path, "-m", "trainer", "sample", "out") == expected


PLACES = {"gcsfs": "gs://bucket/x", "s3fs": "s3://bucket/x"}
WAYS = """
import json, sys
from click.testing import CliRunner
from shardkit import ShardLoader
from shardkit.cli import main as shardkit
from trainer.__main__ import main as trainer

data, tiny, places = json.loads(sys.argv[1])
said = {}
for address in places:
    def use(command, *words):
        done = CliRunner().invoke(command, words, catch_exceptions=False)
        assert done.exit_code == 1, done.output
        return done.stderr
    said[address] = {
        "push": use(shardkit, "push", data, address),
        "pull": use(shardkit, "pull", address, "here"),
        "tokenize": use(shardkit, "tokenize", f"{address}.jsonl", "--out", "out", "--tokenizer", "bytes"),
        "resume": use(trainer, "train", "--data", data, "--out", "run", *tiny, "--resume", address),
    }
    try:
        ShardLoader(address, batch_size=1, seq_len=8)
    except ImportError as error:
        said[address]["loader"] = f"{type(error).__module__}.{type(error).__name__}: {error}"
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory, data: Path) -> dict[str, dict[str, str]]:
    """By address, what every way to it says where both drivers are missing: all in one process, for torch is slow."""
    given = json.dumps([str(data), TINY, [*PLACES.values()]])
    done = run_without(" ".join(PLACES), tmp_path_factory.mktemp("ways"), "-c", WAYS, given)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, str]] = json.loads(done.stdout)
    return {address: {way: without_notes(said) for way, said in ways.items()} for address, ways in found.items()}


@pytest.mark.parametrize(("package", "address"), PLACES.items())
def test_without_a_driver_every_way_to_the_place_names_that_driver(
    tmp_path: Path, data: Path, ways: dict[str, dict[str, str]], package: str, address: str
) -> None:
    said, advice = ways[address], f"is not installed: {install(package)}"
    line = f"{package}, needed by {address}, {advice}"
    assert said_without(package, tmp_path, "-m", "shardkit", "push", data, address) == line
    assert said["push"] == said["pull"] == f"error: {line}\n"
    assert said["tokenize"] == f"error: {package}, needed by {address}.jsonl, {advice}\n"
    assert said["resume"].startswith("error: ")
    assert said["resume"].endswith(f"{advice}\n")
    assert said["resume"].count("\n") == 1
    assert said["loader"] == f"shardkit.errors.MissingPackage: {line}"


def test_without_ray_its_runner_is_one_line(tmp_path: Path) -> None:
    words = ("tokenize", "sample", "--out", "out", "--tokenizer", "bytes", "--runner", "ray")
    expected = "ray, needed by --runner=ray, is not installed: " + install("ray")
    assert said_without("ray", tmp_path, "-m", "shardkit", *words) == expected


@pytest.mark.parametrize("package", ["tiktoken", "pyarrow", "psutil", "dill"])
def test_without_a_package_that_shardkit_requires_a_command_is_one_line(tmp_path: Path, package: str) -> None:
    said = said_without(package, tmp_path, "-m", "shardkit", "tokenize", "sample", "--out", "out")
    assert said == f"{package}, needed by shardkit, is not installed: {install(package)}"


def test_zstandard_is_not_needed_to_read_compressed_files(tmp_path: Path) -> None:
    import zstandard

    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(b'{"text": "a"}\n' * 9))
    words = ("tokenize", "a.jsonl.zst", "--out", "out", "--tokenizer", "bytes")
    assert run_without("zstandard", tmp_path, "-m", "shardkit", *words).returncode == 0


def test_what_is_advised_is_what_the_project_requires() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {name: ("", name) for name in project["dependencies"]}
    for extra, names in project["optional-dependencies"].items():  # no code of ours imports those of dev and docs
        required |= {name.partition(";")[0]: (extra, name) for name in names if extra not in ("dev", "docs")}
    ours = {package.requirement: package.extra for package in PACKAGES.values() if package.extra is not None}
    assert ours == {requirement: extra for requirement, (extra, _) in required.items()}


def test_no_text_of_ours_advises_a_name_that_pip_knows_only_after_a_release() -> None:
    texts = [*(ROOT / "shardkit").rglob("*.py"), *(ROOT / "trainer").rglob("*.py"), *ROOT.glob("*.md")]
    texts += (ROOT / "docs").glob("*.md")
    found = [path.name for path in texts if re.search(r"install[^\n]*shardkit\[", path.read_text(encoding="utf-8"))]
    assert found in ([], ["extras.py"])


def test_another_failed_import_is_a_bug() -> None:
    for error in (ModuleNotFoundError("No module named 'x'", name="x"), ImportError("cannot import name 'y'")):
        assert machine_fault(error) is None
    assert machine_fault(ModuleNotFoundError("torch.x", name="torch.x")) is None
    assert issubclass(MissingPackage, (ShardkitError, ImportError))
