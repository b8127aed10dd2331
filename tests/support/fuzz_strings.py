"""Random strings of all kinds, to try an encoder on: seeded, so that the same ones come again."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator

from texts import prose

SPECIAL = [
    "<|endoftext|>",
    "'s",
    "'LL",
    "\r\n",
    "\t",
    "\u00a0",
    "\u2028",
    "\u200d",
    "\ufeff",
    "e\u0301",
    "ﬁ",
    "ß",
    "İ",
    "0",
    "\uff11",
    "²",
    "ↂ",
]
RANGES = [
    (0x20, 0x7F),
    (0, 0x20),
    (0x80, 0x250),
    (0x370, 0x600),
    (0x3040, 0x3100),
    (0x4E00, 0x9FFF),
    (0x1F300, 0x1FAFF),
    (0, 0x10FFFF),
]


def strings(count: int, seed: int) -> Iterator[str]:
    """Letters of one range, of several, words of prose cut and joined, runs, and what patterns cut at."""
    rng, words = random.Random(seed), " ".join(prose(50)).split(" ")
    for _ in range(count):
        kind = rng.randrange(5)
        if kind == 0:
            low, high = rng.choice(RANGES)
            text = "".join(chr(rng.randint(low, high - 1)) for _ in range(rng.randint(0, 12)))
        elif kind == 1:
            text = "".join(chr(rng.randint(*rng.choice(RANGES))) for _ in range(rng.randint(1, 8)))
        elif kind == 2:
            text = rng.choice(["", " ", "  ", "\n"]).join(rng.choices(words, k=rng.randint(1, 6)))
        elif kind == 3:
            text = rng.choice([*SPECIAL, "a", " ", "^", "\n", "9"]) * rng.randint(1, 40)
        else:
            text = "".join(
                rng.choice([*SPECIAL, *rng.choices(words, k=4), " ", "\n"]) for _ in range(rng.randint(1, 8))
            )
        if rng.random() < 0.1:
            text = unicodedata.normalize(rng.choice(["NFC", "NFD", "NFKD"]), text)
        yield text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
