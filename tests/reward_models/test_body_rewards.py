"""Rewards that are a Qwen2-VL with heads, on tiny random weights in the layouts that are published."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_reward_models import build_qwen_vl, randomise
from torch import nn

from grpo_mm.config import typed_yaml as config
from grpo_mm.errors import ConfigError, UserError
from grpo_mm.golden.comparing import compare, record
from grpo_mm.golden.drawn import subjects
from grpo_mm.rewards.judges.comparing import Pair
from grpo_mm.rewards.judges.first_token import FirstTokenJudge
from grpo_mm.rewards.reward_models.body import mlp_head, ours, question, sized, template_of
from grpo_mm.rewards.reward_models.edit_reward import EditReward, pooled
from grpo_mm.rewards.reward_models.edit_score import EditScore, parse_scores
from grpo_mm.rewards.reward_models.hpsv3 import Hpsv3
from grpo_mm.rewards.reward_models.video_align import DIMENSIONS, VideoAlign, frames_of, number_of_frames
from grpo_mm.rollout.scoring import Scorer, Scoring
from grpo_mm.types import Prompt

PIXELS = 4 * 28 * 28
NORM = {"VQ_mean": 1.5, "VQ_std": 2.0, "MQ_mean": -0.5, "MQ_std": 4.0, "TA_mean": 0.25, "TA_std": 0.5}
CPU = torch.device("cpu")


class Published(nn.Module):
    """transformers' own model with words, and heads beside it, as the authors' classes are."""

    def __init__(self, words, **heads):
        super().__init__()
        self.words = words
        for name, head in heads.items():
            setattr(self, name, head)

    def tensors(self):
        own = {name: value for name, value in self.state_dict().items() if not name.startswith("words.")}
        return {name: value.clone() for name, value in (self.words.state_dict() | own).items()}


def published(folder, tokens, old_names=False, **heads):
    """A chat model in `folder`; random weights of a reward model upon it, under the authors' names."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    words = AutoModelForImageTextToText.from_pretrained(folder)
    words.resize_token_embeddings(len(AutoProcessor.from_pretrained(folder).tokenizer) + len(tokens))
    model = Published(words, **heads)
    randomise(model, seed=3)
    return model, model.tensors()


