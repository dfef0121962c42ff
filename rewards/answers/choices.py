"""What a text chooses: the letter of an option, yes or no. What cannot be read is None, never a guess.

Rewards, benchmarks and held-out scoring read choices with these functions alone. Every function takes time in proportion to
the length of the text, and none raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from grpo_mm.rewards.answers.numbers import read_count  # its path was this module's
from grpo_mm.rewards.answers.writing import normal_form, unmarked

__all__ = ["LETTERS", "folded", "named_letter", "read_count", "read_letter", "read_truth"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def read_letter(text: str, choices: Sequence[str] | int = len(LETTERS)) -> str | None:
    r"""The letter of the one option that a text chooses, by the first of these rules that finds it; None if there is none.

    1. the text is a letter ("c", "(C)", "C.") or begins with a marked one ("(C) left …", "C. left", "C: left"), and neither
       its first line nor the beginning of another names a further one ("(A) or (B)" chooses none);
    2. the text is that of one option, whatever the case, with or without a full stop;
    3. one option alone stands in brackets somewhere ("so it is (C)");
    4. one option alone is called the answer ("the answer is C", "Option c").

    Marks of emphasis do not count: "**C**", "<b>C</b>", "$\boxed{\text{C}}$". A letter that is denied ("not (C)", "(C) is
    wrong"), that another stands beside ("B or C", "B/C"), of another script or beyond the choices is none; "A dog" names none.

    Args:
        choices: their texts, or how many there are.
    """
    plain = _plain(text)
    letters = LETTERS[: choices if isinstance(choices, int) else len(choices)]
    if _ALONE.fullmatch(plain):
        letter = named_letter(plain)
        return letter if letter is not None and letter in letters else None
    if not isinstance(choices, int):
        same = [letter for letter, choice in zip(letters, choices) if folded(plain) in _texts(choice)]
        if same:
            return same[0] if len(same) == 1 else None
    for pattern in (_BRACKETED, _SAID):
        named = set(_affirmed(pattern, plain)) & set(letters)
        if named:
            letter = named.pop()
            is_open = named or any(other != letter and other in letters for other in _ALTERNATIVE.findall(plain))
            return None if is_open else letter
    return None


def named_letter(text: str) -> str | None:
    """The letter by the first rule of `read_letter` alone, as annotations name an option: "(C)", "C", "C. unwrap it"."""
    plain = _plain(text)
    if (found := _ALONE.fullmatch(plain)) is None:
        return None
    letter = found[found.lastindex].upper()
    return letter if _stands_alone(plain, found.end(found.lastindex), letter) else None


def read_truth(text: str) -> bool | None:
    """Whether a text says yes or true, or else no or false, with the first word of it and of its last line; else None.

    None as well where the two differ, or the other word follows at once ("yes or no").
    """
    lines = unmarked(text).lower().splitlines()
    said = set()
    for line in (lines[0], lines[-1]) if lines else ():
        word = _WORD.search(line)
        if word is not None and not any(c.isalnum() for c in line[: word.start()]) and word[0] in _TRUTH:
            other = _OTHER_TRUTH.match(line, word.end())
            said.add(None if other and _TRUTH[other[1]] is not _TRUTH[word[0]] else _TRUTH[word[0]])
    return said.pop() if len(said) == 1 else None


def folded(text: str) -> str:
    """A text for comparing: without case, marks, stops behind and differences of Unicode; a mark in front may be a part: ".5"."""
    return normal_form(unmarked(text)).strip(_QUOTES).rstrip(" .,;:!?").casefold()


_ITEM = re.compile(r"^\s*+[*+-]\s++(?=\S)")
_QUOTES = " \t\r\n\"'“”„‘’«»"
_ALONE = re.compile(
    r"[(\[]?([A-Za-z])[)\].:,!]*+|[(\[]?([A-Z])(?:[)\].:]++(?:\s.*+)?+|\s-\s.*+)|[(\[]?([B-HJ-Z])[,;]\s.*+", re.DOTALL
)
_OTHER = r"(?:[B-HJ-Z](?![\w'])|[AI](?![\w'])(?!\s[a-z]))"  # "or A dog" names no option
_OPTION_MARK = re.compile(r"^\s*+\(?[A-Za-z][).:]++\s++")
_BRACKETED = re.compile(r"(?<!\w)[(\[]([A-Za-z])[)\]]")
_SAID = re.compile(
    r"(?:\b(?:(?i:answer|option|choice|antwort|réponse|respuesta|risposta|resposta|ответ))(?: is|:| is:| :)?\s{1,4}\(?([A-Z])\b"
    r"(?! (?!because\b|since\b|as\b)[a-z])|\b(?i:option|choice)\s{1,4}\(?([a-z])\)?[.!]?\s*+\Z"
    r"|(?:答案|选项|選項|选择|選|选|答え|정답)(?:是|为|為|は|:|：)?\s{0,4}\(?([A-Z])(?![A-Za-z]))"
)
_ALTERNATIVE = re.compile(
    r"(?<![\w'])(?:or|oder|and/or|maybe|perhaps|或|或者)\s{0,3}(?:maybe |perhaps |option |answer )?\(?"
    rf"({_OTHER})"
)
_BESIDE = re.compile(
    r"[)\].:,;]{0,3}\s{0,3}(?:/|,|&|\+|;|or\b|and\b|oder\b|und\b|ou\b|et\b|o\b|y\b|或|和)\s{0,3}"
    rf"(?:maybe |perhaps |option )?[(\[]?({_OTHER})"
)
_LISTED = re.compile(r"^[^\w\n]{0,4}([A-Z])[)\].:]", re.MULTILINE)
_NAMED_LATER = re.compile(r"\b(?:or|oder|ou|and|und)\s{1,3}(?:option )?[(\[]?([A-Z])[)\].:]")
_DENIED = re.compile(
    r"(?:\bnot|n't|\bnever|\bneither|\bnor|\brather than|\binstead of|\bexcept|\brules? out|\beliminates?|\bexcludes?|\bunlike)"
    r"\s{1,3}(?:(?:the|be|an|a|either|option|answer|choice)\s{1,3}){0,3}[(\[]?$",
    re.IGNORECASE,
)
_WRONG = re.compile(
    r"[)\].:,]{0,3}\s{0,3}(?:is|are|was|seems|looks|can|could|must)\s{0,3}(?:not\b|n't|clearly |definitely |also )?\s{0,3}"
    r"(?:not\b|wrong|incorrect|false|impossible|ruled out|out\b|be (?:wrong|right|excluded|ruled))"
    r"|[)\].:,]{0,3}\s{0,3}(?:isn't|aren't|wasn't|can't|cannot|is not|does not|doesn't)",
    re.IGNORECASE,
)
_WORD = re.compile(r"[a-z]++")
_TRUTH = {"yes": True, "true": True, "no": False, "false": False}
_OTHER_TRUTH = re.compile(r"\W{0,3}(?:(?:and|or)\W{1,3})?(yes|true|no|false)\b")
_LOOKED_BACK = 40


def _plain(text: str) -> str:
    return unmarked(_ITEM.sub("", text)).strip(_QUOTES)


def _texts(choice: str) -> set[str]:
    """What says an option: its text, with its letter or without."""
    return {folded(choice), folded(_OPTION_MARK.sub("", choice, count=1))} - {""}


def _stands_alone(plain: str, end: int, letter: str) -> bool:
    """Whether a text that begins with a letter chooses no other, and does not take it back."""
    if _WRONG.match(plain, end) or ((beside := _BESIDE.match(plain, end)) is not None and beside[1] != letter):
        return False
    line = plain.splitlines()[0]
    others = {other.upper() for other in _affirmed(_BRACKETED, line)} | set(_NAMED_LATER.findall(line))
    return not (others | set(_LISTED.findall(plain))) - {letter}


def _affirmed(pattern: re.Pattern[str], plain: str) -> Iterator[str]:
    """Letters that are named and not denied."""
    for found in pattern.finditer(plain):
        before = plain[max(0, found.start() - _LOOKED_BACK) : found.start()]
        if not _DENIED.search(before) and not _WRONG.match(plain, found.end()):
            yield found[found.lastindex].upper()
