"""Tracking and quality as VideoChat-R1 asks for them: folders of pictures as videos, readers, rewards."""

import json
import math
from pathlib import Path

import pytest
import torch
from linear_time import no_more_than
from PIL import Image
from tiny_videos import number_of, write_pictures

from grpo_mm.datasets.media.frame_sampling import FrameSampling
from grpo_mm.datasets.media.frame_store import FrameStore
from grpo_mm.datasets.media.media_files import VideoError, VideoFile
from grpo_mm.datasets.media.picture_sequence import PictureSequence
from grpo_mm.datasets.video.got10k import Got10k, places
from grpo_mm.datasets.video.video_quality import VideoQuality
from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.vlm.prompting.contexts import is_video
from grpo_mm.rewards.spatial.box_text import strict_box_list
from grpo_mm.rewards.text.typed_answer import TypedAnswer
from grpo_mm.rewards.video.box_track import BoxTrack, BoxTrackFormat
from grpo_mm.types import Prompt

SMALL = FrameSampling(fps=2.0, min_pixels_frame=1, multiple_of=1, max_frames=2)
TRACK = [[k / 10, 0.1, k / 10 + 0.2, 0.9] for k in range(8)]
ROW = {"path": "/data/GOT-10k/val/GOT-10k_Val_000010", "object": "sloth", "gt": TRACK}
QUALITY = {"video": "0506.mp4", "instruction": "How good? ['low quality', 'high quality'].", "answer": "low quality"}


def write(folder: Path, rows) -> str:
    (folder / "rows.json").write_text(json.dumps(rows))
    return str(folder / "rows.json")


# ── a folder of pictures is a video ──


def test_pictures_of_a_folder_are_the_frames_of_a_video(tmp_path):
    folder = write_pictures(tmp_path / "a", count=13)
    frames = FrameStore(SMALL).load(PictureSequence(folder, at=(0.0, 0.0, 1 / 6, 2 / 6, 0.5, 4 / 6, 5 / 6, 1.0)))
    assert [number_of(picture) for picture in frames.frames_FCHW] == [0, 0, 2, 4, 6, 8, 10, 12]
    assert frames.index_F.tolist() == [0, 0, 2, 4, 6, 8, 10, 12] and frames.time_F.tolist() == [k / 2 for k in range(8)]
    assert (frames.fps, frames.duration) == (2.0, 4.0) and is_video(PictureSequence(folder, at=(0.0,)))
    assert frames.frames_FCHW.shape == (8, 3, 48, 64) and frames.frames_FCHW.dtype == torch.uint8


def test_frames_of_a_folder_are_kept_until_a_picture_changes(tmp_path):
    folder, store = Path(write_pictures(tmp_path / "a", count=4)), FrameStore(SMALL, folder=str(tmp_path / "kept"))
    shown = PictureSequence(str(folder), at=(0.0, 1.0))
    first = store.get(shown)
    assert store.get(shown) is first and store.counts.misses == 1
    assert store.get(PictureSequence(str(folder), at=(0.0, 0.5))).index_F.tolist() == [0, 1]
    assert store.get(PictureSequence(str(folder), at=(0.0, 1.0), fps=1.0)).duration == 2.0
    again = FrameStore(SMALL, folder=str(tmp_path / "kept"))
    assert torch.equal(again.get(shown).frames_FCHW, first.frames_FCHW) and again.counts.folder_hits == 1
    (folder / "00000001.jpg").write_bytes((folder / "00000003.jpg").read_bytes())
    assert number_of(store.get(shown).frames_FCHW[0]) == 2


def test_all_frames_fit_the_budget_or_it_is_refused(tmp_path):
    shown = PictureSequence(write_pictures(tmp_path / "a", count=8, size=(56, 56)), at=places(8, "first"))
    budget = FrameSampling(min_pixels_frame=28 * 28, max_pixels_total=4 * 28 * 28)
    assert FrameStore(budget).get(shown).frames_FCHW.shape == (8, 3, 28, 28)
    with pytest.raises(ConfigError, match="8 pictures are asked for, of which 6 fit: max_pixels_total = 3135"):
        FrameStore(FrameSampling(min_pixels_frame=28 * 28, max_pixels_total=4 * 28 * 28 - 1)).get(shown)
    with pytest.raises(ConfigError, match="3 pictures are asked for, of which 2 fit.*multiples of temporal_patch = 2"):
        FrameStore(SMALL).get(PictureSequence(shown.path, at=(0.0, 0.5, 1.0)))


def test_a_folder_that_cannot_be_read_is_a_named_failure(tmp_path):
    store = FrameStore(SMALL)
    (tmp_path / "empty").mkdir()
    broken = Path(write_pictures(tmp_path / "broken", count=2))
    (broken / "00000002.jpg").write_bytes(b"no picture")
    for name, reason in (
        ("none", "no such folder"), ("empty", "a folder without pictures"), ("broken", "00000002.jpg cannot be read"),
    ):  # fmt: skip
        for _ in range(2):
            with pytest.raises(VideoError, match=reason):
                store.load(PictureSequence(str(tmp_path / name), at=(0.0, 1.0)))
    assert store.counts.failures == 3 and set(store.failures) == {
        str(tmp_path / n) for n in ("none", "empty", "broken")
    }
    Image.new("RGB", (64, 48)).save(broken / "00000002.jpg")
    assert len(store.get(PictureSequence(str(broken), at=(0.0, 1.0))).time_F) == 2


