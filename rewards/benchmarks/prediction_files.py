"""Published files of predictions: what they hold for which annotation, and the table of their benchmark, in per cent.

A form names the reader of its annotations (role "prompts") and the settings of it that file names fill, in order; it turns
parsed JSON files into key → prediction, where a key is the id of an annotation without its first part ("AO8RW/0" of
"charades/AO8RW/0"), and scores one prediction (None: missing) per annotation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from grpo_mm.errors import ConfigError
from grpo_mm.outside import finite_number, plain, shown
from grpo_mm.rewards.benchmarks.grounded_qa import GroundedQa
from grpo_mm.rewards.benchmarks.moments import Highlights, MomentRetrieval
from grpo_mm.rewards.benchmarks.temporal_grounding import TemporalGrounding
from grpo_mm.rewards.benchmarks.window_metrics import Window
from grpo_mm.rewards.text.typed_answer import same_choice
from grpo_mm.types import Prompt

LETTERS = "ABCDE"


class QVHighlightsFile:
    """moment_detr's lines {"qid": 7, "pred_relevant_windows": [[start, end, score], …], "pred_saliency_scores": [one per
    clip]}, or a list of them (TimeChat). One of the two fields is enough: what no line has is not in the table."""

    reader: ClassVar[str] = "qvhighlights"
    annotations: ClassVar[tuple[str, ...]] = ("path",)

    def predictions(self, files: Sequence[Any]) -> dict[str, Mapping[str, Any]]:
        records = [record for rows in files for record in entries(rows)]
        for number, record in enumerate(records):
            windows, saliency = record.get("pred_relevant_windows") or [], record.get("pred_saliency_scores") or []
            good = isinstance(windows, list) and all(_numbers(window, 3) for window in windows) and _numbers(saliency)
            if type(record.get("qid")) not in (int, str) or not good:
                raise ConfigError(
                    f"entry {number}: a prediction is {shown(record)}; wanted qid, and windows [start, end, score] or saliency "
                    "scores, all numbers."
                )
        return _unique([(str(record["qid"]), record) for record in records])

    def score(self, predictions: Sequence[Any], prompts: Sequence[Prompt]) -> dict[str, float]:
        table: dict[str, float] = {}
        for title, field, benchmark in (
            ("moments", "pred_relevant_windows", MomentRetrieval()),
            ("highlights", "pred_saliency_scores", Highlights()),
        ):
            if any(record and field in record for record in predictions):
                own = [(record or {}).get(field) or None for record in predictions]
                table |= _under(title, _applied(benchmark, own, prompts))
        return table


class CharadesFile:
    """TimeChat's {key: {"timestamp": [[start, end], …], …}}, of which the first window counts, or {key: [start, end]},
    or {key: "the text of an answer"}; an empty list or null is an answer without a span.

    A key is the id in TimeChat's annotations, else "AO8RW/0" or the number of the sentence in the file, from 0.
    """

    reader: ClassVar[str] = "grpo_mm.datasets.video.timechat:TimeChatCharades"
    annotations: ClassVar[tuple[str, ...]] = ("path", "lengths")
    benchmark: ClassVar[TemporalGrounding] = TemporalGrounding(pick="first")

    def predictions(self, files: Sequence[Any]) -> dict[str, Window | None]:
        pairs = [pair for values in files for pair in _mapping(values).items()]
        return _unique([(key, self._window(key, value)) for key, value in pairs])

    def score(self, predictions: Sequence[Window | None], prompts: Sequence[Prompt]) -> dict[str, float]:
        return _applied(self.benchmark, predictions, prompts)

    def _window(self, key: str, value: Any) -> Window | None:
        if isinstance(value, str):
            return self.benchmark.read(value)
        value = value.get("timestamp") if isinstance(value, Mapping) else value
        return _window(key, value)


class ActivityNetFile(CharadesFile):
    """As for Charades-STA; a key is "v_abc/0" or the number of the sentence."""

    reader: ClassVar[str] = "activitynet_captions"
    annotations: ClassVar[tuple[str, ...]] = ("path",)


class TimeLensFile(CharadesFile):
    """As for Charades-STA, of TimeLens' cleaned annotations; a key is "3MSZA/0" or the number of the query."""

    reader: ClassVar[str] = "timelens_bench"
    annotations: ClassVar[tuple[str, ...]] = ("path",)


