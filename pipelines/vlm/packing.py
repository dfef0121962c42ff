"""Rows that go through the network together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def pack(length_R: Sequence[int], *, most: int, most_tokens: int | None = None) -> Iterator[list[int]]:
    """Runs of places of at most `most` rows and, filled up to the longest of them, `most_tokens`; one row always goes.

    Example: lengths 4, 4, 9, 1 with most_tokens = 10: [0, 1], [2], [3].
    """
    run: list[int] = []
    longest = 0
    for place, length in enumerate(length_R):
        together = max(longest, length)
        full = len(run) == most or (most_tokens is not None and (len(run) + 1) * together > most_tokens)
        if run and full:
            yield run
            run, together = [], length
        run.append(place)
        longest = together
    if run:
        yield run
