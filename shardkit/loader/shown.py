"""How a loader looks in a console and in a notebook: what it reads, and where it is, in a line or a small table."""

from __future__ import annotations

from typing import Any

from shardkit.notebook import html_table


class ShownInWords:
    """The `repr` of a loader, for one to be made of."""

    def __repr__(self) -> str:
        return f"<ShardLoader: {', '.join(f'{name} {value}' for name, value in _facts(self).items())}>"

    def _repr_html_(self) -> str:
        return html_table("ShardLoader", list(_facts(self).items()))


def _facts(loader: Any) -> dict[str, str]:
    first, *others = loader._sequence.sources
    return {
        "source": f"{first.name}{f' and {len(others)} more' if others else ''}",
        "split": loader.split,
        "layout": loader._sequence.identity["layout"],
        "rows": f"{loader.windows_per_epoch:,} of {loader.seq_len:,} tokens",
        "batch": f"{loader.batch_size:,} rows, {loader.steps_per_epoch:,} an epoch",
        "rank": f"{loader.rank} of {loader.world_size}",
        "next": f"step {loader.step:,}, epoch {loader.epoch:,}",
    }
