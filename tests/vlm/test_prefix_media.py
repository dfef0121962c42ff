"""Questions about one video read it once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_prefix_sharing import assert_equal, trained
from tiny_vlm import PROMPTS, clip, each_family, picture, policy, sample

from grpo_mm.pipelines.vlm.prompt_sharing.prefix_cost import gain
from grpo_mm.pipelines.vlm.prompting.shared_media import roots
from grpo_mm.types import Prompt

FILM = clip(6, fps=1.0, seed=7)
QUESTIONS = tuple(
    Prompt(name, text, media=(FILM,))
    for name, text in (
        ("when", "When does the red circle appear"),
        ("what", "When is the blue square there"),
        ("short", "one"),
    )
)
MOST = 5e-5
"""Some fifty units in the last place of a log-probability: what the order of sums may change, by machine and attention."""
OTHERS = (Prompt("another film", "When does the red circle appear", media=(clip(6, fps=1.0, seed=8),)), *PROMPTS[4:])


def test_contexts_share_what_they_begin_with_up_to_their_first_difference():
    p = policy()
    contexts = [p.encode(prompt) for prompt in (QUESTIONS[0], *OTHERS, *QUESTIONS[1:])]
    found = roots(contexts)
    assert [[c.prompt_id for c in root.contexts] for root in found] == [
        ["when", "what", "short"], ["another film"], ["both"], ["text"],
    ]  # fmt: skip
    length, (first, second, _) = found[0].length, found[0].contexts
    types = first.inputs["mm_token_type_ids"][0]
    assert int(torch.nonzero(types).max()) < length < min(len(c) for c in found[0].contexts)
    assert [root.length for root in found[1:]] == [0, 0, 0]
    pair = roots([first, second])[0]
    assert pair.length > length  # "When" is common to both
    assert not torch.equal(first.input_ids_L[: pair.length + 1], second.input_ids_L[: pair.length + 1])


def test_another_clock_or_another_order_of_pictures_shares_nothing():
    p = policy()
    slow = Prompt("slow", "one", media=(replace(FILM, fps=0.5, time_F=FILM.time_F * 2),))
    one, other = picture(seed=1), picture(seed=2)
    pictures = [Prompt(name, "one", media=media) for name, media in (("ab", (one, other)), ("ba", (other, one)))]
    assert all(not root.length for root in roots([p.encode(prompt) for prompt in (QUESTIONS[2], slow, *pictures)]))


@each_family
@pytest.mark.parametrize(
    ("attention", "cut"),
    [
        ("sdpa", {"micro_batch": 99}),
        ("sdpa", {"micro_batch": 2}),
        ("sdpa", {"micro_batch": 3}),
        ("eager", {"micro_batch": 2}),
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_repeated_videos(family, cut, attention):
    settings = {"attention": attention, "train_tower": True}
    once = policy(family, prefix_sharing="on", **settings, **cut)
    again = policy(family, prefix_sharing="off", micro_batch=99, **settings)
    rollout, _ = sample(once, (QUESTIONS[0], *OTHERS, *QUESTIONS[1:]), group_size=2)
    assert_equal(trained(once, rollout), trained(again, rollout), most=MOST)


@pytest.mark.parametrize("most", [99, 2])
def test_the_video_goes_through_tower_and_network_once_for_all_questions(most):
    p = policy(prefix_sharing="on", train_tower=True, micro_batch=most)
    rollout, _ = sample(p, QUESTIONS, group_size=2)
    tokens, runs = [], []
    p.model.model.language_model.layers[0].mlp.register_forward_hook(
        lambda _, __, out: tokens.append(out.shape[:2].numel())
    )
    p.model.model.visual.register_forward_hook(lambda *_: runs.append(1))
    trained(p, rollout)
    root = roots(rollout.record.contexts)[0]
    rests = sum(len(context) - root.length for context in root.contexts)
    assert len(runs) == 1 and tokens[:2] == [root.length, rests]
    if most == 2:  # a forward for the answers of each context
        assert sum(tokens[2:]) == int((rollout.record.length_N - 1).sum())


def test_a_frozen_tower_sees_a_video_once_whatever_is_asked():
    p = policy()
    runs = []
    p.model.model.visual.register_forward_hook(lambda *_: runs.append(1))
    rollout, _ = sample(p, (*QUESTIONS, OTHERS[0]), group_size=2)
    trained(p, rollout)
    assert len(runs) == 2


def test_the_estimate_counts_a_video_once():
    p = policy()
    rollout, _ = sample(p, (*QUESTIONS, OTHERS[0]), group_size=1)
    record = rollout.record
    root = roots(record.contexts)[0]
    whole = sum(len(c) for c in record.contexts) + int(record.length_N.sum())
    assert gain(record, token=1.0, pair=0.0) == pytest.approx(whole / (whole - 2 * root.length))


@each_family
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_sampling_reads_a_video_once_and_draws_the_same_answers(family, attention):
    once = policy(family, prefix_sharing="on", attention=attention)
    again = policy(family, prefix_sharing="off", attention=attention)
    prompts, tokens = (QUESTIONS[0], *OTHERS, *QUESTIONS[1:]), []
    once.model.model.language_model.layers[0].mlp.register_forward_hook(
        lambda _, __, out: tokens.append(out.shape[:2].numel())
    )
    rollout, _ = sample(once, prompts, group_size=2)
    prefill = tokens[:3]
    repeated, _ = sample(again, prompts, group_size=2)
    same_NA = (rollout.record.token_NA == repeated.record.token_NA).cumprod(1).bool()
    # Rounding may move a draw beside an edge of its cumulative distribution to the next token, and with it the rest of that row.
    assert int((~same_NA.all(1)).sum()) <= 1
    torch.testing.assert_close(rollout.behaviour_NA[same_NA], repeated.behaviour_NA[same_NA], atol=MOST, rtol=0)
    found = roots(rollout.record.contexts)
    alone = [root.contexts[0] for root in found if not root.length]
    shared = next(root for root in found if root.length)
    assert prefill == [
        len(alone) * max(len(context) for context in alone),
        shared.length,
        sum(len(context) - shared.length for context in shared.contexts),
    ]
