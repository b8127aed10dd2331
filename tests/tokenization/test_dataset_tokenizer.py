"""A dataset's own `tokenizer.json`: it travels with the dataset, and no other file is ever believed in its place."""

from __future__ import annotations

import dataclasses
import json
import shutil
import traceback
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from hub_server import HubServer
from huggingface_hub import HfApi
from texts import prose
from vocabulary_data import train_vocabulary

from shardkit import Manifest, ShardLoader, Tokenizer, pull, push, tokenize
from shardkit.errors import OutputError, ShardkitError, ShardkitWarning, TokenizerError
from shardkit.look.peek import peek_document
from shardkit.tokenization import tiktoken_files
from shardkit.tokenization import vocabulary as vocabulary_module
from shardkit.tokenization.battery import representatives
from shardkit.tokenization.vocabulary import load_vocabulary

REPO = "alice/words"
FILES = {"tokenizer.json", "tokenizer_config.json"}


def make(folder: Path, vocabulary: Path | str, **options: object) -> Manifest:
    return tokenize(
        prose(60),
        folder,
        tokenizer=str(vocabulary),
        workers=1,
        shard_tokens=5_000,
        prefix="p",
        **options,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary in `mine`, a dataset that was made with it in `out`, and one of gpt2 in `plain`."""
    folder = tmp_path_factory.mktemp("made")
    make(folder / "out", train_vocabulary(folder / "mine" / "tokenizer.json"))
    make(folder / "plain", "gpt2")
    return folder


@pytest.fixture
def vocabulary(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "mine", tmp_path / "mine")) / "tokenizer.json"


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "out", tmp_path / "out"))


@pytest.fixture
def plain(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "plain", tmp_path / "plain"))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_dataset_has_the_file_that_it_was_made_with_and_transformers_reads_it(out: Path, vocabulary: Path) -> None:
    from transformers import AutoTokenizer

    assert (out / "tokenizer.json").read_bytes() == vocabulary.read_bytes()
    theirs, ours = AutoTokenizer.from_pretrained(str(out)), Tokenizer(str(vocabulary))
    for text in prose(20):
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode_ordinary(text)
    assert (theirs.eos_token, theirs.eos_token_id) == ("<|endoftext|>", ours.eot_id)


def test_a_dataset_needs_no_file_but_its_own(out: Path, vocabulary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary.unlink()
    train_vocabulary(out.parent / "tokenizer.json", size=300)
    monkeypatch.chdir(out.parent)  # where another file of that name is
    assert peek_document(out, 3).text.startswith(prose(60)[3][:200])
    manifest = Manifest.load(out)
    assert Tokenizer.of_dataset(manifest).info == manifest.tokenizer


def test_another_file_of_the_same_name_is_refused(out: Path, vocabulary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (out / "tokenizer.json").write_bytes(train_vocabulary(out.parent / "tokenizer.json", size=300).read_bytes())
    monkeypatch.chdir(out.parent)
    manifest = Manifest.load(out)
    for name in (None, "tokenizer.json", "gpt2"):
        with pytest.raises(TokenizerError, match="here is another vocabulary than .*out was made with: give"):
            Tokenizer.of_dataset(manifest, name=name)
    (out.parent / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"made with a tokenizer\.json that is not beside its manifest"):
        Tokenizer.of_dataset(manifest)
    assert Tokenizer.of_dataset(manifest, name=str(vocabulary)).info == manifest.tokenizer


@pytest.mark.parametrize("name", ["gpt2", "p50k_base", "cl100k_base", "o200k_harmony", "bytes"])
def test_transformers_reads_the_folder_of_a_dataset_of_any_vocabulary(name: str, made: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ours, folder = Tokenizer(name), made / "plain"
    if name != "gpt2":  # the same files, at once
        folder = tmp_path
        assert ours.save(folder)
    theirs = AutoTokenizer.from_pretrained(str(folder))
    alike = [*prose(20), *(character * 3 + " x" + character for character in representatives())]
    for text in alike:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids == ours.encode_ordinary(text), text
        assert theirs.decode(ids) == text
    assert (theirs.eos_token, theirs.eos_token_id) == ("<|endoftext|>", ours.eot_id)
    assert len(theirs) <= ours.info.vocab_size  # ids that no token has
    assert theirs("a<|endoftext|>")["input_ids"][-1] == ours.eot_id  # as a model's own tokenizer does


@pytest.mark.parametrize("name", ["gpt2", "cl100k_base"])
def test_a_dataset_is_read_where_the_vocabulary_is_not_and_there_is_no_network(
    name: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = plain if name == "gpt2" else tmp_path / "out"
    manifest = Manifest.load(out) if name == "gpt2" else make(out, name)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})  # those that are in memory
    monkeypatch.setattr(tiktoken_files, "_packaged", lambda name: None)
    vocabulary_module._from_tiktoken.cache_clear()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(TokenizerError, match="is not on this machine and cannot be downloaded") as caught:
        load_vocabulary(name)
    assert "urllib3" not in "".join(traceback.format_exception(caught.value))
    damaged = (out / "tokenizer.json").read_bytes()
    (out / "tokenizer.json").write_bytes(damaged.replace(b'"!"', b'"?"', 1))
    with pytest.raises(TokenizerError, match="is not on this machine and cannot be downloaded"):
        Tokenizer.of_dataset(manifest)
    (out / "tokenizer.json").write_bytes(damaged)
    assert peek_document(out, 3).text.startswith(prose(60)[3][:200])
    assert Tokenizer.of_dataset(manifest).info == manifest.tokenizer


def test_an_encoding_of_tiktoken_is_known_by_its_name_and_checked_too(plain: Path) -> None:
    manifest = Manifest.load(plain)
    for name in FILES:
        (plain / name).unlink()
    assert Tokenizer.of_dataset(manifest).name == "gpt2"
    assert manifest.tokenizer is not None
    other = dataclasses.replace(manifest, tokenizer=dataclasses.replace(manifest.tokenizer, ranks_sha256="0" * 64))
    with pytest.raises(TokenizerError, match="gpt2 here is another vocabulary than"):
        Tokenizer.of_dataset(other)
    assert Tokenizer.of_dataset(dataclasses.replace(manifest, tokenizer=None)).name == "gpt2"


def test_another_vocabulary_than_one_that_is_here_is_to_be_left_out(plain: Path) -> None:
    advice = r"^bytes here is another vocabulary than .* was made with: leave tokenizer= out, which .* own \(gpt2\)$"
    with pytest.raises(TokenizerError, match=advice):
        Tokenizer.of_dataset(Manifest.load(plain), name="bytes")


def test_the_chosen_end_of_text_is_that_of_the_dataset_everywhere(vocabulary: Path, tmp_path: Path) -> None:
    make(tmp_path / "out", vocabulary, eot="<|im_end|>")
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.tokenizer is not None
    assert manifest.tokenizer.eot_id == Tokenizer.of_dataset(manifest).eot_id == 0
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"
    assert load_vocabulary(str(vocabulary)).info.eot_id == 1


@pytest.mark.parametrize("place", ["hub", "folder", "s3"])
def test_it_travels_with_the_dataset(place: str, hub: HubServer, out: Path, tmp_path: Path) -> None:
    repo = {"hub": REPO, "folder": str(tmp_path / "remote"), "s3": "memory://bucket/words"}[place]
    push(out, repo)
    pull(repo, tmp_path / "copy")
    for name in (*FILES, "manifest.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (out / name).read_bytes(), name
    assert push(out, repo).sent_files == 0


@pytest.mark.parametrize("name", ["gpt2", "a file's"])
def test_a_dataset_that_is_streamed_has_it_too(
    name: str, served: HubServer, out: Path, plain: Path, tmp_path: Path
) -> None:
    out = plain if name == "gpt2" else out
    for overwrite in (False, True):  # the second time another dataset is at the same place
        if overwrite:
            make(out, train_vocabulary(tmp_path / "b.json", size=300), overwrite=True)
        push(out, REPO, overwrite=overwrite)
        loader = ShardLoader(REPO, batch_size=1, seq_len=8, split="val", cache=tmp_path / "cache")
        assert loader.manifest is not None
        assert Tokenizer.of_dataset(loader.manifest).file == (out / "tokenizer.json").read_bytes()
        loader.close()


def test_a_run_that_pushes_sends_it_too(hub: HubServer, vocabulary: Path, tmp_path: Path) -> None:
    made = make(tmp_path / "small", vocabulary, push=REPO, max_disk=1 << 20)
    assert names(tmp_path / "small") & FILES == set()
    assert pull(REPO, tmp_path / "copy") == made
    assert (tmp_path / "copy" / "tokenizer.json").read_bytes() == vocabulary.read_bytes()


def test_a_file_that_is_not_the_datasets_is_neither_fetched_nor_replaced(
    hub: HubServer, plain: Path, tmp_path: Path
) -> None:
    (plain / "tokenizer_config.json").unlink()
    (plain / "tokenizer.json").write_text("not the dataset's")
    push(plain, str(tmp_path / "remote"))
    assert "tokenizer.json" not in names(tmp_path / "remote")
    (tmp_path / "remote" / "tokenizer.json").write_text("somebody else's")
    pull(str(tmp_path / "remote"), tmp_path / "copy")
    assert names(tmp_path / "copy") & FILES == set()
    assert (tmp_path / "remote" / "tokenizer.json").read_text() == "somebody else's"


def test_what_replaces_the_dataset_replaces_it_too(hub: HubServer, out: Path, plain: Path, tmp_path: Path) -> None:
    push(out, REPO)
    push(plain, REPO, overwrite=True)
    pull(REPO, tmp_path / "copy")
    assert (tmp_path / "copy" / "tokenizer.json").read_bytes() == (plain / "tokenizer.json").read_bytes()
    other = train_vocabulary(tmp_path / "other" / "tokenizer.json", size=300)
    make(out, other, overwrite=True)
    assert (out / "tokenizer.json").read_bytes() == other.read_bytes()
    push(out, REPO, overwrite=True)
    pull(REPO, tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == other.read_bytes()
    (out / "tokenizer_config.json").write_text("{}")  # the user's, from now on
    make(out, "gpt2", overwrite=True)
    assert (out / "tokenizer_config.json").read_text() == "{}"
    assert (out / "tokenizer.json").read_bytes() == (plain / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("killed", ["before the manifest", "in clearing"])
@pytest.mark.parametrize("before", ["a file's", "bytes"])
def test_what_a_killed_run_left_is_replaced_too(before: str, killed: str, out: Path, tmp_path: Path) -> None:
    if before != "a file's":
        make(out, before, overwrite=True)
    (out / "manifest.json").unlink()
    if killed == "in clearing":
        (out / "tokenizer.json").unlink()
    other = train_vocabulary(tmp_path / "other" / "tokenizer.json", size=300)
    make(out, other, overwrite=True)
    assert (out / "tokenizer.json").read_bytes() == other.read_bytes()


def test_another_file_in_the_way_is_said(hub: HubServer, out: Path, vocabulary: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "tokenizer.json").write_text("my own")
    push(out, str(tmp_path / "remote"))
    with pytest.warns(ShardkitWarning, match="copy holds another tokenizer.json than this dataset's, which stays"):
        pull(str(tmp_path / "remote"), tmp_path / "copy")
    assert (tmp_path / "copy" / "tokenizer.json").read_text() == "my own"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tokenizer.json").write_text("theirs")
    with pytest.warns(ShardkitWarning, match="other holds another tokenizer.json than this dataset's, which stays"):
        push(out, str(tmp_path / "other"))
    assert (tmp_path / "other" / "tokenizer.json").read_text() == "theirs"
    (out / "manifest.json").unlink()
    (out / "tokenizer.json").write_text("my own")
    with pytest.raises(OutputError, match=r"holds another tokenizer\.json than this dataset's: move it away"):
        make(out, vocabulary)
    (out / "tokenizer.json").unlink()
    make(out, vocabulary)
    assert (out / "tokenizer.json").read_bytes() == vocabulary.read_bytes()


def test_a_push_that_was_killed_between_the_files_sends_the_second(hub: HubServer, out: Path, tmp_path: Path) -> None:
    push(out, REPO)
    for name in ("tokenizer.json", "manifest.json"):  # the config is written first
        HfApi().delete_file(name, REPO, repo_type="dataset")
    push(out, REPO)
    pull(REPO, tmp_path / "copy")
    assert (tmp_path / "copy" / "tokenizer.json").read_bytes() == (out / "tokenizer.json").read_bytes()


def test_a_folder_does_not_take_the_name_of_an_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("gpt2", "bytes"):  # as `pull stranger/gpt2` makes one
        train_vocabulary(tmp_path / name / "tokenizer.json")
        assert load_vocabulary(name).tokenizer_json is None
    assert load_vocabulary("./gpt2").info.vocab_size == 400


@pytest.mark.parametrize("name", ["a" * 5_000, "a/" * 3_000 + "b", "\0", "a/b\0", "user/" + "a" * 5_000])
def test_a_name_that_nothing_can_have_is_one_line(name: str) -> None:
    with pytest.raises(ShardkitError):
        load_vocabulary(name)


def test_a_manifest_that_lies_about_the_ids_is_refused(out: Path) -> None:
    manifest = Manifest.load(out)
    assert manifest.tokenizer is not None
    small = dataclasses.replace(manifest.tokenizer, vocab_size=300)
    with pytest.raises(TokenizerError, match="another vocabulary"):
        Tokenizer.of_dataset(dataclasses.replace(manifest, tokenizer=small, directory=out))


def test_a_separator_that_is_ordinary_text_warns(vocabulary: Path) -> None:
    with pytest.warns(ShardkitWarning, match="'e' is ordinary text: wherever it stands in a document"):
        load_vocabulary(str(vocabulary), "e")


def test_a_file_without_a_readable_end_of_text_still_travels(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "</s>": 2}, "a"))
    made.save(str(tmp_path / "words.json"))
    tokenize(["a", "b"], tmp_path / "out", tokenizer=str(tmp_path / "words.json"), val_shards=0, workers=1)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "words.json").read_bytes()
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["eos_token"] == "</s>"
