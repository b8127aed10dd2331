"""The commands that make something of text: `tokenize` and `train-tokenizer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from shardkit.cli.options import Size, json_option, print_result, warnings_as_lines

DEFAULT_SOURCE = "HuggingFaceFW/fineweb-edu"


@click.command()
@click.argument("source", default=DEFAULT_SOURCE)
@click.option("--out", type=click.Path(path_type=Path), help="Output folder. [edu_fineweb10B for the default SOURCE]")
@click.option("--name", help="Config of a Hub dataset. [sample-10BT for the default SOURCE]")
@click.option("--split", default="train", show_default=True, help="Split of a Hub dataset.")
@click.option("--revision", help="Branch, tag or commit of a Hub dataset; resolved to a commit once.")
@click.option("--text-field", default="text", show_default=True, help="Column or field that holds the text.")
@click.option("--separator", help="Text between two documents of a .txt file. [one document a file]")
@click.option("--skip-bad-rows", is_flag=True, help="Pass over rows that are not JSON or not UTF-8, and list them.")
@click.option(
    "--tokenizer",
    default="gpt2",
    show_default=True,
    help="tiktoken encoding, tokenizer.json, model on the Hub, bytes, or chars.",
)
@click.option("--eot", metavar="TOKEN", help="Token before each document. [the base model's end of text]")
@click.option("--encoder", type=click.Choice(["auto", "fast", "tiktoken"]), default="auto", show_default=True)
@click.option("--shard-tokens", type=int, help="Tokens in a shard. [100,000,000; 100,000 for sample]")
@click.option("--val-shards", type=int, default=1, show_default=True, help="How many first shards are split val.")
@click.option("--prefix", help="Start of the shards' names. [edufineweb for FineWeb-Edu, else the source's name]")
@click.option("--workers", type=int, help="Worker processes. [all cores]")
@click.option("--max-docs", type=int, help="End after that many documents.")
@click.option("--max-tokens", type=int, help="End after that many tokens.")
@click.option("--push", metavar="REPO", help="Send each finished shard there while the next is made.")
@click.option("--private", is_flag=True, help="With --push: make the Hub repo private.")
@click.option("--max-disk", type=Size(), help="With --push: keep shards here under SIZE, deleting sent ones.")
@click.option("--runner", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--overwrite", is_flag=True, help="Remove what shardkit made in --out before, and start again.")
@json_option
def tokenize(source: str, as_json: bool, **options: Any) -> None:
    """Tokenize SOURCE into exact .npy shards and a manifest.

    SOURCE: a Hub dataset (user/name, or the address of its page or files), a local file, folder or glob (.parquet,
    .jsonl[.gz|.zst], .txt), a URL, or `sample`.
    Killed or failed, the same command goes on from the last finished shard.
    """
    from shardkit.look.progress import ProgressBar, run_summary
    from shardkit.tokenization.pipeline import tokenize as run

    with warnings_as_lines(), ProgressBar() as bar:
        manifest = run(source, progress=bar, **options)
    summary = run_summary(manifest, bar.last, bar.seconds)
    print_result(summary, as_json)
