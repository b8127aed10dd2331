"""The commands that look: `info`, `verify`, `peek`, `diff`, `plan`, `report`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from shardkit.cli.making import file_source_options
from shardkit.cli.options import (
    Count,
    Size,
    complete_path,
    examples,
    json_option,
    print_result,
    quiet_option,
    warnings_as_lines,
)


@click.command(
    short_help="What is in a dataset folder.", epilog=examples("shardkit info out", "shardkit info out --json")
)
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@json_option
def info(directory: Path, as_json: bool) -> None:
    """Say what is in the dataset folder DIR."""
    from shardkit.look.info import info as look

    print_result(look(directory), as_json, [f"shardkit verify {shlex.quote(str(directory))}"])


@click.command(
    short_help="Check every byte of a dataset against its manifest.",
    epilog=examples("shardkit verify out", "shardkit verify you/edu-tokens --deep"),
)
@click.argument("place", metavar="DIR|REPO", shell_complete=complete_path)
@click.option("--hashes/--no-hashes", default=True, show_default=True, help="Compare hashes, else `verified: no`.")
@click.option("--deep", is_flag=True, help="Encode a sample of documents again, look where source files begin.")
@click.option("--source", help="With --deep: compare some files of the source too, which is there.")
@quiet_option
@json_option
@click.pass_context
def verify(
    context: click.Context, place: str, hashes: bool, deep: bool, source: str | None, quiet: bool, as_json: bool
) -> None:
    """Check every shard of DIR, or of what REPO serves, against the manifest: size, header, hash, ids, EOT count.

    One line for each shard that is not what the manifest says, and exit code 1. Of REPO a few shards are here at once.
    """
    from shardkit.look.next_steps import steps_for_folder, steps_for_place
    from shardkit.look.verify import check_all

    with warnings_as_lines():
        result, problems = check_all(place, hashes=hashes, deep=deep, source=source, progress=not quiet)
    for problem in problems:
        click.echo(f"error: {problem}", err=True)
    if as_json or not problems:
        print_result(result, as_json, steps_for_folder(place, ()) if Path(place).is_dir() else steps_for_place(place))
    context.exit(1 if problems else 0)


@click.command(
    short_help="A document or a row of a batch, decoded, and its source.",
    epilog=examples(
        "shardkit peek out --document 42",
        "shardkit peek out --step 1200 --rank 3 --row 7 --batch-size 16 --seq-len 1024 --world-size 8",
        "shardkit peek --run run --step 1200",
    ),
)
@click.argument("directory", metavar="[DIR]", required=False, shell_complete=complete_path)
@click.option("--document", type=int, help="Ordinal of the document in the dataset. [0]")
@click.option(
    "--run", type=click.Path(path_type=Path), help="Folder of a training run; DIR then, if its data has moved."
)
@click.option(
    "--step",
    type=click.IntRange(0, 1 << 40),
    help="Show a row of that batch; with --run, of that step as its log counts.",
)
@click.option("--micro-step", type=int, default=0, show_default=True, help="With --run: the step's forward pass.")
@click.option("--rank", type=int, default=0, show_default=True, help="The batch of that rank.")
@click.option("--row", type=int, default=0, show_default=True, help="That row of the batch.")
@click.option("--batch-size", type=int, help="Rows of a batch, as the loader was given.")
@click.option("--seq-len", type=int, help="Tokens of a row, as the loader was given.")
@click.option("--world-size", type=int, default=1, show_default=True, help="Ranks, as the loader was given.")
@click.option("--seed", type=int, default=0, show_default=True, help="The loader's seed.")
@click.option("--split", default="train", show_default=True, help="The loader's split.")
@click.option("--shuffle/--no-shuffle", default=True, show_default=True, help="Whether the loader shuffles.")
@click.option("--layout", default="contiguous", show_default=True, help="contiguous, document or packed.")
@click.option("--span", type=int, help="The loader's span, in shards.")
@click.option("--eot-id", type=int, help="Of bare shards: the end-of-text token's id.")
@click.option("--tokens", type=click.IntRange(1), default=300, show_default=True, help="Show at most that many tokens.")
@click.option("--tokenizer", help="Tokenizer to decode with. [the manifest's]")
@json_option
def peek(directory: str | None, as_json: bool, **options: Any) -> None:
    """Print a document of DIR, or a row of a batch, decoded, and where it came from.

    With --run, the run's log knows all but the step and the row.
    """
    from shardkit.look.peek import peek as look

    with warnings_as_lines():
        shown = look(directory, **options)
    print_result(shown, as_json)


@click.command(
    short_help="Whether two datasets hold the same tokens.",
    epilog=examples("shardkit diff out you/edu-tokens", "shardkit diff run-a/ledger run-b/ledger"),
)
@click.argument("a", metavar="A", shell_complete=complete_path)
@click.argument("b", metavar="B", shell_complete=complete_path)
@quiet_option
@json_option
@click.pass_context
def diff(context: click.Context, a: str, b: str, quiet: bool, as_json: bool) -> None:
    """Say whether A and B (folders or repos) hold the same tokens, and what differs.

    A and B may also be two ledgers of a loader, two files with its state (json.dump(loader.state_dict(), file)), or two
    checkpoints of the trainer.

    Exit code 1 if the tokens are not the same: then the first that differs is shown, with its document, on both sides.
    """
    from shardkit.look.diff import diff as look

    with warnings_as_lines():
        found = look(a, b, progress=not quiet)
    print_result(found, as_json)
    context.exit(0 if found.same else 1)


@click.command(
    short_help="What an epoch is, or what tokenizing will take.",
    epilog=examples(
        "shardkit plan out --batch-size 16 --seq-len 1024 --world-size 8 --tokens-per-second 2e6 --dollars-per-hour 20",
        "shardkit plan 'books/*.parquet'",
    ),
)
@click.argument("place", metavar="DIR|REPO|SOURCE", shell_complete=complete_path)
@click.option("--batch-size", type=Count(), help="Of a dataset: rows of a rank's batch.")
@click.option("--seq-len", type=Count(), help="Of a dataset: tokens of a row.")
@click.option("--world-size", type=Count(), default=1, show_default=True, help="Of a dataset: ranks.")
@click.option("--layout", default="contiguous", show_default=True, help="Of a dataset: contiguous, document or packed.")
@click.option("--eot-id", type=int, help="Of bare shards: the end-of-text token's id.")
@click.option("--tokens-per-second", type=float, help="Of a dataset: the rate of the run, all ranks together.")
@click.option("--dollars-per-hour", type=float, help="Of all machines together.")
@click.option("--out", type=click.Path(path_type=Path), help="Of a source: a folder on the disk to be measured. [.]")
@file_source_options
@click.option("--tokenizer", default="gpt2", show_default=True, help="Of a source: as tokenize takes it.")
@click.option("--shard-tokens", type=Count(), help="Of a source: tokens in a shard. [100,000,000]")
@click.option("--workers", type=int, help="Of a source: worker processes. [all cores]")
@click.option("--upload-rate", type=Size(), help="Of a source: bytes a second that --push would send.")
@quiet_option
@json_option
def plan(place: str, quiet: bool, as_json: bool, **options: Any) -> None:
    """Say what an epoch over DIR or REPO is, or what tokenizing SOURCE will take on this machine.

    SOURCE is sampled, and its beginning tokenized for some seconds into a folder that is removed again.
    """
    from shardkit.look.plan import plan as look

    with warnings_as_lines():
        found = look(place, progress=not quiet, **options)
    print_result(found, as_json)


@click.command(
    short_help="A page about a dataset, or about a training run or two.",
    epilog=examples("shardkit report out", "shardkit report run other-run --out runs.html"),
)
@click.argument("place", metavar="DIR|REPO|RUN", shell_complete=complete_path)
@click.argument("other", metavar="[RUN]", required=False, shell_complete=complete_path)
@click.option("--out", type=click.Path(path_type=Path), default="report.html", show_default=True, help="The page.")
@click.option("--sample", type=float, help="Of a dataset: that share of the shards, from all over it. [all]")
@click.option("--eot-id", type=int, help="Of bare shards: the end-of-text token's id.")
@quiet_option
@json_option
def report(place: str, other: str | None, quiet: bool, as_json: bool, **options: Any) -> None:
    """Write a page (one file, no script, no network) about a dataset, or about a training run or two.

    Of a dataset: lengths, copies, near-empty and repetitive documents, tokens, what each layout pads and crops.
    Of RUN, the folder of a training run: losses, rate, norm, waits; a second RUN is drawn over it.
    """
    from shardkit.look.report import report as look

    with warnings_as_lines():
        found = look(place, other, progress=not quiet, **options)
    print_result(found, as_json)


LOOKING = (info, verify, peek, diff, plan, report)
