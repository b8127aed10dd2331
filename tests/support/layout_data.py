"""Streams of documents for the layouts' tests: every token its own number, so that none can stand in for another."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from shardkit.dataset.token_stream import Tokens, TokenStream, open_split

EOT = 65535


def document_stream(bodies: list[int], *, lead: int = 0) -> Tokens:
    """`lead` tokens of a document that began elsewhere, then EOT and `body` tokens for each of `bodies`."""
    starts = np.cumsum([lead, *(body + 1 for body in bodies)])
    tokens = np.arange(starts[-1], dtype="<u2")
    tokens[starts[:-1]] = EOT
    return tokens


def write_stream(folder: Path, tokens: Tokens, cuts: list[int]) -> TokenStream:
    """`tokens` as bare shards that end at `cuts`, opened with the EOT id that they do not tell."""
    folder.mkdir(parents=True, exist_ok=True)
    edges = sorted({0, len(tokens), *(cut for cut in cuts if cut < len(tokens))})
    for index, (begin, end) in enumerate(pairwise(edges)):
        np.save(folder / f"x_train_{index:06d}.npy", tokens[begin:end])
    stream = open_split(folder, "train", verify=False)[1]
    stream.eot_id = EOT
    return stream


@st.composite
def streams(draw: st.DrawFn) -> Tokens:
    """Mostly short documents, some empty, some long; often a part of one in front."""
    bodies = draw(st.lists(st.one_of(st.integers(0, 6), st.integers(0, 60)), max_size=40))
    lead = draw(st.one_of(st.just(0), st.integers(0, 30)))
    return document_stream(bodies, lead=lead if bodies else max(lead, 1))
