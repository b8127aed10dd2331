"""The dataset card: valid front matter, true figures, and nobody's words overwritten."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from hub_data import make_dataset
from huggingface_hub import DatasetCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from shardkit.dataset.manifest import Manifest
from shardkit.remote.card import _size_category, updated_card


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("card") / "data"
    return folder, make_dataset(folder, tokens=40_000)


def front_matter(card: str) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load(card.split("---\n")[1])
    return found


def test_the_front_matter_is_yaml_with_all_that_the_hub_shows(data: tuple[Path, Manifest]) -> None:
    front = front_matter(updated_card(None, data[1], "user/name"))
    assert front["license"] == "unknown"
    assert front["size_categories"] == ["n<1K"]
    assert front["tags"] == ["shardkit", "tokenized", "gpt2"]
    assert front["source_datasets"] == ["HuggingFaceFW/fineweb-edu"]
    assert front["configs"] == [
        {
            "config_name": "default",
            "data_files": [{"split": "val", "path": "*_val_*.npy"}, {"split": "train", "path": "*_train_*.npy"}],
        }
    ]


def test_the_text_says_what_is_there_and_where_it_came_from(data: tuple[Path, Manifest]) -> None:
    card = updated_card(None, data[1], "hf://datasets/user/name")
    for fact in (
        "# name",
        "| val | 1 | 40,000 | 3 |",
        "| train | 3 | 100,001 | 9 |",
        "140,001 tokens",
        "f" * 40,
        "`sample-10BT`",
        "`gpt2` (50,257 ids)",
        "50256",
        data[1].fingerprint,
    ):
        assert fact in card


def test_the_numpy_example_runs(data: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = updated_card(None, data[1], "user/name")
    code = card.rpartition("With plain NumPy:")[2].split("```")[1].removeprefix("python\n")
    assert len([text for text in code.splitlines() if text.strip()]) <= 10
    (tmp_path / "data").symlink_to(data[0])
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    inputs, targets = names["inputs"], names["targets"]
    assert isinstance(inputs, np.ndarray)
    assert isinstance(targets, np.ndarray)
    assert inputs.shape == targets.shape == (16, 1024)
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])


def test_writing_it_again_changes_nothing(data: tuple[Path, Manifest]) -> None:
    card = updated_card(None, data[1], "user/name")
    assert updated_card(card, data[1], "user/name") == card


def test_a_manifest_that_knows_little_makes_a_card_that_says_little(data: tuple[Path, Manifest]) -> None:
    bare = dataclasses.replace(
        data[1], tokenizer=None, source=None, shards=tuple(dataclasses.replace(s, documents=0) for s in data[1].shards)
    )
    card = updated_card(None, bare, "user/name")
    assert "size_categories" not in front_matter(card)
    assert "Source:" not in card
    assert "None" not in card


def test_a_card_says_which_rows_were_read(data: tuple[Path, Manifest]) -> None:
    assert data[1].source is not None
    assert "Not all of it" not in updated_card(None, data[1], "user/name")
    options = {"where": "score >= 3 and lang == '`en`'", "sample": 0.1, "skip_duplicates": True}
    some = dataclasses.replace(data[1], source=dataclasses.replace(data[1].source, options=options))
    card = updated_card(None, some, "user/name")
    assert "- Not all of it, where ``score >= 3 and lang == '`en`'``, sample `0.1`, skip_duplicates `True`\n" in card


LINES = st.lists(st.text(alphabet="ab-#<>! \n", max_size=20), max_size=5).map("\n".join)


@given(before=LINES, after=LINES, keys=st.lists(st.sampled_from(["license: mit", "pretty_name: Mine"]), unique=True))
def test_whatever_a_person_wrote_outside_the_marks_stays(
    data: tuple[Path, Manifest], before: str, after: str, keys: list[str]
) -> None:
    card = updated_card(None, data[1], "user/name")
    head, _, body = card.partition("\n---\n\n")
    section = body.removeprefix("# name\n\n").removesuffix("\n")
    edited = "\n".join([head, *keys]) + "\n---\n\n" + before + section + after
    other = dataclasses.replace(data[1], shards=data[1].shards[:2])
    updated = updated_card(edited, other, "user/name")
    assert updated != edited
    assert "\n".join(["", *keys]) + "\n---\n\n" + before in updated
    assert updated.endswith(after)
    assert updated_card(updated, data[1], "user/name") == edited


@given(old=LINES)
def test_a_card_of_somebody_else_is_kept_whole_and_gets_a_section_at_its_end(
    data: tuple[Path, Manifest], old: str
) -> None:
    updated = updated_card(old, data[1], "user/name")
    assert updated.startswith(old.rstrip())
    assert updated_card(updated, data[1], "user/name") == updated


@pytest.mark.parametrize("marks", ["start", "end", "both twice"])
def test_broken_marks_are_left_alone(data: tuple[Path, Manifest], marks: str) -> None:
    card = updated_card(None, data[1], "user/name")
    start, end = "<!-- shardkit: written by each push, from here -->", "<!-- shardkit: to here -->"
    broken = {"start": card.replace(start, ""), "end": card.replace(end, ""), "both twice": card + start + end}[marks]
    assert updated_card(broken, data[1], "user/name").startswith(broken.rstrip())


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (1, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (9_672_101, "1M<n<10M"),
        (10**12 - 1, "100B<n<1T"),
        (10**14, "n>1T"),
    ],
)
def test_size_categories(rows: int, expected: str) -> None:
    assert _size_category(rows) == expected


STRANGERS_WORDS = [
    "x\nlicense: mit\nviewer: true",
    "x' \"y: &a [*a, {b}] # - !!python/object",
    "<script>alert(1)</script> <img src=x onerror=alert(1)>",
    "`</code><script>alert(1)</script>`",
    "``` \n\n# A title\n\n<iframe src=https://evil></iframe>",
    "[click](https://evil) ![](https://evil/pixel.png)",
    "a | b | c\n| d | e | f |",
    "---\nlicense: mit\n---\n",
    "<!-- shardkit: to here --><!-- shardkit: written by each push, from here --># shardkit: to here",
    "\x1b[2J\x1b]52;c;aGk=\x07\u202e",
    "",
]


@pytest.mark.parametrize("words", STRANGERS_WORDS)
def test_a_strangers_words_become_no_field_no_html_and_no_link_of_the_card(
    data: tuple[Path, Manifest], words: str
) -> None:
    source, tokenizer = data[1].source, data[1].tokenizer
    assert source is not None
    assert tokenizer is not None
    hostile = dataclasses.replace(
        data[1],
        source=dataclasses.replace(source, id=words, config=words, split=words, revision=words),
        tokenizer=dataclasses.replace(tokenizer, name=words),
        encoder={words: words},
        shardkit_version=words,
    )
    card = updated_card(None, hostile, f"./{words}/name")
    parsed = DatasetCard(card)
    fields = {"license", "viewer", "size_categories", "task_categories", "tags", "configs"}
    assert set(parsed.data.to_dict()) == fields
    assert (parsed.data.license, parsed.data["viewer"]) == ("unknown", False)
    assert [split["split"] for split in parsed.data["configs"][0]["data_files"]] == list(hostile.splits)
    page = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(parsed.text)
    tags = re.sub(r"<!-- shardkit: [^>]*? -->", "", page)
    assert set(re.findall(r"</?([a-z0-9]+)", tags)) <= {
        *("h1", "h2", "p", "ul", "li", "a", "code", "pre", "table", "thead", "tbody", "tr", "th", "td")
    }
    assert re.findall(r'href="([^"]*)"', tags) == ["https://github.com/shardkit/shardkit"]
    assert page.count("<h1>") == 1
    assert page.count("<tr>") == 1 + len(hostile.splits)
    assert "\x1b" not in card
    assert updated_card(card, hostile, f"./{words}/name") == card
