"""What is secret in an address stays out of all that a run prints, writes and sends; control characters are escaped."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from guarded_server import PASSWORD, SECRETS, SIGNATURES, USER, GuardedFtpServer, GuardedHttpServer, running
from trainer_data import write_dataset

from shardkit import UsageError, network
from trainer.checkpoint import CheckpointError, list_checkpoints, load_checkpoint
from trainer.distributed import find_world
from trainer.export import export_run
from trainer.train import train

HELLASWAG = json.dumps({"ctx": "one two", "endings": [" a", " b", " c", " d"], "label": 1}) + "\n"


def test_a_run_prints_writes_and_sends_no_secret_of_any_of_its_addresses(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(network, "FIRST_WAIT_SECONDS", 0.001)
    source, run = tmp_path / "source", tmp_path / "run"
    write_dataset(source / "data", document_tokens=16)
    (source / "hellaswag.jsonl").write_text(HELLASWAG)
    http, ftp = GuardedHttpServer(source), GuardedFtpServer(source)
    with running(http) as web, running(ftp) as files:
        addresses = {
            "data": f"ftp://{USER}:{PASSWORD}@{files}/data",
            "hellaswag": f"http://{web}/hellaswag.jsonl?X-Amz-Signature={SIGNATURES[0]}",
            "push_checkpoints": f"http://{USER}:{PASSWORD}@{web}/runs",
        }
        sizes = {"n_layer": 1, "n_head": 2, "n_embd": 32, "seq_len": 32, "micro_batch": 2, "batch_tokens": 256}
        given = {"model": "nano", **sizes, "val_tokens": 1024, "steps": 2, "save_every": 1, "device": "cpu"}
        train({"out": str(run), **given, **addresses})
        with pytest.raises(CheckpointError, match="cannot fetch a checkpoint from") as caught:
            train({"out": str(tmp_path / "other"), "resume": f"http://{USER}:{PASSWORD}@{web}/none", **given})
    assert (tmp_path / "data" / "manifest.json").exists()  # a folder is named without the password too
    assert http.received  # checkpoints were sent
    checkpoint = load_checkpoint(list_checkpoints(run / "checkpoints")[-1])
    saved = json.loads(checkpoint["config"])
    assert {name: saved[name] for name in addresses} == {
        "data": f"ftp://{files}/data",
        "hellaswag": f"http://{web}/hellaswag.jsonl",
        "push_checkpoints": f"http://{web}/runs",
    }
    export_run(run, tmp_path / "export", which="last", push=None)
    said = "".join(capfd.readouterr()) + repr(caught.value) + "".join(map(logging.Formatter().format, caplog.records))
    assert f"http://{web}/runs" in said
    paths = [path for path in tmp_path.rglob("*") if source not in path.parents]
    texts = [path.read_bytes() for path in paths if path.is_file()]
    for secret in SECRETS:
        assert secret not in said + " ".join(map(str, paths))
        assert not [text for text in (*texts, *http.received) if secret.encode() in text]


def test_control_characters_in_what_a_run_prints_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    find_world("cpu").say("tokenizer \x1b[2J\x9b31m")
    assert capsys.readouterr().out == "tokenizer \\x1b[2J\\x9b31m\n"


def test_an_export_goes_to_a_repo_and_not_to_an_address(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--push 'https://huggingface.co/alice/gpt': expected user/model") as caught:
        export_run(tmp_path, tmp_path / "out", which="last", push=f"https://{USER}:{PASSWORD}@huggingface.co/alice/gpt")
    assert PASSWORD not in repr(caught.value)
    assert not (tmp_path / "out").exists()
