"""`plan`: what training on a dataset, or tokenizing a source, will take."""

from __future__ import annotations

import inspect
import os
from typing import Any

from shardkit.arguments import place_text, user_path, whole_numbers
from shardkit.errors import UsageError
from shardkit.look.plan_tokenizing import TokenizingPlan, plan_tokenizing
from shardkit.look.plan_training import TrainingPlan, plan_training
from shardkit.remote.uploader import TransferProgress
from shardkit.sources.formats import format_of
from shardkit.sources.listing import is_dataset_of_tokens
from shardkit.sources.pipe import is_pipe


def plan(
    place: str | os.PathLike[str],
    *,
    batch_size: int | None = None,
    seq_len: int | None = None,
    world_size: int = 1,
    layout: str = "contiguous",
    eot_id: int | None = None,
    tokens_per_second: float | None = None,
    dollars_per_hour: float | None = None,
    out: str | os.PathLike[str] | None = None,
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    include: str | None = None,
    text_field: str = "text",
    separator: str | None = None,
    skip_bad_rows: bool = False,
    where: str | None = None,
    sample: float | None = None,
    tokenizer: str = "gpt2",
    shard_tokens: int | None = None,
    workers: int | None = None,
    upload_rate: int | None = None,
    progress: TransferProgress | bool | None = True,
) -> TrainingPlan | TokenizingPlan:
    """What an epoch over the dataset at `place` is, or what tokenizing the source of that name takes on this machine.

    With `batch_size` and `seq_len` it is a dataset's folder or a remote, and the plan an epoch of `ShardLoader` with
    these options: steps, what is left over, what the layout pads and crops, and, with the `tokens_per_second` of all
    ranks together, its hours, and with `dollars_per_hour` its price. Of a remote only the manifest is read.

    Without them it is a source, as `tokenize` takes it with the same options. It is sampled, its beginning is tokenized
    for some seconds into a folder beside `out` (default: the current one) that is removed again, and the disk is
    written to. `upload_rate` is in bytes a second. The plan says what it has measured, and what it assumes.

    Raises `UsageError`, and what `ShardLoader` or `tokenize` raise.

    >>> planned = plan("out", batch_size=8, seq_len=512)
    >>> planned.steps_per_epoch == planned.windows // 8
    True
    """
    batch_size, seq_len, shard_tokens, workers, upload_rate = whole_numbers(
        batch_size=batch_size, seq_len=seq_len, shard_tokens=shard_tokens, workers=workers, upload_rate=upload_rate
    )
    world_size = whole_numbers(or_none=False, world_size=world_size)[0]
    for option, value in (("tokens-per-second", tokens_per_second), ("dollars-per-hour", dollars_per_hour)):
        if value is not None and not value > 0:
            raise UsageError(f"--{option} is {value}: expected a number above 0")
    if (batch_size is None) != (seq_len is None):
        raise UsageError("a plan of training needs both --batch-size and --seq-len; one of tokenizing neither")
    of_source: dict[str, Any] = {"name": name, "revision": revision, "text_field": text_field, "include": include}
    of_source |= {"separator": separator, "skip_bad_rows": skip_bad_rows, "where": where, "sample": sample}
    of_run: dict[str, Any] = {"out": out, "tokenizer": tokenizer, "shard_tokens": shard_tokens, "workers": workers}
    of_run["upload_rate"] = upload_rate
    if batch_size is not None and seq_len is not None:
        _check_unused(
            of_source | of_run, "tokenizing a source, and with --batch-size and --seq-len this plans training"
        )
        if _names_text(place):
            raise UsageError(
                f"{place} is text, no dataset: without --batch-size and --seq-len its tokenizing is planned"
            )
        return plan_training(
            place,
            batch_size=batch_size,
            seq_len=seq_len,
            world_size=world_size,
            split=split,
            layout=layout,
            eot_id=eot_id,
            tokens_per_second=tokens_per_second,
            dollars_per_hour=dollars_per_hour,
        )
    of_epoch = {"world_size": world_size, "layout": layout, "eot_id": eot_id, "tokens_per_second": tokens_per_second}
    if isinstance(place, str | os.PathLike) and is_dataset_of_tokens(user_path(place)):
        raise UsageError(f"{place} is a dataset of tokens: give --batch-size and --seq-len to plan training on it")
    _check_unused(of_epoch, "training, and without --batch-size and --seq-len this plans tokenizing")
    run: dict[str, Any] = {**of_run, "dollars_per_hour": dollars_per_hour, "progress": progress}
    return plan_tokenizing(place, split=split, **run, **of_source)


def _check_unused(options: dict[str, Any], what: str) -> None:
    """Raise `UsageError` for one of `options`, which are of the other kind of plan, that was given."""
    parameters = inspect.signature(plan).parameters
    for name, value in options.items():
        if value != parameters[name].default:
            raise UsageError(f"--{name.replace('_', '-')} is of {what}: leave it out")


def _names_text(place: Any) -> bool:
    if not isinstance(place, str | os.PathLike):
        return False
    text, path = place_text(place), user_path(place)
    return not path.is_dir() and (text == "sample" or is_pipe(text) or path.is_file() or format_of(text) is not None)
