"""Checked lines: what was written is read, up to the first line with a changed byte, and writing goes on from there."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shardkit.dataset.checked_lines import CheckedLines, checksum

ITEMS = st.integers() | st.text() | st.lists(st.integers(), max_size=3)
RECORDS = st.dictionaries(st.text(), ITEMS, min_size=1, max_size=4) | st.lists(ITEMS, min_size=1, max_size=4)


@given(st.lists(RECORDS, min_size=1, max_size=6), st.data())
def test_lines_hold_up_to_a_changed_byte_and_go_on_from_there(records: list[Any], data: st.DataObject) -> None:
    written = CheckedLines()
    lines = [written.seal(record) for record in records]
    assert CheckedLines().unseal(lines) == records
    assert [json.loads(line) for line in lines]  # plain JSON for everybody else
    number = data.draw(st.integers(0, len(lines) - 1))
    line = bytearray(lines[number])
    line[data.draw(st.integers(0, len(line) - 1))] ^= data.draw(st.integers(1, 255))
    read = CheckedLines()
    assert read.unseal([*lines[:number], bytes(line), *lines[number + 1 :]]) == records[:number]
    assert [read.seal(record) for record in records[number:]] == lines[number:]


def test_the_form_of_a_line_is_frozen() -> None:
    written = CheckedLines()
    assert written.seal({"step": 1}) == b'{"step": 1, "check": "345e8505b47623e3"}\n'
    assert written.seal([2, "b"]) == b'[2, "b", "b48c0fb69e524b18"]\n'
    assert checksum({"b": 1, "a": [2]}) == checksum({"a": (2,), "b": 1}) == "786930339dfe86bd"
