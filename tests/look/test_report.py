"""`report`: figures that a plain count gives too, and a page that is safe and whole whatever is in a dataset or log."""

from __future__ import annotations

import html.parser
import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from loader_data import EOT, write_shards

from shardkit import Manifest, UsageError, push, report, tokenize
from shardkit.batches.layouts import _aligned_rows
from shardkit.batches.packing import plan_blocks
from shardkit.cli import main
from shardkit.errors import OutputError
from shardkit.look import document_figures, layout_figures
from shardkit.look.charts import Line, bar_chart, line_chart
from shardkit.look.dataset_scan import chosen_shards
from shardkit.look.document_figures import DocumentCounter
from shardkit.look.layout_figures import LayoutCounter
from shardkit.look.report import DatasetReport, RunReport

EVIL = "</title><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[2J\u202e'\"&amp;"


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    lead=st.integers(0, 30),
    seq_len=st.integers(1, 20),
    block=st.integers(20, 200),
    cuts=st.lists(st.integers(0, 60), max_size=5),
)
def test_layouts_are_counted_as_the_loader_lays_them_out(
    lengths: list[int], lead: int, seq_len: int, block: int, cuts: list[int]
) -> None:
    ends = lead + np.cumsum(lengths)
    starts, tokens = ends - lengths, int(ends[-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout_figures, "BLOCK_TOKENS", block)
        counter = LayoutCounter([seq_len])
        for part in np.split(starts, sorted(cut for cut in cuts if cut <= len(starts))):
            counter.add(part)
        contiguous, document, packed = counter.figures(tokens)
    windows = (tokens - 1) // seq_len
    assert contiguous.rows == windows
    assert contiguous.crossed == len({s // seq_len for s in starts.tolist() if s % seq_len} - {windows})
    assert contiguous.crop == pytest.approx((tokens - windows * seq_len) / tokens)
    assert document.rows == sum(map(len, _aligned_rows(starts, seq_len, tokens)))
    plan = list(plan_blocks(starts, tokens, seq_len, block_tokens=block))
    assert packed.rows == sum(len(row_ends) for _, _, row_ends, _ in plan)
    assert packed.splits == sum(int(totals[1]) for *_, totals in plan)
    assert packed.pad == pytest.approx(1 - tokens / (packed.rows * seq_len))


@settings(max_examples=60)
@given(
    documents=st.lists(st.lists(st.integers(0, 2), max_size=5), max_size=40),
    lead=st.lists(st.integers(0, 2), max_size=5),
    blocks=st.integers(1, 30),
    most=st.sampled_from([4, 1 << 22]),
)
def test_documents_are_counted_however_the_stream_is_cut(
    documents: list[list[int]], lead: list[int], blocks: int, most: int
) -> None:
    stream = np.array(lead + [token for ids in documents for token in (EOT, *ids)], np.uint16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document_figures, "_MOST_HASHES", most)
        counter = DocumentCounter(len(documents))
        counter.jump(7)
        for block in np.array_split(stream, blocks):
            counter.add(block, np.flatnonzero(block == EOT))
        counter.end()
    lengths, counts = counter.lengths
    assert dict(zip(lengths.tolist(), counts.tolist(), strict=True)) == Counter(map(len, documents))
    distinct = Counter(tuple(ids) for ids in documents if ids)
    copies = counter.copies
    if copies.thinned == 1:
        assert copies.documents == sum(distinct.values()) - len(distinct)
    for count, number in copies.examples:
        assert count == distinct[tuple(documents[number - 7])] > 1
    for number, ids in counter.near_empty:
        assert ids.tolist() == documents[number - 7]


def test_a_thinned_number_of_copies_is_about_right() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document_figures, "_MOST_HASHES", 600)
        counter = DocumentCounter(4000)
        counter.jump(0)
        stream = np.array([t for n in range(4000) for t in (EOT, n % 2000, n % 2000 // 7)], np.uint16)
        counter.add(stream, np.flatnonzero(stream == EOT))
        counter.end()
    assert counter.copies.thinned == 8
    assert 1500 < counter.copies.documents < 2500
    assert counter.copies.tokens_share == 0.5


finite = st.floats(-1e12, 1e12, allow_nan=False)


@given(points=st.lists(st.tuples(finite, finite), max_size=20), log=st.booleans())
def test_what_a_chart_draws_lies_within_it(points: list[tuple[float, float]], log: bool) -> None:
    drawn = line_chart("a", [Line(name="b", points=points)], x_name="x", log_x=log, log_y=log)
    drawn += bar_chart("c", [f"{x}" for x, _ in points], [("d", [abs(y) for _, y in points])])
    numbers = [float(n) for pair in re.findall(r'points="([^"]*)"', drawn) for n in re.split("[ ,]", pair) if n]
    numbers += [float(n) for n in re.findall(r' (?:x|y|cx|cy|x1|y1|height)="([^"]*)"', drawn)]
    assert all(math.isfinite(n) and -0.1 <= n <= 400.1 for n in numbers), numbers


class Page(html.parser.HTMLParser):
    """What is in a page: tags, attributes, and the words that a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.words, self.open = set[str](), list[tuple[str, str]](), "", list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "line", "rect", "polyline", "circle", "i"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag in ("line", "rect", "polyline", "circle", "i"):
            return
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def page_of(path: Path) -> Page:
    """The page, which must be whole, hold no script and ask for nothing."""
    text = path.read_text()
    page = Page(text)
    assert page.open == []
    assert not page.tags & {"script", "img", "link", "iframe", "object", "a", "form", "base", "image", "use"}
    assert not {name for name, _ in page.attributes} & {"src", "href", "onerror", "onload", "srcset", "action"}
    assert "url(" not in text
    assert "@import" not in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", text)
    return page


TEXTS = [EVIL, "", "word", *[f"Document {n} has its own words, and some {n % 3}." for n in range(200)]]
TEXTS += ["A copy of a copy."] * 4 + ["again and again " * 30] * 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "<b onload=x>"
    folder.mkdir()
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    tokenize(str(folder / "in.jsonl"), folder / "out", tokenizer="bytes", shard_tokens=3000, workers=1, prefix="x")
    return folder


def test_a_datasets_page_says_what_is_in_it_and_is_safe(made: Path, tmp_path: Path) -> None:
    found = report(made / "out", out=tmp_path / "page.html", progress=False)
    manifest = Manifest.load(made / "out")
    assert isinstance(found, DatasetReport)
    assert (found.tokens, found.documents, found.copies) == (manifest.tokens, len(TEXTS), 6)
    used = {byte for text in TEXTS for byte in text.encode()} | {256}
    assert found.different_tokens == len(used)
    page = page_of(tmp_path / "page.html")
    for words in (
        "What it is",
        f"{257 - len(used):,} of 257 ids",
        "1 document without a token, 1 with 1 to 8.",
        "Copies of an earlier document, empty ones not counted: 6, ",
        "document 203, 4 times, from in.jsonl row 203",
        "repeated",
        "The last tokenizing run",
        str(made / "out"),
    ):
        assert words in page.words, words


def test_a_text_that_is_markup_is_shown_as_text(tmp_path: Path) -> None:
    evil = [EVIL + " again" * 80] * 3
    tokenize(evil, tmp_path / "out", tokenizer="bytes", workers=1, shard_tokens=10_000, progress=False)
    report(tmp_path / "out", out=tmp_path / "page.html", progress=False)
    words = page_of(tmp_path / "page.html").words
    assert "<script>alert(1)</script>" in words
    assert "\\x1b[2J\\u202e" in words


def test_a_remote_is_read_a_shard_at_a_time_and_a_sample_from_all_over(made: Path, tmp_path: Path) -> None:
    push(made / "out", f"file://{tmp_path}/far", progress=False)
    words = ["report", f"file://{tmp_path}/far", "--out", str(tmp_path / "page.html"), "--json"]
    whole = json.loads(CliRunner().invoke(main, words).stdout)
    assert whole["tokens"] == Manifest.load(made / "out").tokens
    some = json.loads(CliRunner().invoke(main, [*words, "--sample", "0.4"]).stdout)
    shards = Manifest.load(made / "out").shards
    assert some["shards_read"] == round(0.4 * len(shards)) < whole["shards_read"]
    assert some["documents"] < whole["documents"]
    assert (
        f"All figures below are of {some['shards_read']} of {len(shards)} shards"
        in page_of(tmp_path / "page.html").words
    )
    chosen = [shard.index for shard in chosen_shards(Manifest.load(made / "out"), 0.4)]
    assert chosen == sorted(set(chosen))


def test_bare_shards_have_documents_once_their_eot_is_known(tmp_path: Path) -> None:
    write_shards(tmp_path / "bare", [3000, 500])
    found = report(tmp_path / "bare", out=tmp_path / "page.html", progress=False)
    assert isinstance(found, DatasetReport)
    assert (found.tokens, found.documents, found.different_tokens) == (3500, None, 3500)
    found = report(tmp_path / "bare", out=tmp_path / "page.html", eot_id=3400, progress=False)
    assert isinstance(found, DatasetReport)
    assert found.documents == 1
    page_of(tmp_path / "page.html")


def write_run(folder: Path, losses: list[float], **data: object) -> None:
    folder.mkdir()
    lines = [{"after_step": 0, "source": "https://user:secret@host/data?signature=abc", "loader": {}, **data}]
    lines += [{"step": n, "loss": loss, "lr": 1 / n, "ms": 1000, EVIL: 1.0} for n, loss in enumerate(losses, 1)]
    lines += [{"step": len(losses), "val_loss": 1.5}, {"step": 1, "loss": math.nan}, {"step": EVIL, "loss": 2}, {}]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n["a"]\n{"step": 3, "lo')
    (folder / "config.toml").write_text(f'data = "{EVIL}"\n')


def test_two_runs_are_drawn_over_each_other(tmp_path: Path) -> None:
    write_run(tmp_path / "<i>one", [3.0, 2.0, 1.0])
    write_run(tmp_path / "two", [4.0, 2.5], source=EVIL)
    found = report(tmp_path / "<i>one", tmp_path / "two", out=tmp_path / "page.html")
    assert isinstance(found, RunReport)
    assert (found.steps, found.losses, found.validation_losses) == ((3, 2), (1.0, 2.5), (1.5, 1.5))
    page, text = page_of(tmp_path / "page.html"), (tmp_path / "page.html").read_text()
    assert text.count("<polyline") == 2 * text.count("<svg") == 6
    assert "<i>one (1)" in page.words
    assert "1 x" not in page.words
    assert "secret" not in text
    assert "signature" not in text
    alone = CliRunner().invoke(main, ["report", str(tmp_path / "two"), "--out", str(tmp_path / "page.html")])
    assert alone.exit_code == 0
    page_of(tmp_path / "page.html")


def test_a_long_run_is_drawn_with_few_points(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [float(n % 7) for n in range(20_000)])
    report(tmp_path / "run", out=tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 300_000


def test_what_cannot_be_reported_is_said(made: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    for options, words in (
        ({"sample": 0}, "sample is 0: expected a share"),
        ({"eot_id": 3}, "eot_id is 3, .* was made with 256"),
        ({"other": made / "out"}, "is no training run"),
    ):
        with pytest.raises(UsageError, match=words):
            report(made / "out", out=page, progress=False, **options)  # type: ignore[arg-type]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match="has no step in it"):
        report(tmp_path / "run", out=page)
    page.write_text("<p>mine</p>")
    with pytest.raises(OutputError, match="is no report of ours"):
        report(made / "out", out=page, progress=False)
    assert page.read_text() == "<p>mine</p>"
    for out, words in ((tmp_path, "it is a folder"), (tmp_path / "none" / "x.html", "there is no folder .*none")):
        with pytest.raises(OutputError, match=words):
            report(made / "out", out=out, progress=False)
