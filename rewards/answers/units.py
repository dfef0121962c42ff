"""Words around a number that say whether it is a time, and in what unit: hours, minutes, seconds in common languages."""

from __future__ import annotations

import re
from typing import Literal

Unit = Literal["h", "m", "s", "ms", "other"]
SECONDS: dict[str, float] = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
RANK = ["h", "m", "s", "ms"]

_WORDS = {
    "ms": "ms msec msecs millis millisecond milliseconds millisekunde millisekunden milliseconde millisecondes milisegundo "
    "milisegundos millisecondo millisecondi millissegundos миллисекунд мс",
    "s": "s sec secs second seconds sek sekunde sekunden sekund sekunder sekunda sekundy seconde secondes secondo secondi "
    "segundo segundos seg segs seconden sn saniye сек секунда секунды секунду секунд с giây detik",
    "m": "m mn min mins minute minutes minuten minuto minutos minuti minut minuter minuut minuta minuty dk dakika мин минута "
    "минуты минуту минут phút menit",
    "h": "h hr hrs hour hours std stunde stunden heure heures hora horas ora ore uur timme timmar godzina godziny saat час часа "
    "часов ч giờ jam",
}
_CHARACTERS = {
    "ms": "毫秒 ミリ秒 밀리초",
    "s": "秒間 秒钟 秒鐘 秒 초",
    "m": "分钟 分鐘 分間 分 분",
    "h": "小时 小時 時間 时 時 시간 시",
}
_OTHER = (  # what a number counts that is no time, or is a share of one
    "percent pct prozent procent fps hz frame frames images bilder px pixel pixels am pm uhr x times people persons degrees "
    "years year days day weeks months"
)


def _alternatives(words: str) -> str:
    return "|".join(sorted(map(re.escape, words.split()), key=len, reverse=True))


AFTER = re.compile(
    r"(?:[\s-]{0,2}(?:"
    + "|".join(rf"(?P<{unit}>(?:{_alternatives(words)})(?![^\W\d_])\.?)" for unit, words in _WORDS.items())
    + rf"|(?P<other>%|°|per ?cent\b|(?:{_alternatives(_OTHER)})(?![^\W\d_])|[ap]\.m\.|frames?\b|o.?clock\b"
    r"|(?:of|into|through)\s{1,2}(?:the|a|its)\s{1,2}(?:\w{1,12}\s{1,2})?(?:video|clip|duration|length|film|movie|way|total)\b"
    r"|帧|幀|フレーム|프레임|%|点|點|(?:分钟|分鐘|分|小时|小時|時間|秒)半))"
    + "|"
    + "|".join(rf"(?P<{unit}_sign>\s{{0,2}}(?:{_alternatives(words)}))" for unit, words in _CHARACTERS.items())
    + r"|(?P<ordinal>(?:st|nd|rd|th)(?![^\W\d_])))",
    re.IGNORECASE,
)
"""After a number: its unit, or that it is no time."""
BEFORE = re.compile(
    r"(?:\b(?:frames?|shots?|scenes?|chapters?|steps?|parts?|pages?|lines?|options?|questions?|number|no\.|nr\.|index|id"
    r"|minutes?|mins?|hours?|ms|milliseconds|percent(?:age)?|帧|幀|第)\s{0,2}(?:number|nr\.?|no\.?|id|index)?|#)\W{0,3}$",
    re.IGNORECASE,
)
"""Before a number: it counts something else, or its unit is told in front."""


def unit_after(text: str, place: int) -> tuple[Unit | None, int]:
    """The unit of a number that ends at `place`, None if it has none, and where the unit ends."""
    found = AFTER.match(text, place)
    if found is None:
        return None, place
    name = found.lastgroup.removesuffix("_sign")
    return ("other" if name in ("other", "ordinal") else name), found.end()
