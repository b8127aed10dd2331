"""Checks the parts of a checkpoint: each is there, and of the kind, shape and range that this trainer writes.

What is wrong in a damaged or a stranger's file is refused here in one line, before memory is allocated for it. What the
run reads, and where it sends anything, is not checked here: no checkpoint decides that (places.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shardkit import ShardkitError, UsageError
from trainer.config import check_types
from trainer.model import Model, ModelConfig

FORMAT = 1
State = dict[str, Any]
_SIZES = ("vocab_size", "n_layer", "n_head", "n_embd", "n_positions")


class CheckpointError(ShardkitError):
    """A checkpoint that is missing, damaged, or of another version."""


class NoCheckpoint(CheckpointError):
    """A place that answers and holds no checkpoint."""


class _Kind(NamedTuple):
    expected: str
    fits: Callable[[Any], bool]


def is_tensor(value: object) -> bool:
    """Whether `value` is a plain tensor whose elements are all in its file: none is larger than that."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.is_contiguous()


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < float("inf")


def _is_bytes_matrix(value: Any) -> bool:
    return is_tensor(value) and value.dtype == torch.uint8 and value.dim() == 2


_COUNT = _Kind("a whole number of at least 0", _is_count)
_NUMBER = _Kind("a number", lambda value: type(value) is float)
_LOSS = _Kind("a number, or None", lambda value: value is None or type(value) is float)
_TEXT = _Kind("text", lambda value: type(value) is str)
_JSON = _Kind("a JSON object, as text", lambda value: _json_object(value) is not None)
_KINDS = {
    "step": _COUNT,
    "loss": _NUMBER,
    "val_loss": _LOSS,
    "last_val_loss": _LOSS,
    "best": _NUMBER,
    "world_size": _COUNT,
    "eot_id": _COUNT,
    "fingerprint": _TEXT,
    "source": _TEXT,
    "tokenizer": _Kind("text, or None", lambda value: value is None or type(value) is str),
    "loader": _JSON,
    "config": _JSON,
    "model_config": _JSON,
    "model": _Kind(
        "tensors by name",
        lambda value: (
            isinstance(value, dict) and all(is_tensor(part) and part.is_floating_point() for part in value.values())
        ),
    ),
    "optimizers": _Kind(
        "a list of optimizers' states",
        lambda value: isinstance(value, list) and all(isinstance(x, dict) for x in value),
    ),
    "scaler": _Kind(
        "numbers by name", lambda value: isinstance(value, dict) and all(map(_is_positive, value.values()))
    ),
    "rng": _Kind(
        "a row of bytes for each rank",
        lambda value: _is_bytes_matrix(value) and value.shape[1] == torch.get_rng_state().numel(),
    ),
    "cuda_rng": _Kind(
        "a row of bytes for each rank, or none",
        lambda value: _is_bytes_matrix(value) or (is_tensor(value) and value.numel() == 0),
    ),
}
_LATER = {"vocabulary": _TEXT}  # the SHA-256 in `TokenizerInfo`; checkpoints of earlier builds have none


def check_parts(state: object, path: Path) -> State:
    """`state`, as it was read from `path`. Raises `CheckpointError` for the first part that is missing or wrong."""
    if not isinstance(state, dict) or type(state.get("format")) is not int or state["format"] != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this trainer (format {FORMAT})")
    for name, kind in {**_KINDS, **_LATER}.items():
        if name in _LATER and name not in state:
            continue
        if name not in state:
            raise _wrong(path, name, "missing", kind.expected)
        if not kind.fits(state[name]):
            raise _wrong(path, name, _described(state[name]), kind.expected)
    try:
        check_types(json.loads(state["config"]), "its config")
    except UsageError as error:
        raise CheckpointError(f"{path} is not a checkpoint of this version: {error}") from None
    _check_weights(state, path)
    return state


def _check_weights(state: State, path: Path) -> None:
    """Check that the sizes in `model_config` are those of the weights, so that none claims more than the file holds."""
    sizes, weights = json.loads(state["model_config"]), state["model"]
    if set(sizes) != {*_SIZES} or not all(_is_count(size) for size in sizes.values()):
        raise _wrong(path, "model_config", _described(state["model_config"]), f"whole numbers {', '.join(_SIZES)}")
    config = ModelConfig(**sizes)
    layers = {name.split(".")[2] for name in weights if isinstance(name, str) and name.startswith("transformer.h.")}
    width = config.n_embd if config.n_layer else config.padded_vocab_size
    table = weights.get("transformer.wte.weight")
    if len(layers) != config.n_layer or table is None or table.shape != (config.padded_vocab_size, width):
        raise _wrong(path, "model", "not of the sizes in model_config", f"the weights of {state['model_config']:.200}")
    if config.n_layer and (not config.n_head or config.n_embd % config.n_head):
        raise _wrong(path, "model_config", _described(state["model_config"]), "heads that share the width")
    if config.n_layer and config.n_positions > _rows_of(weights.get("transformer.wpe.weight")):
        raise _wrong(path, "model", "of fewer positions", f"n_positions {config.n_positions}")
    with torch.device("meta"):  # shapes alone
        expected = Model(config).state_dict()
    for name in {*expected, *weights}:
        if name not in expected or name not in weights or weights[name].shape != expected[name].shape:
            wanted = tuple(expected[name].shape) if name in expected else "no such weight"
            raise _wrong(path, f"model: {name!r:.80}", _described(weights.get(name)), str(wanted))


def _rows_of(weight: Tensor | None) -> int:
    return 0 if weight is None or weight.dim() != 2 else weight.shape[0]


def _json_object(text: Any) -> dict[str, Any] | None:
    try:
        value = json.loads(text) if type(text) is str else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _wrong(path: Path, part: str, actual: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a whole checkpoint: its {part} is {actual}, expected {expected}: take an older one"
    )


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if type(value) is str or value is None or type(value) is float or _is_count(value):
        return f"{value!r:.80}"
    return f"of type {type(value).__name__}" if type(value) is not int else "a number out of range"
