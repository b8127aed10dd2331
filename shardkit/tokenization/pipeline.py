"""`tokenize()`: chunks become tokens, tokens become shards, the manifest comes last.

Workers encode chunks in any order, and their tokens are put into shards in source order: any number of workers, any
engine, any interruption gives the same bytes. Memory and the number of chunks in flight are bounded. At any `kill -9`
the work on the shard that is being filled is lost, on those few that are being completed, and on files that are read
whole and wait for those before them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from shardkit.arguments import place_text, user_path, whole_numbers
from shardkit.bars import end_bar, shown
from shardkit.dataset.journal import Journal
from shardkit.dataset.known_files import SeenShards
from shardkit.dataset.manifest import Manifest
from shardkit.dataset.shards import TOKENS_PER_SHARD
from shardkit.errors import UsageError
from shardkit.remote.address import hint_at_folder
from shardkit.remote.pull import pull
from shardkit.sources.open import DEFAULT_SOURCE, open_source
from shardkit.sources.sample import SAMPLE_SHARD_TOKENS
from shardkit.tokenization import live_push, output_folder, pushed_run
from shardkit.tokenization.make_shards import make_shards
from shardkit.tokenization.output_folder import OwnFolder
from shardkit.tokenization.part_folders import begin_part, part_place
from shardkit.tokenization.progress_bar import ProgressBar
from shardkit.tokenization.run_checks import check_same_texts, warn_of_missing_splits
from shardkit.tokenization.run_progress import TokenizeProgress
from shardkit.tokenization.run_spec import RunSpec
from shardkit.tokenization.run_tokenizer import open_tokenizer
from shardkit.tokenization.runner import Runner
from shardkit.tokenization.start_runner import start_runner
from shardkit.tokenization.user_functions import Filter, Transform, columns_for
from shardkit.tokenization.worker import Job

DEFAULT_OUT = "edu_fineweb10B"
CHUNK_BYTES = 8 << 20
_MOST = {"workers": 1024, "shard_tokens": 1 << 40}


def tokenize(
    source: str | os.PathLike[str] | Iterable[Any] = DEFAULT_SOURCE,
    out: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    include: str | None = None,
    format: str | None = None,
    text_field: str = "text",
    columns: Sequence[str] | None = None,
    separator: str | None = None,
    skip_bad_rows: bool = False,
    where: str | None = None,
    sample: float | None = None,
    skip_duplicates: bool = False,
    tokenizer: str | os.PathLike[str] = "gpt2",
    eot: str | None = None,
    encoder: str = "auto",
    shard_tokens: int | None = None,
    val_shards: int | None = None,
    prefix: str | None = None,
    workers: int | None = None,
    max_docs: int | None = None,
    max_tokens: int | None = None,
    transform: Transform | None = None,
    filter: Filter | None = None,
    runner: str = "local",
    address: str | None = None,
    part: str | None = None,
    push: str | os.PathLike[str] | None = None,
    private: bool = False,
    max_disk: int | None = None,
    overwrite: bool = False,
    progress: Callable[[TokenizeProgress], None] | bool | None = True,
    chunk_bytes: int = CHUNK_BYTES,
) -> Manifest:
    """Tokenize `source` into `.npy` shards and a manifest in the folder `out`; return the manifest.

    `source` is a Hub dataset id (or the address of its page or files on the Hub), a local file, folder or glob, a list
    of these, a URL, `sample`, a pipe (`-`, of that `format`), or any iterable of texts (a `datasets.Dataset` too). A
    list is one of names if its first item is a `Path`, or if every item is a string that ends as a file does that is
    read (`.parquet`, `.csv`, ...; docs/tokenize.md). Of a folder, files of one kind are read and a warning names the
    others; a glob or a list reads any kinds together. `include`, a glob, means some of the files. A source must not
    change until the run ends (docs/tokenize.md says how that is found out).

    `where` ("score >= 3 and language == 'en'") and `sample` (0.1) choose among the rows: by columns, and by a hash of
    the file's name and the row's place in it, so that 0.1 is a part of 0.2. `skip_duplicates` leaves out documents with
    the same tokens as an earlier one.

    `tokenizer` is a tiktoken encoding, a `tokenizer.json`, a folder that holds one, a model on the Hub, `bytes`, or
    `chars`, the characters of the text; `eot` one of its tokens, to separate documents, in place of the end of text of
    its base model.

    The stream is `[EOT] + encode_ordinary(text)` for each row in order, cut into shards of exactly `shard_tokens`
    tokens (the last one shorter); the first `val_shards` shards (1) are the split `val`, the others `train`. A stream
    that would fill one shard only is cut in two, unless `val_shards` is given: its first 1 % is `val`. `max_docs` and
    `max_tokens` end the stream after that many. `transform(text) -> str | None` and `filter(text) -> bool` run on each
    document, in the workers. A run goes on only with functions that do the same: their code and all that they use are
    compared, or the version that `transform.shardkit_version = "1"` names. With `columns` (["title", "text"]) both get
    the row, a dict of these columns, and `filter` comes first; without a transform the document is the row's
    `text_field`. Values are as JSON has them: a time is its ISO 8601 text.

    `part`, "3/64", makes the fourth of 64 parts of the dataset, in `out/parts/3-of-64`: on any machine that sees the
    files, in any order. `merge` puts them together (docs/clusters.md). With `push` it goes to `parts/3-of-64` there.

    `push` sends each finished shard to that repo (as `shardkit.push` understands it) while the next is made. The same
    call in an empty folder, on another machine, goes on from the remote; not so for local files, of which a copy counts
    as another source. It ends with the whole dataset in `out` too: shards that are only at the remote are fetched. With
    `max_disk`, in bytes, no shard stays in `out`: each is deleted once the remote has acknowledged it, the tokenizer
    waits for room, and no manifest is written there. `runner` is `local`, or `ray` for the cluster at `address`.

    Killed or failed, the same call goes on from the last finished shard and ends with the same bytes. Called again on a
    finished folder, it checks the sizes and returns the manifest. A bar, or lines on stderr, say how far it is;
    `progress` may be False, or a function to call instead.

    Raises `UsageError`, `SourceError`, `TokenizerError`, `OutputError` or `WorkerError` (all `ShardkitError`). Warns
    (`ShardkitWarning`) if `val_shards` left nothing for a train split.

    >>> manifest = tokenize("sample", "out", shard_tokens=100_000)
    >>> manifest.dtype, manifest.shards[0].file, manifest.shards[0].tokens
    ('uint16', 'sample_val_000000.npy', 100000)
    """
    shard_tokens, workers, max_docs, max_tokens, max_disk = whole_numbers(
        _MOST, shard_tokens=shard_tokens, workers=workers, max_docs=max_docs, max_tokens=max_tokens, max_disk=max_disk
    )
    val_shards = whole_numbers(least=0, val_shards=val_shards)[0]
    if push is None and (max_disk is not None or private):
        raise UsageError("--max-disk and --private say how to push: give --push REPO too")
    if part is not None and skip_duplicates:
        raise UsageError(
            "--part and --skip-duplicates do not go together: no part knows the documents of the others; give one"
        )
    push = None if push is None else place_text(push)
    with ExitStack() as stack:
        tell = stack.enter_context(shown(progress, ProgressBar))
        opened = open_source(
            source,
            name=name,
            split=split,
            revision=revision,
            include=include,
            format=format,
            text_field=text_field,
            columns=columns_for(columns, text_field, transform, filter),
            separator=separator,
            skip_bad_rows=skip_bad_rows,
            where=where,
            sample=sample,
        )
        if shard_tokens is None:
            shard_tokens = SAMPLE_SHARD_TOKENS if isinstance(source, str) and source == "sample" else TOKENS_PER_SHARD
        is_default = isinstance(source, str) and source == DEFAULT_SOURCE
        directory = user_path(DEFAULT_OUT if out is None and is_default else output_folder.required(out))
        prefix = output_folder.check_prefix(prefix or output_folder.default_prefix(opened.info.id))
        read, cut = opened, None
        if part is not None:
            directory, cut, read = begin_part(directory, part, opened, chunk_bytes)
            push = None if push is None else part_place(push, cut.index, cut.count)
        folder = stack.enter_context(output_folder.claim(directory, overwrite=overwrite))
        limits = {"max_docs": max_docs, "max_tokens": max_tokens}
        running = start_runner(runner, address, workers, read, chunk_bytes, limits)
        stack.push(running)  # its processes start while this one loads the vocabulary
        spec = RunSpec(
            source=opened,
            tokenizer=open_tokenizer(tokenizer, eot, encoder, opened, **limits, transform=transform, filter=filter),
            prefix=prefix,
            tokens_per_shard=shard_tokens,
            skip_duplicates=bool(skip_duplicates),
            val_shards=1 if val_shards is None else val_shards,
            cuts_only_shard=val_shards is None,
            max_docs=max_docs,
            max_tokens=max_tokens,
            transform=transform,
            filter=filter,
            chunk_bytes=chunk_bytes,
        )
        spec = spec if cut is None else spec.for_part(cut, read)
        job = spec.job()
        stack.enter_context(hint_at_folder(push))  # from here on it is the place that may be refused
        remote_run = None if push is None else pushed_run.fetch_journal_for(push, directory, spec.identity())
        if overwrite:  # not before all that may be refused is known to be right
            if remote_run is not None:
                live_push.claim_before_overwrite(remote_run, directory, spec, private=private, max_disk=max_disk)
            output_folder.clear(directory)
            folder.keep_journal = False
        if push is None or remote_run is None:
            journal = Journal.open(directory, spec.identity())
            manifest = output_folder.finished(directory, journal, spec)
            check_same_texts(spec, journal, directory)
            if manifest is None:
                seen = SeenShards(directory)
                manifest = make_shards(spec, seen, journal, running, job, None, tell)
                manifest = output_folder.complete(manifest, seen, spec.tokenizer.file)
                if cut is None:
                    warn_of_missing_splits(manifest, spec)
            return manifest
        return _run_and_push(
            spec, folder, running, job, push, remote_run, private=private, max_disk=max_disk, tell=tell
        )


def _run_and_push(
    spec: RunSpec,
    folder: OwnFolder,
    runner: Runner,
    job: Job,
    repo: str,
    remote_run: pushed_run.RemoteRun,
    *,
    private: bool,
    max_disk: int | None,
    tell: Callable[[TokenizeProgress], None] | None,
) -> Manifest:
    """Make what is not made yet, here or at `repo`, and complete the dataset there; without `max_disk` also here."""
    directory = folder.directory
    live_push.adopt_journal(directory, remote_run, spec.identity())
    if remote_run.manifest is not None:
        spec.check_is_this_run(remote_run.manifest, repo)
        journal = Journal.open(directory, spec.identity())  # whose folder it is, also while shards come into it
        check_same_texts(spec, journal, directory, place=remote_run.remote.name)
        live_push.tidy_place(remote_run, journal.lines[0], is_part=spec.part is not None)
        if max_disk is None:
            return pull(repo, directory, progress=end_bar(tell))
        live_push.note_place(directory, remote_run.remote)
        return remote_run.manifest
    live_push.forget_lost(directory, remote_run)
    journal = Journal.open(directory, spec.identity())
    output_folder.own_manifest(directory, journal, spec)
    check_same_texts(spec, journal, directory)
    gone_on_with, seen = bool(journal.shards), SeenShards(directory)
    with (
        pushed_run.place_left_if_nothing_is_made(repo, journal, remote_run, folder),
        live_push.LivePush(spec, directory, journal, remote_run, private=private, max_disk=max_disk) as uploads,
    ):
        uploads.send_from(runner, repo)
        manifest = make_shards(spec, seen, journal, runner, job, uploads, tell)
        uploads.complete(manifest)
    if spec.part is None:
        warn_of_missing_splits(manifest, spec)
    if max_disk is not None:
        live_push.note_place(directory, remote_run.remote)
        return manifest
    if gone_on_with:  # shards of earlier sessions may be at the remote alone
        return pull(repo, directory, progress=end_bar(tell))
    return output_folder.complete(manifest, seen, spec.tokenizer.file)
