"""Rows that are drawn one step ahead: by which weights, where, how old they are, and what corrects that."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy import ToyEngine, ToyReward
from toy_learning import config_of

from grpo_mm.config.run_config import RunConfig
from grpo_mm.errors import CheckpointError, ConfigError
from grpo_mm.processes.distributed import Processes
from grpo_mm.rewards.faithfulness.answer_judge import AnswerJudge
from grpo_mm.rewards.judges.vlm_server import ServerVlm
from grpo_mm.rewards.service.remote import Remote
from grpo_mm.rollout.collectors.dynamic_sampling import DynamicSampling
from grpo_mm.rollout.collectors.prioritised import Prioritised
from grpo_mm.rollout.collectors.sample_and_score import SampleAndScore
from grpo_mm.rollout.collectors.unsolved import Unsolved
from grpo_mm.rollout.scoring import Scorer
from grpo_mm.training.ahead import ahead_lines, way_of
from grpo_mm.training.learner import Learner
from grpo_mm.types import Batch, Outputs, Rollout, Rows
from grpo_mm.weights.checkpoint import Checkpoint
from grpo_mm.weights.snapshots import Ema, SamplingPolicy

CLIPPED = {"kind": "clipped_ratio", "clip_low": 0.2, "clip_high": 0.2}
TRUNCATED = ({"kind": "truncated", "of": CLIPPED, "cap": 1.5},)


def config(**settings: Any) -> RunConfig:
    found = config_of("grpo", steps=5, **({"rollout_ahead": 1, "objective": (CLIPPED,)} | settings))
    found.check_settings()
    return found


def learner(made: RunConfig, folder: Path) -> Learner:
    return Learner(made, Processes(device="cpu"), samples=folder)


@dataclass(frozen=True)
class Noting(ToyEngine):
    """Notes by which weights each step was drawn, and in which thread."""

    drawn: dict[int, Tensor] = field(default_factory=dict, compare=False)
    threads: list[threading.Thread] = field(default_factory=list, compare=False)

    def sample(self, policy: Any, rows: Rows, *, step: int, **how: Any) -> tuple[Rollout, Outputs]:
        self.drawn[step] = self._weights(policy).clone()
        self.threads.append(threading.current_thread())
        return super().sample(policy, rows, step=step, **how)

    def table_columns(self, group_size: int) -> dict[str, Tensor]:
        return ToyEngine().table_columns(group_size)

    def _weights(self, policy: Any) -> Tensor:
        return policy.logits.detach()


@dataclass(frozen=True)
class Apart(Noting):
    """Draws by weights that it was handed, as an engine in another process does; it loses them once in step `loses`."""

    handed: dict[str, Any] = field(default_factory=dict, compare=False)
    loses: int = -1

    draws_apart = True

    def hand_over(self, policy: Any) -> None:
        if self.handed.get("which") != policy.snapshots.which:
            policy.snapshots.check_held()
            self.handed.update(which=policy.snapshots.which, logits=policy.logits.detach().clone())

    def sample(self, policy: Any, rows: Rows, *, step: int, **how: Any) -> tuple[Rollout, Outputs]:
        if step == self.loses and "lost" not in self.handed:
            self.handed.clear()
            self.handed["lost"] = True
        self.hand_over(policy)
        assert self.handed["which"] == policy.snapshots.which
        return super().sample(_Handed(policy, self.handed["logits"]), rows, step=step, **how)


class OnDevice(ToyReward):
    def to(self, device: torch.device) -> None:
        pass


class _Handed:
    def __init__(self, policy: Any, logits: Tensor) -> None:
        self.config, self.logits, self.snapshots = policy.config, logits, policy.snapshots


def test_rows_are_drawn_by_the_weights_that_the_step_before_begins_with(tmp_path):
    engine = Noting()
    run = learner(config(engine=engine, updates={"count": 2}), tmp_path)
    begun, rows = [], []
    for step in range(4):
        begun.append(run.policy.logits.detach().clone())
        rows.append(run.step(step))
    wanted = [begun[0], begun[0], begun[1], begun[2], begun[3]]
    assert all(torch.equal(engine.drawn[step], by) for step, by in enumerate(wanted))
    assert not torch.equal(begun[1], begun[2])
    assert [row["rollout/staleness"] for row in rows] == [0, 2, 2, 2]  # updates


def test_every_row_of_the_table_says_how_old_it_is(tmp_path):
    run = learner(config(), tmp_path)
    tables: list[Any] = []
    table = run.table
    run.table = lambda batch: tables.append(table(batch)) or tables[-1]
    for step in range(3):
        run.step(step)
    assert [found.columns["staleness"].unique().tolist() for found in tables] == [[0], [1], [1]]


def test_without_it_nothing_is_new(tmp_path):
    run = learner(config(rollout_ahead=0), tmp_path)
    row = run.step(0)
    tensors, state = run.checkpoint()
    assert (
        "rollout/staleness" not in row
        and "ahead" not in state
        and not any("ahead" in name for name in tensors["snapshots"])
    )
    assert ahead_lines(run.config) == []


def untimed(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if not name.startswith("time/")}


def steps_of(run: Learner, steps: range) -> list[dict[str, float]]:
    return [untimed(run.step(step)) for step in steps]


def test_wherever_they_are_drawn_the_rows_are_the_same(tmp_path):
    """Before the update, before it and scored beside, wholly beside, and again after an engine lost its weights."""
    found, ways, weights = [], [], []
    slow = DynamicSampling(oversample=1, max_batches=1)
    for settings in ({"collector": slow}, {"engine": Noting()}, {"engine": Apart()}, {"engine": Apart(loses=3)}):
        run = learner(config(**settings), tmp_path)
        found.append(steps_of(run, range(5)))
        ways.append(run.ahead.way)
        weights.append(run.policy.logits.detach())
    assert all(torch.equal(other, weights[0]) for other in weights)
    assert ways == ["before", "scored beside", "beside", "beside"]
    shared = set(found[0][0]) & set(found[1][0])
    assert all({k: row[k] for k in shared} == {k: other[k] for k in shared} for row, other in zip(found[0], found[1]))
    assert found[1] == found[2] == found[3]


def test_an_engine_with_weights_of_its_own_draws_beside_the_main_thread(tmp_path):
    engine = Apart()
    steps_of(learner(config(engine=engine), tmp_path), range(3))
    main = threading.main_thread()
    assert [thread is main for thread in engine.threads] == [True, False, False, False]


def test_an_engine_that_lost_its_weights_has_them_drawn_again_and_says_so(tmp_path, caplog):
    engine = Apart(loses=2)
    steps_of(learner(config(engine=engine), tmp_path), range(3))
    assert "the rows of step 3 are drawn again: the engine lost the weights" in caplog.text
    assert engine.threads[-2] is threading.main_thread()


def test_scores_are_given_beside_the_update(tmp_path):
    """A reward of step 2 that waits until the update of step 1 is done: one after the other, it would wait in vain."""
    updated, said = threading.Event(), []

    def waits(items: list[Any], prompts: list[Any]) -> list[float]:
        said.append(updated.wait(20) if len(said) == 1 else None)
        return [len(tokens) / 6 for tokens, _ in items]

    run = learner(config(rewards={"score": {"use": ToyReward()}}), tmp_path)
    scoring = run.rewards

    def asked(items: Any, prompts: Any, group_U: Any = None) -> Any:
        waits(items, prompts)
        return scoring(items, prompts, group_U)

    run.drawing.rewards = asked
    apply = run._apply
    run._apply = lambda result: (apply(result), updated.set())[0]
    run.step(0)
    assert said == [None, True]


def test_it_is_told_where_rows_stand_as_the_update_ends(tmp_path):
    run = learner(config(engine=Apart()), tmp_path)
    first, *_, last = [run.step(step) for step in range(5)]
    stand = [first[f"time/queue_{where}_rows"] for where in ("unsampled", "unscored", "ready")]
    assert sum(stand) == 64
    assert not any("queue" in name for name in last)  # no step follows
    before = learner(config(offload_rewards=True), tmp_path).step(0)
    assert [before[f"time/queue_{where}_rows"] for where in ("unsampled", "unscored", "ready")] == [0, 0, 64]


def test_what_a_reward_raises_beside_is_raised_where_its_rows_are_waited_for(tmp_path):
    run = learner(config(), tmp_path)
    score = run.drawing.scored

    def fails(rollout: Rollout, outputs: Outputs, *early: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            raise ConfigError("the weights of the judge are gone")
        return score(rollout, outputs, *early)

    run.drawing.scored = fails
    with pytest.raises(ConfigError, match="the judge are gone"):
        run.step(0)


# ── corrections ──


def replayed(run: Learner, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(log-probs by the weights that train, by those that drew, mask), [N, A] each."""
    now_NA = run.policy._logprob(batch.rollout).detach().view(batch.rollout.behaviour_NA.shape)
    return now_NA, batch.rollout.behaviour_NA, batch.rollout.mask_NA


