"""Reads and writes the text of a `tokenizer.json`, and finds its end-of-text token and how it cuts text into words."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shardkit.dataset.typed_json import parse_json, read_record
from shardkit.errors import ShardkitWarning, TokenizerError
from shardkit.files import read_small_file

# Ends of text of base models, the likeliest first; and what ends a turn of a chat, which no base model has seen between
# documents, but which `tokenizer_config.json` of an instruct model names.
_EOT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "</s>", "<eos>", "[EOS]")
_ENDS_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|eot|>")
# What no id of a text depends on: the reference is made without the first three, and encoding does not ask the last.
_BESIDE = ("truncation", "padding", "post_processor", "decoder")
_BPE_DEFAULTS = {
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")


def read_tokenizer_json(path: Path) -> tuple[str, Any]:
    """The file's text, and the tokenizer made of it, for which all text is ordinary. Raises `TokenizerError`."""
    try:
        text = read_small_file(path).decode("utf-8")
        return text, parse_tokenizer_json(text)
    except OSError as error:
        raise TokenizerError(f"cannot read tokenizer {path}: {error.strerror or error}") from None
    except Exception as error:
        raise TokenizerError(f"{path} is not a tokenizer.json: {error}") from error


def parse_tokenizer_json(text: str) -> Any:
    """The `tokenizers.Tokenizer` of a file's text, for which all text is ordinary. Raises what that library does."""
    import tokenizers

    made = tokenizers.Tokenizer.from_str(text)
    made.encode_special_tokens = True  # a literal <|endoftext|> is text, as in encode_ordinary
    made.no_truncation()  # many published files cut or pad to a model's length
    made.no_padding()
    made.post_processor = None
    return made


def canonical_tokenizer_json(text: str) -> str:
    """All of a `tokenizer.json` that decides the ids of a text, in one spelling: files of which this is the same give
    the same ids for every text (where special tokens are ordinary text, as they are to `parse_tokenizer_json`). The
    fast engine is given this, and proofs are named by its hash.

    Special tokens are not in it where no other tokens are added, and the model's ids have no holes: the reference finds
    them and passes them over.
    """
    stated = json.loads(text)
    model = _canonical_model(stated["model"])
    added = stated.get("added_tokens") or []
    if all(token.get("special") for token in added) and _has_no_holes(model["vocab"]):
        added = []
    others = {name: _sorted(value) for name, value in stated.items() if name not in (*_BESIDE, "model")}
    others |= {"added_tokens": _sorted(added), "pre_tokenizer": _canonical_cutting(stated.get("pre_tokenizer"))}
    return json.dumps({**_sorted(others), **dict.fromkeys(_BESIDE), "model": model})


def _canonical_model(model: dict[str, Any]) -> dict[str, Any]:
    """The model, of a byte-pair encoding with what it leaves to the defaults, merges as pairs, and tokens by id."""
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        return model
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    if any(len(pair) != 2 or pair[0].startswith("#version") for pair in merges):
        merges = model["merges"]
    vocab = dict(sorted(model["vocab"].items(), key=lambda item: (item[1], item[0])))
    affixes = {name: model.get(name) or None for name in _AFFIXES}
    small: dict[str, Any] = _sorted({"type": "BPE"} | _BPE_DEFAULTS | model | affixes | {"merges": [], "vocab": {}})
    return small | {"merges": merges, "vocab": vocab}


def _canonical_cutting(pre: Any) -> Any:
    """A pre-tokenizer, with what the byte-level one leaves to the defaults; its `trim_offsets` moves no token."""
    if not isinstance(pre, dict):
        return pre
    if pre.get("type") == "Sequence":
        return _sorted(pre | {"pretokenizers": [_canonical_cutting(one) for one in pre["pretokenizers"]]})
    if pre.get("type") == "ByteLevel":
        return _sorted({"add_prefix_space": True, "use_regex": True} | pre | {"trim_offsets": True})
    return _sorted(pre)


def _has_no_holes(vocab: Any) -> bool:
    return isinstance(vocab, dict) and sorted(vocab.values()) == list(range(len(vocab)))


def _sorted(value: Any) -> Any:
    """A value of JSON with the names of its objects in order."""
    if isinstance(value, dict):
        return {name: _sorted(value[name]) for name in sorted(value)}
    return [_sorted(one) for one in value] if isinstance(value, list) else value


