"""The reader of own data: which column is what, and what becomes of every other."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from grpo_mm.datasets.shared.annotated_boxes import BoxForm
from grpo_mm.datasets.shared.checked_fields import shown_keys
from grpo_mm.datasets.shared.columns import no_field
from grpo_mm.datasets.shared.files import check_limit
from grpo_mm.datasets.shared.gathered import NAMED, gathered
from grpo_mm.datasets.shared.row_check import row_net
from grpo_mm.datasets.shared.usual_names import folded
from grpo_mm.datasets.table.answers import TYPES
from grpo_mm.datasets.table.columns import Taken, take_columns
from grpo_mm.datasets.table.rows import RowPrompts, Unusable
from grpo_mm.datasets.table.sources import Source, check_source, open_source
from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown
from grpo_mm.types import Prompt

FIRST = 200
"""Rows by which columns are told where rows may differ (JSON)."""
POINTERS = re.compile(
    r"(?:image|img|picture|photo|video|vid|clip|youtube)_?(?:id|url|key|idx|index)|vid|youtube_id|coco_id|videoid"
)
"""Names of columns, folded, that tell by an id which picture or video is meant."""
Column = str | list[str] | None
log = logging.getLogger(__name__)


@dataclass
class Table:
    """Own data of any usual form as prompts: .json, .jsonl, .csv, .tsv, .txt, .parquet, .arrow; a folder of pictures or videos, with
    or without metadata; a Hugging Face data set by name, or a folder of one. Ids are "<stem>/<id>", or the number of the row.

    Settings name columns; what is left out is looked for under its usual names, and a line of the log says what was taken. Rows with
    conversations (OpenAI's, ShareGPT's, LLaVA's, ms-swift's, TRL's) are read as they come. Media are names of files, data URLs,
    bytes, or features of Hugging Face; nothing is downloaded. What looks like media and is read by nobody is refused; all other
    columns go into the target under their own names, and the log names those.

    target = the columns that are no media and not the question, with "answer", "answer_type" and "choices"; "spans" and "duration";
    "boxes", "box_names", "width" and "height"; "edited_image" and "mask", where a row has them.
    """

    path: str
    """A file, a folder, or "org/name"."""
    question: Column = None
    """What is asked, or what a picture is to show."""
    messages: str | None = None
    """A conversation in place of a question."""
    image: Column = None
    """The picture, or several, that the question is about; `images` is the same."""
    images: Column = None
    """The same as `image`."""
    video: Column = None
    """The video, or several, that the question is about."""
    source_image: Column = None
    """The picture that is to be edited: the first that the model is shown. Several: the others are references."""
    reference_image: Column = None
    """Further pictures that the model is shown for an edit."""
    edited_image: str | None = None
    """The picture as it is after the edit, for rewards."""
    mask: str | None = None
    """A picture that is light where it is to be edited, for rewards."""
    answer: str | None = None
    """What is right: a text, a number, or a list of right ones."""
    span: Column = None
    """[start, end], two columns in seconds or as 0:12; or one column with spans of any form."""
    boxes: str | None = None
    """Annotated boxes, one or several, in pixels of the picture."""
    box_form: BoxForm | None = None
    """xyxy: corners; xywh: corner, width, height; pixels of the picture. null: xywh in a column "objects", as of COCO, else xyxy."""
    options: Column = None
    """Of a multiple-choice question: a column with a list, or the columns A, B, C …"""
    id: str | None = None
    """A column whose values are unique; null: the number of the row."""
    duration: str | None = None
    """Length of the video in seconds."""
    answer_type: str | None = None
    """A column, or one of multiple choice, numerical, short answer, free text, ocr, regression for all rows; null: row by row."""
    template: str | None = None
    """str.format with {query}, {options} and every column; null: by what a row has, see `TEMPLATES`; {query} alone for conversations,
    and for rows without media."""
    demo_template: str | None = None
    """Of the prompt's demonstration, with {answer}, {spans}, {boxes} as well; null: <answer>…</answer>."""
    folder: str | None = None
    """What names of media are relative to; null: where the file lies, or else the working folder."""
    unpack: str | None = None
    """A folder to which media that lie in the table are written once; null: pictures stay encoded, in memory or memory-mapped."""
    for_rewards: list[str] = field(default_factory=list)
    """Columns of media that the model is not shown: they go into the target."""
    ignore: list[str] = field(default_factory=list)
    """Columns that are left out."""
    only: dict[str, str | int | bool | list[str]] = field(default_factory=dict)
    """Column → the value, or the values, of the rows that are taken: {split: train}."""
    unusable: Literal["error", "drop"] = "error"
    """What becomes of a row with a span that ends before it starts, or a box beyond its picture. drop: left out and counted."""
    check_files: bool = False
    """Leave out, count and name rows with a picture or video that is not there."""
    skip: int = 0
    """So many rows are passed over first, counted after `only`: {limit: 400} trains, {skip: 400} is held out."""
    limit: int | None = None
    """So many rows are taken, counted after `only` and `skip`; null: all."""
    split: str | None = None
    """Of a Hugging Face data set or a folder with folders train and test; null: train, and all of a file."""
    config: str | None = None
    """Of a Hugging Face data set that has several."""
    revision: str | None = None
    """A commit or tag of the hub, so that a run can be repeated."""

    def check(self) -> None:
        """Raises ConfigError if there is no such file or folder, or settings contradict each other; asks nobody on the network."""
        check_source(self.path)
        check_limit(self.limit, self.path)
        if self.skip < 0:
            raise ConfigError(f"{self.path}: skip = {self.skip}; wanted at least 0.")
        if self.folder is not None and not Path(self.folder).is_dir():
            raise ConfigError(f"folder = {shown(self.folder)}: no such folder (looked in {Path().absolute()}).")
        for one, other in (("image", "images"), ("question", "messages")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ConfigError(f"{self.path}: `{one}` and `{other}` are both set; wanted one of them.")
        for name, names in self._named().items():
            if name == "span" and len(names) > 2:
                raise ConfigError(f"{self.path}: span = {list(names)}; wanted one column, or [start, end].")

    def load(self) -> list[Prompt]:
        """Raises ConfigError for a column that is not there, a row that is broken, media that nobody reads, or no row at all."""
        self.check()
        source = open_source(self.path, split=self.split, config=self.config, revision=self.revision)
        rows = self._chosen(source)
        first = list(islice(rows, FIRST))
        columns = source.columns or tuple(dict.fromkeys(name for _, row in first for name in row))
        if not first:
            raise ConfigError(f"{source.name}: no row is left{f' with {self.only}' if self.only else ''}.")
        taken = take_columns(
            [row for _, row in first], columns, self._named(), features=source.features,
            aside=[*self.for_rewards, *self.ignore], where=source.name,
        )  # fmt: skip
        self._check_question(taken, columns, source)
        made = RowPrompts(self, source, taken)
        prompts = gathered(
            _usable(made, chain(first, rows)), source.name, check_files=self.check_files, limit=self.limit
        )
        self._tell(source, taken, made, prompts)
        return prompts

    def _named(self) -> dict[str, tuple[str, ...]]:
        """Role → the columns that the config names."""
        roles = (
            "messages",
            "question",
            "video",
            "source_image",
            "reference_image",
            "edited_image",
            "mask",
            "answer",
            "span",
            "boxes",
            "options",
            "id",
            "duration",
        )
        given = {role: getattr(self, role) for role in roles}
        given["image"] = self.image if self.image is not None else self.images
        if self.answer_type is not None and self.answer_type.strip().lower().replace("_", " ") not in TYPES:
            given["answer_type"] = self.answer_type
        return {
            role: (value,) if isinstance(value, str) else tuple(value)
            for role, value in given.items()
            if value is not None
        }

    def _chosen(self, source: Source) -> Iterator[tuple[str, Mapping[str, Any]]]:
        passed = 0
        for where, row in source.rows():
            for column in self.only:
                if column not in row:
                    raise no_field(column, row, where)
            if all(_is_one_of(row[column], wanted) for column, wanted in self.only.items()):
                passed += 1
                if passed > self.skip:
                    yield where, row

    def _check_question(self, taken: Taken, columns: tuple[str, ...], source: Source) -> None:
        if taken["messages"] or taken["question"]:
            return
        if self.template is None or "{query}" in self.template:
            raise ConfigError(
                f"{source.name}: no column is called question, query, prompt, text or the like; found {shown_keys(columns)}. Set "
                "`question` to the one that holds it, or `template` to a text without {query} that asks the same of all rows."
            )

    def _tell(self, source: Source, taken: Taken, made: RowPrompts, prompts: list[Prompt]) -> None:
        """What was taken for what, and what nobody reads, in one line."""
        said = [f"{len(prompts)} prompts"]
        said += [taken.told()] if taken.found else []
        kinds = Counter(p.target["answer_type"] for p in prompts if p.target and "answer_type" in p.target)
        said += ["answers: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items())] if kinds else []
        said += [f"{made.repeated} ids stand twice and got the number of their row"] if made.repeated else []
        said += [f"{count} {what} kept" for what, count in made.odd.items()]
        base = made.media.folder
        said += [f"media lie in {base}"] if base not in (None, self.folder, source.folder) else []
        said += [f"read by nobody but rewards of your own: {shown_keys(made.unread)}"] if made.unread else []
        log.info("%s: %s", source.name, "; ".join(said))
        if not made.has_media and (pointers := [name for name in made.unread if POINTERS.fullmatch(folded(name))]):
            log.warning(
                "%s: the model is shown no picture and no video, but %s may say which ones belong to the rows: set `image` or `video`, or "
                "name it in `ignore`", source.name, " and ".join(map(shown, pointers)),
            )  # fmt: skip
        if made.dropped:
            log.warning(
                "%s: %d rows left out: unusable (%s)", source.name, len(made.dropped), ", ".join(made.dropped[:NAMED])
            )


def _usable(made: RowPrompts, rows: Iterator[tuple[str, Mapping[str, Any]]]) -> Iterator[tuple[str, Prompt]]:
    for number, (where, row) in enumerate(rows):
        with row_net(where, row):
            try:
                prompt = made.prompt(row, where, number)
            except Unusable as error:
                if made.settings.unusable == "error":
                    raise
                made.dropped.append(str(error).partition(":")[0])
                continue
        yield where, prompt


def _is_one_of(value: Any, wanted: Any) -> bool:
    values = wanted if isinstance(wanted, list) else [wanted]
    return any(value == one or str(value) == str(one) for one in values)
