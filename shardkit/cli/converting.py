"""The command that moves tokens between formats: `convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from shardkit.cli.options import Count, examples, json_option, print_result, quiet_option, warnings_as_lines


@click.command(
    short_help="Tokens into another format, or back.",
    epilog=examples(
        "shardkit convert edu_fineweb10B bins --to llmc",
        "shardkit convert nanogpt/data out --to npy --tokenizer gpt2",
    ),
)
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--to",
    required=True,
    type=click.Choice(["npy", "llmc", "nanogpt", "megatron", "parquet"]),
    help="Format to write.",
)
@click.option("--tokenizer", help="Of files that shardkit did not write: their tokenizer.")
@click.option("--eot-id", type=int, help="Or only the id of the token that ends a document.")
@click.option("--dtype", type=click.Choice(["uint16", "uint32"]), help="Ids of files that do not say it.")
@click.option("--shard-tokens", type=Count(), help="Tokens in a shard. [as SRC has them; 100,000,000]")
@quiet_option
@json_option
def convert(source: Path, out: Path, to: str, quiet: bool, as_json: bool, **options: Any) -> None:
    """Write the tokens of SRC into the new folder OUT in another format, or back, exactly.

    SRC: a folder of shards (.npy, or llm.c's and modded-nanogpt's .bin), of nanoGPT's train.bin and val.bin, of
    Megatron's .bin and .idx (or one's path without ending), of parquet with lists of ids, of headerless .npy (Dolma,
    OLMo). The end-of-text token moves where the formats have it in another place.
    """
    from shardkit.look.next_steps import steps_for_converted, steps_for_folder
    from shardkit.tokenization.convert import convert as run

    with warnings_as_lines():
        made = run(source, out, to=to, progress=not quiet, **options)
    summary: dict[str, Any] = {"dataset": str(out), "format": to, "source_format": made.source_format}
    summary |= {"tokens": sum(made.tokens.values()), "documents": made.documents, "splits": made.tokens}
    if not as_json:
        summary["splits"] = [f"{split}  {tokens:,} tokens" for split, tokens in made.tokens.items()]
    steps = steps_for_converted(out, to)
    if made.manifest is not None:
        summary["fingerprint"] = made.manifest.fingerprint
        steps = steps_for_folder(out, made.manifest.splits, push=True)
    print_result(summary, as_json, steps)
