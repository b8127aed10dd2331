"""An engine that panics, or spends hours on one document, ends the run with a line that names it, or is passed over."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_data import job_of

from shardkit.errors import AuditError, TokenizerError
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.open import open_source
from shardkit.sources.source import ReadOptions
from shardkit.tokenization import engine_calls
from shardkit.tokenization.engine_calls import Unencodable
from shardkit.tokenization.tokenizer import Tokenizer
from shardkit.tokenization.worker import ChunkEncoder


class PanicException(BaseException):
    """What pyo3 raises for a panic: no `Exception`."""


def panics(text: str) -> list[int]:
    if "bad" in text:
        raise PanicException("called `Option::unwrap()`")
    return [ord(c) for c in text]


def test_a_panic_becomes_an_exception_that_says_so() -> None:
    for text in ("bad", "bad" + "x" * engine_calls._LONG):
        with pytest.raises(Unencodable, match=r"engine 1 failed on its .* characters \(PanicException: called"):
            engine_calls.call_engine("engine 1", panics, text)
        assert engine_calls.call_engine("engine 1", panics, text[3:]) == [120] * len(text[3:])


def test_ctrl_c_is_no_failure_of_the_engine() -> None:
    def interrupted(text: str) -> list[int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine_calls.call_engine("engine 1", interrupted, "text")


def test_a_document_that_never_ends_is_named_and_the_caller_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_calls, "SECONDS", 0.05)
    never = threading.Event()

    def hangs(text: str) -> list[int]:
        never.wait()
        return []

    tokenizer = Tokenizer("gpt2", encoder="fast")
    text = "^" * engine_calls._LONG
    ids, _ = tokenizer.encode_batch([text])
    tokenizer._reference = tokenizer._reference._replace(
        encode=lambda text: engine_calls.call_engine("tiktoken 0.8", hangs, text)
    )
    with pytest.raises(AuditError, match=r"a\.jsonl, row 3: tiktoken 0\.8 has not encoded its 32,768 .* newer one"):
        tokenizer.audit(text, ids, "a.jsonl, row 3")
    with pytest.raises(TokenizerError, match="has not encoded"):
        tokenizer.encode_ordinary(text)
    never.set()


def test_the_audit_names_the_document_that_the_reference_panics_on() -> None:
    tokenizer = Tokenizer("gpt2", encoder="fast")
    tokenizer._reference = tokenizer._reference._replace(
        encode=lambda text: engine_calls.call_engine("tiktoken 0.8", panics, text)
    )
    with pytest.raises(AuditError, match=r"row 7: tiktoken 0\.8 failed .*PanicException.*leave the document out"):
        tokenizer.audit("bad", np.array([1], "<u4"), "row 7")


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("way", ["reference", "batch"])
def test_a_document_that_the_engine_in_use_panics_on_is_a_bad_row(tmp_path: Path, way: str, skip: bool) -> None:
    texts = ["one", "two bad", "three", "bad"]
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    source = open_source(str(tmp_path / "a.jsonl"), skip_bad_rows=skip)
    encoder = ChunkEncoder(job_of("bytes", source.options))
    whole = encoder.tokenizer._encode_batch

    def batch(texts: Any) -> Any:
        if way == "reference":
            for text in texts:
                engine_calls.call_engine("engine 1", panics, text)
        elif any("bad" in text for text in texts):
            raise PanicException("index out of bounds")
        return whole(texts)

    encoder.tokenizer._encode_batch = batch
    (chunk,) = iter_chunks(source, 0, 0, 0, chunk_bytes=1 << 20)
    (result,) = encoder.encode(chunk)
    assert isinstance(source.options, ReadOptions)
    if not skip:
        row, why = result.bad_row or (0, "")
        assert row == 1
        assert "failed on its 7 characters (PanicException" in why
        return
    assert (result.error, result.bad_row, result.bad_rows) == (None, None, 2)
    assert bytes(result.tokens[result.tokens < 256].astype(np.uint8)) == b"onethree"
    assert result.skipped.tolist() == [[1, 1], [3, 3]]


@pytest.mark.parametrize("text", ["^" * 1_000_000, "a" * 1_000_000, "^a" * 500_000])
def test_a_million_characters_of_one_kind_are_encoded_by_both_engines_alike(text: str) -> None:
    tokenizer = Tokenizer("gpt2", encoder="fast")
    ids, _ = tokenizer.encode_batch([text])
    tokenizer.audit(text, ids, "here")
