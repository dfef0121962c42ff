"""What sharing a prompt saves, on paper, and what `auto` makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_vlm import PROMPTS, folder, policy, sample

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.vlm.forwards.packing import pack_groups
from grpo_mm.pipelines.vlm.policy import VlmPolicyConfig
from grpo_mm.pipelines.vlm.prompt_sharing.prefix_cost import gain, repeated, shared


@pytest.mark.parametrize(
    ("group", "prompt", "answer", "pointwise", "attention"),
    [
        (8, 8192, 256, 0.152, 0.177),
        (8, 4096, 1024, 0.300, 0.440),
        (4, 16384, 4096, 0.400, 0.520),
        (16, 4096, 128, 0.091, 0.118),
        (8, 1024, 1024, 0.562, 0.781),
        (8, 256, 2048, 0.903, 0.989),
    ],
)
def test_costs_are_those_of_the_paper(group, prompt, answer, pointwise, attention):
    once, again = shared(prompt, [answer] * group), repeated(prompt, [answer] * group)
    assert once.pointwise / again.pointwise == pytest.approx(pointwise, abs=6e-4)
    assert once.attention / again.attention == pytest.approx(attention, abs=6e-4)


def test_a_long_prompt_costs_one_part_in_the_number_of_its_answers():
    assert repeated(10**6, [1] * 8).pointwise / shared(10**6, [1] * 8).pointwise == pytest.approx(8, abs=1e-4)
    assert shared(100, [7]).pointwise == repeated(100, [7]).pointwise  # one answer: nothing to share


def test_auto_shares_where_it_pays_and_for_all_passes_alike():
    p = policy(prefix_sharing="auto")
    many, _ = sample(p, PROMPTS[:2], group_size=4)
    one, _ = sample(p, PROMPTS[:2], group_size=1)
    assert gain(one.record, token=1.0, pair=1.0) == pytest.approx(1.0)
    assert gain(many.record, token=1.0, pair=1.0) > 1.5
    assert p.replay.shares(many.record) and not p.replay.shares(one.record)
    # A short prompt before long answers.
    short = replace(PROMPTS[5], text="one")
    long, _ = sample(p, (short,), group_size=4, max_new_tokens=256)
    record = replace(long.record, length_N=torch.full((4,), 256))
    assert 1 < gain(record, token=1.0, pair=0.01) < 1.15 and not p.replay.shares(record)
    assert policy(prefix_sharing="on").replay.shares(record) and not policy(prefix_sharing="off").replay.shares(
        many.record
    )


def test_a_record_without_answers_has_nothing_to_share():
    rollout, _ = sample(policy(), PROMPTS[:1])
    record = replace(rollout.record, length_N=torch.zeros(3, dtype=torch.int64))
    assert gain(record, token=1.0, pair=1.0) == 1.0


def test_groups_are_packed_whole_or_one_at_a_time():
    sizes = [(10, [2, 2]), (8, [1]), (9, [4, 4, 4])]
    assert list(pack_groups(sizes, most=99, most_tokens=28)) == [[0, 1, 2], [3, 4, 5]]
    assert list(pack_groups(sizes, most=99, most_tokens=17)) == [[0, 1], [2], [3, 4], [5]]
    assert list(pack_groups(sizes, most=3)) == [[0, 1, 2], [3, 4, 5]]
    assert list(pack_groups(sizes, most=2)) == [[0, 1], [2], [3, 4], [5]]
    assert list(pack_groups(sizes, most=99, apart=True)) == [[0, 1], [2], [3, 4, 5]]
    assert list(pack_groups(sizes, most=99)) == [[0, 1, 2, 3, 4, 5]]
    assert (
        list(pack_groups([(50, [1, 1])], most=9, most_tokens=10)) == [[0], [1]] and list(pack_groups([], most=1)) == []
    )


def test_a_plan_puts_prompts_in_once():
    p = policy(micro_batch=99, micro_batch_tokens=70, prefix_sharing="on")
    rollout, _ = sample(p, group_size=3)
    rows = []
    for index in p.plan(rollout, rollout.mask_NA):
        rows += (index[:, 0] // 8).tolist()
        record = rollout.record.take(index[:, 0] // 8)
        tokens = [int(record.length_N[record.context_N == c].sum()) for c in range(len(record.contexts))]
        assert len(tokens) * (max(len(c) for c in record.contexts) + max(tokens)) <= 70
    assert sorted(rows) == list(range(18))


def test_flex_attention_without_a_shared_prompt_is_refused():
    with pytest.raises(ConfigError, match="is for answers after a shared prompt"):
        VlmPolicyConfig(path=folder("qwen2_5_vl"), attention="flex_attention", prefix_sharing=False).check()


def test_on_and_off_may_be_written_as_yaml_reads_them():
    assert [VlmPolicyConfig(path="", prefix_sharing=v).sharing for v in (True, "on", False, "off", "auto")] == [
        "on", "on", "off", "off", "auto",
    ]  # fmt: skip
