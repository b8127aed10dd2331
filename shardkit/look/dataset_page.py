"""The sections of a dataset's report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.manifest import WORK_DIR, Manifest
from shardkit.dataset.typed_json import parse_json
from shardkit.errors import ShardkitError
from shardkit.files import format_bytes, read_small_file
from shardkit.look.charts import Line, bar_chart, line_chart, share, short, table
from shardkit.look.dataset_scan import DatasetScan
from shardkit.look.document_figures import NEAR_EMPTY, DocumentCounter
from shardkit.look.info import encoder_words
from shardkit.look.page import cards, facts, note, quoted, section
from shardkit.look.peek import peek_document
from shardkit.tokenization.tokenizer import Tokenizer

_MOST_BARS = 60
_LONG = (1024, 2048, 8192, 32768)
_SHOWN_TOKENS, _SHOWN_CHARACTERS = 120, 600


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetPage:
    """What a dataset's report is made of; `folder` is the dataset's, where it is on this machine."""

    manifest: Manifest
    scan: DatasetScan
    folder: Path | None
    tokenizer: Tokenizer | None
    why_no_text: str | None

    def sections(self) -> Iterator[str]:
        """The page's sections, in their order."""
        yield self._what_it_is()
        yield self._shards()
        documents = self.scan.documents
        if documents is None:
            yield note("Nothing says which id begins a document: no documents and no layouts here. Give --eot-id.")
        else:
            yield self._lengths(documents)
            yield self._odd_documents(documents)
            yield self._layouts()
        yield self._tokens()
        yield self._making()

    def _what_it_is(self) -> str:
        manifest, source = self.manifest, self.manifest.source
        splits = ", ".join(f"{split} {len(shards):,}" for split, shards in manifest.splits.items())
        stated: dict[str, object] = {
            "tokens": manifest.tokens,
            "documents": manifest.documents or None,
            "shards": f"{splits} of {manifest.tokens_per_shard:,} tokens",
            "bytes": format_bytes(sum(shard.bytes for shard in manifest.shards)),
            "dtype": manifest.dtype,
            "tokenizer": manifest.tokenizer,
            "vocabulary's SHA-256": manifest.tokenizer.ranks_sha256 if manifest.tokenizer else None,
            "encoder": encoder_words(manifest),
            "fingerprint": manifest.fingerprint,
        }
        if source is not None:
            stated |= {
                "source": source.id,
                "config": source.config,
                "split": source.split,
                "revision": source.revision,
                "field": source.text_field,
                "options": ", ".join(f"{name} {str(value)[:200]}" for name, value in source.options.items()),
                "source files": len(source.files),
                "rows": sum(file.rows for file in source.files),
                "rows left out": sum(file.skipped for file in source.files),
                "duplicates among them": manifest.skipped_duplicates,
            }
        read = len(self.scan.shards)
        sampled = read < len(manifest.shards)
        said = f"All figures below are of {read:,} of {len(manifest.shards):,} shards." if sampled else ""
        files = source.files if source else ()
        rows = [(f.path, f.bytes, f.rows, f.documents, f.tokens) for f in files[:200]]
        more = f"<details><summary>Source files{' (the first 200)' if len(files) > 200 else ''}</summary>"
        more += table(("file", "bytes", "rows", "documents", "tokens"), rows) + "</details>"
        return section("What it is", facts(stated), note(said) if sampled else "", more if files else "")

    def _shards(self) -> str:
        shards = self.scan.shards
        each = -(-len(shards) // _MOST_BARS)
        groups = [shards[first : first + each] for first in range(0, len(shards), each)]
        labels = [f"{g[0].index}" if len(g) == 1 else f"{g[0].index} to {g[-1].index}" for g in groups]
        tokens = [float(sum(shard.tokens for shard in group)) for group in groups]
        title = "Tokens a shard" if each == 1 else f"Tokens of each {each:,} shards"
        charts = [bar_chart(title, labels, [("tokens", tokens)], label_name="shard")]
        if self.manifest.documents:
            means = [t / max(1, sum(s.documents for s in group)) for t, group in zip(tokens, groups, strict=True)]
            charts.append(bar_chart("Tokens a document, by shard", labels, [("tokens", means)], label_name="shard"))
        return section("Shards", cards(*charts))

    def _lengths(self, documents: DocumentCounter) -> str:
        lengths, counts = documents.lengths
        total, tokens = int(counts.sum()), int((lengths * counts).sum())
        if not total:
            return section("Documents", note("No whole document."))
        edges = [0, 1, *(2**power for power in range(1, 41) if 2 ** (power - 1) <= lengths[-1])]
        places = np.searchsorted(lengths, edges)
        ranges = list(zip(edges, edges[1:], places, places[1:], strict=False))
        labels = [f"{short(low)}" for low, *_ in ranges]
        of_all = [float(counts[a:b].sum()) / total for *_, a, b in ranges]
        of_tokens = [float((lengths * counts)[a:b].sum()) / max(1, tokens) for *_, a, b in ranges]
        cumulated = np.cumsum(counts)
        levels = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
        quantiles = [(f"{level:.0%}", int(lengths[np.searchsorted(cumulated, level * total)])) for level in levels]
        long = [
            (f"more than {limit:,}", int(counts[lengths > limit].sum()), share_of(lengths, counts, limit, tokens))
            for limit in _LONG
        ]
        chart = bar_chart(
            "Document lengths",
            labels,
            [("of the documents", of_all), ("of the tokens", of_tokens)],
            words=share,
            label_name="tokens, from this up to the next",
        )
        said = facts({"documents": total, "mean": f"{tokens / total:,.1f} tokens"})
        tables = table(("of all documents", "have up to so many tokens"), quantiles)
        tables += table(("tokens", "documents", "share of all tokens"), long)
        return section("Documents", said, cards(chart, f"<figure>{tables}</figure>"))

    def _odd_documents(self, documents: DocumentCounter) -> str:
        lengths, counts = documents.lengths
        empty, few = int(counts[lengths == 0].sum()), int(counts[(lengths > 0) & (lengths <= NEAR_EMPTY)].sum())
        copies, looked = documents.copies, documents.repetition
        near = note(f"{empty:,} documents have no token, {few:,} have 1 to {NEAR_EMPTY}.")
        parts = ["<h3>Near-empty</h3>", near]
        parts += [self._example(f"document {number:,}", ids) for number, ids in documents.near_empty]
        about = "about " if copies.thinned > 1 else ""
        many = f"{about}{copies.documents:,} documents are copies of an earlier one, empty ones not counted"
        parts += ["<h3>Exact copies</h3>", note(f"{many}: {share(copies.tokens_share)} of the tokens.")]
        parts += [self._peeked(f"document {number:,}, {count:,} times", number) for count, number in copies.examples]
        bins = np.histogram(looked, bins=10, range=(0, 1))[0]
        chart = bar_chart(
            "Repetition",
            [f"{number * 10}" for number in range(10)],
            [("documents", [float(count) for count in bins])],
            label_name="% of its 8-token runs that stood in it before",
        )
        said = note(f"Of {len(looked):,} documents of 64 tokens and more, from all over the stream.")
        parts += ["<h3>Repetitive</h3>", said, cards(chart)]
        for repeated, number, ids in sorted(documents.repetitive, key=lambda found: -found[0]):
            if repeated > 0.2:
                parts.append(self._example(f"document {-number:,}, {share(repeated)} repeated", ids))
        return section("Odd documents", *parts)

    def _layouts(self) -> str:
        figures = self.scan.layouts
        crossed = [f for f in figures if f.crossed is not None]
        chart = bar_chart(
            "Windows that cross documents",
            [f"{f.seq_len:,}" for f in crossed],
            [("windows", [(f.crossed or 0) / max(1, f.rows) for f in crossed])],
            words=share,
            label_name="tokens of a window (layout contiguous)",
        )
        rows = [
            (
                f.layout,
                f.seq_len,
                f.rows,
                share(f.pad),
                share(f.crop),
                "" if f.splits is None else f.splits,
                "" if f.crossed is None else share(f.crossed / max(1, f.rows)),
            )
            for f in figures
        ]
        head = ("layout", "tokens a row", "rows", "padded", "cropped", "documents split", "rows that cross documents")
        whole = "" if len(self.scan.shards) == len(self.manifest.shards) else ", the shards that were read put together"
        said = note(f"Of split {self.scan.split}{whole}: as ShardLoader lays out its rows.")
        return section("Layouts", said, cards(chart, f"<figure>{table(head, rows)}</figure>"))

    def _tokens(self) -> str:
        counts, scan = self.scan.counts, self.scan
        order = np.argsort(-counts, kind="stable")
        used = int(np.count_nonzero(counts))
        ranks = _ranks(used)
        at_ranks = [(rank, int(order[rank - 1])) for rank in ranks]
        labels = [f"rank {rank:,}, {self._token(number)}: {counts[number]:,} times" for rank, number in at_ranks]
        points = [(float(rank), float(counts[number])) for rank, number in at_ranks]
        zipf = [(x, points[0][1] / x) for x, _ in points] if points else []
        lines = [Line(name="tokens", points=points, labels=labels), Line(name="1/rank", points=zipf, dashed=True)]
        chart = line_chart("Token frequencies", lines, x_name="rank", log_x=True, log_y=True)
        top = [
            (self._token(int(number)), int(number), int(counts[number]), share(counts[number] / max(1, scan.tokens)))
            for number in order[: min(25, used)]
        ]
        size = len(counts)
        known = self.manifest.tokenizer is not None
        stated: dict[str, object] = {
            "different tokens": used,
            "never used": f"{size - used:,} of {size:,} ids ({share((size - used) / size)})" if known else None,
            "ids beyond the vocabulary": scan.beyond or None,
            "bytes a token": self._bytes_a_token(),
        }
        shown = f"<figure>{table(('token', 'id', 'times', 'share'), top)}</figure>"
        return section("Tokens", facts(stated), cards(chart, shown))

    def _making(self) -> str:
        if self.folder is None:
            return ""
        try:
            summary = parse_json(read_small_file(self.folder / WORK_DIR / "summary.json", most=1 << 20))
            began, first, ended = (float(summary[name] or 0) for name in ("started", "first_read", "finished"))
            tokens, audited = int(summary["tokens"]), int(summary["audited"])
            day = datetime.fromtimestamp(began, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        except (OSError, ValueError, KeyError, TypeError, OverflowError):  # made elsewhere, or by an earlier version
            return ""
        seconds = max(1e-9, ended - (first or began))
        stated = {
            "begun": day,
            "seconds": f"{ended - began:,.1f}, of which {seconds:,.1f} since the first read",
            "tokens in that session": tokens,
            "rate": f"{short(tokens / seconds)} tokens a second",
            "audited": f"{audited:,} documents were encoded by the reference too, and gave the same ids",
        }
        return section("The last tokenizing run", facts(stated))

    def _bytes_a_token(self) -> str | None:
        documents, tokenizer = self.scan.documents, self.tokenizer
        if documents is None or tokenizer is None or not documents.looked_at:
            return None
        size = sum(len(tokenizer.decode(ids).encode(errors="replace")) for ids in documents.looked_at)
        count = sum(map(len, documents.looked_at))
        return f"{size / count:.3f}, in {len(documents.looked_at):,} documents that were decoded"

    def _token(self, number: int) -> str:
        if self.tokenizer is None:
            return f"id {number}"
        return repr(self.tokenizer.decode([number]))

    def _example(self, words: str, ids: NDArray[np.unsignedinteger]) -> str:
        if self.tokenizer is None:
            return note(f"{words}: {self.why_no_text}")
        return note(words) + quoted(self.tokenizer.decode(ids[:_SHOWN_TOKENS])[:_SHOWN_CHARACTERS])

    def _peeked(self, words: str, number: int) -> str:
        if self.folder is None:
            return note(words)
        try:
            found = peek_document(self.folder, number, max_tokens=_SHOWN_TOKENS)
        except ShardkitError as error:
            return note(f"{words}: {error}")
        where = "" if found.source_file is None else f", from {found.source_file}"
        where += "" if found.source_row is None else f" row {found.source_row:,}"
        return note(words + where) + quoted(found.text[:_SHOWN_CHARACTERS])


def share_of(lengths: NDArray[np.int64], counts: NDArray[np.int64], limit: int, tokens: int) -> str:
    """The share of all tokens that is in documents of more than `limit` tokens."""
    return share(int((lengths * counts)[lengths > limit].sum()) / max(1, tokens))


def _ranks(used: int) -> Sequence[int]:
    """Ranks from 1 to `used`, at equal distances on a logarithmic axis."""
    return sorted({round(used ** (step / 100)) for step in range(101)}) if used else []
