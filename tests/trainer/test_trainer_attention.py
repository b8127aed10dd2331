"""With a document mask a document is computed as if it were alone, however rows are packed and whatever masks it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.attention import Kind, mask_kind
from trainer.model import IGNORED, Model, ModelConfig

T = 24
Document = list[int]
documents = st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=T), min_size=1, max_size=8)


def make() -> Model:
    torch.manual_seed(0)
    model = Model(ModelConfig(vocab_size=300, n_layer=2, n_head=2, n_embd=32, n_positions=T))
    for weight in model.transformer["h"].parameters():
        weight.data.mul_(4)  # so that attention matters
    return model


def pack(docs: list[Document], padding: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, targets and positions `(B, T)`: a document goes where it fits first; padding is one more segment."""
    rows: list[list[Document]] = []
    for doc in docs:
        row = next((row for row in rows if sum(map(len, row)) + len(doc) <= T), None)
        if row is None:
            rows.append(row := [])
        row.append(doc)
    ids, targets, positions = [], [], []
    for row in rows:
        rest = T - sum(map(len, row))
        ids.append([t for doc in row for t in doc] + [padding] * rest)
        targets.append([t for doc in row for t in [*doc[1:], IGNORED]] + [IGNORED] * rest)
        positions.append([p for doc in row for p in range(len(doc))] + list(range(rest)))
    return torch.tensor(ids), torch.tensor(targets), torch.tensor(positions)


def gradients(model: Model, summed_loss: Tensor) -> list[Tensor]:
    model.zero_grad()
    summed_loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_near(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * max(1.0, float(other.abs().max())))


@settings(max_examples=25, deadline=None)
@given(docs=documents)
def test_each_document_has_the_logits_and_gradients_that_it_has_alone(docs: list[Document]) -> None:
    model = make()
    ids, targets, positions = pack(docs)
    logits = model.to_logits(model.hidden(ids, positions))[..., :300]
    ends = dict.fromkeys(range(len(ids)), 0)
    alone_loss = torch.zeros(())
    for doc in docs:  # each where the packing put it: behind those before it, in the first row with room
        row, at = next((row, end) for row, end in ends.items() if end + len(doc) <= T)
        ends[row] = at + len(doc)
        alone = model.to_logits(model.hidden(torch.tensor([doc])))[0, :, :300]
        torch.testing.assert_close(logits[row, at : at + len(doc)], alone, rtol=1e-5, atol=1e-5)
        alone_loss = alone_loss + model(torch.tensor([doc]), torch.tensor([[*doc[1:], IGNORED]])) * len(doc)
    packed_loss = model(ids, targets, positions) * ids.numel()
    torch.testing.assert_close(packed_loss, alone_loss, rtol=1e-5, atol=1e-5)
    assert_near(gradients(model, packed_loss), gradients(model, alone_loss))


@settings(max_examples=15, deadline=None)
@given(docs=documents, order=st.randoms(use_true_random=False))
def test_the_gradient_is_the_same_at_any_packing_and_with_any_padding(docs: list[Document], order: object) -> None:
    model = make()
    shuffled = list(docs)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    found = []
    for batch, padding in ((docs, 7), (shuffled, 7), (docs, 299)):
        ids, targets, positions = pack(batch, padding)
        loss = model(ids, targets, positions) * ids.numel()
        found.append([loss.detach(), *gradients(model, loss)])
    assert_near(found[1], found[0])
    assert_near(found[2], found[0])


def test_without_the_mask_a_document_sees_the_one_before() -> None:
    model, (ids, _, positions) = make(), pack([[1, 2, 3], [4, 5, 6]])
    changed = ids.clone()
    changed[0, 1] = 9
    masked = [model.hidden(i, positions)[:, 3:] for i in (ids, changed)]
    plain = [model.hidden(i)[:, 3:] for i in (ids, changed)]
    assert torch.equal(*masked)
    assert not torch.allclose(*plain)


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*:DeprecationWarning")  # torch, as it traces vmap
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # torch, as it compiles
@pytest.mark.parametrize("kind", ["flex", "dense"])
def test_compiled_once_either_mask_gives_the_loss_and_gradient_of_the_dense_one(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch lets no gradient through flex_attention on the CPU, where nothing is fast; its plain formulas are right.
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    model, twin = make(), make()
    model.chunked_loss, model.mask_kind, twin.mask_kind = False, kind, "dense"
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    batches = [[[1] * 5, [2, 8, 9] * 3, [3] * 24], [[4] * 24, [5, 6] * 12], [[n] for n in range(48)]]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for docs in batches:
            ids, targets, positions = pack(docs)
            ours, theirs = compiled(ids, targets, positions), twin(ids, targets, positions)
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
            assert_near(gradients(model, ours), gradients(twin, theirs))


def test_a_gpu_gets_flex_attention_and_all_else_a_dense_mask() -> None:
    assert [mask_kind(torch.device(name)) for name in ("cuda:0", "cpu", "mps")] == ["flex", "dense", "dense"]
