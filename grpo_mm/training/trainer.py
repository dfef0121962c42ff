"""A run: the one training loop, with evaluation, checkpoints, the record and the summary around it."""

from __future__ import annotations

import difflib
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grpo_mm.config.run_config import RunConfig, plain
from grpo_mm.errors import CheckpointError, TrainingStopped, UserError
from grpo_mm.findings import first_difference
from grpo_mm.golden.states import write_states
from grpo_mm.looking import held_out, metrics
from grpo_mm.looking.changes import read_changes
from grpo_mm.looking.progress_lines import Nobody, Plan, Told
from grpo_mm.looking.trackers import Trackers
from grpo_mm.looking.watch import Alarm, Rules, describe
from grpo_mm.outside import reason
from grpo_mm.processes import clock, progress
from grpo_mm.processes.distributed import Processes
from grpo_mm.run.data import RunData, overlap
from grpo_mm.run.kept import Kept
from grpo_mm.run.product import forget_later_product
from grpo_mm.run.run_folder import RunFolder, cut_back, failing_disk_stops, find_checkpoint
from grpo_mm.run.state import check_state
from grpo_mm.training.ending import Ending
from grpo_mm.training.evaluate import evaluate
from grpo_mm.training.learner import Learner
from grpo_mm.training.onlooker import is_shown
from grpo_mm.training.preflight import check_disk, check_sampler, refuse_what_differs, write_findings
from grpo_mm.training.shown import show_evaluation
from grpo_mm.training.step_times import StepTimes
from grpo_mm.training.stopping import stop_signals
from grpo_mm.weights import checkpoint
from grpo_mm.weights.checkpoint import Checkpoint

log = logging.getLogger(__name__)

OF_PARTS = ("learner", "rules", "default_rules")
"""What a checkpoint keeps beside the state of the loop."""
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
        self.kept = Kept(folder, config.checkpoints, processes)
        self.ending = Ending(config, folder, self.learner, processes)
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
            self.kept.end()
            self.told.ends()

    def _run(self, from_checkpoint: str | None, on_step: OnStep | None) -> dict[str, Any]:
        timed = clock.use(clock.Clock(events=clock.events_of(self.processes.device)))
        times = StepTimes(self.config, self.processes, timed, forecast=self.learner.forecast)
        path = self.processes.by_main(lambda: find_checkpoint(self.folder, from_checkpoint))
        if path is not None:
            self.load(path)
            log.info("going on from %s", path)
        config, state = self.config, self.state
        self._examine_sampler()
        self.processes.by_main(lambda: write_states(self.folder.path, self.learner.goldens))
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
        with stop_signals() as signal_asked:
            while state["step"] < config.steps and not state["stopped_early"] and not asked:
                with self._leaving_a_product():
                    row = times.around(lambda: self.learner.step(state["step"]), totals=state)
                state["step"] += 1
                alarms = self._record({"step": state["step"], **row}, weights_step=state["step"] - 1)
                if self.trackers is not None and is_shown(state["step"] - 1, every=config.samples_every):
                    self.trackers.samples(f"step_{state['step']:06d}")
                self.told.stepped(state["step"], row)
                if on_step is not None:
                    on_step(state["step"], row)
                self._act(alarms)
                asked = max(self.processes.everywhere(lambda: self.kept.check() or signal_asked()))
                self._after_step(must_save=bool(asked))
            asked = asked or int(self.processes.max(signal_asked()))
        self.kept.wait()
        if asked:
            log.warning(
                "%s: saved at step %d; the same command goes on from there", signal.Signals(asked).name, state["step"]
            )
            self.ending.leave_product(self.state, f"interrupted by {signal.Signals(asked).name}")
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
                    self.ending.leave_product(self.state, why)
                except OSError as error:
                    log.warning("no product was written: %s", reason(error))
            raise

    def _evaluate_what_is_due(self) -> None:
        """A run that goes on after what was its last step has still to do what it would have done there on its way."""
        last, step = self.state["eval_last"], self.state["step"]
        if step > 0 and (last is None or last["step"] != step) and self._evaluate_on_the_way(step):
            self.save(step)

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
            show_evaluation(result, step, name=name, folder=self.folder, config=self.config)
            if self.trackers is not None:
                self.trackers.samples(name)
        self.told.evaluated(step, score=result.metrics["eval/score"], seconds=seconds)
        return result.metrics

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
        self.kept.wait()
        step = self.kept.step_to_go_back_to(self.rules.healthy_step)
        path = self.folder.checkpoints / checkpoint.name_of(step)
        loaded = self.kept.read(path)
        self.processes.everywhere(lambda: self.learner.put_back(loaded, name=str(path)))
        return step

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
        self.kept.save(made, step=step, healthy=self._healthy_most, best=self.state["best_step"])

    @property
    def _healthy_most(self) -> int | None:
        """Up to which step weights were measured inside all bands; None: nobody watches."""
        return self.rules.healthy_step if self.rules.watched else None

    def load(self, path: Path) -> None:
        """Takes everything from a checkpoint."""
        loaded = self.kept.read(path)
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
        """The last evaluation, the product and the summary."""
        state, step = self.state, self.state["step"]
        last = state["eval_last"]
        after = last["metrics"] if last and last["step"] == step else self.evaluate(step, name="eval_after")
        self.kept.prune(healthy=self._healthy_most, best=state["best_step"])
        return self.ending.finish(state, after=after, rules=self.rules)
