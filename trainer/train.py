"""`train`: settings, checkpoint, data, then the run itself. Each is settled by all ranks together before the next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from shardkit import Manifest, UsageError, public_address, pull
from trainer.checkpoint_parts import State
from trainer.config import Config, make_config, names_of, read_settings
from trainer.console import print_line, told
from trainer.distributed import World, check_same, find_world, finish, from_main, on_all_ranks, once_a_node, start
from trainer.log import data_folder
from trainer.memory import explain, is_out_of_memory
from trainer.places import differences, read_own
from trainer.resume import find_state
from trainer.run import Run
from trainer.run_folder import hold_run


def train(flags: Mapping[str, Any], file: str | Path | None = None) -> int:
    """Run or resume the training that `flags` and the TOML `file` say. Returns the signal that ended it early, or 0."""
    settings = read_settings(flags, file)
    world = find_world(settings.get("device", "auto"))
    start(world)
    with ExitStack() as held:
        if settings.get("out"):  # rank 0 writes there
            from_main(lambda: held.enter_context(hold_run(Path(str(settings["out"])))), world)
        stopped = _train(settings, world)
    finish()
    return stopped


def _train(settings: Mapping[str, Any], world: World) -> int:
    """`train`, while the run's folder is ours."""
    with told("looking for a checkpoint"):
        state = find_state(settings, world)
    config = _settle(settings, world, state)
    manifest = open_data(config, world)
    facts = {"the dataset of fingerprint": manifest.fingerprint, **config.shared_settings()}
    check_same(facts, world, place=str(manifest.directory))
    try:
        with told(f"opening the data and making the model ({config.model})"):
            run = Run(config, world, manifest, state)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise explain(error, None, config, world.size) from None
        raise
    del state  # as large as the model and its optimizers together
    try:
        stopped = run.loop()
    except BaseException as error:
        run.abandon()
        if is_out_of_memory(error):
            raise explain(error, run.learner, run.config, world.size) from None
        raise
    run.close()
    return stopped


def _settle(settings: Mapping[str, Any], world: World, state: State | None) -> Config:
    """The config of the run: of one that goes on, by its checkpoint, and its config.toml for places. One that was
    stopped before its first checkpoint has config.toml alone, which counts where no `--data` begins another run."""
    if state is None and (settings.get("resume") != "auto" or settings.get("data") or not settings.get("out")):
        return make_config(settings)
    own = _own_settings(Path(settings["out"]), world)
    saved = json.loads(state["config"]) if state else own
    places = {name: value for name, value in own.items() if name in names_of("place")}
    config = make_config(settings, saved, places)
    for line in differences(config, saved, places):
        world.say(line)
    return config


def _own_settings(run: Path, world: World) -> dict[str, Any]:
    """The run's config.toml on this rank's disk, or where there is none, on the first that has one."""
    found = on_all_ranks(lambda: read_own(run), world)
    return found[world.rank] or next(filter(None, found), {})


def open_data(config: Config, world: World) -> Manifest:
    """The manifest of the dataset `--data`, pulled first if it is remote.

    One process of each node pulls, all of them the commit at which rank 0 found a Hub repo.
    """
    folder = Path(config.data)
    if not all(on_all_ranks(folder.is_dir, world)):
        on_all_ranks(lambda: _refuse_lost(config.data, Path(config.out)), world)
        source, commit = from_main(lambda: pin_commit(config.data), world)
        if not folder.is_dir():
            name = public_address(config.data).split("@")[0].rstrip("/").rsplit("/", 1)[-1]
            folder = Path(config.data_dir or name)
            once_a_node(world, "pull", lambda: _pull(source, commit, folder))
    manifest = Manifest.of_folder(folder)
    if config.tokenizer is None and manifest.tokenizer is None:
        world.say(f"note: {folder} has no manifest.json, taking its tokens for gpt2's (else give --tokenizer)")
    return manifest


def _refuse_lost(data: str, run: Path) -> None:
    """Raise `UsageError` where `data` is not there, and is known to be a folder: as it is spelled, or because the run
    that goes on has read it. Anything else may be a remote."""
    folder, read = Path(data), data_folder(run)
    if folder.is_dir():
        return
    if read is not None and read.parts[-len(folder.parts) :] == folder.parts:
        there = "is still there" if read.is_dir() else "is not there any more (renamed, moved, or on a disk elsewhere?)"
        new = str(read) if read.is_dir() else "and its place now"
        raise UsageError(f"the folder {read}, which this run was trained on, {there}: give --data {new}")
    if folder.is_absolute() or data.startswith(("./", "../")):
        raise UsageError(f"there is no folder {data}: give --data, a folder of shards or a remote repo")
    if "/" not in data:  # said here, before a pull that would refuse it is announced
        raise UsageError(f"{data!r} is neither a Hub repo nor a folder: write user/name, or ./{data}")


def pin_commit(source: str) -> tuple[str, str | None]:
    """`source` and the commit that its branch or tag is now; None where there are no commits, or none can be had.

    Then each node pulls what it finds, and the fingerprints are compared all the same.
    """
    name, _, revision = source.removeprefix("hf://datasets/").partition("@")
    if "://" in name or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return source, None
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(name, revision=revision or None).sha
    except Exception:  # noqa: BLE001 (of the client, of what it is built on: `pull` says it in one line)
        return source, None
    return name, commit


def _pull(source: str, commit: str | None, folder: Path) -> None:
    print_line(f"pulling {public_address(source)}{f' at {commit}' if commit else ''} into {folder}")
    pull(source, folder, revision=commit)
