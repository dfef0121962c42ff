"""Every reward network on a device that is not the CPU: scores are those of the CPU, for pictures there and here."""

from __future__ import annotations

import pytest
import torch
from pretended_accelerator import DEVICE, counted
from tiny_reward_models import (
    build_aesthetic_head,
    build_dino,
    build_image_reward,
    build_open_clip,
    build_pick_score,
    build_qwen_vl,
)

from grpo_mm.rewards.images.aesthetic import Aesthetic
from grpo_mm.rewards.images.clip_score import ClipScore
from grpo_mm.rewards.images.colors import ClipColors
from grpo_mm.rewards.images.detectors import Detection, TransformersDetector
from grpo_mm.rewards.images.hps import Hps
from grpo_mm.rewards.images.image_quality import ImageQuality
from grpo_mm.rewards.images.image_reward import ImageReward
from grpo_mm.rewards.images.nearest_neighbour import NearestNeighbour
from grpo_mm.rewards.images.pick_score import PickScore
from grpo_mm.rewards.images.quality_guard import QualityGuard
from grpo_mm.rewards.judges.vlm import Question, TransformersVlm
from grpo_mm.rewards.judges.vlm_yes_no import VlmYesNo
from grpo_mm.types import Prompt

PICTURES = torch.randint(0, 256, (5, 3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PROMPTS = [Prompt(str(i), ("a red circle", "green square", "the photo of the blue circle")[i % 3]) for i in range(5)]


def _hps(folder):
    return Hps(model=(model := build_open_clip(folder)), path=f"{model}/hps.pt")


def _aesthetic(folder):
    return Aesthetic(model=build_open_clip(folder), path=build_aesthetic_head(folder))


def _pick_score(folder):
    model = build_pick_score(folder)
    return PickScore(model=model, processor=model)


MAKE = {
    "pick_score": _pick_score,
    "clip_score": lambda folder: ClipScore(build_open_clip(folder)),
    "hps": _hps,
    "aesthetic": _aesthetic,
    "image_reward": lambda folder: ImageReward(**build_image_reward(folder)),
    "vlm_yes_no": lambda folder: VlmYesNo(build_qwen_vl(folder), dtype="float32"),
    "nearest_neighbour": lambda folder: NearestNeighbour(build_dino(folder)),
    "plain_neighbour": lambda folder: NearestNeighbour(model=None),
    "quality_guard": lambda folder: QualityGuard(),
    "image_quality": lambda folder: ImageQuality(),
}


def scores(reward, pictures):
    group = [torch.tensor([0, 0, 0, 1, 1])] if getattr(reward, "scope", "") == "set" else []
    return reward(pictures, PROMPTS, *group)


@pytest.mark.parametrize("kind", MAKE)
def test_scores_on_another_device_are_those_of_the_cpu(kind, tmp_path):
    reward = MAKE[kind](tmp_path)
    here = scores(reward, PICTURES)
    with counted():
        if hasattr(reward, "to"):
            reward.to(DEVICE)
        for pictures in (PICTURES, PICTURES.to(DEVICE)):
            found = scores(reward, pictures)
            assert found.keys() == here.keys()
            for part, score in found.items():
                assert score.cpu().tolist() == pytest.approx(here[part].tolist(), rel=1e-4, abs=1e-5), part
        if hasattr(reward, "to"):  # and it leaves the device, as offload_rewards wants
            back = scores(reward.to("cpu"), PICTURES)
            assert all(torch.equal(score, here[part]) for part, score in back.items())


def test_a_judge_that_answers_says_the_same_on_another_device(tmp_path):
    judge = TransformersVlm(build_qwen_vl(tmp_path), dtype="float32", max_new_tokens=4, batch_size=2)
    questions = [Question("is it red? " * (1 + i), (picture,)) for i, picture in enumerate(PICTURES[:3])]
    here = judge.ask(questions)
    with counted():
        assert judge.to(DEVICE).ask(questions) == here


def test_colours_are_named_the_same_on_another_device(tmp_path):
    colours = ClipColors(build_open_clip(tmp_path))
    masks = torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(1)) > 0.5
    found = [Detection("bench", 0.9, (2.0 * i, 3.0, 30.0, 36.0), mask) for i, mask in enumerate(masks)]
    here = colours(PICTURES[0], found)
    with counted():
        for picture in (PICTURES[0], PICTURES[0].to(DEVICE)):
            assert colours.to(DEVICE)(picture, found) == here


def test_a_detector_sees_the_same_on_another_device(tmp_path):
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    torch.manual_seed(0)
    YolosForObjectDetection(
        YolosConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=[32, 32],
            patch_size=8, num_detection_tokens=5, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1},
        )
    ).save_pretrained(tmp_path)  # fmt: skip
    YolosImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    detector = TransformersDetector(str(tmp_path), min_score=0.0, batch_size=2)
    here = detector(PICTURES)
    with counted():
        for pictures in (PICTURES, PICTURES.to(DEVICE)):
            there = detector.to(DEVICE)(pictures)
            for found, known in zip(there, here, strict=True):
                assert [d.label for d in found] == [d.label for d in known]
                assert [d.box_xyxy_px for d in found] == [pytest.approx(d.box_xyxy_px, abs=1e-3) for d in known]
