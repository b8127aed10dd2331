"""A stranger's journal, sealed as ours are: whatever is in its lines, one clear line or a stream that can go on."""

from __future__ import annotations

import json
import random
from typing import Any

from hostile_json import mutated
from hypothesis import given, settings
from hypothesis import strategies as st

from shardkit.dataset.checked_lines import CheckedLines
from shardkit.dataset.journal import parse_journal
from shardkit.errors import OutputError

SHARD = {"split": "train", "tokens": 100, "documents": 3, "sha256": "a" * 64, "bytes": 328, "edges": ""}
FILE = {"path": "a", "bytes": 9, "rows": 5, "documents": 4, "tokens": 3, "skipped_rows": [1, 2]}
RECORDS: list[Any] = [
    {"identity": {"source": "corpus", "shard tokens": 100, "max docs": None}},
    *(
        {
            "shard": {**SHARD, "file": f"x_train_{index:06d}.npy", "index": index, "first_document": 3 * index},
            "next": {"file": 0, "start": 7, "part": 2, "skip_tokens": 3, "documents": 4, "files": {"0": FILE}},
        }
        for index in range(3)
    ),
]


def sealed(records: list[Any]) -> bytes:
    check = CheckedLines()
    return b"".join(check.seal(record) if record and isinstance(record, dict | list) else b"3\n" for record in records)


@settings(max_examples=600, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_journal_with_anything_in_it_is_refused_in_one_line_or_holds_together(seed: int) -> None:
    records = mutated(RECORDS, random.Random(seed))
    if not isinstance(records, list):
        return
    try:
        journal = parse_journal(sealed(records), where="far/journal.jsonl")
    except OutputError as error:
        assert str(error).startswith("far/journal.jsonl ")
        assert len(str(error).splitlines()) == 1
        assert len(str(error)) < 500
        return
    assert [shard.index for shard in journal.shards] == list(range(len(journal.shards)))
    resume = journal.resume
    counts = [resume.file, resume.start, resume.part, resume.skip_tokens, resume.documents]
    counts += [count for file in resume.files.values() for count in (file.bytes, file.rows, *file.skipped_rows)]
    assert all(type(count) is int and count >= 0 for count in counts)
    json.dumps(journal.identity)


def test_an_unchanged_journal_is_read() -> None:
    journal = parse_journal(sealed(RECORDS), where="here")
    assert len(journal.shards) == 3
    assert journal.resume.files[0].skipped_rows == (1, 2)