# ── readers ──


def test_a_track_becomes_a_prompt(tmp_path):
    (prompt,) = Got10k(write(tmp_path, [ROW]), folder="val").load()
    assert prompt.id == "got10k/GOT-10k_Val_000010" and prompt.target == {"track": TRACK, "object": "sloth"}
    assert prompt.media == (PictureSequence("val/GOT-10k_Val_000010", (0.0, *(k / 6 for k in range(7))), 2.0),)
    assert "sloth" in prompt.text and str(TRACK[0]) in prompt.text and str(TRACK[1]) not in prompt.text
    assert BoxTrack()([prompt.demo], [prompt])["score"].item() == pytest.approx(1)
    assert BoxTrackFormat("answer")([prompt.demo], [prompt])["score"].item() == 1
    assert not TypedAnswer().applies_to(prompt)


def test_where_the_frames_of_a_track_lie_is_a_choice(tmp_path):
    assert places(8, None) == tuple(k / 7 for k in range(8))
    assert places(8, "last") == (*(k / 6 for k in range(7)), 1.0)
    assert [int(p * 12) for p in places(8, "first")] == [0, 0, 2, 4, 6, 8, 10, 12]
    with pytest.raises(ConfigError, match="twice = 'both'"):
        Got10k(write(tmp_path, [ROW]), twice="both").load()


def test_tracks_without_their_pictures_can_be_left_out(tmp_path, caplog):
    write_pictures(tmp_path / "val" / "b", count=8)
    path = write(tmp_path, [ROW, ROW | {"path": "b"}])
    (prompt,) = Got10k(path, folder=str(tmp_path / "val"), check_files=True).load()
    assert prompt.id == "got10k/b" and "1 rows left out: no such file (got10k/GOT-10k_Val_000010)" in caplog.text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROW | {"gt": TRACK[:2]}, "entry 0: gt has 2 boxes, wanted at least 3"),
        (ROW | {"gt": [*TRACK, [0.5, 0.5, 0.4, 0.6]]}, "the box .0.5, 0.5, 0.4, 0.6. is reversed or empty"),
        (ROW | {"gt": [*TRACK, [10, 20, 30, 40]]}, "beyond the picture; wanted shares of width and height"),
        (ROW | {"gt": [*TRACK, [0, 0, 1]]}, "is no box; wanted four finite numbers"),
        (ROW | {"gt": None}, "wanted a list of boxes"),
        (ROW | {"object": ""}, "'object' is ''"),
    ],
)
def test_a_broken_track_is_named_with_its_place(tmp_path, row, message):
    with pytest.raises(ConfigError, match=message):
        Got10k(write(tmp_path, [row])).load()


def test_quality_is_scored_by_its_words(tmp_path):
    path = write(tmp_path, [QUALITY, QUALITY | {"answer": "high quality"}])
    low, high = VideoQuality(path, folder="v").load()
    assert [low.id, high.id] == ["rows/0", "rows/1"] and low.media == (VideoFile("v/0506.mp4"),)
    assert "['low quality', 'high quality']" in low.text and low.demo == "<answer>low quality</answer>"
    texts = ["<answer>low quality</answer>", "<answer> Low quality. </answer>", "<answer>low</answer>"]
    texts += ["<answer>high quality</answer>", "<answer>low quality or high quality</answer>"]
    assert TypedAnswer()(texts, [low] * 5)["score"].tolist() == [1, 1, 0, 0, 0]
    assert TypedAnswer()(texts, [high] * 5)["score"].tolist() == [0, 0, 0, 1, 0]
    with pytest.raises(ConfigError, match="entry 0: no field 'instruction'"):
        VideoQuality(write(tmp_path, [{"video": "a", "answer": "b"}])).load()


# ── rewards ──

PROMPT = Prompt("0", "where?", target={"track": [[0, 0, 0.2, 0.2], [0.5, 0.5, 0.9, 0.9], [0, 0, 1, 1]]})


def told(boxes, before: str = "<think>so</think>") -> str:
    return f"{before}<answer>{boxes}</answer>"


def parts(text: str, prompt: Prompt = PROMPT) -> dict[str, float]:
    return {name: value.item() for name, value in BoxTrack()([text], [prompt]).items()}


