"""Runs of the toy policy by a method's preset: what each preset needs, and how much it learns."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from toy import ToyEngine, ToyPolicyConfig, ToyPrompts, ToyReward

from grpo_mm.config import methods
from grpo_mm.config.run_config import RunConfig
from grpo_mm.config.typed_yaml import build, merge
from grpo_mm.processes.distributed import Processes
from grpo_mm.training.learner import Learner
from grpo_mm.types import Outputs, Prompt, Rollout, Rows

SEEDS, STEPS = (0, 1, 2), 25


@dataclass(frozen=True)
class Need:
    """What a preset's run has that the others have not."""

    why: str
    settings: Mapping[str, Any]


def _rewards(**rewards: ToyReward) -> dict[str, Any]:
    return {"rewards": {name: {"use": reward} for name, reward in rewards.items()}}


GRADED, CORRECT = ToyReward(), ToyReward("binary", least=2)
ALWAYS, NEVER = ToyReward("binary", least=0), ToyReward("binary", least=7)
PAIRS = {"engine": ToyEngine(outputs="unit"), **_rewards(score=ToyReward("unit"))}

NEEDS: dict[str, Need] = {
    "spo": Need("prompts to choose from: a step asks four of the eight", {"prompts_per_step": 4, "group_size": 16}),
    "mc_grpo": Need("an odd group has a row in the middle", {"group_size": 9}),
    "v05": Need("rewards are -1 and 1", _rewards(score=ToyReward("signed", least=2))),
    "rank_grpo": Need("a reward for each item: a pair of tokens", PAIRS),
    "gigpo": Need("a reward for each step: a pair of tokens", PAIRS),
    "m_grpo": Need("odd samples are those of a sub-agent", {"engine": ToyEngine(agents=2)}),
    "graph_grpo": Need("a choice is an odd token, so parity is all it can learn", {}),
    "s_grpo": Need("an exit is correct or not", _rewards(score=CORRECT)),
    "crpo": Need("three rewards", _rewards(accuracy=CORRECT, faithfulness=GRADED, comprehensiveness=GRADED)),
    "p_grpo": Need("a process reward, gated by the outcome", _rewards(outcome=CORRECT, process=GRADED)),
    "grpo_lambda": Need("an answer is correct or not", _rewards(score=CORRECT)),
    "unlikely": Need("an answer is correct or not", _rewards(score=CORRECT)),
    "disco": Need("an answer is correct or not", _rewards(score=CORRECT)),
    "drpo": Need(
        "an answer is correct or not; its longest answer has 6 tokens",
        {**_rewards(score=CORRECT), "advantage": [
            {"kind": "weighted_sum"}, {"kind": "mark_positive", "threshold": 0.5}, {"kind": "shortness", "max_length": 6},
        ]},
    ),
    "cobalt": Need("pass rates; a first turn", _rewards(pass_rate=GRADED, previous_best=NEVER, format=ALWAYS)),
    "faithful_grpo": Need(
        "five rewards, three of them constraints",
        _rewards(accuracy=CORRECT, format=ALWAYS, consistency=GRADED, semantic_grounding=GRADED, spatial_grounding=GRADED),
    ),
    "gdpo": Need("two rewards to normalise apart", _rewards(graded=GRADED, correct=CORRECT)),
    "multi_label_grpo": Need("two labels", _rewards(graded=GRADED, correct=CORRECT)),
    "kl_cov": Need("it acts from the second update of a rollout on", {"updates": {"count": 2}}),
    "grao": Need("a demonstration in each group", {"engine": ToyEngine(demos=True)}),
}  # fmt: skip


@dataclass(frozen=True)
class Witness(ToyReward):
    """A toy reward that remembers which prompts ever had a right answer."""

    right: set[str] = field(default_factory=set, compare=False)

    def _one(self, item: tuple[tuple[int, ...], int], prompt: Prompt) -> float:
        score = super()._one(item, prompt)
        if score > 0:
            self.right.add(prompt.text)
        return score


@dataclass(frozen=True)
class Counting(ToyEngine):
    """A toy engine that counts the samples it draws."""

    drawn: Counter = field(default_factory=Counter, compare=False)

    def sample(self, policy: Any, rows: Rows, **how: Any) -> tuple[Rollout, Outputs]:
        self.drawn["rows"] += len(rows)
        return super().sample(policy, rows, **how)


@dataclass(frozen=True)
class Learned:
    """One run: the exact expected share of right tokens before and after, and what moved."""

    before: float
    after: float
    grad_norms: tuple[float, ...]
    """Of the last optimiser update of each step, in order; a step without anything to learn from: 0."""
    moved: tuple[float, ...]
    """Largest change of a logit, for each prompt."""
    samples: int
    """Drawn over the run."""

    @property
    def gain(self) -> float:
        return self.after - self.before


def config_of(name: str, *, seed: int = 0, steps: int = STEPS, **settings: Any) -> RunConfig:
    """The toy run of a method; `settings` go last."""
    method = methods.find(name)
    base = {
        "name": "toy", "policy": ToyPolicyConfig(), "engine": ToyEngine(), "prompts": {"toy": {"use": ToyPrompts()}},
        "steps": steps, "prompts_per_step": 8, "group_size": 8, "seed": seed, "device": "cpu", "samples_every": 0,
        "optim": {"lr": 0.1, "weight_decay": 0.0},
    }  # fmt: skip
    need = NEEDS[method.name].settings if method.name in NEEDS else {}
    base = {**base, **_rewards(score=GRADED), **need, **settings}
    return build(RunConfig, merge(methods.preset(method.key), base))


def learn(name: str, *, seed: int = 0, steps: int = STEPS, **settings: Any) -> Learned:
    """Trains the toy policy by a method's preset."""
    config = config_of(name, seed=seed, steps=steps, **settings)
    drawn = Counter()
    config = replace(config, engine=Counting(**vars(config.engine), drawn=drawn))
    with tempfile.TemporaryDirectory() as folder:
        learner = Learner(config, Processes(device="cpu"), samples=Path(folder))
        prompts = ToyPrompts().load()
        start, before = learner.policy.logits.detach().clone(), learner.policy.expected(prompts)
        norms = [learner.step(step).get("optim/grad_norm", 0.0) for step in range(steps)]
    moved = (learner.policy.logits.detach() - start).abs().amax((1, 2))
    return Learned(before, learner.policy.expected(prompts), tuple(norms), tuple(moved.tolist()), drawn["rows"])


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and its standard error."""
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))


ALL_WRONG_LEAST = 5
"""Right tokens of 6 that are wanted where nearly all groups are all wrong: 0.4 % of the first samples."""


@dataclass(frozen=True)
class AllWrong:
    """A run in which nearly no sample is right."""

    run: Learned
    unsolved: tuple[float, ...]
    """Largest change of a logit of each prompt that never had a right sample."""

    @property
    def silent(self) -> int:
        """Steps that ended without a gradient."""
        return sum(norm == 0 for norm in self.run.grad_norms)


def learn_all_wrong(name: str, *, seed: int = 0, steps: int = STEPS, least: int = ALL_WRONG_LEAST) -> AllWrong:
    """`learn` with a binary reward that asks for so much that nearly all groups are all wrong."""
    witness = Witness("signed" if name == "v05" else "binary", least)
    run = learn(name, seed=seed, steps=steps, rewards={"score": {"use": witness}})
    return AllWrong(run, tuple(m for i, m in enumerate(run.moved) if str(i) not in witness.right))
