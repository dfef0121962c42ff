"""Text after a video goes on where the released checkpoints were trained to find it, in contexts, in answers and in the card."""

from __future__ import annotations

import math
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import torch
from tiny_vlm import PROMPTS, change, clip, each_family, folder, library_logprobs, picture, policy, rows_of, sample

from grpo_mm.config.typed_yaml import build
from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.vlm.engine import VlmEngine
from grpo_mm.pipelines.vlm.models.adapters import Lora
from grpo_mm.pipelines.vlm.models.positions import authors_rope_index, seconds_for_engines
from grpo_mm.pipelines.vlm.policy import VlmPolicyConfig
from grpo_mm.pipelines.vlm.prompting.chat import Chat
from grpo_mm.types import Prompt

LONG = Prompt("long clip", "when", media=(clip(10, fps=0.3, seed=6),))
MEDIA = (
    *PROMPTS,
    LONG,
    Prompt("first", "<video> is it there", media=(clip(8, fps=0.5, seed=1),)),
    Prompt("last", "is it there <video>", media=(clip(8, fps=0.5, height=56, seed=1),)),
    Prompt("two", "<video> or in <video>", media=(clip(6, fps=0.7, seed=2), clip(4, fps=5.0, height=84, width=28, seed=3))),
    Prompt("beside", "<video><video><image>", media=(clip(6, fps=0.2), clip(2, fps=1.0, seed=2), picture(56, 112))),
    Prompt("mixed", "<image> in <video> <image> in <video> so", media=(
        picture(84, 28), clip(6, fps=0.6, seed=4), picture(28, 140, seed=2), clip(3, fps=1.2, height=56, seed=5))),
    Prompt("wide", "when", media=(clip(2, fps=2.0, height=28, width=196, seed=7),)),
    Prompt("one step", "when", media=(clip(2, fps=0.1),)),
    Prompt("24 fps", "when", media=(clip(30, fps=24.0, seed=8),)),
)  # fmt: skip
"""Several of both, a video first and last, odd sizes and numbers of frames, seconds a step that are no binary fraction."""


