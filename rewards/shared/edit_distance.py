"""How many letters are wrong? Levenshtein distance."""

from __future__ import annotations


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: insertions, deletions and substitutions cost 1. One step on big integers per letter of `a`, whatever is written.

    Bit j of `up` and `down` says whether the distance grows or falls from j to j + 1 letters of `b` (Myers 1999, Hyyrö 2003).
    """
    if not b:
        return len(a)
    every = (1 << len(b)) - 1
    places: dict[str, int] = {}
    for j, letter in enumerate(b):
        places[letter] = places.get(letter, 0) | 1 << j
    up, down, distance, last = every, 0, len(b), len(b) - 1
    for letter in a:
        same = places.get(letter, 0)
        across = (((same & up) + up) ^ up) | same | down
        grows, falls = down | (every & ~(across | up)), up & across
        distance += (grows >> last & 1) - (falls >> last & 1)
        grows, falls = grows << 1 | 1, falls << 1
        up, down = (falls | ~(across | grows)) & every, grows & across & every
    return distance
