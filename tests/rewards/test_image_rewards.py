"""Rewards that look at pixels: CLIP, JPEG size, picture statistics, diversity."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from grpo_mm.config import typed_yaml as config
from grpo_mm.datasets.images.geneval import GenEvalPrompts
from grpo_mm.datasets.images.ocr import OcrPrompts
from grpo_mm.datasets.shared.files import PromptFile
from grpo_mm.datasets.shared.hub import HubPrompts
from grpo_mm.errors import ConfigError
from grpo_mm.looking.diversity import pairwise_distance
from grpo_mm.looking.image_statistics import image_statistics
from grpo_mm.rewards.images.clip_score import Clip, ClipScore, tensor_transform
from grpo_mm.rewards.images.colors import ClipColors
from grpo_mm.rewards.images.detectors import Detection
from grpo_mm.rewards.images.geneval import GenEvalReward
from grpo_mm.rewards.images.image_quality import ImageQuality
from grpo_mm.rewards.images.jpeg import JpegSize, jpeg_size_kb
from grpo_mm.rewards.images.ocr import OcrReward
from grpo_mm.rollout.function_reward import FunctionReward
from grpo_mm.types import Prompt


def smooth_pictures(count: int, height: int = 96, width: int = 128) -> torch.Tensor:
    """Random pictures with structure at many scales, like photographs, [M, 3, H, W]."""
    rng = np.random.default_rng(0)
    layers = [ndimage.gaussian_filter(rng.normal(size=(count, 3, height, width)), (0, 0, s, s)) * s for s in (1, 4, 12)]
    return torch.from_numpy(np.clip(128 + 60 * sum(layers), 0, 255).astype(np.uint8))


def prompts_for(images: torch.Tensor) -> list[Prompt]:
    return [Prompt(str(i), f"picture number {i % 3}") for i in range(len(images))]


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory) -> str:
    """A random open_clip model in a folder, in open_clip's own format."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("clip")
    model_cfg = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(**model_cfg)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return str(folder)


def test_eight_clip_scores_are_the_same_one_by_one(tiny_clip):
    images = smooth_pictures(8)
    reward = ClipScore(model=tiny_clip, batch_size=3)
    reward.check()
    prompts = prompts_for(images)
    together = reward.to("cpu")(images, prompts)["score"]
    alone = [reward(images[i : i + 1], prompts[i : i + 1])["score"].item() for i in range(8)]
    assert together.tolist() == pytest.approx(alone, abs=1e-5)
    assert together.shape == (8,) and together.abs().max() <= 1 and together.std() > 0
    scaled = ClipScore(model=tiny_clip, scale=2.5)(images, prompts)["score"]
    assert scaled.tolist() == pytest.approx((2.5 * together).tolist(), abs=1e-5)


def test_clip_score_is_the_cosine_that_open_clip_gives(tiny_clip):
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tiny_clip}")
    images = smooth_pictures(3)
    prompts = prompts_for(images)
    pixels = torch.stack([transform(Image.fromarray(i.permute(1, 2, 0).numpy())) for i in images])
    with torch.no_grad():
        a, b = model.eval().encode_image(pixels), model.encode_text(tokenizer([p.text for p in prompts]))
    expected = torch.nn.functional.cosine_similarity(a, b)
    assert ClipScore(model=tiny_clip)(images, prompts)["score"].tolist() == pytest.approx(expected.tolist(), abs=2e-3)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(96, 128), (40, 24), (20, 28)])
def test_tensors_are_prepared_as_open_clip_prepares_pictures(mode, size):
    image_transform = pytest.importorskip("open_clip.transform").image_transform
    transform = image_transform(32, is_train=False, resize_mode=mode)
    images = smooth_pictures(2, *size)
    slow = torch.stack([transform(Image.fromarray(i.permute(1, 2, 0).numpy())) for i in images])
    grey_level = 1 / 255 / 0.26
    difference = (tensor_transform(transform, images) - slow).abs()
    assert difference.max() <= 2.02 * grey_level and difference.mean() < 0.3 * grey_level


def test_clip_names_colours_by_the_nearest_text(tiny_clip):
    colors = ClipColors(model=tiny_clip)
    image = smooth_pictures(1)[0]
    detections = [Detection("dog", 0.9, (0, 0, 60, 60)), Detection("dog", 0.8, (-5, 20.4, 200, 90))]
    named = colors(image, detections)
    clip = Clip(tiny_clip, None)
    texts = ["a photo of a {} dog", "a photo of a {}-colored dog", "a photo of a {} object"]
    mean = torch.stack([clip.text_features([t.format(c) for t in texts]).mean(0) for c in ("red", named[0])])
    crop = clip.image_features(image[None, :, 0:60, 0:60])
    similarity = (crop @ torch.nn.functional.normalize(mean, dim=-1).T)[0]
    assert len(named) == 2 and similarity[1] >= similarity[0]
    assert colors(image, []) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "no/such/folder"}, "no such folder. For a model on the hub write hf-hub:no/such/folder"),
        ({"model": "ViT-B-32", "pretrained": "no/such/file.pt"}, "pretrained = 'no/such/file.pt': no such file"),
    ],
)
def test_missing_clip_weights_are_found_before_the_run(settings, message):
    with pytest.raises(ConfigError, match=message):
        ClipScore(**settings).check()


def test_a_folder_that_is_no_clip_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="without open_clip_config.json"):
        ClipScore(model=str(tmp_path)).check()


