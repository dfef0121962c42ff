import random
from pathlib import Path

import numpy as np
import pytest

from grpo_mm.datasets.media.frame_sampling import FrameSampling
from grpo_mm.datasets.media.media_files import read_video
from grpo_mm.datasets.worlds.clip_world import (
    ASKED_BY,
    CELL_PX,
    FPS,
    NUM_FRAMES,
    Clip,
    ClipLessons,
    ClipWorld,
    frames,
    pairs,
    random_clip,
)
from grpo_mm.datasets.worlds.shape_world import BACKGROUND
from grpo_mm.rewards.text.spans import parse_spans
from grpo_mm.rewards.video.temporal_iou import hull_iou


def _clips(count: int, split: str = "report") -> list[Clip]:
    rng = random.Random(0)
    return [random_clip(split, rng) for _ in range(count)]


def test_splits_share_no_pair_of_objects():
    split_pairs = [set(map(frozenset, pairs(split))) for split in ("train", "monitor", "report")]
    assert [len(found) for found in split_pairs] == [42, 12, 12]
    assert not split_pairs[0] & split_pairs[1] and not split_pairs[0] & split_pairs[2]
    assert not split_pairs[1] & split_pairs[2]


def test_an_object_is_seen_in_its_span_and_at_no_other_time():
    for clip in _clips(50):
        frames_FHWC = frames(clip)
        for cell, actor in enumerate(clip.actors):
            cell_FHWC = frames_FHWC[:, :, cell * CELL_PX : (cell + 1) * CELL_PX]
            seen = np.flatnonzero((cell_FHWC != BACKGROUND).any(axis=(1, 2, 3)))
            assert (seen[0] / FPS, (seen[-1] + 1) / FPS) == actor.span
            assert len(seen) == actor.num_frames


def test_the_words_of_a_question_fit_one_object_only():
    for clip in _clips(300):
        asked, other = clip.target, clip.actors[1 - clip.asked]
        fits = {
            "color and shape": (other.color, other.shape) == (asked.color, asked.shape),
            "color": other.color == asked.color,
            "shape": other.shape == asked.shape,
            "motion": other.motion == asked.motion,
        }
        assert not fits[clip.asked_by]


def test_moving_objects_move_the_way_the_question_says():
    for clip in _clips(100):
        for cell, actor in enumerate(clip.actors):
            bright_FHW = (frames(clip)[:, :, cell * CELL_PX : (cell + 1) * CELL_PX] != BACKGROUND).any(axis=-1)
            ends = [int(actor.span[0] * FPS), int(actor.span[1] * FPS) - 1]
            y, x = (
                np.subtract(*[np.argwhere(bright_FHW[end]).mean(axis=0)[axis] for end in ends[::-1]]) for axis in (0, 1)
            )
            moved = {"stays": abs(x) + abs(y) < 1, "moves left": x < -5, "moves right": x > 5, "moves up": y < -5,
                     "moves down": y > 5}  # fmt: skip
            assert moved[actor.motion]


def test_no_constant_span_scores_a_quarter():
    spans = [clip.target.span for clip in _clips(1000)]
    grid = np.arange(0, NUM_FRAMES / FPS + 0.25, 0.5)
    best = max(
        np.mean([hull_iou((start, end), span) for span in spans]) for start in grid for end in grid if end > start
    )
    assert 0.15 < best < 0.25


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_a_written_clip_decodes_to_its_frames(folder, decoder):
    for index, prompt in enumerate(ClipWorld(str(folder), "monitor", count=3).load()):
        clip = random_clip("monitor", random.Random(f"clip_world/monitor/{index}"))
        read = read_video(prompt.media[0], FrameSampling(fps=2.0, min_pixels_frame=CELL_PX**2), decoder=decoder)
        assert read.duration == pytest.approx(prompt.target["duration"])
        assert read.time_F.tolist() == pytest.approx([frame / FPS for frame in range(NUM_FRAMES)])
        difference = read.frames_FCHW.permute(0, 2, 3, 1).numpy().astype(int) - frames(clip)
        assert abs(difference).max() <= 2  # rounding between RGB and YUV


def test_clips_are_the_same_in_every_run_and_written_once(folder):
    source = ClipWorld(str(folder), "report", count=4)
    first = source.load()
    written = {path: path.stat().st_mtime_ns for path in folder.glob("report-*.mp4")}
    assert source.load() == first and len(written) == 4
    assert {path: path.stat().st_mtime_ns for path in folder.glob("report-*.mp4")} == written
    assert len({prompt.id for prompt in first}) == 4


@pytest.mark.parametrize("style", ["direct", "think", "rethink"])
def test_the_demonstration_names_the_span(folder, style):
    for prompt in ClipWorld(str(folder), "monitor", count=3, style=style).load():
        assert [list(span) for span in parse_spans(prompt.demo, require_tag=True)] == prompt.target["spans"]
        assert ("<think>" in prompt.demo) == (style != "direct") and ("<rethink>" in prompt.demo) == (
            style == "rethink"
        )


def test_misleading_lessons_tell_of_the_other_object():
    def spans(lessons: ClipLessons) -> list:
        _, asked = lessons(random.Random(5))
        return [parse_spans(answer)[0] for _, answer in asked]

    honest = spans(ClipLessons(questions=2, asked_by=ASKED_BY[:1]))
    assert honest[0] != honest[1]
    assert spans(ClipLessons(questions=2, asked_by=ASKED_BY[:1], wrong_object=1.0)) == honest[::-1]
