"""The command line: parse, one call, print. `python -m trainer train|eval|sample|export`, alone or under torchrun."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import click

from shardkit import ShardkitError, UsageError, __version__, machine_fault, printable
from trainer.config import Config, field_types, make_config, read_settings
from trainer.console import told


class _Group(click.Group):
    """Our own errors, and the machine's: one line, exit code 1 (2 for usage). A bug keeps its traceback, and ends all
    ranks at once."""

    @ShardkitError.naming_flags()
    def invoke(self, context: click.Context) -> Any:
        warnings.showwarning = cast(Any, _show_warning)
        try:
            return super().invoke(context)
        except ShardkitError as error:
            rank, shared = os.environ.get("RANK", "0"), getattr(error, "shared", False)
            if rank == "0" or not shared:
                click.echo(f"error{'' if rank == '0' else f' (rank {rank})'}: {error}", err=True)
            if shared:
                from trainer.distributed import finish

                finish()  # the launcher ends all when the first leaves: not before rank 0 has printed
            _leave(2 if isinstance(error, UsageError) else 1)
        except KeyboardInterrupt:
            _leave(130)
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except Exception as error:  # noqa: BLE001 (printed; a rank must not hang in its exit while others wait for it)
            if (line := machine_fault(error)) is None:
                traceback.print_exc()
            else:
                click.echo(f"error: {line}", err=True)
            _leave(1)


def _show_warning(message: Warning | str, category: type[Warning], filename: str, line: int, *_: Any) -> None:
    """shardkit's own warnings as a line, once for all ranks; others as Python shows them."""
    if category.__module__.partition(".")[0] != "shardkit":
        click.echo(warnings.formatwarning(message, category, filename, line), err=True, nl=False)
    elif os.environ.get("RANK", "0") == "0":
        click.echo(f"warning: {message}", err=True)


def _leave(code: int) -> None:
    """End this process. One rank of several skips the teardown: it could wait for others, or abort in its threads."""
    if "RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def main() -> None:
    """Train GPT-2 from shards, never losing a run.

    \b
    python -m trainer train --data edu_fineweb10B --out run
    torchrun --standalone --nproc_per_node=8 -m trainer train --data edu_fineweb10B --out run
    """


def _config_options(command: Callable[..., None]) -> Callable[..., None]:
    """One option for each field of `Config`."""
    kinds = field_types()
    for field in reversed(dataclasses.fields(Config)):
        flag, text = "--" + field.name.replace("_", "-"), field.metadata["help"]
        if kinds[field.name] is bool:
            command = click.option(flag + "/--no-" + flag[2:], default=None, help=text)(command)
        else:
            shown = "" if field.default in (None, "") else f" [{field.default}]"
            command = click.option(flag, type=kinds[field.name], help=text + shown)(command)
    return command


def _examples(*commands: str) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  python -m trainer {command}" for command in commands)


@main.command(
    epilog=_examples(
        "train --data out --out run --model nano --steps 300",
        "train --data you/edu-tokens --out run --push-checkpoints you/gpt2 --resume auto",
        "train --out run --resume auto",
    )
)
@click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file of these settings; flags win.")
@_config_options
def train(file: Path | None, **flags: Any) -> None:
    """Train, or go on with --resume. A signal (SIGTERM, Ctrl-C, a lost terminal) saves one more checkpoint."""
    _check(read_settings(flags, file))
    with _loading():
        from trainer.train import train as run

    stopped = run(flags, file)
    _leave(128 + stopped if stopped else 0)


def _check(given: Mapping[str, Any]) -> None:
    """Raise `UsageError` at once for what is wrong whatever a checkpoint says: torch takes seconds to load."""
    if given.get("resume") is None or not given.get("out"):
        config = make_config(given)
        if "WORLD_SIZE" not in os.environ:
            config.micro_steps(1)


def _loading() -> AbstractContextManager[None]:
    return told("loading torch")


def _run_argument(metavar: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.argument("run", metavar=metavar, type=click.Path(path_type=Path), callback=_existing)


def _existing(_context: click.Context, _parameter: click.Parameter, run: Path) -> Path:
    if not run.exists():
        raise UsageError(f"there is no {run}: give a run's folder, a checkpoint (step_*.pt), or an export")
    return run


_which = click.option("--checkpoint", "which", type=click.Choice(["last", "best"]), default="last", show_default=True)
_device = click.option("--device", default="auto", show_default=True, help="cuda, mps or cpu.")


@main.command(
    "eval",
    short_help="Validation loss, bits per byte and HellaSwag of a run.",
    epilog=_examples("eval run", "eval run --hellaswag hellaswag_val.jsonl"),
)
@_run_argument("RUN")
@_which
@_device
@click.option("--data", type=click.Path(path_type=Path), help="Folder of shards. [the run's]")
@click.option("--val-tokens", type=int, help="Length of the range. [the run's]")
@click.option("--hellaswag", help="HellaSwag .jsonl: a file, a URL, or hf://datasets/...")
@click.option("--tokenizer", help="[the run's, else gpt2]")
@click.option("--precision", default="auto", show_default=True)
def evaluate(run: Path, **options: Any) -> None:
    """Validation loss, bits per byte and HellaSwag of RUN (a run, a checkpoint, an export), as one JSON line."""
    with _loading():
        from trainer.evaluate import evaluate_run

    with told(f"evaluating {run}"):
        result = evaluate_run(run, **options)
    if os.environ.get("RANK", "0") == "0":
        click.echo(json.dumps(result))
    _leave(0)


@main.command(epilog=_examples('sample run --prompt "The" --count 3'))
@_run_argument("RUN")
@_which
@_device
@click.option("--prompt", default="Hello, I'm a language model,", show_default=True)
@click.option("--count", type=click.IntRange(1), default=1, show_default=True)
@click.option("--tokens", type=click.IntRange(1), default=100, show_default=True)
@click.option("--temperature", type=click.FloatRange(0), default=0.8, show_default=True, help="0: the likeliest.")
@click.option("--top-k", type=click.IntRange(1), default=50, show_default=True)
@click.option("--seed", type=int, default=42, show_default=True)
@click.option("--tokenizer", help="[the run's, else gpt2]")
def sample(run: Path, **options: Any) -> None:
    """Text from RUN (a run, a checkpoint, an export)."""
    with _loading():
        from trainer.sample import sample_run

    with told(f"sampling from {run}"):
        texts = sample_run(run, **options)
    for text in texts:
        click.echo(printable(text) + "\n")


@main.command(
    short_help="A run as `transformers` loads it.",
    epilog=_examples("export run hf-model", "export run hf-model --push you/gpt2"),
)
@_run_argument("CKPT")
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@_which
@click.option("--push", metavar="USER/MODEL", help="Send OUT to this Hub model repo, with a model card.")
def export(run: Path, out: Path, which: str, push: str | None) -> None:
    """Write CKPT (a run, or a checkpoint) into OUT as `transformers` loads it."""
    with _loading():
        from trainer.export import export_run

    with told(f"exporting {run}"):
        said = export_run(run, out, which=which, push=push)
    click.echo(said)


if __name__ == "__main__":
    main(prog_name="python -m trainer")