def test_noise_is_less_compressible_than_a_plain_picture():
    noise = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    plain = torch.full((1, 3, 64, 64), 90, dtype=torch.uint8)
    images = torch.cat([noise, plain])
    large, small = JpegSize()(images, prompts_for(images))["score"].tolist()
    assert large > 4 * small > 0
    compressible = config.build(JpegSize, {"goal": "compressible"})(images, prompts_for(images))
    assert compressible["score"].tolist() == pytest.approx([-large / 500, -small / 500])
    assert compressible["size_kb"].tolist() == pytest.approx([large, small])


def test_jpeg_size_is_the_length_of_the_file():
    image = smooth_pictures(1)[0]
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=95)
    assert jpeg_size_kb(image) == len(buffer.getvalue()) / 1000
    assert jpeg_size_kb(image, quality=50) < jpeg_size_kb(image)
    with pytest.raises(ConfigError, match="quality = 0"):
        JpegSize(quality=0)


def test_statistics_agree_with_scipy():
    images = smooth_pictures(2)
    found = image_statistics(images)
    for row, image in enumerate(images.double().numpy()):
        luma = (image * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(0)
        inside = (slice(1, -1), slice(1, -1))
        slopes = [ndimage.sobel(luma / 255, axis)[inside] / 8 for axis in (0, 1)]
        assert found["luminance"][row].item() == pytest.approx(luma.mean() / 255, rel=1e-4)
        assert found["contrast"][row].item() == pytest.approx(luma.std() / 255, rel=1e-4)
        assert found["sharpness"][row].item() == pytest.approx(ndimage.laplace(luma)[inside].var(), rel=1e-3)
        assert found["edge_density"][row].item() == pytest.approx((np.hypot(*slopes) > 0.1).mean(), abs=1e-3)
        colorful = (image.max(0) - image.min(0)) / image.max(0).clip(1e-6)
        assert found["saturation"][row].item() == pytest.approx(colorful.mean(), rel=1e-4)


def test_known_pictures_have_known_statistics():
    grey = torch.full((1, 3, 8, 8), 51, dtype=torch.uint8)
    red = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    red[:, 0] = 255
    board = (255 * ((torch.arange(8)[:, None] + torch.arange(8)) % 2)).to(torch.uint8).expand(1, 3, 8, 8)
    found = image_statistics(torch.cat([grey, red, board]))
    assert found["luminance"].tolist() == pytest.approx([0.2, 0.299, 0.5], abs=1e-6)
    assert found["contrast"].tolist() == pytest.approx([0, 0, 0.5], abs=1e-6)
    assert found["saturation"].tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    assert found["sharpness"].tolist() == pytest.approx([0, 0, (4 * 255) ** 2], rel=1e-5, abs=1e-4)
    assert found["edge_density"].tolist() == [0, 0, 0]  # no slope two pixels wide
    step = torch.cat([grey[..., :4], torch.full((1, 3, 8, 4), 255, dtype=torch.uint8)], dim=-1)
    assert image_statistics(step)["edge_density"].item() == pytest.approx(2 / 6)


def test_blurring_lowers_sharpness_and_the_batch_does_not_matter():
    images = smooth_pictures(5)
    blurred = torch.from_numpy(ndimage.uniform_filter(images.numpy(), (0, 0, 5, 5)))
    score = ImageQuality(batch_size=2)(images, prompts_for(images))["score"]
    assert (score > 4 * ImageQuality()(blurred, prompts_for(images))["score"]).all()
    assert score.tolist() == pytest.approx(image_statistics(images)["sharpness"].tolist(), rel=1e-5)
    with pytest.raises(ValueError, match="no 3 × 3"):
        image_statistics(images[..., :2])


def test_diversity_is_the_mean_distance_of_pairs():
    levels = torch.tensor([0, 51, 102, 7, 7, 200], dtype=torch.uint8)
    images = levels[:, None, None, None].expand(6, 3, 48, 64)
    found = pairwise_distance(images, torch.tensor([0, 0, 0, 2, 2, 3]))
    # Pairs of group 0 differ by .2, .4 and .2; group 1 is empty, group 3 has one picture.
    assert found[[0, 2]].tolist() == pytest.approx([0.8 / 3, 0], abs=1e-6)
    assert found.isnan().tolist() == [False, True, False, True]


def test_diversity_does_not_see_the_order_of_rows_or_fine_grain():
    images, group = smooth_pictures(6), torch.tensor([0, 0, 0, 1, 1, 1])
    order = torch.randperm(6)
    assert torch.allclose(pairwise_distance(images[order], group[order]), pairwise_distance(images, group))
    grain = torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8)
    assert pairwise_distance(grain, torch.zeros(2, dtype=torch.long)).item() < 0.08


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (ClipScore, {"pretrained": None, "scale": 2.5}),
        (JpegSize, {"goal": "compressible"}),
        (ImageQuality, {"edge_threshold": 0.2}),
        (OcrReward, {"min_confidence": 0.3}),
        (FunctionReward, {"path": "my.module:function", "timeout_seconds": 3.0}),
        (GenEvalReward, {"detector": {"kind": "transformers", "name": "some/detr"}, "aliases": {}}),
        (PromptFile, {"path": "a.txt"}),
        (GenEvalPrompts, {"path": "a.jsonl", "tags": ["counting"]}),
        (OcrPrompts, {"path": "a.txt"}),
        (HubPrompts, {"name": "a/b", "target_fields": ["x"]}),
    ],
)
def test_settings_survive_being_written_to_a_config(cls, settings):
    made = config.build(cls, settings)
    written = config.dump(made)
    assert config.build(cls, written) == made
    with pytest.raises(ConfigError, match="unknown key 'colour'"):
        config.build(cls, {**settings, "colour": 1})
