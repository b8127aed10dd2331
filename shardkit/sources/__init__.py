"""Text to read: a name becomes an ordered list of files, and those an ordered stream of chunks. Knows no tokens."""

from shardkit.sources.open import open_source

__all__ = ["open_source"]
