"""`loss.png`: the losses of a run over its steps and tokens, and the learning rate below them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shardkit import machine_fault

_SMOOTHED_SHARE = 50  # the smoothed line looks back over a fiftieth of the run, or so,
_EARLY_SHARE = 10  # and at most over a tenth of the steps so far


def draw_losses(entries: Sequence[dict[str, Any]], path: Path, reference: dict[str, float], batch_tokens: int) -> None:
    """Draw the training loss, smoothed too, the validation loss, a dashed line for each `reference`, and the learning
    rate into `path`. A step is of `batch_tokens` tokens. The legend is outside of the axes, and covers no line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), dpi=120, layout="constrained")
    losses, rates = figure.subplots(2, sharex=True, height_ratios=(4, 1))
    train = [(e["step"], e["loss"]) for e in entries if "loss" in e and math.isfinite(e["loss"])]
    if train:
        steps, raw = zip(*train, strict=True)
        smooth = smoothed(raw)
        losses.plot(steps, raw, color="tab:blue", linewidth=0.8, alpha=0.35, label=f"train ({raw[-1]:.3f})")
        losses.plot(steps, smooth, color="tab:blue", linewidth=1.6, label=f"train, smoothed ({smooth[-1]:.3f})")
    if val := [(e["step"], e["val_loss"]) for e in entries if "val_loss" in e]:
        steps, values = zip(*val, strict=True)
        losses.plot(steps, values, color="tab:orange", marker="o", markersize=3, label=f"val ({values[-1]:.3f})")
    for (name, level), color in zip(reference.items(), ("tab:green", "tab:gray"), strict=False):
        losses.axhline(level, color=color, linestyle="--", linewidth=1, label=f"{name} ({level:.3f})")
    if schedule := [(e["step"], e["lr"]) for e in entries if "lr" in e]:
        rates.plot(*zip(*schedule, strict=True), color="tab:purple", linewidth=1.2)
    tokens = losses.secondary_xaxis("top", functions=(lambda x: x * batch_tokens, lambda x: x / batch_tokens))
    tokens.xaxis.set_major_formatter(lambda count, _: short_count(count))
    tokens.set_xlabel("tokens")
    losses.set_ylabel("loss (nats a token)")
    rates.set(xlabel="step", ylabel="learning rate")
    rates.yaxis.set_major_formatter(lambda rate, _: f"{rate:.1e}" if rate else "0")
    rates.set_ylim(bottom=0)
    for axes in (losses, rates):
        axes.grid(alpha=0.3)
    if losses.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
    temp = path.with_name(f".{path.name}")
    figure.savefig(temp, format="png")
    temp.replace(path)


def reason_for_none() -> str | None:
    """Why no picture can be drawn on this machine, and what to do; None where one can be."""
    asked = os.environ.pop("MPLBACKEND", None)  # a notebook's, which may be no backend here; none is needed for a file
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        return str(machine_fault(error) or error)
    finally:
        if asked is not None:
            os.environ["MPLBACKEND"] = asked
    return None


def smoothed(values: Sequence[float]) -> list[float]:
    """A running mean in which what is long ago counts ever less; at the start, where a loss falls fast, sooner."""
    result: list[float] = []
    for number, value in enumerate(values):
        window = max(1.0, min(number / _EARLY_SHARE, len(values) / _SMOOTHED_SHARE))
        result.append(value if not result else result[-1] + (value - result[-1]) / window)
    return result


def short_count(count: float) -> str:
    """A large number as people say it: 10B, 1.25M, 800.

    >>> short_count(1_250_000), short_count(1e10), short_count(800)
    ('1.25M', '10B', '800')
    """
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= unit * 0.9995:  # 999,900 is said as 1M
            return f"{count / unit:.3g}{name}"
    return f"{count:.3g}"
