"""What people paste for a dataset on the Hub means one thing in every spelling."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardkit.errors import UsageError
from shardkit.hub_address import HubAddress, endpoint, parse_address, parse_short

NAMES = st.from_regex(r"[A-Za-z0-9][\w-]{0,8}/[A-Za-z0-9][\w-]{0,8}(\.[a-z0-9]{1,3})?", fullmatch=True).filter(
    lambda name: not name.endswith(".git")
)
PARTS = st.text(st.characters(exclude_characters="/?#", exclude_categories=("C", "Z")), min_size=1, max_size=8).filter(
    lambda part: part not in (".", "..") and "::" not in part
)
REVISIONS = st.one_of(
    st.none(),
    st.sampled_from(["main", "refs/convert/parquet", "refs/pr/7", "a" * 40]),
    st.from_regex(r"[a-z0-9][\w.-]{0,8}(/[a-z0-9]{1,4})?", fullmatch=True),
)
ADDRESSES = st.builds(
    HubAddress, name=NAMES, revision=REVISIONS, path=st.lists(PARTS, max_size=3).map(lambda parts: "/".join(parts))
)


@settings(max_examples=50)
@given(address=ADDRESSES)
def test_the_client_s_own_spelling_comes_back_as_it_was(address: HubAddress) -> None:
    assert parse_address(address.url) == address


@settings(max_examples=50)
@given(
    address=ADDRESSES,
    site=st.sampled_from(
        ["https://huggingface.co", "http://huggingface.co", "https://www.huggingface.co", "https://hf.co"]
    ),
    verb=st.sampled_from(["tree", "blob", "resolve", "raw"]),
    query=st.sampled_from(["", "?download=true", "?token=hf_aB1234567890xyz", "#L3"]),
    slash=st.sampled_from(["", "/"]),
)
def test_a_page_s_address_means_the_dataset_its_revision_and_path(
    address: HubAddress, site: str, verb: str, query: str, slash: str
) -> None:
    revision = address.revision or ("main" if address.path else None)
    page = f"{site}/datasets/{address.name}"
    if revision:
        page += f"/{verb}/{quote(revision, safe='')}"
    page += (f"/{quote(address.path)}" if address.path else slash) + query
    assert parse_address(page) == HubAddress(name=address.name, revision=revision, path=address.path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://huggingface.co/datasets/u/n", ("u/n", None, "")),
        ("https://huggingface.co/datasets/u/n/tree/main/data", ("u/n", "main", "data")),
        (
            "https://HuggingFace.co/datasets/u/n/tree/refs%2Fconvert%2Fparquet/default",
            ("u/n", "refs/convert/parquet", "default"),
        ),
        (
            "https://huggingface.co/datasets/u/n/tree/refs/convert/parquet/default",
            ("u/n", "refs/convert/parquet", "default"),
        ),
        ("https://user:hf_aB1234567890xyz@huggingface.co/datasets/u/n.git", ("u/n", None, "")),
        ("https://huggingface.co/datasets/u/n/blob/v1/a%20b/c%23d.parquet", ("u/n", "v1", "a b/c#d.parquet")),
        ("hf://datasets/u/n@v1/data/*.parquet", ("u/n", "v1", "data/*.parquet")),
        ("hf://datasets/u/n@refs/pr/7/a.jsonl", ("u/n", "refs/pr/7", "a.jsonl")),
        ("hf://datasets/u/n//data/./x/", ("u/n", None, "data/x")),
    ],
)
def test_what_people_paste(text: str, expected: tuple[str, str | None, str]) -> None:
    name, revision, path = expected
    assert parse_address(text) == HubAddress(name=name, revision=revision, path=path)


@pytest.mark.parametrize(
    "text",
    [
        "https://example.com/datasets/u/n",
        "https://huggingface.co.example.com/datasets/u/n",
        "https://huggingface.co/user/model/resolve/main/a.jsonl",
        "s3://bucket/datasets/u/n",
        "hf://buckets/u/n/path",
        "hf://user/model/a.jsonl",
    ],
)
def test_what_is_no_dataset_s_address_is_left_to_others(text: str) -> None:
    assert parse_address(text) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("https://huggingface.co/user/model", "is a model, or a page of the site: expected a dataset"),
        ("https://huggingface.co", "is a model, or a page of the site"),
        ("https://huggingface.co/spaces/u/n", "is a space: expected a dataset"),
        ("https://huggingface.co/buckets/u/n", "is a bucket, which is written hf://buckets/user/name"),
        ("https://huggingface.co/datasets/squad", "names no dataset"),
        ("https://huggingface.co/datasets/u/n/discussions/3", "or a page that is none of its files: write user/name"),
        (
            "https://huggingface.co/datasets/u/n/viewer/sample-10BT/train?p=1",
            "write u/n name='sample-10BT' split='train'",
        ),
        ("hf://datasets/n", "names no dataset"),
        ("hf://datasets/u/n/a/../b", "goes up by `..`"),
        (
            "https://huggingface.co/datasets/u/n/x?token=hf_aB1234567890xyz",
            "https://huggingface.co/datasets/u/n/x names",
        ),
    ],
)
def test_an_address_that_is_no_dataset_s_is_one_clear_line(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hf_a" not in str(caught.value)


def test_the_mirror_s_addresses_mean_the_same_under_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "https://u:p@mirror.example/hf")
    assert endpoint() == "https://mirror.example/hf"
    expected = HubAddress(name="u/n", revision="main", path="a.parquet")
    assert parse_address("https://mirror.example/hf/datasets/u/n/resolve/main/a.parquet") == expected
    assert parse_address("https://huggingface.co/datasets/u/n/resolve/main/a.parquet") == expected
    assert parse_address("https://mirror.example/hfx/datasets/u/n") is None


def test_two_revisions_are_refused_and_one_is_enough() -> None:
    address = HubAddress(name="u/n", revision="v1")
    assert address.revision_with(None) == address.revision_with("v1") == "v1"
    assert HubAddress(name="u/n").revision_with("v2") == "v2"
    with pytest.raises(UsageError, match=r"u/n@v1 names one revision and revision= another \(v2\): give one"):
        address.revision_with("v2")


def test_a_short_name_may_go_on_into_a_folder() -> None:
    assert parse_short("u/n") == HubAddress(name="u/n")
    assert parse_short("u/n/sub/folder/") == HubAddress(name="u/n", path="sub/folder")
    assert [parse_short(text) for text in ("", "name", "u/", "a b/c", "C:/x/y", "nowhere://x")] == [None] * 6
