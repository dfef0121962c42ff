"""What a text chooses: the letter of an option, yes or no. What cannot be read is None, never a guess.

Rewards, benchmarks and held-out scoring read choices with these functions alone. Every function takes time in proportion to
the length of the text, and none raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from grpo_mm.rewards.answers.numbers import read_count  # its path was this module's
from grpo_mm.rewards.answers.writing import normal_form, unmarked

__all__ = ["LETTERS", "TRUTH", "folded", "named_letter", "read_count", "read_letter", "read_truth"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def read_letter(text: str, choices: Sequence[str] | int = len(LETTERS)) -> str | None:
    r"""The letter of the one option that a text chooses, by the first of these rules that finds it; None if there is none.

    1. the text is a letter ("c", "(C)", "C.") or begins with a marked one ("(C) left …", "C. left", "C: left", or alone on its
       line), and neither its first line nor the beginning of another names a further one ("(A) or (B)" chooses none);
    2. the text is that of one option, whatever the case, with or without a full stop;
    3. one option alone is called the answer ("the answer is C", "die Antwort ist C", {"answer": "C"});
    4. one option alone stands in brackets somewhere ("so it is (C)");
    5. one option alone is chosen in other words ("Option c", "I choose C", "C is correct").

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
    for pattern in (_CALLED, _BRACKETED, _SAID):
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

    None as well where the two differ, the other word follows at once ("yes or no"), or it says that nothing is known ("no
    idea"). Words of common languages are known, and "Answer: yes" begins with yes.
    """
    lines = unmarked(text).lower().splitlines()
    said = set()
    for line in (lines[0], lines[-1]) if lines else ():
        if (found := _SAID_TRUTH.match(line)) is not None:
            other = _OTHER_TRUTH.match(line, found.end())
            is_open = _NOTHING_SAID.match(line, found.end()) or (other and TRUTH[other[1]] is not TRUTH[found[1]])
            said.add(None if is_open else TRUTH[found[1]])
    return said.pop() if len(said) == 1 else None


def folded(text: str) -> str:
    """A text for comparing: without case, marks, stops behind and differences of Unicode; a mark in front may be a part: ".5"."""
    return normal_form(unmarked(text)).strip(_QUOTES).rstrip(" .,;:!?").casefold()


_ITEM = re.compile(r"^\s*+[*+-]\s++(?=\S)")
_QUOTES = " \t\r\n\"'“”„‘’«»"
_ALONE = re.compile(
    r"[(\[{]?([A-Za-z])[)\].:,!}]*+"
    r"|[(\[]?([A-Z])(?:[)\].:]++(?:\s.*+)?+|\s-\s.*+|[^\S\n]*+\n.*+|\s(?:because|since)\b.*+)"
    r"|[(\[]?([B-HJ-Z])(?:[,;]\s|\s\().*+|[(\[]?([a-z])[)\].:]\s.*+",
    re.DOTALL,
)
_OTHER = r"(?:[B-HJ-Z](?![\w'])|[AI](?![\w'])(?!\s[a-z]))"  # "or A dog" names no option
_OPTION_MARK = re.compile(r"^\s*+\(?[A-Za-z][).:]++\s++")
_BRACKETED = re.compile(r"(?<!\w)[(\[][\"']?([A-Za-z])[\"']?[)\]]")
_LETTER_SAID = r"(?:([B-HJ-Z])(?!\w|'\w)|([AI])(?!\w|'\w)(?!\s(?!because\b|since\b|as\b|is\b|and\b|or\b|/)[a-z]))"
_CALLED = re.compile(
    r"\b(?i:answer|antwort|réponse|respuesta|risposta|resposta|ответ)(?:\s(?i:correcta?|choice|option))?[\"']?"
    r"(?:\s{0,3}(?:\b(?i:is|should be|must be|would be|est|es|é|è|ist|lautet)\b|[=:])){0,2}\s{0,4}"
    r"(?i:(?:probably|most likely|likely|clearly|therefore)\s)?(?i:(?:the\s)?(?:option|choice|letter)\s)?[\"'(\[{]?"
    + _LETTER_SAID
    + r"|(?<![不非])(?:答案|选项|選項|选择|選|选|答え|答|正解|정답|답)(?:应该是|應該是|是|为|為|は|은|는|:|：)?\s{0,4}\(?([A-Z])(?![A-Za-z])"
)
_SAID = re.compile(
    r"(?:\b(?i:option|choice)(?: is|:| is:| :)?\s{1,4}\(?([A-Z])\b(?! (?!because\b|since\b|as\b)[a-z])"
    r"|\b(?i:option|choice)\s{1,4}\(?([a-z])\)?[.!]?\s*+\Z"
    r"|\b(?i:it is|it's|choose|pick|select|go with|picking|choosing)\s{1,2}\(?([A-Z])\)?[.!]?\s*+\Z"
    r"|(?<![\w'])([A-Z])(?= is (?:(?:the )?(?:correct|right|best) (?:answer|option|choice|one)\b|(?:correct|right)[.,;!]?(?:\s*+\Z|\n))))"
)
_ALTERNATIVE = re.compile(
    r"(?i:(?<![\w'])(?:or|oder|and/or|maybe|perhaps|no|wait|actually|sorry|或|或者)\W{0,3}"
    r"(?:(?:maybe|perhaps|option|answer|wait|it is|it's)\W{1,2}){0,2}\(?)"
    rf"({_OTHER})"
)
_BESIDE = re.compile(
    r"[)\].:,;]{0,3}\s{0,3}(?:/|,|&|\+|;|or\b|and\b|oder\b|und\b|ou\b|et\b|o\b|y\b|或|和)\s{0,3}"
    rf"(?:maybe |perhaps |option )?[(\[]?({_OTHER})"
)
_LISTED = re.compile(r"^[^\w\n]{0,4}([A-Z])(?:[)\].:]|[^\S\n]*+$)", re.MULTILINE)
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
TRUTH = dict.fromkeys(
    [
        "yes",
        "yeah",
        "yep",
        "true",
        "ja",
        "oui",
        "sí",
        "sì",
        "sim",
        "да",
        "wahr",
        "vrai",
        "verdadero",
        "vero",
        "是",
        "是的",
        "对",
        "對",
        "正确",
        "正確",
        "はい",
        "예",
        "네",
        "참",
    ],
    True,
) | dict.fromkeys(
    [
        "no",
        "nope",
        "false",
        "nein",
        "nee",
        "non",
        "não",
        "нет",
        "falsch",
        "faux",
        "falso",
        "否",
        "不",
        "不是",
        "不对",
        "错",
        "错误",
        "錯誤",
        "いいえ",
        "아니요",
        "아니오",
        "거짓",
    ],
    False,
)
"""What a word says, in lower case."""
_TRUTHS = "|".join(sorted(TRUTH, key=len, reverse=True))
_SAID_TRUTH = re.compile(
    rf"[^\w]*+(?:(?:the |my )?(?:final |correct )?answer(?:\s?:| is:?)[^\w]*+|(?:答案|回答)(?:是|:)?[^\w]*+)?+({_TRUTHS})(?!\w|-\w)"
)
_OTHER_TRUTH = re.compile(
    rf"\W{{0,3}}(?:(?:and|or|oder|ou|или|或|but (?:actually |also )?)\W{{0,3}})?({_TRUTHS})(?!\w)"
)
_NOTHING_SAID = re.compile(
    r"\s(?:idea|answer|clue|comment|opinion|one knows|way (?:to|of) (?:tell|know|say|see))|[.\s]\s?\d"
)
_ASKED = re.compile(r"[)\]\"']{0,2}\?")
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
    others |= set(_affirmed(_CALLED, plain[end:]))
    return not (others | set(_LISTED.findall(plain))) - {letter}


def _affirmed(pattern: re.Pattern[str], plain: str) -> Iterator[str]:
    """Letters that are named, and neither denied nor asked for; with each the one that stands beside it ("A and C")."""
    for found in pattern.finditer(plain):
        before, end = plain[max(0, found.start() - _LOOKED_BACK) : found.start()], found.end()
        if not _DENIED.search(before) and not _WRONG.match(plain, end) and not _ASKED.match(plain, end):
            yield found[found.lastindex].upper()
            if pattern is not _SAID and (beside := _BESIDE.match(plain, end)) is not None:
                yield beside[1]
