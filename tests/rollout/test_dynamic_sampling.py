"""The collector dynamic_sampling: which groups are kept, in what order, and that a step trains on them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import write_config
from toy import ToyEngine, ToyPolicy, ToyPolicyConfig, ToyPrompts, ToyReward

from grpo_mm.config import methods
from grpo_mm.config.run_config import RunConfig
from grpo_mm.config.typed_yaml import build, merge
from grpo_mm.entry import train
from grpo_mm.errors import ConfigError, TrainingStopped
from grpo_mm.looking.metrics import read
from grpo_mm.processes.distributed import Processes
from grpo_mm.processes.rng import stream
from grpo_mm.rollout.collectors.dynamic_sampling import DynamicSampling, pick_groups
from grpo_mm.rollout.collectors.more import More
from grpo_mm.rollout.rows import further_rows, plan_rows
from grpo_mm.rollout.table import gather, local_table
from grpo_mm.training.learner import Learner
from grpo_mm.types import Batch

GROUP = 2


class Scripted:
    """Batches of three groups of two rows, whose scores are given; says what was sampled."""

    def __init__(self, *scores: list[float]) -> None:
        self.scores, self.asked = list(scores), []

    @staticmethod
    def prompts(number: int):
        return tuple(p.__class__(f"{p.id}+{number}", p.text, target=p.target) for p in ToyPrompts(3).load())

    @staticmethod
    def groups(prompts):
        return plan_rows(prompts, group_size=GROUP, parts=1)[0]

    def run(self, collector: DynamicSampling, *, parts: int = 1) -> Batch:
        policy, engine = ToyPolicy(ToyPolicyConfig(3)), ToyEngine()

        def sample(rows):
            self.asked.append(rows.prompts[0].id)
            return engine.sample(policy, rows, step=0, seed=0, needs=frozenset())

        def score(rollout, outputs):
            return {"r": {"score": torch.tensor(self.scores[len(self.asked) - 1], dtype=torch.float64)}}

        more = More(
            prompts=self.prompts, groups=self.groups, samples=further_rows, gather=lambda thing: [thing],
            generator=lambda name: stream(0, name), parts=parts,
        )  # fmt: skip
        (batch,) = collector(sample, score, self.groups(self.prompts(0)), more)
        return batch


def ids(batch: Batch) -> list[str]:
    return [prompt.id for prompt in batch.rollout.prompts]


def test_groups_that_vary_are_kept_in_order_until_there_are_enough_and_the_surplus_is_cut():
    script = Scripted([1, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 1], [0, 1, 0, 1, 0, 1])
    batch = script.run(DynamicSampling())
    assert script.asked == ["toy/0+0", "toy/0+1"]
    assert ids(batch) == ["toy/1+0", "toy/0+1", "toy/2+1"]
    assert batch.rollout.prompt_N.tolist() == [0, 0, 1, 1, 2, 2] and batch.outputs.row_M.tolist() == list(range(6))
    assert batch.scores["r"]["score"].tolist() == [0, 1, 1, 0, 0, 1]
    assert batch.metrics == {"rollout/batches": 2.0, "rollout/used_frac": 0.5}
    texts = [batch.outputs.items[i] for i in batch.outputs.item_index().tolist()]
    assert all(len(tokens) == int(n) for (tokens, _), n in zip(texts, batch.rollout.columns["length"]))


def test_groups_that_are_all_wrong_stay_where_only_the_best_are_dropped():
    batch = Scripted([1, 1, 0, 1, 0, 0], [0, 1, 1, 1, 1, 1]).run(DynamicSampling(drop="best"))
    assert ids(batch) == ["toy/1+0", "toy/2+0", "toy/0+1"]


def test_after_the_last_batch_a_step_trains_on_what_there_is():
    batch = Scripted([1, 1, 0, 1, 0, 0], [0] * 6).run(DynamicSampling(max_batches=2), parts=2)
    assert ids(batch) == ["toy/1+0"] and batch.part_N.tolist() == [0, 0]


def test_where_nothing_is_useful_the_first_batch_comes_back_and_says_so(caplog):
    batch = Scripted([0] * 6, [1] * 6).run(DynamicSampling(max_batches=2), parts=3)
    assert ids(batch) == ["toy/0+0", "toy/1+0", "toy/2+0"] and batch.metrics["rollout/used_frac"] == 0
    assert batch.part_N.tolist() == [0, 0, 1, 1, 2, 2] and batch.scores["r"]["score"].tolist() == [0] * 6
    assert "none of 6 groups" in caplog.text


def test_a_run_may_rather_stop_than_train_on_too_few_groups():
    scores = [1, 1, 0, 1, 0, 0], [0] * 6
    with pytest.raises(
        TrainingStopped, match="1 of 6 groups that were sampled teach anything, wanted 3 a step.*max_batches = 2"
    ):
        Scripted(*scores).run(DynamicSampling(max_batches=2, when_short="raise"))
    enough = Scripted(*scores, [0, 1, 1, 0, 1, 1]).run(DynamicSampling(max_batches=3, when_short="raise"))
    assert ids(enough) == ["toy/1+0", "toy/0+2", "toy/1+2"]


def test_several_batches_are_sampled_at_a_time_and_the_first_useful_groups_kept():
    script = Scripted([1, 1, 0, 1, 0, 0] + [0, 0, 1, 0, 1, 1], [0, 1] * 6)
    batch = script.run(DynamicSampling(oversample=2), parts=3)
    assert script.asked == ["toy/0+0", "toy/0+2"]
    assert ids(batch) == ["toy/1+0", "toy/1+1", "toy/0+2"] and batch.part_N.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.metrics == {"rollout/batches": 2.0, "rollout/used_frac": 3 / 12}
    once = Scripted([1, 1, 0, 1, 0, 0] + [0, 1, 1, 0, 1, 0])
    assert ids(once.run(DynamicSampling(oversample=2))) == ["toy/1+0", "toy/0+1", "toy/1+1"] and len(once.asked) == 1


def test_where_nothing_of_several_batches_is_useful_a_step_has_as_many_groups_as_ever():
    batch = Scripted([0] * 12).run(DynamicSampling(oversample=2, max_batches=1), parts=3)
    assert ids(batch) == ["toy/0+0", "toy/1+0", "toy/2+0"] and batch.part_N.tolist() == [0, 0, 1, 1, 2, 2]


def test_fewer_than_one_batch_is_refused():
    with pytest.raises(ConfigError, match="max_batches = 10, oversample = 0; wanted at least 1"):
        DynamicSampling(oversample=0)


def test_groups_are_dealt_to_updates_as_wholes():
    batch = Scripted([0, 1, 0, 1, 0, 1]).run(DynamicSampling(), parts=3)
    assert batch.part_N.tolist() == [0, 0, 1, 1, 2, 2]


def test_an_unscored_row_takes_no_part_in_the_choice():
    batch = Scripted([float("nan"), 1, 0, 1, 0, 1], [0, 1] * 3).run(DynamicSampling())
    assert ids(batch) == ["toy/1+0", "toy/2+0", "toy/0+1"]


def test_a_rank_without_a_useful_group_keeps_a_row_that_nothing_credits():
    rows = plan_rows(tuple(ToyPrompts(2).load()), group_size=GROUP, parts=1)[0]
    rollout, outputs = ToyEngine().sample(ToyPolicy(ToyPolicyConfig(2)), rows, step=0, seed=0, needs=frozenset())
    batch = Batch(rollout, outputs, {"r": {"score": torch.ones(4)}})
    alone = pick_groups(batch, torch.zeros(0, dtype=torch.int64), start=3)
    assert alone.rollout.num_rows == 1 and not alone.rollout.mask_NA.any() and len(alone.outputs) == 0
    other = pick_groups(batch, torch.tensor([1]), start=0)
    tables = [local_table(b, applies_to={"r": None}) for b in (alone, other)]
    assert gather(tables, weights={"r": 1.0}).columns["prompt"].tolist() == [0, 0]


def test_a_metric_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="metric = accuracy; there are r"):
        Scripted([0] * 6).run(DynamicSampling(metric="accuracy"))


def test_dapo_learns_from_the_groups_that_it_finds():
    settings = {
        "name": "toy", "policy": ToyPolicyConfig(), "engine": ToyEngine(), "prompts": {"toy": {"use": ToyPrompts()}}, "steps": 12,
        "prompts_per_step": 4, "group_size": 8, "updates": {"count": 2}, "device": "cpu", "samples_every": 0, "optim": {"lr": 0.1},
        "rewards": {"r": {"use": ToyReward("binary", least=4)}},
    }  # fmt: skip
    config = build(RunConfig, merge(methods.preset("dapo"), settings))
    config.check_settings()
    learner = Learner(config, Processes(device="cpu"), samples=Path("."))
    before = learner.policy.expected(ToyPrompts().load())
    rows = [learner.step(step) for step in range(12)]
    assert min(row["rollout/used_frac"] for row in rows) < 1 / 3  # three batches at a time were not always enough
    assert all(row["advantage/zero_groups_frac"] == 0 and row["policy/logprob_gap"] == 0 for row in rows)
    assert learner.policy.expected(ToyPrompts().load()) > before + 0.1


def test_it_works_on_images(tiny_sd3, tmp_path):
    changes = {"collector": {"kind": "dynamic_sampling", "max_batches": 3}, "steps": 2, "eval_prompts": None}
    train(write_config(tmp_path, tiny_sd3, changes))
    for row in read(tmp_path / "runs/tiny/metrics.jsonl"):
        assert row["rollout/used_frac"] == 1 and row["policy/logprob_gap"] < 1e-5
