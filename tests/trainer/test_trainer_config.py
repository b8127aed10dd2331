"""What a run is: who wins, what is refused, and that nothing is lost in the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit import UsageError
from trainer.config import MODELS, Config, make_config, read_settings, read_toml

PLACES = {"data": "d", "out": "o"}


def test_flags_win_over_the_file_over_the_checkpoint_over_the_models_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('model = "nano"\nlr = 1\nsteps = 5\nseed = 7\n')
    given_ = read_settings({**PLACES, "steps": 9, "lr": None}, file)
    config = make_config(given_, {**given_, "keep": 4, "steps": 3})
    assert (config.steps, config.lr, config.seed, config.keep) == (9, 1.0, 7, 4)
    assert config.n_embd == MODELS["nano"]["n_embd"]


def test_epochs_given_as_a_flag_replace_steps_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("steps = 5\n")
    config = make_config(read_settings({**PLACES, "epochs": 2.0}, file))
    assert (config.steps, config.epochs) == (None, 2.0)


def test_the_short_name_of_a_model_is_known() -> None:
    assert make_config({**PLACES, "model": "350m"}) == make_config({**PLACES, "model": "gpt2-350m"})


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(prompt=text, lr=st.floats(1e-9, 1e9), steps=st.integers(1, 1 << 40), keep=st.integers(1, 99))
def test_a_config_survives_its_file(
    tmp_path_factory: pytest.TempPathFactory, prompt: str, lr: float, steps: int, keep: int
) -> None:
    config = make_config({**PLACES, "prompt": prompt, "lr": lr, "steps": steps, "keep": keep, "ledger": True})
    file = tmp_path_factory.mktemp("toml") / "config.toml"
    file.write_text(config.to_toml(), encoding="utf-8")
    assert make_config(read_toml(file)) == config


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 8), st.integers(1, 64))
def test_micro_steps_make_up_the_batch_or_are_refused(micro: int, seq: int, world: int, batch: int) -> None:
    config = Config(data="d", out="o", micro_batch=micro, seq_len=seq, batch_tokens=batch * seq)
    try:
        assert config.micro_steps(world) * micro * seq * world == batch * seq
    except UsageError:
        assert batch % (micro * world)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "gpt5"}, "unknown model 'gpt5': expected one of gpt2-124m"),
        ({"steps": 0}, "--steps is 0"),
        ({"steps": 3, "epochs": 1.0}, "give one"),
        ({"layout": "rows"}, "expected one of contiguous, document, packed"),
        ({"optimizer": "sgd"}, "expected one of adamw, muon"),
        ({"seq_len": -1}, "--seq-len is -1"),
        ({"out": ""}, "--out is missing"),
        ({"n_embd": 30, "n_head": 4}, "not a multiple"),
    ],
)
def test_a_value_that_cannot_work_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_config({**PLACES, **settings})


def test_another_model_or_batch_for_a_run_to_resume_is_refused() -> None:
    saved = {"model": "nano", "batch_tokens": 1024, "steps": 5}
    assert make_config({**PLACES, "model": "nano", "batch_tokens": 1024, "steps": 8}, saved).steps == 8
    with pytest.raises(UsageError, match=r"another config: --batch-tokens 2048 \(was 1024\)"):
        make_config({**PLACES, "batch_tokens": 2048}, saved)
    with pytest.raises(UsageError, match=r"--model gpt2-124m \(was nano\)"):
        make_config({**PLACES, "model": "124m"}, saved)


def test_a_checkpoint_from_before_there_were_layouts_goes_on_as_it_was() -> None:
    saved = {"model": "nano", "batch_tokens": 1024, "steps": 5}
    assert make_config({**PLACES, "layout": "contiguous", "document_mask": False}, saved).layout == "contiguous"
    with pytest.raises(UsageError, match=r"--layout packed \(was contiguous\), --document-mask True \(was False\)"):
        make_config({**PLACES, "layout": "packed", "document_mask": True}, saved)


@pytest.mark.parametrize(
    ("line", "message"),
    [("stepz = 3", "unknown setting 'stepz'"), ('steps = "3"', "expected int"), ("steps = ", "cannot read")],
)
def test_a_file_with_a_slip_is_refused(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(line)
    with pytest.raises(UsageError, match=message):
        read_toml(tmp_path / "c.toml")
    with pytest.raises(UsageError, match="cannot read"):
        read_toml(tmp_path / "none.toml")