def build_qwen2_vl(folder, of):
    """The older Qwen2-VL with the tokenizer and processors of a tiny Qwen2.5-VL."""
    from transformers import (  # fmt: skip
        AutoConfig,
        AutoTokenizer,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    old = AutoConfig.from_pretrained(of)
    vision = {"depth": 2, "embed_dim": 16, "num_heads": 2, "mlp_ratio": 2, "hidden_size": 32}
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    tokens = {name: getattr(old, name) for name in names}
    text = {k: v for k, v in old.text_config.to_dict().items() if k != "model_type"}
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **tokens))
    randomise(model)
    model.save_pretrained(folder)
    template = (
        (of / "chat_template.jinja")
        .read_text()
        .replace(
            "{% else %}{{ c['text'] }}",
            "{% elif c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ c['text'] }}",
        )
    )
    sizes = {"min_pixels": 28 * 28, "max_pixels": 6 * 28 * 28}
    Qwen2VLProcessor(
        Qwen2VLImageProcessor(**sizes),
        AutoTokenizer.from_pretrained(of),
        Qwen2VLVideoProcessor(**sizes),
        chat_template=template,
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen25")
    build_qwen_vl(folder)
    older = tmp_path_factory.mktemp("qwen2")
    build_qwen2_vl(older, folder)
    return {"qwen2": older, "qwen25": folder}


@pytest.fixture(scope="module")
def hpsv3(chat, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hpsv3")
    model, tensors = published(chat["qwen2"], ["<|Reward|>"], rm_head=mlp_head(32, 2))
    save_file(tensors, folder / "HPSv3.safetensors")
    return {
        "model": str(chat["qwen2"]),
        "path": str(folder / "HPSv3.safetensors"),
        "pixels": PIXELS,
        "dtype": "float32",
    }, model


@pytest.fixture(scope="module")
def edit(chat, tmp_path_factory):
    folder = tmp_path_factory.mktemp("edit")
    heads = nn.ModuleDict({"head_0": mlp_head(32, 2), "head_1": mlp_head(32, 2)})
    model, tensors = published(chat["qwen25"], ["<|Reward|>"], rm_heads=heads)
    torch.save(tensors, folder / "model.pth")
    return {"model": str(chat["qwen25"]), "path": str(folder), "pixels": PIXELS, "dtype": "float32"}, model


@pytest.fixture(scope="module")
def video(chat, tmp_path_factory):
    """With an adapter, as VideoReward is published: names of a wrapped model, halves beside whole weights."""
    folder = tmp_path_factory.mktemp("video")
    tokens = [f"<|{name}_reward|>" for name in DIMENSIONS]
    model, tensors = published(chat["qwen2"], tokens, rm_head=nn.Linear(32, 1, bias=False))
    wrapped = {}
    for name, value in tensors.items():
        if name.endswith("layers.0.self_attn.q_proj.weight"):
            generator = torch.Generator().manual_seed(0)
            a, b = (
                0.1 * torch.randn(shape, generator=generator) for shape in ((2, value.shape[1]), (value.shape[0], 2))
            )
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            wrapped |= {f"{stem}.lora_A.default.weight": a, f"{stem}.lora_B.default.weight": b}
            wrapped[f"{stem}.base_layer.weight"] = value - 8.0 * b @ a
        elif name.startswith("rm_head."):
            wrapped[f"base_model.model.rm_head.modules_to_save.default.{name.removeprefix('rm_head.')}"] = value
            wrapped[f"base_model.model.rm_head.original_module.{name.removeprefix('rm_head.')}"] = value * 0
        else:
            wrapped[f"base_model.model.{name}"] = value
    for step, factor in ((5, 0.0), (10, 1.0)):  # the newest is read
        (folder / f"checkpoint-{step}").mkdir()
        torch.save({k: v * factor for k, v in wrapped.items()}, folder / f"checkpoint-{step}" / "model.pth")
    said = {"inference_config": NORM, "peft_lora_config": {"lora_enable": True, "lora_r": 2, "lora_alpha": 16}}
    (folder / "model_config.json").write_text(json.dumps(said))
    return {
        "model": str(chat["qwen2"]),
        "path": str(folder),
        "pixels": PIXELS,
        "dtype": "float32",
        "clip_fps": 4.0,
    }, model


def by_hand(model, reward, text, *, images=None, videos=None, head="rm_head"):
    """The authors' way: embeddings with the picture's features put in, positions counted through, the head at the reward tokens."""
    processor, words = reward._processor, model.words.eval()
    kind = "image" if videos is None else "video"
    content = [{"type": kind}] * len(images or videos) + [{"type": "text", "text": text}]
    asked = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    keep = {"do_resize": False}
    inputs = processor(
        text=[asked], images=images, videos=videos, return_tensors="pt",
        images_kwargs=keep, videos_kwargs=keep | {"do_sample_frames": False},
    )  # fmt: skip
    with torch.no_grad():
        embeds = words.get_input_embeddings()(inputs["input_ids"])
        pixels, grid = (
            (inputs["pixel_values"], inputs["image_grid_thw"])
            if videos is None
            else (inputs["pixel_values_videos"], inputs["video_grid_thw"])
        )
        features = words.model.visual(pixels, grid_thw=grid).pooler_output
        token = getattr(words.config, f"{kind}_token_id")
        embeds = embeds.masked_scatter((inputs["input_ids"] == token)[..., None].expand_as(embeds), features)
        length = embeds.shape[1]
        positions = torch.arange(length).view(1, 1, -1).expand(3, 1, -1)
        hidden = words.model.language_model(inputs_embeds=embeds, position_ids=positions).last_hidden_state[0]
        module = model
        for part in head.split("."):
            module = module[part] if isinstance(module, nn.ModuleDict) else getattr(module, part)
        places = [
            inputs["input_ids"][0].tolist().index(i)
            for i in processor.tokenizer.convert_tokens_to_ids(list(reward.tokens))
        ]
        return module.eval()(hidden)[places]


def pictures(number, size=(60, 90), seed=0):
    return torch.randint(0, 256, (number, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def edits(number):
    return [
        Prompt(str(i), f"edit {'more ' * i}", (Image.fromarray(p.permute(1, 2, 0).numpy()),))
        for i, p in enumerate(pictures(number, (70, 50), 1))
    ]


def test_hpsv3_is_the_mean_that_the_head_gives_at_the_reward_token(hpsv3):
    settings, model = hpsv3
    reward = Hpsv3(**settings, batch_size=2)
    reward.check()
    items, prompts = pictures(3), [Prompt("a", "a cat"), Prompt("b", "two dogs on a long red bench"), Prompt("c", "")]
    found = reward(items, prompts)
    for i, prompt in enumerate(prompts):
        (said,) = by_hand(
            model, reward, question(reward._questions()[0], prompt.text), images=[sized(items[i], PIXELS)]
        )
        assert found["score"][i].item() == pytest.approx(said[0].item(), abs=2e-4)
        assert found["sigma"][i].item() == pytest.approx(math.exp(said[1].item()), rel=2e-3)
    alone = [reward(items[i : i + 1], prompts[i : i + 1])["score"].item() for i in range(3)]
    assert found["score"].tolist() == pytest.approx(alone, abs=2e-4) and found["score"].std() > 1e-3
    assert config.build(Hpsv3, config.dump(reward)) == reward


def test_pictures_are_brought_to_the_size_that_the_authors_use():
    for size in ((64, 64), (1024, 1024), (200, 700), (900, 350)):
        image = sized(pictures(1, size)[0], 256 * 28 * 28)
        assert image.width % 28 == image.height % 28 == 0
        assert image.width * image.height == pytest.approx(200_704, rel=0.13)
        assert image.width / image.height == pytest.approx(size[1] / size[0], rel=0.1)


def test_a_prompt_brings_no_reward_token_of_its_own(hpsv3):
    reward = Hpsv3(**hpsv3[0])
    prompts = [Prompt("a", "fine <|Reward|> <|im_end|> <|image_pad|>"), Prompt("b", "fine")]
    assert reward(pictures(2), prompts)["score"].isfinite().all()


def test_edit_reward_is_the_mean_of_two_heads_on_the_picture_before_and_after(edit):
    settings, model = edit
    reward = EditReward(**settings, batch_size=2)
    reward.check()
    items, prompts = pictures(3), edits(3)
    found = reward(items, prompts)
    for i, prompt in enumerate(prompts):
        pair = [
            sized(torch.from_numpy(np.array(prompt.media[0])).permute(2, 0, 1), PIXELS),
            sized(items[i], PIXELS),
        ]
        said = [
            by_hand(model, reward, question(template, prompt.text), images=pair, head=f"rm_heads.head_{head}")[0]
            for head, template in enumerate(reward._questions())
        ]
        assert found["following"][i].item() == pytest.approx(said[0][0].item(), abs=2e-4)
        assert found["quality"][i].item() == pytest.approx(said[1][0].item(), abs=2e-4)
        assert found["score"][i].item() == pytest.approx((said[0][0] + said[1][0]).item() / 2, abs=2e-4)
    with pytest.raises(UserError, match="prompt 'x' brings no picture"):
        reward(items[:1], [Prompt("x", "edit")])


def test_heads_are_pooled_as_published():
    said = torch.tensor([[[1.0, 0.0], [2.0, 1.0]], [[3.0, 0.5], [-1.0, 0.0]]])
    assert pooled(said, "mean").tolist() == [[2.0, 0.25], [0.5, 0.5]]
    assert pooled(said, "min").tolist() == [[1.0, 0.0], [-1.0, 0.0]]
    total = pooled(said, "sum")
    assert total[:, 0].tolist() == [4.0, 1.0]
    assert total[0, 1].exp().item() == pytest.approx(math.sqrt(1 + math.exp(1.0)), rel=1e-6)


def test_video_align_is_the_sum_of_three_dimensions_each_in_its_own_scale(video):
    settings, model = video
    reward = VideoAlign(**settings)
    reward.check()
    clips = [pictures(8, (60, 90), seed) for seed in range(3)]
    prompts = [Prompt(str(i), f"a cat {'runs ' * i}") for i in range(3)]
    found = reward(clips, prompts)
    for i, prompt in enumerate(prompts):
        frames = frames_of(clips[i], 4.0, 2.0, PIXELS)
        assert frames.shape[0] == 4
        said = by_hand(model, reward, question(reward._questions()[0], prompt.text), videos=[frames])[:, 0]
        parts = [(said[k].item() - NORM[f"{n}_mean"]) / NORM[f"{n}_std"] for k, n in enumerate(DIMENSIONS)]
        for name, value in zip(DIMENSIONS, parts):
            assert found[name][i].item() == pytest.approx(value, abs=1e-3)
        assert found["score"][i].item() == pytest.approx(sum(parts), abs=2e-3)
    assert torch.equal(reward(torch.stack(clips), prompts)["score"], found["score"])
    with pytest.raises(UserError, match="wanted a clip"):
        reward(pictures(2), prompts[:2])


@pytest.mark.parametrize(
    ("total", "clip_fps", "wanted"),
    [(16, 8, 4), (49, 8, 12), (81, 16, 10), (8, 8, 4), (5, 8, 4), (3, 8, 2), (1, 8, 2), (5000, 8, 768)],
)
def test_frames_are_taken_for_two_a_second(total, clip_fps, wanted):
    assert number_of_frames(total, clip_fps, 2.0) == wanted


def test_names_of_older_and_newer_files_lead_to_one_network():
    value = torch.zeros(1)
    old = ours(
        {n: value for n in ("visual.a", "model.layers.0.b", "model.norm.c", "rm_head.0.weight", "lm_head.weight")}
    )
    new = ours(
        {
            n: value
            for n in (
                "model.visual.a",
                "model.language_model.layers.0.b",
                "model.language_model.norm.c",
                "rm_head.0.weight",
            )
        }
    )
    assert (
        set(old)
        == set(new)
        == {"body.visual.a", "body.language_model.layers.0.b", "body.language_model.norm.c", "heads.0.0.weight"}
    )


def drop(name):
    return lambda tensors: {k: v for k, v in tensors.items() if not k.endswith(name)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("rm_head.0.weight"), r"Missing key.*heads.0.0.weight"),
        (drop("rm_head.5.bias"), r"Missing key.*heads.0.5.bias"),
        (drop("layers.1.mlp.up_proj.weight"), r"Missing key.*language_model.layers.1.mlp.up_proj.weight"),
        (drop("embed_tokens.weight"), r"embed_tokens.weight"),
        (drop("visual.patch_embed.proj.weight"), r"Missing key.*visual.patch_embed.proj.weight"),
        (lambda t: t | {"model.extra": torch.zeros(1)}, r"Unexpected key.*language_model.extra"),
        (lambda t: t | {"rm_head.5.bias": torch.zeros(4)}, r"size mismatch for heads.0.5.bias"),
        (lambda t: t | {"rm_head.5.bias": torch.full((2,), float("nan"))}, r"NaN"),
        (lambda t: {k: v[:-1] if k.endswith("embed_tokens.weight") else v for k, v in t.items()}, "its embedding has .* rows, and the tokenizer"),
        (lambda t: t | {"model.language_model.norm.lora_A.weight": torch.zeros(1, 1)}, "hold an adapter of body.language_model.norm.weight"),
    ],
)  # fmt: skip
def test_weights_that_are_not_whole_are_refused_by_name(change, message, hpsv3, tmp_path):
    from safetensors.torch import load_file

    save_file(change(load_file(hpsv3[0]["path"])), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        Hpsv3(**hpsv3[0] | {"path": str(tmp_path / "w.safetensors")}).to("cpu")


def _spoilt(how, tensors):
    """One tensor of the body's second layer is damaged."""
    name = next(name for name in sorted(tensors) if name.endswith("layers.1.self_attn.k_proj.weight"))
    value = tensors[name].clone()
    match how:
        case "NaN" | "infinite":
            value.view(-1)[3] = float("nan" if how == "NaN" else "inf")
        case "missing":
            return {k: v for k, v in tensors.items() if k != name}
        case "unexpected":
            return tensors | {"zz.extra": torch.ones(2)}
        case "shape":
            value = value[:-1].clone()
        case "whole numbers":
            value = value.to(torch.int8)
    return tensors | {name: value}


HOWS = ("NaN", "infinite", "missing", "unexpected", "shape", "whole numbers", "cut")


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        pytest.param(kind, how, marks=[] if kind == "hpsv3" or how in ("missing", "cut") else [pytest.mark.slow])
        for kind in ("hpsv3", "edit", "video")
        for how in HOWS
    ],
)
def test_damaged_weights_are_refused_when_they_are_loaded(kind, how, request, tmp_path):
    from safetensors.torch import load_file

    settings, _ = request.getfixturevalue(kind)
    path = settings["path"]
    if kind == "hpsv3":
        file = tmp_path / "w.safetensors"
        save_file(_spoilt(how, load_file(path)), file)
        settings = settings | {"path": str(file)}
    else:
        folder = shutil.copytree(path, tmp_path / "m")
        file = folder / ("model.pth" if kind == "edit" else "checkpoint-10/model.pth")
        torch.save(_spoilt(how, torch.load(file)), file)
        settings = settings | {"path": str(folder)}
    if how == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    cls = {"hpsv3": Hpsv3, "edit": EditReward, "video": VideoAlign}[kind]
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path))):
        reward = cls(**settings)
        reward.check()
        reward.to("cpu")


