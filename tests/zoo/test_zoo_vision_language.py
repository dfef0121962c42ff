import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_mm.datasets.worlds.clip_world import FPS, REQUESTS, ClipLessons
from grpo_mm.datasets.worlds.scene_world import SceneLessons, SceneWorld
from grpo_mm.pipelines.vlm.models.positions import follow_authors
from grpo_mm.pipelines.zoo import path
from grpo_mm.pipelines.zoo.supervised_answers import IGNORED, Lesson, answers, encode
from grpo_mm.pipelines.zoo.vision_language import TAGS, Stage, build, save, untrained
from grpo_mm.rewards.answers.tags import tagged_text
from grpo_mm.rewards.text.spans import parse_spans
from grpo_mm.rewards.text.tag_format import follows_template
from grpo_mm.rewards.video.temporal_iou import hull_iou


@pytest.fixture(scope="module")
def tiny():
    return untrained(seed=1)


def _clips(count: int, split: str = "report", **settings) -> list[Lesson]:
    rng, world = random.Random(3), ClipLessons(split, questions=1, **settings)
    return [Lesson(frames, tuple(asked), float(FPS)) for frames, asked in (world(rng) for _ in range(count))]


def _scenes(count: int, split: str = "report", **settings) -> list[Lesson]:
    rng, world = random.Random(3), SceneLessons(split, questions=1, **settings)
    return [Lesson(frames, tuple(asked)) for frames, asked in (world(rng) for _ in range(count))]


@given(st.text(max_size=40))
@settings(max_examples=100)
def test_any_text_survives_the_tokenizer(tiny, text):
    tokenizer = tiny[1].tokenizer
    normal = tokenizer.backend_tokenizer.normalizer.normalize_str(text)
    assert tokenizer.decode(tokenizer(text).input_ids) == normal


def test_words_tags_and_digits_of_the_worlds_are_one_token_each(tiny):
    tokenizer = tiny[1].tokenizer
    pieces = [tokenizer.decode([i]) for i in tokenizer("<think> the red circle is at <bbox>[4, 26]</bbox>").input_ids]
    assert pieces == ["<think>", " the", " red", " circle", " is", " at", " ", "<bbox>", "[", "4", ",", " ", "2", "6", "]", "</bbox>"]  # fmt: skip
    assert all(len(tokenizer(tag).input_ids) == 1 for tag in TAGS)
    for lesson in _clips(30, styles={"direct": 1}) + _scenes(30, styles={"direct": 1}):
        for text in lesson.asked[0][0].split(f"<{lesson.kind}>"):
            assert len(tokenizer(text).input_ids) == len(re.findall(r"\w+|[^\w\s]", text))


def test_the_chat_form_is_that_of_qwen(tiny):
    text = tiny[1].apply_chat_template(
        [
            {"role": "system", "content": "Look."},
            {"role": "user", "content": [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "When?"}]},
            {"role": "assistant", "content": "Now."},
        ]
    )
    assert text == (
        "<|im_start|>system\nLook.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|><|vision_start|><|video_pad|><|vision_end|>When?"
        "<|im_end|>\n<|im_start|>assistant\nNow.<|im_end|>\n"
    )


def test_a_saved_model_loads_by_the_plain_auto_classes(tiny, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    save(*tiny, tmp_path)
    model, processor = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    clips = _clips(2)
    own, loaded = (encode(clips, *pair).losses(pair[0]) for pair in (tiny, (model, processor)))
    torch.testing.assert_close(own, loaded, rtol=1e-5, atol=1e-5)  # memory of a mapped file is aligned otherwise


@pytest.mark.parametrize("lessons", [_clips(3), _scenes(3)], ids=["clips", "scenes"])
def test_training_sees_what_the_processor_makes(tiny, lessons):
    from transformers.video_utils import VideoMetadata

    model, processor = tiny
    batch = encode(lessons, model, processor)
    is_video = lessons[0].fps is not None
    for row, lesson in enumerate(lessons):
        media = torch.from_numpy(lesson.frames_FHWC).permute(0, 3, 1, 2)
        count = len(media)
        kwargs = {"images": [media[0]]}
        if is_video:
            kwargs = {"videos": [media], "video_metadata": [VideoMetadata(total_num_frames=count, fps=FPS, frames_indices=list(range(count)))]}  # fmt: skip
        question, answer = lesson.asked[0]
        text = processor.apply_chat_template(lesson.chat(question), add_generation_prompt=True, tokenize=False)
        inputs = processor(text=[text + answer + "<|im_end|>\n"], return_tensors="pt", **kwargs)
        ids_L, length = inputs["input_ids"][0], int((batch.labels_BL[row] != IGNORED).nonzero()[-1]) + 1
        assert batch.ids_BL[row, :length].tolist() == ids_L[:length].tolist()
        learnt = batch.labels_BL[row][batch.labels_BL[row] != IGNORED]
        assert processor.tokenizer.decode(learnt) == answer + "<|im_end|>"
        pixels = inputs["pixel_values_videos" if is_video else "pixel_values"]
        torch.testing.assert_close(batch.patches_UKD[row], pixels, rtol=0, atol=1e-5)
        grid = "video_grid_thw" if is_video else "image_grid_thw"
        assert batch.grid_U3[row].tolist() == inputs[grid][0].tolist()
        position_31L, _ = model.model.get_rope_index(
            inputs["input_ids"], inputs["mm_token_type_ids"], **{grid: inputs[grid]},
            second_per_grid_ts=inputs.get("second_per_grid_ts"),
        )  # fmt: skip
        assert torch.equal(batch.position_3BL[:, row, :length], position_31L[:, 0, :length])
        labels_1L = torch.full_like(inputs["input_ids"], IGNORED)
        labels_1L[0, length - len(learnt) + 1 : length + 1] = learnt
        own = encode([lesson], model, processor).losses(model).mean()
        torch.testing.assert_close(own, model(**inputs, labels=labels_1L).loss, rtol=1e-4, atol=1e-4)


def test_questions_of_one_lesson_share_its_picture(tiny):
    model, processor = tiny
    frames, asked = SceneLessons("train", questions=3)(random.Random(0))
    together = encode([Lesson(frames, tuple(asked))], model, processor).losses(model)
    apart = [encode([Lesson(frames, (pair,))], model, processor).losses(model) for pair in asked]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-4)


