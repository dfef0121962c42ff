"""Drawing and scoring the rows of a step, as a value that may lie ready before the step begins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from grpo_mm.config.run_config import RunConfig
from grpo_mm.processes import clock
from grpo_mm.processes.beside import Beside
from grpo_mm.processes.distributed import Processes
from grpo_mm.processes.rng import stream, stream_seed
from grpo_mm.rollout.collectors.more import More
from grpo_mm.rollout.groups import group_ids
from grpo_mm.rollout.prompt_stream import PhasedStream
from grpo_mm.rollout.rows import further_rows, plan_rows, seen_by
from grpo_mm.rollout.scoring import Early, Scoring
from grpo_mm.training.meeting import Gather, met
from grpo_mm.types import Batch, Outputs, Prompt, Rollout, Rows, Scores, is_seen, prompts_of

Finished = Callable[[int, Any], None]
"""(whose samples, as `Rows.prompt_N` counts; the items that they come to, in the order of the rows)."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """The scored rows of a step, of this rank."""

    step: int
    """From 0."""
    batches: list[Batch]
    part_N: Tensor
    """[N] the update of each row."""
    amounts: Mapping[str, int]
    """What this rank has sampled: pictures, or tokens; groups that a collector leaves out included."""
    counts: Mapping[str, int]
    """Calls that were made for it, by name, as of `clock.count`; whoever trains on the rows counts them."""

    def count(self) -> None:
        """Adds the calls to those of the step that is at hand."""
        for name, number in self.counts.items():
            clock.count(name, number)


class Drawing:
    """All of a step that comes before the table. Everything random is keyed by the step, so that a step can be drawn again."""

    def __init__(
        self,
        config: RunConfig,
        processes: Processes,
        *,
        policy: Any,
        rewards: Scoring,
        prompts: PhasedStream,
    ) -> None:
        self.config, self.processes, self.policy, self.rewards, self.prompts = (
            config,
            processes,
            policy,
            rewards,
            prompts,
        )
        self._plans: dict[int, tuple[Rows, Tensor]] = {}
        self.early = Beside("grpo_mm-early")

    def __call__(self, step: int, *, weights: str | None = None) -> Drawn:
        """Draws and scores a step.

        Args:
            weights: the copy of the weights that draws; None: `sampling_weights`.
        """
        asked = self._asked(step)
        with self._in_place(weights):
            return asked.drawn(
                self.config.collector(asked.sample, asked.score, asked.rows, self._more(step, self.processes.gather))
            )

    def scored_beside(self, step: int, thread: Beside) -> Pending:
        """Draws a step now, and scores it in a thread. For a collector that draws once."""
        asked = self._asked(step)
        with self._in_place(None):
            finish = self.config.collector.begin(asked.sample, partial(thread.submit, asked.score), asked.rows)
        return Pending(asked, finish)

    def beside(self, step: int, thread: Beside, processes: Processes) -> Pending:
        """Hands the present weights to the engine now, then draws and scores in a thread, for which `processes` are."""
        asked = self._asked(step)
        with self._in_place(None):
            with clock.phase("rollout"):
                self.config.engine.hand_over(self.policy)
            which = self.policy.snapshots.which

        def draw() -> list[Batch]:
            with self.policy.snapshots.as_of(which):
                return met(processes, collected)

        def collected(gather: Gather) -> list[Batch]:
            return self.config.collector(asked.sample, asked.score, asked.rows, self._more(step, gather))

        return Pending(asked, thread.submit(draw).result)

    def _asked(self, step: int) -> _Asked:
        rows, part_N = self._planned(step)
        return _Asked(self, step, rows, part_N)

    @contextmanager
    def sampling_weights(self) -> Iterator[None]:
        """The weights that rollouts come from: ratios are taken against them."""
        with self.policy.snapshots.use("sampling") if self.config.sampling else nullcontext():
            yield

    @contextmanager
    def _in_place(self, weights: str | None) -> Iterator[None]:
        reads = (*getattr(self.config.engine, "snapshots", ()),)
        drawing = self.sampling_weights() if weights is None else self.policy.snapshots.use(weights)
        with drawing, self.processes.gathered(self.policy, copies=reads):
            yield

    @property
    def _parts(self) -> int:
        updates = self.config.updates
        return updates.count if updates.by == "group" else 1

    def _planned(self, step: int) -> tuple[Rows, Tensor]:
        """This rank's rows of a step and the update part of each; only the last step that was asked for is kept."""
        if step not in self._plans:
            config, processes = self.config, self.processes
            prompts = seen_by(self.policy, self.prompts.batch(step, config.prompts_per_step, config.seed))
            self._plans = {step: plan_rows(
                prompts, group_size=config.group_size, parts=self._parts, rank=processes.rank, world=processes.world
            )}  # fmt: skip
        return self._plans[step]

    def _announce(self, step: int) -> None:
        """Tells the policy, where it wants to know, which prompts it is asked in a step, so that it reads them meanwhile."""
        if hasattr(self.policy, "announce") and step not in self._plans and step < self.config.steps:
            rows, _ = self._planned(step)
            self.policy.announce([rows.prompts[p] for p in rows.prompt_N.unique().tolist()])

    def _more(self, step: int, gather: Gather) -> More:
        seed, share = self.config.seed, {"rank": self.processes.rank, "world": self.processes.world}
        return More(
            prompts=lambda number: self._further_prompts(step, number),
            groups=lambda prompts: plan_rows(prompts, group_size=self.config.group_size, parts=1, **share)[0],
            samples=partial(further_rows, **share),
            gather=gather,
            generator=lambda name: stream(seed, name, step),
            parts=self._parts,
        )

    def _further_prompts(self, step: int, number: int) -> tuple[Prompt, ...]:
        """Another shuffle of the same mixture; what it asks again within the step has noise of its own."""
        drawn = self.prompts.batch(
            step, self.config.prompts_per_step, stream_seed(self.config.seed, "more_prompts", number)
        )
        return seen_by(self.policy, (replace(p, id=f"{p.id}+{number}", repeat_of=p.repeat_of or p.id) for p in drawn))

    def sampled(
        self, rows: Rows, step: int, amounts: Counter[str], *, finished: Finished | None = None
    ) -> tuple[Rollout, Outputs]:
        """finished: hears of the samples of each prompt as they are there, of an engine that tells."""
        more = {} if finished is None else {"finished": finished}
        with clock.phase("rollout"):
            rollout, outputs = self.config.engine.sample(
                self.policy, rows, step=step, seed=self.config.seed, needs=self.config.needs, **more
            )
        self.processes.check_members([rollout.mask_NA, rollout.behaviour_NA], what=f"the rows of step {step + 1}")
        self._announce(step + 1)
        if is_seen(outputs.items):
            amounts["pictures"] += len(outputs.items)
        elif hasattr(self.config.engine, "amounts"):
            amounts.update(self.config.engine.amounts(rollout))
        return rollout, outputs

    @property
    def asks_early(self) -> bool:
        """Whether rewards are asked about samples while others are drawn."""
        tells = getattr(self.config.engine, "tells_finished", False)
        return tells and self.rewards.asks_early and not self.config.offload_rewards

    def scored(self, rollout: Rollout, outputs: Outputs, early: Sequence[Early] = ()) -> dict[str, Scores]:
        """Every item once; outputs that share an item share its scores. early: what was said of them before."""
        first = outputs.first_output()
        keys = [rollout.prompt_N[outputs.row_M]]
        keys += [column for column in (outputs.action_M, outputs.tag_M) if column is not None]
        group_U = group_ids(*(key[first] for key in keys))
        asked = prompts_of(rollout, outputs.row_M[first])
        if early:
            prompt_U = rollout.prompt_N.cpu()[outputs.row_M[first]]
            scores = self.rewards(outputs.items, asked, group_U, prompt_U=prompt_U, early=early)
        else:
            scores = self.rewards(outputs.items, asked, group_U)
        if self.config.offload_rewards:
            self.rewards.leave_device()
        index = outputs.item_index()
        return {name: {part: value[index] for part, value in parts.items()} for name, parts in scores.items()}