def _folder(video, tmp_path, change):
    folder = tmp_path / "v"
    shutil.copytree(video[0]["path"], folder)
    change(folder)
    return VideoAlign(**video[0] | {"path": str(folder)})


def _said(folder, **changes):
    said = json.loads((folder / "model_config.json").read_text())
    (folder / "model_config.json").write_text(json.dumps(said | changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "model_config.json").unlink(), "holds no model_config.json"),
        (lambda f: (f / "model_config.json").write_text("{"), "model_config.json"),
        (lambda f: _said(f, inference_config=NORM | {"MQ_std": 0}), "no usable MQ_std"),
        (lambda f: _said(f, inference_config=None), "no usable VQ_mean, VQ_std"),
        (
            lambda f: [shutil.rmtree(one) for one in f.glob("checkpoint-*")],
            "holds neither model.safetensors nor model.pth",
        ),
        (lambda f: _said(f, peft_lora_config={"lora_r": 0}), "lora_r = 0"),
    ],
)
def test_a_folder_of_video_align_that_is_not_whole_is_refused_before_anything_is_loaded(
    change, message, video, tmp_path
):
    with pytest.raises(ConfigError, match=message):
        _folder(video, tmp_path, change).check()


def test_an_adapter_without_its_scale_is_refused(video, tmp_path):
    with pytest.raises(ConfigError, match="hold an adapter of .*q_proj.weight without its scale"):
        _folder(video, tmp_path, lambda f: _said(f, peft_lora_config=None)).to("cpu")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no places", "{prompt}, <|Reward|> must stand in it once"),
        ("{prompt} <|Reward|><|Reward|>", "<|Reward|> must stand"),
    ],
)
def test_a_template_has_its_places(text, message, tmp_path, hpsv3):
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        Hpsv3(**hpsv3[0], template=str(tmp_path / "t.txt")).check()
    with pytest.raises(ConfigError, match="cannot be read"):
        template_of("template", str(tmp_path / "none.txt"), "", ())
    (tmp_path / "own.txt").write_text("Rate {prompt}: <|Reward|>")
    other, own = Hpsv3(**hpsv3[0], template=str(tmp_path / "own.txt")), Hpsv3(**hpsv3[0])
    prompts = [Prompt("a", "x")] * 2
    assert not torch.allclose(other(pictures(2), prompts)["score"], own(pictures(2), prompts)["score"])


