"""What the readers of temporal grounding data share: checked rows, video paths, templates, and unusable rows."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from grpo_mm.datasets.media.media_files import VideoFile
from grpo_mm.datasets.shared.checked_fields import Span, fill, take_duration, take_spans, take_text
from grpo_mm.datasets.shared.columns import noted, reading
from grpo_mm.datasets.shared.files import check_limit
from grpo_mm.datasets.shared.gathered import NAMED
from grpo_mm.datasets.shared.row_check import checked_prompt, row_net
from grpo_mm.datasets.shared.row_files import check_file, read_json, read_rows
from grpo_mm.datasets.shared.span_values import BROKEN, span_problem
from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown
from grpo_mm.types import Prompt

TEMPLATE = (
    "Find the part of the video that shows this: {query}\n"
    "Give its start and end in seconds, with two decimals, as <answer>start to end</answer>."
)
DEMO_TEMPLATE = "<answer>{start:.2f} to {end:.2f}</answer>"
EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GroundingRow:
    """A row of an annotation file, its types checked. Example: where = "test.json, AO8RW, sentence 0"."""

    where: str
    id: str
    video: str
    """Name or path of the video below the folder `videos`, with or without suffix."""
    query: str
    spans: tuple[Span, ...]
    """In seconds of the clip; empty where the file has no labels."""
    duration: float | None
    """Of the clip, as the file says."""
    start: float | None = None
    end: float | None = None
    target: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of `Prompt.target`."""
    words: Mapping[str, Any] = field(default_factory=dict)
    """Further names for the templates."""


@dataclass
class GroundingPrompts:
    """Base of the readers; they differ in `_row`, and where a file is no list of rows in `_entries`.

    A prompt has one `VideoFile`, target = {"spans": [[12.0, 22.0]], "duration": 60.0, …}, and the first span in
    `demo_template` as `demo`.

    Unusable rows are those with no span, a point or an inverted one, a negative start, a span that ends more than
    `max_overrun_seconds` after the video, or (with `check_videos`) no video file. Wrong types, missing keys and NaN are no
    rows at all and always an error.
    """

    path: str
    """The annotation file."""
    videos: str = "videos"
    """The folder with the videos."""
    extensions: list[str] = field(default_factory=lambda: list(EXTENSIONS))
    """Tried in this order; the first is assumed where no file is found."""
    template: str = TEMPLATE
    """str.format with {query} and, where the file says it, {duration}."""
    demo_template: str = DEMO_TEMPLATE
    """str.format with {start} and {end} of the first span, {spans} as [[start, end], …], and the names of `template`."""
    clamp: bool = False
    """Cut spans to 0..duration. Off, since papers score against the spans as published."""
    unusable: Literal["keep", "drop"] = "keep"
    """drop: leave unusable rows out. keep: as a benchmark must; only inverted and negative spans are an error then. Both
    count them in the log, with the first few names."""
    max_overrun_seconds: float = 2.0
    """Charades-STA's ends exceed its durations by up to 1.5 s."""
    check_videos: bool = False
    """Look for every video file when loading."""
    limit: int | None = None
    """Only the first rows, counted after dropping; None for all."""

    suffixes: ClassVar[tuple[str, ...]] = (".json",)
    leaves: ClassVar[tuple[str, ...]] = ()
    """As of `RowReader`."""

    def check(self) -> None:
        """Raises ConfigError if the file or (with `check_videos`) the folder is missing, or a limit is no number."""
        check_file(self.path, self.suffixes)
        check_limit(self.limit, self.path)
        if self.check_videos and not Path(self.videos).is_dir():
            raise ConfigError(f"videos = {self.videos!r}: no such folder.")

    def load(self) -> list[Prompt]:
        """Raises ConfigError for a row that is broken, a template that does not fit, a repeated id, or no row at all."""
        self.check()
        with reading(self.path, leave=self.leaves):
            return self._prompts()

    def _prompts(self) -> list[Prompt]:
        prompts, seen, problems = [], set(), {}
        for row in self._rows():
            row = replace(row, spans=clamped(row)) if self.clamp else row
            with row_net(row.where):
                path = find_video(self.videos, row.video, self.extensions)
            problem = self._problem(row, path)
            if problem:
                problems.setdefault(problem, []).append(row.id)
                if self.unusable == "drop":
                    continue
                if problem in BROKEN:
                    raise ConfigError(f"{row.where}: {problem}: {list(row.spans)}. Set unusable: drop to leave it out.")
            if row.id in seen:
                raise ConfigError(f"{row.where}: the id {shown(row.id)} stands twice.")
            seen.add(row.id)
            with row_net(row.where):
                prompt = self._prompt(row, path or assumed_video(self.videos, row.video, self.extensions))
            prompts.append(checked_prompt(prompt, row.where))
            if len(prompts) == self.limit:
                break
        for problem, ids in problems.items():
            done = "left out" if self.unusable == "drop" else "kept"
            names = ", ".join(ids[:NAMED]) + (", …" if len(ids) > NAMED else "")
            log.warning("%s: %d rows %s: %s (%s)", self.path, len(ids), done, problem, names)
        if not prompts:
            raise ConfigError(f"{self.path}: no row is left; dropped for {', '.join(problems) or 'no reason'}.")
        return prompts

    def _rows(self) -> Iterator[GroundingRow]:
        for number, (where, row) in enumerate(self._entries()):
            with row_net(where, row):
                found = list(self._row(row, where, number))
            yield from found

    def _entries(self) -> Iterator[tuple[str, Any]]:
        """(where it stands, what stands there), in the order of the file."""
        return read_rows(self.path)

    def _row(self, row: Any, where: str, number: int) -> Iterator[GroundingRow]:
        """The rows of entry `number`, counted from 0."""
        raise NotImplementedError

    def _problem(self, row: GroundingRow, path: str | None) -> str:
        """Why a row is unusable; empty if it is not."""
        missing = "no video file" if self.check_videos and path is None else ""
        return span_problem(row.spans, row.duration, self.max_overrun_seconds) or missing

    def _prompt(self, row: GroundingRow, path: str) -> Prompt:
        words = {"query": row.query, **row.words}
        if row.duration is not None:
            words["duration"] = row.duration
        target: dict[str, Any] = {"spans": [list(span) for span in row.spans]} if row.spans else {}
        target |= {"duration": row.duration} if row.duration is not None else {}
        demo = None
        if row.spans:
            spans = "[" + ", ".join(f"[{start:.2f}, {end:.2f}]" for start, end in row.spans) + "]"
            start, end = row.spans[0]
            demo = fill(
                self.demo_template, words | {"start": start, "end": end, "spans": spans}, "demo_template", row.where
            )
        return Prompt(
            id=row.id,
            text=fill(self.template, words, "template", row.where),
            media=(VideoFile(path, start=row.start, end=row.end),),
            target=target | dict(row.target),
            demo=demo,
        )