def second_step(run: Learner) -> tuple[Callable[[], dict[str, float]], Tensor, Tensor, Tensor]:
    run.step(0)
    batch = run.ahead._ready.batches[0]
    return lambda: run.step(1), *replayed(run, batch)


def test_truncated_weighs_rows_by_the_present_policy_over_the_one_that_drew_them(tmp_path):
    for old in ("auto", "recompute"):
        run = learner(config(objective=TRUNCATED, old_logprobs=old, optim={"lr": 0.5}), tmp_path)
        step, now_NA, drew_NA, mask_NA = second_step(run)
        weight_NA = (now_NA - drew_NA).exp().clamp(max=1.5)
        assert float(weight_NA[mask_NA].max()) == 1.5 and float(weight_NA[mask_NA].min()) < 0.9  # it does something
        found = step()
        assert found["objective/behaviour_weight"] == pytest.approx(float(weight_NA[mask_NA].mean()), rel=1e-9)
        assert found["objective/ratio"] == pytest.approx(1.0, abs=1e-12)


def test_the_gradient_of_truncated_rows_is_the_one_worked_out_by_hand(tmp_path):
    run = learner(config(objective=TRUNCATED, old_logprobs="auto", optim={"lr": 0.5, "max_grad_norm": 1e9}), tmp_path)
    step, now_NA, drew_NA, mask_NA = second_step(run)
    batch = run._dated(run.ahead._ready.batches[0], 1)
    earned = run._credit(batch, run.table(batch), 1)[1]
    weight_NA = (now_NA - drew_NA).exp().clamp(max=1.5)
    logprob_NA = run.policy._logprob(batch.rollout).view(mask_NA.shape)
    # With ratios of 1 the surrogate's gradient is that of A log π.
    loss = -(weight_NA * earned.advantage_NA * logprob_NA)[mask_NA].sum() / mask_NA.sum()
    (gradient,) = torch.autograd.grad(loss, [run.policy.logits])
    assert step()["optim/grad_norm"] == pytest.approx(float(gradient.norm()), rel=1e-6)


