"""The notebooks run from their first cell to their last, as they are, but for the parameters and for what is Colab's.

The machine of a notebook is a folder, and a kernel; a disconnect takes both away.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import nbformat
import pytest
from cache_data import until
from hub_data import make_dataset
from hub_server import HubServer
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from reference import shard_bytes
from texts import documents, write_parquet

import shardkit

DOCS = Path(__file__).parent.parent / "docs"
NOTEBOOKS = sorted(path.name for path in DOCS.glob("*.ipynb"))
COLABS = {"install", "colab"}  # tags of cells that need Colab, or the internet
SOURCE = "HuggingFaceFW/fineweb-edu"
CARD = "---\nconfigs:\n- config_name: sample-10BT\n  data_files:\n  - split: train\n    path: sample/10BT/*\n---\n"
SHARD_TOKENS = 4_000


def tags(cell: Any) -> set[str]:
    return set(cell.metadata.get("tags", ()))


def names_set_by(source: str) -> set[str]:
    return set(re.findall(r"^(\w+) = ", source, re.MULTILINE))


def prepared(name: str, **parameters: object) -> Any:
    """The notebook with these values in place of those of its first cell of code, which must set just these names."""
    book = nbformat.read(DOCS / name, as_version=4)
    first, *others = [cell for cell in book.cells if cell.cell_type == "code"]
    assert tags(first) == {"parameters"}
    assert names_set_by(first.source) == set(parameters)
    first.source = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    first.source += "\nimport os, pathlib\npathlib.Path('kernel.pid').write_text(str(os.getpid()))"
    book.cells = [first, *(cell for cell in others if not tags(cell) & COLABS)]
    return book


def run(book: Any, machine: Path) -> dict[str, str]:
    """Run it in the folder `machine`; by the id of each cell, what it printed and what it showed."""
    machine.mkdir(exist_ok=True)
    client = NotebookClient(book, timeout=800, resources={"metadata": {"path": str(machine)}})
    asyncio.run(client.async_execute())  # `execute` leaves the event loop that it makes in a thread open
    return {cell.id: "\n".join(map(said, cell.outputs)) for cell in book.cells}


def said(output: Any) -> str:
    return str(output.get("text") or output.get("data"))


@pytest.fixture(autouse=True)
def _commands(served: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are installed, first on the PATH; and nothing of the notebooks in the home folder."""
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        (tmp_path / "home" / name).mkdir(parents=True)
        monkeypatch.setenv(name, str(tmp_path / "home" / name))


@pytest.fixture
def texts(served: HubServer, tmp_path: Path) -> list[str | None]:
    """The documents of the dataset that the local Hub has under the name of FineWeb-Edu."""
    made: list[str | None] = [text for text in documents(400) if text]
    corpus = write_parquet(tmp_path / "corpus.parquet", made, rows=10)
    served.seed_repo(SOURCE, {"README.md": CARD.encode(), "sample/10BT/000_00000.parquet": corpus})
    return made


def tokenizing(place: str) -> Any:
    return prepared(
        "colab_tokenize.ipynb",
        SOURCE=SOURCE,
        NAME="sample-10BT",
        PLACE=place,
        PRIVATE=False,
        SHARD_TOKENS=SHARD_TOKENS,
        MAX_DISK=20 * (2 * SHARD_TOKENS + 128),
    )


def shards_at(hub: HubServer, repo: str) -> dict[str, bytes]:
    return {name: hub.file_bytes(repo, name) for name in hub.files(repo) if name.endswith(".npy")}


