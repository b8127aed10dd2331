"""`report`: a page that shows what a dataset, or a training run, is like."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shardkit.arguments import user_path, whole_numbers
from shardkit.bars import TransferBar, shown
from shardkit.errors import UsageError
from shardkit.look.dataset_page import DatasetPage
from shardkit.look.dataset_scan import scan_dataset
from shardkit.look.opened import opened, tokenizer_of
from shardkit.look.page import check_page, write_page
from shardkit.look.result_lines import ShownAsLines
from shardkit.look.run_log import is_run, read_run
from shardkit.look.run_page import run_sections
from shardkit.remote.address import is_remote
from shardkit.remote.uploader import TransferProgress


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetReport(ShownAsLines):
    """Where the page is, and its first figures: of `shards_read` shards, so many tokens and whole documents (None: no
    EOT id is known), copies of earlier ones among these, and different tokens."""

    page: str
    dataset: str
    shards_read: int
    tokens: int
    documents: int | None
    copies: int | None
    different_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RunReport(ShownAsLines):
    """Where the page is, the runs on it, and the steps, last loss and last validation loss of each."""

    page: str
    runs: tuple[str, ...]
    steps: tuple[int, ...]
    losses: tuple[float | None, ...]
    validation_losses: tuple[float | None, ...]


def report(
    place: str | os.PathLike[str],
    other: str | os.PathLike[str] | None = None,
    *,
    out: str | os.PathLike[str] = "report.html",
    sample: float | None = None,
    eot_id: int | None = None,
    progress: TransferProgress | bool | None = True,
) -> DatasetReport | RunReport:
    """Write a page about `place` to the file `out`: a dataset's folder, a remote (as `pull` takes it), or the folder of
    a training run, of which `other` is a second one to be drawn over it.

    The page is one file without scripts and opens nothing else. Of a dataset every token is read once, in memory that
    does not grow with it; of a remote a shard at a time is here. `sample` is a share of the shards to read instead,
    from all over the stream. Bare shards do not say which id begins a document: give `eot_id`. A bar says how
    far it is; `progress=False` silences it, and `progress(file, done_bytes, total_bytes)` is called in its place.

    Raises `UsageError`, `ManifestError`, `ShardError`, `HubError`, or `OutputError` where `out` is another file.

    >>> report("out", out="page.html").documents == Manifest.load("out").documents
    True
    """
    page = user_path(out)
    check_page(page)  # before an hour of reading
    runs = [user_path(run) for run in (place, other) if run is not None and not is_remote(run)]
    if runs and is_run(runs[0]):
        return _report_runs(page, runs)
    if other is not None:
        raise UsageError(f"{place} is no training run with a log.jsonl: two reports in one are of two runs")
    if sample is not None and not 0 < sample <= 1:
        raise UsageError(f"--sample is {sample}: expected a share of the shards, above 0 and up to 1")
    eot_id = whole_numbers(least=0, eot_id=eot_id)[0]
    with shown(progress, lambda: TransferBar("report")) as tell, opened(place) as dataset:
        manifest = dataset.manifest
        known = manifest.tokenizer.eot_id if manifest.tokenizer else eot_id
        if eot_id not in (None, known):
            raise UsageError(f"--eot-id is {eot_id}, {dataset.name} was made with {known}: leave it out")
        scan = scan_dataset(dataset, known, sample, tell)
        tokenizer, why_no_text = tokenizer_of(manifest)
        sections = DatasetPage(
            manifest=manifest,
            scan=scan,
            folder=None if is_remote(place) else manifest.directory,
            tokenizer=tokenizer,
            why_no_text=why_no_text,
        ).sections()
        write_page(page, f"Dataset {dataset.name}", sections)
        documents = scan.documents
        return DatasetReport(
            page=str(page),
            dataset=dataset.name,
            shards_read=len(scan.shards),
            tokens=scan.tokens,
            documents=None if documents is None else int(documents.lengths[1].sum()),
            copies=None if documents is None else documents.copies.documents,
            different_tokens=int(np.count_nonzero(scan.counts)),
        )


def _report_runs(page: Path, folders: list[Path]) -> RunReport:
    runs = [read_run(folder) for folder in folders]
    names = tuple(str(run.folder) for run in runs)
    write_page(page, f"Training run {' and '.join(names)}", run_sections(runs))
    return RunReport(
        page=str(page),
        runs=names,
        steps=tuple(run.steps for run in runs),
        losses=tuple(run.last("loss") for run in runs),
        validation_losses=tuple(run.last("val_loss") for run in runs),
    )
