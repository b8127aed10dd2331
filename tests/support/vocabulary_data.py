"""Small vocabularies, trained on the built-in sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tokenizers
from texts import prose


def train_vocabulary(path: Path, *, size: int = 400, specials: Sequence[str] = ("<|im_end|>", "<|endoftext|>")) -> Path:
    """Write the `tokenizer.json` of a byte-level BPE of `size` ids, `specials` first, to `path`."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(specials),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(prose(50), trainer)
    path.parent.mkdir(exist_ok=True)
    made.save(str(path))
    return path
