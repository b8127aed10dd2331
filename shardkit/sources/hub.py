"""A Hub dataset as a source: the revision becomes a commit once, config and split become files, by the real clients."""

from __future__ import annotations

from typing import Any

from shardkit.dataset.manifest import SourceInfo
from shardkit.errors import AuthError, SourceError
from shardkit.network import network_errors
from shardkit.sources.source import FORMATS, InputFile, ReadOptions, Source, format_of


def hub_source(dataset: str, *, name: str | None, split: str, revision: str | None, options: ReadOptions) -> Source:
    """Resolve `dataset` (`user/name`) to the files of one config and split at one commit.

    Raises `SourceError` (no such dataset, revision, config or split; no network) or `AuthError` (private or gated).
    """
    import huggingface_hub
    from huggingface_hub import errors

    api = huggingface_hub.HfApi()
    try:
        commit = api.dataset_info(dataset, revision=revision).sha
    except errors.GatedRepoError as error:
        raise _gated(dataset) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(f"dataset {dataset} has no revision {revision!r}: give a branch, tag or commit") from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            f"no dataset {dataset} on the Hub, or it is private: check the name, or `hf auth login` (or set HF_TOKEN)"
        ) from error
    except network_errors() as error:
        raise _unreachable(dataset, error) from error
    except ValueError as error:  # HFValidationError: not a repo id
        raise SourceError(f"{dataset!r} is not a dataset id: {_line(error)}") from error
    config, urls = _resolve(dataset, name, split, str(commit))
    prefix = f"hf://datasets/{dataset}@{commit}/"
    paths = [url.removeprefix(prefix) for url in urls]
    if bad := [path for path in paths if format_of(path) is None]:
        raise SourceError(f"dataset {dataset} has {bad[0]}, of no known format: expected {', '.join(FORMATS)}")
    sizes = _sizes(api, dataset, str(commit), paths)
    files = tuple(
        InputFile(path=path, url=prefix + path, bytes=sizes[path], format=str(format_of(path))) for path in paths
    )
    info = SourceInfo(id=dataset, config=config, split=split, revision=commit, text_field=options.text_field)
    return Source(info=info, files=files, options=options)


def _resolve(dataset: str, name: str | None, split: str, commit: str) -> tuple[str, list[str]]:
    """The config's name and its split's files, in the order that `datasets.load_dataset` reads them."""
    import datasets

    datasets.disable_progress_bars()
    try:
        builder: Any = datasets.load_dataset_builder(dataset, name, revision=commit)
    except datasets.exceptions.DatasetNotFoundError as error:
        if "gated" in str(error):
            raise _gated(dataset) from error
        raise SourceError(f"cannot open dataset {dataset}: {_line(error)}") from error
    except ValueError as error:
        raise SourceError(f"dataset {dataset}: {_line(error)} (--name CONFIG)") from error
    except RuntimeError as error:  # the Hub client's, for offline mode
        raise _unreachable(dataset, error) from error
    except network_errors() as error:
        raise _unreachable(dataset, error) from error
    files = builder.config.data_files or {}
    if split not in files:
        raise SourceError(
            f"dataset {dataset} ({builder.config.name}) has no split {split!r}: expected one of "
            f"{', '.join(map(str, files)) or 'none: it has no data files'} (--split)"
        )
    return str(builder.config.name), [str(url) for url in files[split]]


def _sizes(api: Any, dataset: str, commit: str, paths: list[str]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    try:
        for at in range(0, len(paths), 500):
            found = api.get_paths_info(dataset, paths[at : at + 500], repo_type="dataset", revision=commit)
            sizes.update({item.path: item.size for item in found})
    except network_errors() as error:
        raise _unreachable(dataset, error) from error
    if missing := [path for path in paths if path not in sizes]:
        raise SourceError(f"dataset {dataset} at {commit} lists {missing[0]} but does not hold it")
    return sizes


def _gated(dataset: str) -> AuthError:
    return AuthError(
        f"dataset {dataset} is gated: accept its terms on its page, then `hf auth login` (or set HF_TOKEN)"
    )


def _unreachable(dataset: str, error: Exception) -> SourceError:
    return SourceError(
        f"cannot reach the Hub for dataset {dataset} ({type(error).__name__}: {_line(error)}): check the network, or "
        "give a local file or folder"
    )


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
