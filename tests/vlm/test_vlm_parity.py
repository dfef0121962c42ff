"""Sampling, training and the library give a token the same probability, whatever the prompt holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_vlm import PROMPTS, change, clip, each_family, library_logprobs, policy, rows_of, sample

from grpo_mm.pipelines.vlm.engine import VlmEngine
from grpo_mm.pipelines.vlm.models.adapters import Lora
from grpo_mm.pipelines.vlm.prompting.chat import Chat
from grpo_mm.pipelines.vlm.sampling.generation import HfGenerator, pick
from grpo_mm.types import Prompt, Rollout


def trained_logprobs(p, rollout: Rollout) -> torch.Tensor:
    """[N, A] by the training forward."""
    found = torch.zeros_like(rollout.behaviour_NA)
    for index, values in p.logprobs(
        rollout, p.plan(rollout, rollout.mask_NA), needs=frozenset({"logprobs"}), grad=False
    ):
        found.view(-1)[index] = values["logprobs"]
    return found


@each_family
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_trainer_and_engine_agree_on_ragged_prompts_with_pictures_and_clips(family, temperature):
    p = policy(family, micro_batch=4, temperature=temperature, head_chunk=5)
    rollout, _ = sample(p, generator=HfGenerator(batch=7))
    assert len({len(context) for context in rollout.record.contexts}) > 3
    assert rollout.behaviour_NA[rollout.mask_NA].min() < -1
    gap = (trained_logprobs(p, rollout) - rollout.behaviour_NA)[rollout.mask_NA].abs().max()
    assert float(gap) < 1e-4


@each_family
def test_trainer_agrees_with_the_plain_model_that_finds_positions_by_itself(family):
    p = policy(family)
    rollout, _ = sample(p, group_size=1)
    found_NA = trained_logprobs(p, rollout)
    for i, length in enumerate(rollout.record.length_N.tolist()):
        context = rollout.record.contexts[int(rollout.record.context_N[i])]
        plain = library_logprobs(p.model, p, context, rollout.record.token_NA[i, :length])
        assert torch.allclose(found_NA[i, :length], plain, atol=1e-4), context.prompt_id


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_videos_with_times_between_their_frames_agree_with_sampler_and_library(family):
    p = policy(family, chat=Chat(frame_times="{seconds:.1f}s"))
    rollout, _ = sample(p, group_size=1)
    found_NA = trained_logprobs(p, rollout)
    for i, length in enumerate(rollout.record.length_N.tolist()):
        context = rollout.record.contexts[int(rollout.record.context_N[i])]
        plain = library_logprobs(p.model, p, context, rollout.record.token_NA[i, :length])
        assert torch.allclose(found_NA[i, :length], rollout.behaviour_NA[i, :length], atol=1e-4)
        assert torch.allclose(found_NA[i, :length], plain, atol=1e-4), context.prompt_id


@each_family
def test_positions_of_prompt_and_answer_are_those_of_the_library(family):
    p = policy(family)
    # Ten seconds a step of the grid: the clock runs far ahead of the text, which goes on from the video's place in space.
    late = Prompt("late", "when", media=(clip(8, fps=0.2, seed=6),))
    for prompt in (*PROMPTS, late):
        context = p.encode(prompt)
        ids = torch.cat([context.input_ids_L, torch.full((5,), 7)])[None]
        types = torch.cat([context.inputs["mm_token_type_ids"], torch.zeros(1, 5, dtype=torch.int64)], dim=1)
        given = {k: v for k, v in context.inputs.items() if k != "mm_token_type_ids"}
        library, _ = p.model.model.get_rope_index(input_ids=ids, mm_token_type_ids=types, **given)
        ours = torch.cat([context.position_3L, context.response_positions(5)], dim=1)
        assert torch.equal(ours, library[:, 0]), prompt.id


@each_family
def test_a_clock_ahead_of_the_text_changes_nothing_between_sampler_trainer_and_library(family):
    p = policy(family)
    late = Prompt("late", "when", media=(clip(8, fps=0.2, seed=6),))
    rollout, _ = VlmEngine(max_new_tokens=12).sample(p, rows_of((late,), 3), step=0, seed=0, needs=frozenset())
    found_NA = trained_logprobs(p, rollout)
    for i, length in enumerate(rollout.record.length_N.tolist()):
        context, tokens = rollout.record.contexts[0], rollout.record.token_NA[i, :length]
        assert torch.allclose(found_NA[i, :length], rollout.behaviour_NA[i, :length], atol=1e-4)
        assert torch.allclose(found_NA[i, :length], library_logprobs(p.model, p, context, tokens), atol=1e-4)


def test_the_clock_of_a_clip_reaches_the_model_where_the_family_has_one():
    frames = clip(6, fps=1.0)
    slow = Prompt("slow", "when", media=(frames,))
    fast = Prompt("fast", "when", media=(replace(frames, fps=4.0, time_F=frames.time_F / 4),))
    grid = [policy("qwen2_5_vl").encode(prompt).position_3L[0, 4:10].tolist() for prompt in (slow, fast)]
    assert grid == [[4, 4, 8, 8, 12, 12], [4, 4, 5, 5, 6, 6]]  # 2 and 1/2 seconds a grid step, 2 positions a second
    blind = [policy("qwen2_vl").encode(prompt).position_3L for prompt in (slow, fast)]
    assert torch.equal(*blind)
    p = policy("qwen3_vl")
    texts = [p.processor.tokenizer.decode(p.encode(prompt).input_ids_L) for prompt in (slow, fast)]
    for text, stamps in zip(texts, (("0.5", "2.5", "4.5"), ("0.1", "0.6", "1.1"))):  # the middles of pairs of frames
        assert all(f"<{stamp} seconds>" in text for stamp in stamps)


def test_a_time_scale_that_is_lost_would_show_in_the_log_probabilities():
    p = policy("qwen2_5_vl")
    rollout, _ = sample(p, (PROMPTS[3],), group_size=1)
    context = rollout.record.contexts[0]
    assert float(context.inputs["second_per_grid_ts"][0]) == pytest.approx(2 / 3)
    lost = replace(context, inputs={k: v for k, v in context.inputs.items() if k != "second_per_grid_ts"})
    plain = library_logprobs(p.model, p, lost, rollout.record.token_NA[0, : int(rollout.record.length_N[0])])
    assert float((plain - rollout.behaviour_NA[0, : len(plain)]).abs().max()) > 1e-3


@each_family
def test_the_most_probable_answer_is_that_of_generate(family):
    p = policy(family)
    prompts = PROMPTS[:5]
    texts = VlmEngine(max_new_tokens=12).render(p, rows_of(prompts, 1), seed=0)
    for prompt, text in zip(prompts, texts, strict=True):
        context = p.encode(prompt)
        ids = context.input_ids_L[None]
        if family != "qwen2_5_vl":
            context = replace(context, inputs={k: v for k, v in context.inputs.items() if k != "second_per_grid_ts"})
        answer = p.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), **context.inputs, do_sample=False, max_new_tokens=12,
            suppress_tokens=list(p.loaded.forbidden), eos_token_id=sorted(p.loaded.stop), pad_token_id=0,
        )[0, len(context) :]  # fmt: skip
        ended = [i for i, token in enumerate(answer.tolist()) if token in p.loaded.stop]
        answer = answer[: ended[0]] if ended else answer
        assert p.processor.tokenizer.decode(answer) == text, prompt.id


@each_family
def test_what_a_row_writes_does_not_depend_on_the_rows_beside_it(family, by_number):
    p = policy(family)
    together, _ = sample(p, generator=HfGenerator(batch=64))
    for number, prompt in enumerate(PROMPTS):
        alone, _ = sample(p, (prompt,), generator=HfGenerator(batch=1))
        rows = torch.nonzero(together.prompt_N == number).flatten()
        assert torch.equal(together.record.token_NA[rows], alone.record.token_NA)
        assert torch.allclose(together.behaviour_NA[rows], alone.behaviour_NA, atol=1e-4)
    reversed_rows = rows_of(PROMPTS, 3).take(torch.arange(17, -1, -1))
    mirrored, _ = VlmEngine(max_new_tokens=8).sample(p, reversed_rows, step=0, seed=0, needs=frozenset())
    assert torch.equal(mirrored.record.token_NA.flip(0), together.record.token_NA)


def test_samples_differ_by_number_step_and_seed():
    p = policy()
    rollout, _ = sample(p, PROMPTS[:1], group_size=8)
    assert len({tuple(row) for row in rollout.record.token_NA.tolist()}) == 8
    engine, rows = VlmEngine(max_new_tokens=8), rows_of(PROMPTS[:1], 8)
    for step, seed in ((1, 0), (0, 1)):
        other, _ = engine.sample(p, rows, step=step, seed=seed, needs=frozenset())
        assert not torch.equal(other.record.token_NA, rollout.record.token_NA)


def test_drawn_tokens_follow_the_distribution():
    logprob_V = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05]).log()
    uniform_n = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    greedy_n = torch.zeros(1000, dtype=torch.bool)
    drawn = pick(logprob_V.expand(1000, 5), uniform_n, greedy_n, top_p=1.0)
    assert torch.bincount(drawn, minlength=5).tolist() == [500, 0, 300, 150, 50]
    nucleus = pick(logprob_V.expand(1000, 5), uniform_n, greedy_n, top_p=0.75)
    assert torch.bincount(nucleus, minlength=5).tolist() == [625, 0, 375, 0, 0]
    assert pick(logprob_V.expand(1000, 5), uniform_n, ~greedy_n, top_p=1.0).unique().tolist() == [0]


def test_the_ends_of_the_unit_interval_draw_tokens_that_can_be_drawn():
    logprob_nV = torch.tensor([0.0, 0.4, 0.6, 0.0]).log().expand(2, 4)
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert pick(logprob_nV, ends, torch.zeros(2, dtype=torch.bool), top_p=1.0).tolist() == [1, 2]


def test_placeholders_are_never_drawn_and_have_no_probability():
    p = policy()
    image = p.model.config.image_token_id
    with torch.no_grad():  # the model wants nothing but placeholders
        p.model.lm_head.weight[image] = 50 * p.model.lm_head.weight.abs().amax()
    rollout, _ = sample(p, PROMPTS[:2], group_size=16)
    assert not torch.isin(rollout.record.token_NA, torch.tensor(p.loaded.forbidden)).any()
    logits = torch.randn(3, p.model.lm_head.weight.shape[0])
    logprob = p.network.distribution.logprobs(logits)
    assert (logprob[:, list(p.loaded.forbidden)] == -torch.inf).all()
    assert torch.allclose(logprob.exp().sum(-1), torch.ones(3))


def test_features_of_a_frozen_tower_are_computed_once_and_trained_ones_every_time():
    for settings, calls_wanted in (({}, 1), ({"train_tower": True}, 3)):
        p = policy(**settings)
        calls = []
        tower = p.model.model.visual
        tower.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        rollout, _ = sample(p, PROMPTS[:1], group_size=4)
        trained_logprobs(p, rollout)
        trained_logprobs(p, rollout)
        assert len(calls) == calls_wanted


def test_bfloat16_stays_close_to_float32():
    wide, low = policy(), policy(dtype="bfloat16", lora=Lora(rank=4))
    rollout, _ = sample(wide, group_size=1)
    gap = (trained_logprobs(low, rollout) - rollout.behaviour_NA)[rollout.mask_NA].abs()
    assert 0 < float(gap.mean()) < 0.1


def test_old_log_probabilities_follow_the_weights():
    p = policy()
    rollout, _ = sample(p, group_size=2)
    before = trained_logprobs(p, rollout)
    change(p)
    assert float((trained_logprobs(p, rollout) - before).abs().max()) > 0.01
