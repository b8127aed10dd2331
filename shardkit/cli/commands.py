"""`shardkit`, and its commands that move datasets. Those that make them are in `making.py`, those that look at them in
`looking.py`.

An option's name is a keyword of the function that the command calls: a new option needs both.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from shardkit import __version__
from shardkit.cli.converting import convert
from shardkit.cli.looking import LOOKING
from shardkit.cli.making import merge, tokenize, train_tokenizer
from shardkit.cli.options import (
    ShardRange,
    complete_path,
    examples,
    json_option,
    print_result,
    quiet_option,
    warnings_as_lines,
)
from shardkit.errors import ShardkitError, UsageError, machine_fault
from shardkit.interrupt import end_quietly, prompt_interrupt
from shardkit.redaction import public_address

_OF_THE_TRAINER = ("train", "eval", "sample", "export")
_STOPPED = "stopped: run the same command again, it goes on from the last finished shard, if there is one"
_STOPPED_LOOKING = "stopped: nothing was changed"
_STOPPED_CONVERTING = "stopped: if OUT is not there, nothing was made, and the same command begins again"
_STOPPED_TRAINING = "stopped: if --out has no tokenizer.json, nothing was made, and the same command begins again"


def _stopped(command: str | None = None) -> str:
    """What Ctrl-C leaves, in words."""
    if command in [looking.name for looking in LOOKING]:
        return _STOPPED_LOOKING
    if command == convert.name:
        return _STOPPED_CONVERTING
    return _STOPPED_TRAINING if command == train_tokenizer.name else _STOPPED


class _Group(click.Group):
    """Turns our own errors, and the machine's, into one line and exit code 1 (2 for usage). Any other exception is a
    bug: traceback."""

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in _OF_THE_TRAINER:
            context.fail(f"No such command '{args[0]}': the trainer has it, `python -m trainer {args[0]}`.")
        return super().resolve_command(context, args)

    @ShardkitError.naming_flags()
    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except Exception as error:
            if (line := error if isinstance(error, ShardkitError) else machine_fault(error)) is None:
                raise
            click.echo(f"error: {line}", err=True)
            context.exit(2 if isinstance(line, UsageError) else 1)
        except KeyboardInterrupt:
            click.echo(_stopped(context.invoked_subcommand), err=True)
            context.exit(130)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="shardkit")
def main() -> None:
    """From raw text to training batches: tokenize into .npy shards, move them, look at them.

    \b
    shardkit tokenize sample --out out        real shards from the built-in sample, no download
    shardkit tokenize                         FineWeb-Edu sample-10BT into ./edu_fineweb10B
    shardkit peek out                         the first document, decoded
    """


for command in (tokenize, merge, convert, train_tokenizer, *LOOKING):
    main.add_command(command)


@main.command(
    short_help="Send a dataset to the Hub, a bucket or a folder.",
    epilog=examples(
        "shardkit push out you/edu-tokens",
        "shardkit push out you/edu-tokens --private --tag v1",
        "shardkit push out s3://bucket/edu-tokens",
    ),
)
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("repo", shell_complete=complete_path)
@click.option("--private", is_flag=True, help="Make the Hub repo private.")
@click.option("--revision", help="Branch of the Hub repo; made if need be.")
@click.option("--tag", help="Name the resulting commit.")
@click.option("--overwrite", is_flag=True, help="Replace another dataset that is there.")
@click.option("--repair", is_flag=True, help="Read back what is there, and send again what is served wrong.")
@quiet_option
@json_option
def push(directory: Path, repo: str, quiet: bool, as_json: bool, **options: Any) -> None:
    """Send the dataset folder DIR to REPO: only what is missing there, verified, the manifest last.

    REPO: user/name[/folder] on the Hub, a folder, or a URL (hf://buckets/, file://, s3://, gs://). Run it again after
    any failure.
    """
    from shardkit.look.next_steps import steps_for_place
    from shardkit.remote.push import push as run

    with warnings_as_lines():
        result = run(directory, repo, progress=not quiet, **options)
    print_result({"dataset": str(directory), **dataclasses.asdict(result)}, as_json, steps_for_place(repo))


@main.command(
    short_help="Download a dataset, every file verified.",
    epilog=examples(
        "shardkit pull you/edu-tokens",
        "shardkit pull you/edu-tokens data --split val",
        "shardkit pull you/edu-tokens data --shards 0:10",
    ),
)
@click.argument("repo", shell_complete=complete_path)
@click.argument("directory", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.option("--revision", help="Branch, tag or commit of the Hub repo.")
@click.option("--split", help="Only that split.")
@click.option("--shards", type=ShardRange(), metavar="A:B", help="Only shards with index A up to B, B left out.")
@click.option("--allow-gaps", is_flag=True, help="Pull bare shards also where some are missing between them.")
@click.option("--overwrite", is_flag=True, help="Replace another dataset that is in DIR.")
@quiet_option
@json_option
def pull(
    repo: str,
    directory: Path | None,
    revision: str | None,
    split: str | None,
    shards: tuple[int, int] | None,
    allow_gaps: bool,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Download the dataset at REPO into DIR (default: the last part of REPO's name), every file
    verified.

    Run it again after any failure, or for more shards: what DIR holds and is right is not fetched again. `verified: no`
    says that neither a manifest nor the remote gave hashes to check the files against.
    """
    from shardkit.look.next_steps import steps_for_folder
    from shardkit.remote.listing import Selection
    from shardkit.remote.pull import pull_checked

    selection = Selection(split, shards, allow_gaps)
    with warnings_as_lines():
        manifest, verified = pull_checked(
            repo, directory, revision=revision, selection=selection, overwrite=overwrite, progress=not quiet
        )
    folder = str(manifest.directory)
    summary: dict[str, Any] = {"dataset": folder, "repo": public_address(repo)}
    summary |= {"shards": len(manifest.shards), "tokens": manifest.tokens, "documents": manifest.documents}
    summary |= {"fingerprint": manifest.fingerprint, "verified": verified}
    print_result(summary, as_json, steps_for_folder(folder, manifest.splits))


def run() -> None:
    """The console script: `main`, in a process of its own."""
    try:
        with prompt_interrupt(_stopped(*sys.argv[1:2])):
            main()
    finally:
        end_quietly()
