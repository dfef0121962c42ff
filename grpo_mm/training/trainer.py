"""A run: the one training loop, with evaluation, checkpoints, the record and the summary around it."""

from __future__ import annotations

import difflib
import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from grpo_mm.config.run_config import RunConfig, plain
from grpo_mm.errors import CheckpointError, TrainingStopped, UserError
from grpo_mm.findings import first_difference
from grpo_mm.looking import held_out, metrics, samples, transcripts
from grpo_mm.looking.changes import read_changes
from grpo_mm.looking.origin import Origin
from grpo_mm.looking.progress_lines import Nobody, Plan, Told
from grpo_mm.looking.trackers import Trackers
from grpo_mm.looking.truth import truth_of
from grpo_mm.looking.verdict import verdict_of_folder
from grpo_mm.looking.watch import Alarm, Rules, describe
from grpo_mm.outside import reason
from grpo_mm.processes import clock, progress
from grpo_mm.processes.compiled import compiled_counts, told
from grpo_mm.processes.distributed import Processes
from grpo_mm.processes.peak_memory import GIB, peak_gib
from grpo_mm.processes.services import begun_again
from grpo_mm.rollout.phrasing import template_of, way_of
from grpo_mm.training.data import RunData, overlap
from grpo_mm.training.evaluate import EvalResult, evaluate
from grpo_mm.training.forecast import beside_measured
from grpo_mm.training.learner import Learner
from grpo_mm.training.onlooker import illustrator, is_shown, player
from grpo_mm.training.preflight import check_disk, check_sampler, refuse_what_differs, write_findings
from grpo_mm.training.product import (
    LARGEST_AT_AN_INTERRUPT,
    forget_later_product,
    note_product,
    save_product,
    whole_policy,
)
from grpo_mm.training.run_folder import RunFolder, cut_back, failing_disk_stops, find_checkpoint, replace_text
from grpo_mm.training.state import check_state
from grpo_mm.weights import checkpoint
from grpo_mm.weights.background import Writer, copied, free_memory, size_of
from grpo_mm.weights.checkpoint import Checkpoint

log = logging.getLogger(__name__)

OF_PARTS = ("learner", "rules", "default_rules")
"""What a checkpoint keeps beside the state of the loop."""
MARGIN = 1.2
"""Of main memory, that a copy of a checkpoint leaves free."""
AMOUNTS = ("pictures", "prompt_tokens", "answer_tokens")
"""What is sampled in a step: logged, and also as a rate over the entire step."""
OnStep = Callable[[int, dict[str, float]], None]


