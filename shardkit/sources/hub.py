"""A Hub dataset as a source: the revision is resolved to a commit, once; a config and split, or a file, folder or glob,
to that commit's files.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from shardkit.dataset.manifest import SourceInfo
from shardkit.errors import SourceError
from shardkit.hub_address import HubAddress
from shardkit.hub_answers import WrongAnswer, or_mirror
from shardkit.network import Result, with_retries
from shardkit.redaction import public_address
from shardkit.sources.formats import EXPECTED, format_of
from shardkit.sources.listing import Included, natural_key, of_one_kind, warn_of_others, without_notes
from shardkit.sources.source import InputFile, ReadOptions, Source


def hub_source(
    dataset: str,
    *,
    name: str | None,
    split: str,
    revision: str | None,
    options: ReadOptions,
    included: Included,
) -> Source:
    """Resolve `dataset` (`user/name`) to the files of one config (`name`) and split at one commit that are `included`.

    Raises `SourceError` (no such revision, config or split; no network) or `AuthError` (no such dataset, or not for
    this account).
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    where = HubAddress(name=dataset, revision=revision).url
    commit = str(_ask(where, partial(api.dataset_info, dataset, revision=revision)).sha)
    config, urls = _ask(where, lambda: _resolve(dataset, name, split, commit))
    prefix = f"hf://datasets/{dataset}@{commit}/"
    paths = [path for url in urls if included(path := url.removeprefix(prefix))]
    if bad := [path for path in paths if format_of(path) is None]:
        raise SourceError(f"dataset {dataset} has {bad[0]}, of no known format: expected {EXPECTED}")
    listed = _ask(where, lambda: _list(api, dataset, commit, paths))
    if missing := [path for path in paths if path not in listed]:
        raise SourceError(f"dataset {dataset} at {commit} lists {missing[0]}, but does not hold it{or_mirror(prefix)}")
    files = tuple(_input_file(prefix, listed[path]) for path in paths)
    info = SourceInfo(id=dataset, config=config, split=split, revision=commit, text_field=options.text_field)
    return Source(info=info, files=files, options=options)


def hub_files(dataset: str, path: str, *, revision: str | None, options: ReadOptions, included: Included) -> Source:
    """The files of `dataset` (`user/name`) that `path` means, a file, a folder or a glob (`*`, `**`, `[...]`), and that
    are `included`, at one commit, in natural order. Of a folder, files of one kind, as of a local one.

    Raises `SourceError` (no such revision or path, nothing to read; no network) or `AuthError`.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    address = HubAddress(name=dataset, revision=revision, path=path)
    commit = str(_ask(address.url, partial(api.dataset_info, dataset, revision=revision)).sha)
    listed = {item.path: item for item in _ask(address.url, lambda: _files_below(api, dataset, commit, path))}
    if not listed:
        raise SourceError(f"{address.url}: no such file or folder at commit {commit}: check the address")
    listed = {name: item for name, item in listed.items() if included(name)}
    readable = {name: item.size for name, item in listed.items() if format_of(name) is not None}
    if listed and not readable:
        raise included.nothing_found(address.url)
    if _is_glob(path):
        warn_of_others(address.url, "files of known formats", sorted(listed.keys() - readable.keys()))
        chosen = without_notes(address.url, list(readable))
    else:
        chosen = of_one_kind(address.url, readable, sorted(listed.keys() - readable.keys()))
    prefix = f"hf://datasets/{dataset}@{commit}/"
    info = SourceInfo(id=dataset, revision=commit, text_field=options.text_field, options={"path": path})
    files = tuple(_input_file(prefix, listed[name]) for name in sorted(chosen, key=natural_key))
    return Source(info=info, files=files, options=options)


def _is_glob(path: str) -> bool:
    return any(c in path for c in "*[")


def _files_below(api: Any, dataset: str, commit: str, path: str) -> list[Any]:
    """The `RepoFile`s that `path` means, but for hidden ones of a folder or glob; none if there is nothing there."""
    from fsspec.utils import glob_translate
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    top = path
    if _is_glob(path):
        fixed = itertools.takewhile(lambda part: not _is_glob(part), path.split("/"))
        top = "/".join(fixed)
    else:
        found = api.get_paths_info(dataset, [path], repo_type="dataset", revision=commit)
        if not found or isinstance(found[0], RepoFile):
            return list(found)
    try:
        tree = list(api.list_repo_tree(dataset, top or None, recursive=True, revision=commit, repo_type="dataset"))
    except EntryNotFoundError:
        return []
    above = len(top) + 1 if top else 0
    shown = [i for i in tree if isinstance(i, RepoFile) and not re.search(r"(^|/)\.", i.path[above:])]
    return [item for item in shown if re.match(glob_translate(path), item.path)] if _is_glob(path) else shown


def _input_file(prefix: str, item: Any) -> InputFile:
    """A file that is listed, as one to read."""
    return InputFile(
        path=item.path,
        url=prefix + item.path,
        bytes=item.size,
        format=str(format_of(item.path)),
        oid=item.lfs.sha256 if item.lfs else item.blob_id,
    )


def _ask(where: str, action: Callable[[], Result]) -> Result:
    return with_retries(action, where, "open the dataset", error=SourceError)


def _resolve(dataset: str, name: str | None, split: str, commit: str) -> tuple[str, list[str]]:
    """The config's name and its split's files, in the order in which `datasets.load_dataset` reads them."""
    import datasets

    had_bars = datasets.utils.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        builder: Any = datasets.load_dataset_builder(dataset, name, revision=commit)
    except FileNotFoundError:
        _ask_for_card(dataset, commit)
        raise
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        # no such config; the message lists them
        raise SourceError(f"dataset {dataset}: {' '.join(str(error).split())[:300]} (--name CONFIG)") from None
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


def _ask_for_card(dataset: str, commit: str) -> None:
    """Raise what is wrong with the Hub, or a mirror, where the card cannot be had: `datasets` calls that "no files"."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    url = hf_hub_url(dataset, "README.md", repo_type="dataset", revision=commit)
    with suppress(EntryNotFoundError):  # a dataset without a card
        if get_hf_file_metadata(url).etag is None:
            raise WrongAnswer(f"answered HEAD {public_address(url)} without an ETag, which `datasets` must have")


def _list(api: Any, dataset: str, commit: str, paths: list[str]) -> dict[str, Any]:
    """What the Hub says of each of the files: a `RepoFile` with its size and hashes."""
    listed: dict[str, Any] = {}
    for first in range(0, len(paths), 500):
        entries = api.get_paths_info(dataset, paths[first : first + 500], repo_type="dataset", revision=commit)
        listed.update({entry.path: entry for entry in entries})
    return listed