def _short_build(folder: Path) -> list[dict]:
    world = ClipLessons("train", asked_by=("color",), styles={"direct": 1})

    def draw(rng: random.Random) -> Lesson:
        frames, asked = world(rng)
        return Lesson(frames, tuple(asked), float(FPS))

    build(
        folder, stages=(Stage("short", (draw,), steps=24, lr=(2e-3, 2e-3)),), score=lambda *_: {"seen": 1.0},
        lessons=4, pool=16, warm_up=4, save_every=8,
    )  # fmt: skip
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


def test_a_short_build_learns_and_leaves_a_curve(tmp_path):
    curve = _short_build(tmp_path / "a")
    assert [row["step"] for row in curve] == [8, 16, 24] and all(row["seen"] == 1.0 for row in curve)
    assert curve[-1]["loss_video"] < curve[0]["loss_video"]
    again = _short_build(tmp_path / "b")
    assert [row["loss_video"] for row in again] == [row["loss_video"] for row in curve]


@pytest.fixture(scope="module")
def shipped():
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = path("vision_language")
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    follow_authors(model)
    return model, AutoProcessor.from_pretrained(folder)


def _iou(text: str, lesson: Lesson) -> float:
    spans = parse_spans(text, require_tag=True)
    return hull_iou(spans[0], parse_spans(lesson.asked[0][1])[0]) if spans else 0.0


def test_the_shipped_model_looks_at_the_clip_and_has_room_to_improve(shipped):
    clips = _clips(128, styles={"direct": 1})
    score = np.mean([_iou(text, clip) for text, clip in zip(answers(*shipped, clips), clips)])
    swapped = [Lesson(other.frames_FHWC, clip.asked, clip.fps) for clip, other in zip(clips, clips[1:] + clips[:1])]
    score_swapped = np.mean([_iou(text, clip) for text, clip in zip(answers(*shipped, swapped), clips)])
    assert 0.25 < score < 0.6 and score_swapped < score - 0.1


def test_the_shipped_model_answers_in_the_form_asked_for(shipped):
    forms = {"direct": ("answer",), "think": ("think", "answer")}
    assert set(forms) < set(REQUESTS)
    torch.manual_seed(0)
    for style, elements in forms.items():
        for lessons in (_clips(32, styles={style: 1}), _scenes(32, styles={style: 1})):
            texts = answers(*shipped, lessons, do_sample=True, top_k=0)
            assert np.mean([follows_template(text, elements) for text in texts]) > 0.9


def _report_scenes(count: int, style: str) -> tuple[list[Lesson], list]:
    prompts = SceneWorld("report", count=count, style=style).load()
    return [Lesson(np.array(prompt.media[0])[None], ((prompt.text, prompt.demo),)) for prompt in prompts], prompts


def _accuracy(texts: list[str], prompts: list) -> float:
    return np.mean([tagged_text(text, "answer") == prompt.target["answer"] for text, prompt in zip(texts, prompts)])


def _box_iou(a, b) -> float:
    across, down = (max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return across * down / (sum(areas) - across * down)


def test_the_shipped_model_looks_at_the_scene_and_has_room_to_improve(shipped):
    scenes, prompts = _report_scenes(96, "think")
    texts = answers(*shipped, scenes)
    blank = [Lesson(np.zeros_like(scene.frames_FHWC), scene.asked) for scene in scenes]
    score = _accuracy(texts, prompts)
    assert 0.4 < score < 0.7 and _accuracy(answers(*shipped, blank), prompts) < score - 0.08
    best = []
    for text, prompt in zip(texts, prompts):
        told = [[int(edge) for edge in box.split(", ")] for box in re.findall(r"<bbox>\[([\d, ]+)\]</bbox>", text)]
        best += [max((_box_iou(box, true) for box in told), default=0.0) for true in prompt.target["boxes"]]
    assert np.mean(best) > 0.35


def test_the_shipped_model_at_times_answers_what_it_did_not_think(shipped):
    torch.manual_seed(0)
    texts = answers(*shipped, _report_scenes(96, "think")[0], do_sample=True, top_k=0)
    agree = np.mean([tagged_text(text, "think").split()[-1:] == [tagged_text(text, "answer")] for text in texts])
    assert 0.45 < agree < 0.9


def test_the_shipped_model_thinks_twice_about_scenes_when_asked(shipped):
    texts = answers(*shipped, _report_scenes(48, "rethink")[0])
    assert np.mean([follows_template(text, ("think", "rethink", "answer")) for text in texts]) > 0.9


def test_the_shipped_folder_is_small_and_holds_its_curve():
    folder: Path = path("vision_language")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 6e6
    assert len((folder / "curve.jsonl").read_text().splitlines()) > 3
