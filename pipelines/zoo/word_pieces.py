"""A T5 tokenizer whose vocabulary is a handful of whole words."""

from __future__ import annotations

import string
from collections.abc import Iterable

SPECIAL = ("<pad>", "</s>", "<unk>")
"""With the numbers 0, 1 and 2, as T5 has them."""


def word_pieces(words: Iterable[str], *, max_length: int):
    """A `T5Tokenizer` in which each of `words` is one token; any other lower-case text falls into letters.

    `max_length` counts the end token.
    """
    from transformers import T5Tokenizer

    whole = [(f"▁{word}", -1.0) for word in sorted(set(words))]
    letters = [("▁", -20.0), *((letter, -20.0) for letter in string.ascii_lowercase)]
    seen = {token for token, _ in whole}
    vocabulary = [*((token, 0.0) for token in SPECIAL), *whole, *(piece for piece in letters if piece[0] not in seen)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=max_length)