def test_the_score_is_the_mean_iou_frame_by_frame():
    found = parts(told([[0, 0, 0.2, 0.2], [0.7, 0.5, 0.9, 0.9], [0, 0, 0.5, 0.5]]))  # 1, 1/2, 1/4
    assert found == pytest.approx({"score": 1.75 / 3, "later": 0.375, "parse_failed": 0, "wrong_count": 0})
    moved = told([[0.5, 0.5, 0.9, 0.9], [0, 0, 0.2, 0.2], [0, 0, 1, 1]])  # right boxes, wrong frames
    assert parts(moved)["score"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("boxes", [[[0, 0, 0.2, 0.2]], [[0, 0, 0.2, 0.2]] * 2, [[0, 0, 0.2, 0.2]] * 4])
def test_fewer_or_more_boxes_than_frames_score_nothing(boxes):
    assert parts(told(boxes)) == {"score": 0, "later": 0, "parse_failed": 0, "wrong_count": 1}
    assert BoxTrackFormat()([told(boxes)], [PROMPT])["score"].item() == 0


def test_reversed_empty_infinite_and_outlying_boxes_meet_nothing():
    for box in (
        "[0.2, 0.2, 0, 0]",
        "[0, 0, 0, 0]",
        "[1e999, 0, 1e999, 1]",
        "[-1e999, -1e999, 1e999, 1e999]",
        "[2, 2, 3, 3]",
    ):
        found = parts(told(f"[{box}, {box}, {box}]"))
        assert found["score"] == 0 and found["parse_failed"] == 0


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("[[0.1, .5, 1e-1, 1]]", [(0.1, 0.5, 0.1, 1)]),
        (" [ [0,0,1,1] ,\n[0, 0, -1, +2.5],\n] ", [(0, 0, 1, 1), (0, 0, -1, 2.5)]),
        ("[]", None), ("", None), ("[0, 0, 1, 1]", None), ("[[0, 0, 1]]", None), ("[[0, 0, 1, 1, 1]]", None),
        ("[[0, 0, 1, 1] [0, 0, 1, 1]]", None), ("[[0, 0, 1, 1], ...]", None), ("the boxes [[0, 0, 1, 1]]", None),
        ("[[0, 0, 1, 1]", None), ("[(0, 0, 1, 1)]", None), ("[['0', 0, 1, 1]]", None), ("[[0, 0, 1, nan]]", None),
        ("[[0, 0, 1, 1],,]", None),
    ],
)  # fmt: skip
def test_a_list_of_boxes_is_read_strictly(text, boxes):
    assert strict_box_list(text) == boxes


def test_the_last_answer_counts_and_only_the_answer():
    right = [[0, 0, 0.2, 0.2], [0.5, 0.5, 0.9, 0.9], [0, 0, 1, 1]]
    assert parts(told([]) + told(right))["score"] == pytest.approx(1)
    assert parts(str(right))["parse_failed"] == 1 == parts(f"<answer>{right}")["parse_failed"]


def test_the_format_wants_elements_and_as_many_boxes():
    good = told([[0, 0, 1, 1]] * 3)
    wrong = [good + ".", told([[0, 0, 1, 1]] * 2), told("no"), good.replace("think", "thing"), "<think></think>", ""]
    assert BoxTrackFormat()([good + "\n"], [PROMPT])["score"].item() == 1
    assert BoxTrackFormat()(wrong, [PROMPT] * len(wrong))["score"].tolist() == [0] * len(wrong)
    short = told([[0, 0, 1, 1]] * 3, before="")
    assert BoxTrackFormat("answer")([short, good], [PROMPT] * 2)["score"].tolist() == [1, 0]
    with pytest.raises(ConfigError, match="template = 'think_answer_glue'; wanted answer or think_answer"):
        BoxTrackFormat("think_answer_glue")


HOSTILE = [
    "<answer>" * 20_000, "[" * 100_000, "[[" + "0," * 100_000, "<answer>[" + "[0, 0, 1, 1], " * 20_000 + "</answer>",
    "<answer>[" + "[0, 0, 1, 1], " * 20_000 + "]</answer>", "<answer>[[" + " " * 100_000 + "</answer>",
    "<answer>[[" + "9" * 100_000 + ", 0, 1, 1]]</answer>", "<answer>[[0, 0, 1, 1]" + " ," * 50_000 + "]</answer>",
    "<answer>[[0, 0, 1, 1e" + "9" * 9 + "]]</answer>", "<answer>\x00\ud800[[１, 2, 3, 4]]</answer>", "", "<answer></answer>",
]  # fmt: skip


@pytest.mark.parametrize("reward", [BoxTrack(), BoxTrackFormat()])
def test_hostile_text_scores_nothing_in_no_time(reward):
    with no_more_than(5):
        scores = reward(HOSTILE, [PROMPT] * len(HOSTILE))
    assert scores["score"].tolist() == [0] * len(HOSTILE)


@pytest.mark.parametrize("reward", [BoxTrack(), BoxTrackFormat()])
def test_a_prompt_without_a_track_is_not_scored(reward):
    for target in (None, {}, {"boxes": [[0, 0, 1, 1]]}, {"track": []}, "x"):
        prompt = Prompt("0", "?", target=target)
        assert not reward.applies_to(prompt) and math.isnan(reward(["x"], [prompt])["score"].item())
    assert all(value.shape == (0,) for value in reward([], []).values())
    alone = Prompt("0", "?", target={"track": [[0, 0, 1, 1]]})
    assert BoxTrack()([told([[0, 0, 1, 1]])], [alone])["later"].isnan().all()
