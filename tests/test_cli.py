"""The command line as a person meets it: processes, one line an error, exit codes, JSON."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from reference import folder_bytes, shard_bytes
from texts import documents, write_parquet

from shardkit import ShardLoader, Tokenizer, tokenize
from shardkit.bars import TransferBar
from shardkit.cli import main
from shardkit.cli.options import Size
from shardkit.dataset.records import SourceFile, SourceInfo
from trainer.__main__ import main as trainer

ROOT = Path(__file__).parent.parent


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "shardkit", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def use(*arguments: str | Path) -> Result:
    """The same in this process; a bug is raised."""
    return CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    write_parquet(folder / "a.parquet", ["The first document.", None, "Der dritte, ä."] * 20)
    done = run("tokenize", folder / "a.parquet", "--out", folder / "out", "--shard-tokens", "100", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["documents"] == 60
    assert 0 < summary["audited_documents"] <= 60
    return folder / "out"


def test_tokenize_writes_the_references_bytes(dataset: Path) -> None:
    texts = ["The first document.", None, "Der dritte, ä."] * 20
    assert folder_bytes(dataset) == shard_bytes(texts, 100, "a")


def test_info_says_what_is_there(dataset: Path) -> None:
    found = json.loads(run("info", dataset, "--json").stdout)
    assert found["documents"] == 60
    assert [split["split"] for split in found["splits"]] == ["val", "train"]


def test_peek_shows_a_document_and_its_source_row(dataset: Path) -> None:
    done = run("peek", dataset, "--document", "5")
    assert "Der dritte, ä." in done.stdout
    assert "source file: a.parquet" in done.stdout
    assert "source row: 5" in done.stdout


def test_verify_passes_a_good_dataset_and_names_the_bad_shard(dataset: Path, tmp_path: Path) -> None:
    assert run("verify", dataset).returncode == 0
    for path in [*dataset.glob("*.npy"), dataset / "manifest.json"]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    victim = tmp_path / "a_train_000001.npy"
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    done = run("verify", tmp_path)
    assert done.returncode == 1
    assert "a_train_000001.npy has SHA-256" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tokenize", "no/such/file.parquet", "--out", "x"], 1, "no such file"),
        (["tokenize", "sample"], 2, "no output folder: give --out DIR"),
        (["tokenize", "sample", "--out", "x", "--workers", "0"], 2, "--workers is 0"),
        (["tokenize", "sample", "--out", "x", "--encoder", "slow"], 2, "'slow' is not one of"),
        (["tokenize", "sample", "--out", "x", "--tokenizer", "nope"], 1, "unknown tokenizer 'nope'"),
        (["tokenize", "not a source", "--out", "x"], 2, "cannot tell what source"),
        (["tokenize", "sample", "--out", "file"], 1, "is a file: --out expects a folder"),
        (["tokenize", "sample", "--out", "full"], 1, "is not empty and no run of ours (it holds mine.txt)"),
        (["tokenize", "sample", "--out", "file/below"], 1, "cannot write"),
        (["tokenize", "fake.parquet", "--out", "x"], 1, "is no whole parquet file"),
        (["tokenize", "latin.txt", "--out", "x"], 1, "latin.txt, row 0: not UTF-8 (byte 0xe4 at offset 1)"),
        (["info", "."], 1, "holds no manifest.json and no shards"),
        (["peek", "missing"], 1, "there is no folder missing"),
    ],
)
def test_bad_input_is_one_clear_line_and_never_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "fake.parquet").write_text("PAR1 not really PAR1")
    (tmp_path / "latin.txt").write_bytes(b"n\xe4chste")
    done = use(*arguments)
    assert done.exit_code == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert len([line for line in done.stderr.splitlines() if line.lower().startswith("error")]) == 1
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    assert not list(tmp_path.rglob("manifest.json"))


def test_a_command_of_the_trainer_is_pointed_to() -> None:
    for name in ("train", "eval", "sample", "export"):
        done = use(name, "out")
        assert done.exit_code == 2
        assert f"the trainer has it, `python -m trainer {name}`" in done.stderr
        assert name in trainer.commands


def test_each_summary_names_the_folder_and_next_steps_that_run_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    corpus = write_parquet(tmp_path / "a.parquet", ["A short text."] * 80).name
    (tmp_path / "my books").mkdir()
    said: dict[str, list[str]] = {}
    for words in (
        ["tokenize", corpus, "--out", "my books/out", "--shard-tokens", "100", "--tokenizer", "bytes"],
        ["info", "my books/out"],
        ["verify", "my books/out"],
        ["convert", "my books/out", "my books/bins", "--to", "nanogpt"],
        ["push", "my books/out", "./far off"],
        ["pull", "./far off", "in"],
    ):
        done = use(*words)
        assert done.exit_code == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[0] == f"dataset: {({'pull': 'in', 'convert': 'my books/bins'}).get(words[0], 'my books/out')}"
        said[words[0]] = [line.strip() for line in lines[lines.index("next:") + 1 :]]
    assert "python -m trainer train --data 'my books/out' --out run    # on a CPU: --model nano" in said["tokenize"]
    assert "shardkit push 'my books/out' USER/NAME" in said["tokenize"]
    steps = {step for steps in said.values() for step in steps if step.startswith("shardkit") and "USER" not in step}
    assert {step.split()[1] for step in steps} == {"peek", "verify", "pull", "info", "convert"}
    for step in sorted(steps):
        done = use(*shlex.split(step)[1:])
        assert done.exit_code == 0, (step, done.stderr)


def test_progress_goes_to_stderr_and_stdout_stays_for_results(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ["x y z"] * 100)
    words = ["tokenize", "a.parquet", "--out", "out", "--shard-tokens", "100", "--tokenizer", "bytes"]
    done = run(*words, "--json", cwd=tmp_path)
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "expected"), [("5GB", 5 * 10**9), ("2GiB", 2**31), ("1.5 tb", 15 * 10**11), ("500", 500), ("10k", 10_000)]
)
def test_sizes_have_decimal_and_binary_units(text: str, expected: int) -> None:
    assert Size().convert(text, None, None) == expected


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("shardkit.look.info.info", broken)
    result = CliRunner().invoke(main, ["info", "."])
    assert isinstance(result.exception, ZeroDivisionError)


def test_the_default_command_is_fineweb_edu_under_its_own_names(hub: Any, tmp_path: Path) -> None:
    texts = documents(60)
    write_parquet(tmp_path / "a.parquet", texts[:40], rows=7)
    write_parquet(tmp_path / "b.parquet", texts[40:], rows=7)
    card = "---\nconfigs:\n- config_name: sample-10BT\n  data_files:\n  - split: train\n    path: sample/10BT/*\n---\n"
    files = {"README.md": card.encode()}
    for number, name in enumerate(("a", "b")):
        files[f"sample/10BT/{number:03d}_00000.parquet"] = (tmp_path / f"{name}.parquet").read_bytes()
    commit = hub.seed_repo("HuggingFaceFW/fineweb-edu", files)
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "shardkit", "tokenize", "--shard-tokens", "5000"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert folder_bytes(tmp_path / "edu_fineweb10B") == shard_bytes(texts, 5000, "edufineweb")
    source = json.loads((tmp_path / "edu_fineweb10B" / "manifest.json").read_text())["source"]
    assert (source["id"], source["config"], source["revision"]) == (
        "HuggingFaceFW/fineweb-edu",
        "sample-10BT",
        commit.oid,
    )


def test_peek_shows_the_row_of_a_batch(dataset: Path) -> None:
    done = run("peek", dataset, "--step", "2", "--row", "1", "--batch-size", "2", "--seq-len", "16", "--json")
    found = json.loads(done.stdout.splitlines()[-1])
    shown = ShardLoader(dataset, batch_size=2, seq_len=16)
    inputs = [shown.next_batch()[0] for _ in range(3)][2]
    assert found["text"] == Tokenizer("gpt2").decode(inputs[1].tolist())
    assert (found["tokens"], found["place_in_epoch"]) == (16, 5)
    assert found["documents"][0]["source_file"] == "a.parquet"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a dataset's DIR, or --run RUN with --step S"),
        (["DIR", "--run", "x"], "--run needs --step S"),
        (["DIR", "--run", "x", "--step", "1"], "give the folder of a training run"),
        (["DIR", "--step", "1"], "--step needs the loader's --batch-size and --seq-len, and no --document"),
    ],
)
def test_peek_says_what_it_needs(arguments: list[str], message: str, dataset: Path) -> None:
    done = use("peek", *(str(dataset) if word == "DIR" else word for word in arguments))
    assert done.exit_code == 2
    assert message in done.stderr


ESCAPES = "\x1b[2J\x1b]52;c;aGk=\x07\x9b31m\u202e"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose every word is a stranger's and would clear the screen and set the clipboard."""
    out = tmp_path_factory.mktemp("hostile") / "out"
    made = tokenize([f"Text {ESCAPES}\nof two lines."] * 9, out, tokenizer="bytes", shard_tokens=150, workers=1)
    files = (SourceFile(path=f"x{ESCAPES}.txt", bytes=9, rows=9, documents=9, tokens=made.tokens),)
    source = SourceInfo(id=ESCAPES, config=ESCAPES, split=ESCAPES, revision=ESCAPES, files=files)
    replace(made, source=source, encoder={"engine": ESCAPES}, shardkit_version=ESCAPES).save(out)
    return out


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_no_command_sends_a_strangers_control_characters_to_the_terminal(
    hostile: Path, tmp_path: Path, more: list[str]
) -> None:
    row = ["--step", "0", "--batch-size", "1", "--seq-len", "8"]
    broken = tmp_path / f"far{ESCAPES}"
    shutil.copytree(hostile, broken)
    next(broken.glob("*.npy")).unlink()
    said = ""
    for words, code in (
        (["info", hostile], 0),
        (["verify", hostile], 0),
        (["peek", hostile], 0),
        (["peek", hostile, *row], 0),
        (["peek", hostile, "--document", "99"], 2),
        (["push", hostile, tmp_path / "far"], 0),
        (["pull", tmp_path / "far", tmp_path / "in"], 0),
        (["verify", broken], 1),
        (["pull", broken, tmp_path / "in2"], 1),
        (["tokenize", f"./{ESCAPES}.txt", "--out", tmp_path / "made"], 1),
        (["tokenize", "sample", "--out", tmp_path / "made", "--prefix", ESCAPES], 2),
    ):
        done = CliRunner().invoke(main, [*map(str, words), *more], catch_exceptions=False)
        assert done.exit_code == code, done.output
        said += done.output
    assert not set(said) & {"\x1b", "\x07", "\x9b", "\u202e"}
    assert "\\x1b[2J" in said
    if not more:
        assert "Text \\x1b[2J\\x1b]52;c;aGk=\\x07\\x9b31m\\u202e\nof two lines." in said


def test_progress_bars_escape_the_control_characters_of_a_file_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with TransferBar("pull") as bar:
        bar(f"x{ESCAPES}.npy", 1, 2)
    assert not set(sys.stderr.getvalue()) & {"\x1b", "\x07", "\x9b", "\u202e"}
