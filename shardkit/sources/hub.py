"""A Hub dataset as a source: the revision is resolved to a commit, once; config and split to that commit's files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from shardkit.dataset.manifest import SourceInfo
from shardkit.errors import SourceError
from shardkit.network import Result, with_retries
from shardkit.sources.source import FORMATS, InputFile, ReadOptions, Source, format_of


def hub_source(dataset: str, *, name: str | None, split: str, revision: str | None, options: ReadOptions) -> Source:
    """Resolve `dataset` (`user/name`) to the files of one config (`name`) and split at one commit.

    Raises `SourceError` (no such revision, config or split; no network) or `AuthError` (no such dataset, or not for
    this account).
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    where = f"hf://datasets/{dataset}" + (f"@{revision}" if revision else "")
    commit = str(_ask(where, partial(api.dataset_info, dataset, revision=revision)).sha)
    config, urls = _ask(where, lambda: _resolve(dataset, name, split, commit))
    prefix = f"hf://datasets/{dataset}@{commit}/"
    paths = [url.removeprefix(prefix) for url in urls]
    if bad := [path for path in paths if format_of(path) is None]:
        raise SourceError(f"dataset {dataset} has {bad[0]}, of no known format: expected {', '.join(FORMATS)}")
    listed = _ask(where, lambda: _list(api, dataset, commit, paths))
    if missing := [path for path in paths if path not in listed]:
        raise SourceError(f"dataset {dataset} at {commit} lists {missing[0]} but does not hold it")
    files = tuple(
        InputFile(
            path=path,
            url=prefix + path,
            bytes=listed[path].size,
            format=str(format_of(path)),
            oid=listed[path].lfs.sha256 if listed[path].lfs else listed[path].blob_id,
        )
        for path in paths
    )
    info = SourceInfo(id=dataset, config=config, split=split, revision=commit, text_field=options.text_field)
    return Source(info=info, files=files, options=options)


def _ask(where: str, action: Callable[[], Result]) -> Result:
    from shardkit.hub_session import CLIENT

    def attempt() -> Result:
        with CLIENT.set_for_us():
            return action()

    return with_retries(attempt, where, "open the dataset", error=SourceError)


def _resolve(dataset: str, name: str | None, split: str, commit: str) -> tuple[str, list[str]]:
    """The config's name and its split's files, in the order in which `datasets.load_dataset` reads them."""
    import datasets

    had_bars = datasets.utils.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        builder: Any = datasets.load_dataset_builder(dataset, name, revision=commit)
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        # no such config; the message lists them
        raise SourceError(f"dataset {dataset}: {' '.join(str(error).split())[:300]} (--name CONFIG)") from error
    finally:
        if had_bars:
            datasets.enable_progress_bars()
    files = builder.config.data_files or {}
    if split not in files:
        raise SourceError(
            f"dataset {dataset} ({builder.config.name}) has no split {split!r}: expected one of "
            f"{', '.join(map(str, files)) or 'none: it has no data files'} (--split)"
        )
    return str(builder.config.name), [str(url) for url in files[split]]


def _list(api: Any, dataset: str, commit: str, paths: list[str]) -> dict[str, Any]:
    """What the Hub says of each of the files: a `RepoFile` with its size and hashes."""
    listed: dict[str, Any] = {}
    for first in range(0, len(paths), 500):
        entries = api.get_paths_info(dataset, paths[first : first + 500], repo_type="dataset", revision=commit)
        listed.update({entry.path: entry for entry in entries})
    return listed
