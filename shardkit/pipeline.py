"""`tokenize()`: chunks become tokens, tokens become shards, the manifest comes last.

Workers encode chunks in any order, the assembler takes them in source order, so a shard's place in the stream is a
prefix sum over chunk token counts: any number of workers, any engine, any interruption gives the same bytes. Memory and
the number of chunks in flight are bounded. Less than one shard of work is lost at any `kill -9`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import shardkit
from shardkit import output
from shardkit.assembler import Assembler, Limits, Plan, Progress, ShardkitWarning
from shardkit.errors import UsageError
from shardkit.files import atomic_write
from shardkit.functions import by_value, function_id
from shardkit.journal import WORK_DIR, Journal
from shardkit.manifest import Manifest, SourceInfo
from shardkit.runners import AUDIT_STRIDE, Filter, Job, Transform
from shardkit.sources import DEFAULT_SOURCE, Source, open_source
from shardkit.sources.sample import SAMPLE_SHARD_TOKENS
from shardkit.tokenizers import Tokenizer

DEFAULT_OUT = "edu_fineweb10B"
TOKENS_PER_SHARD = 100_000_000
CHUNK_BYTES = 8 << 20
_MOST = {"workers": 1024, "shard_tokens": 1 << 40}


def tokenize(
    source: str | os.PathLike[str] | Iterable[Any] = DEFAULT_SOURCE,
    out: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    text_field: str = "text",
    separator: str | None = None,
    skip_bad_rows: bool = False,
    tokenizer: str = "gpt2",
    encoder: str = "auto",
    shard_tokens: int | None = None,
    val_shards: int = 1,
    prefix: str | None = None,
    workers: int | None = None,
    max_docs: int | None = None,
    max_tokens: int | None = None,
    transform: Transform | None = None,
    filter: Filter | None = None,
    runner: str = "local",
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Manifest:
    """Tokenize `source` into `.npy` shards and a manifest in the folder `out`; return the manifest.

    `source` is a Hub dataset id, a local file, folder or glob, a URL, `sample`, or any iterable of texts (a
    `datasets.Dataset` too). The stream is `[EOT] + encode_ordinary(text)` for each row in order, cut into shards of
    exactly `shard_tokens` tokens (the last one shorter); the first `val_shards` shards are the split `val`, the others
    `train`. `max_docs` and `max_tokens` end the stream after that many. `transform(text) -> str | None` and
    `filter(text) -> bool` run on each document, in the workers.

    Killed or failed, the same call goes on from the last finished shard and ends with the same bytes. Called again on a
    finished folder, it checks the sizes and returns the manifest.

    Raises `UsageError`, `SourceError`, `TokenizerError`, `OutputError` or `WorkerError` (all `ShardkitError`).
    Warns (`ShardkitWarning`) if there were too few tokens for a train split.

    >>> manifest = tokenize("sample", "out", shard_tokens=100_000)  # doctest: +SKIP
    """
    _check_numbers(shard_tokens=shard_tokens, workers=workers, max_docs=max_docs, max_tokens=max_tokens)
    if val_shards < 0:
        raise UsageError(f"--val-shards is {val_shards}: expected 0 or more")
    opened = open_source(
        source, name=name, split=split, revision=revision, text_field=text_field, separator=separator,
        skip_bad_rows=skip_bad_rows,
    )  # fmt: skip
    if shard_tokens is None:
        shard_tokens = SAMPLE_SHARD_TOKENS if source == "sample" else TOKENS_PER_SHARD
    directory = Path(DEFAULT_OUT if out is None and source == DEFAULT_SOURCE else _required(out))
    prefix = output.check_prefix(prefix or output.default_prefix(opened.info.id))
    with ExitStack() as stack:
        stack.enter_context(output.claim(directory, overwrite=overwrite))
        running = stack.enter_context(_start_runner(runner, workers or available_cores()))
        loaded = Tokenizer(tokenizer, encoder=encoder)
        plan = Plan(
            directory=directory, prefix=prefix, tokens_per_shard=shard_tokens, val_shards=val_shards,
            dtype=loaded.dtype, eot_id=loaded.eot_id, limits=Limits(docs=max_docs, tokens=max_tokens),
        )  # fmt: skip
        functions = {"transform": transform, "filter": filter}
        journal = Journal.open(directory, _identity(opened, loaded, plan, functions, chunk_bytes))
        if (finished := output.finished(directory, journal)) is not None:
            return finished
        job = Job(
            tokenizer=tokenizer, encoder=encoder, fast_json=loaded.fast_json, read=opened.options,
            audit_stride=max(1, min(AUDIT_STRIDE, shard_tokens // 4096)),
            transform=by_value(transform), filter=by_value(filter),
        )  # fmt: skip
        manifest = _run(opened, loaded, plan, journal, running, job, chunk_bytes, progress)
        _warn_of_missing_splits(manifest, plan)
        return manifest


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(
    source: Source, tokenizer: Tokenizer, plan: Plan, journal: Journal, runner: Any, job: Job, chunk_bytes: int,
    progress: Callable[[Progress], None] | None,
) -> Manifest:  # fmt: skip
    started = time.time()
    resume = journal.resume
    chunks = source.chunks(resume.file, resume.start, resume.part, chunk_bytes=chunk_bytes)
    total = sum(file.bytes for file in source.files)
    done = sum(file.bytes for file in source.files[: resume.file])
    with Assembler(plan, journal, source.files) as assembler:
        for result in runner.run(job, chunks):
            assembler.take(result)
            done += result.chunk.weight
            if progress is not None:
                progress(assembler.progress(done, total, tuple(runner.process_ids)))
            if assembler.full:
                break
        files = assembler.finish()
    manifest = Manifest(
        shardkit_version=shardkit.__version__,
        tokenizer=tokenizer.info,
        dtype=plan.dtype.name,
        tokens_per_shard=plan.tokens_per_shard,
        encoder={"engine": tokenizer.engine, "version": tokenizer.engine_version},
        source=SourceInfo(**{**_fields(source.info), "files": files, "options": _stated_options(source, plan, job)}),
        shards=tuple(journal.shards),
    )
    manifest.save(plan.directory)
    summary = {
        "started": started, "first_read": assembler.first_read, "finished": time.time(),
        "tokens": assembler.session_tokens, "audited": assembler.audited,
    }  # fmt: skip
    atomic_write(plan.directory / WORK_DIR / "summary.json", json.dumps(summary) + "\n")
    return manifest


def _start_runner(runner: str, workers: int) -> Any:
    if runner == "local":
        from shardkit.runners.local import LocalRunner

        return LocalRunner(workers)
    raise UsageError(f"unknown runner {runner!r}: expected local")


def _identity(
    source: Source, tokenizer: Tokenizer, plan: Plan, functions: dict[str, Any], chunk_bytes: int
) -> dict[str, Any]:
    """What a run is: everything that decides its bytes. Workers and runner do not."""
    info = source.info
    files = json.dumps([[file.path, file.bytes] for file in source.files])
    return {
        "source": info.id, "config": info.config, "split": info.split, "revision": info.revision,
        "text field": info.text_field, "input files": hashlib.sha256(files.encode()).hexdigest(),
        "separator": source.options.separator, "skip bad rows": source.options.skip_bad_rows,
        "tokenizer": tokenizer.info.name, "vocabulary": tokenizer.info.ranks_sha256,
        "encoder": f"{tokenizer.engine} {tokenizer.engine_version}", "shard tokens": plan.tokens_per_shard,
        "val shards": plan.val_shards, "prefix": plan.prefix, "max docs": plan.limits.docs,
        "max tokens": plan.limits.tokens, "chunk bytes": chunk_bytes,
        **{name: function_id(function) for name, function in functions.items()},
    }  # fmt: skip


def _stated_options(source: Source, plan: Plan, job: Job) -> dict[str, Any]:
    """The options that a reader of the manifest needs in order to make it again, where they are not the default."""
    options = {
        "separator": source.options.separator, "skip_bad_rows": source.options.skip_bad_rows or None,
        "max_docs": plan.limits.docs, "max_tokens": plan.limits.tokens,
        "transform": None if job.transform is None else "python function",
        "filter": None if job.filter is None else "python function",
    }  # fmt: skip
    return {name: value for name, value in options.items() if value is not None}


def _warn_of_missing_splits(manifest: Manifest, plan: Plan) -> None:
    if len(manifest.shards) > plan.val_shards:
        return
    fitting = max(1, manifest.tokens // (plan.val_shards + 9))
    warnings.warn(
        f"{manifest.tokens:,} tokens filled {len(manifest.shards)} shards, so there is no train split: run again with "
        f"--shard-tokens {fitting} --overwrite for about {manifest.tokens // fitting} shards, or with --val-shards 0",
        ShardkitWarning,
        stacklevel=3,
    )


def _check_numbers(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if (most := _MOST.get(name)) is not None and isinstance(value, int) and value > most:
            raise UsageError(f"--{name.replace('_', '-')} is {value:,}: expected at most {most:,}")
        if value is not None and (not isinstance(value, int) or value < 1):
            raise UsageError(f"--{name.replace('_', '-')} is {value!r}: expected a whole number of at least 1")


def _required(out: str | os.PathLike[str] | None) -> str | os.PathLike[str]:
    if out is None:
        raise UsageError("no output folder: give --out DIR")
    return out


def _fields(info: SourceInfo) -> dict[str, Any]:
    return {name: getattr(info, name) for name in ("id", "config", "split", "revision", "text_field")}
