"""TimeLens' two forms of annotations become prompts, with the filters of its recipe."""

import json

import pytest
import torch

from grpo_mm.datasets.media.media_files import VideoFile
from grpo_mm.datasets.video.difficulty import draw_by_difficulty
from grpo_mm.datasets.video.timelens import TimeLens100K, TimeLensBench
from grpo_mm.errors import ConfigError
from grpo_mm.registry import lookup
from grpo_mm.rewards.video.temporal_iou import TemporalIou
from grpo_mm.tools.prediction_files import score_files

BENCH = {
    "AB1": {"duration": 30.9, "spans": [[24.3, 30.4], [0, 6]], "queries": ["A  person\nsits down. ", "the door opens"]},
    "x_60.0_210.0": {"duration": 150, "spans": [[1, 2]], "queries": ["rain"]},
}


def event(query: str = "a man sits", span=((1.0, 4.0),), **more) -> dict:
    return {"query": query, "span": [list(s) for s in span], **more}


def row(*events: dict, duration: float = 60.0, path: str = "hirest/a.mp4") -> dict:
    return {"video_path": path, "duration": duration, "source": "hirest", "events": list(events)}


def lines(folder, rows, name: str = "t.jsonl") -> str:
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return str(folder / name)


def test_the_benchmark_form_has_a_prompt_for_each_query(tmp_path):
    (tmp_path / "b.json").write_text(json.dumps(BENCH))
    prompts = TimeLensBench(str(tmp_path / "b.json"), videos="v").load()
    assert [p.id for p in prompts] == [f"timelens_bench/{name}" for name in ("AB1/0", "AB1/1", "x_60.0_210.0/0")]
    assert prompts[0].media == (VideoFile("v/AB1.mp4"),) and prompts[2].media == (VideoFile("v/x_60.0_210.0.mp4"),)
    assert prompts[0].target == {"spans": [[24.3, 30.4]], "duration": 30.9}
    assert "A person sits down\n" in prompts[0].text and prompts[1].target["spans"] == [[0.0, 6.0]]


def test_each_event_of_a_training_row_is_a_prompt(tmp_path):
    flat = {"video_path": "b.mp4", "duration": 9, "source": "didemo", "query": "rain", "span": [2, 3], "iou": 0.25}
    path = lines(tmp_path, [row(event("One.", [(1, 2)]), event("two", [(3, 4), (6, 8)])), flat])
    prompts = TimeLens100K(path, videos="v").load()
    assert [p.id.removeprefix("timelens_100k/") for p in prompts] == ["0/0", "0/1", "1/0"]
    assert prompts[0].media == prompts[1].media == (VideoFile("v/hirest/a.mp4"),)
    assert prompts[1].target == {"spans": [[3.0, 4.0], [6.0, 8.0]], "duration": 60.0, "dataset": "hirest"}
    assert prompts[2].target == {"spans": [[2.0, 3.0]], "duration": 9.0, "dataset": "didemo", "difficulty": 0.25}
    assert prompts[0].demo == "The event happens in 1.0 - 2.0 seconds." and "One\n" in prompts[0].text


@pytest.mark.parametrize("reader", [TimeLensBench, TimeLens100K])
def test_the_demonstration_earns_the_whole_reward(reader, tmp_path):
    kept = {"AB1": BENCH["AB1"]} if reader is TimeLensBench else [row(event())]
    (tmp_path / "a.json").write_text(json.dumps(kept))
    prompt = reader(str(tmp_path / "a.json")).load()[0]
    assert TemporalIou(pick="first")([prompt.demo], [prompt])["score"].item() == 1
    assert lookup("prompts", {TimeLensBench: "timelens_bench", TimeLens100K: "timelens_100k"}[reader]) is reader


def test_any_models_predictions_are_scored_on_the_benchmark(tmp_path):
    (tmp_path / "b.json").write_text(json.dumps(BENCH))
    said = {"AB1/0": "The event happens in 24.3 - 27.35 seconds.", "AB1/1": [0, 6], "x_60.0_210.0/0": None}
    (tmp_path / "p.json").write_text(json.dumps(said))
    found = score_files("timelens_bench", predictions=[tmp_path / "p.json"], annotations=[tmp_path / "b.json"])
    assert found["miou"] == pytest.approx(50) and found["queries"] == 3  # IoU .5, 1 and nothing
    assert found["r1_at_0.3"] == pytest.approx(200 / 3) and found["r1_at_0.7"] == pytest.approx(100 / 3)


