"""A token policy that trains in seconds: one table of logits for each prompt and position. For tests of methods.

A prompt has a hidden sequence of tokens. A sample writes tokens until 0 ends it; it earns the share of positions that it got
right, or 1 if all are. The reward of the policy is known exactly, without sampling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from grpo_mm.processes.rng import stream
from grpo_mm.types import Outputs, Prompt, Rollout, Rows, Scores
from grpo_mm.weights.snapshots import Snapshots

TOKENS, LENGTH, END = 5, 6, 0
UNIT = 2
"""Tokens of a unit (turn, list item)."""


@dataclass(frozen=True)
class ToyPrompts:
    number: int = 8

    def load(self) -> list[Prompt]:
        found = []
        for i in range(self.number):
            target = torch.randint(1, TOKENS, (LENGTH,), generator=stream(0, "toy_target", i))
            found.append(Prompt(f"toy/{i}", str(i), target=tuple(target.tolist())))
        return found


@dataclass(frozen=True)
class ToyReward:
    """graded: share of right positions; binary: 1 if at least `least` of them are right, else 0; signed: the same as 1 or -1;
    length: minus the share of positions used; unit: share of right tokens of a unit (see `engine.outputs`)."""

    kind: Literal["graded", "binary", "signed", "length", "unit"] = "graded"
    least: int = 3

    def __call__(self, items: Sequence[tuple], prompts: Sequence[Prompt]) -> Scores:
        rows = [self._one(item, prompt) for item, prompt in zip(items, prompts, strict=True)]
        return {"score": torch.tensor(rows, dtype=torch.float64)}

    def _one(self, item: tuple[tuple[int, ...], int], prompt: Prompt) -> float:
        tokens, unit = item
        right = [a == b for a, b in zip(tokens, prompt.target)]
        if self.kind == "unit":
            here = right[unit * UNIT : (unit + 1) * UNIT]
            return sum(here) / UNIT
        if self.kind == "length":
            return -len(tokens) / LENGTH
        if self.kind == "graded":
            return sum(right) / LENGTH
        passed = float(sum(right) >= self.least)
        return 2 * passed - 1 if self.kind == "signed" else passed


@dataclass(frozen=True)
class ToyRecord:
    prompt_N: Tensor
    token_NA: Tensor

    def take(self, rows: Tensor) -> ToyRecord:
        return ToyRecord(self.prompt_N[rows], self.token_NA[rows])

    def cat(self, others: Sequence[ToyRecord]) -> ToyRecord:
        parts = [self, *others]
        return ToyRecord(torch.cat([p.prompt_N for p in parts]), torch.cat([p.token_NA for p in parts]))


PROVIDES = frozenset({"logprobs", "token_logprobs", "ref_logprobs", "behaviour_logprobs", "entropy"})


@dataclass(frozen=True)
class ToyPolicyConfig:
    prompts: int = 8
    micro_batch: int = 32
    start: float = 0.0
    """Scale of the random logits at the start."""

    provides = PROVIDES
    unit = "action"

    def check(self) -> None:
        pass

    def load(self, device: torch.device) -> ToyPolicy:
        return ToyPolicy(self)


class ToyPolicy:
    unit = "action"
    provides = PROVIDES

    def __init__(self, config: ToyPolicyConfig) -> None:
        self.config, self.device = config, torch.device("cpu")
        logits = config.start * torch.randn(config.prompts, LENGTH, TOKENS, generator=stream(0, "toy_start"))
        logits[..., END] -= 2.0  # most samples are long
        self.logits = nn.Parameter(logits.double())
        self.trainable = {"logits": self.logits}
        self.snapshots = Snapshots(self.trainable)

    def plan(self, rollout: Rollout, mask_NA: Tensor) -> list[Tensor]:
        position = torch.nonzero(mask_NA.flatten().bool()).flatten()
        return list(position.split(self.config.micro_batch)) if position.numel() else []

    def logprobs(
        self, rollout: Rollout, plan: Sequence[Tensor], *, needs: frozenset[str], grad: bool
    ) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        for index in plan:
            with torch.set_grad_enabled(grad):
                logprob = self._logprob(rollout)[index]
            values = {"logprobs": logprob, "token_logprobs": logprob}
            values["behaviour_logprobs"] = rollout.behaviour_NA.flatten()[index]
            if "entropy" in needs:
                table = self.logits.log_softmax(-1)[rollout.record.prompt_N]
                values["entropy"] = -(table.exp() * table).sum(-1).flatten()[index].detach()
            if "ref" in rollout.columns:
                values["ref_logprobs"] = rollout.columns["ref"].flatten()[index]
            yield index, values

    def _logprob(self, rollout: Rollout) -> Tensor:
        """[N · A]."""
        record: ToyRecord = rollout.record
        table = self.logits.log_softmax(-1)[record.prompt_N]
        return table.gather(2, record.token_NA[..., None])[..., 0].flatten()

    @torch.no_grad()
    def with_values_of(self, name: str, rollout: Rollout, mask_NA: Tensor, *, weights: str | None) -> Rollout:
        with self.snapshots.use(weights):
            logprob_NA = self._logprob(rollout).view(rollout.behaviour_NA.shape)
        return replace(rollout, columns={**rollout.columns, name: logprob_NA})

    @torch.no_grad()
    def expected(self, prompts: Sequence[Prompt]) -> float:
        """The exact graded reward: the mean probability of a right token at each position that is reached."""
        total = 0.0
        for prompt in prompts:
            p = self.logits[int(prompt.text)].softmax(-1)
            reached = 1.0
            for position, token in enumerate(prompt.target):
                total += float(reached * p[position, token]) / LENGTH
                reached *= 1 - float(p[position, END])
        return total / len(prompts)


@dataclass(frozen=True)
class ToyEngine:
    outputs: Literal["row", "unit"] = "row"
    """unit: every unit of a row is scored and credited by itself."""
    agents: int = 1
    """Sample s is written by agent s % agents, called by the sample of agent 0 before it."""
    demos: bool = False
    """Sample 0 of each prompt is a demonstration: it writes the target."""

    provides = PROVIDES

    def check(self, policy: Any, *, group_size: int, training_steps: int = 1) -> None:
        pass

    def actions(self) -> int:
        return LENGTH

    def pictures(self, group_size: int) -> int:
        return group_size * (LENGTH // UNIT if self.outputs == "unit" else 1)

    def table_columns(self, group_size: int) -> dict[str, Tensor]:
        rows = Rows(
            tuple(ToyPrompts(1).load()),
            torch.zeros(group_size, dtype=torch.int64),
            torch.arange(group_size),
            group_size,
        )
        rollout, outputs = self.sample(ToyPolicy(ToyPolicyConfig(1)), rows, step=0, seed=0, needs=frozenset())
        action = torch.full_like(outputs.row_M, -1) if outputs.action_M is None else outputs.action_M
        columns = {name: column[outputs.row_M] for name, column in rollout.columns.items()}
        return {"sample": outputs.row_M, "action": action, "tag": torch.zeros_like(action)} | columns

    @torch.no_grad()
    def sample(
        self, policy: ToyPolicy, rows: Rows, *, step: int, seed: int, needs: frozenset[str]
    ) -> tuple[Rollout, Outputs]:
        prompt_N = torch.tensor([int(rows.prompts[p].text) for p in rows.prompt_N])
        drawn = [
            torch.rand(LENGTH, generator=stream(seed, "toy", step, rows.prompts[p].id, s), dtype=torch.float64)
            for p, s in zip(rows.prompt_N.tolist(), rows.sample_N.tolist())
        ]
        table = policy.logits.log_softmax(-1)[prompt_N]
        token_NA = (torch.stack(drawn)[..., None] > table.exp().cumsum(-1)).sum(-1).clamp_max(TOKENS - 1)
        target = torch.tensor([rows.prompts[p].target for p in rows.prompt_N])
        demo = (rows.sample_N == 0) & self.demos
        token_NA = torch.where(demo[:, None], target, token_NA)
        ended = (token_NA == END).long().cumsum(1) - (token_NA == END).long() > 0
        mask_NA = ~ended
        logprob_NA = table.gather(2, token_NA[..., None])[..., 0]
        right = ((token_NA == target) & mask_NA).sum(1)
        length = mask_NA.sum(1)
        total = (logprob_NA * mask_NA).sum(1)
        columns = {
            "length": length, "truncated": length == LENGTH, "correct": right >= 3, "incorrect": right < 3,
            "repetitive": torch.zeros_like(length, dtype=torch.bool), "stratum": length // 3, "prior": torch.full((len(right),), 0.4),
            "logprob_mean": total / length, "logprob_sum": total, "ref_log_ratio": torch.zeros_like(total),
            "agent": rows.sample_N % self.agents, "main": rows.sample_N - rows.sample_N % self.agents,
            "valid": torch.ones_like(length, dtype=torch.bool), "order": rows.sample_N, "copies": torch.ones_like(length),
            "variant": rows.sample_N % 2, "time": torch.zeros_like(length),
            "state_key": torch.cat([torch.zeros_like(token_NA[:, :1]), token_NA[:, :-1]], 1), "token": token_NA,
            "chosen": (token_NA % 2 == 1) & mask_NA, "shared_prefix": torch.zeros_like(mask_NA), "demo": demo.long(),
            "eos": (token_NA == END) & mask_NA,
        }  # fmt: skip
        action_M, row_M = None, torch.arange(len(rows))
        units = torch.zeros_like(row_M)
        if self.outputs == "unit":
            columns["unit"] = (torch.arange(LENGTH) // UNIT).expand(len(rows), -1).masked_fill(columns["eos"], -1)
            row_M, units = torch.nonzero(mask_NA[:, ::UNIT], as_tuple=True)
            action_M = units
        texts = [tuple(t[:n]) for t, n in zip(token_NA.tolist(), length.tolist())]
        rollout = Rollout(
            rows.prompts, rows.prompt_N, rows.sample_N, logprob_NA, mask_NA, ToyRecord(prompt_N, token_NA), columns
        )
        items = [(texts[r], u) for r, u in zip(row_M.tolist(), units.tolist())]
        return rollout, Outputs(items, row_M, action_M)

    def network_calls(self, policy: Any, **_: Any) -> dict[str, int]:
        return {"rollout": 1, "train": 1}
