"""Proves that the fast engine gives the reference's ids for a vocabulary, or finds out where it does not.

`python -m shardkit.tokenization.proving FILE...` makes the proofs that come with the package: of tiktoken's encodings,
and of published `tokenizer.json` (`python -m benchmarks.published_vocabularies` writes them), each in a folder of its
name.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from shardkit.dataset.typed_json import parse_json
from shardkit.errors import ShardkitWarning
from shardkit.sources.sample import read_documents, sample_source
from shardkit.sources.source import ReadOptions
from shardkit.tokenization.battery import battery
from shardkit.tokenization.differences import Differences
from shardkit.tokenization.engines import fast_engine, make_reference, reference_engine
from shardkit.tokenization.proofs import SHIPPED, Proof, as_ranges, save_proof
from shardkit.tokenization.tokenizer_json import parse_tokenizer_json
from shardkit.tokenization.vocabulary import Vocabulary, load_vocabulary, with_fast_json

WORTH_BYTES = 100_000_000  # of text: below, the reference is done before a proof is
_SHIPPED = ("gpt2", "p50k_base", "cl100k_base", "o200k_base")  # the others have the ranks and pattern of one of these
_PROSE_FILES = 100


def with_proof(vocabulary: Vocabulary, text_bytes: int) -> Vocabulary:
    """`vocabulary` with a proof, which is made now if there is none and the text to encode is long enough.

    Warns (`ShardkitWarning`) before it begins, since that takes a minute or two, and where the engine is of no use.
    """
    proof = vocabulary.proof
    if vocabulary.proof_key is None or text_bytes < WORTH_BYTES:
        return vocabulary
    if proof is None:
        warnings.warn(
            f"comparing the fast engine with the reference for {vocabulary.name}: once on this machine, a minute or "
            "two (--encoder=tiktoken goes without)",
            ShardkitWarning,
            stacklevel=3,
        )
        proof = prove(vocabulary)
        save_proof(proof)
        vocabulary = dataclasses.replace(vocabulary, proof=proof)
    if proof.reason is not None:
        warnings.warn(
            f"{vocabulary.name} is encoded by the reference, {proof.reference}, which is slower: {proof.engine} "
            f"{proof.reason}",
            ShardkitWarning,
            stacklevel=3,
        )
    return vocabulary


def prove(vocabulary: Vocabulary) -> Proof:
    """Compare the fast engine with the reference over the battery (`battery.py`)."""
    reference = make_reference(vocabulary)
    tokens = [reference.decode([number]) for number in _ids(vocabulary)]
    added = parse_json(vocabulary.tokenizer_json or "{}").get("added_tokens") or ()
    return compare(vocabulary, battery(dict.fromkeys(tokens), _prose(), [str(token["content"]) for token in added]))


def compare(vocabulary: Vocabulary, batches: Iterable[list[str]]) -> Proof:
    """The proof that these texts give."""
    reference = make_reference(vocabulary)
    engine, strings, guard, reason = "fastokens", 0, "", None
    try:
        fast = fast_engine(with_fast_json(vocabulary))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 (a panic is no Exception)
        reason = f"cannot load it ({error.__cause__ or error})"
    else:
        engine = f"{fast.name} {fast.version}"
        found = Differences(fast.encode_batch, reference_engine(reference).encode_batch)
        found.look(batches)
        strings, guard, reason = found.strings, as_ranges(found.guard), found.reason
    return Proof(
        key=vocabulary.proof_key or "",
        vocabulary=vocabulary.info.name,
        engine=engine,
        reference=f"{reference.name} {reference.version}",
        strings=strings,
        guard=guard,
        reason=reason,
    )


def _ids(vocabulary: Vocabulary) -> list[int]:
    """The ids that there are."""
    if vocabulary.tokenizer_json is not None:
        return sorted(parse_tokenizer_json(vocabulary.tokenizer_json).get_vocab(with_added_tokens=True).values())
    known = vocabulary.encoding or {}
    return sorted([*known.get("mergeable_ranks", {}).values(), *known.get("special_tokens", {}).values()])


def _prose() -> Iterator[str]:
    for file in islice(sample_source(ReadOptions()).files, _PROSE_FILES):
        yield from read_documents(Path(file.url))


def _write_shipped(files: list[str]) -> None:
    proofs = [prove(load_vocabulary(name)) for name in _SHIPPED]
    proofs += [dataclasses.replace(prove(load_vocabulary(file)), vocabulary=Path(file).parent.name) for file in files]
    SHIPPED.write_text(json.dumps([dataclasses.asdict(proof) for proof in proofs], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _write_shipped(sys.argv[1:])
