"""Statistics within comparison sets: any size, any order, NaN takes no part."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_mm.rollout.groups import (
    baseline,
    group_count,
    group_ids,
    group_mean,
    group_median,
    group_std,
    group_sum,
    spread,
)

NAN = math.nan
properties = settings(max_examples=40)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)


def ids(*values):
    return torch.tensor(values)


@st.composite
def ragged_groups(draw):
    """Values with NaN among them, and a group for each, in any order; every group number occurs."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    group = draw(st.permutations([g for g, size in enumerate(sizes) for _ in range(size)]))
    number = st.floats(-100, 100, width=32) | st.sampled_from([NAN, 0.0, 0.5, 1.0])
    return column(*draw(st.lists(number, min_size=len(group), max_size=len(group)))), torch.tensor(group)


def slow(statistic, value_M, group_M):
    """The statistic of each group by an obvious loop; NaN where there is nothing to take it of."""
    result = []
    for group in range(int(group_M.max()) + 1):
        members = [v for v, g in zip(value_M.tolist(), group_M.tolist()) if g == group and math.isfinite(v)]
        result.append(statistic(members) if members else NAN)
    return column(*result)


def middle(members):
    ordered = sorted(members)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def std(ddof):
    def of(members):
        mean = sum(members) / len(members)
        return math.sqrt(sum((m - mean) ** 2 for m in members) / max(1, len(members) - ddof))

    return of


@properties
@given(ragged_groups())
def test_every_statistic_equals_an_obvious_loop(groups):
    value_M, group_M = groups
    close = dict(rtol=1e-9, atol=1e-9, equal_nan=True)
    torch.testing.assert_close(group_mean(value_M, group_M), slow(lambda m: sum(m) / len(m), value_M, group_M), **close)
    torch.testing.assert_close(group_median(value_M, group_M), slow(middle, value_M, group_M), **close)
    for ddof in (0, 1):
        wanted = slow(std(ddof), value_M, group_M).nan_to_num(0)  # nothing varies where nothing was scored
        torch.testing.assert_close(group_std(value_M, group_M, ddof=ddof), wanted, **close)


@properties
@given(ragged_groups())
def test_leave_one_out_is_the_mean_of_the_others(groups):
    value_M, group_M = groups
    wanted = []
    for i in range(len(value_M)):
        others = [float(v) for j, v in enumerate(value_M) if j != i and group_M[j] == group_M[i] and v.isfinite()]
        wanted.append(sum(others) / len(others) if others and value_M[i].isfinite() else NAN)
    found = baseline(value_M, group_M, center="leave_one_out")
    torch.testing.assert_close(found, column(*wanted), rtol=1e-9, atol=1e-9, equal_nan=True)


def test_sums_and_counts_leave_out_what_is_not_finite():
    value_M, group_M = column(1, NAN, math.inf, 2, -math.inf), ids(0, 0, 0, 1, 1)
    assert group_sum(value_M, group_M).tolist() == [1, 2]
    assert group_count(value_M, group_M).tolist() == [1, 1]


def test_the_median_of_an_even_count_is_the_mean_of_the_middle_two():
    value_M, group_M = column(4, 1, 10, 3, 7), ids(0, 0, 0, 0, 1)
    assert group_median(value_M, group_M).tolist() == [3.5, 7]


def test_a_group_without_a_score_has_no_mean_and_no_median():
    value_M, group_M = column(NAN, NAN, 1), ids(0, 0, 1)
    assert group_mean(value_M, group_M).isnan().tolist() == [True, False]
    assert group_median(value_M, group_M).isnan().tolist() == [True, False]


def test_population_and_sample_std_divide_by_n_and_n_minus_1():
    value_M, group_M = column(1, 0, 0, 0), ids(0, 0, 0, 0)
    assert group_std(value_M, group_M, ddof=0).item() == pytest.approx(0.4330127)
    assert group_std(value_M, group_M, ddof=1).item() == pytest.approx(0.5)


def test_one_score_has_std_zero_whichever_the_divisor():
    for ddof in (0, 1):
        assert group_std(column(3, NAN), ids(0, 0), ddof=ddof).item() == 0


def test_mad_is_the_median_distance_from_the_median_unscaled():
    value_M, group_M = column(1, 2, 4, 8, 100), ids(0, 0, 0, 0, 0)
    assert spread(value_M, group_M, scale="mad").tolist() == [3] * 5  # median 4, distances 3 2 0 4 96


def test_no_centre_is_zero_and_no_scale_is_one():
    value_M, group_M = column(1, NAN), ids(0, 1)
    assert baseline(value_M, group_M, center="none").tolist() == [0, 0]
    assert spread(value_M, group_M, scale="none").tolist() == [1, 1]


def test_ids_are_dense_whatever_the_labels():
    assert group_ids(ids(70, -3, 70, 5)).tolist() == [2, 0, 2, 1]
    assert group_ids(torch.tensor([0.75, 0.25, 0.75])).tolist() == [1, 0, 1]


def test_two_keys_make_a_set_of_every_pair_that_occurs():
    assert group_ids(ids(0, 0, 1, 1, 0), ids(2, 3, 2, 2, 2)).tolist() == [0, 1, 2, 2, 0]


@pytest.mark.parametrize("low, high", [(-3, 4), (0, 10**6), (-(2**62), 2**62)])
@pytest.mark.parametrize("columns, rows", [(1, 0), (1, 50), (2, 50), (3, 50)])
def test_group_ids_follow_the_order_of_the_values_near_or_far_apart(low, high, columns, rows):
    keys = [torch.randint(low, high, (rows,), generator=torch.Generator().manual_seed(i)) for i in range(columns)]
    assert torch.equal(group_ids(*keys), torch.unique(torch.stack(keys, 1), dim=0, return_inverse=True)[1])
