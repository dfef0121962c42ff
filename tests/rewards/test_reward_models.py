"""Rewards that are networks: preference models, aesthetics, a vision-language model that is asked, and the guards."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from tiny_reward_models import (
    BERT_WORDS,
    BLIP,
    build_aesthetic_head,
    build_dino,
    build_image_reward,
    build_open_clip,
    build_pick_score,
    build_qwen_vl,
    published_image_reward,
)

from grpo_mm.config import typed_yaml as config
from grpo_mm.errors import ConfigError
from grpo_mm.looking.image_statistics import image_statistics
from grpo_mm.rewards.images.aesthetic import Aesthetic, LinearHead
from grpo_mm.rewards.images.clip_score import Clip
from grpo_mm.rewards.images.hps import Hps, hps_pixels
from grpo_mm.rewards.images.image_reward import MEAN, STD, BlipSize, ImageReward, image_reward_pixels
from grpo_mm.rewards.images.nearest_neighbour import NearestNeighbour, nearest_neighbour_distance
from grpo_mm.rewards.images.pick_score import PickScore
from grpo_mm.rewards.images.quality_guard import QualityGuard, band_score
from grpo_mm.rewards.judges.vlm_yes_no import VlmYesNo, single_tokens
from grpo_mm.rewards.shared.weights import read_tensors
from grpo_mm.types import Prompt

GREY_LEVEL = 1 / 255 / 0.225  # in units of the smallest deviation that any of the models divides by
SIZES = [(48, 64), (40, 24), (20, 28)]


def smooth_pictures(count: int, height: int = 48, width: int = 64) -> torch.Tensor:
    """Random pictures with structure at many scales, like photographs, [M, 3, H, W]."""
    rng = np.random.default_rng(0)
    layers = [ndimage.gaussian_filter(rng.normal(size=(count, 3, height, width)), (0, 0, s, s)) * s for s in (1, 4, 12)]
    return torch.from_numpy(np.clip(128 + 60 * sum(layers), 0, 255).astype(np.uint8))


def pil(images: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


def prompts_for(images: torch.Tensor) -> list[Prompt]:
    texts = ("a photo of the red circle and the blue square", "green square", "the red")
    return [Prompt(str(i), texts[i % 3]) for i in range(len(images))]


def close_to_library(ours: torch.Tensor, slow: torch.Tensor) -> bool:
    difference = (ours - slow).abs()
    return ours.shape == slow.shape and difference.max() <= 2.02 * GREY_LEVEL and difference.mean() < 0.3 * GREY_LEVEL


# ── tiny checkpoints in the formats of the real ones ──


@pytest.fixture(scope="module")
def pick_folder(tmp_path_factory) -> str:
    return build_pick_score(tmp_path_factory.mktemp("pick"))


@pytest.fixture(scope="module")
def open_clip_folder(tmp_path_factory) -> str:
    return build_open_clip(tmp_path_factory.mktemp("open_clip"))


@pytest.fixture(scope="module")
def aesthetic_head(tmp_path_factory) -> str:
    return build_aesthetic_head(tmp_path_factory.mktemp("head"))


@pytest.fixture(scope="module")
def blip(tmp_path_factory) -> dict:
    return build_image_reward(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def vlm_folder(tmp_path_factory) -> str:
    return build_qwen_vl(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory) -> str:
    return build_dino(tmp_path_factory.mktemp("dino"))


NETWORKS = ["pick_score", "hps", "aesthetic", "image_reward", "vlm_yes_no", "nearest_neighbour"]


@pytest.fixture
def make(request):
    """Builds a tiny reward of a kind; settings may be overruled."""

    def build(kind: str, **settings):
        folder = request.getfixturevalue
        match kind:
            case "pick_score":
                return PickScore(**{"model": folder("pick_folder"), "processor": folder("pick_folder"), **settings})
            case "hps":
                return Hps(**{"model": (f := folder("open_clip_folder")), "path": f"{f}/hps.pt", **settings})
            case "aesthetic":
                return Aesthetic(**{"model": folder("open_clip_folder"), "path": folder("aesthetic_head"), **settings})
            case "image_reward":
                return ImageReward(**{**folder("blip"), **settings})
            case "vlm_yes_no":
                return VlmYesNo(**{"model": folder("vlm_folder"), "dtype": "float32", **settings})
            case "nearest_neighbour":
                return NearestNeighbour(**{"model": folder("dino_folder"), **settings})

    return build


def scores_of(reward, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """A set reward sees all pictures as one group."""
    group = [torch.zeros(len(images), dtype=torch.int64)] if getattr(reward, "scope", "") == "set" else []
    return reward(images, prompts_for(images), *group)


# ── what holds for all of them ──


@pytest.mark.parametrize("kind", [kind for kind in NETWORKS if kind != "nearest_neighbour"])
def test_eight_scores_are_the_same_one_by_one(kind, make):
    images = smooth_pictures(8)
    prompts = prompts_for(images)
    reward = make(kind, batch_size=3)
    reward.check()
    together = reward.to("cpu")(images, prompts)
    alone = [reward(images[i : i + 1], prompts[i : i + 1]) for i in range(8)]
    for part, score in together.items():
        # A raw score of CLIP is a hundred cosines: ten ulps of it are 4e-5.
        assert score.tolist() == pytest.approx([one[part].item() for one in alone], rel=1e-5, abs=1e-5)
        assert score.shape == (8,) and score.dtype == torch.float32 and not score.requires_grad
    assert together["score"].std() > 1e-4


def test_features_are_the_same_one_by_one_and_do_not_depend_on_the_batch(make):
    images = smooth_pictures(8)
    reward = make("nearest_neighbour", batch_size=3)
    reward.check()
    group = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])
    small, large = (make("nearest_neighbour", batch_size=b)(images, [], group)["score"] for b in (1, 8))
    assert reward(images, [], group)["score"].tolist() == pytest.approx(small.tolist(), abs=1e-5)
    assert large.tolist() == pytest.approx(small.tolist(), abs=1e-5)
    assert (small > 1e-4).all() and small.dtype == torch.float32


@pytest.mark.parametrize("kind", NETWORKS)
def test_nothing_is_loaded_before_it_is_needed(kind, make):
    reward = make(kind)
    reward.check()
    held = [v for v in vars(reward).values() if isinstance(v, torch.nn.Module)]
    assert held == [] and getattr(reward, "_model", None) is None
    assert reward.to("cpu") is reward
    assert config.build(type(reward), config.dump(reward)) == reward


@pytest.mark.parametrize("kind", [kind for kind in NETWORKS if kind != "aesthetic"])
def test_bfloat16_weights_give_float32_scores_near_the_exact_ones(kind, make):
    images = smooth_pictures(4)
    exact, rough = (scores_of(make(kind, dtype=dtype), images)["score"] for dtype in ("float32", "bfloat16"))
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
    assert (rough - exact).abs().max() < 0.1 * max(1.0, exact.abs().max())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", [*NETWORKS, "quality_guard", "plain_neighbour"])
def test_scores_on_the_gpu_are_those_of_the_cpu(kind, make):
    images = smooth_pictures(6)
    plain = {"quality_guard": QualityGuard, "plain_neighbour": lambda: NearestNeighbour(model=None)}
    reward = plain[kind]() if kind in plain else make(kind)
    expected = scores_of(reward, images)
    if hasattr(reward, "to"):
        reward.to("cuda")
        for on in (images, images.cuda()):
            found = scores_of(reward, on)
            assert all(part.is_cuda for part in found.values())
            for part, score in found.items():
                assert score.tolist() == pytest.approx(expected[part].tolist(), rel=2e-2, abs=2e-2)
        reward.to("cpu")
    assert scores_of(reward, images)["score"].tolist() == pytest.approx(expected["score"].tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("pick_score", {"model": "./no/such/folder"}, "model = './no/such/folder': no such folder"),
        ("pick_score", {"processor": "a/b/c"}, "processor = 'a/b/c': no such folder"),
        (
            "hps",
            {"path": "no/such/file.pt"},
            "path = 'no/such/file.pt': no such file. For a file on the hub write hf-hub:",
        ),
        ("hps", {"path": "hf-hub:xswu/HPSv2"}, "wanted hf-hub:organisation/name/file"),
        ("hps", {"model": "./nowhere"}, "no such folder"),
        ("aesthetic", {"path": "no/such/head.pth"}, "no such file"),
        ("aesthetic", {"model": "./nowhere"}, "no such folder"),
        ("image_reward", {"path": "no.pt"}, "no such file"),
        ("image_reward", {"tokenizer": "/no/such/folder"}, "tokenizer = '/no/such/folder': no such folder"),
        ("vlm_yes_no", {"model": "/no/such/folder"}, "no such folder"),
        ("nearest_neighbour", {"model": "/no/such/folder"}, "no such folder"),
    ],
)
def test_what_is_missing_is_found_before_the_run(kind, settings, message, make):
    with pytest.raises(ConfigError, match=message):
        make(kind, **settings).check()


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="a folder without config.json"):
        VlmYesNo(model=str(tmp_path)).check()


def test_a_package_that_is_not_installed_is_named(monkeypatch, make):
    reward = make("pick_score")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="transformers not installed; pip install transformers"):
        reward.check()


def test_the_defaults_are_names_on_the_hub_and_need_no_network_to_check():
    for reward in (PickScore(), Hps(), Aesthetic(), ImageReward(), VlmYesNo(), NearestNeighbour()):
        reward.check()


# ── pictures are prepared as the authors do ──


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["pick_score", "nearest_neighbour"])
def test_pictures_are_prepared_as_the_library_prepares_pil_pictures(kind, size, make):
    from transformers import AutoImageProcessor

    images, reward = smooth_pictures(3, *size), make(kind)
    prepare = AutoImageProcessor.from_pretrained(reward.model)
    slow = torch.cat([prepare(images=[picture], return_tensors="pt")["pixel_values"] for picture in pil(images)])
    assert reward.pixels(images).tolist() == slow.tolist()


@pytest.mark.parametrize("size", SIZES)
def test_pictures_for_a_chat_model_are_prepared_by_its_own_processor(size, make):
    images, reward = smooth_pictures(2, *size), make("vlm_yes_no")
    reward.to("cpu")
    inputs = reward.inputs(images, ["is it red?", "no"])
    slow = reward._processor.image_processor(images=pil(images), return_tensors="pt")
    assert torch.equal(inputs["pixel_values"], slow["pixel_values"])
    lengths = inputs["attention_mask"].sum(1)
    assert lengths[0] > lengths[1] and inputs["attention_mask"][1, 0] == 0 and inputs["attention_mask"][:, -1].all()


@pytest.mark.parametrize("size", [*SIZES, (32, 32), (32, 20)])
def test_hps_sees_the_whole_picture_on_black(size):
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    from open_clip.transform import image_transform
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as V

    images = smooth_pictures(3, *size)
    found = hps_pixels(images, size_px=32)
    one_by_one = []
    for picture in pil(images):
        tensor = V.to_tensor(picture)
        height, width = (round(side * 32 / max(size)) for side in size)
        tensor = V.resize(tensor, [height, width], InterpolationMode.BICUBIC)
        rows, columns = 32 - height, 32 - width
        tensor = V.pad(tensor, [columns // 2, rows // 2, columns - columns // 2, rows - rows // 2], fill=0)
        one_by_one.append(V.normalize(tensor, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    assert torch.allclose(found, torch.stack(one_by_one), atol=1e-5)
    # open_clip's own letterbox rounds to grey levels and cuts at black and white.
    letterbox = image_transform(32, is_train=False, resize_mode="longest")
    mean, std = (torch.tensor(v)[:, None, None] for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    low, high = -mean / std, (1 - mean) / std
    assert close_to_library(found.clamp(low, high), torch.stack([letterbox(picture) for picture in pil(images)]))


@pytest.mark.parametrize("size", SIZES)
def test_image_reward_prepares_pictures_as_its_authors_do(size):
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    images = smooth_pictures(3, *size)
    colours = Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    steps = Compose([Resize(32, InterpolationMode.BICUBIC), CenterCrop(32), ToTensor(), colours])
    slow = torch.stack([steps(picture) for picture in pil(images)])
    assert close_to_library(image_reward_pixels(images, size_px=32), slow)


# ── scores are the published arithmetic ──


def test_pick_score_is_the_scaled_cosine_over_the_divisor(make, pick_folder):
    from transformers import AutoModel, AutoProcessor

    images = smooth_pictures(3)
    prompts = prompts_for(images)
    model, processor = AutoModel.from_pretrained(pick_folder), AutoProcessor.from_pretrained(pick_folder)
    raw = []
    with torch.no_grad():
        for picture, prompt in zip(pil(images), prompts):
            inputs = processor(images=[picture], text=[prompt.text], return_tensors="pt")
            raw.append(model(**inputs).logits_per_image.item())
    found = make("pick_score")(images, prompts)
    assert found["raw"].tolist() == pytest.approx(raw, abs=1e-3)
    assert found["score"].tolist() == pytest.approx([value / 26 for value in raw], abs=1e-4)
    assert make("pick_score", divisor=100)(images, prompts)["score"].tolist() == pytest.approx(
        [value / 100 for value in raw], abs=1e-4
    )
    with pytest.raises(ConfigError, match="divisor = 0"):
        make("pick_score", divisor=0)


def test_a_prompt_longer_than_the_context_is_cut(make):
    images = smooth_pictures(1)
    long = Prompt("0", "a photo of the red circle and " * 30)
    for kind in ("pick_score", "hps", "image_reward"):
        assert make(kind)(images, [long])["score"].isfinite().all()


def test_hps_is_the_cosine_that_open_clip_gives(make, open_clip_folder):
    import open_clip

    images = smooth_pictures(3)
    prompts = prompts_for(images)
    model = open_clip.create_model(f"local-dir:{open_clip_folder}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{open_clip_folder}")([prompt.text for prompt in prompts])
    with torch.no_grad():
        expected = F.cosine_similarity(model.encode_image(hps_pixels(images, size_px=32)), model.encode_text(tokens))
    found = make("hps")(images, prompts)["score"]
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    unsmoothed = make("hps", antialias=False)(images, prompts)["score"]
    assert not torch.allclose(found, unsmoothed, atol=1e-4)


def test_weights_may_also_be_safetensors(make, open_clip_folder, tmp_path):
    from safetensors.torch import save_file

    save_file(
        {k: v.contiguous() for k, v in read_tensors(f"{open_clip_folder}/hps.pt").items()}, tmp_path / "w.safetensors"
    )
    images = smooth_pictures(2)
    expected = make("hps")(images, prompts_for(images))["score"]
    found = make("hps", path=str(tmp_path / "w.safetensors"))(images, prompts_for(images))["score"]
    assert torch.equal(found, expected)


def test_the_aesthetic_head_is_one_affine_map_of_unit_features(make, open_clip_folder, aesthetic_head):
    images = smooth_pictures(3)
    tensors = torch.load(aesthetic_head, weights_only=True)
    value = Clip(open_clip_folder, None).image_features(images).double()
    assert value.norm(dim=-1).tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    for index in (0, 2, 4, 6, 7):
        value = value @ tensors[f"layers.{index}.weight"].double().T + tensors[f"layers.{index}.bias"].double()
    assert make("aesthetic")(images, [])["score"].tolist() == pytest.approx(value[:, 0].tolist(), abs=1e-4)


def test_the_head_sums_what_its_layers_pass_on():
    head = LinearHead(2).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        for index in (0, 2, 4, 6, 7):
            head.layers[index].weight[0, 0] = 2.0
            head.layers[index].bias[0] = -1.0
    # x -> 2 x - 1, five times: negative values pass, so there is no activation between.
    assert head(torch.tensor([[3.0, 9.0], [-1.0, 0.0]])).tolist() == [65.0, -63.0]


def slow_image_reward(w: dict[str, torch.Tensor], size: BlipSize, pixels, token_ids: list[int]) -> float:
    """The original composition by the original names, one picture [3, H, W] and one prompt without padding."""

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name, x, eps):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def attend(q, k, v, heads):
        q, k, v = (t.reshape(len(t), heads, -1).transpose(0, 1) for t in (q, k, v))
        mixed = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        return mixed.transpose(0, 1).flatten(1)

    eye, read = "blip.visual_encoder", "blip.text_encoder"
    patches = F.conv2d(
        pixels[None], w[f"{eye}.patch_embed.proj.weight"], w[f"{eye}.patch_embed.proj.bias"], size.patch_px
    )
    x = torch.cat([w[f"{eye}.cls_token"][0], patches[0].flatten(1).T]) + w[f"{eye}.pos_embed"][0]
    for i in range(size.image_layers):
        block = f"{eye}.blocks.{i}"
        mixed = attend(*linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x, 1e-6)).chunk(3, -1), size.image_heads)
        x = x + linear(f"{block}.attn.proj", mixed)
        x = x + linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x, 1e-6))))
    image = norm(f"{eye}.norm", x, 1e-6)
    t = w[f"{read}.embeddings.word_embeddings.weight"][token_ids]
    t = norm(
        f"{read}.embeddings.LayerNorm", t + w[f"{read}.embeddings.position_embeddings.weight"][: len(token_ids)], 1e-12
    )
    for i in range(size.text_layers):
        layer = f"{read}.encoder.layer.{i}"
        for kind, source in (("attention", None), ("crossattention", image)):
            at = f"{layer}.{kind}"
            keys = t if source is None else source
            mixed = attend(
                linear(f"{at}.self.query", t),
                linear(f"{at}.self.key", keys),
                linear(f"{at}.self.value", keys),
                size.text_heads,
            )
            t = norm(f"{at}.output.LayerNorm", linear(f"{at}.output.dense", mixed) + t, 1e-12)
        wide = F.gelu(linear(f"{layer}.intermediate.dense", t))
        t = norm(f"{layer}.output.LayerNorm", linear(f"{layer}.output.dense", wide) + t, 1e-12)
    head = t[0]
    for index in (0, 2, 4, 6, 7):
        head = linear(f"mlp.layers.{index}", head)
    return head.item()


def test_image_reward_is_the_published_network_under_its_published_names(make):
    images = smooth_pictures(3)
    prompts = prompts_for(images)
    weights = published_image_reward(BLIP)
    pixels = image_reward_pixels(images, size_px=32)
    ids = [[2, *(BERT_WORDS.index(word) for word in prompt.text.split()), 3] for prompt in prompts]
    raw = [slow_image_reward(weights, BLIP, one, tokens) for one, tokens in zip(pixels, ids)]
    found = make("image_reward")(images, prompts)
    assert found["raw"].tolist() == pytest.approx(raw, abs=1e-4)
    assert found["score"].tolist() == pytest.approx([(value - 0.16717363) / 1.0333395 for value in raw], abs=1e-4)
    assert (MEAN, STD) == (0.16717362830052426, 1.0333394966054072)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("blip.visual_encoder.blocks.1.norm2.bias"),
            r"Missing.*image.encoder.layers.1.layer_norm2.bias",
        ),
        (lambda w: w.update({"blip.extra": torch.zeros(1)}), r"Unexpected.*blip.extra"),
        (lambda w: w.update({"mlp.layers.7.bias": torch.zeros(2)}), r"size mismatch for head.layers.7.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message, make, tmp_path):
    weights = published_image_reward(BLIP)
    change(weights)
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=f"(?s)does not hold the weights of this reward.*{message}"):
        make("image_reward", path=str(tmp_path / "w.pt")).to("cpu")


def test_a_file_that_could_run_code_is_not_read(tmp_path):
    torch.save({"state_dict": {}, "settings": BLIP}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="holds more than tensors"):
        read_tensors(str(tmp_path / "w.pt"))


def test_a_chat_model_is_asked_for_the_first_token(make, vlm_folder):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    images = smooth_pictures(2)
    prompts = prompts_for(images)
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(vlm_folder),
        AutoProcessor.from_pretrained(vlm_folder),
    )
    found = make("vlm_yes_no")(images, prompts)
    for row, (picture, prompt) in enumerate(zip(pil(images), prompts)):
        text = (
            "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Does this image show "
            f"{prompt.text}? Answer yes or no.<|im_end|>\n<|im_start|>assistant\n"
        )
        with torch.no_grad():
            logits = model(**processor(text=[text], images=[picture], return_tensors="pt")).logits[0, -1]
        p = logits.float().softmax(-1)
        yes, no = (sum(p[processor.tokenizer.convert_tokens_to_ids(token)].item() for token in tokens)
                   for tokens in (["yes", "Yes"], ["no", "Ġno"]))  # fmt: skip
        assert found["p_yes"][row].item() == pytest.approx(yes, abs=1e-6)
        assert found["p_no"][row].item() == pytest.approx(no, abs=1e-6)
        assert found["score"][row].item() == pytest.approx(yes / (yes + no), abs=1e-5)


def test_another_question_gives_another_score(make):
    images = smooth_pictures(2)
    asked, other = make("vlm_yes_no"), make("vlm_yes_no", question="Is this picture sharp {and} clean?")
    assert not torch.allclose(asked(images, prompts_for(images))["score"], other(images, prompts_for(images))["score"])


def test_a_tokenizer_without_the_word_is_refused(vlm_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(vlm_folder)
    names = [tokenizer.convert_ids_to_tokens(t) for t in single_tokens(tokenizer, "yes")]
    assert sorted(names) == ["Yes", "yes"]
    with pytest.raises(ConfigError, match="no single token for 'maybe'"):
        single_tokens(tokenizer, "maybe")


# ── neighbours and guards ──


def test_the_nearest_neighbour_is_looked_for_in_the_own_group_only():
    features = torch.tensor([[2.0, 0], [0, 3], [1, 1], [5, 0], [-1, 0], [1, 0]])
    group = torch.tensor([7, 7, 7, 4, 4, 9])
    half = 1 - 0.5**0.5
    found = nearest_neighbour_distance(features, group)
    assert found[:5].tolist() == pytest.approx([half, half, half, 2, 2], abs=1e-6)
    assert found.isnan().tolist() == [False] * 5 + [True] and found.dtype == torch.float32
    order = torch.tensor([3, 0, 5, 4, 2, 1])
    again = nearest_neighbour_distance(7 * features[order], group[order])
    assert torch.allclose(again, found[order], equal_nan=True, atol=1e-6)


def test_twins_have_no_distance_and_grey_pictures_no_direction():
    assert nearest_neighbour_distance(torch.rand(1, 9).expand(4, 9), torch.zeros(4)).tolist() == pytest.approx(
        [0] * 4, abs=1e-6
    )
    assert nearest_neighbour_distance(torch.zeros(2, 3), torch.zeros(2)).tolist() == [1, 1]


def test_without_a_model_the_pictures_themselves_are_compared():
    reward = config.build(NearestNeighbour, {"model": None})
    assert reward.scope == "set" and "scope" not in config.dump(reward)
    reward.check()
    images = smooth_pictures(3, 48, 80)
    twin = images[:1].clone()
    grain = (images[:1].int() + torch.randint(-9, 10, images[:1].shape)).clamp(0, 255).to(torch.uint8)
    group = torch.zeros(5, dtype=torch.int64)
    score = reward.to("cpu")(torch.cat([images, twin, grain]), [], group)["score"]
    assert score[[0, 3]].tolist() == pytest.approx([0, 0], abs=1e-5) and score[4] < 0.02
    assert score[1] > 0.1 and score[2] > 0.1
    white, black, red, blue = (
        torch.tensor(c).expand(1, 16, 16, 3) for c in ([255] * 3, [0] * 3, [255, 0, 0], [0, 0, 255])
    )
    plain = torch.cat([white, black, red, blue]).permute(0, 3, 1, 2).to(torch.uint8)
    pairs = reward(plain, [], torch.tensor([0, 0, 1, 1]))["score"]
    assert pairs.tolist() == pytest.approx([2, 2, 4 / 3, 4 / 3], abs=1e-5)


def test_features_are_the_class_token_of_the_model(make, dino_folder):
    from transformers import AutoImageProcessor, AutoModel

    images = smooth_pictures(2)
    model, prepare = AutoModel.from_pretrained(dino_folder), AutoImageProcessor.from_pretrained(dino_folder)
    with torch.no_grad():
        hidden = model(**prepare(images=pil(images), return_tensors="pt")).last_hidden_state
    found = make("nearest_neighbour").features(images)
    assert torch.allclose(found, hidden[:, 0], atol=1e-5)
    cosine = F.cosine_similarity(hidden[:1, 0], hidden[1:, 0]).item()
    score = make("nearest_neighbour")(images, [], torch.zeros(2, dtype=torch.int64))["score"]
    assert score.tolist() == pytest.approx([1 - cosine] * 2, abs=1e-5)


def test_a_band_is_a_trapezium():
    values = torch.tensor([-1.0, 1, 2, 3, 5, 7, 8, 12, 99])
    assert band_score(values, (1.0, 3, 7, 9)).tolist() == pytest.approx([0, 0, 0.5, 1, 1, 1, 0.5, 0, 0])


def test_the_guard_passes_pictures_and_stops_blank_blurred_harsh_and_grainy_ones():
    guard = QualityGuard(batch_size=2)
    ordinary = (128 + 2 * (smooth_pictures(3, 128, 128).float() - 128)).clamp(0, 255).to(torch.uint8)
    assert guard(ordinary, [])["score"].tolist() == [1, 1, 1]
    blank = torch.full_like(ordinary[:1], 128)
    blurred = torch.from_numpy(ndimage.gaussian_filter(ordinary[:1].numpy().astype(float), (0, 0, 9, 9))).to(
        torch.uint8
    )
    grain = torch.randint(0, 256, ordinary[:1].shape, dtype=torch.uint8)
    board = (
        (255 * ((torch.arange(128)[:, None] // 32 + torch.arange(128) // 32) % 2))
        .to(torch.uint8)
        .expand(1, 3, 128, 128)
    )
    bad = guard(torch.cat([blank, blurred, grain, board]), [])
    assert bad["score"].tolist() == pytest.approx([0, 0, 0, 0], abs=0.05)
    statistics = image_statistics(ordinary)
    for part in ("sharpness", "contrast"):
        torch.testing.assert_close(guard(ordinary, [])[part], statistics[part], rtol=1e-5, atol=1e-6)


def test_the_guards_bands_are_settings():
    images = smooth_pictures(1)
    contrast = image_statistics(images)["contrast"].item()
    half = config.build(QualityGuard, {"contrast": [0, 2 * contrast, 0.9, 1], "sharpness": [-1, 0, 1e6, 1e7]})
    assert half(images, [])["score"].item() == pytest.approx(0.5, abs=1e-5)
    assert config.build(QualityGuard, config.dump(half)) == half
    with pytest.raises(ConfigError, match=r"contrast = \[0.1, 0.1, 0.3, 0.4\], wanted four numbers a < b <= c < d"):
        QualityGuard(contrast=(0.1, 0.1, 0.3, 0.4))
