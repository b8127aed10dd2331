"""`plan` of a source: how many tokens it has, and what tokenizing it takes on this machine."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardkit.arguments import user_path
from shardkit.bars import TransferBar, shown
from shardkit.cores import available_cores
from shardkit.dataset.shards import TOKENS_PER_SHARD, longest_shard
from shardkit.errors import SourceError, UsageError
from shardkit.files import format_bytes, free_bytes
from shardkit.look.probe import MeasuredRun, SourceSample, measure_disk, measure_run, sample_source
from shardkit.look.result_lines import ShownAsLines
from shardkit.remote.uploader import TransferProgress
from shardkit.sources.open import open_source
from shardkit.sources.pipe import is_pipe
from shardkit.sources.source import Source
from shardkit.tokenization.tokenizer import Tokenizer

_NETWORK_BOUND = 0.1  # of the workers' time went by in waiting
_WORTH_SECONDS = 300  # of work: less is done before another machine is ready


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedStep:
    """A part of the work: the seconds that it takes by itself, while the others go on beside it."""

    step: str
    seconds: float
    how: str

    def __str__(self) -> str:
        return f"{self.step}: {self.seconds:,.1f} s ({self.how})"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizingPlan(ShownAsLines):
    """What `tokenize` of a source takes here. `tokens_error` is half of the 95 % interval of `tokens`; `seconds` are of
    the whole run on this machine; `bottleneck` is the slowest of `steps`; `disk_bytes` the most that the output takes
    (with `--push --max-disk` two shards are enough); `machines` how many like this one pay, with `--runner ray`.
    `measured` and `assumed` say what of this is known, and what is not."""

    source: str
    files: int
    source_bytes: int
    tokens: int
    tokens_error: int
    documents: int
    bytes_per_token: float
    shards: int
    dataset_bytes: int
    seconds: float
    bottleneck: str
    steps: tuple[PlannedStep, ...]
    disk_bytes: int
    disk_free_bytes: int
    memory_bytes: int
    machines: int
    dollars: float | None
    measured: tuple[str, ...]
    assumed: tuple[str, ...]


def plan_tokenizing(
    source: Any,
    *,
    out: str | os.PathLike[str] | None,
    tokenizer: str,
    shard_tokens: int | None,
    workers: int | None,
    upload_rate: int | None,
    dollars_per_hour: float | None,
    progress: TransferProgress | bool | None,
    **options: Any,
) -> TokenizingPlan:
    """Probe `source` and this machine for up to half a minute. Raises what `tokenize` does."""
    folder = user_path(out if out is not None else ".")
    while not folder.is_dir():
        folder = folder.absolute().parent
    if isinstance(source, str | os.PathLike) and is_pipe(os.path.expanduser(os.fspath(source))):
        raise UsageError(f"{source} is a pipe: a plan is of files (here, on the Hub, by URL)")
    opened = open_source(source, **options)
    size = sum(file.bytes for file in opened.files)
    if opened.texts is not None or (not size and any(file.is_remote for file in opened.files)):
        raise UsageError(
            f"{opened.info.id} has no files of a known size: a plan is of files (here, on the Hub, by URL)"
        )
    if not size:
        raise SourceError(f"{source} is empty: no byte is in its files ({opened.files[0].path})")
    if tokenizer == "chars":
        raise UsageError("--tokenizer chars is made of all the text, of which a sample knows nothing: plan with bytes")
    with shown(progress, lambda: TransferBar("plan")) as tell:
        tell = tell or (lambda *_: None)
        sample = sample_source(opened, Tokenizer(tokenizer), tell)
        run = measure_run(source, folder, tell, tokenizer=tokenizer, workers=workers, **options)
        disk_rate = measure_disk(folder)
    shard_tokens = shard_tokens or TOKENS_PER_SHARD
    facts = _Facts(opened, size, sample, run, disk_rate, workers or available_cores())
    return _plan(facts, Tokenizer(tokenizer), folder, shard_tokens, upload_rate, dollars_per_hour)


@dataclass(frozen=True, slots=True)
class _Facts:
    source: Source
    size: int
    sample: SourceSample
    run: MeasuredRun
    disk_rate: float
    workers: int


def _plan(
    facts: _Facts,
    tokenizer: Tokenizer,
    folder: Path,
    shard_tokens: int,
    upload_rate: int | None,
    dollars_per_hour: float | None,
) -> TokenizingPlan:
    sample, run, size = facts.sample, facts.run, facts.size
    tokens, error = (of(sample.tokens, size) for of in (sample.total, sample.error))
    if run.finished:
        tokens, error = float(run.tokens), 0.0
    shards = max(2, math.ceil(tokens / shard_tokens))
    dataset_bytes = round(tokens) * tokenizer.dtype.itemsize + 128 * shards
    steps = _steps(facts, tokens, dataset_bytes, upload_rate)
    whole = run.seconds if run.finished else run.start_seconds + tokens / max(run.tokens_per_second, 1e-9)
    beside = [step.seconds for step in steps if step.step in ("write", "upload")]
    seconds = max([whole, *beside])
    known = [step for step in steps if step.step != "fetch" or _is_network_bound(run)]  # else it was never at its limit
    slowest = max(known, key=lambda step: step.seconds)
    shared = sum(step.seconds for step in known if step.step in ("read", "encode"))
    alone = max(_WORTH_SECONDS, *(step.seconds for step in known if step.step not in ("read", "encode")))
    return TokenizingPlan(
        source=facts.source.info.id,
        files=len(facts.source.files),
        source_bytes=size,
        tokens=round(tokens),
        tokens_error=round(error),
        documents=run.documents if run.finished else round(sample.total(sample.documents, size)),
        bytes_per_token=round(sample.encoded_bytes / max(1, sample.encoded_tokens), 3),
        shards=shards,
        dataset_bytes=dataset_bytes,
        seconds=round(seconds, 1),
        bottleneck=slowest.step,
        steps=tuple(steps),
        disk_bytes=dataset_bytes + longest_shard(min(shard_tokens, round(tokens)), tokenizer.dtype),
        disk_free_bytes=free_bytes(folder),
        memory_bytes=run.memory_bytes,
        machines=max(1, math.ceil(shared / alone)),
        dollars=None if dollars_per_hour is None else round(seconds / 3600 * dollars_per_hour, 2),
        measured=tuple(_measured(facts)),
        assumed=tuple(_assumed(facts, upload_rate)),
    )


def _steps(facts: _Facts, tokens: float, dataset_bytes: int, upload_rate: int | None) -> list[PlannedStep]:
    """What reading, encoding and writing take by themselves; of the processor's work the measured run has the sum."""
    sample, run = facts.sample, facts.run
    text = sample.total(sample.text_bytes, facts.size)
    read = sample.read_seconds / max(1e-9, sum(sample.text_bytes)) * text
    encode = sample.encode_seconds / max(1, sample.encoded_tokens) * tokens
    both = (read + encode) or 1.0
    together = tokens / max(run.tokens_per_second, 1e-9) * (1 - (run.waited_share or 0.0))
    steps = [
        PlannedStep(step="read", seconds=together * read / both, how=f"by {facts.workers} workers"),
        PlannedStep(step="encode", seconds=together * encode / both, how=f"by {facts.workers} workers"),
        PlannedStep(
            step="write", seconds=dataset_bytes / facts.disk_rate, how=f"at {format_bytes(facts.disk_rate)}/s, measured"
        ),
    ]
    if run.network_rate:
        how = f"at {format_bytes(run.network_rate)}/s, " + ("measured" if _is_network_bound(run) else "or more")
        steps.insert(0, PlannedStep(step="fetch", seconds=facts.size / run.network_rate, how=how))
    if upload_rate:
        how = f"at {format_bytes(upload_rate)}/s, as stated"
        steps.append(PlannedStep(step="upload", seconds=dataset_bytes / upload_rate, how=how))
    return steps