def test_ratios_of_the_rollout_are_against_the_policy_that_drew(tmp_path):
    run = learner(config(old_logprobs="rollout", optim={"lr": 0.5}), tmp_path)
    step, now_NA, drew_NA, mask_NA = second_step(run)
    ratio_NA = (now_NA - drew_NA).exp()
    assert float((ratio_NA[mask_NA] - 1).abs().max()) > 0.1
    found = step()
    assert found["objective/ratio"] == pytest.approx(float(ratio_NA[mask_NA].mean()), rel=1e-9)
    assert found["policy/logprob_gap"] == pytest.approx(float((now_NA - drew_NA)[mask_NA].abs().max()), rel=1e-9)


def test_recomputed_ratios_begin_at_1(tmp_path):
    run = learner(config(old_logprobs="recompute", updates={"count": 2}), tmp_path)
    run.step(0)
    old, found = run._old_logprobs, []

    def noted(rollout: Rollout) -> Tensor:
        now_NA, _, mask_NA = replayed(run, Batch(rollout, None, {}))
        found.append((old(rollout)[mask_NA], now_NA[mask_NA]))
        return old(rollout)

    run._old_logprobs = noted
    run.step(1)
    ((old_n, now_n),) = found
    assert torch.equal(old_n, now_n)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rollout_ahead": 2}, "rollout_ahead = 2; wanted 0, or 1"),
        ({"rollout_ahead": -1}, "rollout_ahead = -1"),
        ({"old_logprobs": "auto"}, "every ratio is 1, although the rows were drawn one step before"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_sentence(settings, message):
    with pytest.raises(ConfigError, match=message):
        config(**settings)


def test_two_updates_of_a_step_need_no_more_than_they_have():
    config(old_logprobs="auto", updates={"count": 2})


def test_show_says_where_rows_are_drawn_and_what_corrects_their_age():
    assert "drawn before the update and scored beside it" in ahead_lines(config())[0]
    assert "against the weights that drew the rows" in ahead_lines(config())[1]
    assert "at most 1.5 (truncated)" in ahead_lines(config(objective=TRUNCATED, old_logprobs="auto"))[1]
    assert "is not weighed" in ahead_lines(config(old_logprobs="recompute"))[1]
    assert "beside the update: the engine draws with weights of its own" in ahead_lines(config(engine=Apart()))[0]


def test_a_reward_that_a_server_scores_is_waited_for_beside_the_update():
    asked = {"far": Scorer(use=Remote("http://scorers:8420", "far"))}
    assert way_of(config(rewards=asked))[0] == "scored beside"
    way, why = way_of(config(rewards=asked | {"near": Scorer(use=OnDevice())}))
    assert way == "before" and "near is a network" in why


def test_a_sampler_that_may_be_asked_again_is_not_left_behind():
    assert way_of(config(collector=DynamicSampling()))[0] == "before"
    assert way_of(config(offload_rewards=True))[0] == "before"
    assert way_of(config(engine=Apart()), members=2)[0] == "before"


class Network:
    def __call__(self, items: Any, prompts: Any) -> Tensor:
        return torch.zeros(len(prompts))

    def to(self, device: Any) -> Network:
        return self


def ways(reward: Any, **settings: Any) -> str:
    return way_of(replace(config(**settings), rewards={"it": Scorer(reward)}))[0]


def test_who_asks_elsewhere_does_not_need_the_device_of_the_trainer():
    assert ways(Network()) == "before" and ways(Network(), engine=Apart()) == "beside"
    asking = Remote("http://127.0.0.1:1", "it"), AnswerJudge(ServerVlm("http://127.0.0.1:1", "m"))
    assert [ways(reward) for reward in asking] == ["scored beside"] * 2
    assert ways(AnswerJudge(Network())) == "before"


def test_a_reward_that_takes_turns_on_the_device_does_not_come_while_weights_are_updated():
    assert ways(Network(), engine=Apart(), offload_rewards=True) == "before"
    assert ways(Remote("http://127.0.0.1:1", "it"), engine=Apart(), offload_rewards=True) == "beside"


@dataclass(frozen=True)
class ChangesTheDtype(ToyReward):
    threads: list[threading.Thread] = field(default_factory=list, compare=False)

    def __call__(self, items: Any, prompts: Any) -> dict[str, Tensor]:
        self.threads.append(threading.current_thread())
        found = super().__call__(items, prompts)
        torch.set_default_dtype(torch.float64)
        return found


@pytest.mark.parametrize("engine", [ToyEngine, Apart])
def test_a_reward_that_changes_the_process_does_not_score_beside_the_update(engine, tmp_path, caplog):
    def of(reward: Any) -> RunConfig:
        return replace(config(engine=engine()), rewards={f"changing{engine.__name__}": Scorer(reward)})

    reward = ChangesTheDtype()
    run, calm = learner(of(reward), tmp_path), learner(of(ToyReward()), tmp_path)
    assert run.ahead.way == {ToyEngine: "scored beside", Apart: "beside"}[engine] == calm.ahead.way
    rows, wanted = ([one.step(step) for step in range(3)] for one in (run, calm))
    assert set(reward.threads) == {threading.main_thread()} and run.ahead.way == "before"
    assert f"the reward changing{engine.__name__} changes torch's default dtype of the process" in caplog.text
    assert [row["loss/total"] for row in rows] == [row["loss/total"] for row in wanted]
    assert torch.equal(run.policy.logits, calm.policy.logits)


# ── going on ──


def test_the_disk_is_asked_for_what_a_checkpoint_will_hold(tmp_path):
    run = learner(config(), tmp_path)
    foretold, _ = run.checkpoint_bytes()
    run.step(0)
    assert 0 <= run.checkpoint_bytes()[0] - foretold < 64  # the optimiser's count of its updates
    run.policy.logits.data = run.policy.logits.data.bfloat16()
    assert run.ahead.copied_bytes() == 4 * run.policy.logits.numel()  # a copy is float32


PARTS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "adamw": dict,
    "pieces": lambda: {"collector": SampleAndScore(pieces=3)},
    "refills": lambda: {"collector": DynamicSampling(max_batches=3)},
    "prioritised": lambda: {"collector": Prioritised(pool=2), "prompts_per_step": 4},
    "unsolved": lambda: {"collector": Unsolved(threshold=0.2), "prompts_per_step": 4},
    "averaged": lambda: {"ema": Ema(every_updates=1)},
    "a slow sampler": lambda: {"sampling": SamplingPolicy(slope=0.3)},
    "an engine of its own": lambda: {"engine": Apart()},
}


