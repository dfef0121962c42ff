"""One training step: rollout, credit, updates.

prompts ─▶ collector(sample, score) ─▶ table ─▶ advantage stages ─▶ credit ─▶ updates
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo_mm.advantages.credit import credit
from grpo_mm.config.run_config import RunConfig
from grpo_mm.errors import CheckpointError, TrainingStopped
from grpo_mm.golden.comparing import State, check_goldens
from grpo_mm.processes import clock
from grpo_mm.processes.distributed import Processes
from grpo_mm.processes.rng import stream_seed
from grpo_mm.rollout.prompt_stream import PhasedStream
from grpo_mm.rollout.rows import update_mask
from grpo_mm.rollout.scoring import Scoring, applies_to, mean_scores
from grpo_mm.rollout.spread import ConstantScores, reward_spread
from grpo_mm.rollout.table import STALENESS, Table, gather, local_table
from grpo_mm.run.data import training_prompts
from grpo_mm.training.ahead import Ahead
from grpo_mm.training.drawing import Drawing, Drawn
from grpo_mm.training.forecast import forecast
from grpo_mm.training.onlooker import SHOWN_GROUPS, Onlooker, is_demo
from grpo_mm.training.preflight import check_media, check_scoring
from grpo_mm.training.settled import settled
from grpo_mm.types import Batch, Credit, Prompt, Rollout, prompts_of
from grpo_mm.weights import checkpoint
from grpo_mm.weights.checkpoint import Checkpoint
from grpo_mm.weights.optim import grad_norm
from grpo_mm.weights.stateful import load_parts, part_metrics, stateful_parts
from grpo_mm.weights.update import UpdateResult, accumulate, make_view

log = logging.getLogger(__name__)


class Learner:
    """The policy with its optimiser. Everything random is keyed by the step, so state is weights and a few counters."""

    def __init__(
        self,
        config: RunConfig,
        processes: Processes,
        *,
        samples: Path,
        sources: Mapping[str, Sequence[Prompt]] | None = None,
        held_out: Sequence[Prompt] = (),
    ) -> None:
        """Raises ConfigError for what the run will need and does not find (`preflight`), memory of the device included, before the
        policy is loaded.

        Args:
            sources: the prompts, where they are read already (`training_prompts`).
            held_out: the evaluation prompts, which `preflight` tries as well.
        """
        self.config, self.processes = config, processes
        self.forecast = forecast(config, processes)
        sources = training_prompts(config) if sources is None else sources
        self.prompts = PhasedStream(
            sources,
            {name: source.weight for name, source in config.prompts.items()},
            {name: (source.from_step, source.until_step) for name, source in config.prompts.items()},
        )
        self.rewards = Scoring(config.rewards, processes.device)
        self.constant_scores = ConstantScores(config.rewards)
        self.onlooker = Onlooker(config, processes, samples=samples)
        self.goldens: dict[str, State] = {}
        for place, scoring in (("rewards", self.rewards), ("watch", self.onlooker.watch)):
            scoring.load(leave=config.offload_rewards)
            self.goldens |= check_goldens(scoring, place=place, told=processes.rank == 0)
            scoring.leave_device() if config.offload_rewards else None
        if config.preflight and hasattr(config.policy, "stand_ins"):
            self._preflight(
                [replace(prompt, source=name) for name, prompts in sources.items() for prompt in prompts], held_out
            )
        torch.manual_seed(stream_seed(config.seed, "init"))  # new weights (adapters) are the same on every rank
        cuts: dict[str, Any] = {"shard": processes.shard} if processes.cuts_weights else {}
        cuts |= {} if processes.sequence is None else {"sequence": processes.sequence}
        self.policy = config.policy.load(processes.device, **cuts)
        self.params = list(self.policy.trainable.values())
        processes.check_alike(self.params, when="as they were loaded")
        self.optimizer = config.optim.build(self.params)
        reads = frozenset(getattr(config.engine, "snapshots", ()))
        self._take_reference() if config.needs_reference or "ref" in reads else None
        self._base: int | None = None
        """The sum of bits of the reference, where checkpoints name it instead of holding it: it is the model as it was loaded."""
        keeps = "ref" in self.policy.snapshots and config.reference_reset is None
        if processes.cuts_weights and keeps and getattr(config.policy, "lora", None) is None:
            self._base = self._reference_checksum()
        self.policy.snapshots.take("ema") if config.ema else None
        self.policy.snapshots.take("sampling") if config.sampling else None
        self.drawing = Drawing(config, processes, policy=self.policy, rewards=self.rewards, prompts=self.prompts)
        self.ahead = Ahead(config, self.drawing, processes)
        self.lr_scale = 1.0
        """Of every learning rate; watch rules lower it, and their state keeps it."""
        self.counters: dict[str, int] = {
            "updates": 0, "averages": 0, "bad_updates": 0, "bad_in_a_row": 0, "since_reset": 0,
        }  # fmt: skip

    def _preflight(self, training: Sequence[Prompt], held_out: Sequence[Prompt]) -> None:
        stand_ins, prompts = self.config.policy.stand_ins, [*training, *held_out]
        if hasattr(self.config.policy, "probe_media"):
            check_media(prompts, self.config.policy.probe_media)
        check_scoring(self.rewards, prompts, stand_ins, place="rewards", must_apply=training)
        check_scoring(self.onlooker.watch, prompts, stand_ins, place="watch")
        if self.config.offload_rewards:
            self.rewards.leave_device()
            self.onlooker.watch.leave_device()

    def step(self, step: int) -> dict[str, float]:
        """Rollout, credit and updates of training step `step` (from 0); returns what is logged."""
        drawn, staleness = self.ahead.take(step, version=self.counters["updates"])
        drawn.count()
        found: dict[str, float] = {}
        for number, batch in enumerate(drawn.batches):
            if number:
                self.ahead.wait()  # the rewards that are watched are asked by one thread at a time
            found |= self._train_on(self._dated(batch, staleness), drawn.part_N, step)
        self.ahead.begin(step + 1, version=self.counters["updates"])  # where there was nothing to train on
        self.ahead.wait()
        self.constant_scores.after(step)
        found |= self._amounts(drawn)
        found |= {"rollout/staleness": float(staleness)} if self.config.rollout_ahead else {}
        found |= {f"time/queue_{where}_rows": float(rows) for where, rows in self.ahead.queue.items()}
        every = self.processes.distributed.check_every
        if every and (step + 1) % every == 0:
            self.processes.check_alike(self.params, when=f"after step {step + 1}")
        return found | self._after_step(step, found)

    def rollout(self, step: int) -> tuple[list[Batch], Tensor]:
        """This rank's scored batches of a step by the weights in place, and the update part of each row, [N]."""
        drawn = self.drawing(step)
        drawn.count()
        return drawn.batches, drawn.part_N

    def _dated(self, batch: Batch, staleness: int) -> Batch:
        """With the column that says how many updates behind the rows were drawn, where they are drawn ahead."""
        if not self.config.rollout_ahead:
            return batch
        column_N = torch.full((batch.rollout.num_rows,), staleness)
        return replace(batch, rollout=replace(batch.rollout, columns={**batch.rollout.columns, STALENESS: column_N}))

    def _amounts(self, drawn: Drawn) -> dict[str, float]:
        """What was sampled for the step on all ranks, and how often each source has been gone through."""
        ranks = self.processes.gather(drawn.amounts)
        totals = {name: float(sum(rank.get(name, 0) for rank in ranks)) for name in sorted(set().union(*ranks))}
        epochs = self.prompts.epochs(drawn.step + 1, self.config.prompts_per_step)
        return {f"rollout/{name}": total for name, total in totals.items()} | {
            f"data/{name}/epochs": share for name, share in epochs.items()
        }

    def _after_step(self, step: int, found: dict[str, float]) -> dict[str, float]:
        """Copies of the weights that follow them step by step."""
        config, counters = self.config, self.counters
        if config.sampling is not None:
            self.policy.snapshots.average("sampling", config.sampling.decay_at(step))
            self.policy.snapshots.changed()  # an engine has another copy, also where every update was skipped
        if config.reference_reset is None:
            return {}
        counters["since_reset"] += 1
        due = config.reference_reset.is_due(counters["since_reset"], found.get("objective/ref_kl", 0.0))
        if due:
            self._take_reference()
            counters["since_reset"] = 0
        return {"policy/reference_reset": float(due)}

    def _train_on(self, batch: Batch, part_N: Tensor, step: int) -> dict[str, float]:
        table = self.table(batch)
        part_N = part_N if batch.part_N is None else batch.part_N
        found, earned = self._credit(batch, table, step)
        found |= part_metrics(self.config)
        self.ahead.begin(step + 1, version=self.counters["updates"])
        rollout = batch.rollout
        kept_NA = rollout.mask_NA & earned.keep_NA.to(rollout.mask_NA.device)
        if self.config.needs_reference:
            rollout = self.policy.with_values_of("ref", rollout, kept_NA, weights="ref")
        if "velocity_shift_ema" in self.config.needs:
            rollout = self.policy.with_values_of("ema", rollout, kept_NA, weights="ema")
        if self.config.old_logprobs_of == "recompute" and "mean_shift_old" in self.config.needs:
            with self.drawing.sampling_weights():
                rollout = self.policy.with_values_of("old", rollout, kept_NA, weights=None)
        with self.drawing.sampling_weights():
            old_NA = self._old_logprobs(rollout)
        updates = self.config.updates
        results = []
        for part in [part for _ in range(updates.passes) for part in range(updates.count)]:
            mask_NA = update_mask(rollout.mask_NA, part_N, by=updates.by, part=part, parts=updates.count)
            view = make_view(rollout, earned, mask_NA, old_NA, self.processes)
            with self.processes.updating(self.policy):
                result = accumulate(self.policy, rollout, self.config.objective, view, self.processes)
            results.append(result)
            found |= self._apply(result)
        if self.ahead.learning():
            self.ahead.wait()
        if self.counters["bad_in_a_row"] == 0:
            for _, part_with_state in stateful_parts(self.config):
                part_with_state.update(table)
        return found | batch.metrics | _summarise(results)

    def table(self, batch: Batch) -> Table:
        """Rewards and columns of all ranks."""
        rewards = self.config.rewards
        asked = {name: partial(applies_to, s) for name, s in rewards.items()}
        optional = {name for stage in self.config.advantage for name in getattr(stage, "optional_rewards", ())}
        local = local_table(batch, applies_to=asked, optional=optional)
        return gather(self.processes.gather(local), weights={name: scorer.weight for name, scorer in rewards.items()})

    def _credit(self, batch: Batch, table: Table, step: int) -> tuple[dict[str, float], Credit]:
        found = self._rollout_means(batch.rollout)
        own = torch.nonzero(~is_demo(batch.rollout)[batch.outputs.row_M]).flatten()
        applied = self.rewards.applied(prompts_of(batch.rollout, batch.outputs.row_M[own]))
        scores = {name: {part: value[own] for part, value in parts.items()} for name, parts in batch.scores.items()}
        found |= mean_scores(scores, self.processes, prefix="reward", names={"score": "mean"}, applied=applied)
        if not len(table):
            raise TrainingStopped(
                f"step {step + 1}: none of {len(batch.rollout.prompts)} prompts could be asked (media that cannot be read, or too "
                "long); a warning above names each."
            )
        if not bool(table.columns["failed"].any()) and all(bool(v.isnan().all()) for v in table.values.values()):
            raise TrainingStopped(
                f"step {step + 1}: no reward applies to any of {len(table)} rows; look at what the prompts say."
            )
        if bool(table.columns["failed"].all()):
            errors = [e for rank in self.processes.gather(self.rewards.first_error) for e in rank.values()]
            raise TrainingStopped(
                f"step {step + 1}: every one of {len(table)} rows failed to be scored. The first error was:\n"
                + (
                    errors[0]
                    if errors
                    else "no exception: the reward gave NaN or None for every row, which says that it cannot tell. Judges warn above of what failed."
                )
            )
        found |= reward_spread(table)
        self.constant_scores.look(table)
        found["reward/failed_frac"] = float(table.columns["failed"].double().mean())
        earned = credit(table, self.config.advantage, rollout=batch.rollout, rank=self.processes.rank)
        if 1.0 in (earned.metrics["advantage/zero_groups_frac"], earned.metrics["advantage/left_out_frac"]):
            log.warning(
                "step %d: nothing to learn from, every advantage is 0 or left out; do the rewards differ?", step + 1
            )
        found |= earned.metrics
        why = partial(settled, table, self.config.advantage, prompts=SHOWN_GROUPS)
        return found | self.onlooker(batch, earned, step, why=why), earned

    def _rollout_means(self, rollout: Rollout) -> dict[str, float]:
        """Means over the rows of all ranks, demonstrations left out, of the columns that the engine wants logged."""
        names = [name for name in getattr(self.config.engine, "logged", ()) if name in rollout.columns]
        own_N = ~is_demo(rollout)
        local = {name: rollout.columns[name][own_N].double() for name in names}
        sums = {name: (float(value_N.nansum()), int(value_N.isfinite().sum())) for name, value_N in local.items()}
        ranks = self.processes.gather(sums)
        return {
            f"rollout/{name}": sum(rank[name][0] for rank in ranks) / max(1, sum(rank[name][1] for rank in ranks))
            for name in names
        }

    def _old_logprobs(self, rollout: Rollout) -> Tensor:
        """What ratios are taken against, [N, A]: NaN entries are computed now, before the weights change, or left to the update."""
        old_NA = rollout.behaviour_NA if rollout.old_NA is None else rollout.old_NA
        if "logprobs" not in self.config.needs:
            return old_NA.nan_to_num()
        if self.config.old_logprobs_of == "update":
            return torch.full_like(old_NA, torch.nan)
        if self.config.old_logprobs_of == "recompute":
            old_NA = torch.full_like(old_NA, torch.nan)
        plan = self.policy.plan(rollout, rollout.mask_NA & old_NA.isnan())
        if not (self.processes.max(len(plan)) if self.processes.cuts_weights else plan):
            return old_NA.nan_to_num()
        old_NA = old_NA.clone()
        with self.processes.gathered(self.policy):
            for index, values in self.policy.logprobs(rollout, plan, needs=frozenset({"logprobs"}), grad=False):
                old_NA.view(-1)[index] = values["logprobs"].to(old_NA.dtype)
        return old_NA.nan_to_num()

    def _apply(self, result: UpdateResult) -> dict[str, float]:
        """One optimiser update, or none if the loss or a gradient is not finite."""
        optim, counters = self.config.optim, self.counters
        norm = grad_norm(self.params)
        finite = math.isfinite(result.loss) and bool(torch.isfinite(norm))
        lr = self.lr_scale * optim.lr_at(counters["updates"], self.config.steps * self.config.updates.total)
        with clock.phase("optim"):
            if finite:
                scale = min(1.0, optim.max_grad_norm / (float(norm) + 1e-6))
                for p in self.params:
                    if p.grad is not None:
                        p.grad.mul_(scale)
                for group in self.optimizer.param_groups:
                    group["lr"] = lr
                self.optimizer.step()
                self.policy.snapshots.changed()
                counters["updates"] += 1
                counters["bad_in_a_row"] = 0
                self._average()
            else:
                counters["bad_updates"] += 1
                counters["bad_in_a_row"] += 1
                log.warning(
                    "a non-finite %s: this update is skipped", "loss" if not math.isfinite(result.loss) else "gradient"
                )
            self.optimizer.zero_grad(set_to_none=True)
        if counters["bad_in_a_row"] >= optim.max_bad_updates:
            raise TrainingStopped(
                f"{counters['bad_in_a_row']} updates in a row had a non-finite loss or gradient and were skipped; the weights "
                "are those before them. Lower optim.lr, or look at the rewards and log-probs in metrics.jsonl."
            )
        return {"optim/lr": lr, "optim/grad_norm": float(norm), "optim/bad_updates": counters["bad_updates"]}

    def _average(self) -> None:
        ema, counters = self.config.ema, self.counters
        if ema is not None and counters["updates"] % ema.every_updates == 0:
            self.policy.snapshots.average("ema", ema.decay_at(counters["averages"]))
            counters["averages"] += 1

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """The averaged weights if the run keeps them, else the present ones, not gathered."""
        averaged = self.config.ema is not None and self.config.ema.evaluate
        with self.policy.snapshots.use("ema") if averaged else nullcontext():
            yield

    def checkpoint(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """(tensors by file, plain values): all that the next step depends on, but for rows that lie ready, which are drawn again."""
        tensors = {
            "weights": {k: p.detach() for k, p in self.policy.trainable.items()},
            "optimizer": checkpoint.optimizer_tensors(self.optimizer),
            "snapshots": self.policy.snapshots.state(without=() if self._base is None else ("ref",)),
        }
        parts = {path: part.state_dict() for path, part in stateful_parts(self.config)}
        state = {"counters": self.counters, "parts": parts}
        ready = self.ahead.state_dict()
        state |= {} if ready is None else {"ahead": ready}
        return tensors, state if self._base is None else state | {"reference": self._base}

    def _take_reference(self) -> None:
        reduced = self.config.reference_dtype == "bfloat16"
        self.policy.snapshots.take("ref", dtype=torch.bfloat16 if reduced else None)

    def _reference_checksum(self) -> int:
        return self.processes.whole_checksum(self.policy.snapshots.copy_of("ref").values())

    def checkpoint_bytes(self) -> tuple[int, int]:
        """(of a checkpoint, of the weights alone): what they will take on disk."""
        weights = sum(p.numel() * p.element_size() for p in self.params)
        tensors, _ = self.checkpoint()
        moments = 0 if tensors["optimizer"] else 2 * weights
        kept = 0 if self.ahead.state_dict() else self.ahead.copied_bytes()  # else among the snapshots already
        return moments + kept + sum(
            t.numel() * t.element_size() for part in tensors.values() for t in part.values()
        ), weights

    def load(self, loaded: Checkpoint, *, name: str, changed: Sequence[str] = ()) -> None:
        """The inverse of `checkpoint`; `name` is for messages, `changed` the keys of settings that are others since."""
        missing = {"weights", "optimizer", "snapshots"} - set(loaded.tensors)
        if missing or "learner" not in loaded.state:
            what = ", ".join(sorted(missing)) or "counters"
            raise CheckpointError(f"{name} was not written by a training run: it has no {what}.")
        self._put_in_place(loaded, name=name)
        self.ahead.load_state_dict(loaded.state["learner"].get("ahead"), name=name)
        self.counters = dict(loaded.state["learner"]["counters"])
        load_parts(self.config, loaded.state["learner"]["parts"], changed=changed)

    def put_back(self, loaded: Checkpoint, *, name: str) -> None:
        """Weights, optimiser and snapshots of a checkpoint; what counts steps and updates goes on. What lay ready is let go."""
        self._put_in_place(loaded, name=name)
        self.ahead.forget()

    def _put_in_place(self, loaded: Checkpoint, *, name: str) -> None:
        checkpoint.load_strictly(self.policy.trainable, loaded.tensors["weights"], what=f"{name}/weights.safetensors")
        checkpoint.load_optimizer(self.optimizer, loaded.tensors["optimizer"])
        named = loaded.state.get("learner", {}).get("reference")
        keeps = named is not None and "ref" in self.policy.snapshots
        if keeps and named != (self._reference_checksum() if self._base is None else self._base):
            raise CheckpointError(
                f"{name} has the model as it was loaded for its reference, and that is another one now. Put back the files that the "
                "run began with."
            )
        self.policy.snapshots.load(loaded.tensors["snapshots"], keep=("ref",) if keeps else ())
        self.policy.snapshots.changed()


def _summarise(results: list[UpdateResult]) -> dict[str, float]:
    found = {"policy/logprob_gap": results[0].logprob_gap, "loss/total": sum(r.loss for r in results) / len(results)}
    for prefix, which in (("loss", "terms"), ("objective", "stats")):
        for name in getattr(results[0], which):
            found[f"{prefix}/{name}"] = sum(getattr(r, which)[name] for r in results) / len(results)
    return found
