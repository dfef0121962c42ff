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


def pack_groups(
    sizes: Sequence[tuple[int, Sequence[int]]], *, most: int, most_tokens: int | None = None, apart: bool = False
) -> Iterator[list[int]]:
    """Runs of places of answers that share their prompts: whole groups as long as they fit, or a part of one group.

    Args:
        sizes: of each group, tokens of the prompt and of each answer. Places count through all groups.
        most: answers of a run. most_tokens: of a run, every prompt once, filled up to the longest prompt and the longest
            group; one answer always goes.
        apart: groups never go together.

    Example: sizes (10, [2, 2]), (8, [1]), (9, [4, 4, 4]) with most_tokens = 28: [0, 1, 2], [3, 4, 5]; with 17: [0, 1], [2],
    [3, 4], [5].
    """
    limit = float("inf") if most_tokens is None else most_tokens
    run: list[int] = []
    groups = longest = widest = place = 0
    for prompt, answers in sizes:
        places, total = list(range(place, place + len(answers))), sum(answers)
        place += len(answers)
        filled = (groups + 1) * (max(longest, prompt) + max(widest, total))
        if run and (apart or len(run) + len(places) > most or filled > limit):
            yield run
            run, groups, longest, widest = [], 0, 0, 0
        if len(places) > most or prompt + total > limit:
            yield from _parts(prompt, answers, places, most=most, limit=limit)
            continue
        run, groups, longest, widest = run + places, groups + 1, max(longest, prompt), max(widest, total)
    if run:
        yield run


def _parts(
    prompt: int, answers: Sequence[int], places: Sequence[int], *, most: int, limit: float
) -> Iterator[list[int]]:
    run: list[int] = []
    tokens = prompt
    for place, answer in zip(places, answers):
        if run and (len(run) == most or tokens + answer > limit):
            yield run
            run, tokens = [], prompt
        run.append(place)
        tokens += answer
    yield run