def saved(run: Learner) -> Checkpoint:
    tensors, state = run.checkpoint()
    return Checkpoint(deepcopy(tensors), {"learner": deepcopy(state)})


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_a_run_that_goes_on_after_any_step_draws_what_lay_ready(parts, tmp_path):
    whole = learner(config(**parts()), tmp_path)
    rows, kept = [], []
    for step in range(4):
        rows += steps_of(whole, range(step, step + 1))
        kept.append(saved(whole))
    for step in (0, 2):
        again = learner(config(**parts()), tmp_path)
        again.load(kept[step], name="step")
        assert steps_of(again, range(step + 1, 4)) == rows[step + 1 :]
        assert torch.equal(again.policy.logits, whole.policy.logits)
        tensors, state = again.checkpoint()
        assert state == kept[-1].state["learner"]


@dataclass(frozen=True)
class ReadsAverage(Noting):
    """Reads the averaged weights while it draws, as the likelihood of an answer may be asked of them."""

    snapshots = ("ema",)

    def _weights(self, policy: Any) -> Tensor:
        with policy.snapshots.use("ema"):
            return policy.logits.detach().clone()


def test_copies_that_the_engine_reads_are_those_of_the_draw(tmp_path):
    engine = ReadsAverage()
    run = learner(config(engine=engine, ema=Ema(decay=0.5, every_updates=1)), tmp_path)
    run.step(0)
    run.step(1)
    kept, seen = saved(run), engine.drawn[2]
    again = learner(config(engine=(other := ReadsAverage()), ema=Ema(decay=0.5, every_updates=1)), tmp_path)
    again.load(kept, name="step")
    again.step(2)
    assert torch.equal(other.drawn[2], seen)
    average = again.policy.snapshots.copy_of("ema")["logits"]
    assert not torch.equal(average.double(), seen)