FILTERED = {
    "shorter than 5 s": row(event(), duration=4.9),
    "longer than 500 s": row(event(), duration=500.1),
    "more than 200 words": row(event("a " * 201)),
    "with one of the words": row(event("Someone shouts, then a loud sound.")),
    "span outside the video": row(event(span=[(1, 4), (50, 60.1)])),
    "inverted span": row(event(span=[(4, 1)])),
    "span of zero length": row(event(span=[(4, 4)])),
}
KEPT = [
    row(event(), duration=5), row(event(), duration=500), row(event("a " * 200)), row(event("the soundless hearth")),
    row(event(span=[(1, 60)])),
]  # fmt: skip


@pytest.mark.parametrize("reason", FILTERED)
def test_rows_outside_of_the_recipe_are_left_out_and_counted(reason, tmp_path, caplog):
    prompts = TimeLens100K(lines(tmp_path, [*KEPT, FILTERED[reason]])).load()
    assert len(prompts) == len(KEPT) and f"1 rows left out: {reason}" in caplog.text


def test_each_filter_can_be_lifted(tmp_path):
    rows = [FILTERED[reason] for reason in FILTERED if "span" not in reason]
    off = dict(min_seconds=None, max_seconds=None, most_words=None, without_words=[])
    assert len(TimeLens100K(lines(tmp_path, rows), **off).load()) == len(rows) == 4
    assert len(TimeLens100K(lines(tmp_path, KEPT), without_words=["man"]).load()) == 2


def test_rows_are_drawn_by_the_difficulty_that_they_bring(tmp_path):
    iou_N = torch.rand(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    path = lines(tmp_path, [row(event(iou=iou)) for iou in iou_N.tolist()])
    drawn = TimeLens100K(path, draw=60, draw_seed=4).load()
    chosen = draw_by_difficulty(iou_N, 60, seed=4, mean=0.05, std=0.2)
    assert [p.id for p in drawn] == [f"timelens_100k/{i}/0" for i in chosen.tolist()]
    assert sum(p.target["difficulty"] for p in drawn) / 60 < 0.3 < iou_N.mean()


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([row(event(iou=0.5), event())], {"draw": 1}, "1 rows have no 'iou' .timelens_100k/0/1, ….. Give the file"),
        ([row(event(iou=41))], {"draw": 1}, "draw = 1: difficulties are IoUs"),
        ([row(event(iou=0.5))], {"draw": 0}, "draw = 0: count = 0"),
        ([row() | {"events": "x"}], {}, "line 1: events are 'x'"),
        ([row({"query": "x"})], {}, "line 1, event 0: no field 'span'"),
        ([row(event(), {"span": [1, 2]})], {}, "line 1, event 1: no field 'query'"),
        ([row({"query": "x", "span": [1, "2"]})], {}, "end is '2'"),
        ([{"video_path": "a", "events": [event()]}], {}, "line 1: no field 'duration'"),
        ([row(event(), duration=1)], {}, "no row is left; dropped for shorter than 5 s"),
    ],
)  # fmt: skip
def test_a_broken_training_row_is_named_with_its_place(tmp_path, rows, settings, message):
    with pytest.raises(ConfigError, match=message):
        TimeLens100K(lines(tmp_path, rows), **settings).load()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "found a JSON list, wanted an object"),
        ({"A": {"duration": 3, "timestamps": [], "sentences": []}}, "A: wanted an object with duration, spans and queries"),
        ({"A": {"duration": 3, "spans": [[1, 2]], "queries": []}}, "A: 1 spans for the queries"),
    ],
)  # fmt: skip
def test_a_broken_benchmark_file_is_named_with_its_place(tmp_path, value, message):
    (tmp_path / "b.json").write_text(json.dumps(value))
    with pytest.raises(ConfigError, match=message):
        TimeLensBench(str(tmp_path / "b.json")).load()
