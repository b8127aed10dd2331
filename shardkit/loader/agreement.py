"""Whether all ranks of a run read the same data: compared once over torch.distributed, when their loaders are made.

Each node resolves `main`, or a path of its own disk, by itself. Two nodes that come to different datasets would train
one model on both, and nothing would tell.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed

from shardkit.errors import ShardkitError, StateError

_SHOWN_HEX = 16  # digits of a fingerprint
_NAMES = ("name", "fingerprint", "revision")
_ERROR = "error"


class _Closable(Protocol):
    def close(self) -> None: ...


_Loader = TypeVar("_Loader", bound=_Closable)


def open_alike(
    open_loader: Callable[[], _Loader], describe: Callable[[_Loader], Mapping[str, Any]], device: torch.device
) -> _Loader:
    """What `open_loader` gives, once every rank is known to have the same; a collective, if there is a process group.

    `describe` says what a rank's batches depend on, as JSON values: its `fingerprint` and `revision`, and the `name`,
    which may differ. `device` is the rank's, for a process group that has only GPUs. Raises what `open_loader` raises;
    every other rank then, and every rank where two differ, raises the same `StateError`.
    """
    try:
        loader = open_loader()
    except ShardkitError as error:
        _gather_texts(json.dumps({_ERROR: str(error)}), device)  # the others must not wait for this rank
        raise
    try:
        texts = _gather_texts(json.dumps(describe(loader)), device)
        if difference := describe_difference([json.loads(text) for text in texts]):
            raise StateError(difference)
    except BaseException:
        loader.close()
        raise
    return loader


def describe_difference(ranks: Sequence[Mapping[str, Any]]) -> str | None:
    """One line on the first rank that failed, or that would read other data than rank 0; None where all are alike.

    Of two revisions of which one is None (a folder, beside a remote) the fingerprint decides.
    """
    for rank, data in enumerate(ranks):
        if _ERROR in data:
            return f"rank {rank} cannot open its data: {data[_ERROR]}"
    first = ranks[0]
    for rank, data in enumerate(ranks):
        keys = [key for key in first if key != "name" and first[key] != data[key]]
        if keys == ["revision"] and None in (first["revision"], data["revision"]):
            continue
        if keys:
            return (
                f"rank {rank} would read other data than rank 0 (other {', '.join(keys)}): rank 0 has "
                f"{_describe(first, keys)}; rank {rank} has {_describe(data, keys)}: give every rank the same dataset "
                "and options, of a Hub repo the same revision="
            )
    return None


def _describe(data: Mapping[str, Any], keys: Sequence[str]) -> str:
    shown = dict.fromkeys([*_NAMES, *keys])
    return ", ".join(f"{key} {_shorten(data[key])}" for key in shown if _says_something(data[key]) or key in keys)


def _says_something(value: Any) -> bool:
    return any(one is not None for one in (value if isinstance(value, list) else [value]))


def _shorten(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_shorten, value))}]"
    text = str(value)
    is_digest = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return text[:_SHOWN_HEX] if is_digest else text


def _gather_texts(text: str, device: torch.device) -> list[str]:
    """Every rank's text, by rank; where all are the same, only their hashes travel."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [text]
    data = text.encode()
    device = _device_of_group(device)
    heads = _gather_bytes(hashlib.sha256(data).digest() + len(data).to_bytes(8, "little"), device)
    if len(set(heads)) == 1:
        return [text] * len(heads)
    lengths = [int.from_bytes(head[-8:], "little") for head in heads]
    padded = _gather_bytes(data.ljust(max(lengths), b" "), device)
    return [part[:length].decode() for part, length in zip(padded, lengths, strict=True)]


def _gather_bytes(data: bytes, device: torch.device) -> list[bytes]:
    """Every rank's `data`, by rank; all are of one length."""
    ours = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device)
    parts = [torch.empty_like(ours) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, ours)
    return [part.cpu().numpy().tobytes() for part in parts]


def _device_of_group(device: torch.device) -> torch.device:
    """Where the process group's tensors must be: on the CPU if it can, else on `device` or another of its kind."""
    kinds = [part.partition(":")[0] for part in torch.distributed.get_backend_config().split(",")]
    if "cpu" in kinds:
        return torch.device("cpu")
    return device if device.type in kinds else torch.device(kinds[0])
