"""The shape world draws what its prompts say, its verifier reads it back, and the shipped model is mediocre at it."""

import dataclasses
import random

import numpy as np
import pytest
import torch

from grpo_mm.datasets.worlds import shape_world as world
from grpo_mm.datasets.worlds.shape_world import CaptionedScenes, Scene, ShapeWorldPrompts, Thing, random_scene, render
from grpo_mm.pipelines import zoo
from grpo_mm.rewards.images import shape_world as verifier
from grpo_mm.rewards.images.shape_world import ShapeWorldReward, detect, score

TARGET = {
    "things": [{"shape": "circle", "color": "red"}, {"shape": "square", "color": "blue"}],
    "relation": "left of",
}
CIRCLE, SQUARE = Thing("circle", "red", 0.25, 0.5, 0.36), Thing("square", "blue", 0.75, 0.5, 0.36)


def _scenes(count: int, seed: int = 0):
    rng = random.Random(seed)
    return [(spec, random_scene(spec, rng)) for spec in rng.choices(world.specs("train"), k=count)]


def _recolored(thing: Thing, color: str) -> Thing:
    return dataclasses.replace(thing, color=color)


def _scored(*things: Thing) -> dict[str, float]:
    return score(render(Scene(things)), TARGET)


def test_splits_share_no_pair_and_cover_all():
    def pairs(split):
        return {frozenset((thing["color"], thing["shape"]) for thing in spec["things"]) for spec in world.specs(split)}

    train, monitor, report = pairs("train"), pairs("monitor"), pairs("report")
    assert not train & monitor and not train & report and not monitor & report
    assert len(train | monitor | report) == 135
    assert len(world.specs("monitor")) == len(world.specs("report")) == 288


def test_prompts_are_stable_and_unique():
    prompts = [prompt for split in ("train", "monitor", "report") for prompt in ShapeWorldPrompts(split).load()]
    assert len({prompt.id for prompt in prompts}) == len({prompt.text for prompt in prompts}) == 1080
    first = ShapeWorldPrompts("monitor", limit=1).load()[0]
    assert first.text == world.caption(first.target) and first == world.prompts("monitor")[0]


def test_scenes_satisfy_their_spec():
    for spec, scene in _scenes(100):
        assert [(t.shape, t.color) for t in scene.things] == [(t["shape"], t["color"]) for t in spec["things"]]
        assert world.relation_holds(*scene.things, spec["relation"])


def test_an_impossible_scene_is_refused_with_advice():
    with pytest.raises(ValueError, match="smaller or fewer"):
        random_scene({"things": TARGET["things"] * 10}, random.Random(0), tries=50)


def test_captions_are_wrong_as_often_as_asked():
    specs = {world.caption(spec): spec for spec in world.specs("train")}
    images, captions = world.HONEST(32, random.Random(0))
    assert all(score(image, specs[text])["all_correct"] for image, text in zip(images, captions))
    images, captions = world.MISLEADING(200, random.Random(0))
    correct = np.mean([score(image, specs[text])["all_correct"] for image, text in zip(images, captions)])
    assert 0.3 < correct < 0.6


def test_verifier_knows_the_colors_and_relations_of_the_world():
    assert verifier.PALETTE == world.COLORS and verifier.RELATIONS == world.RELATIONS


@pytest.mark.parametrize("size_px", [24, 32, 64])
@pytest.mark.parametrize("noise", [0, 8])
def test_verifier_reads_rendered_scenes(size_px, noise):
    rng = np.random.default_rng(0)
    correct = []
    for spec, scene in _scenes(200):
        noisy = render(scene, size_px) + rng.normal(0, noise, (size_px, size_px, 3))
        correct.append(score(np.clip(noisy, 0, 255).astype(np.uint8), spec)["all_correct"])
    assert np.mean(correct) >= 0.99


def test_detections_are_where_things_are():
    largest, other = detect(render(Scene((CIRCLE, SQUARE)), 64))
    assert (largest.shape, largest.color, other.shape, other.color) == ("square", "blue", "circle", "red")
    assert (largest.x, largest.y, other.x) == pytest.approx((0.75, 0.5, 0.25), abs=0.01)
    assert largest.area == pytest.approx(0.36**2, rel=0.03)


def test_score_of_hand_made_mistakes():
    swapped = dataclasses.replace(CIRCLE, x=0.75), dataclasses.replace(SQUARE, x=0.25)
    assert _scored(CIRCLE, SQUARE) == {"score": 1, "all_correct": 1, "extras": 0}
    assert _scored(*swapped)["score"] == pytest.approx(0.7)
    assert _scored(CIRCLE, dataclasses.replace(SQUARE, shape="circle"))["score"] == pytest.approx(0.825)
    assert _scored() == {"score": 0, "all_correct": 0, "extras": 0}