class _Asked:
    """What a collector asks for a step, with what it comes to on the way."""

    def __init__(self, drawing: Drawing, step: int, rows: Rows, part_N: Tensor) -> None:
        self.drawing, self.step, self.rows, self.part_N = drawing, step, rows, part_N
        self.amounts: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.sampled = self.scored = 0
        """Rows."""
        self._early: dict[int, list[Future]] = {}
        """By rollout, by its id: what rewards are asked before it is whole."""

    def sample(self, rows: Rows) -> tuple[Rollout, Outputs]:
        asked: list[Future] = []

        def finished(prompt: int, items: Any) -> None:
            asked.append(self.drawing.early.submit(self._ask_early, [rows.prompts[prompt]] * len(items), items, prompt))

        with clock.counts_kept_in(self.counts):
            tell = {"finished": finished} if self.drawing.asks_early else {}
            found = self.drawing.sampled(rows, self.step, self.amounts, **tell)
        self.sampled += len(rows)
        if asked:
            self._early[id(found[0])] = asked
        return found

    def _ask_early(self, prompts: Sequence[Prompt], items: Any, prompt: int) -> Early:
        with clock.counts_kept_in(self.counts):
            return self.drawing.rewards.ask_early(items, prompts, prompt=prompt)

    def score(self, rollout: Rollout, outputs: Outputs) -> dict[str, Scores]:
        with clock.counts_kept_in(self.counts):
            with clock.phase("reward"):
                early = [one.result() for one in self._early.pop(id(rollout), ())]
            found = self.drawing.scored(rollout, outputs, early)
        self.scored += rollout.num_rows
        return found

    def drawn(self, batches: list[Batch]) -> Drawn:
        return Drawn(self.step, batches, self.part_N, dict(self.amounts), dict(self.counts))


@dataclass(frozen=True, eq=False)
class Pending:
    """Rows that are drawn or scored in a thread."""

    asked: _Asked
    finish: Callable[[], list[Batch]]

    def result(self) -> Drawn:
        """Waits for them; raises what went wrong."""
        return self.asked.drawn(self.finish())

    def queue(self) -> dict[str, int]:
        """How many rows stand where at this moment: unsampled (of those that are planned), unscored, ready."""
        sampled, scored = self.asked.sampled, self.asked.scored
        return {
            "unsampled": max(0, len(self.asked.rows) - sampled),
            "unscored": max(0, sampled - scored),
            "ready": scored,
        }
