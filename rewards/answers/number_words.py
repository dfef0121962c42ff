"""Words and signs around a number that make another number of it, or none: multipliers, bounds, ranges, denials."""

from __future__ import annotations

import re

_SCALES: dict[str, float | None] = {
    "hundred": 1e2,
    "thousand": 1e3,
    "million": 1e6,
    "billion": 1e9,
    "trillion": 1e12,
    "dozen": 12.0,
    "lakh": 1e5,
    "crore": 1e7,
    "bn": 1e9,
    "tausend": 1e3,
    "mille": 1e3,
    "mila": 1e3,
    "mil": 1e3,
    "millionen": 1e6,
    "mio": 1e6,
    "mrd": 1e9,
    "milliarde": 1e9,
    "milliarden": 1e9,
    "milliard": 1e9,
    "millón": 1e6,
    "millones": 1e6,
    "milione": 1e6,
    "milioni": 1e6,
    "тысяча": 1e3,
    "тысячи": 1e3,
    "тысяч": 1e3,
    "тыс": 1e3,
    "миллион": 1e6,
    "миллиона": 1e6,
    "миллионов": 1e6,
    "млн": 1e6,
    "млрд": 1e9,
    # shares of one, and what differs by country
    "tenth": None,
    "hundredth": None,
    "thousandth": None,
    "third": None,
    "half": None,
    "halves": None,
    "billionen": None,
}
_SIGNS = {"百": 1e2, "千": 1e3, "万": 1e4, "萬": 1e4, "亿": 1e8, "億": 1e8, "백": 1e2, "천": 1e3, "만": 1e4, "억": 1e8}

SCALE = (
    r"[\s-]?(?:(?i:" + "|".join(sorted(map(re.escape, _SCALES), key=len, reverse=True)) + r")s?+(?![^\W\d_])"
    r"|(?:[万萬亿億만억百백천]|千(?![克米瓦卡升]))(?!分))"
    r"(?P<more>\s?[\d十百千万萬亿億백천만억]|\s(?:and\s)?(?:one|two|three|four|five|six|seven|eight|nine|ten|\w{2,9}teen|\w{2,6}ty)\b)?+"
)
"""Behind a number in digits: "million", "万", "dozen"; with the group `more` where the number goes on behind it."""


def scale_of(word: str) -> float | None:
    """By how much a multiplier multiplies; None if that cannot be told, or it makes a share ("3 tenths")."""
    name = word.strip(" \t\r\n\u00a0-").lower()
    for known in (name, name.removesuffix("s")):
        if known in _SCALES:
            return _SCALES[known]
    return _SIGNS.get(name)


MINUS = re.compile(r"(?<!\d)(?<!\d )\b(?:minus|negative)\s+$", re.IGNORECASE)
BOUND = re.compile(
    r"(?:(?:^|[\s(:])[<>]=?\s*|[≤≥⩽⩾≦≧≠]\s*|\\(?:geq?|leq?|gt|lt|neq?)\s*"
    r"|(?:\bnot|n't|\bnever|\b(?:less|more|fewer|greater|larger|smaller|higher|lower|other|rather) than|\bat (?:least|most)"
    r"|\bup to|\bunder|\bover|\babove|\bbelow|\bbeyond|\bexceed(?:s|ing)|\bm(?:ax|in)imum(?: of)?|\binstead of"
    r"|\bnicht|\bkein|\b(?:mindestens|höchstens|maximal|minimal|über|unter)|\b(?:weniger|mehr) als"
    r"|\bpas|\bau (?:moins|plus)|\b(?:moins|plus) de"
    r"|\bal menos|\ba lo sumo|\b(?:menos|más|mais) de|\bpelo menos|\bno máximo|\b(?:meno|più) di|\balmeno|\bal massimo"
    r"|\bне(?: менее| более| меньше| больше)?|\b(?:менее|более|меньше|больше|минимум|максимум))\s+(?:the\s+)?"
    r"|(?:至少|至多|最多|最少|超过|超過|不到|不足|少于|少於|多于|多於|大于|大於|小于|小於|高于|低于|不是|并非|不等于|최소|최대|少なくとも)\s*)$",
    re.IGNORECASE,
)
"""Before a number: it is a bound, or denied."""
BOUND_BEHIND = re.compile(
    r"\s?\+(?!\s?[\d.])|\s{0,2}(?:or|and) (?:more|less|fewer|over|above|under|below|up)\b|\s{0,2}\w{0,2}(?:以上|以下|以内|未満|이상|이하|多个|余个)",
    re.IGNORECASE,
)
"""Behind a number: it is a bound ("5+", "5 or more")."""
REACHED = re.compile(
    r"\W{0,4}(?:[a-z]{1,12}\W{1,3})?(?:(?:-|~|/|…|to|or|and/or|maybe|perhaps|possibly|bis|oder|ou|o|или|до|hasta|à|或|到|至|から|에서|부터|또는|か)"
    r"\W{0,4})+(?:maybe|perhaps)?\W{0,3}",
    re.IGNORECASE,
)
"""Between two numbers that leave it open which one is meant: "3 to 5", "3 or 4"."""
BETWEEN = re.compile(
    r"\b(?:between|from|either|zwischen|entre|tra|fra|между|tussen|mellan)\b|(?:介于|在)\s?$", re.IGNORECASE
)
FROM = re.compile(r"\b(?:von|de|da|du|desde|от|с|od)\s+$", re.IGNORECASE)
AND = re.compile(r"(?<!\w)(?:and|und|et|y|e|и|en|och|a|à|al|au|do|和|与)(?!\w)|[和与]", re.IGNORECASE)
TO = re.compile(r"\W{0,3}(?:[^\W\d_]{1,12}\W{1,3})?(?:a|à|al|au|do|по|до)\W{1,3}", re.IGNORECASE)
SUM = re.compile(
    r"\s{0,2}(?:[+=÷]|\\(?:times|div|cdot|pm)|plus\b|minus\b|times\b|equals\b)\s{0,2}|\s[-*/]\s", re.IGNORECASE
)
"""Between two numbers of a sum: neither is the answer."""