def test_after_other_weights_were_put_in_place_the_next_step_is_drawn_with_them(tmp_path):
    engine = Noting()
    run = learner(config(engine=engine), tmp_path)
    run.step(0)
    healthy = saved(run)
    steps_of(run, range(1, 3))
    run.put_back(healthy, name="step_000001")
    there = run.policy.logits.detach().clone()
    row = run.step(3)
    assert torch.equal(engine.drawn[3], there) and row["rollout/staleness"] == 0
    assert run.step(4)["rollout/staleness"] == 1


def test_a_run_may_begin_or_end_to_draw_ahead(tmp_path):
    before = learner(config(rollout_ahead=0), tmp_path)
    before.step(0)
    run = learner(config(), tmp_path)
    run.load(saved(before), name="step")
    assert [run.step(s)["rollout/staleness"] for s in (1, 2)] == [0, 1]
    back = learner(config(rollout_ahead=0), tmp_path)
    back.load(saved(run), name="step")
    assert "ahead" not in back.policy.snapshots
    back.step(3)


@pytest.mark.parametrize("damage", [{"version": "x"}, {"step": -1}, {"parts": []}])
def test_a_checkpoint_that_does_not_say_with_what_is_refused(damage, tmp_path):
    run = learner(config(), tmp_path)
    run.step(0)
    kept = saved(run)
    kept.state["learner"]["ahead"] |= damage
    with pytest.raises(CheckpointError, match="does not say with what"):
        learner(config(), tmp_path).load(kept, name="step_000001")


def test_a_run_to_more_steps_draws_them_as_one_that_always_had_them(tmp_path):
    whole = learner(config(), tmp_path)
    rows = steps_of(whole, range(4))
    short = learner(replace(config(), steps=2), tmp_path)
    steps_of(short, range(2))
    more = learner(config(), tmp_path)
    more.load(saved(short), name="step")
    assert [more.step(s)["reward/score/mean"] for s in (2, 3)] == [row["reward/score/mean"] for row in rows[2:]]
