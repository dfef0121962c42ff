"""One row of a table as a prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_mm.datasets.chat.talk import read_talk
from grpo_mm.datasets.shared.annotated_boxes import box_problem, read_boxes, take_size
from grpo_mm.datasets.shared.checked_fields import fill
from grpo_mm.datasets.shared.markers import place_media
from grpo_mm.datasets.shared.media_fields import is_empty
from grpo_mm.datasets.shared.picture_questions import CHOICE_TEMPLATE, lettered
from grpo_mm.datasets.shared.row_check import take_id, text_problem
from grpo_mm.datasets.shared.span_values import BROKEN, read_seconds, read_spans, span_problem
from grpo_mm.datasets.table.answers import TYPES, final_answer, read_answer, read_options
from grpo_mm.datasets.table.columns import Taken, is_talk, looks_like_media
from grpo_mm.datasets.table.media_cells import MediaCells
from grpo_mm.datasets.table.sources import Source
from grpo_mm.datasets.table.turns import said_last, turns_of, with_objects
from grpo_mm.datasets.video.grounding import TEMPLATE as SPAN_TEMPLATE
from grpo_mm.errors import ConfigError
from grpo_mm.media_words import media_key
from grpo_mm.outside import plain, shown
from grpo_mm.types import Prompt

TEMPLATES = {
    "spans": SPAN_TEMPLATE,
    "boxes": "Where is this in the picture: {query}\nGive its box in pixels as <answer>[x1, y1, x2, y2]</answer>.",
    "choices": CHOICE_TEMPLATE,
    "answer": "{query}\nPut the final answer, and nothing else, into <answer>…</answer>.",
}
"""By the first of these that a row has."""
SLACK_PX = 2.0
"""So far may a box reach beyond its picture; it is kept as it is."""
OVERRUN_SECONDS = 2.0
"""So far may a span end after its video."""
RESERVED = ("answer", "answer_type", "choices", "accepted", "spans", "boxes", "box_names", "edited_image")
"""What rewards read in a target: another column of that name is not passed for it."""
_ASKED = (
    "messages", "question", "image", "video", "source_image", "reference_image", "edited_image", "mask", "id", "system", "history",
)  # fmt: skip
"""Roles whose columns are no part of the target."""


def _shown(value: Any) -> str:
    data = value.get("bytes") if isinstance(value, Mapping) else value
    is_encoded = isinstance(data, bytes) or hasattr(data, "to_pybytes")
    return f"{len(data)} encoded bytes" if is_encoded else shown(value, 60)


class Unusable(ConfigError):
    """A row whose span or box says nothing."""


class RowPrompts:
    """Makes prompts of rows, and counts what is to be told of them."""

    def __init__(self, settings: Any, source: Source, taken: Taken) -> None:
        """`settings`: a `Table`."""
        self.settings, self.source, self.taken = settings, source, taken
        self.media = MediaCells(settings.folder, beside=source.folder, unpack=settings.unpack)
        self.unread: dict[str, None] = {}
        self.repeated = 0
        self.odd: Counter[str] = Counter()
        self.has_media = False
        self.dropped: list[str] = []
        self._ids: set[str] = set()

    def prompt(self, row: Mapping[str, Any], where: str, number: int) -> Prompt:
        """Of row `number`, counted from 0. Raises ConfigError, and Unusable where `unusable` decides."""
        rest = self._rest(row, where)
        found = {"image": self._pictures(row, where), "video": self._media(row, "video", where)}
        talk = self._talk(row, found, where)
        options = read_options(row, self.taken["options"], where) if self.taken["options"] else ()
        target = self._kept(row) | rest
        pictures = found["image"] or (list(talk.media) if talk else [])
        said = talk.answer if talk else None
        made = self._answer(row, options, said, where) | self._spans(row, where) | self._boxes(row, pictures, where)
        made |= self._for_rewards(row, "edited_image", where) | self._for_rewards(row, "mask", where)
        self.has_media = self.has_media or bool(pictures or found["video"])
        words = self._words(row, made, options)
        query = talk.question if talk else self._query(row, where)
        template = self._template(made, found, is_talk=talk is not None)
        text = fill(template, words | {"query": query}, "template", where)
        if talk is None:
            (text,), media = place_media([text], found, where)
        else:
            media = talk.media
        return Prompt(
            id=f"{self.source.stem}/{self._id(row, where, number)}",
            text=text,
            media=media,
            messages=talk.earlier if talk else self._earlier(row, where),
            target=(target | made) or None,
            demo=said if said is not None else self._demo(words | {"query": query}, made, where),
        )

    @property
    def _is_edit(self) -> bool:
        return bool(self.taken["source_image"] or self.taken["edited_image"])

    def _rest(self, row: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The columns that no role takes; those of media are refused unless they are for rewards."""
        settings, used = self.settings, self.taken.used
        rest = {n: v for n, v in row.items() if n not in used and n not in settings.ignore}
        aside = {name: rest.pop(name) for name in (*settings.for_rewards, *self.taken.for_rewards) if name in rest}
        for name, value in rest.items():
            if not is_empty(value) and (media_key({name: value}) or looks_like_media(name, self.source.features)):
                raise ConfigError(
                    f"{where}: the column {shown(name)} holds {_shown(value)}, which looks like a picture, video or sound, and nobody "
                    f"would see it. Set `image` or `video` to it, or name it in `for_rewards` or `ignore`; taken so far: "
                    f"{', '.join(map(shown, sorted(used))) or 'nothing'}."
                )
            self.unread.setdefault(name)
        seen = {name: self._shown_to_rewards(name, value, where) for name, value in aside.items() if value is not None}
        return {n: value for n, value in rest.items() if value is not None and n not in RESERVED} | seen

    def _shown_to_rewards(self, name: str, value: Any, where: str) -> Any:
        """Pictures and videos are opened by path or bytes; whatever else stays as it is."""
        if not media_key({name: value}) and name not in self.source.features:
            return value
        kind = self.source.features.get(name, "image")
        if isinstance(value, str) and not value.lower().startswith("data:"):
            path = Path(self.media.base(value.strip())) / value.strip()
            return str(path) if path.is_file() else value
        if kind == "audio" or isinstance(value, str):
            return value
        items = self.media.read(value, kind, f"{where}: {name}")  # type: ignore[arg-type]
        return items if isinstance(value, list) else items[0] if items else None

    def _media(self, row: Mapping[str, Any], kind: Any, where: str, role: str = "") -> list[Any]:
        columns = self.taken[role or kind]
        return [item for column in columns for item in self.media.read(row.get(column), kind, f"{where}: {column}")]

    def _pictures(self, row: Mapping[str, Any], where: str) -> list[Any]:
        """The one that is to be edited comes first. Raises ConfigError where a row lacks it."""
        edited = self._media(row, "image", where, role="source_image")
        if self.taken["source_image"] and not edited:
            raise ConfigError(f"{where}: {self.taken['source_image'][0]!r} holds no picture to be edited.")
        return [*edited, *self._media(row, "image", where, role="reference_image"), *self._media(row, "image", where)]

    def _talk(self, row: Mapping[str, Any], found: Mapping[Any, list[Any]], where: str) -> Any:
        columns = self.taken["messages"] or self.taken["question"][:1]
        value = row.get(columns[0]) if columns else None
        if not self.taken["messages"] and not is_talk(value):
            return None
        system = next((row.get(column) for column in self.taken["system"]), None)
        history = next((row.get(column) for column in self.taken["history"]), None)
        turns = turns_of(value, where, system=system, history=history)
        turns = with_objects(turns, next((row.get(column) for column in self.taken["boxes"]), None), where)
        base = self.settings.folder or self.source.folder
        return read_talk(turns, found, {"image": base, "video": base}, where, name=columns[0])

    def _earlier(self, row: Mapping[str, Any], where: str) -> tuple[Mapping[str, str], ...]:
        """Turns before a question that has a column of its own."""
        system = next((row.get(column) for column in self.taken["system"]), None)
        history = next((row.get(column) for column in self.taken["history"]), None)
        turns = turns_of([], where, system=system, history=history)
        if not all(isinstance(turn["content"], str) for turn in turns):
            raise ConfigError(f"{where}: earlier turns are {shown(history)}, wanted texts.")
        return tuple(turns)

    def _query(self, row: Mapping[str, Any], where: str) -> str:
        texts = []
        for place, column in enumerate(self.taken["question"]):
            value = row.get(column)
            if self._is_edit and isinstance(value, list) and value:  # one instruction in several wordings
                self.odd["instructions of which the first wording is"] += len(value) > 1
                value = value[0]
            if place and is_empty(value):  # the second column of an instruction
                continue
            if problem := text_problem(value):
                raise ConfigError(f"{where}: {column!r} is {shown(value)}, {problem}.")
            texts.append(value.strip())
        return "\n".join(texts)

    def _kept(self, row: Mapping[str, Any]) -> dict[str, Any]:
        asked = {column for role in _ASKED for column in self.taken[role]}
        used = self.taken.used
        return {n: value for n, value in row.items() if n in used and n not in asked and not is_empty(value)}

    def _answer(self, row: Mapping[str, Any], options: tuple[str, ...], said: str | None, where: str) -> dict[str, Any]:
        column = next(iter(self.taken["answer"]), None)
        value = row.get(column) if column else None
        if is_talk(value):
            value = said_last(value, where)
        value = said if is_empty(value) else value
        if is_empty(value):
            return {"choices": list(options)} if options else {}
        if self.settings.boxes is not None and self.settings.boxes == column:
            return {}
        given = self.settings.answer_type
        named = next((row.get(c) for c in self.taken["answer_type"]), None)
        is_known = isinstance(named, str) and named.strip().lower().replace("_", " ") in TYPES
        kind = named if self.taken["answer_type"] and (is_known or given is not None) else None
        kind = given if given is not None and not self.taken["answer_type"] else kind
        try:
            return read_answer(value, options, kind, where)
        except ConfigError as error:
            if column is None or "answer" not in self.taken.found or "answer type" in str(error):
                raise
            raise ConfigError(
                f"{error} (The column {shown(column)} was taken for the answer by its name: set `answer`, or name it in `ignore`.)"
            ) from error

    def _spans(self, row: Mapping[str, Any], where: str) -> dict[str, Any]:
        length = next((row.get(column) for column in self.taken["duration"]), None)
        duration = None if is_empty(length) else read_seconds(length, "duration", where)
        held = [row.get(column) for column in self.taken["span"]]
        made = {} if duration is None else {"duration": duration}
        if not held or all(map(is_empty, held)):
            return made
        spans = read_spans(held if len(held) == 2 else held[0], where)
        problem = span_problem(spans, duration, OVERRUN_SECONDS)
        if problem in BROKEN:
            raise Unusable(
                f"{where}: {problem}: {[list(s) for s in spans]}. Set unusable: drop to leave such rows out."
            )
        if problem:
            self.odd[f"rows with a {problem}" if problem != "no span" else "rows without a span"] += 1
        return made | ({"spans": [list(span) for span in spans]} if spans else {})

    def _boxes(self, row: Mapping[str, Any], pictures: list[Any], where: str) -> dict[str, Any]:
        column = next(iter(self.taken["boxes"]), None)
        value = row.get(column) if column else None
        if value is None or value == "":
            return {}
        if isinstance(value, str):
            value = final_answer(value)
        is_coco = (
            column == "objects" and isinstance(value, Mapping) and "ref" not in value
        )  # ms-swift's have "ref" and corners
        form = self.settings.box_form or ("xywh" if is_coco else "xyxy")
        found = read_boxes(value, where, form=form)
        names = [name for _, name in found if name]
        made: dict[str, Any] = {"boxes": [box for box, _ in found]}
        made |= {"box_names": names} if names and len(names) == len(found) else {}
        path = getattr(pictures[0], "path", None) if pictures else None
        if not pictures or (self.settings.check_files and path is not None and not Path(path).is_file()):
            return made
        sides = {side: next((row.get(c) for c in self.taken[side]), None) for side in ("width", "height")}
        width, height = take_size(sides, pictures[0], where)
        for box, _ in found:
            if why := box_problem(box, (width, height), slack_px=SLACK_PX):
                raise Unusable(
                    f"{where}: the box {box} is {why}, {width} x {height} pixels (form {form}). Set box_form, or unusable: drop to leave "
                    "such rows out."
                )
        return made | {"width": width, "height": height}

    def _for_rewards(self, row: Mapping[str, Any], role: str, where: str) -> dict[str, Any]:
        """The picture of an edit that the model is not shown, by its role."""
        column = next(iter(self.taken[role]), None)
        items = [] if column is None else self.media.read(row.get(column), "image", f"{where}: {column}")
        if len(items) > 1:
            raise ConfigError(f"{where}: {column!r} holds {len(items)} pictures; wanted one.")
        return {role: items[0]} if items else {}

    def _words(self, row: Mapping[str, Any], made: Mapping[str, Any], options: tuple[str, ...]) -> dict[str, Any]:
        """What templates may name."""
        answer = made.get("answer")
        words = {n: v for n, v in row.items() if str(n).isidentifier() and isinstance(v, (str, int, float))}
        words |= {n: made[n] for n in ("width", "height", "duration") if n in made}
        words |= {"answer": answer} if answer is not None else {}
        return words | {"options": lettered(options)}

    def _template(self, made: Mapping[str, Any], found: Mapping[Any, list[Any]], *, is_talk: bool) -> str:
        if self.settings.template is not None:
            return self.settings.template
        if is_talk or self._is_edit:
            return "{query}"
        if not any(found.values()):
            return "{query}\n{options}" if made.get("choices") else "{query}"
        kinds = (kind for kind in TEMPLATES if made.get(kind))
        kind = next((k for k in kinds if k != "boxes" or "answer" not in made), None)
        return TEMPLATES[kind] if kind else "{query}"

    def _demo(self, words: Mapping[str, Any], made: Mapping[str, Any], where: str) -> str | None:
        if spans := made.get("spans"):
            told = "[" + ", ".join(f"[{start:.2f}, {end:.2f}]" for start, end in spans) + "]"
            start, end = spans[0]
            words, form = (
                {**words, "start": start, "end": end, "spans": told},
                "<answer>{start:.2f} to {end:.2f}</answer>",
            )
        elif "answer" in made:
            form = "<answer>{answer}</answer>"
        elif boxes := made.get("boxes"):
            whole = [[round(edge) for edge in box] for box in boxes]
            words, form = {**words, "boxes": whole[0] if len(whole) == 1 else whole}, "<answer>{boxes}</answer>"
        else:
            return None
        return fill(self.settings.demo_template or form, words, "demo_template", where)

    def _id(self, row: Mapping[str, Any], where: str, number: int) -> str:
        number += self.settings.skip
        column = next(iter(self.taken["id"]), None)
        if column is None:
            return str(number)
        if "id" not in self.taken.found:
            return plain(take_id(row, column, where, default=number), 1000)
        try:
            name = take_id(row, column, where, default=number)
        except ConfigError:
            name = str(number)
        if name in self._ids:
            self.repeated += 1
            name = f"{name}/{number}"
        self._ids.add(name)
        return name