# ── judges ──


class Says:
    """A model that answers what it is told to, and keeps what it was asked."""

    def __init__(self, *answers):
        self.answers, self.asked = answers, []

    def ask(self, questions):
        self.asked += questions
        return list(self.answers)


def test_edit_score_is_the_root_of_the_two_lowest():
    one = 'Fine. {"reasoning": "score: [1, 2]", "score": [20, 25]}'
    vlm = Says(one, "no", None, '{"score": [9, 16]}', '{"score": [5, 5]}', '{"score": [5, 5]}')
    found = EditScore(vlm=vlm)(pictures(3), edits(3))
    assert found["score"][0].item() == pytest.approx(math.sqrt(20 / 25 * 9 / 25)) and found["score"][1:].isnan().all()
    assert [found[n][0].item() for n in ("following", "consistency", "naturalness", "cleanness")] == pytest.approx(
        [0.8, 1, 0.36, 0.64]
    )
    assert [len(q.images) for q in vlm.asked] == [2, 2, 2, 1, 1, 1] and "edit more" in vlm.asked[1].text


@pytest.mark.parametrize(
    ("answer", "pair"),
    [
        ('{"score": [25, 0]}', (1.0, 0.0)), ("{'score' : [12.5, 5]}", (0.5, 0.2)), ("score = (5, 10)", (0.2, 0.4)),
        ('<think>"score": [1, 1]</think>{"score": [5, 5]}', (0.2, 0.2)), ('{"score": [26, 1]}', None), ('{"score": [5]}', None),
        ('{"score": [-5, 3]}', None), ("<think>score: [1, 2]", None), ("", None), (None, None), ('"score": [5, 5, 5]', None),
    ],
)  # fmt: skip
def test_scores_of_an_answer(answer, pair):
    assert parse_scores(answer, 25) == pair


