"""The sections of a training run's report, or of two runs, one drawn over the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shardkit.files import read_small_file
from shardkit.look.charts import Line, Words, line_chart, share, short
from shardkit.look.page import cards, facts, quoted, section
from shardkit.look.run_log import RunLog
from shardkit.redaction import redact

_MOST_POINTS = 400
_SMOOTHED = 50  # a mean over a fiftieth of the run
_DRAWN: tuple[tuple[str, str, Words], ...] = (
    ("bits_per_byte", "Bits a byte, of the validation", short),
    ("lr", "Learning rate", short),
    ("grad_norm", "Gradient norm", short),
    ("tokens_per_second", "Tokens a second", short),
    ("data_wait", "Share of a step that waits for data", share),
    ("mfu", "Model FLOPs utilization", share),
    ("epoch", "Epoch", short),
    ("hellaswag", "HellaSwag accuracy", share),
)
Points = Sequence[tuple[float, float]]


def run_sections(runs: Sequence[RunLog]) -> Iterator[str]:
    """The page's sections, in their order; each chart has a line for each run."""
    for run in runs:
        yield section(f"Run {run.folder}", facts(_facts(run)), _config(run))
    losses = [line for run in runs for line in _lines(run, "loss", _name(runs, run, "train"), smooth=True)]
    validation = [line for run in runs for line in _lines(run, "val_loss", _name(runs, run, "val"))]
    charts = [line_chart("Training loss, a mean over a fiftieth of the run", losses, x_name="step")]
    if validation:
        charts.append(line_chart("Validation loss", validation, x_name="step"))
    yield section("Loss", cards(*charts))
    others = [
        line_chart(title, lines, x_name="step", words=words)
        for name, title, words in _DRAWN
        if (lines := [line for run in runs for line in _lines(run, name, _name(runs, run, name))])
    ]
    yield section("The steps", cards(*others))


def _name(runs: Sequence[RunLog], run: RunLog, what: str) -> str:
    """What a line is called: the run, where there are several."""
    return f"{run.folder.name} ({runs.index(run) + 1})" if len(runs) > 1 else what


def _facts(run: RunLog) -> dict[str, object]:
    losses, best = run.figures.get("loss", []), min((v for _, v in run.figures.get("val_loss", [])), default=None)
    rates = [value for _, value in run.figures.get("tokens_per_second", [])]
    waits = [value for _, value in run.figures.get("data_wait", [])]
    data = run.data
    layout = data.get("loader", {}) if isinstance(data.get("loader"), dict) else {}
    batch = [data.get(name) for name in ("world_size", "micro_steps", "micro_batch")]
    return {
        "steps": run.steps,
        "hours in steps": f"{run.seconds / 3600:,.2f}",
        "first and last loss": f"{losses[0][1]:.4f}, {losses[-1][1]:.4f}" if losses else None,
        "best and last validation loss": None if best is None else f"{best:.4f}, {run.last('val_loss'):.4f}",
        "tokens a second": short(sum(rates) / len(rates)) if rates else None,
        "share of the time that waited for data": share(sum(waits) / len(waits)) if waits else None,
        "data": _text(data.get("source")),
        "ranks x micro-steps x windows": " x ".join(map(str, batch)) if None not in batch else None,
        "layout": f"{_text(layout.get('layout'))}, rows of {_text(layout.get('seq_len'))}" if layout else None,
        "resumed": f"{run.resumed:,} times" if run.resumed else None,
        "lines that could not be read": run.unread or None,
    }


def _text(value: object) -> str | None:
    return None if value is None else redact(str(value))[:500]


def _config(run: RunLog) -> str:
    """The run's `config.toml`, as it is but for secrets."""
    try:
        text = read_small_file(run.folder / "config.toml", most=1 << 16).decode(errors="replace")
    except OSError:
        return ""
    return f"<details><summary>config.toml</summary>{quoted(redact(text))}</details>" if text else ""


def _lines(run: RunLog, figure: str, name: str, *, smooth: bool = False) -> list[Line]:
    points = run.figures.get(figure)
    if not points:
        return []
    return [Line(name=name, points=_thinned(_smoothed(points) if smooth else points))]


def _smoothed(points: Points) -> Points:
    """The mean over up to a fiftieth of the points before each, itself included."""
    width, total, result = max(1, len(points) // _SMOOTHED), 0.0, []
    for number, (step, value) in enumerate(points):
        total += value
        if number >= width:
            total -= points[number - width][1]
        result.append((step, total / min(width, number + 1)))
    return result


def _thinned(points: Points) -> Points:
    """At most so many points, the first and the last among them: each is the mean of its neighbours."""
    each = -(-len(points) // _MOST_POINTS)
    if each == 1:
        return points
    groups = [points[first : first + each] for first in range(0, len(points), each)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]
