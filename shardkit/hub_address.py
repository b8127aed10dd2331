"""Addresses on the Hub, as people paste them: which dataset, which revision, and which files of it they mean.

What a room makes of one is its own affair: `sources/` reads files, `remote/` takes whole repos. Also whom the Hub's
client asks: the Hub, or the mirror that `HF_ENDPOINT` names. Nothing is asked over the network here.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from urllib.parse import quote, unquote

from shardkit.errors import UsageError
from shardkit.redaction import public_address

HUB = "https://huggingface.co"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SITE = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)(?=/|$)", re.IGNORECASE)
_REVISION = r"(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+)"  # a / in it is otherwise written %2F
_HF = re.compile(rf"(?P<name>{HUB_NAME.pattern})(?:@{_REVISION})?(?:/(?P<path>.*))?", re.DOTALL)
_PAGE = re.compile(
    rf"(?P<name>{HUB_NAME.pattern})(?:/(?:tree|blob|resolve|raw)/{_REVISION}(?:/(?P<path>.*))?)?", re.DOTALL
)
_VIEWER = re.compile(rf"({HUB_NAME.pattern})/viewer(?:/([^/]+)(?:/([^/]+))?)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class HubAddress:
    """A dataset on the Hub (`user/name`), at a revision if one is named, and of it a file, folder or glob ("": all)."""

    name: str
    revision: str | None = None
    path: str = ""

    @property
    def url(self) -> str:
        """The address in the client's own spelling: `hf://datasets/user/name@revision/path`."""
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return f"hf://datasets/{self.name}{revision}" + (f"/{self.path}" if self.path else "")

    def revision_with(self, option: str | None) -> str | None:
        """The revision that is meant, with `--revision`. Raises `UsageError` if they name two."""
        if self.revision and option not in (None, self.revision):
            raise UsageError(f"{self.url} names one revision and --revision another ({option}): give one")
        return self.revision or option


def parse_address(text: str) -> HubAddress | None:
    """What `text` means on the Hub: `hf://datasets/...`, or the address of a page or file of the site or the mirror.

    None if it is no such address: a path, another URL, `hf://` for something else, or a file of a model or space (which
    is an ordinary URL). Raises `UsageError` for pages that are no files of a dataset. Users, passwords and queries play
    no part (`?download=true`).

    >>> parse_address("https://huggingface.co/datasets/user/name/blob/main/data/a.parquet?download=true")
    HubAddress(name='user/name', revision='main', path='data/a.parquet')
    """
    plain = public_address(text)
    if plain.startswith("hf://datasets/"):
        return _address(_HF.fullmatch(plain.removeprefix("hf://datasets/").rstrip("/")), plain)
    page = _page_of(plain)
    if page is None:
        return None
    kind, _, rest = page.strip("/").partition("/")
    if kind != "datasets":
        if "/resolve/" in page or (
            not _SITE.match(plain) and kind not in ("spaces", "buckets") and page.count("/") > 2
        ):
            return None  # a file of a model, or something else that the host of a mirror serves
        what = {"spaces": "a space", "buckets": "a bucket, which is written hf://buckets/user/name"}.get(kind)
        raise UsageError(
            f"{plain} is {what or 'a model, or a page of the site'}: expected a dataset, {HUB}/datasets/user/name"
        )
    if viewer := _VIEWER.fullmatch(rest):
        name, config, split = viewer.groups()
        chosen = (f" --name={unquote(config)}" if config else "") + (f" --split={unquote(split)}" if split else "")
        raise UsageError(f"{plain} is the viewer's page: write {name}{chosen}")
    return _address(_PAGE.fullmatch(rest.rstrip("/")), plain, unquoted=True)


def parse_short(text: str) -> HubAddress | None:
    """What `user/name` or `user/name/sub/folder` means on the Hub; None if it is neither. A path looks the same, so
    ask whether there is one first."""
    match = re.fullmatch(rf"(?P<name>{HUB_NAME.pattern})(?:/(?P<path>[^:\\]*))?", text)
    return HubAddress(name=match["name"], path=_path(match["path"] or "", text)) if match else None


def endpoint() -> str:
    """Where the Hub's client asks: the Hub, or the mirror that `HF_ENDPOINT` names. Without a password."""
    constants = sys.modules.get("huggingface_hub.constants")
    stated = constants.ENDPOINT if constants is not None else os.environ.get("HF_ENDPOINT", "")
    return public_address(str(stated or HUB)).rstrip("/")


def is_mirror() -> bool:
    """Whether `HF_ENDPOINT` names another place than the Hub."""
    return endpoint() != HUB


def _page_of(plain: str) -> str | None:
    """The path of a page on the site or the mirror; None if the address is of another host."""
    if plain == endpoint() or plain.startswith(endpoint() + "/"):
        return plain[len(endpoint()) :]
    site = _SITE.match(plain)
    return plain[site.end() :] if site else None


def _address(match: re.Match[str] | None, plain: str, *, unquoted: bool = False) -> HubAddress:
    if match is None:
        raise UsageError(
            f"{plain} names no dataset, or a page that is none of its files: write user/name, {HUB}/datasets/user/name "
            "or hf://datasets/user/name[@revision][/path]"
        )
    path = match["path"] or ""
    return HubAddress(
        name=match["name"].removesuffix(".git"),
        revision=unquote(match["revision"]) if match["revision"] else None,
        path=_path(unquote(path) if unquoted else path, plain),
    )


def _path(path: str, where: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise UsageError(f"{where} goes up by `..`: write the path from the top of the dataset")
    return "/".join(parts)
