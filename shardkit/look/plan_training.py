"""`plan` of a dataset: what an epoch of training on it is, by the arithmetic of the loader."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from shardkit.batches.layouts import Contiguous, LayoutStats
from shardkit.batches.order import Cut
from shardkit.batches.row_sequence import RowSequence
from shardkit.batches.rows import RowOptions
from shardkit.batches.run_position import RunPosition
from shardkit.dataset.known_files import KnownFiles
from shardkit.dataset.token_stream import open_stream
from shardkit.errors import UsageError
from shardkit.look.opened import opened
from shardkit.look.result_lines import ShownAsLines
from shardkit.remote.address import is_remote


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPlan(ShownAsLines):
    """An epoch over a split, exactly as `ShardLoader` gives it: `steps_per_epoch` global batches of `rows_per_step`
    rows and `tokens_per_step` input slots; `remainder_windows` are left over, and come first in the next epoch.

    The layout leaves `cropped_tokens` out, and pads `padded_slots` of all windows. Hours and dollars are of an epoch,
    where the rate of the whole run was given, all ranks together; else None.
    """

    dataset: str
    split: str
    layout: str
    tokens: int
    windows: int
    rows_per_step: int
    tokens_per_step: int
    steps_per_epoch: int
    remainder_windows: int
    cropped_tokens: int
    padded_slots: int
    hours_per_epoch: float | None = None
    dollars_per_epoch: float | None = None


def plan_training(
    place: str | os.PathLike[str],
    *,
    batch_size: int,
    seq_len: int,
    world_size: int,
    split: str,
    layout: str,
    eot_id: int | None,
    tokens_per_second: float | None,
    dollars_per_hour: float | None,
) -> TrainingPlan:
    """What an epoch of these loaders is. Of a remote only the manifest is read.

    Raises `UsageError` where `ShardLoader` does, and what opening the dataset raises.
    """
    cut = Cut(batch_size=batch_size, world_size=world_size)
    options = RowOptions(split=split, seq_len=seq_len, shuffle=True, seed=0, layout=layout, eot_id=eot_id)
    name, stats = _of_remote(place, options) if is_remote(place) else _of_folder(place, options)
    if stats.rows < cut.global_batch:
        raise UsageError(
            f"split {split!r} of {name} has {stats.rows:,} windows of {seq_len:,}; a global batch takes {batch_size} x "
            f"{world_size} = {cut.global_batch:,}: lower --batch-size, --seq-len or --world-size, or use more data"
        )
    steps = RunPosition(cut, {}, stats.rows).steps_per_epoch
    tokens_per_step = cut.global_batch * seq_len
    hours = steps * tokens_per_step / tokens_per_second / 3600 if tokens_per_second else None
    return TrainingPlan(
        dataset=name,
        split=split,
        layout=layout,
        tokens=stats.tokens,
        windows=stats.rows,
        rows_per_step=cut.global_batch,
        tokens_per_step=tokens_per_step,
        steps_per_epoch=steps,
        remainder_windows=stats.rows % cut.global_batch,
        cropped_tokens=round(stats.crop * stats.tokens),
        padded_slots=round(stats.pad * stats.rows * seq_len),
        hours_per_epoch=hours,
        dollars_per_epoch=hours * dollars_per_hour if hours is not None and dollars_per_hour is not None else None,
    )


def _of_folder(place: str | os.PathLike[str], options: RowOptions) -> tuple[str, LayoutStats]:
    with RowSequence(place, options) as rows:
        return rows.sources[0].name, rows.stats()


def _of_remote(place: str | os.PathLike[str], options: RowOptions) -> tuple[str, LayoutStats]:
    if options.layout != "contiguous":
        raise UsageError(
            f"--layout={options.layout} looks at every document: fetch {place} with `shardkit pull`, give the folder"
        )
    with opened(place) as dataset:
        stream = open_stream(dataset.manifest, options.split, KnownFiles(Path(), listed=False))
        layout = Contiguous(stream, options.seq_len, None)  # which reads nothing to count its rows
        if not layout.n_rows:
            raise UsageError(
                f"split {options.split!r} of {dataset.name} has {stream.tokens:,} tokens: 0 windows of "
                f"{options.seq_len:,}: lower --seq-len, or use more data"
            )
        return dataset.name, layout.stats()
