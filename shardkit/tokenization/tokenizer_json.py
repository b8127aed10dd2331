"""Reads a `tokenizer.json` file, and finds its end-of-text token and how it cuts text into words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shardkit.dataset.typed_json import parse_json, read_record
from shardkit.errors import TokenizerError
from shardkit.files import read_small_file

_EOT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "[EOS]")


def read_tokenizer_json(path: Path) -> tuple[str, Any]:
    """The file's text, and the tokenizer made of it, for which all text is ordinary. Raises `TokenizerError`."""
    try:
        text = read_small_file(path).decode("utf-8")
        return text, parse_tokenizer_json(text)
    except OSError as error:
        raise TokenizerError(f"cannot read tokenizer {path}: {error.strerror or error}") from error
    except Exception as error:
        raise TokenizerError(f"{path} is not a tokenizer.json: {error}") from error


def parse_tokenizer_json(text: str) -> Any:
    """The `tokenizers.Tokenizer` of a file's text, for which all text is ordinary. Raises what that library does."""
    import tokenizers

    made = tokenizers.Tokenizer.from_str(text)
    made.encode_special_tokens = True  # a literal <|endoftext|> is text, as in encode_ordinary
    made.no_truncation()  # many published files cut or pad to a model's length
    made.no_padding()
    return made


def has_pattern_of_gpt2(stated: dict[str, Any]) -> bool:
    """Whether a `tokenizer.json` cuts text into words as GPT-2 does, and does nothing else to it."""
    pre: dict[str, Any] = stated.get("pre_tokenizer") or {}
    return (
        (pre.get("type"), pre.get("add_prefix_space"), pre.get("use_regex", True)) == ("ByteLevel", False, True)
        and stated.get("normalizer") is None
        and all(token.get("special") for token in stated.get("added_tokens") or ())
    )


def find_eot(path: Path, tokenizer: Any) -> int:
    """The id of the end-of-text token: `tokenizer_config.json` beside the file says which, else the usual names."""
    names: tuple[str, ...] = _EOT_NAMES
    config = path.with_name("tokenizer_config.json")
    if config.exists():
        try:
            stated = read_record(dict[str, Any], parse_json(read_small_file(config))).get("eos_token")
            stated = stated.get("content") if isinstance(stated, dict) else stated
            if not isinstance(stated, str | None):
                raise ValueError("its eos_token is no text")
        except (ValueError, OSError) as error:
            raise TokenizerError(f"cannot read {config}: {error}") from error
        names = (stated,) if stated else names
    for name in names:
        if (eot_id := tokenizer.token_to_id(name)) is not None:
            return int(eot_id)
    raise TokenizerError(
        f"{path} has none of the end-of-text tokens {', '.join(names)}: put a tokenizer_config.json with `eos_token` "
        "beside it"
    )
