"""The one training loop.

    prompts ─▶ collector(sample, score) ─▶ table ─▶ advantage stages ─▶ credit ─▶ updates ─▶ log, evaluate, checkpoint
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo_mm import checkpoint, clock, metrics, samples
from grpo_mm.advantages.credit import credit
from grpo_mm.checkpoint import Checkpoint
from grpo_mm.distributed import Processes
from grpo_mm.diversity import pairwise_distance
from grpo_mm.errors import CheckpointError, TrainingStopped
from grpo_mm.evaluate import EvalResult, evaluate
from grpo_mm.model_card import write_model_card
from grpo_mm.optim import grad_norm
from grpo_mm.prompt_stream import PromptStream
from grpo_mm.rng import stream_seed
from grpo_mm.rows import plan_rows, update_mask
from grpo_mm.run_config import RunConfig
from grpo_mm.run_folder import RunFolder, cut_back, find_checkpoint, full_disk_stops, replace_text
from grpo_mm.scoring import Scoring, mean_scores
from grpo_mm.table import gather, local_table
from grpo_mm.types import Batch, Credit, Outputs, Prompt, Rollout, Rows, Scores
from grpo_mm.update import UpdateResult, accumulate, make_view

log = logging.getLogger(__name__)

OnStep = Callable[[int, dict[str, float]], None]


class Trainer:
    """One run in one process. Everything random is keyed by the step, so state is weights, optimiser and counters."""

    def __init__(self, config: RunConfig, folder: RunFolder, processes: Processes) -> None:
        self.config, self.folder, self.processes = config, folder, processes
        sources = {name: source.use.load() for name, source in config.prompts.items()}
        self.prompts = PromptStream(sources, {name: source.weight for name, source in config.prompts.items()})
        self.eval_prompts = held_out_prompts(config)
        torch.manual_seed(stream_seed(config.seed, "init"))  # new weights (adapters) are the same on every rank
        self.policy = config.policy.load(processes.device)
        self.params = list(self.policy.trainable.values())
        self.optimizer = config.optim.build(self.params)
        self.rewards = Scoring(config.rewards, processes.device)
        self.watch = Scoring(config.watch, processes.device)
        self.policy.snapshots.take("ref") if config.needs_reference else None
        self.policy.snapshots.take("ema") if config.ema else None
        self.state: dict[str, Any] = {
            "step": 0, "updates": 0, "averages": 0, "bad_updates": 0, "bad_in_a_row": 0,
            "best_score": None, "best_step": None, "evaluations_without_gain": 0,
            "calls": {}, "seconds": {"train": 0.0, "eval": 0.0}, "eval_before": None, "eval_last": None,
            "stopped_early": None,
        }  # fmt: skip

    # ── one step ──────────────────────────────────────────────────────────────────────────────────────────────────

    def step(self, step: int) -> dict[str, float]:
        """Rollout, credit and updates of training step `step` (from 0); returns what is logged."""
        config = self.config
        prompts = tuple(self.prompts.batch(step, config.prompts_per_step, config.seed))
        parts = config.updates.count if config.updates.by == "group" else 1
        rows, part_N = plan_rows(
            prompts, group_size=config.group_size, parts=parts, rank=self.processes.rank, world=self.processes.world
        )
        found: dict[str, float] = {}
        for batch in config.collector(lambda r: self._sample(r, step), self._score, rows):
            found |= self._train_on(batch, part_N, step)
        return found

    def _sample(self, rows: Rows, step: int) -> tuple[Rollout, Outputs]:
        with clock.phase("rollout"):
            return self.config.engine.sample(self.policy, rows, step=step, seed=self.config.seed, needs=self.config.needs)

    def _score(self, rollout: Rollout, outputs: Outputs) -> dict[str, Scores]:
        prompts = [rollout.prompts[p] for p in rollout.prompt_N[outputs.row_M].tolist()]
        return self.rewards(outputs.items, prompts)

    def _train_on(self, batch: Batch, part_N: Tensor, step: int) -> dict[str, float]:
        found, table_credit = self._credit(batch, step)
        rollout = batch.rollout
        if self.config.needs_reference:
            rollout = self.policy.with_reference(rollout, rollout.mask_NA & table_credit.keep_N[:, None].to(rollout.mask_NA.device))
        old_NA = self._old_logprobs(rollout)
        updates = self.config.updates
        results = []
        for part in range(updates.count):
            mask_NA = update_mask(rollout.mask_NA, part_N, by=updates.by, part=part, parts=updates.count)
            view = make_view(rollout, table_credit, mask_NA, old_NA, self.processes)
            result = accumulate(self.policy, rollout, self.config.objective, view, self.processes)
            results.append(result)
            found |= self._apply(result)
        return found | _summarise(results)

    def _credit(self, batch: Batch, step: int) -> tuple[dict[str, float], Credit]:
        config = self.config
        applies_to = {name: scorer.sources for name, scorer in config.rewards.items()}
        tables = self.processes.gather(local_table(batch, applies_to=applies_to))
        table = gather(tables, weights={name: scorer.weight for name, scorer in config.rewards.items()})
        prompts = _prompts_of(batch)
        found = mean_scores(
            batch.scores, self.processes, prefix="reward", names={"score": "mean"}, applied=self.rewards.applied(prompts)
        )
        if bool(table.columns["failed"].all()):
            errors = [e for rank in self.processes.gather(self.rewards.first_error) for e in rank.values()]
            raise TrainingStopped(
                f"step {step + 1}: every one of {len(table)} rows failed to be scored. The first error was:\n"
                + (errors[0] if errors else "no exception: the reward returned NaN for every row.")
            )
        found["reward/failed_frac"] = float(table.columns["failed"].double().mean())
        earned = credit(table, config.advantage, rollout=batch.rollout, rank=self.processes.rank)
        found |= earned.metrics
        found |= self._look_at(batch, earned, step)
        return found, earned

    def _look_at(self, batch: Batch, earned: Credit, step: int) -> dict[str, float]:
        """Watch rewards and diversity of the rollout, and now and then a sheet of pictures."""
        outputs, rollout, config = batch.outputs, batch.rollout, self.config
        prompt_M = rollout.prompt_N[outputs.row_M]
        found: dict[str, float] = {}
        if config.watch:
            prompts = _prompts_of(batch)
            watched = self.watch(outputs.items, prompts)
            found |= mean_scores(watched, self.processes, prefix="watch", names={}, applied=self.watch.applied(prompts))
        if not isinstance(outputs.items, Tensor):
            return found
        with clock.phase("look"):
            found["diversity/mean"] = self._diversity(outputs.items, prompt_M)
            if config.samples_every and (step + 1) % config.samples_every == 0 or step == 0 and config.samples_every:
                self._write_sheet(batch, earned, prompt_M, step)
        return found

    def _diversity(self, images: Tensor, prompt_M: Tensor) -> float:
        small = torch.nn.functional.adaptive_avg_pool2d(images.float(), 32).round().to(torch.uint8)
        ranks = self.processes.gather((small, prompt_M))
        distance = pairwise_distance(torch.cat([s for s, _ in ranks]), torch.cat([p for _, p in ranks]))
        return float(distance.nanmean())

    def _write_sheet(self, batch: Batch, earned: Credit, prompt_M: Tensor, step: int) -> None:
        show = prompt_M < 6
        row_M = batch.outputs.row_M[show]
        advantage_M = earned.advantage_NA.mean(1)[row_M].masked_fill(~earned.keep_N[row_M], torch.nan)
        scores = {name: parts["score"][show] for name, parts in batch.scores.items()}
        ranks = self.processes.gather((batch.outputs.items[show], prompt_M[show], advantage_M, scores))
        if self.processes.is_main:
            samples.write_rollout_sheet(
                self.folder.samples,
                step=step + 1,
                images_MCHW=torch.cat([r[0] for r in ranks]),
                prompt_M=torch.cat([r[1] for r in ranks]),
                prompts=[p.text for p in batch.rollout.prompts],
                advantage_M=torch.cat([r[2] for r in ranks]),
                rewards={name: torch.cat([r[3][name] for r in ranks]) for name in scores},
            )

    def _old_logprobs(self, rollout: Rollout) -> Tensor:
        """What ratios are taken against, [N, A]: NaN entries are computed now, before the weights change."""
        old_NA = rollout.behaviour_NA if rollout.old_NA is None else rollout.old_NA
        if self.config.old_logprobs == "recompute":
            old_NA = torch.full_like(old_NA, torch.nan)
        plan = self.policy.plan(rollout.mask_NA & old_NA.isnan())
        if plan:
            old_NA = old_NA.clone()
            for index, values in self.policy.logprobs(rollout, plan, needs=frozenset({"logprobs"}), grad=False):
                old_NA.view(-1)[index] = values["logprobs"].to(old_NA.dtype)
        return old_NA.nan_to_num()

    def _apply(self, result: UpdateResult) -> dict[str, float]:
        """One optimiser update, or none if the loss or a gradient is not finite."""
        optim, state = self.config.optim, self.state
        self.processes.sync_gradients(self.params)
        norm = grad_norm(self.params)
        finite = math.isfinite(result.loss) and bool(torch.isfinite(norm))
        lr = optim.lr_at(state["updates"], self.config.steps * self.config.updates.count)
        with clock.phase("optim"):
            if finite:
                scale = min(1.0, optim.max_grad_norm / (float(norm) + 1e-6))
                for p in self.params:
                    if p.grad is not None:
                        p.grad.mul_(scale)
                for group in self.optimizer.param_groups:
                    group["lr"] = lr
                self.optimizer.step()
                state["updates"] += 1
                state["bad_in_a_row"] = 0
                self._average()
            else:
                state["bad_updates"] += 1
                state["bad_in_a_row"] += 1
                log.warning("a non-finite %s: this update is skipped", "loss" if not math.isfinite(result.loss) else "gradient")
            self.optimizer.zero_grad(set_to_none=True)
        if state["bad_in_a_row"] >= optim.max_bad_updates:
            raise TrainingStopped(
                f"{state['bad_in_a_row']} updates in a row had a non-finite loss or gradient and were skipped; the weights "
                "are those before them. Lower optim.lr, or look at the rewards and log-probs in metrics.jsonl."
            )
        return {"optim/lr": lr, "optim/grad_norm": float(norm), "optim/bad_updates": state["bad_updates"]}

    def _average(self) -> None:
        ema, state = self.config.ema, self.state
        if ema is not None and state["updates"] % ema.every_updates == 0:
            self.policy.snapshots.average("ema", ema.decay_at(state["averages"]))
            state["averages"] += 1

    # ── evaluation, checkpoints ───────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """The averaged weights if the run keeps them, else the present ones."""
        with self.policy.snapshots.use("ema") if self.config.ema else nullcontext():
            yield

    def evaluate(self, step: int, *, name: str) -> dict[str, float]:
        """Held-out metrics at `step`, written to the record, with a sheet of pictures."""
        if not self.eval_prompts:
            return {}
        began = time.perf_counter()
        with self.evaluation_weights():
            result = evaluate(self.config, self.policy, self.eval_prompts, self.rewards, self.watch, self.processes)
        seconds = time.perf_counter() - began
        self.state["seconds"]["eval"] += seconds
        self._record({"step": step, **result.metrics, "time/eval_seconds": seconds})
        self.state["eval_last"] = {"step": step, "metrics": result.metrics}
        self._note_score(result.metrics["eval/score"], step)
        if self.processes.is_main:
            self._write_eval_sheet(result, step, name)
        return result.metrics

    def _write_eval_sheet(self, result: EvalResult, step: int, name: str) -> None:
        samples.write_eval_sheet(
            self.folder.samples, name=name, step=step, images_MCHW=result.shown, prompts=result.shown_prompts,
            rewards=result.shown_rewards,
        )  # fmt: skip

    def _record(self, row: dict[str, float]) -> None:
        if self.processes.is_main:
            metrics.append(self.folder.metrics, row)
            if self.config.trackers:
                self.processes.accelerator.log({k: v for k, v in row.items() if k != "step"}, step=int(row["step"]))

    def _note_score(self, score: float, step: int) -> None:
        state = self.state
        if math.isfinite(score) and (state["best_score"] is None or score > state["best_score"]):
            state |= {"best_score": score, "best_step": step, "evaluations_without_gain": 0}
        else:
            state["evaluations_without_gain"] += 1

    def save(self, step: int) -> None:
        """Writes a checkpoint and lets go of those that are no longer kept."""
        self.state["step"] = step
        if self.processes.is_main:
            tensors = {
                "weights": {k: p.detach() for k, p in self.policy.trainable.items()},
                "optimizer": checkpoint.optimizer_tensors(self.optimizer),
                "snapshots": self.policy.snapshots.state(),
            }
            checkpoint.write(self.folder.checkpoints, Checkpoint(tensors, self.state), step=step)
            self._prune()
        self.processes.barrier()

    def _prune(self) -> None:
        """Deletes what is no longer kept and lists what there is in checkpoints.jsonl."""
        policy, there, best = self.config.checkpoints, checkpoint.steps(self.folder.checkpoints), self.state["best_step"]
        keep = {*there[-policy.keep_last :], *({best} if policy.keep_best else ())}
        checkpoint.prune(self.folder.checkpoints, keep=keep)
        rows = [{"step": s, "name": checkpoint.name_of(s), "best": s == best} for s in there if s in keep]
        replace_text(self.folder.path / "checkpoints.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def load(self, path: Path) -> None:
        """Takes weights, optimiser, snapshots and counters from a checkpoint."""
        loaded = checkpoint.read(path)
        missing = {"weights", "optimizer", "snapshots"} - set(loaded.tensors)
        if missing:
            raise CheckpointError(f"{path} was not written by a training run: it has no {', '.join(sorted(missing))}.")
        checkpoint.load_strictly(self.policy.trainable, loaded.tensors["weights"], what=str(path / "weights.safetensors"))
        checkpoint.load_optimizer(self.optimizer, loaded.tensors["optimizer"])
        self.policy.snapshots.load(loaded.tensors["snapshots"])
        self.state = dict(loaded.state)

    # ── the run ───────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, *, from_checkpoint: str | None = None, on_step: OnStep | None = None) -> dict[str, Any]:
        """Trains to the last step, from the newest checkpoint if there is one; returns the summary.

        Raises:
            SystemExit, KeyboardInterrupt: after SIGTERM or Ctrl-C, when the step is done and a checkpoint is written.
        """
        with full_disk_stops(self.folder):
            return self._run(from_checkpoint, on_step)

    def _run(self, from_checkpoint: str | None, on_step: OnStep | None) -> dict[str, Any]:
        self._clock = clock.use(clock.Clock())
        path = find_checkpoint(self.folder, from_checkpoint)
        if path is not None:
            self.load(path)
            log.info("going on from %s", path)
        config, state = self.config, self.state
        if self.processes.is_main:
            evaluated = state["eval_last"] is not None and state["eval_last"]["step"] == state["step"]
            cut_back(self.folder, step=state["step"] if path else -1, without_eval=not evaluated)
        self.processes.barrier()
        if path is None:
            state["eval_before"] = self.evaluate(0, name="eval_before")
        asked = 0
        with _stop_signals() as signal_asked:
            while state["step"] < config.steps and not state["stopped_early"] and not asked:
                row = self._timed_step(state["step"])
                state["step"] += 1
                self._record({"step": state["step"], **row})
                if on_step is not None:
                    on_step(state["step"], row)
                asked = int(self.processes.max(signal_asked()))
                self._after_step(must_save=bool(asked))
            asked = asked or int(self.processes.max(signal_asked()))
        if asked:
            log.warning("%s: saved at step %d; the same command goes on from there", signal.Signals(asked).name, state["step"])
            raise KeyboardInterrupt if asked == signal.SIGINT else SystemExit(128 + asked)
        return self._finish()

    def _timed_step(self, step: int) -> dict[str, float]:
        began = time.perf_counter()
        self._clock.take()
        row = self.step(step)
        seconds, counts = self._clock.take()
        total = time.perf_counter() - began
        self.state["seconds"]["train"] += total
        ranks = self.processes.gather(counts)
        for name in sorted(set().union(*ranks)):
            row[f"calls/{name}"] = sum(rank.get(name, 0) for rank in ranks)
            self.state["calls"][name] = self.state["calls"].get(name, 0) + row[f"calls/{name}"]
        row |= {f"time/{name}_seconds": s for name, s in sorted(seconds.items())}
        return row | {"time/step_seconds": total}

    def _after_step(self, *, must_save: bool) -> None:
        """Evaluation and checkpoint where they are due; notes when patience ends the run."""
        config, state, step = self.config, self.state, self.state["step"]
        every, patience = config.evaluation.every, config.evaluation.patience
        if every and step % every == 0 and step < config.steps and self.eval_prompts:
            self.evaluate(step, name=f"eval_{checkpoint.name_of(step)}")
            if patience is not None and state["evaluations_without_gain"] >= patience:
                state["stopped_early"] = "patience"
        is_due = config.checkpoints.every and step % config.checkpoints.every == 0
        is_best = config.checkpoints.keep_best and state["best_step"] == step
        if must_save or is_due or is_best or state["stopped_early"] or step == config.steps:
            self.save(step)

    def _finish(self) -> dict[str, Any]:
        """The last evaluation, the product and the summary, which is written last: it says that the run is done."""
        state, step = self.state, self.state["step"]
        last = state["eval_last"]
        after = last["metrics"] if last and last["step"] == step else self.evaluate(step, name="eval_after")
        self._prune() if self.processes.is_main else None
        summary = {
            "name": self.config.name,
            "steps": step,
            "stopped_early": state["stopped_early"],
            "eval_before": _short(state["eval_before"] or {}),
            "eval_after": _short(after),
            "best_step": state["best_step"],
            "seconds": {**state["seconds"], "total": sum(state["seconds"].values())},
            "network_calls": state["calls"],
            "bad_updates": state["bad_updates"],
            "product": self.policy.product,
        }
        if self.processes.is_main:
            summary["versions"] = json.loads((self.folder.path / "versions.json").read_text())
            with self.evaluation_weights():
                self.policy.save(self.folder.path / self.policy.product)
            write_model_card(self.folder.path / self.policy.product, summary, usage=self.policy.usage())
            replace_text(self.folder.summary, json.dumps(summary, indent=1, allow_nan=False))
        self.processes.barrier()
        return summary


def held_out_prompts(config: RunConfig) -> tuple[Prompt, ...]:
    """The evaluation prompts of all sources, each carrying its source's name."""
    limit = config.evaluation.limit
    return tuple(
        replace(prompt, source=name)
        for name, source in config.eval_prompts.items()
        for prompt in source.use.load()[:limit]
    )