def test_after_a_disconnect_the_same_notebook_on_a_new_machine_goes_on_to_the_same_bytes(
    served: HubServer, texts: list[str | None], tmp_path: Path
) -> None:
    held = served.fault("hold", "POST", "/api/datasets/alice/.*commit", nth=4)
    lost = tmp_path / "lost"
    failed: list[BaseException] = []

    def connected() -> None:
        try:
            run(tokenizing("alice/edu"), lost)
        except (CellExecutionError, DeadKernelError) as error:
            failed.append(error)

    session = threading.Thread(target=connected)
    session.start()
    until(lambda: held.reached.is_set() or not session.is_alive(), seconds=800)
    assert held.reached.is_set(), failed
    arrived = set(shards_at(served, "alice/edu"))
    os.kill(int((lost / "kernel.pid").read_text()), signal.SIGKILL)
    session.join()
    held.gate.set()
    assert isinstance(failed[0], DeadKernelError)
    expected = shard_bytes(texts, SHARD_TOKENS, "edufineweb")
    assert set() < arrived < set(expected)
    served.reset_log()
    told = run(tokenizing("alice/edu"), tmp_path / "new")
    assert shards_at(served, "alice/edu") == expected
    assert served.count("PUT", "/_lfs/") <= len(expected) - len(arrived)  # what has arrived is not sent again
    assert f"{len(expected)} shards (val 1, train {len(expected) - 1})" in told["tokenize"]
    assert str(texts[0]).splitlines()[0] in told["look"]


def test_a_mounted_drive_is_a_place_too(texts: list[str | None], tmp_path: Path) -> None:
    drive = tmp_path / "drive" / "MyDrive" / "edu"
    drive.parent.mkdir(parents=True)
    run(tokenizing(str(drive)), tmp_path / "machine")
    found = {path.name: path.read_bytes() for path in drive.glob("*.npy")}
    assert found == shard_bytes(texts, SHARD_TOKENS, "edufineweb")


def training(place: str, steps: int) -> Any:
    return prepared(
        "colab_train.ipynb",
        DATA="alice/edu",
        SHARDS=(0, 3),
        PLACE=place,
        MODEL="nano",
        STEPS=steps,
        BATCH_TOKENS=512,
        MICRO_BATCH=8,
        SAVE_EVERY=2,
    )


def test_training_goes_on_from_what_has_arrived_on_a_new_machine(served: HubServer, tmp_path: Path) -> None:
    place = "alice/gpt2"
    shardkit.tokenize("sample", tmp_path / "made", shard_tokens=5_000, max_tokens=25_000, progress=False)
    shardkit.push(tmp_path / "made", "alice/edu", progress=False)
    lost = training(place, steps=2)
    lost.cells = lost.cells[: [cell.id for cell in lost.cells].index("train") + 1]
    first = run(lost, tmp_path / "lost")
    assert "starting anew" in first["train"]
    then = run(training(place, steps=4), tmp_path / "new")
    assert "resumed   after step 2" in then["train"]
    assert f"{place} has step_00000004" in then["train"]
    assert sorted(path.name for path in (tmp_path / "new" / "data").glob("*.npy")) == [
        "sample_train_000001.npy",
        "sample_train_000002.npy",
        "sample_val_000000.npy",
    ]
    assert "image/png" in then["losses"]
    assert "The" in then["sample"]


def test_a_training_that_failed_stops_the_notebook_there(served: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "made")
    shardkit.push(tmp_path / "made", "alice/edu", progress=False)
    with pytest.raises(CellExecutionError, match="it has not ended: the last line above says why"):
        run(training("nowhere", steps=0), tmp_path / "machine")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_as_it_is_before_it_ran(name: str) -> None:
    text = (DOCS / name).read_text(encoding="utf-8")
    book = nbformat.reads(text, as_version=4)
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    assert nbformat.writes(book) + "\n" == text  # no editor's own marks
    assert f"github/shardkit/shardkit/blob/main/docs/{name}" in book.cells[0].source
    assert [tags(cell) & COLABS for cell in cells[1:3]] == [{"install"}, {"colab"}]
    for cell in cells:
        assert max(map(len, cell.source.splitlines())) <= 120


def test_both_notebooks_are_there() -> None:
    assert NOTEBOOKS == ["colab_tokenize.ipynb", "colab_train.ipynb"]
