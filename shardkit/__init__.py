"""shardkit: from raw text to training batches by the shortest, cheapest, most trustworthy road.

    from shardkit import ShardLoader, tokenize, push, pull, info, verify, peek, Manifest

Importing this package loads nothing heavy: each name imports what it needs when it is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from shardkit.errors import ShardkitError, UsageError, machine_fault, missing_package
from shardkit.version import __version__

if TYPE_CHECKING:
    from shardkit.batches.ledger import merge_ledger
    from shardkit.dataset.datasets_view import to_datasets
    from shardkit.dataset.manifest import Manifest
    from shardkit.dataset.shards import open_shard
    from shardkit.loader.loader import ShardLoader
    from shardkit.locks import hold_lock
    from shardkit.look.diff import diff
    from shardkit.look.info import info
    from shardkit.look.peek import peek
    from shardkit.look.plan import plan
    from shardkit.look.report import report
    from shardkit.look.verify import verify
    from shardkit.redaction import printable, public_address
    from shardkit.remote.pull import pull
    from shardkit.remote.push import push
    from shardkit.tokenization.convert import convert
    from shardkit.tokenization.merge import merge
    from shardkit.tokenization.pipeline import tokenize
    from shardkit.tokenization.tokenizer import Tokenizer

__all__ = [
    "Manifest",
    "ShardLoader",
    "ShardkitError",
    "Tokenizer",
    "UsageError",
    "__version__",
    "convert",
    "diff",
    "hold_lock",
    "info",
    "machine_fault",
    "merge",
    "merge_ledger",
    "open_shard",
    "peek",
    "plan",
    "printable",
    "public_address",
    "pull",
    "push",
    "report",
    "to_datasets",
    "tokenize",
    "verify",
]

_HOMES = {
    "Manifest": "shardkit.dataset.manifest",
    "ShardLoader": "shardkit.loader.loader",
    "Tokenizer": "shardkit.tokenization.tokenizer",
    "convert": "shardkit.tokenization.convert",
    "diff": "shardkit.look.diff",
    "hold_lock": "shardkit.locks",
    "info": "shardkit.look.info",
    "merge": "shardkit.tokenization.merge",
    "merge_ledger": "shardkit.batches.ledger",
    "open_shard": "shardkit.dataset.shards",
    "peek": "shardkit.look.peek",
    "plan": "shardkit.look.plan",
    "printable": "shardkit.redaction",
    "public_address": "shardkit.redaction",
    "pull": "shardkit.remote.pull",
    "push": "shardkit.remote.push",
    "report": "shardkit.look.report",
    "to_datasets": "shardkit.dataset.datasets_view",
    "tokenize": "shardkit.tokenization.pipeline",
    "verify": "shardkit.look.verify",
}


# `from shardkit import *` asks for each of these
if not TYPE_CHECKING and "torch" not in sys.modules and find_spec("torch") is None:
    __all__.remove("ShardLoader")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        try:
            return getattr(import_module(_HOMES[name]), name)
        except ModuleNotFoundError as error:
            raise (missing_package(error) or error) from None
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