def find_video(folder: str, name: str, extensions: Sequence[str]) -> str | None:
    """The path of the first file that exists: `name` as it is, then with each extension."""
    as_is = Path(folder) / name
    stem = as_is.with_suffix("") if as_is.suffix.lower() in extensions else as_is  # "clip_60.0_210.0" has no suffix
    for path in (as_is, *(Path(f"{stem}{extension}") for extension in extensions)):
        if path.is_file():
            return str(path)
    return None


def assumed_video(folder: str, name: str, extensions: Sequence[str]) -> str:
    """Where the file should be, for messages about missing files."""
    path = Path(folder) / name
    return str(path) if path.suffix.lower() in extensions else f"{path}{extensions[0] if extensions else ''}"


def clamped(row: GroundingRow) -> tuple[Span, ...]:
    if row.duration is None:
        return row.spans
    return tuple((min(max(s, 0.0), row.duration), min(max(e, 0.0), row.duration)) for s, e in row.spans)


def videos_of(path: str) -> Iterator[tuple[str, tuple[str, Any]]]:
    """Entries of {video: {"duration": …, "timestamps": [[s, e], …], "sentences": […]}}: where, and (video, its object)."""
    videos = read_json(path)
    if not isinstance(videos, dict):
        raise ConfigError(f"{path}: found a JSON {type(videos).__name__}, wanted an object of videos.")
    for video, entry in videos.items():
        where = f"{path}, {shown(video)[1:-1]}"
        yield where, (video, noted(entry, where) if isinstance(entry, dict) else entry)


def timestamped_sentences(
    video: str, entry: Any, where: str, source: str, *, spans: str = "timestamps", sentences: str = "sentences"
) -> Iterator[GroundingRow]:
    """Rows of one entry of `videos_of`, ids "source/video/number"; `spans` and `sentences` are what the file calls the two lists."""
    take_text({"video": video}, "video", where)
    if not isinstance(entry, dict) or not all(name in entry for name in ("duration", spans, sentences)):
        raise ConfigError(f"{where}: wanted an object with duration, {spans} and {sentences}, found {shown(entry)}.")
    duration = take_duration(entry["duration"], where)
    times, texts = take_spans(entry[spans], where), entry[sentences]
    if not isinstance(texts, list) or len(texts) != len(times):
        raise ConfigError(f"{where}: {len(times)} {spans} for the {sentences} {shown(texts)}; wanted as many.")
    for number, (span, text) in enumerate(zip(times, texts, strict=True)):
        here = f"{where}, sentence {number}"
        query = take_text({"sentence": text}, "sentence", here)
        yield GroundingRow(here, f"{source}/{video}/{number}", video, query, (span,), duration)
