"""The commands that make something of text: `tokenize` and `train-tokenizer`."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import click

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
from shardkit.redaction import public_address

_FORMAT = click.option("--format", help="What comes through a pipe (-): jsonl, json, csv, tsv or txt.")
_SOURCE_OPTIONS = (
    click.option("--name", help="Config of a Hub dataset. [sample-10BT for the default SOURCE]"),
    click.option("--split", default="train", show_default=True, help="Split of a Hub dataset."),
    click.option("--revision", help="Branch, tag or commit of a Hub dataset; resolved to a commit once."),
    click.option("--include", metavar="GLOB", help="Only the files of that name, as sample/10BT/00[0-3]*."),
    _FORMAT,
    click.option("--text-field", default="text", show_default=True, help="Column or field (a.b) that holds the text."),
    click.option("--separator", help="Text between two documents of a .txt file. [one document a file]"),
    click.option("--skip-bad-rows", is_flag=True, help="Pass over rows that are not JSON or not UTF-8, and list them."),
    click.option("--where", metavar="TEST", help="Only rows for which that is true: score >= 3 and lang == 'en'."),
    click.option("--sample", type=float, metavar="SHARE", help="Only that share of the rows, 0.1: always the same."),
)


def source_options(command: Callable[..., None]) -> Callable[..., None]:
    """What commands say of their SOURCE."""
    return reduce(lambda decorated, option: option(decorated), reversed(_SOURCE_OPTIONS), command)


def file_source_options(command: Callable[..., None]) -> Callable[..., None]:
    """What commands say of a SOURCE that cannot be a pipe."""
    options = [option for option in reversed(_SOURCE_OPTIONS) if option is not _FORMAT]
    return reduce(lambda decorated, option: option(decorated), options, command)


@click.command(
    short_help="Text into .npy shards and a manifest.",
    epilog=examples(
        "shardkit tokenize sample --out out",
        "shardkit tokenize 'books/*.parquet' --out books-tok --text-field body",
        'shardkit tokenize data.jsonl --out out --where "score >= 4" --tokenizer cl100k_base',
        "shardkit tokenize HuggingFaceFW/fineweb-edu --name sample-10BT --push you/edu-tokens --max-disk 5GB --out tmp",
    ),
)
@click.argument("sources", metavar="[SOURCE]...", nargs=-1, shell_complete=complete_path)
@click.option("--out", type=click.Path(path_type=Path), help="Output folder. [edu_fineweb10B for the default SOURCE]")
@source_options
@click.option(
    "--tokenizer",
    default="gpt2",
    show_default=True,
    help="tiktoken encoding, tokenizer.json, model on the Hub, bytes, or chars.",
)
@click.option("--eot", metavar="TOKEN", help="Token before each document. [the base model's end of text]")
@click.option("--encoder", type=click.Choice(["auto", "fast", "tiktoken"]), default="auto", show_default=True)
@click.option("--shard-tokens", type=Count(), help="Tokens in a shard. [100,000,000; 100,000 for sample]")
@click.option("--val-shards", type=int, help="How many first shards are split val. [1; of an only shard, 1 %]")
@click.option("--prefix", help="Start of the shards' names. [edufineweb for FineWeb-Edu, else the source's name]")
@click.option("--workers", type=int, help="Worker processes. [all cores; of a Ray cluster, all CPUs]")
@click.option("--max-docs", type=Count(), help="End after that many documents.")
@click.option("--max-tokens", type=Count(), help="End after that many tokens.")
@click.option("--part", metavar="I/N", help="Make part I of N, counted from 0, for `shardkit merge`.")
@click.option("--skip-duplicates", is_flag=True, help="Leave out documents with the tokens of an earlier one.")
@click.option("--push", metavar="REPO", help="Send each finished shard there while the next is made.")
@click.option("--private", is_flag=True, help="With --push: make the Hub repo private.")
@click.option("--max-disk", type=Size(), help="With --push: keep shards here under SIZE, deleting sent ones.")
@click.option("--runner", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--address", metavar="HOST:PORT", help="With --runner ray: the cluster; auto for the one that there is.")
@click.option("--overwrite", is_flag=True, help="Remove what shardkit made in --out before, and start again.")
@quiet_option
@json_option
def tokenize(sources: tuple[str, ...], quiet: bool, as_json: bool, **options: Any) -> None:
    """Tokenize SOURCE (one or several) into exact .npy shards and a manifest.

    SOURCE: a Hub dataset (user/name, or the address of its page or files), a local file, folder or glob (.parquet,
    .jsonl, .json, .csv, .tsv, .arrow, .txt, .md, .html; text also .gz, .zst, .bz2, .xz), a URL, a pipe (-), or
    `sample`.
    Killed or failed, the same command goes on from the last finished shard.
    """
    from shardkit.look.next_steps import steps_for_folder, steps_for_part, steps_for_place
    from shardkit.look.run_summary import run_summary
    from shardkit.sources.open import named
    from shardkit.tokenization.pipeline import tokenize as run
    from shardkit.tokenization.progress_bar import ProgressBar

    with warnings_as_lines(), ProgressBar(quiet=quiet) as bar:
        manifest = run(named(sources), progress=bar, **options)
    repo, folder = options["push"], manifest.directory  # which is None with --max-disk
    place = public_address(repo) if folder is None else str(folder)
    if options["part"]:
        steps = steps_for_part(
            public_address(repo) if repo or folder is None else str(folder.parents[1]), pushed=bool(repo)
        )
    elif folder is None:
        steps = steps_for_place(repo)
    else:
        steps = steps_for_folder(place, manifest.splits, push=not repo)
    pushed = {"pushed_to": public_address(repo)} if repo else {}
    print_result({"dataset": place, **pushed, **run_summary(manifest, bar.last, bar.seconds)}, as_json, steps)


@click.command(
    short_help="One dataset of the parts that many machines made.",
    epilog=examples(
        "shardkit merge edu",
        "shardkit merge edu --part 3/16",
        "shardkit merge hf://buckets/you/edu-parts --out edu",
        "shardkit merge hf://buckets/you/edu-parts --out tmp --push you/edu --max-disk 20GB",
    ),
)
@click.argument("place", metavar="PLACE", shell_complete=complete_path)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the dataset. [PLACE, if that is a folder]")
@click.option("--part", metavar="J/M", help="Make that share of the shards, as job J of M, counted from 0.")
@click.option("--push", metavar="REPO", help="Send each shard there as it is made, and keep none here.")
@click.option("--private", is_flag=True, help="With --push: make the Hub repo private.")
@click.option("--max-disk", type=Size(), help="With --push: keep shards here under SIZE.")
@click.option("--keep-parts", is_flag=True, help="Leave the parts in the folder when the dataset is complete.")
@quiet_option
@json_option
def merge(place: str, out: Path | None, quiet: bool, as_json: bool, **options: Any) -> None:
    """Make one dataset of the parts that `tokenize --part` made in the folder PLACE: the bytes of a single run.

    Or, with --out, of parts that were pushed to PLACE: their shards are fetched a few at a time, and the parts stay.

    Killed or failed, the same command goes on. The job that finds all shards finished writes the manifest, and then
    removes the parts of a folder.
    """
    from shardkit.look.next_steps import steps_for_folder, steps_for_place
    from shardkit.tokenization.merge import merge as run

    with warnings_as_lines():
        merged = run(place, out, progress=not quiet, **options)
    repo, folder = options["push"], place if out is None else str(out)
    dataset = public_address(repo) if repo else folder
    summary = {"dataset": dataset, "shards": merged.shards, "made": merged.made, "missing": merged.missing}
    steps = []
    if (manifest := merged.manifest) is not None:
        steps = steps_for_place(repo) if repo else steps_for_folder(folder, manifest.splits, push=True)
        summary |= {"tokens": manifest.tokens, "documents": manifest.documents, "fingerprint": manifest.fingerprint}
    print_result(summary, as_json, steps)


@click.command(
    "train-tokenizer",
    short_help="A vocabulary of your own text.",
    epilog=examples("shardkit train-tokenizer 'books/*.txt' --out my-tok --vocab-size 16000"),
)
@click.argument("sources", metavar="[SOURCE]...", nargs=-1, shell_complete=complete_path)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for tokenizer.json.")
@source_options
@click.option("--vocab-size", type=Count(), default=32_768, show_default=True, help="Ids, the end of text among them.")
@click.option("--pattern", default="gpt4", show_default=True, help="How text is cut into words: gpt2, gpt4 or gpt4o.")
@click.option("--max-bytes", type=Size(), default="2GB", show_default=True, help="Text to read, from all over SOURCE.")
@quiet_option
@json_option
def train_tokenizer(sources: tuple[str, ...], quiet: bool, as_json: bool, out: Path, **options: Any) -> None:
    """Train a byte-level BPE vocabulary on SOURCE, and compare it with OpenAI's on text that was left out.

    SOURCE is one that `tokenize` takes. The same command gives the same file. Then: shardkit tokenize SOURCE
    --tokenizer OUT.
    """
    from shardkit.sources.open import DEFAULT_SOURCE, named
    from shardkit.tokenization.training import TrainingBar
    from shardkit.tokenization.training import train_tokenizer as run
    from shardkit.tokenization.training_report import compare

    with warnings_as_lines(), TrainingBar(quiet=quiet) as bar:
        trained = run(named(sources), out, progress=bar, **options)
        bar("comparing", trained.text_bytes, trained.text_bytes)
        rows = compare(trained.path, trained.held_out)
    summary = {
        "tokenizer": str(trained.path),
        "vocab_size": trained.vocab_size,
        "sha256": trained.sha256,
        "documents": trained.documents,
        "trained_on_bytes": trained.text_bytes,
        "held_out_documents": len(trained.held_out),
    }
    again = " ".join(shlex.quote(public_address(source)) for source in sources or [DEFAULT_SOURCE])
    steps = [f"shardkit tokenize {again} --tokenizer {shlex.quote(str(out))} --out OUT"]
    words = rows if as_json else [_row_words(row) for row in rows]
    print_result({**summary, "bytes_per_token": words}, as_json, steps)


def _row_words(row: dict[str, Any]) -> str:
    from shardkit.files import counted

    rates = ", ".join(f"{name} {row[name]:.3f}" for name in row if name not in ("text", "documents", "bytes"))
    return f"{row['text']} ({counted(row['documents'], 'document')}): {rates}"