def _prompts_of(batch: Batch) -> list[Prompt]:
    """The prompt of each local output."""
    return [batch.rollout.prompts[p] for p in batch.rollout.prompt_N[batch.outputs.row_M].tolist()]


def _summarise(results: list[UpdateResult]) -> dict[str, float]:
    found = {"policy/logprob_gap": results[0].logprob_gap, "loss/total": sum(r.loss for r in results) / len(results)}
    for prefix, which in (("loss", "terms"), ("objective", "stats")):
        for name in getattr(results[0], which):
            found[f"{prefix}/{name}"] = sum(getattr(r, which)[name] for r in results) / len(results)
    return found


def _short(found: dict[str, float]) -> dict[str, float | None]:
    return {key.removeprefix("eval/"): value if math.isfinite(value) else None for key, value in found.items()}


@contextmanager
def _stop_signals() -> Iterator[Callable[[], int]]:
    """Turns SIGTERM and Ctrl-C into a number that the loop reads between steps; a second one acts at once."""
    asked, before = [0], {}

    def note(number: int, _frame: Any) -> None:
        asked[0] = number
        signal.signal(number, before[number])
        os.write(2, b"\nstopping after this step, with a checkpoint; once more stops at once\n")

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and the like stay in force
                before[number] = signal.signal(number, note)
    except ValueError:  # not in the main thread: whoever started us handles signals
        pass
    try:
        yield lambda: asked[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
