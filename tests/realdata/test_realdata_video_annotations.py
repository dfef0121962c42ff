"""Real annotation files, from a folder outside the repository; skipped where there is none."""

import json
import os
from pathlib import Path

import pytest
import torch

from grpo_mm.datasets.chat.conversations import Conversations
from grpo_mm.datasets.video.activitynet_captions import ActivityNetCaptions
from grpo_mm.datasets.video.charades_sta import CharadesSta
from grpo_mm.datasets.video.difficulty import draw_by_difficulty, still_to_learn
from grpo_mm.datasets.video.got10k import Got10k
from grpo_mm.datasets.video.nextgqa import NextGqa
from grpo_mm.datasets.video.qvhighlights import QVHighlights
from grpo_mm.datasets.video.tvgbench import TimeR1Rows, TvgBench
from grpo_mm.datasets.video.video_quality import VideoQuality
from grpo_mm.rewards.spatial.boxes import as_boxes, iou
from grpo_mm.rewards.text.typed_answer import TypedAnswer
from grpo_mm.rewards.video.box_track import BoxTrack, BoxTrackFormat

DATA = Path(os.environ.get("GRPO_MM_TEST_DATA") or Path(__file__).parents[2] / "../shared/data")
VLM = DATA / "vlm"
pytestmark = [pytest.mark.realdata, pytest.mark.skipif(not VLM.is_dir(), reason=f"no folder {VLM}")]

