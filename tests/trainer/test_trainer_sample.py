"""Samples: by seed, within the vocabulary, past the model's length."""

from __future__ import annotations

import torch

from shardkit import Tokenizer
from trainer.model import Model, ModelConfig
from trainer.sample import generate, sample_text


def make() -> Model:
    torch.manual_seed(0)
    return Model(ModelConfig(vocab_size=257, n_layer=1, n_head=2, n_embd=32, n_positions=8))


def test_one_seed_gives_one_text_and_the_global_rng_is_left_alone() -> None:
    model, before = make(), torch.get_rng_state()
    one, two = (sample_text(model, Tokenizer("bytes"), "Hi", count=2, tokens=20, seed=5) for _ in range(2))
    assert one == two
    assert one != sample_text(model, Tokenizer("bytes"), "Hi", count=2, tokens=20, seed=6)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(text.startswith("Hi") for text in one)


def test_no_padded_id_is_drawn_and_the_context_may_grow_past_the_models_length() -> None:
    ids = generate(make(), torch.zeros(64, 1, dtype=torch.int64), tokens=40, top_k=None, temperature=100.0)
    assert ids.shape == (64, 41)
    assert int(ids.max()) == 256


def test_temperature_zero_and_top_k_one_take_the_likeliest() -> None:
    start = torch.zeros(1, 1, dtype=torch.int64)
    assert torch.equal(
        generate(make(), start, tokens=12, temperature=0), generate(make(), start, tokens=12, top_k=1, seed=9)
    )


def test_a_text_ends_where_the_model_ends_it() -> None:
    model = Model(ModelConfig(vocab_size=257, n_layer=0, n_head=0, n_embd=0, n_positions=8))
    with torch.no_grad():
        model.head.zero_()
        model.head[ord("!"), 256] = 99.0
        model.head[:, ord("!")] += 50.0
    assert sample_text(model, Tokenizer("bytes"), "a", tokens=10, temperature=0) == ["a!"]
