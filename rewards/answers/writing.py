"""One writing for what is the same to a reader: signs made plain, marks of emphasis taken off, normal forms of texts.

A sign that would change a number is never dropped: "10²" becomes "10^", which no reader takes for 10. Every function takes
time in proportion to the length of the text, and none raises.
"""

from __future__ import annotations

import re
import unicodedata

_MATHEMATICAL = range(0x1D400, 0x1D800)
_CIRCLED_LETTERS = range(0x24B6, 0x24EA)
_INVISIBLE = "\u00ad\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2061\u2062\u2063\u2064\u2066\u2067\u2068\u2069\ufe0e\ufe0f\ufeff"
_APOSTROPHES, _QUOTES, _DASHES = "‘’‚‛ʼ′´", "“”„‟«»″「」『』", "‐‑‒–—―−﹣"
_RAISED = "²³¹⁰ⁱ⁴⁵⁶⁷⁸⁹⁺⁻ⁿ₀₁₂₃₄₅₆₇₈₉"
_FRACTIONS = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
_BLANK_IN_MIXED = re.compile(rf"(?<=\d) (?=[{_FRACTIONS}])")
_SIGNS = (
    {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    | {code: unicodedata.normalize("NFKC", chr(code)) for code in (*_MATHEMATICAL, *_CIRCLED_LETTERS)}
    | dict.fromkeys(map(ord, _INVISIBLE))
    | dict.fromkeys(map(ord, _DASHES), "-")
    | dict.fromkeys(map(ord, _RAISED), "^")
    | {ord(sign): repr(unicodedata.numeric(sign)).removeprefix("0") for sign in _FRACTIONS}
    | str.maketrans("\u3000〜∶、。٫٬٪【】〔〕⁄∕", " ~:,..,%[][]//")
)


def plain_signs(text: str) -> str:
    """Letters, digits, brackets and signs of full width or in mathematical bold as the plain ones, every dash and minus as a
    hyphen, raised and lowered digits as "^", "2½" as "2.5", without what nobody sees."""
    if text.isascii():
        return text
    return _BLANK_IN_MIXED.sub("", text).translate(_SIGNS)


def unmarked(text: str) -> str:
    r"""The same in `plain_signs` without marks of emphasis: Markdown's **, __ and `, HTML's <b>, LaTeX's $, \boxed{}, \text{}
    and the like; \frac{1}{2} is 1/2. Blanks at both ends go as well. Where one \boxed{} stands, it is what the text says."""
    text = _FENCE.sub("", plain_signs(boxed(text)))
    if "\\" in text:
        text = _LATEX_SIGN.sub("", text)
        for _ in range(_DEEPEST):
            inner = _WRAPPED.sub(r"\1", text)
            for fraction in _LATEX_FRACTIONS:
                inner = fraction.sub(_blank_between, inner)
            if inner == text:
                break
            text = inner
    if "<" in text:
        text = _HTML.sub("", text)
    text = text.replace("$", "").replace("{,}", ",")
    return _MARKS.sub(_unless_between, text).strip()


def boxed(text: str) -> str:
    r"""What the one \boxed{} of a text holds; the text if there is none, or if several hold different things."""
    held: set[str] = set()
    for found in _BOXED.finditer(text):
        depth = 1
        for brace in _BRACE.finditer(text, found.end()):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0 or depth > _DEEPEST:
                break
        if depth:
            return text
        held.add(text[found.end() : brace.start()].strip())
        if len(held) > 1:
            return text
    return held.pop() if held else text


def normal_form(text: str) -> str:
    """For comparing texts: Unicode's NFKC (composed letters, ligatures, full width), one kind of apostrophes, quotation marks
    and dashes, without soft hyphens and what nobody sees. Case and blanks stay."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFKC", text.translate(_COMPARED)).translate(_COMPARED)


_DEEPEST = 6
_BOXED = re.compile(r"\\(?:boxed|fbox)\s?\{")
_BRACE = re.compile(r"\\?[{}]")
_FENCE = re.compile(r"^[^\S\n]*```\w*[^\S\n]*$\n?", re.MULTILINE)
_LATEX_SIGN = re.compile(r"\\[()\[\],;:! ]|\\(?:left|right|displaystyle|quad)(?![A-Za-z])")
_WRAPPED = re.compile(
    r"\\(?:boxed|fbox|text(?:bf|it|rm|tt|sf|normal)?|math(?:bf|rm|it|sf|tt)|mbox|bm|boldsymbol|emph|underline)\s?"
    r"\{([^{}]*+)\}"
)
_LATEX_FRACTIONS = (
    re.compile(r"\\[dtc]?frac\s?\{\s?(\d{1,15})\s?\}\s?\{\s?(\d{1,15})\s?\}"),
    re.compile(r"\\[dtc]?frac\s?(\d)\s?(\d)"),
)
_HTML = re.compile(r"</?(?:b|strong|i|em|u|code|mark|span|p|font)\s?>|<br\s?/?>", re.IGNORECASE)
_MARKS = re.compile(r"[*_`~]++")
_COMPARED = (
    dict.fromkeys(map(ord, _INVISIBLE))
    | dict.fromkeys(map(ord, _APOSTROPHES), "'")
    | dict.fromkeys(map(ord, _QUOTES), '"')
    | dict.fromkeys(map(ord, _DASHES), "-")
)


def _blank_between(found: re.Match[str]) -> str:
    """ "2\\frac{1}{2}" is 2 1/2, and "-\\frac{1}{2}" is -1/2."""
    sign = found.string[max(0, found.start() - 1) : found.start()] in ("-", "+")
    return f"{'' if sign else ' '}{found[1]}/{found[2]} "


def _unless_between(found: re.Match[str]) -> str:
    """Marks stay within a word or number ("10**400", "snake_case") and between blanks ("2 * 3")."""
    text, (start, end) = found.string, found.span()
    before, after = text[start - 1 : start], text[end : end + 1]
    within = before.isalnum() and after.isalnum()
    apart = (not before or before.isspace()) and (not after or after.isspace()) and before + after != ""
    return found[0] if within or apart else ""
