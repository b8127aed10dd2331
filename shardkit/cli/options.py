"""What the commands share: types of options, the way a result is printed, warnings as lines."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from shardkit.errors import ShardkitWarning

_ZEROS = {"": 0, "k": 3, "m": 6, "g": 9, "b": 9, "t": 12}  # of tokens and documents: a billion is a G or a B
if TYPE_CHECKING:
    from shardkit.look.result_lines import Result

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line of stdout.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Show no progress on stderr.")


def examples(*commands: str) -> str:
    """The end of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {command}" for command in commands)


def complete_path(_context: click.Context, _argument: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """For an argument that may be a path, and may be something else: what a shell completes is the path."""
    return [CompletionItem(incomplete, type="file")]


class Size(click.ParamType[int]):
    """A number of bytes with an optional decimal unit: `500MB`, `5GB`, `1.5TB`, `2GiB`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The size in bytes."""
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?)(i?)b?\s*", str(value).lower())
        if match is None:
            self.fail(f"{value!r} is not a size: expected for example 500MB, 5GB or 2GiB", param, ctx)
        base = 1024 if match[3] else 1000
        return int(float(match[1]) * base ** " kmgt".index(match[2] or " "))


class Count(click.ParamType[int]):
    """A whole number as people write it: `100M`, `1e8`, `100_000_000`, `100,000,000`."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        if isinstance(value, int):
            return value
        plain = re.sub(r"(?<=\d)[,_](?=\d{3}(?!\d))", "", str(value).strip())  # 1,5M is a million and a half to many
        match = re.fullmatch(r"([+-]?[0-9]*\.?[0-9]+(?:e[+]?[0-9]{1,3})?)([kmgbt]?)", plain.lower())
        number = Decimal(match[1]) * 10 ** _ZEROS[match[2]] if match else Decimal("0.5")
        if number != number.to_integral_value():
            self.fail(f"{value!r} is not a whole number: expected for example 100M, 1e8 or 100000000", param, ctx)
        return int(number)


class ShardRange(click.ParamType[tuple[int, int]]):
    """A half-open range of shard indices, `0:10`."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """The two ends."""
        match = re.fullmatch(r"([0-9]+):([0-9]+)", str(value))
        if match is None or int(match[1]) >= int(match[2]):
            self.fail(f"{value!r} is not a range of shards: expected A:B with A below B, for example 0:10", param, ctx)
        return int(match[1]), int(match[2])


def print_result(result: Result, as_json: bool, next_steps: Sequence[str] = ()) -> None:
    """A result for people, with commands that they may want `next_steps`, or as one JSON line."""
    from shardkit.look.result_lines import result_json, result_lines

    lines = [result_json(result)] if as_json else [*result_lines(result)]
    if next_steps and not as_json:
        lines += result_lines({"next": list(next_steps)})
    for line in lines:
        click.echo(line)


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Show our warnings as one line each on stderr, above a bar that is there."""
    from shardkit.bars import make_way

    with warnings.catch_warnings():
        usual = warnings.formatwarning

        def as_line(
            message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
        ) -> str:
            make_way()
            ours = issubclass(category, ShardkitWarning)
            return f"warning: {message}\n" if ours else usual(message, category, filename, lineno, line)

        warnings.simplefilter("always", ShardkitWarning)
        warnings.formatwarning = as_line
        try:
            yield
        finally:
            warnings.formatwarning = usual
