"""Scores by prompt, and what settled the advantages of a tree."""

import pytest
import torch

from grpo_mm.advantages import GroupNorm, TreeBackup, WeightedSum
from grpo_mm.looking.held_out import Evaluation, mean_of
from grpo_mm.rollout.table import Table
from grpo_mm.training.held_out import by_prompt, score_by_prompt
from grpo_mm.training.settled import settled
from grpo_mm.types import Prompt, Rows


class TwoRanks:
    """The first of two ranks; the other one's part is given."""

    def __init__(self, other):
        self.other = other

    def gather(self, value):
        return [value, self.other]


def test_samples_of_a_prompt_are_averaged_over_ranks_and_nan_is_left_out():
    prompts = tuple(Prompt(p, p) for p in "abc")
    rows = Rows(prompts, torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), 2)
    scores = {"iou": {"score": torch.tensor([0.5, 1.0, float("nan")])}}
    ranks = TwoRanks({("iou", "score"): [(1, 1, 0.25), (2, 0, float("nan")), (2, 1, float("nan"))]})
    found = by_prompt(scores, rows, ranks, names={"score": "mean"})
    assert found == {"iou/mean": [0.75, 0.25, None]}


def test_the_score_by_prompt_has_the_score_as_its_mean_and_each_prompts_influence():
    found = {"a/mean": [0.2, 0.4, 0.6, 0.8], "b/mean": [None, None, 1.0, 0.0]}
    score = score_by_prompt(found, {"a/mean": 0.5, "b/mean": 2.0})
    assert sum(score) / 4 == pytest.approx(0.5 * 0.5 + 2.0 * 0.5)
    # Where a reward asks all prompts, the standard error is that of its mean; of one that asks half of them it is larger.
    whole = mean_of(Evaluation(0, "wxyz", {"score": score_by_prompt(found, {"a/mean": 1.0})}), "score")
    assert whole.error == pytest.approx(mean_of(Evaluation(0, "wxyz", found), "a/mean").error)
    half = score_by_prompt(found, {"b/mean": 1.0})
    assert half == [0.5, 0.5, 1.5, -0.5]


def a_tree():
    """One prompt, four leaves, two edges at the first depth."""
    column = dict(prompt=torch.zeros(4, dtype=torch.int64), sample=torch.arange(4), action=torch.full((4,), -1))
    column |= dict(tag=torch.zeros(4, dtype=torch.int64), failed=torch.zeros(4, dtype=torch.bool))
    column |= dict(edge=torch.tensor([[0, 0], [0, 1], [1, 2], [1, 3]]), edge_logprob=torch.zeros(4, 2))
    return Table({"r": torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=torch.float64)}, column, {"r": 1.0})


def test_values_of_edges_are_compared_depth_by_depth():
    found = settled(a_tree(), (WeightedSum(), TreeBackup(), GroupNorm(key=("prompt", "action"))), prompts=6)
    first, second = found[0, 1]
    assert (first["depth"], first["compared"], first["low"], first["high"]) == (
        1,
        2,
        pytest.approx(0.2),
        pytest.approx(0.7),
    )
    assert first["value"] == pytest.approx(0.2) and first["advantage"] == pytest.approx(
        -1, abs=1e-3
    )  # shared with leaf 0
    assert (second["compared"], second["value"], second["high"]) == (4, pytest.approx(0.3), pytest.approx(0.9))


def test_leaves_that_were_compared_before_are_what_settled_their_edges():
    found = settled(a_tree(), (GroupNorm(), WeightedSum(), TreeBackup()), prompts=6)
    assert [one["compared"] for one in found[0, 3]] == [4, 4] and found[0, 3][1]["value"] == pytest.approx(0.9)
    assert found[0, 3][1]["advantage"] > found[0, 3][0]["advantage"] > 0


def test_a_row_with_one_advantage_needs_no_more_words():
    table = a_tree()
    columns = {name: column for name, column in table.columns.items() if not name.startswith("edge")}
    assert settled(Table(table.values, columns, table.weights), (GroupNorm(), WeightedSum()), prompts=6) == {}
    assert settled(a_tree(), (WeightedSum(), TreeBackup(), GroupNorm(key=("prompt", "action"))), prompts=0) == {}
