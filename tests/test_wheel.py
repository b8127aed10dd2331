"""What is published: the source archive, the wheel made of it, and what the wheel does in a fresh environment that has
the packages which shardkit requires, and none of an extra."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import click
import pytest
from trainer_data import LONG_SECONDS, ROOT, without_notes

from shardkit import __version__
from shardkit.extras import PACKAGES, install

BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
EXTRAS = sorted(name for name, package in PACKAGES.items() if package.extra)
HIDES_EXTRAS = f"""
from importlib.machinery import PathFinder

find = PathFinder.find_spec

@staticmethod
def find_spec(name, *rest, **named):
    return None if name.partition(".")[0] in {EXTRAS} else find(name, *rest, **named)

PathFinder.find_spec = find_spec
"""


def build(kind: str, source: Path, out: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-c", BUILD, f"build_{kind}", str(out)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive of a clone, and the wheel of the source archive."""
    folder = tmp_path_factory.mktemp("published")
    clone = folder / "clone"
    skipped = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "demo-out")
    shutil.copytree(ROOT, clone, ignore=skipped)
    source = build("sdist", clone, folder)
    with tarfile.open(source) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    return source, build("wheel", folder / "unpacked" / source.name.removesuffix(".tar.gz"), folder)


def modules() -> set[str]:
    return {
        path.relative_to(ROOT).as_posix() for room in ("shardkit", "trainer") for path in (ROOT / room).rglob("*.py")
    }


def test_the_wheel_holds_the_two_packages_their_data_and_the_licence_and_nothing_else(
    archives: tuple[Path, Path],
) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        names = set(wheel.namelist())
    info = f"shardkit-{__version__}.dist-info"
    data = {"shardkit/py.typed", "shardkit/tokenization/splits.npz", "shardkit/tokenization/proofs.json"}
    about = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}
    assert names == modules() | data | {f"{info}/{name}" for name in about}
    assert archives[1].name == f"shardkit-{__version__}-py3-none-any.whl"


def test_the_source_archive_has_all_that_a_build_needs_and_no_tests(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]


def test_an_index_would_take_both(archives: tuple[Path, Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, archives)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def machine(archives: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment: the wheel, and the packages of this one but for those that only an extra brings."""
    folder = tmp_path_factory.mktemp("machine")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    words = ["install", "-q", "--no-deps", "--no-index", "--disable-pip-version-check", str(archives[1])]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *words], check=True)
    purelib = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    packages = Path(click.__file__).parents[1]
    (purelib / "of_the_tests.pth").write_text(f"{packages}\n")  # without what its own .pth files add: a clone
    (purelib / "sitecustomize.py").write_text(HIDES_EXTRAS)
    return python.parent


def use(machine: Path, folder: Path, command: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run(
        [machine / command, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONG_SECONDS,
    )


def test_the_wheel_works_in_an_empty_folder_without_any_extra(machine: Path, tmp_path: Path) -> None:
    assert use(machine, tmp_path, "shardkit", "--version").stdout == f"shardkit, version {__version__}\n"
    for words in (
        "tokenize sample --out out --tokenizer bytes --shard-tokens 200000 --max-docs 40 --json",
        "verify out",
        "push out ./far",
        "pull ./far in",
        "peek in",
        "diff out far",
    ):
        done = use(machine, tmp_path, "shardkit", *words.split())
        assert done.returncode == 0, (words, done.stderr)
        if words.endswith("--json"):
            assert json.loads(done.stdout.splitlines()[-1])["documents"] == 40
    code = "import shardkit; print(shardkit.__file__)"
    assert Path(use(machine, tmp_path, "python", "-c", code).stdout.strip()).is_relative_to(machine.parent)


@pytest.mark.parametrize(
    ("package", "command", "words"),
    [
        ("torch", "shardkit-train", "train --data out --out run"),
        ("ray", "shardkit", "tokenize sample --out ray --tokenizer bytes --runner ray"),
        ("s3fs", "shardkit", "pull s3://bucket/data in"),
    ],
)
def test_a_missing_extra_is_one_line_with_the_command_that_installs_it(
    machine: Path, tmp_path: Path, package: str, command: str, words: str
) -> None:
    done = use(machine, tmp_path, command, *words.split())
    said = without_notes(done.stderr)
    assert (done.returncode, said.count("\n")) == (1, 1), done.stderr
    assert said.startswith(f"error: {package}, needed by ")
    assert said.endswith(f"is not installed: {install(package)}\n")
