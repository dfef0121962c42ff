"""A CLIP tokenizer whose vocabulary is a handful of whole words."""

from __future__ import annotations

import string
from collections.abc import Iterable

START, END = "<|startoftext|>", "<|endoftext|>"


def word_tokenizer(words: Iterable[str], *, max_length: int):
    """A `CLIPTokenizer` in which each of `words` is one token; any other lower-case text falls into letters.

    `max_length` counts the start and the end token.
    """
    from transformers import CLIPTokenizer

    merges: list[tuple[str, str]] = []
    for word in sorted(set(words)):
        pieces = _apply(merges, [*word[:-1], word[-1] + "</w>"])
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = _apply(merges, pieces)
    letters = [letter + end for end in ("", "</w>") for letter in string.ascii_lowercase]
    tokens = [*letters, *dict.fromkeys(a + b for a, b in merges), START, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def _apply(merges: list[tuple[str, str]], pieces: list[str]) -> list[str]:
    """Byte-pair merging: earlier merges first, each wherever it fits."""
    for left, right in merges:
        joined: list[str] = []
        for piece in pieces:
            if joined and (joined[-1], piece) == (left, right):
                joined[-1] += piece
            else:
                joined.append(piece)
        pieces = joined
    return pieces