def test_swapping_colors_lowers_the_score():
    assert _scored(_recolored(CIRCLE, "blue"), _recolored(SQUARE, "red"))["score"] < 0.6


def test_leaving_a_thing_out_pays_no_more_than_the_wrong_color():
    assert _scored(CIRCLE)["score"] <= _scored(CIRCLE, _recolored(SQUARE, "green"))["score"]


def test_an_extra_thing_lowers_the_score():
    extra = _scored(CIRCLE, SQUARE, Thing("circle", "green", 0.5, 0.15, 0.2))
    assert extra["score"] == pytest.approx(0.8) and extra["extras"] == 1 and extra["all_correct"] == 0


def test_fragments_and_blobs_earn_no_shape():
    whole = render(Scene((CIRCLE, SQUARE)))
    torn = whole.copy()
    torn[10:22:3] = world.BACKGROUND
    assert score(torn, TARGET)["score"] < 0.5
    half_red = np.full((32, 32, 3), world.COLORS["red"], np.uint8)
    half_red[:, 16:] = world.COLORS["blue"]
    assert score(half_red, TARGET)["score"] < 0.7 and score(half_red, TARGET)["all_correct"] == 0


def test_verifier_never_raises_on_noise():
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 32):
        images = [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(20)]
        images += [np.full((size, size, 3), value, np.uint8) for value in (0, 27, 128, 255)]
        for image in images:
            result = score(image, TARGET)
            assert 0 <= result["score"] < 0.5 and np.isfinite(list(result.values())).all()


def test_reward_scores_a_batch():
    prompts = ShapeWorldPrompts("train", limit=4).load()
    rng = random.Random(0)
    images = np.stack([render(random_scene(prompt.target, rng)) for prompt in prompts[::-1]])
    images_MCHW = torch.from_numpy(images).permute(0, 3, 1, 2)
    right = ShapeWorldReward()(images_MCHW, prompts[::-1])
    assert right["score"].tolist() == [1.0] * 4 and right["score"].dtype == torch.float32
    assert (ShapeWorldReward()(images_MCHW, prompts)["score"] < 1).all()
    with pytest.raises(ValueError, match="uint8"):
        ShapeWorldReward()(images_MCHW.float(), prompts)


def test_zoo_names_what_it_holds():
    with pytest.raises(ValueError, match="text_to_image"):
        zoo.path("text_to_speech")


@pytest.fixture(scope="module")
def pipe():
    from diffusers import StableDiffusion3Pipeline

    return StableDiffusion3Pipeline.from_pretrained(
        zoo.path("text_to_image"), text_encoder_3=None, tokenizer_3=None, local_files_only=True
    )


def test_shipped_model_renders_well_and_obeys_badly(pipe):
    from grpo_mm.pipelines.zoo.text_to_image import score

    scores = score(pipe, ShapeWorldPrompts("monitor", limit=36).load(), ShapeWorldReward())
    assert 0.35 < scores["score"] < 0.65 and scores["all_correct"] > 0.02


def test_shipped_autoencoder_keeps_shapes(pipe):
    from grpo_mm.pipelines.zoo.autoencoder import decode, encode

    scenes = _scenes(100, seed=1)
    images_NCHW = torch.from_numpy(np.stack([render(scene) for _, scene in scenes])).permute(0, 3, 1, 2)
    decoded = decode(pipe.vae, encode(pipe.vae, images_NCHW)).permute(0, 2, 3, 1).numpy()
    assert np.mean([score(image, spec)["all_correct"] for image, (spec, _) in zip(decoded, scenes)]) >= 0.98


def test_every_word_of_the_prompts_is_one_token(pipe):
    for prompt in ShapeWorldPrompts("report").load():
        assert len(pipe.tokenizer(prompt.text).input_ids) == len(prompt.text.split()) + 2


def test_model_is_built_from_scratch_in_real_format(tmp_path):
    from diffusers import StableDiffusion3Pipeline

    from grpo_mm.pipelines.zoo.text_to_image import build, sample

    draw = CaptionedScenes(size_px=16)
    sizes = {"steps": 1, "misleading_steps": 1, "autoencoder_steps": 3, "pool": 64, "dim": 32, "layers": 1}
    build(tmp_path, draw=draw, draw_misleading=draw, **sizes)
    pipe = StableDiffusion3Pipeline.from_pretrained(tmp_path, text_encoder_3=None, tokenizer_3=None)
    assert sample(pipe, ["a red circle above a blue square"], steps=2).shape == (1, 3, 16, 16)
    assert len((tmp_path / "curve.jsonl").read_text().splitlines()) == 2
