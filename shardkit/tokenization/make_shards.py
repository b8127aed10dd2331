"""From chunks to finished shards: the loop of a run."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from contextlib import nullcontext

from shardkit.dataset.journal import Journal
from shardkit.dataset.known_files import SeenShards
from shardkit.dataset.manifest import WORK_DIR, Manifest
from shardkit.files import atomic_write
from shardkit.sources.chunk_sizes import ChunkSizes
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.read_ahead import ReadAhead
from shardkit.sources.remote_bytes import traffic
from shardkit.tokenization.duplicates import Duplicates
from shardkit.tokenization.late_proof import LateProof
from shardkit.tokenization.live_push import LivePush
from shardkit.tokenization.ordered_writer import OrderedWriter
from shardkit.tokenization.piece_log import PieceLog
from shardkit.tokenization.run_progress import TokenizeProgress
from shardkit.tokenization.run_size import source_bytes
from shardkit.tokenization.run_spec import RunSpec
from shardkit.tokenization.runner import Runner
from shardkit.tokenization.worker import Job


def make_shards(
    spec: RunSpec,
    seen: SeenShards,
    journal: Journal,
    runner: Runner,
    job: Job,
    uploads: LivePush | None,
    tell: Callable[[TokenizeProgress], None] | None,
) -> Manifest:
    """Make the shards that are not made yet, and the manifest (not saved)."""
    started, before = time.time(), traffic()
    source, resume = spec.source, journal.resume
    job = dataclasses.replace(job, tokens_folder=str(seen.directory / WORK_DIR))
    total = sum(file.weight for file in source.files)
    done = sum(file.weight for file in source.files[: resume.file])
    late = LateProof(spec)
    unique = Duplicates(seen.directory, journal, spec.tokenizer.eot_id, uploads) if spec.skip_duplicates else None
    with (
        OrderedWriter(spec, seen, journal, runner, uploads) as writer,
        ReadAhead(shared=runner.shared) as ahead,
        PieceLog(seen.directory, journal) if spec.may_be_cut else nullcontext() as pieces,
    ):
        place = resume.file, resume.start, resume.part
        limited = source_bytes(source, max_docs=spec.max_docs, max_tokens=spec.max_tokens)
        bounded = uploads is not None and uploads.fills_this_disk  # where much of a whole file may wait for its place
        whole_from = None if bounded or spec.skip_duplicates else runner.whole_files_from
        sizes = ChunkSizes(
            least=spec.chunk_bytes, workers=runner.workers, unread=total - limited, whole_from=whole_from
        )
        here = ahead if runner.reads_ahead else None
        chunks = iter_chunks(source, *place, chunk_bytes=spec.chunk_bytes, ahead=here, sizes=sizes)
        over_network = runner.reads_ahead and any(file.is_remote for file in source.files)
        for result in runner.run(job, late.watched(chunks), over_network=over_network):
            if unique is not None:
                unique.leave_out(result, runner)
            writer.append_chunk(result)
            if pieces is not None:
                pieces.append(result)
            done += result.chunk.weight
            if tell is not None:
                fetched = traffic().since(before).bytes
                tell(writer.progress(done, total, runner.process_ids, fetched, time.time() - started))
            if writer.full:
                break
            if (changed := late.after(result.text_bytes)) is not None:
                spec = changed
                runner.change_job(dataclasses.replace(job, vocabulary=spec.tokenizer.vocabulary, encoder="fast"))
        files = writer.finish()
        if tell is not None and not writer.first_read:  # of a part without a row nothing was said
            tell(writer.progress(done, total, runner.process_ids, 0, 0.0))
    summary = {
        "started": started,
        "first_read": writer.first_read,
        "finished": time.time(),
        "tokens": writer.session_tokens,
        "audited": writer.audited,
    }
    atomic_write(seen.directory / WORK_DIR / "summary.json", json.dumps(summary) + "\n")
    return spec.manifest(journal.shards, files)
