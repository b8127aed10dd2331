"""What a console and a notebook's cell show of a result: short, escaped, in the notebook's own colours."""

from __future__ import annotations

import dataclasses
import html.parser
from pathlib import Path

import pytest
from click.testing import CliRunner

from shardkit import Manifest, ShardLoader, info, peek, pull, push, tokenize, verify
from shardkit.cli import main
from shardkit.dataset.records import ShardInfo, TokenizerInfo

EVIL = "<script>alert(1)</script>\x1b[2J&amp;"


class Tags(html.parser.HTMLParser):
    """The tags of a text, their styles, and the words between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.styles, self.words = set[str](), "", list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.styles += "".join(value or "" for _, value in attrs)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    texts = [f"Document number {number}." for number in range(80)]
    return tokenize(texts, tmp_path_factory.mktemp("shown") / "out", shard_tokens=100, workers=1)


def of_many_shards(manifest: Manifest) -> Manifest:
    """A manifest of 1,000 shards, whose names are a stranger's."""
    shards = [
        ShardInfo(
            file=f"x_{'train' if number else 'val'}_{number:06d}.npy",
            split="train" if number else "val",
            index=number,
            tokens=100,
            documents=3,
            first_document=3 * number,
            sha256="0" * 64,
            bytes=328,
        )
        for number in range(1000)
    ]
    tokenizer = TokenizerInfo(name=EVIL, vocab_size=9, eot_id=1, ranks_sha256="0" * 64)
    return dataclasses.replace(manifest, shards=tuple(shards), tokenizer=tokenizer, directory=Path("far", EVIL))


def test_a_manifest_of_many_shards_is_a_line_and_a_small_table(made: Manifest) -> None:
    large = of_many_shards(made)
    assert "100,000 tokens, 3,000 documents, 1,000 shards (val 1, train 999), uint16" in repr(large)
    assert len(repr(large)) < 300
    shown = Tags(large._repr_html_())
    assert shown.words[-8:-4] == ["val", "1", "100", "3"]
    assert len(large._repr_html_()) < 1500


def test_a_strangers_words_are_text_in_a_cell_and_no_colours_are_set(made: Manifest) -> None:
    shown = Tags(of_many_shards(made)._repr_html_())
    assert shown.tags <= {"div", "b", "table", "tr", "td", "th"}
    assert "\x1b" not in "".join(shown.words)
    assert "<script>" in "".join(shown.words)  # as text
    assert "color" not in shown.styles
    assert "background" not in shown.styles


def test_what_tokenize_push_and_pull_return_is_short(made: Manifest, tmp_path: Path) -> None:
    pushed, pulled = push(str(made.directory), str(tmp_path / "far")), pull(str(tmp_path / "far"), tmp_path / "in")
    for result in (made, pushed, pulled):
        assert len(repr(result)) < 300
        assert "\n" not in repr(result)
        assert 50 < len(result._repr_html_()) < 1500
    assert str(made.directory) in repr(made)
    assert str(tmp_path / "in") in repr(pulled)


def test_a_loader_says_what_it_reads_and_where_it_is(made: Manifest) -> None:
    with ShardLoader([(str(made.directory), 1.0), (str(made.directory), 1.0)], batch_size=2, seq_len=8) as loader:
        loader.next_batch()
        assert f"source {made.directory} and 1 more, split train" in repr(loader)
        assert "next step 1, epoch 0" in repr(loader)
        assert len(repr(loader)) < 300
        assert Tags(loader._repr_html_()).words[0] == "ShardLoader"
    assert "split train" in repr(loader)  # closed


def test_what_info_verify_peek_and_stats_return_is_read_as_the_lines_of_the_command(tmp_path: Path) -> None:
    texts = [f"line {number}\n<b>next</b>" for number in range(40)]
    folder = tokenize(texts, tmp_path / "out", tokenizer="bytes", shard_tokens=200, workers=1).directory
    assert folder is not None
    for words, result in (
        (["info"], info(folder)),
        (["verify"], verify(folder)),
        (["peek"], peek(folder)),
        (
            ["peek", "--step", "0", "--batch-size", "2", "--seq-len", "16"],
            peek(folder, step=0, batch_size=2, seq_len=16),
        ),
    ):
        printed = CliRunner().invoke(main, [words[0], str(folder), *words[1:]]).stdout
        assert printed.startswith(f"{result}\n")
        assert Tags(result._repr_html_()).words == [str(result)]
        assert Tags(result._repr_html_()).tags == {"pre"}
    assert "text:\nline 0\n<b>next</b>" in str(peek(folder))
    with ShardLoader(folder, batch_size=2, seq_len=8) as loader:
        assert Tags(loader.stats()._repr_html_()).words == [str(loader.stats())]
