"""The model is GPT-2, and its loss is the plain one, however it is computed."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import trainer.model as model_module
from shardkit import UsageError
from trainer.config import MODELS
from trainer.model import IGNORED, Model, ModelConfig

SIZES = ModelConfig(vocab_size=300, n_layer=2, n_head=4, n_embd=32, n_positions=16)


def make(seed: int = 0, scale: float = 1.0) -> Model:
    torch.manual_seed(seed)
    model = Model(SIZES)
    model.transformer["ln_f"].get_parameter("weight").data.mul_(scale)  # large logits: a sure model
    return model


def batch(rows: int = 3) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, 300, (rows, 17), generator=torch.Generator().manual_seed(1))
    return ids[:, :-1], ids[:, 1:]


def gradients(model: Model, chunked: bool) -> tuple[float, list[Tensor]]:
    model.chunked_loss = chunked
    model.zero_grad()
    loss = model(*batch())
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("rows", [1, 7, 48, 1000])
def test_the_loss_in_chunks_and_its_gradient_equal_the_plain_ones(
    rows: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(model_module._CHUNK_ELEMENTS, "cpu", rows * SIZES.padded_vocab_size)
    model = make(scale=scale)
    plain, chunked = gradients(model, chunked=False), gradients(model, chunked=True)
    assert math.isclose(chunked[0], plain[0], rel_tol=1e-6)
    for ours, theirs in zip(chunked[1], plain[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("chunked", [True, False])
def test_an_ignored_target_counts_nothing_and_each_other_one_as_much_as_ever(chunked: bool) -> None:
    model, (inputs, targets) = make(), batch()
    model.chunked_loss = chunked
    some = torch.rand(targets.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    kept, rest = targets.masked_fill(some, IGNORED), targets.masked_fill(~some, IGNORED)
    found = []
    for part in (targets, kept, rest):
        model.zero_grad()
        loss = model(inputs, part)
        loss.backward()
        found.append((loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (whole, gradient), *parts = found
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole)
    for total, one, other in zip(gradient, parts[0][1], parts[1][1], strict=True):
        torch.testing.assert_close(one + other, total, rtol=1e-4, atol=1e-6)
    losses = model.token_losses(inputs, kept)
    assert bool((losses[some] == 0).all())
    torch.testing.assert_close(losses.sum() / targets.numel(), parts[0][0])
    nothing = model(inputs, torch.full_like(targets, IGNORED))
    assert nothing.item() == 0.0


def test_where_nothing_is_ignored_the_plain_loss_is_the_mean_bit_for_bit() -> None:
    model, (inputs, targets) = make(), batch()
    model.chunked_loss = False
    mean = F.cross_entropy(model.to_logits(model.hidden(inputs)).flatten(0, 1), targets.flatten())
    expected = torch.autograd.grad(mean, list(model.parameters()))
    loss, found = gradients(model, chunked=False)
    assert loss == mean.item()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_under_autocast_the_chunked_gradient_is_near_and_of_the_parameters_type() -> None:
    model = make()
    _, exact = gradients(model, chunked=True)
    with torch.autocast("cpu", torch.bfloat16):
        _, near = gradients(model, chunked=True)
    for ours, theirs in zip(near, exact, strict=True):
        assert ours.dtype == torch.float32
        assert float((ours - theirs).norm()) <= 0.05 * float(theirs.norm()) + 1e-5


def test_the_loss_of_each_token_is_its_cross_entropy_over_the_true_vocabulary() -> None:
    model, (inputs, targets) = make(), batch()
    logits = model.to_logits(model.hidden(inputs))[..., :300]
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    torch.testing.assert_close(model.token_losses(inputs, targets), expected)
    assert math.isclose(model(inputs, targets).item(), expected.mean().item(), rel_tol=1e-5)


def test_an_untrained_model_knows_nothing() -> None:
    assert abs(make()(*batch(20)).item() - math.log(300)) < 0.1


def test_a_padded_id_has_no_part_in_anything() -> None:
    model = make()
    logits = model.to_logits(model.hidden(batch()[0]))
    assert logits.shape[-1] == 384
    assert bool(torch.isneginf(logits[..., 300:]).all())
    gradients(model, chunked=True)
    assert model.head.grad is not None
    assert float(model.head.grad[300:].abs().max()) == 0.0


def test_no_position_sees_a_later_one() -> None:
    model, (inputs, _) = make(), batch()
    changed = inputs.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 300
    before, after = model.hidden(inputs), model.hidden(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


@pytest.mark.parametrize(("name", "parameters"), [("gpt2-124m", 124_439_808), ("gpt2-1558m", 1_557_611_200)])
def test_gpt2_has_as_many_parameters_as_it_is_known_for(name: str, parameters: int) -> None:
    sizes = {key: MODELS[name][key] for key in ("n_layer", "n_head", "n_embd")}
    with torch.device("meta"):
        model = Model(ModelConfig(vocab_size=50257, n_positions=1024, **sizes))
    assert model.parameter_count == parameters


def test_what_adds_to_the_residual_stream_begins_smaller() -> None:
    torch.manual_seed(0)
    model = Model(ModelConfig(vocab_size=300, n_layer=8, n_head=4, n_embd=128, n_positions=16))
    weights = model.state_dict()
    assert abs(float(weights["transformer.h.3.mlp.c_fc.weight"].std()) - 0.02) < 0.001
    assert abs(float(weights["transformer.h.3.mlp.c_proj.weight"].std()) - 0.005) < 0.0005
    assert abs(float(weights["transformer.h.3.attn.c_proj.weight"].std()) - 0.005) < 0.0005


def test_a_bigram_model_is_a_table_and_one_of_gpt2s_vocabulary_is_refused() -> None:
    sizes = {"n_layer": 0, "n_head": 0, "n_embd": 0, "n_positions": 16}
    model = Model(ModelConfig(vocab_size=257, **sizes))
    ids = torch.randint(0, 257, (2, 16))
    torch.testing.assert_close(model.to_logits(model.hidden(ids))[..., :257], model.head[ids][..., :257])
    with pytest.raises(UsageError, match="--tokenizer bytes"):
        Model(ModelConfig(vocab_size=50257, **sizes))