def bpe_tokenizer_json(
    vocab: dict[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    pre_tokenizer: dict[str, Any] | None,
    decoder: dict[str, Any],
    special: Mapping[str, int] | None = None,
) -> str:
    """The text of a `tokenizer.json` of a byte-pair encoding, which changes no text before it cuts it; `special` are
    its special tokens."""
    model = {"type": "BPE", **_BPE_DEFAULTS, "vocab": vocab, "merges": merges}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": special_tokens(special or {}),
            "normalizer": None,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": None,
            "decoder": decoder,
            "model": model,
        }
    )


def special_tokens(special: Mapping[str, int]) -> list[dict[str, Any]]:
    """Special tokens and their ids, as `added_tokens` of a `tokenizer.json` has them."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": number, "content": token, **flags} for token, number in special.items()]


def has_pattern_of_gpt2(stated: dict[str, Any]) -> bool:
    """Whether a `tokenizer.json` cuts text into words as GPT-2 does, and does nothing else to it."""
    pre: dict[str, Any] = stated.get("pre_tokenizer") or {}
    return (
        (pre.get("type"), pre.get("add_prefix_space"), pre.get("use_regex", True)) == ("ByteLevel", False, True)
        and stated.get("normalizer") is None
        and all(token.get("special") for token in stated.get("added_tokens") or ())
    )


def is_by_character(stated: dict[str, Any]) -> bool:
    """Whether a `tokenizer.json` gives each character an id, whatever is beside it: a byte-pair encoding that merges
    nothing, of text as it is. Then one that has no id is an error, and no unknown token."""
    model = stated.get("model") or {}
    free = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "merges")
    return (
        model.get("type") == "BPE"
        and stated.get("normalizer") is None
        and stated.get("pre_tokenizer") is None
        and not any(model.get(name) for name in free)
        and all(token.get("special") for token in stated.get("added_tokens") or ())
    )


def find_eot(path: Path, tokenizer: Any, eot: str | None = None) -> int:
    """The id of the token that separates documents: `eot`, else the end of text that `tokenizer_config.json` beside the
    file names, else that of a base model.

    Raises `TokenizerError` if there is none. Warns (`ShardkitWarning`) where it is one that ends a turn of a chat, or
    one that no well-known base model has.
    """
    if eot is not None:
        if (number := tokenizer.token_to_id(eot)) is None:
            raise TokenizerError(f"{path} has no token {eot!r}: give --eot one of its tokens")
        if list(tokenizer.encode(eot, add_special_tokens=False).ids) == [number]:
            warnings.warn(
                f"{eot!r} is ordinary text: wherever it stands in a document, it will look like the start of another; "
                "give --eot a special token",
                ShardkitWarning,
                stacklevel=2,
            )
        return int(number)
    stated = _stated_eos(path.with_name("tokenizer_config.json"))
    if stated is not None and tokenizer.token_to_id(stated) is None:
        raise TokenizerError(f"{path} has no token {stated!r}, the eos_token of its tokenizer_config.json: give --eot")
    names = [name for name in (*_EOT_NAMES, *_ENDS_OF_TURN) if tokenizer.token_to_id(name) is not None]
    if stated is not None and (stated not in _ENDS_OF_TURN or names[0] in _ENDS_OF_TURN):
        names = [stated]
    if not names:
        raise TokenizerError(
            f"{path} has none of the end-of-text tokens {', '.join(_EOT_NAMES)}: give --eot TOKEN, the one to put "
            "before each document"
        )
    if names[0] not in _EOT_NAMES:
        warnings.warn(
            f"documents are separated by {names[0]!r}, which is not the end of text of a well-known base model: give "
            "--eot TOKEN for another",
            ShardkitWarning,
            stacklevel=2,
        )
    return int(tokenizer.token_to_id(names[0]))


def _stated_eos(config: Path) -> str | None:
    """The `eos_token` of a `tokenizer_config.json`; None if there is no such file, or none in it."""
    if not config.exists():
        return None
    try:
        stated = read_record(dict[str, Any], parse_json(read_small_file(config))).get("eos_token")
        stated = stated.get("content") if isinstance(stated, dict) else stated
        if not isinstance(stated, str | None):
            raise ValueError("its eos_token is no text")
    except (ValueError, OSError) as error:
        raise TokenizerError(f"cannot read {config}: {error}") from None
    return stated