def by_hand(config, ids: list[int], images: list, videos: list, seconds: list[float] | None) -> list[list[int]]:
    """Positions by time, height and width, token by token; a new thing starts one above the highest so far."""
    found, at, start, merge = [[], [], []], 0, 0, config.vision_config.spatial_merge_size
    images, videos, seconds = iter(images), iter(videos), None if seconds is None else iter(seconds)
    while at < len(ids):
        if ids[at] not in (config.image_token_id, config.video_token_id):
            for axis in found:
                axis.append(start)
            at, start = at + 1, start + 1
            continue
        is_video = ids[at] == config.video_token_id
        steps, high, wide = next(videos if is_video else images)
        step_seconds = next(seconds) if is_video and seconds is not None else 0.5  # of Qwen2-VL: a position a step
        for time in range(steps):
            for row in range(high // merge):
                for column in range(wide // merge):
                    clock = torch.tensor(step_seconds, dtype=torch.float32) * time * 2  # tokens_per_second
                    for axis, value in zip(found, (int(clock), row, column)):
                        axis.append(start + value)
                    at += 1
        start = max(map(max, found)) + 1
    return found


def wanted_of(p, context, answer: list[int]) -> list[list[int]]:
    given = {
        name: context.inputs.get(f"{name}_grid_thw", torch.zeros(0, 3)).long().tolist() for name in ("image", "video")
    }
    timed = p.loaded.family.time == "seconds_per_grid" and given["video"]
    seconds = [float(s) for s in context.inputs["second_per_grid_ts"]] if timed else None
    if p.loaded.family.time == "text":  # each step of the grid is a picture after its time
        given["video"] = [[1, high, wide] for steps, high, wide in given["video"] for _ in range(steps)]
    return by_hand(p.model.config, context.input_ids_L.tolist() + answer, given["image"], given["video"], seconds)


@each_family
@pytest.mark.parametrize("frame_times", [None, "{seconds:.1f}s"])
def test_positions_of_prompt_and_answer_are_the_authors_formula(family, frame_times):
    if family == "qwen3_vl" and frame_times is not None:
        return  # its processor writes times by itself
    p = policy(family, chat=Chat(frame_times=frame_times))
    for prompt in MEDIA:
        context = p.encode(prompt)
        assert not context.failure, context.failure
        found = torch.cat([context.position_3L, context.response_positions(3)], dim=1)
        assert found.tolist() == wanted_of(p, context, [7, 8, 9]), prompt.id


def test_a_long_clip_by_numbers():
    """8 frames at .2 a second: four steps of 10 s, 20 positions each; one row of two tokens."""
    context = policy("qwen2_5_vl").encode(Prompt("late", "when", media=(clip(8, fps=0.2, seed=6),)))
    start = context.input_ids_L.tolist().index(policy("qwen2_5_vl").model.config.video_token_id)
    time, wide = context.position_3L[0, start:].tolist(), context.position_3L[2, start:].tolist()
    assert time[:9] == [start + t for t in (0, 0, 20, 20, 40, 40, 60, 60, 61)]
    assert wide[:9] == [start + t for t in (0, 1, 0, 1, 0, 1, 0, 1, 61)]
    other = policy("qwen2_5_vl", video_positions="library").encode(
        Prompt("late", "when", media=(clip(8, fps=0.2, seed=6),))
    )
    assert other.position_3L[0, start:].tolist()[:9] == [start + t for t in (0, 0, 20, 20, 40, 40, 60, 60, 2)]


@each_family
def test_the_library_rule_is_that_of_the_installed_transformers(family):
    p, ours = policy(family, video_positions="library"), policy(family)
    own, differ = type(p.model.model).get_rope_index, []
    for prompt in MEDIA:
        context = p.encode(prompt)
        given = {k: v for k, v in context.inputs.items() if family == "qwen2_5_vl" or k != "second_per_grid_ts"}
        position_31L, _ = own(p.model.model, input_ids=context.input_ids_L[None], **given)
        assert torch.equal(context.position_3L, position_31L[:, 0]), prompt.id
        differ.append(not torch.equal(context.position_3L, ours.encode(prompt).position_3L))
    assert any(differ) == (family != "qwen3_vl")


def test_an_unknown_rule_is_refused_by_name():
    with pytest.raises(ConfigError, match="video_positions.*newest"):
        build(VlmPolicyConfig, {"path": "zoo:vision_language", "video_positions": "newest"})


def padded(contexts) -> dict[str, torch.Tensor]:
    """A batch as processors make it: filled up on the left."""
    longest = max(map(len, contexts))

    def left(row_L: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(row_L, (longest - len(row_L), 0))

    named = {name for context in contexts for name in context.inputs} - {"mm_token_type_ids"}
    media = {k: torch.cat([c.inputs[k] for c in contexts if k in c.inputs]) for k in named}
    return media | {
        "input_ids": torch.stack([left(c.input_ids_L) for c in contexts]),
        "attention_mask": torch.stack([left(torch.ones_like(c.input_ids_L)) for c in contexts]),
        "mm_token_type_ids": torch.stack([left(c.inputs["mm_token_type_ids"][0]) for c in contexts]),
    }


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_rows_of_a_batch_filled_up_on_the_left_stand_where_they_stand_alone(family):
    p = policy(family)
    contexts = [p.encode(prompt) for prompt in MEDIA]
    batch = padded(contexts)
    position_3NL, delta_N1 = p.model.model.get_rope_index(**batch)
    for row, context in enumerate(contexts):
        assert torch.equal(position_3NL[:, row, -len(context) :], context.position_3L), context.prompt_id
        assert int(delta_N1[row]) + len(context) == int(context.response_positions(1)[0, 0])


@each_family
def test_the_plain_model_generates_from_a_batch_what_the_engine_answers_row_by_row(family):
    p = policy(family)
    texts = VlmEngine(max_new_tokens=6).render(p, rows_of(MEDIA, 1), seed=0)
    batch = padded([p.encode(prompt) for prompt in MEDIA])
    if family != "qwen2_5_vl":
        batch.pop("second_per_grid_ts", None)
    answer_NL = p.model.generate(
        **batch, do_sample=False, max_new_tokens=6, suppress_tokens=list(p.loaded.forbidden),
        eos_token_id=sorted(p.loaded.stop), pad_token_id=p.processor.tokenizer.pad_token_id,
    )[:, batch["input_ids"].shape[1] :]  # fmt: skip
    told = [p.processor.decode(row, skip_special_tokens=True) for row in answer_NL]
    same = [a == b for a, b in zip(told, texts)]
    assert all(same), [(p.id, a, b) for p, a, b in zip(MEDIA, told, texts) if a != b]


def test_without_seconds_a_step_counts_as_one_second():
    p = policy("qwen2_5_vl")
    context = p.encode(LONG)
    given = {"video_grid_thw": context.inputs["video_grid_thw"]}
    ids = context.input_ids_L[None]
    alone, _ = authors_rope_index(p.model.config, ids, **given)
    told, _ = authors_rope_index(p.model.config, ids, **given, second_per_grid_ts=[1.0])
    assert torch.equal(alone, told) and not torch.equal(alone[:, 0], context.position_3L)


@pytest.mark.parametrize("fps", [0.3, 0.6, 0.7, 1.0, 1.2, 1.5, 2.0, 3.0, 7.0, 24.0, 25.0, 30000 / 1001])
def test_engines_that_count_in_float64_are_told_seconds_that_give_these_positions(fps):
    seconds = float(torch.tensor(2 / fps, dtype=torch.float32))
    told, clock = seconds_for_engines(seconds, 768, 2.0), (torch.arange(768) * seconds * 2.0).long().tolist()
    assert [int(step * (told * 2.0)) for step in range(768)] == clock
    assert math.isclose(told, seconds, rel_tol=2**-23)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_vllm_finds_the_same_positions(family):
    module = pytest.importorskip(f"vllm.model_executor.models.{family}")
    names = {"qwen2_vl": "Qwen2VLForConditionalGeneration", "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration"}
    engine, p = getattr(module, names[family]), policy(family)
    for prompt in MEDIA[:5] + MEDIA[6:]:
        context = p.encode(prompt)
        features = list(engine_features(p, context))
        model = SimpleNamespace(config=p.model.config)
        model.iter_mm_grid_thw = partial(engine.iter_mm_grid_thw, model)
        position_3L, delta = engine.get_mrope_input_positions(model, context.input_ids_L.tolist(), features)
        assert torch.equal(torch.as_tensor(position_3L), context.position_3L), prompt.id
        assert delta + len(context) == int(context.response_positions(1)[0, 0])


def engine_features(p, context):
    """What vLLM is told of the pictures and videos of a prompt."""
    config, ids = p.model.config, context.input_ids_L.tolist()
    for kind, token in (("image", config.image_token_id), ("video", config.video_token_id)):
        at = 0
        for k, grid in enumerate(context.inputs.get(f"{kind}_grid_thw", ())):
            at = ids.index(token, at)
            data = {f"{kind}_grid_thw": SimpleNamespace(data=grid)}
            if kind == "video" and p.loaded.family.time == "seconds_per_grid":
                seconds = float(context.inputs["second_per_grid_ts"][k])
                told = seconds_for_engines(seconds, int(grid[0]), config.vision_config.tokens_per_second)
                data["second_per_grid_ts"] = SimpleNamespace(data=torch.tensor(told, dtype=torch.float64))
            yield SimpleNamespace(modality=kind, data=data, mm_position=SimpleNamespace(offset=at))
            at += int(grid.prod()) // config.vision_config.spatial_merge_size**2


@pytest.mark.parametrize(
    ("family", "rule", "lora"),
    [
        ("qwen2_vl", "authors", Lora(rank=2)),
        ("qwen2_5_vl", "authors", None),
        ("qwen2_5_vl", "authors", Lora(rank=2)),
        ("qwen2_5_vl", "library", None),
        ("qwen3_vl", "authors", None),
    ],
)
def test_the_lines_of_the_card_give_the_log_probabilities_of_the_run(family, rule, lora, tmp_path):
    p = policy(family, video_positions=rule, lora=lora)
    change(p)
    rollout, _ = sample(p, (LONG, MEDIA[11]), group_size=1)
    p.save(tmp_path)
    code = p.usage()["code"].replace("path/of/this/folder", str(tmp_path))
    loading, _, _ = code.partition("messages = ")
    assert "grpo_mm" not in loading.replace(str(tmp_path), "").replace(folder(family), "")
    assert ("rule of the" in loading) == (family != "qwen3_vl" and rule == "authors")
    assert ("rule of transformers from 5.3" in loading) == (family != "qwen3_vl" and rule == "library")
    assert (f"had transformers {version('transformers')};" in loading) == (family != "qwen3_vl" and rule == "library")
    found: dict = {}
    exec(loading, found)
    lines_matter = []
    for row, length in enumerate(rollout.record.length_N.tolist()):
        context, tokens = rollout.record.contexts[row], rollout.record.token_NA[row, :length]
        served = library_logprobs(core(found["model"]).eval(), p, context, tokens)
        assert torch.allclose(served, rollout.behaviour_NA[row, :length], atol=1e-4), context.prompt_id
        with plain_rope_index(core(found["model"])):
            without = library_logprobs(core(found["model"]), p, context, tokens)
        lines_matter.append(float((without - served).abs().max()) > 1e-3)
    assert lines_matter == [family != "qwen3_vl" and rule == "authors"] * 2


def core(model):
    """The model itself, adapter inside."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def plain_rope_index(model):
    """The model as transformers loads it."""
    taken = model.model.__dict__.pop("get_rope_index", None)
    yield
    if taken is not None:
        model.model.get_rope_index = taken


def test_the_whole_code_of_the_card_runs_on_a_picture(tmp_path, capsys):
    p = policy("qwen2_5_vl")
    p.save(tmp_path)
    from PIL import Image

    Image.new("RGB", (56, 28)).save(tmp_path / "picture.png")
    code = p.usage()["code"].replace("path/of/this/folder", str(tmp_path))
    exec(code.replace("picture.png", str(tmp_path / "picture.png")).replace("512", "4"), {})
    assert capsys.readouterr().out.endswith("\n")