def test_the_first_token_judge_does_not_care_which_stands_first(chat, monkeypatch):
    judge = FirstTokenJudge(model=str(chat["qwen25"]), dtype="float32", batch_size=3)
    judge.check()
    first, second = pictures(2)
    prompt = Prompt("a", "a red circle")
    (one,), (other,) = judge([Pair(first, second, prompt)]), judge([Pair(second, first, prompt)])
    assert 0 < one["overall"] < 1 and one["overall"] != 0.5
    assert one["overall"] + other["overall"] == pytest.approx(1, abs=1e-6)
    same = judge([Pair(first, first, prompt)])[0]
    assert same["overall"] == pytest.approx(0.5, abs=1e-6)
    judge.decided = True
    assert {judge([Pair(first, second, prompt)])[0]["overall"], judge([Pair(second, first, prompt)])[0]["overall"]} == {
        0.0,
        1.0,
    }
    assert judge([]) == []
    with pytest.raises(ConfigError, match="has no {prompt}"):
        FirstTokenJudge(question="which?")


# ── golden ──


@pytest.mark.parametrize("kind", ["hpsv3", "edit", "video"])
def test_golden_subjects_are_recorded_and_a_fault_is_found(kind, request):
    settings, _ = request.getfixturevalue(kind)
    cls = {"hpsv3": Hpsv3, "edit": EditReward, "video": VideoAlign}[kind]
    scoring = Scoring({"a": Scorer(cls(**settings))}, CPU)
    entry = record(scoring, "a")
    assert entry.weights and len(set(entry.scores)) == 3
    compare(scoring, "a", entry)
    use = scoring.scorers["a"].use
    use._questions = lambda: tuple(text.replace("{prompt}", "{prompt} turned") for text in type(use)._questions(use))
    with pytest.raises(UserError, match="Its weights are those recorded"):
        compare(scoring, "a", entry)
    assert len(subjects(cls.goldens)) == 3


@pytest.mark.parametrize("name", ["preference", "clips", "edits"])
def test_the_configs_that_ship_can_be_served(name):
    from grpo_mm.config.run_config import read
    from grpo_mm.rollout.scoring import check_isolated

    settings = read(f"configs/scorers/{name}.yaml")
    settings.check_settings()
    check_isolated(settings.rewards)
    assert all(scorer.environment for scorer in settings.rewards.values())
