"""Where a `tokenizer.json` is, by the name of a folder or of a model on the Hub, which the Hub's own client fetches."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from shardkit.dataset.tokenizer_file import TOKENIZER_CONFIG_NAME, TOKENIZER_NAME
from shardkit.errors import TokenizerError
from shardkit.hub_address import HUB_NAME
from shardkit.network import with_retries

_COMMIT = re.compile(r"[0-9a-f]{40}")
_MODEL = re.compile(rf"({HUB_NAME.pattern})(?:@(.+))?")


def tokenizer_in(name: str) -> Path | None:
    """The `tokenizer.json` in the folder `name`; None if there is none, or no such folder."""
    try:
        path = Path(name) / TOKENIZER_NAME
        return path if path.is_file() else None
    except (OSError, ValueError):  # no name that a folder may have, or none that we may look into
        return None


def is_model_id(name: str) -> bool:
    """Whether `name` has the form of a model on the Hub, `user/name` or `user/name@revision`, and is no folder here."""
    try:
        return _MODEL.fullmatch(name) is not None and not Path(name).exists()
    except OSError:
        return False


def fetch_tokenizer(name: str) -> tuple[Path, str]:
    """Fetch `tokenizer.json`, and `tokenizer_config.json` if there is one, of a model; the first one's path, and the
    model's name with the commit: `user/name@commit`. What is in the client's cache is not fetched again; with a commit,
    or `HF_HUB_OFFLINE`, nothing is asked about it either.

    Raises `TokenizerError` (no such file, no network) or `AuthError` (no such model, or gated).
    """
    from huggingface_hub import HfApi, constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    match = _MODEL.fullmatch(name)
    assert match is not None  # as `is_model_id` says
    model, revision = match.groups()
    where, what = f"hf://{name}", "fetch the tokenizer"
    # The download would find the commit too, but tries for minutes where nobody answers.
    if not constants.HF_HUB_OFFLINE and not _COMMIT.fullmatch(revision or ""):
        revision = with_retries(
            lambda: str(HfApi().model_info(model, revision=revision).sha), where, what, error=TokenizerError
        )

    def fetch() -> Path:
        try:
            path = Path(hf_hub_download(model, TOKENIZER_NAME, revision=revision))
        except LocalEntryNotFoundError:
            if not constants.HF_HUB_OFFLINE:
                raise
            raise TokenizerError(
                f"the tokenizer of {name} is not in the cache, and HF_HUB_OFFLINE is set: unset it, or give the commit "
                "that was fetched before (user/name@commit, as the dataset's manifest has it)"
            ) from None
        except EntryNotFoundError:
            raise TokenizerError(
                f"the model {name} has no {TOKENIZER_NAME}: give a model that has one, as those that transformers saves"
            ) from None
        with suppress(EntryNotFoundError):
            hf_hub_download(model, TOKENIZER_CONFIG_NAME, revision=path.parent.name)
        return path

    path = with_retries(fetch, where, what, error=TokenizerError)
    return path, f"{model}@{path.parent.name}"  # the cache keeps a folder for each commit
