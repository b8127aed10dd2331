"""Texts that tell two engines of one vocabulary apart, if anything does.

Engines differ in their tables of Unicode (which version, what is a letter, a blank, an upper case), in how they read a
pattern where two of its branches meet, in normal forms, and in merging. So: every code point in many places, tuples of
one or two characters of every class, runs, contractions, numbers, normal forms, every token of the vocabulary, seeded
random strings, and prose.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import product

VERSION = 2  # goes up with every change to the texts, so that comparisons with fewer of them do not count any more

_PLACES = (
    "a{0}b {0}",
    "{0}{0}'s 1{0}",
    " {0}\n {0}  {0}",
    "it'{0} '{0}e'{0}",
    "A{0}a {0}S'{0}T",
    "\r\n{0}/{0}\n\n",
    "  {0}   x",
    "{0}1{0}23 4{0}",
    "e\u0301{0}\u0301 {0}\u200d",
    "LS'{0}'DK {0}'DK",
)
# What random strings are made of: characters whose meaning depends on their neighbours.
_DENSE = (
    "aA1 \n'!\u00e9s",
    "dDsStTlLrReEvVmMK'\u2019\u017f\u212a1 ",
    " \t\r\n\u00a0\u2028\u3000\u180e\u200ba1/",
    "1\u0663\u00bd\u2167\u00b2,.$-+ a",
    "aA\u01c5\u02b0\u00aa\u00e9\u0130\u0131\u00df\u03c3\u03c2'\u65e5 ",
    "ae\u0301\u0323\u0345\u093c\u1100\u1161\u11a8\uac00\u3099\u304b \u200d",
)
_BATCH_CHARACTERS = 1 << 19


@lru_cache(maxsize=1)
def characters() -> list[str]:
    """What has, or may soon have, a meaning of its own: planes 0 to 3, and the tags and selectors of plane 14."""
    return [chr(c) for c in (*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE1000))]


def battery(tokens: Iterable[str], prose: Iterable[str] = (), added: Iterable[str] = ()) -> Iterator[list[str]]:
    """The texts, in batches of about half a million characters. `tokens` are those of the vocabulary, as text; `prose`
    are documents of the kind that will be encoded; `added` are tokens that are found in the text before it is cut."""
    for kind in (
        _of_tokens(list(tokens)),
        _of_added_tokens(list(added)),
        _contractions(),
        _numbers(),
        _runs(),
        _normal_forms(),
        _tuples(),
        _random_strings(),
        prose,
        _every_code_point(),
    ):
        yield from _batches(kind)


@lru_cache(maxsize=1)
def representatives() -> list[str]:
    """ASCII, and of every class of characters beyond it the first and the last."""
    classes: dict[tuple[object, ...], list[str]] = {}
    for char in characters()[128:]:
        forms = tuple(unicodedata.is_normalized(form, char) for form in ("NFC", "NFD", "NFKC", "NFKD"))
        cased = (char.lower() != char, char.upper() != char, len(char.upper()), char.casefold().isascii())
        marked = min(unicodedata.combining(char), 1)
        key = (unicodedata.category(char), char.isspace(), char.isalpha(), char.isnumeric(), marked, *forms, *cased)
        found = classes.setdefault(key, [char, char])
        found[1] = char
    return list(dict.fromkeys([*map(chr, range(128)), *(char for pair in classes.values() for char in pair)]))


def _every_code_point() -> Iterator[str]:
    yield from characters()
    for at in range(0, len(characters()), 64):
        for place in _PLACES:
            yield "".join([place.format(char) for char in characters()[at : at + 64]])
    # no version of Unicode gives these another meaning than unassigned or private
    others = [*range(0x40000, 0xE0000), *range(0xE1000, 0x110000)]
    for at in range(0, len(others), 256):
        yield "".join([f"a{char} {char}1" for char in map(chr, others[at : at + 256])])


def _tuples() -> Iterator[str]:
    every = representatives()
    for first, second in product(every, every):
        yield first + second
    for first in every:
        yield "".join([f"x{first}{second} {second}{first}y" for second in every])
    categories = {unicodedata.category(char): char for char in every}
    coarse = [*categories.values(), *"aSs' \n\r\t1!/", *"\u00a0\u017f\u180e\u2028\u0301\u200d\u65e5"]
    for chars in product(coarse, repeat=3):
        yield "".join(chars)
    for chars in product("aSs' \n\r1!/\u00a0\u0301", repeat=4):
        yield "".join(chars)
    for chars in product(" \n\raA1'!", repeat=5):
        yield "".join(chars)


def _runs() -> Iterator[str]:
    for char, length in product(representatives(), (2, 3, 4, 5, 7, 8, 9, 16, 33, 100, 1000)):
        run = char * length
        yield from (run, f"a{run} b", f" {run}\n{run}x")


def _contractions() -> Iterator[str]:
    letters = {
        form
        for word in ("s", "t", "re", "ve", "m", "ll", "d", "x")
        for form in (word, word.upper(), word.title(), word[0] + word[1:].upper())
    }
    ends = sorted(letters | {"\u017f", "\u212a", "l\u017f", "\u0130", "\u0131", "\ufb05"})
    befores, afters = ("", "a", "A", "1", " ", "\u00e9", "\n", "'"), ("", "x", "X", " ", "'", "1", "\u0301")
    for before, quote, end, after in product(befores, "'\u2019\u02bc\uff07", ends, afters):
        yield before + quote + end + after
    for before, end, other, after in product(("a", "LS", "1 "), ends, ends, ("", "K", "e")):
        yield f"{before}'{end}'{other}{after}"


def _numbers() -> Iterator[str]:
    digits = "1\u0663\u00bd\u2167\u00b2\u0967\uff11\U0001d7d8\u4e09"
    for digit, length, before, after in product(digits, range(1, 13), ("", " ", "a", "$", "-", "."), ("", " ", "a")):
        yield before + digit * length + after
    for mixed in product(digits, repeat=4):
        yield "".join(mixed)


def _normal_forms() -> Iterator[str]:
    for char in characters():
        if not unicodedata.is_normalized("NFKD", char):
            for form in ("NFC", "NFD", "NFKC", "NFKD"):
                changed = unicodedata.normalize(form, char)
                yield from (changed, f"a{changed}b {changed}")
    marks = "\u0301\u0300\u0323\u0327\u0338\u0345\u05b0\u064b\u093c\u094d\u0e38\u3099\u1dce"
    for base, first, second in product("aeo\u00e9\u1e0b\u0928\u304b", marks, marks):
        yield base + first + second
    for parts in product("\u1100\u1112\uac00", "\u1161\u1175", ("", "\u11a8", "\u11c2")):
        yield "".join(parts)


def _of_tokens(tokens: list[str]) -> Iterator[str]:
    dice = random.Random(1)
    others = dice.sample(tokens, len(tokens))
    for token, other in zip(tokens, others, strict=True):
        yield from (token, f" {token}", token + token, token + other)


def _of_added_tokens(tokens: list[str]) -> Iterator[str]:
    """Added tokens may want blanks beside them, or swallow these, and may stand in one another."""
    for token, other in zip(tokens, [*tokens[1:], *tokens[:1]], strict=True):
        for before, after in product(("", "x", " ", "x  ", "\n "), ("", "y", " ", "  y", "\n\n", "'s")):
            yield before + token + after
        yield from (token + other, f"{token[:-1]}{token}", f"{token} {other}", token.upper(), token.lower())


def _random_strings() -> Iterator[str]:
    dice, every = random.Random(2), representatives()
    for _ in range(20_000):
        yield "".join(dice.choices(every, k=dice.randint(1, 40)))
        yield "".join(dice.choices(characters(), k=dice.randint(1, 12)))
        for dense in _DENSE:
            yield "".join(dice.choices(dense, k=dice.randint(1, 20)))


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text) + 8
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