def _is_network_bound(run: MeasuredRun) -> bool:
    return run.waited_share is not None and run.waited_share >= _NETWORK_BOUND


def _measured(facts: _Facts) -> list[str]:
    sample, run = facts.sample, facts.run
    where = "all over the source" if sample.reached_end else "its beginning: it is read front to back, or slowly"
    encoded = format_bytes(sample.encoded_bytes)
    said = [f"tokens: from {encoded} of text in {len(sample.weights)} chunks from {where}"]
    if run.finished:
        said = [f"tokens, documents and time, exactly: all of it was tokenized here, in {run.seconds:.1f} s"]
    else:
        said.append(
            f"rate: {run.tokens_per_second / 1e6:.2f} Mtok/s, a run of tokenize over the first {run.tokens:,} tokens "
            f"with {run.workers} workers, which took {run.start_seconds:.1f} s to get going"
        )
    return [*said, f"memory: the most that all processes of that run held, {format_bytes(run.memory_bytes)}"]


def _assumed(facts: _Facts, upload_rate: int | None) -> list[str]:
    said = ["nothing else runs on this machine"]
    if not facts.run.finished:
        said = ["the rest of the source is as fast as its beginning, and nothing else runs on this machine"]
    said += ["how the processor's time divides into read and encode is as on one core"]
    said += ["machines: each does as much as this one, and has five minutes of work; all shards go to one disk"]
    if facts.run.network_rate and not _is_network_bound(facts.run):
        said.append("the network never was the limit here, and is none elsewhere: nobody asked for all it has")
    if not upload_rate:
        said.append("no upload: state its rate with --upload-rate")
    return said
