"""What reading FineWeb-Edu asks of the Hub: API calls and resolves, counted, against the limits of a free account.

    python -m benchmarks.count_sources

A real `tokenize` reads a repo of the local Hub with as many files as the dataset has, each of a few rows, so that the
number of files is right and their size is not. Calls for the content itself are none of the Hub's. In a real run each
file is resolved again once its address has run out; the rates tell how many files five minutes hold.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

SUPPORT = Path(__file__).resolve().parents[1] / "tests" / "support"
API_LIMIT, RESOLVE_LIMIT = 1_000, 3_000  # in five minutes, without a token
REPO = "alice/fineweb-edu"


class Dataset(NamedTuple):
    """A config of FineWeb-Edu: `folders` of `files` each, of `gigabytes` in all."""

    name: str
    pattern: str
    folders: int
    files: int
    gigabytes: float


DATASETS = (
    Dataset("sample-10BT", "sample/10BT/{file:03}_00000.parquet", 1, 14, 28.5),
    Dataset("default", "data/CC-MAIN-{folder:03}/train-{file:05}-of-00022.parquet", 110, 22, 5_200.0),
)


def counted(dataset: Dataset) -> Counter[str]:
    """The requests of a real run, by kind: api, resolve."""
    sys.path.insert(0, str(SUPPORT))
    server: Any = importlib.import_module("hub_server").HubServer
    content = io.BytesIO()
    pq.write_table(pa.table({"text": ["some words of text"] * 3}), content)
    paths = [
        dataset.pattern.format(folder=folder, file=file)
        for folder in range(dataset.folders)
        for file in range(dataset.files)
    ]
    parts = re.sub(r"\{[^}]*\}", "*", dataset.pattern)
    card = f'---\nconfigs:\n- {{config_name: {dataset.name}, data_files: "{parts}"}}\n---\n'
    with server() as hub, tempfile.TemporaryDirectory() as folder:
        hub.seed_repo(REPO, {"README.md": card.encode(), **dict.fromkeys(paths, content.getvalue())})
        hub.reset_log()
        command = ["tokenize", REPO, "--name", dataset.name, "--tokenizer", "bytes", "--val-shards", "0"]
        environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": f"{folder}/home"}
        subprocess.run(
            [sys.executable, "-m", "shardkit", *command, "--out", f"{folder}/out"],
            env=environment,
            check=True,
            capture_output=True,
        )
        return Counter(
            "resolve" if "/resolve/" in request.target else "api"
            for request in hub.log
            if "/_cdn/" not in request.target
        )


def main() -> None:
    """Count, and print one row for each dataset."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("| | files | API calls | resolves | resolves in 5 min at 100 MB/s | at 1,000 MB/s |")
    print("|---|---|---|---|---|---|")
    for dataset in DATASETS:
        found, files = counted(dataset), dataset.folders * dataset.files
        rates = [min(files, 300 * rate / (dataset.gigabytes * 1000 / files)) for rate in (100, 1_000)]
        resolves = [found["resolve"] / files * rate + 1 for rate in rates]
        print(
            f"| {dataset.name}, {dataset.gigabytes:,.1f} GB | {files:,} | {found['api']:,} | {found['resolve']:,} "
            f"| {resolves[0]:,.0f} | {resolves[1]:,.0f} |"
        )
    print(f"| limit without a token, in five minutes | | {API_LIMIT:,} | {RESOLVE_LIMIT:,} | | |")


if __name__ == "__main__":
    main()
