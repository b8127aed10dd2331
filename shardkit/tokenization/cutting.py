"""Where a text may be cut so that its parts give the tokens of the whole, one after another.

After a letter or digit, before a space, a line end or a mark that is none of them: the patterns of GPT-2 and of all
tiktoken encodings since end a piece there, and look no further back or ahead. (Not before an apostrophe, which o200k
joins to the letters.) Only letters count that have been in Unicode for so long that every engine knows them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

PART_CHARACTERS = 1 << 20  # the most that an engine is given at once, where the text can be cut
LONGEST_RUN = 8 << 20  # the most characters without such a place: an engine needs 50 to 100 bytes for each
_MARKS = r"[ \t\r\n.,;:!?()\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f]"
_PLACE = re.compile(r"[0-9A-Za-zÀ-ÖØ-öø-ÿĀ-žΑ-ΡΣ-Ωα-ωА-яא-תء-غف-يअ-हก-ฮぁ-んァ-ヶ一-龥가-힣](?=" + _MARKS + ")")


def last_place(text: str, start: int, stop: int) -> int:
    """The last place in `text`, after `start` and before `stop`, where it may be cut; `start` if there is none."""
    window = 1 << 10
    while True:
        begin = max(start, stop - window)
        found = [match.end() for match in _PLACE.finditer(text, begin, stop)]
        if found or begin == start:
            return found[-1] if found else start
        window *= 16


def parts(text: str) -> Iterator[str]:
    """`text` in parts of at most `PART_CHARACTERS`, or longer where it cannot be cut."""
    start = 0
    while len(text) - start > PART_CHARACTERS:
        stop = last_place(text, start, start + PART_CHARACTERS)
        if stop == start:
            place = _PLACE.search(text, start + PART_CHARACTERS - 1)
            if place is None:
                break
            stop = place.end()
        yield text[start:stop]
        start = stop
    yield text[start:]


def longest_part(text: str) -> int:
    """The characters of the longest of `parts(text)`."""
    return max(map(len, parts(text)))