class Trainer:
    """One run in one process."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        processes: Processes,
        *,
        told: Told | None = None,
        trackers: Trackers | None = None,
        data: RunData | None = None,
    ) -> None:
        """told, trackers: of the main process; None: nobody hears of the run, or sees it. data: where it is read already."""
        self.config, self.folder, self.processes = config, folder, processes
        self.told = told if told is not None else Nobody()
        self.trackers = trackers
        data = RunData(config) if data is None else data
        sources, self.eval_prompts = data.training, data.held_out
        self.overlap = overlap(sources, self.eval_prompts)
        self.learner = Learner(config, processes, samples=folder.samples, sources=sources, held_out=self.eval_prompts)
        if config.preflight:
            size, product = self.learner.checkpoint_bytes()
            kept = config.checkpoints.keep_last + config.checkpoints.keep_best
            processes.by_main(lambda: check_disk(folder.path, checkpoint_bytes=size, product_bytes=product, kept=kept))
        self._writer = Writer()
        self._beside = processes.beside() if config.checkpoints.in_background else None
        self._told_of_room = False
        self.rules = Rules(config.watch)
        self.default_rules = Rules(config.default_rules)
        self.state: dict[str, Any] = {
            "step": 0, "best_score": None, "best_step": None, "evaluations_without_gain": 0,
            "calls": {}, "seconds": {"train": 0.0, "eval": 0.0}, "eval_before": None, "eval_last": None,
            "stopped_early": None,
        }  # fmt: skip

    def run(self, *, from_checkpoint: str | None = None, on_step: OnStep | None = None) -> dict[str, Any]:
        """Trains to the last step, from the newest checkpoint if there is one; returns the summary.

        Raises:
            SystemExit, KeyboardInterrupt: after SIGTERM or Ctrl-C, when the step is done and a checkpoint is written.
        """
        try:
            with failing_disk_stops(self.folder), progress.heard_by(self.told.working):
                return self._run(from_checkpoint, on_step)
        finally:
            self._writer.end()
            self.told.ends()

    def _run(self, from_checkpoint: str | None, on_step: OnStep | None) -> dict[str, Any]:
        self._clock = clock.use(clock.Clock(events=clock.events_of(self.processes.device)))
        self._graphs: dict[str, float] = {}
        path = self.processes.by_main(lambda: find_checkpoint(self.folder, from_checkpoint))
        if path is not None:
            self.load(path)
            log.info("going on from %s", path)
        config, state = self.config, self.state
        self._examine_sampler()
        self.processes.by_main(lambda: self._forget_what_came_after(state["step"] if path else -1))
        if self.trackers is not None:
            run = self.folder.run
            self.trackers.start(plain(config), step=state["step"], run_id=run.id if run else config.name)
        every = config.evaluation.every
        self.told.begins(Plan(state["step"], config.steps, tuple(config.rewards), every, bool(self.eval_prompts)))
        if path is not None:
            self._evaluate_what_is_due()
        if path is None:
            state["eval_before"] = self.evaluate(0, name="eval_before")
            if self.rules.can_go_back:
                self.save(0)  # there is always a checkpoint to go back to
        asked = 0
        with _stop_signals() as signal_asked:
            while state["step"] < config.steps and not state["stopped_early"] and not asked:
                with self._leaving_a_product():
                    row = self._timed_step(state["step"])
                state["step"] += 1
                alarms = self._record({"step": state["step"], **row}, weights_step=state["step"] - 1)
                if self.trackers is not None and is_shown(state["step"] - 1, every=config.samples_every):
                    self.trackers.samples(f"step_{state['step']:06d}")
                self.told.stepped(state["step"], row)
                if on_step is not None:
                    on_step(state["step"], row)
                self._act(alarms)
                asked = max(self.processes.everywhere(lambda: self._writer.check() or signal_asked()))
                self._after_step(must_save=bool(asked))
            asked = asked or int(self.processes.max(signal_asked()))
        self.processes.everywhere(self._writer.wait)
        if asked:
            log.warning(
                "%s: saved at step %d; the same command goes on from there", signal.Signals(asked).name, state["step"]
            )
            self._leave_product(f"interrupted by {signal.Signals(asked).name}")
            self.processes.barrier()  # a rank that ends makes launchers kill the others
            raise KeyboardInterrupt if asked == signal.SIGINT else SystemExit(128 + asked)
        return self._finish()

    def _examine_sampler(self) -> None:
        """Raises ConfigError on all ranks where an engine of one of them does not draw what is trained."""
        config, policy = self.config, self.learner.policy
        prompts = self.learner.prompts.batch(self.state["step"], config.prompts_per_step, config.seed)
        with self.processes.gathered(policy):
            found = check_sampler(config.engine, policy, prompts, group_size=config.group_size, seed=config.seed)
        everywhere = self.processes.gather(found)
        if any(everywhere):
            worst = next((rank for rank in everywhere if first_difference(rank) is not None), everywhere[0])
            self.processes.by_main(lambda: write_findings(self.folder.path, worst))
            refuse_what_differs(worst)

    def _forget_what_came_after(self, step: int) -> None:
        """In the run folder; -1: everything."""
        last = self.state["eval_last"]
        evaluated = last is not None and last["step"] == self.state["step"]
        cut_back(self.folder, step=step, without_eval=not evaluated, events=self.rules.events)
        forget_later_product(self.folder.path, step=step)

    @contextmanager
    def _leaving_a_product(self) -> Iterator[None]:
        """A step that cannot be done ends the run, and what was learnt before it is left as the product all the same."""
        updates = self.learner.counters["updates"]
        try:
            yield
        except TrainingStopped:
            if not self.processes.all_say(f"step {self.state['step'] + 1} could not be done"):
                raise  # on this process alone: the others cannot take part in a product
            done, within = self.state["step"], self.learner.counters["updates"] - updates
            if done + within > 0:
                why = f"step {done + 1} could not be done" + f", after {within} updates of it" * bool(within)
                try:
                    self._leave_product(why)
                except OSError as error:
                    log.warning("no product was written: %s", reason(error))
            raise

    def _evaluate_what_is_due(self) -> None:
        """A run that goes on after what was its last step has still to do what it would have done there on its way."""
        last, step = self.state["eval_last"], self.state["step"]
        if step > 0 and (last is None or last["step"] != step) and self._evaluate_on_the_way(step):
            self.save(step)

    def _timed_step(self, step: int) -> dict[str, float]:
        began = time.perf_counter()
        self._clock.take()
        row = self.learner.step(step)
        seconds, counts = self._clock.take()
        total = time.perf_counter() - began
        self.state["seconds"]["train"] += total
        everywhere = self.processes.gather((counts, peak_gib(self.processes.device)))
        ranks, peaks = [counts for counts, _ in everywhere], [peak for _, peak in everywhere]
        for name in sorted(set().union(*ranks)):
            row[f"calls/{name}"] = sum(rank.get(name, 0) for rank in ranks)
            self.state["calls"][name] = self.state["calls"].get(name, 0) + row[f"calls/{name}"]
        row |= {f"time/{name}_seconds": s for name, s in sorted(seconds.items())}
        row |= {
            f"time/{name}_per_second": row[f"rollout/{name}"] / total for name in AMOUNTS if f"rollout/{name}" in row
        }
        row |= {f"time/{name}_gib": max(peak[name] for peak in peaks) for name in peaks[0]}
        row |= beside_measured(self.learner.forecast, row)
        row |= self._compiled()
        return row | begun_again() | {"time/step_seconds": total}

    def _compiled(self) -> dict[str, float]:
        """Graphs and graph breaks of the main process, where the policy is compiled; the log tells whenever there are more."""
        found = compiled_counts() if getattr(self.config.policy, "compile", False) else {}
        if found and found != self._graphs:
            log.info("%s", told(found))
        self._graphs = found
        return found

    def _after_step(self, *, must_save: bool) -> None:
        """Evaluation and checkpoint where they are due; notes when patience ends the run."""
        config, state, step = self.config, self.state, self.state["step"]
        self._evaluate_on_the_way(step)
        is_due = config.checkpoints.every and step % config.checkpoints.every == 0
        is_best = config.checkpoints.keep_best and state["best_step"] == step
        if must_save or is_due or is_best or state["stopped_early"] or step == config.steps:
            self.save(step)

    def _evaluate_on_the_way(self, step: int) -> bool:
        """Where it is due; the last one is that of the end."""
        every, patience = self.config.evaluation.every, self.config.evaluation.patience
        if not every or step % every or step >= self.config.steps or not self.eval_prompts:
            return False
        self.evaluate(step, name=f"eval_{checkpoint.name_of(step)}")
        if patience is not None and self.state["evaluations_without_gain"] >= patience:
            self.state["stopped_early"] = self.state["stopped_early"] or "patience"
        return True

    def evaluate(self, step: int, *, name: str) -> dict[str, float]:
        """Held-out metrics at `step`, written to the record, with a sheet or a transcript; watch rules may act on them."""
        if not self.eval_prompts:
            return {}
        began = time.perf_counter()
        learner = self.learner
        self.told.evaluating(step, samples=len(self.eval_prompts) * self.config.evaluation.samples_per_prompt)
        with learner.evaluation_weights(), self.processes.gathered(learner.policy):
            result = evaluate(
                self.config, learner.policy, self.eval_prompts, learner.rewards, learner.onlooker.watch, self.processes
            )
        seconds = time.perf_counter() - began
        self.state["seconds"]["eval"] += seconds
        row = {"step": step, **result.metrics, **self.overlap, "time/eval_seconds": seconds}
        alarms = self._record(row, weights_step=step)
        self.state["eval_last"] = {"step": step, "metrics": result.metrics}
        if not self._act(alarms, too_late=name == "eval_after"):  # else these weights are gone, and are not the best
            self._note_score(result.metrics["eval/score"], step)
        if self.processes.is_main:
            held_out.append(self.folder.held_out, step=step, ids=result.ids, values=result.by_prompt)
            self._show(result, step, name=name)
            if self.trackers is not None:
                self.trackers.samples(name)
        self.told.evaluated(step, score=result.metrics["eval/score"], seconds=seconds)
        return result.metrics

    def _show(self, result: EvalResult, step: int, *, name: str) -> None:
        shown, prompts, rewards = result.shown, result.shown_prompts, result.shown_rewards
        if isinstance(shown, Tensor):
            samples.write_eval_sheet(
                self.folder.samples, name=name, step=step, images_MCHW=shown, prompts=[p.text for p in prompts],
                rewards=rewards, truths=[truth_of(p) for p in prompts],
            )  # fmt: skip
            return
        answers = [
            transcripts.Answer(text, {reward: float(value[i]) for reward, value in rewards.items()})
            for i, text in enumerate(shown)
        ]
        transcripts.write_transcript(
            self.folder.samples, name=name, kind="eval", step=step,
            asked=[(prompt, [answer]) for prompt, answer in zip(prompts, answers, strict=True)],
            sketch=self.config.sketch, illustrate=illustrator(self.config), play=player(self.config),
        )  # fmt: skip

    def _record(self, row: dict[str, float], *, weights_step: int) -> list[Alarm]:
        """Writes a row with what the watch rules say of it; returns those that act, the same on every rank."""
        alarms: list[Alarm] = []
        if self.rules.watched and row["step"] == 1 and weights_step == 0:
            self._tell_silent_rules(row)
        for rules in (self.rules, self.default_rules):
            if rules.watched:
                seen = self.processes.gather({metric: row.get(metric) for metric in rules.metrics.values()})[0]
                fields, acting = rules.observe(seen, weights_step=weights_step)
                row, alarms = row | fields, alarms + acting
        if self.processes.is_main:
            metrics.append(self.folder.metrics, row)
            if self.trackers is not None:
                self.trackers.metrics(row)
        return alarms

    def _tell_silent_rules(self, row: dict[str, float]) -> None:
        """A rule on a name that the first step does not log would wait for ever."""
        for name, metric in self.rules.metrics.items():
            if metric not in row and not metric.startswith("eval/"):
                near = difflib.get_close_matches(metric, list(row), n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                log.warning("watch rule %r has nothing to read: step 1 logged no %r.%s", name, metric, hint)

    def _act(self, alarms: list[Alarm], *, too_late: bool = False) -> bool:
        """Does what watch rules ask for and tells it in events.jsonl; True if other weights were put back.

        A run that stops keeps its weights, and once it has stopped it is too late for all but a warning.
        """
        put_back = False
        stops = any(alarm.action == "stop" for alarm in alarms)
        too_late = too_late or bool(self.state["stopped_early"])
        for alarm in alarms:
            action = "warn" if too_late or (stops and alarm.action == "rollback") else alarm.action
            event = {
                "step": self.state["step"], "rule": alarm.rule, "metric": alarm.metric, "value": alarm.value,
                "band": alarm.band, "asked": alarm.asked, "action": action,
            }  # fmt: skip
            if action == "rollback":
                event["weights_of"] = self._put_back()
                put_back = True
            if action in ("rollback", "lower_lr"):
                self.rules.lr_scale *= alarm.factor
                self.learner.lr_scale = self.rules.lr_scale
                event["factor"] = alarm.factor
            if action == "stop":
                self.state["stopped_early"] = f"watch: {alarm.rule}"
            self.rules.events += 1
            log.warning("watch rule %r, step %d: %s", alarm.rule, event["step"], describe(event))
            if self.processes.is_main:
                metrics.append(self.folder.events, event)
        return put_back

    def _put_back(self) -> int:
        """The weights of the newest checkpoint that was measured inside all bands; its step."""
        if self.state["step"] == 0:
            return 0
        self.processes.everywhere(self._writer.wait)
        step = self.processes.by_main(self._step_to_go_back_to)
        path = self.folder.checkpoints / checkpoint.name_of(step)
        loaded = self._read(path)
        self.processes.everywhere(lambda: self.learner.put_back(loaded, name=str(path)))
        return step

    def _step_to_go_back_to(self) -> int:
        step = self._healthy_checkpoint(self.rules.healthy_step)
        return checkpoint.steps(self.folder.checkpoints)[0] if step is None else step

    def _read(self, path: Path) -> Checkpoint:
        """A checkpoint that the main process has verified for all, and sends to those that do not see its disk."""
        processes, kept = self.processes, []
        processes.by_main(lambda: checkpoint.verify(path, self.folder.run) and None)
        seen = all(processes.gather_all(path.is_dir()))
        read = partial(checkpoint.read, path, verified=True)
        processes.everywhere(lambda: kept.append(read()) if seen or processes.is_main else None)
        if seen:
            return kept[0]
        own = kept[0] if kept else Checkpoint({}, {})
        names = processes.by_main(lambda: {file: list(named) for file, named in own.tensors.items()})
        tensors = {
            file: {name: processes.by_main(partial(_tensor, own, file, name)) for name in named}
            for file, named in names.items()
        }
        return Checkpoint(tensors, processes.by_main(lambda: own.state))

    def _healthy_checkpoint(self, healthy: int) -> int | None:
        there = checkpoint.steps(self.folder.checkpoints)
        return max((s for s in there if s <= healthy), default=None)

    def _note_score(self, score: float, step: int) -> None:
        state = self.state
        if math.isfinite(score) and (state["best_score"] is None or score > state["best_score"]):
            state |= {"best_score": score, "best_step": step, "evaluations_without_gain": 0}
        else:
            state["evaluations_without_gain"] += 1

    def save(self, step: int) -> None:
        """Writes a checkpoint and lets go of those that are no longer kept, at once or beside what follows."""
        self.state["step"] = step
        tensors, learner_state = self.learner.checkpoint()
        state = self.state | {"learner": learner_state, "rules": self.rules.state_dict()}
        made = Checkpoint(tensors, state | {"default_rules": self.default_rules.state_dict()})
        kept = self._healthy_most, state["best_step"]
        if self._beside is None or not self._has_room_for(made):
            self._write(made, step, self.processes, kept)
            return
        self.processes.everywhere(self._writer.wait)
        if self.processes.cuts_weights or self.processes.is_main:
            made = copied(made)
        self._writer.begin(lambda: self._write(made, step, self._beside, kept))

    def _write(self, made: Checkpoint, step: int, processes: Processes, kept: tuple[int | None, int | None]) -> None:
        where = self.folder.checkpoints
        if processes.cuts_weights:
            run = self.folder.run if processes.is_main else None
            checkpoint.write(where, made, step=step, run=run, processes=processes)
        else:
            processes.by_main(lambda: checkpoint.write(where, made, step=step, run=self.folder.run))
        processes.by_main(lambda: self._prune(*kept))

    def _has_room_for(self, made: Checkpoint) -> bool:
        """Of main memory, on all processes; else it is written at once, which the log says the first time."""
        writes = self.processes.cuts_weights or self.processes.is_main
        needed, free = size_of(made) if writes else 0, free_memory()
        short = free is not None and needed * MARGIN > free
        found = not any(self.processes.gather(short))
        if not found and not self._told_of_room:
            self._told_of_room = True
            log.warning(
                "checkpoints.in_background: a copy of a checkpoint takes %.1f GiB of main memory, which is short; they are written at once",
                needed / GIB,
            )
        return found

    @property
    def _healthy_most(self) -> int | None:
        """Up to which step weights were measured inside all bands; None: nobody watches."""
        return self.rules.healthy_step if self.rules.watched else None

    def _prune(self, healthy: int | None, best: int | None) -> None:
        """Deletes what is no longer kept and lists what there is in checkpoints.jsonl."""
        policy, there = self.config.checkpoints, checkpoint.steps(self.folder.checkpoints)
        keep = {*there[-policy.keep_last :], *({best} if policy.keep_best else ())}
        keep |= {self._healthy_checkpoint(healthy)} if healthy is not None else set()
        checkpoint.prune(
            self.folder.checkpoints, keep=keep | checkpoint.of_others(self.folder.checkpoints, self.folder.run)
        )
        rows = [{"step": s, "name": checkpoint.name_of(s), "best": s == best} for s in there if s in keep]
        replace_text(self.folder.path / "checkpoints.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def load(self, path: Path) -> None:
        """Takes everything from a checkpoint."""
        loaded = self._read(path)
        self.processes.everywhere(lambda: self._take(loaded, path))

    def _take(self, loaded: Checkpoint, path: Path) -> None:
        state = dict(loaded.state)
        check_state(state, self.state, name=str(path))
        try:
            changed = [each.key for each in read_changes(self.folder.path) if each.step >= state["step"]]
            self.learner.load(loaded, name=str(path), changed=changed)
            self.state = {key: value for key, value in state.items() if key not in OF_PARTS}
            if "rules" in state:
                # Rules may come and go on the way (`config.differences`): a new one has seen nothing yet.
                seen = {name: state["rules"]["seen"].get(name, begun) for name, begun in self.rules.seen.items()}
                self.rules.load_state_dict({**state["rules"], "seen": seen})
            if set(state.get("default_rules", {}).get("seen", ())) == set(self.default_rules.seen):
                self.default_rules.load_state_dict(
                    state["default_rules"]
                )  # else of a version with other ones: they begin anew
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise CheckpointError(f"{path} holds a state that no run has written: {reason(error)}.") from error
        self.learner.lr_scale = self.rules.lr_scale
        patience = self.config.evaluation.patience
        if self.state["stopped_early"] == "patience":
            waits = patience is None or self.state["evaluations_without_gain"] < patience
            self.state["stopped_early"] = None if waits else "patience"

    def _finish(self) -> dict[str, Any]:
        """The last evaluation, the product and the summary, which is written last: it says that the run is done."""
        state, step, policy = self.state, self.state["step"], self.learner.policy
        last = state["eval_last"]
        after = last["metrics"] if last and last["step"] == step else self.evaluate(step, name="eval_after")
        self.processes.by_main(lambda: self._prune(self._healthy_most, state["best_step"]))
        if self.learner.counters["updates"] == 0:
            log.warning("every update was skipped, so the product is the model as it was; look at the warnings above.")
        stopped = state["stopped_early"]
        origin = self._origin(f"stopped early by {stopped}" if stopped else "the last step")
        summary = {
            "name": self.config.name,
            "steps": step,
            "stopped_early": state["stopped_early"],
            "eval_before": short_metrics(state["eval_before"] or {}),
            "eval_after": short_metrics(after),
            "best_step": state["best_step"],
            "seconds": {**state["seconds"], "total": sum(state["seconds"].values())},
            "network_calls": {k: v for k, v in state["calls"].items() if k in clock.NETWORK_CALLS},
            "reward_calls": {k: v for k, v in state["calls"].items() if k not in clock.NETWORK_CALLS},
            "bad_updates": self.learner.counters["bad_updates"],
            "product": policy.product,
            "product_of": asdict(origin),
        }
        summary |= self.processes.by_main(self._what_the_folder_says)
        self._write_product(summary, origin)
        text = json.dumps(summary, indent=1, allow_nan=False)
        self.processes.by_main(lambda: replace_text(self.folder.summary, text))
        return summary

    def _what_the_folder_says(self) -> dict[str, Any]:
        """Of the whole run, for its summary."""
        path = self.folder.path
        found = verdict_of_folder(
            path, rules=self.config.default_rules | self.rules.watched, watched=list(self.config.watched_rewards)
        )
        return {
            "changes": [str(change) for change in read_changes(path)],
            "verdict": found.to_json(),
            "versions": json.loads((path / "versions.json").read_text()),
        }

    def _origin(self, why: str) -> Origin:
        """Of a product of the present weights."""
        state, averaged = self.state, self.config.ema is not None and self.config.ema.evaluate
        weights = "averaged" if averaged else "trained"
        return Origin(state["step"], self.config.steps, weights, why, state["best_step"])

    def _write_product(self, summary: dict[str, Any], origin: Origin) -> None:
        """The main process writes it. An engine knows how evaluation drew; the card's lines draw so too."""
        policy, engine = self.learner.policy, self.config.engine
        usage = engine.usage(policy) if hasattr(engine, "usage") else policy.usage()
        asked = {name: template_of(way_of(source.use)) for name, source in self.config.prompts.items()}
        told = {name: template for name, template in asked.items() if template is not None}
        path = self.folder.path / policy.product
        with self.learner.evaluation_weights():
            whole = whole_policy(self.config, policy, self.processes)

            def write() -> None:
                save_product(whole, path, origin=origin, summary=summary, usage=usage, asked=told)
                note_product(self.folder.path, policy.product, origin)

            self.processes.by_main(write)

    def _leave_product(self, why: str) -> None:
        """The product of a run that ends before its end; a large one is left to `grpo-mm export`, which the log says."""
        state, policy, path = self.state, self.learner.policy, self.folder.path
        size = getattr(policy, "product_bytes", 0)
        if size > LARGEST_AT_AN_INTERRUPT:
            log.warning(
                "no product of %.1f GB was written now; `grpo-mm export %s` makes it of step %d",
                size / 1e9,
                path,
                state["step"],
            )
            return
        origin, last = self._origin(why), state["eval_last"]
        after = last["metrics"] if last and last["step"] == state["step"] else {}
        summary = {
            "name": self.config.name, "steps": state["step"], "eval_before": short_metrics(state["eval_before"] or {}),
            "eval_after": short_metrics(after),
            "versions": self.processes.by_main(lambda: json.loads((path / "versions.json").read_text())),
        }  # fmt: skip
        self._write_product(summary, origin)
        log.info("%s: %s", path / policy.product, origin.words())


def _tensor(loaded: Checkpoint, file: str, name: str) -> Tensor:
    return loaded.tensors[file][name]


def short_metrics(found: dict[str, float]) -> dict[str, float | None]:
    """For the summary: without the statistics of pictures and texts, which the record and the report have."""
    found = {
        key.removeprefix("eval/"): value
        for key, value in found.items()
        if not key.startswith(("eval/image/", "eval/text/"))
    }
    return {key: value if math.isfinite(value) else None for key, value in found.items()}


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
