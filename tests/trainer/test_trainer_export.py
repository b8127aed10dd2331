"""Weights go to transformers and come back: same logits, same bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from vocabulary_data import train_vocabulary

from shardkit import Tokenizer, UsageError, tokenize
from trainer.export import ExportError, Loaded, export_model, export_run, import_model, push_model, write_card
from trainer.model import Model, ModelConfig
from trainer.sample import sample_run
from trainer.train import train


def make() -> Model:
    torch.manual_seed(3)
    model = Model(ModelConfig(vocab_size=301, n_layer=2, n_head=4, n_embd=64, n_positions=32))
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases that do something
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def test_logits_equal_those_of_transformers(tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    model = make()
    export_model(model, tmp_path / "out", eot_id=300)
    theirs, report = GPT2LMHeadModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = torch.randint(0, 301, (3, 32))
    with torch.no_grad():
        expected = theirs.eval()(ids).logits
        ours = model.to_logits(model.hidden(ids))[..., :301]
    assert float((ours - expected).abs().max()) < 1e-4
    assert theirs.generation_config.eos_token_id == 300


def test_weights_that_transformers_saved_come_in_and_go_out_unchanged(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=301, n_positions=32, n_embd=64, n_layer=2, n_head=4))
    theirs.save_pretrained(tmp_path / "theirs")
    export_model(import_model(tmp_path / "theirs"), tmp_path / "ours", eot_id=300)
    before = load_file(tmp_path / "theirs" / "model.safetensors")
    after = load_file(tmp_path / "ours" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


def test_names_without_the_prefix_are_read_too_as_the_hubs_gpt2_has_them(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = make()
    export_model(model, tmp_path, eot_id=300)
    found = load_file(tmp_path / "model.safetensors")
    save_file({k.removeprefix("transformer."): v.clone() for k, v in found.items()}, tmp_path / "model.safetensors")
    for name, tensor in import_model(tmp_path).state_dict().items():
        assert torch.equal(tensor[:301], model.state_dict()[name][:301]), name


def test_a_folder_that_is_no_gpt2_is_refused(tmp_path: Path) -> None:
    export_model(make(), tmp_path, eot_id=300)
    described = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**described, "n_embd": 60}))
    with pytest.raises(ExportError, match="has shape"):
        import_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**described, "model_type": "llama"}))
    with pytest.raises(ExportError, match="is a llama model"):
        import_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(described))
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    with pytest.raises(ExportError, match="cannot read a GPT-2"):
        import_model(tmp_path)


def test_a_bigram_model_is_not_exported(tmp_path: Path) -> None:
    model = Model(ModelConfig(vocab_size=257, n_layer=0, n_head=0, n_embd=0, n_positions=8))
    with pytest.raises(UsageError, match="no GPT-2"):
        export_model(model, tmp_path, eot_id=256)


def test_the_card_says_what_the_model_was_fed(tmp_path: Path) -> None:
    state = {
        "config": json.dumps({"batch_tokens": 2048}),
        "fingerprint": "abc123",
        "source": "sample",
        "step": 7,
        "loss": 3.25,
        "last_val_loss": 3.5,
    }
    write_card(tmp_path, "alice/gpt", Loaded(model=make(), state=state), tmp_path)
    card = (tmp_path / "README.md").read_text()
    for part in (
        "abc123",
        "sample",
        "| steps | 7 of 2,048 tokens |",
        "3.2500",
        "3.5000",
        'from_pretrained("alice/gpt")',
    ):
        assert part in card
    assert "loss.png" not in card


@pytest.mark.parametrize("words", ["<script>x</script>", "[x](https://evil)", "a\n---\n# b", "`x` | \x1b[2J"])
def test_a_strangers_checkpoint_writes_no_markup_into_the_card(tmp_path: Path, words: str) -> None:
    state = {"config": "{}", "fingerprint": words, "source": words}
    write_card(tmp_path, "alice/gpt", Loaded(model=make(), state=state), None)
    card = ModelCard((tmp_path / "README.md").read_text())
    assert card.data.to_dict() == {
        "license": "other",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["gpt2", "shardkit"],
    }
    rows = [line for line in card.text.splitlines() if line.startswith("| data")]
    assert [row.count("|") for row in rows] == [3, 3]
    assert not set("".join(rows)) & set("<>[]()\x1b#")


def test_an_export_is_pushed_and_a_refusal_is_one_line(
    tmp_path: Path, hub: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    export_model(make(), tmp_path, eot_id=300)
    assert "alice/gpt" in push_model(tmp_path, "alice/gpt")
    assert {"config.json", "generation_config.json", "model.safetensors"} <= set(HfApi().list_repo_files("alice/gpt"))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ExportError, match="cannot push"):
        push_model(tmp_path, "alice/other")


def test_an_export_has_its_datasets_tokenizer_and_a_pipeline_writes_text(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, pipeline

    text = [f"The year {year} was a good one, and the {year + 1}th was better." for year in range(1500, 1900)]
    train_vocabulary(tmp_path / "own" / "tokenizer.json", specials=["<|endoftext|>"])
    tokenize(text, tmp_path / "data", tokenizer=str(tmp_path / "own"), shard_tokens=4000, workers=1)
    given = {"data": str(tmp_path / "data"), "out": str(tmp_path / "run"), "model": "nano", "n_layer": 1, "n_embd": 32}
    train({**given, "device": "cpu", "steps": 2, "val_every": 0})
    said = export_run(tmp_path / "run", tmp_path / "hf", which="last", push=None)
    assert said.endswith(f"holds the model and its tokenizer: pipeline('text-generation', model='{tmp_path}/hf')")
    ours, theirs = Tokenizer(str(tmp_path / "own")), AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs("The year 1789 was")["input_ids"] == ours.encode_ordinary("The year 1789 was")
    assert theirs.eos_token_id == ours.eot_id
    write = pipeline("text-generation", model=str(tmp_path / "hf"), device="cpu")
    told = write("The year", max_new_tokens=8, min_new_tokens=8, do_sample=False)[0]["generated_text"]
    assert told.startswith("The year")
    assert len(told) > len("The year")
    shown = {"which": "last", "device": "cpu", "prompt": "The year", "count": 1, "tokens": 8, "temperature": 0.0}
    more = sample_run(tmp_path / "hf", **shown, top_k=50, seed=1, tokenizer=None)
    assert more == sample_run(tmp_path / "run", **shown, top_k=50, seed=1, tokenizer=None)


def test_an_export_has_the_tokenizer_of_a_tiktoken_encoding_also_where_the_dataset_is_gone(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    text = [f"The year {year} was a good one, and the {year + 1}th was better." for year in range(1500, 1900)]
    tokenize(text, tmp_path / "data", tokenizer="gpt2", shard_tokens=4000, workers=1)
    given = {"data": str(tmp_path / "data"), "out": str(tmp_path / "run"), "model": "nano", "n_layer": 1, "n_embd": 32}
    train({**given, "device": "cpu", "steps": 1, "val_every": 0})
    for folder in ("with", "without"):
        said = export_run(tmp_path / "run", tmp_path / folder, which="last", push=None)
        assert "holds the model and its tokenizer" in said
        theirs = AutoTokenizer.from_pretrained(tmp_path / folder)
        assert theirs("The year 1789 was")["input_ids"] == Tokenizer("gpt2").encode_ordinary("The year 1789 was")
        assert theirs.eos_token_id == 50256
        shutil.rmtree(tmp_path / "data", ignore_errors=True)


def test_an_export_whose_tokenizer_is_gone_with_the_dataset_says_so(tmp_path: Path) -> None:
    train_vocabulary(tmp_path / "own" / "tokenizer.json", specials=["<|endoftext|>"])
    text = [f"The year {year} was a good one, and the {year + 1}th was better." for year in range(1500, 1900)]
    tokenize(text, tmp_path / "data", tokenizer=str(tmp_path / "own"), shard_tokens=4000, workers=1)
    given = {"data": str(tmp_path / "data"), "out": str(tmp_path / "run"), "model": "nano", "n_layer": 1, "n_embd": 32}
    train({**given, "device": "cpu", "steps": 1, "val_every": 0})
    shutil.rmtree(tmp_path / "data")
    said = export_run(tmp_path / "run", tmp_path / "hf", which="last", push=None)
    assert "no tokenizer is with it: nothing here says which, or has it" in said
    assert not (tmp_path / "hf" / "tokenizer.json").exists()
