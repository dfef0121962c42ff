"""Quantile advantage estimation: the preset qae, and the worked example of docs/adding_a_method.md."""

from __future__ import annotations

import pytest
import torch

from grpo_mm.advantages.baselines.quantile_norm import group_quantile, quantile_norm
from grpo_mm.config import methods

NAN = float("nan")


def test_a_hard_group_reinforces_its_successes_and_an_easy_one_discourages_its_failures():
    reward = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 0])
    group = torch.tensor([0] * 4 + [1] * 4)
    std = 0.1875**0.5
    wanted = [1 / std, 0, 0, 0, 0, 0, 0, -1 / std]
    assert quantile_norm(reward, group, eps=0).tolist() == pytest.approx(wanted)


@pytest.mark.parametrize(
    "quantile, wanted", [(0.1, 1.0), (0.25, 1.0), (0.26, 2.0), (0.5, 2.0), (0.75, 4.0), (1.0, 8.0)]
)
def test_the_quantile_is_the_smallest_value_that_enough_of_the_group_do_not_exceed(quantile, wanted):
    value = torch.tensor([4.0, 1, 8, 2], dtype=torch.float64)
    assert group_quantile(value, torch.zeros(4, dtype=torch.int64), quantile=quantile).tolist() == [wanted]


def test_equal_rewards_earn_nothing_and_unscored_rows_take_no_part():
    one_group = torch.zeros(3, dtype=torch.int64)
    rounding = torch.tensor([0.1 + 0.2, 0.3, 0.3], dtype=torch.float64)
    for eps in (1e-4, 1e-12, 0):
        assert quantile_norm(torch.ones(3), one_group, eps=eps).tolist() == [0, 0, 0]
        assert quantile_norm(rounding, one_group, eps=eps).tolist() == [0, 0, 0]
    found = quantile_norm(torch.tensor([1.0, NAN, 0, 0]), torch.zeros(4, dtype=torch.int64), eps=0)
    alone = quantile_norm(torch.tensor([1.0, 0, 0]), torch.zeros(3, dtype=torch.int64), eps=0)
    assert found[1].isnan() and torch.equal(found[[0, 2, 3]], alone)


def test_the_preset_uses_it():
    assert [stage["kind"] for stage in methods.preset("qae")["advantage"]] == ["weighted_sum", "quantile_norm"]