class TvgBenchFile(CharadesFile):
    """As for Charades-STA; a key is the number of the row. R1 wants more than its threshold, as Time-R1 has it."""

    reader: ClassVar[str] = "tvgbench"
    annotations: ClassVar[tuple[str, ...]] = ("path",)
    benchmark: ClassVar[TemporalGrounding] = TemporalGrounding(pick="last", strict=True)


class NextGqaFile:
    """Two official files, {"VIDEO_QID": [start, end]} and {"VIDEO_QID": {"prediction": …, "answer": …}}, or one of ours,
    {"VIDEO_QID": {"answer": "(C)", "ground": [start, end]}}; without answers the table has none of their figures.

    Annotations: the form for RL, or the official table (val.csv) and then its spans (gsub_val.json). Where a record has
    "prediction" and "answer" the answer is right if they are the same, as in the official scorer; else the letter, the
    number from 0 or the text of an option is compared with the annotation.
    """

    reader: ClassVar[str] = "nextgqa"
    annotations: ClassVar[tuple[str, ...]] = ("path", "gsub")

    def predictions(self, files: Sequence[Any]) -> dict[str, Mapping[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for values in files:
            for key, value in _mapping(values).items():
                own = dict(value) if isinstance(value, Mapping) else {"ground": value}
                if twice := sorted(set(own) & set(found.get(key, {}))):
                    raise ConfigError(
                        f"two files of predictions have {shown(twice[0])} of {shown(key)}; wanted each once."
                    )
                found[key] = found.get(key, {}) | own
        return {key: own | {"ground": _window(key, own.get("ground"))} for key, own in found.items()}

    def score(self, predictions: Sequence[Any], prompts: Sequence[Prompt]) -> dict[str, float]:
        spans = [record["ground"] if record else None for record in predictions]
        correct = [bool(record) and self._is_right(record, prompt) for record, prompt in zip(predictions, prompts)]
        table = GroundedQa().score(spans, correct, prompts)
        if any(record and "answer" in record for record in predictions):
            return table
        return {name: value for name, value in table.items() if not name.startswith("acc_")}

    def _is_right(self, record: Mapping[str, Any], prompt: Prompt) -> bool:
        if "prediction" in record and "answer" in record:
            return record["prediction"] == record["answer"]
        given, options = record.get("answer"), prompt.target.get("options") or []
        if type(given) is int:
            given = LETTERS[given] if 0 <= given < len(LETTERS) else ""
        texts = {option.partition(") ")[2]: option.partition(" ")[0] for option in options}
        return isinstance(given, str) and same_choice(texts.get(given, given), prompt.target["answer"]) == 1


def _applied(benchmark: Any, predictions: Sequence[Any], prompts: Sequence[Prompt]) -> dict[str, float]:
    """The table over the prompts that the benchmark applies to."""
    kept = [i for i, prompt in enumerate(prompts) if benchmark.applies_to(prompt)]
    if not kept:
        raise ConfigError("no annotation holds what the predictions are compared with: are these of a test split?")
    return benchmark.score([predictions[i] for i in kept], [prompts[i] for i in kept])


def _under(title: str, table: Mapping[str, float]) -> dict[str, float]:
    return {f"{title}/{name}": value for name, value in table.items() if not math.isnan(value)}


def _window(key: str, value: Any) -> Window | None:
    """The first of several windows, or the one that there is; None for nothing."""
    if value is None or (isinstance(value, list) and not value):
        return None
    first = value[0] if isinstance(value, list) and isinstance(value[0], list) else value
    if not _numbers(first, 2):
        raise ConfigError(
            f"the prediction for {plain(key, 100)} is {shown(value)}; wanted [start, end] in seconds, or null."
        )
    return float(first[0]), float(first[1])


def _numbers(value: Any, count: int | None = None) -> bool:
    good = isinstance(value, list) and all(finite_number(v) is not None for v in value)
    return good and (count is None or len(value) == count)


def entries(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a list; raises ConfigError with the first entry that is none."""
    if not isinstance(value, list):
        raise ConfigError(f"the predictions are {shown(value, 100)}; wanted a list of objects, or one a line (.jsonl).")
    for number, row in enumerate(value):
        if not isinstance(row, Mapping):
            raise ConfigError(f"entry {number}: a prediction is {shown(row)}; wanted an object.")
    return value


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"the predictions are {shown(value, 100)}; wanted an object from key to prediction.")
    return value


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ConfigError(
            f"{len(pairs) - len(found)} predictions stand more than once, {shown(twice)} among them; wanted one for each query."
        )
    return found