CHARADES, ACTIVITYNET = VLM / "charades_sta/charades_test.json", VLM / "activitynet_captions/val_2_first300.json"
NEXTGQA = VLM / "nextgqa"
READERS = {
    "charades": (lambda **s: CharadesSta(str(CHARADES), **s), 3720, 1334),
    "activitynet": (lambda **s: ActivityNetCaptions(str(ACTIVITYNET), **s), 1106, 300),
    "qvhighlights": (lambda **s: QVHighlights(str(VLM / "qvhighlights/highlight_val_release.jsonl"), **s), 1550, 1519),
    "tvgbench": (lambda **s: TvgBench(str(VLM / "tvgbench/tvgbench.json"), **s), 800, 462),
    "time_r1": (lambda **s: TimeR1Rows(str(VLM / "tvgbench/timer1_train_2k5_first150.json"), **s), 150, None),
    "nextgqa": (lambda **s: NextGqa(str(NEXTGQA / "nextgqa_val_first200.json"), **s), 200, None),
    "nextgqa table": (
        lambda **s: NextGqa(str(NEXTGQA / "val_first400.csv"), gsub=str(NEXTGQA / "gsub_val.json"), **s),
        400,
        None,
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_every_row_becomes_a_prompt_with_its_spans_and_its_demonstration(name):
    reader, rows, videos = READERS[name]
    prompts = reader().load()
    assert len(prompts) == rows == len({prompt.id for prompt in prompts})
    assert videos is None or len({prompt.media[0].path for prompt in prompts}) == videos
    for prompt in prompts:
        start, end = prompt.target["spans"][0]
        assert 0 <= start <= end and prompt.target["duration"] > 0
        assert f"{start:.2f}" in prompt.demo and f"{end:.2f}" in prompt.demo and "<answer>" in prompt.demo
        assert prompt.text.strip() == prompt.text and "<answer>" in prompt.text


@pytest.mark.parametrize(
    ("name", "dropped", "reason"),
    [
        ("charades", 0, ""),
        ("activitynet", 0, ""),
        ("qvhighlights", 0, ""),
        ("tvgbench", 12, "11 rows left out: span of zero length"),
        ("time_r1", 1, "1 rows left out: span outside the video"),
        ("nextgqa table", 0, ""),
    ],
)
def test_unusable_rows_of_real_files_are_counted(name, dropped, reason, caplog):
    reader, rows, _ = READERS[name]
    assert rows - len(reader(unusable="drop").load()) == dropped
    assert reason in caplog.text and bool(caplog.text) == bool(dropped)


def test_charades_ends_exceed_durations_until_they_are_clamped():
    def over(prompts):
        return sum(p.target["spans"][0][1] > p.target["duration"] for p in prompts)

    reader = READERS["charades"][0]
    assert over(reader().load()) == 562 and over(reader(clamp=True).load()) == 0


def test_activitynet_sentences_have_no_blanks_at_their_ends():
    raw = [s for video in json.loads(ACTIVITYNET.read_text()).values() for s in video["sentences"]]
    prompts = READERS["activitynet"][0](template="{query}").load()
    assert sum(s != s.strip() for s in raw) == 751 and [p.text for p in prompts] == [s.strip() for s in raw]


def test_saliency_and_windows_of_qvhighlights_tell_the_same_story():
    for prompt in READERS["qvhighlights"][0]().load():
        listed = sorted({c for start, end in prompt.target["spans"] for c in range(int(start / 2), int(end / 2))})
        assert sorted(prompt.target["clips"]) == listed and len(prompt.target["saliency"]) == 75
        assert all(not any(prompt.target["saliency"][c]) for c in set(range(75)) - set(listed))


def test_tvgbench_knows_the_source_of_every_row():
    prompts = READERS["tvgbench"][0]().load()
    sources = [p.target["dataset"] for p in prompts]
    assert {s: sources.count(s) for s in set(sources)} == {
        "charades": 138,
        "anet": 168,
        "tacos": 168,
        "egonlq": 168,
        "hirest": 158,
    }
    cropped = [p for p in prompts if p.media[0].start is not None]
    assert len(cropped) == 252
    assert all(abs(p.media[0].end - p.media[0].start - p.target["duration"]) < 1e-6 for p in cropped)
    assert {Path(p.media[0].path).suffix for p in prompts} == {".mp4", ".mkv", ".avi"}


def test_time_r1_difficulties_are_the_ious_of_the_base_predictions():
    prompts = READERS["time_r1"][0]().load()
    for target in (p.target for p in prompts):
        (start, end), (a, b) = target["spans"][0], target["base_prediction"]
        iou = max(0.0, min(end, b) - max(start, a)) / (max(end, b) - min(start, a))
        assert target["difficulty"] == pytest.approx(iou, abs=1e-9)
    iou_N = torch.tensor([p.target["difficulty"] for p in prompts], dtype=torch.float64)
    assert 0 < int(still_to_learn(iou_N).sum()) < 150
    easy, hard = (iou_N[draw_by_difficulty(iou_N, 40, seed=0, mean=mean)] for mean in (0.6, 0.05))
    assert hard.mean() < iou_N.mean() < easy.mean()


def test_both_forms_of_nextgqa_agree():
    table = {p.id: p for p in READERS["nextgqa table"][0]().load()}
    shared = [p for p in READERS["nextgqa"][0]().load() if p.id in table]
    assert len(shared) > 150
    for prompt in shared:
        other = table[prompt.id]
        assert prompt.target["answer"] == other.target["answer"] and prompt.target["spans"] == other.target["spans"]


def test_vlm_r1_conversations_have_two_pictures_each():
    prompts = Conversations(str(VLM / "vlm_r1_format/gui_multi-image_first30.jsonl"), images="gui").load()
    assert len(prompts) == 30 and {len(p.media) for p in prompts} == {2}
    answers = [p.target["answer"] for p in prompts]
    assert {a: answers.count(a) for a in set(answers)} == {"Operation No Response": 18, "Unexpected Task Result": 12}


def test_every_track_has_eight_boxes_and_its_demonstration_is_right():
    prompts = Got10k(str(VLM / "got10k/got_val_first100.json"), folder="val").load()
    assert len(prompts) == 100 == len({p.id for p in prompts}) and {len(p.target["track"]) for p in prompts} == {8}
    assert prompts[0].media[0].path == "val/GOT-10k_Val_000010" and prompts[0].target["object"] == "sloth"
    demos = [p.demo for p in prompts]
    assert BoxTrack()(demos, prompts)["score"].tolist() == pytest.approx([1.0] * 100)
    assert BoxTrackFormat("answer")(demos, prompts)["score"].sum() == 100


def test_the_first_two_boxes_of_a_track_nearly_agree_and_the_others_lie_evenly_apart():
    """So the boxes are of the first picture and of seven evenly spaced ones, as `Got10k.twice = first` shows them."""
    tracks = [as_boxes(p.target["track"]) for p in Got10k(str(VLM / "got10k/got_val_first100.json")).load()]
    overlap_F = torch.stack([iou(track[:-1], track[1:]).diagonal() for track in tracks]).mean(0)
    assert overlap_F[0] > 0.8 and overlap_F[1:].min() > 0.36 and overlap_F[1:].max() < 0.45


def test_quality_answers_are_named_in_their_questions():
    prompts = VideoQuality(str(VLM / "video_quality/quality_access_4shot.json"), folder="v").load()
    answers = [p.target["answer"] for p in prompts]
    assert len(prompts) == 8 and answers.count("low quality") == answers.count("high quality") == 4
    assert all(f"'{answer}'" in p.text for p, answer in zip(prompts, answers, strict=True))
    assert TypedAnswer()([p.demo for p in prompts], prompts)["score"].sum() == 8
    swapped = [p.demo.replace("low", "LOW").replace("high", "low").replace("LOW", "high") for p in prompts]
    assert TypedAnswer()(swapped, prompts)["score"].sum() == 0
