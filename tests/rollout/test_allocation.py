"""Which prompts are drawn and how many samples they get: the collectors prioritised and allocate, and passes over a rollout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import write_config
from toy import ToyEngine, ToyPolicy, ToyPolicyConfig, ToyPrompts
from toy_learning import config_of

from grpo_mm.advantages.state.value_tracker import ValueTracker
from grpo_mm.entry import train
from grpo_mm.errors import ConfigError
from grpo_mm.looking.metrics import read
from grpo_mm.processes.distributed import Processes
from grpo_mm.processes.rng import stream
from grpo_mm.rollout.collectors.allocate import Allocate, BySuccess, ByUncertainty, LookAhead, SoFar
from grpo_mm.rollout.collectors.budget import allocate, greedy
from grpo_mm.rollout.collectors.more import More
from grpo_mm.rollout.collectors.prioritised import Prioritised
from grpo_mm.rollout.prompt_stream import PromptStream
from grpo_mm.rollout.rows import further_rows, plan_rows
from grpo_mm.rollout.table import id_numbers, prompt_ids
from grpo_mm.training.learner import Learner
from grpo_mm.types import Batch, Prompt


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def floats(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def so_far(**changes) -> SoFar:
    known = {
        "count_P": ints(2, 2, 2), "mean_P": floats(0.5, 1, 0), "std_P": floats(0.7071, 0, 0), "prior_P": floats(0.5, 0.9, 0.1),
        "left": 6, "most": 8,
    }  # fmt: skip
    return SoFar(**{**known, **changes})


class Script:
    """A step of three toy prompts in which prompt p is right with its given share of samples."""

    def __init__(self, *rates: float, group_size: int = 4) -> None:
        self.prompts = tuple(ToyPrompts(len(rates)).load())
        self.rates, self.group_size, self.sampled = rates, group_size, []

    def run(self, collector, *, ranks: int = 1) -> list[Batch]:
        """The batch of each rank; ranks are run in turn, each with what the others gather."""
        return [self._rank(collector, rank, ranks) for rank in range(ranks)]

    def _rank(self, collector, rank: int, world: int) -> Batch:
        policy, engine = ToyPolicy(ToyPolicyConfig(len(self.rates))), ToyEngine()

        def sample(rows):
            self.sampled.append(rows)
            return engine.sample(policy, rows, step=0, seed=0, needs=frozenset())

        def score(rollout, outputs):
            pairs = zip(rollout.prompt_N.tolist(), rollout.sample_N.tolist())
            return {"r": {"score": floats(*(self._right(p, s) for p, s in pairs))}}

        def gather(thing):
            if world == 1:
                return [thing]
            # Whatever part this rank has, the table of all ranks is that of the entire round.
            prompt, sample = self._round.prompt_N, self._round.sample_N
            whole = (prompt, floats(*(self._right(p, s) for p, s in zip(prompt.tolist(), sample.tolist()))))
            return [whole]

        def samples(prompts, **how):
            self._round = further_rows(prompts, **how)
            return further_rows(prompts, rank=rank, world=world, **how)

        def groups(prompts):
            return plan_rows(prompts, group_size=self.group_size, parts=1)[0]

        def further(number):
            return tuple(
                Prompt(f"far/{number}/{i}", "0", target=self.prompts[0].target) for i in range(len(self.rates))
            )

        more = More(further, groups, samples, gather, lambda name: stream(0, name), parts=1)
        (batch,) = collector(sample, score, groups(self.prompts), more)
        return batch

    def _right(self, prompt: int, sample: int) -> float:
        return float(int((sample + 1) * self.rates[prompt]) > int(sample * self.rates[prompt]))


def test_greedy_takes_the_highest_gain_that_is_next_in_its_list():
    gain = floats(1, 9, 0.5).repeat(1, 1)
    assert greedy(torch.cat([gain, floats(2, 1, 1)[None]]), 3).tolist() == [2, 1]  # ties go to the earlier
    assert greedy(floats(1, -torch.inf)[None], 5).tolist() == [1]


def test_further_samples_are_numbered_on_and_shared_between_ranks():
    prompts = tuple(ToyPrompts(3).load())
    ask = {"first_P": ints(2, 2, 2), "count_P": ints(0, 3, 1), "group_size": 8}
    whole = further_rows(prompts, **ask)
    assert whole.prompt_N.tolist() == [1, 1, 1, 2] and whole.sample_N.tolist() == [2, 3, 4, 2]
    parts = [further_rows(prompts, **ask, rank=r, world=3) for r in range(3)]
    assert torch.equal(torch.cat([p.sample_N for p in parts]), whole.sample_N)
    assert len(further_rows(prompts, **ask, rank=5, world=6)) == 0


def test_the_budget_of_v0_goes_to_hard_prompts_that_are_sometimes_solved():
    rule_P = BySuccess()(so_far(prior_P=floats(0.25, 0.99, 0.5), count_P=ints(2, 2, 2)))
    assert rule_P.sum() == 6 and rule_P.argmax() == 0 and rule_P[1] == 0
    assert torch.equal(rule_P + 2, allocate(floats(0.25, 0.99, 0.5), total=12, at_least=2, at_most=8))


def test_the_budget_of_xrpo_goes_where_rewards_vary_and_ends_with_the_budget():
    rule = ByUncertainty(rounds=2)
    assert rule(so_far()).tolist() == [4, 0, 0]  # a third of 12 samples
    assert ByUncertainty(slope=1.0)(so_far()).tolist() == [2, 1, 1]
    assert int(rule(so_far(left=1)).sum()) == 1 and int(rule(so_far(left=0)).sum()) == 0
    assert rule(so_far(most=2)).tolist() == [0, 0, 0]


def test_one_more_sample_is_drawn_only_while_it_pays():
    # The table of V_0.5 in rewards of -1 and 1: (-.5 against .2) and (-1 against .5) go on, the others stop.
    mean, prior = (floats(-0.5, -0.5, -1, 1) + 1) / 2, (floats(0.2, -0.3, 0.5, 0.9) + 1) / 2
    known = {"count_P": ints(4, 4, 4, 4), "mean_P": mean, "std_P": floats(0, 0, 0, 0), "prior_P": prior, "most": 16}
    assert LookAhead()(so_far(**known, left=9)).tolist() == [1, 0, 1, 0]
    assert LookAhead()(so_far(**known, left=1)).tolist() == [1, 0, 0, 0]
    assert LookAhead()(so_far(**{**known, "most": 4}, left=9)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("rule", [BySuccess(), ByUncertainty(), LookAhead()])
def test_a_step_spends_its_budget_and_declares_the_prior(rule):
    script = Script(0.5, 1.0, 0.0)
    collector = Allocate(rule, first=2, most=8)
    collector.tracker.set_counts(prompt_ids(script.prompts), floats(1, 9, 1), floats(1, 1, 9))
    (batch,) = script.run(collector)
    drawn = torch.bincount(batch.rollout.prompt_N, minlength=3)
    assert 6 <= int(drawn.sum()) <= 12 and int(drawn.min()) >= 2 and int(drawn.max()) <= 8
    assert batch.metrics["rollout/samples"] == drawn.sum() and batch.metrics["rollout/group_size_max"] == drawn.max()
    assert torch.equal(batch.rollout.columns["prior"], floats(0.5, 0.9, 0.1)[batch.rollout.prompt_N])
    names = set(zip(batch.rollout.prompt_N.tolist(), batch.rollout.sample_N.tolist()))
    assert names == {(p, s) for p, n in enumerate(drawn.tolist()) for s in range(n)}  # each sample once, numbered on
    if isinstance(rule, ByUncertainty):
        assert drawn[0] == drawn.max() and drawn.sum() == 12


def test_ranks_share_the_samples_and_agree_on_who_gets_how_many():
    (alone,) = Script(0.5, 1.0, 0.0).run(Allocate(ByUncertainty(), first=2, most=8))
    apart = Script(0.5, 1.0, 0.0).run(Allocate(ByUncertainty(), first=2, most=8), ranks=2)
    pairs = [set(zip(b.rollout.prompt_N.tolist(), b.rollout.sample_N.tolist())) for b in (alone, *apart)]
    assert pairs[1] | pairs[2] == pairs[0] and not pairs[1] & pairs[2]
    assert alone.metrics == apart[0].metrics == apart[1].metrics


def test_undecided_prompts_are_drawn_more_often():
    script = Script(0.5, 0.5, 0.5)
    collector = Prioritised(pool=3)
    settled = id_numbers([p.id for p in script.prompts] + [f"far/1/{i}" for i in range(3)])
    collector.tracker.set_counts(settled, torch.full((6,), 99.0), torch.full((6,), 0.01))
    (batch,) = script.run(collector)
    assert len(batch.rollout.prompts) == 3 and len({p.id for p in batch.rollout.prompts}) == 3
    assert sum(p.id.startswith("far/2") for p in batch.rollout.prompts) >= 2
    assert torch.bincount(batch.rollout.prompt_N).tolist() == [4, 4, 4]


def test_a_prompt_that_is_asked_again_is_the_same_prompt_to_a_tracker():
    (first, second) = PromptStream({"a": [Prompt("x", "text")]}).batch(0, 2, seed=0)
    assert {first.id, second.id} == {"x", "x#2"}
    assert prompt_ids([first, second]).unique().numel() == 1


@pytest.mark.parametrize("name", ["v0", "v05", "spo", "xrpo"])
def test_the_presets_that_allocate_learn_and_resume_their_tracker(name, tmp_path):
    config = config_of(name, steps=6, group_size=1 if name == "spo" else 8)
    config.check_settings()
    learner = Learner(config, Processes(device="cpu"), samples=Path(tmp_path))
    before = learner.policy.expected(ToyPrompts().load())
    rows = [learner.step(step) for step in range(6)]
    assert learner.policy.expected(ToyPrompts().load()) > before
    assert all(row["policy/logprob_gap"] == 0 for row in rows)
    tracker = config.collector.tracker
    assert len(tracker.ids) == 8 and not torch.equal(tracker.counts, torch.full_like(tracker.counts, 0.5))
    _, state = learner.checkpoint()
    assert state["parts"]["collector.tracker"] == tracker.state_dict()
    if name != "spo":
        assert any(row["rollout/group_size_max"] > row["rollout/group_size_min"] for row in rows)


def test_two_passes_make_twice_the_updates_and_leave_the_ratio_of_1():
    once, twice = (
        Learner(config_of("grpo", updates={"passes": passes, "count": 2}), Processes(device="cpu"), samples=Path("."))
        for passes in (1, 2)
    )
    first, second = once.step(0), twice.step(0)
    assert once.counters["updates"] == 2 and twice.counters["updates"] == 4
    assert first["objective/ratio"] == 1 and second["objective/ratio"] != 1
    assert first["policy/logprob_gap"] == second["policy/logprob_gap"] == 0
    assert twice.config.network_calls()["train"] == 2 * once.config.network_calls()["train"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"collector": {"kind": "allocate", "rule": {"kind": "look_ahead"}, "first": 9, "most": 4}},
            "1 ≤ first ≤ most",
        ),
        ({"collector": {"kind": "allocate", "rule": {"kind": "look_ahead"}, "first": 1}}, "collector.first = 1"),
        ({"collector": {"kind": "allocate", "rule": {"kind": "by_uncertainty", "rounds": 0}}}, "rounds = 0"),
        ({"collector": {"kind": "prioritised", "pool": 1}}, "pool = 1"),
        ({"updates": {"passes": 0}}, "updates.passes = 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        config_of("mc_grpo" if "first = 1" in message else "grpo", **changes).check_settings()


def test_an_engine_that_grows_a_tree_over_the_group_is_refused(tiny_sd3, tmp_path):
    collector = {"kind": "allocate", "rule": {"kind": "by_uncertainty"}, "first": 2}
    changes = {"collector": collector, "engine": {"tree": {"kind": "single_steps"}, "seeds": 1}}
    with pytest.raises(ConfigError, match="one tree for a whole group"):
        train(write_config(tmp_path, tiny_sd3, changes))


def test_images_are_allocated_too(tiny_sd3, tmp_path):
    collector = {"kind": "allocate", "rule": {"kind": "by_uncertainty"}, "first": 2, "most": 6}
    train(write_config(tmp_path, tiny_sd3, {"collector": collector, "steps": 2, "eval_prompts": None}))
    for row in read(tmp_path / "runs/tiny/metrics.jsonl"):
        assert row["policy/logprob_gap"] < 1e-5 and row["rollout/rounds"] >= 2


def test_a_tracker_counts_the_visits_of_a_prompt():
    tracker = ValueTracker()
    tracker.set_counts(ints(5), floats(2), floats(3))
    assert tracker.visits(ints(5, 6)).tolist() == [5, 1]
