"""NExT-GQA: questions about a video with five options, and where in the video the answer shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from grpo_mm.datasets.shared.checked_fields import take_duration, take_field, take_spans, take_text
from grpo_mm.datasets.shared.row_check import text_problem
from grpo_mm.datasets.shared.row_files import check_file, read_json
from grpo_mm.datasets.video.grounding import GroundingPrompts, GroundingRow
from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown

LETTERS = "ABCDE"


@dataclass
class NextGqa(GroundingPrompts):
    """Reads the official tables (val.csv with gsub_val.json) or the form for RL, a JSON list of {"id", "video",
    "question", "options": ["(A) …"], "answer": "(C)", "glue": [[s, e]], "duration", "type"}. Ids are
    "nextgqa/<video>_<qid>".

    target adds "answer": "(C)", "answer_type": "multiple choice", "options" and "question_type" (CW, CH, TN, TC, TP).
    A question may have several spans; each of them is right.

    Source: arXiv:2309.01327; the answer in a `glue` element as in VideoChat-R1, arXiv:2504.06958, its inner form
    [[start, end], …] is our choice.
    """

    template: str = (
        "{query}\n{options}\n"
        "Answer with the letter of the right option as <answer>(A)</answer>, and then give the parts of the video that show "
        "it, in seconds with two decimals, as <glue>[[start, end], …]</glue>."
    )
    """The question as the model gets it: {query} is that of the row."""
    demo_template: str = "<answer>{answer}</answer><glue>{spans}</glue>"
    """The demonstration: the right answer in the form that is asked for."""
    gsub: str | None = None
    """The spans of a .csv: {video: {"duration", "location": {qid: [[s, e], …]}}}."""
    video_folders: str | None = None
    """For a .csv, optionally: JSON from video to its path without suffix ("1104/4882821564"), NExT-QA's map_vid_vidorID."""

    suffixes: ClassVar[tuple[str, ...]] = (".json", ".csv")

    def check(self) -> None:
        super().check()
        if self.path.endswith(".csv") and self.gsub is None:
            raise ConfigError(f"{self.path} holds no spans: set gsub to the file that does (gsub_val.json).")
        for extra in (self.gsub, self.video_folders):
            if extra is not None:
                check_file(extra, (".json",))

    def _entries(self) -> Iterator[tuple[str, Any]]:
        if self.path.endswith(".csv"):
            self._grounding = _mapping(self.gsub or "")
            self._folders = {} if self.video_folders is None else _mapping(self.video_folders)
        return super()._entries()

    def _row(self, row: Mapping[str, Any], where: str, number: int) -> Iterator[GroundingRow]:
        if self.path.endswith(".csv"):
            yield self._table_row(row, where)
            return
        spans = take_spans(take_field(row, "glue", where), where)
        duration = take_duration(take_field(row, "duration", where), where)
        name, video = take_text(row, "id", where), take_text(row, "video", where)
        answer, options = take_text(row, "answer", where), take_field(row, "options", where)
        yield _asked(row, where, name, video, options, answer, spans, duration)

    def _table_row(self, row: Mapping[str, Any], where: str) -> GroundingRow:
        video, qid = take_text(row, "video_id", where), take_text(row, "qid", where)
        texts = [take_text(row, f"a{n}", where) for n in range(len(LETTERS))]
        right = take_text(row, "answer", where)
        if right not in texts:
            raise ConfigError(f"{where}: the answer {shown(right)} is none of the options {shown(texts)}.")
        options = [f"({letter}) {text}" for letter, text in zip(LETTERS, texts, strict=True)]
        answer = f"({LETTERS[texts.index(right)]})"
        about = self._grounding.get(video)
        if not isinstance(about, dict) or not isinstance(about.get("location"), dict):
            raise ConfigError(f"{where}: {self.gsub} has no video {shown(video)}.")
        spans = take_spans(about["location"].get(qid, []), f"{self.gsub}, {video}, question {qid}")
        duration = take_duration(about.get("duration"), f"{self.gsub}, {video}")
        path = take_text({"path": self._folders.get(video, video)}, "path", f"{self.video_folders}, {video}")
        return _asked(row, where, f"{video}_{qid}", path, options, answer, spans, duration)


def _mapping(path: str) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: found a JSON {type(found).__name__}, wanted an object of videos.")
    return found


def _asked(
    row: Mapping[str, Any],
    where: str,
    name: str,
    video: str,
    options: Sequence[str],
    answer: str,
    spans: tuple[tuple[float, float], ...],
    duration: float,
) -> GroundingRow:
    if not isinstance(options, list) or any(text_problem(option) for option in options):
        raise ConfigError(f"{where}: options are {shown(options)}, wanted a list of texts.")
    if not any(option.startswith(answer) for option in options):
        raise ConfigError(f"{where}: the answer {shown(answer)} is the letter of none of the options {shown(options)}.")
    return GroundingRow(
        where,
        f"nextgqa/{name}",
        video,
        take_text(row, "question", where),
        spans,
        duration,
        target={
            "answer": answer,
            "answer_type": "multiple choice",
            "options": options,
            "question_type": row.get("type"),
        },
        words={"options": "\n".join(options), "answer": answer},
    )
