"""GenEval's rule on hand-made detections, against hand-worked numbers."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from grpo_mm.config import typed_yaml as config
from grpo_mm.errors import ConfigError
from grpo_mm.rewards.images.colors import COLORS, PaletteColors, palette_color
from grpo_mm.rewards.images.detectors import (
    Detection,
    OnnxDetector,
    TransformersDetector,
    decode_fastestdet,
    keep_best,
)
from grpo_mm.rewards.images.geneval import GenEvalReward, relations, score_detections
from grpo_mm.types import Prompt


def dogs(*scores: float) -> list[Detection]:
    return [Detection("dog", s, (0, 0, 10, 10)) for s in scores]


def clause(name: str, count: int = 1, **rest) -> dict:
    return {"class": name, "count": count, **rest}


def test_the_count_part_falls_with_the_distance_and_stops_at_zero():
    wanted = {"tag": "two_object", "include": [clause("dog", 2)]}
    for number, score in [(0, 0.0), (1, 0.5), (2, 1.0), (3, 0.5), (4, 0.0), (7, 0.0)]:
        assert score_detections(dogs(*[0.9] * number), wanted)["score"] == score


def test_counting_prompts_want_surer_objects_than_others():
    found = dogs(0.95, 0.9, 0.31, 0.3)
    assert score_detections(found, {"tag": "counting", "include": [clause("dog", 1)]})["score"] == 1
    assert score_detections(found, {"tag": "single_object", "include": [clause("dog", 3)]})["score"] == 1


def test_the_benchmark_allows_more_objects_unless_they_are_excluded():
    three = dogs(0.99, 0.98, 0.97)
    wanted = {"tag": "counting", "include": [clause("dog", 2)]}
    assert score_detections(three, wanted)["strict"] == 1
    assert score_detections(three, wanted)["score"] == 0.5
    assert score_detections(three, {**wanted, "exclude": [clause("dog", 3)]})["strict"] == 0
    assert score_detections(three[:2], {**wanted, "exclude": [clause("dog", 3)]})["strict"] == 1
    assert score_detections(three[:1], wanted)["strict"] == 0


def test_at_most_sixteen_objects_of_a_class_count():
    wanted = {"tag": "two_object", "include": [clause("dog", 16)]}
    assert score_detections(dogs(*[0.9] * 40), wanted)["score"] == 1


def test_a_wrong_count_forfeits_the_colour_and_a_wrong_colour_keeps_the_count():
    def colors(objects):
        return ["red" if d.score > 0.5 else "blue" for d in objects]

    wanted = {"tag": "colors", "include": [clause("dog", 2, color="red")]}
    assert score_detections(dogs(0.9, 0.8), wanted, colors_of=colors)["score"] == 1
    one_red = score_detections(dogs(0.9, 0.4), wanted, colors_of=colors)
    assert (one_red["count"], one_red["color"], one_red["score"], one_red["strict"]) == (1, 0.5, 0.75, 0)
    surplus = score_detections(dogs(0.9, 0.8, 0.4), wanted, colors_of=colors)
    assert (surplus["count"], surplus["color"], surplus["score"]) == (0.5, 0, 0.25)
    assert surplus["strict"] == 1  # the benchmark asks the two surest only
    with pytest.raises(ValueError, match="colors_of is needed"):
        score_detections(dogs(0.9, 0.8), wanted)


def test_position_is_judged_from_box_centres():
    wanted = {"tag": "position", "include": [clause("cat"), clause("dog", position=["left of", 0])]}
    cat = Detection("cat", 0.9, (60, 0, 80, 20))
    left, right = Detection("dog", 0.9, (0, 0, 20, 20)), Detection("dog", 0.9, (90, 0, 110, 20))
    good, bad = score_detections([cat, left], wanted), score_detections([cat, right], wanted)
    assert (good["score"], good["position"], good["strict"]) == (1, 1, 1)
    assert (bad["score"], bad["position"], bad["strict"]) == (pytest.approx(2 / 3), 0, 0)
    assert math.isnan(bad["color"])
    no_cat, two_cats = score_detections([left], wanted), score_detections([cat, cat, left], wanted)
    assert no_cat["score"] == pytest.approx(1 / 3)  # only the dog's count
    assert two_cats["score"] == pytest.approx(1 / 3) and two_cats["strict"] == 1


@pytest.mark.parametrize(
    ("other", "found"),
    [
        ((30, 0, 40, 10), {"left of"}),
        ((0, 30, 10, 40), {"above"}),
        ((30, 30, 40, 40), {"left of", "above"}),
        ((-30, 4, -20, 14), {"right of"}),
        ((2, 0, 12, 10), set()),  # offset 2 is within the slack 0.1 × (10 + 10)
        ((0, 0, 10, 10), set()),
        # offset (-3, 0): 3 - 2 = 1 is left, less than half of 3
        ((3, 0, 13, 10), set()),
        ((4.1, 0, 14.1, 10), {"left of"}),
    ],
)
def test_relations_of_boxes(other, found):
    assert relations((0, 0, 10, 10), other) == found


PALETTE = {
    "red": (220, 20, 30),
    "orange": (255, 140, 0),
    "yellow": (250, 220, 40),
    "green": (40, 150, 60),
    "blue": (40, 80, 220),
    "purple": (128, 0, 128),
    "pink": (255, 170, 190),
    "brown": (139, 69, 19),
    "black": (15, 15, 20),
    "white": (245, 245, 240),
}


@pytest.mark.parametrize("name", COLORS)
def test_plain_colours_are_told_apart(name):
    noise = torch.randint(-12, 13, (3, 500), generator=torch.Generator().manual_seed(0))
    pixels = (torch.tensor(PALETTE[name])[:, None] + noise).clamp(0, 255).to(torch.uint8)
    assert palette_color(pixels) == name


def test_grey_has_no_name_and_neither_has_nothing():
    assert palette_color(torch.full((3, 10), 128, dtype=torch.uint8)) == ""
    assert palette_color(torch.zeros((3, 0), dtype=torch.uint8)) == ""


def picture(*objects: tuple[str, tuple[int, int, int, int]]) -> torch.Tensor:
    image = Image.new("RGB", (128, 96), (120, 120, 120))
    for color, box in objects:
        ImageDraw.Draw(image).ellipse(box, fill=PALETTE[color])
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_the_colour_of_an_object_is_read_in_its_box_or_its_mask():
    image = picture(("red", (10, 10, 50, 50)), ("yellow", (70, 40, 110, 80)))
    boxes = [Detection("x", 1, (10, 10, 50, 50)), Detection("x", 1, (70, 40, 110, 80))]
    assert PaletteColors()(image, boxes) == ["red", "yellow"]
    mask = torch.zeros(96, 128, dtype=torch.bool)
    mask[45:75, 75:105] = True
    assert PaletteColors()(image, [Detection("x", 1, (0, 0, 128, 96), mask)]) == ["yellow"]


class FixedDetector:
    labels = ("motorbike", "dog")

    def __call__(self, images):
        return [[Detection("motorbike", 0.8, (10, 10, 50, 50))] for _ in images]


def test_the_reward_speaks_genevals_class_names_and_leaves_the_rest_unscored(caplog):
    images = torch.stack([picture(("red", (10, 10, 50, 50)))] * 4)
    include = [clause("motorcycle", color="red")]
    prompts = [
        Prompt("0", "a red motorcycle", target={"tag": "colors", "include": include}),
        Prompt("1", "a dog", target={"tag": "single_object", "include": [clause("dog")]}),
        Prompt("2", "a photo without metadata"),
        Prompt("3", "a unicorn", target={"tag": "single_object", "include": [clause("unicorn")]}),
    ]
    scores = GenEvalReward(FixedDetector())(images, prompts)
    assert scores["score"][:2].tolist() == [1, 0] and scores["strict"][:2].tolist() == [1, 0]
    assert scores["score"][2:].isnan().all() and scores["color"].isnan().tolist() == [False, True, True, True]
    assert all(v.dtype == torch.float32 and v.shape == (4,) for v in scores.values())
    assert "does not know unicorn" in caplog.text


def test_detectors_are_named_by_kind_in_a_config():
    settings = {"detector": {"kind": "onnx", "path": "a.onnx", "names_path": "a.names"}, "counting_threshold": 0.5}
    reward = config.build(GenEvalReward, settings)
    assert reward.detector == OnnxDetector("a.onnx", "a.names") and reward.counting_threshold == 0.5
    with pytest.raises(ConfigError, match="path = 'a.onnx': no such file"):
        reward.check()


def test_a_feature_map_becomes_boxes_in_pixels_of_the_picture():
    map_CHW = torch.zeros(5 + 2, 4, 8)
    map_CHW[0, 2, 3] = 0.8  # objectness
    map_CHW[1, 2, 3], map_CHW[2, 2, 3] = math.atanh(0.5), math.atanh(0.25)
    map_CHW[6, 2, 3] = 0.9  # class 1
    map_CHW[3, 2, 3] = math.log(1 / 3)  # sigmoid 1/4
    box, score, label = decode_fastestdet(map_CHW, size=(80, 160))
    best = score.argmax()
    assert best == 2 * 8 + 3 and label[best] == 1 and score[best] == pytest.approx(0.72)
    # centre x (3 + .5) / 8 × 160 = 70, y (2 + .25) / 4 × 80 = 45; width 160 / 4, height 80 / 2
    assert box[best].tolist() == pytest.approx([50, 25, 90, 65])


def test_the_best_of_overlapping_boxes_of_a_class_stays():
    box = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [1, 0, 11, 10], [50, 0, 60, 10]])
    kept = keep_best(
        box, torch.tensor([0.5, 0.9, 0.4, 0.1]), torch.tensor([0, 0, 1, 0]), min_score=0.2, max_overlap=0.5
    )
    assert kept.tolist() == [1, 2]


def test_a_transformers_detector_loads_from_a_folder(tmp_path):
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    torch.manual_seed(0)
    tiny = YolosConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[32, 32],
        patch_size=8,
        num_detection_tokens=5,
        id2label={0: "cat", 1: "dog"},
        label2id={"cat": 0, "dog": 1},
        use_mid_position_embeddings=False,
    )
    YolosForObjectDetection(tiny).save_pretrained(tmp_path)
    YolosImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    detector = TransformersDetector(str(tmp_path), min_score=0.0, batch_size=2)
    detector.check()
    images = torch.randint(0, 256, (3, 3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = detector.to("cpu")(images)
    assert detector.labels == ["cat", "dog"] and [len(f) for f in found] == [5, 5, 5]
    alone = detector(images[2:])[0]
    for one, same in zip(found[2], alone):
        assert one.label == same.label and one.box_xyxy_px == pytest.approx(same.box_xyxy_px, abs=1e-3)
        assert 0 <= one.score <= 1 and -64 <= one.box_xyxy_px[0] <= 64
    with pytest.raises(ConfigError, match="no such folder"):
        TransformersDetector(str(tmp_path / "none")).check()


def test_masks_of_mask2former_become_boxes(tmp_path):
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    tiny = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16, num_queries=4,
        id2label={0: "cat", 1: "dog"},
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(tiny).save_pretrained(tmp_path)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    images = torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8)
    for found in TransformersDetector(str(tmp_path), min_score=0.0)(images):
        assert found
        for one in found:
            left, top, right, bottom = map(int, one.box_xyxy_px)
            assert one.mask_HW.shape == (40, 56) and one.mask_HW.dtype == torch.bool
            assert one.mask_HW.sum() == one.mask_HW[top:bottom, left:right].sum() > 0
            assert one.mask_HW[top:bottom, left].any() and one.mask_HW[bottom - 1, left:right].any()


def test_geneval_metadata_survive_json():
    wanted = {"tag": "position", "include": [clause("cat"), clause("dog", position=["left of", 0])]}
    found = [Detection("cat", 0.9, (60, 0, 80, 20)), Detection("dog", 0.9, (0, 0, 20, 20))]
    assert score_detections(found, json.loads(json.dumps(wanted)))["score"] == 1


def test_either_rule_may_be_the_score():
    """A half-right picture: one of two clauses."""

    class OneDog:
        def __call__(self, items):
            return [[Detection("dog", 0.95, (0, 0, 10, 10))] for _ in items]

    prompt = Prompt("p", "a dog and a cat", target={"tag": "two_object", "include": [
        {"class": "dog", "count": 1}, {"class": "cat", "count": 1}]})  # fmt: skip
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    for rule, score in (("graded", 0.5), ("strict", 0.0)):
        found = GenEvalReward(OneDog(), rule=rule)(images, [prompt])
        assert found["score"].tolist() == [score]
        assert (found["graded"].item(), found["strict"].item()) == (0.5, 0.0)
