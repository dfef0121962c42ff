"""One step of overlap (`rollout_ahead: 1`): the rows of step k + 1 are drawn with the weights that step k begins with.

What is drawn is always the same; where it is drawn, beside the update or before it, is said by `way_of`. A checkpoint keeps what it was
drawn with, not the rows, whose media and latents may be gigabytes: a copy of the weights (that of an adapter is small), copies of others
that the engine reads and that move, and the state of parts that learn. A run that goes on draws the rows again, bit for bit on a CPU.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, Literal

from grpo_mm.config.run_config import RunConfig
from grpo_mm.errors import CheckpointError
from grpo_mm.objectives.truncated import Truncated
from grpo_mm.outside import plain
from grpo_mm.processes import clock
from grpo_mm.processes.beside import Beside
from grpo_mm.processes.distributed import Processes
from grpo_mm.processes.roles import WAITING
from grpo_mm.rollout.own_copies import is_own
from grpo_mm.rollout.reward_use import as_reward, needs_device
from grpo_mm.rollout.scoring import is_apart
from grpo_mm.rollout.surroundings import changed_by
from grpo_mm.training.drawing import Drawing, Drawn, Pending
from grpo_mm.weights.snapshots import AHEAD, WeightsMoved
from grpo_mm.weights.stateful import Stateful, stateful_parts

log = logging.getLogger(__name__)

NOT_READ = ("advantage", "objective")
"""Settings whose parts that learn are not asked while rows are drawn."""
Way = Literal["before", "scored beside", "beside"]


class Ahead:
    """The rows of the next step. All processes call its methods together; with `rollout_ahead: 0` each step is drawn as it begins."""

    def __init__(self, config: RunConfig, drawing: Drawing, processes: Processes) -> None:
        self.config, self.drawing, self.processes = config, drawing, processes
        self.way, why = way_of(config, members=processes.members)
        self._thread = Beside("grpo_mm-ahead")
        self._beside = processes.beside() if config.rollout_ahead and self.way == "beside" else processes
        self._users = [
            name for name, one in config.rewards.items() if not is_apart(one) and not is_own(as_reward(one.use))
        ]
        """Rewards in this process that are code of the user's."""
        self._begun: dict[str, Any] | None = None
        """{"step": of the rows, "version": of the weights, "parts": states}; as a checkpoint keeps it."""
        self._pending: Pending | None = None
        self._ready: Drawn | None = None
        self.queue: dict[str, int] = {}
        """Rows of the next step as the update ended, by where they stood then, see `Pending.queue`."""
        if config.rollout_ahead:
            log.info("rollout_ahead: %s", sentence(self.way, why))

    def take(self, step: int, *, version: int) -> tuple[Drawn, int]:
        """The rows of a step, and how many updates the weights that drew them lie behind `version`, those that are in place."""
        begun = self._begun
        if begun is None or begun["step"] != step:
            return self.drawing(step), 0
        self.wait()
        drawn, self._ready = self._ready, None
        return self._drawn_again(step) if drawn is None else drawn, version - begun["version"]

    def begin(self, step: int, *, version: int) -> None:
        """The rows of `step`, by the weights in place, which `version` updates have made; once a step."""
        if not self.config.rollout_ahead or (self._begun is not None and self._begun["step"] == step):
            return
        self._keep()
        self.queue = {}
        parts = {path: deepcopy(part.state_dict()) for path, part in self._parts()}
        self._begun = {"step": step, "version": version, "parts": parts}
        if step >= self.config.steps:
            return  # a run that goes on for more steps draws them with what was kept
        self._give_way(step)
        if self.way == "beside":
            self._pending = self.drawing.beside(step, self._thread, self._beside)
        elif self.way == "scored beside":
            self._pending = self.drawing.scored_beside(step, self._thread)
        else:
            self._ready = self.drawing(step)
            rows = sum(batch.rollout.num_rows for batch in self._ready.batches)
            self.queue = {"unsampled": 0, "unscored": 0, "ready": rows}

    def _give_way(self, step: int) -> None:
        """No longer beside the update, once a reward of the user's was seen to change what the update computes with."""
        if self.way == "before" or not self._users:
            return
        seen = {name: changed_by(name) for name in self._users}
        here = next((f"{plain(name, 60)} changes {', '.join(what)}" for name, what in seen.items() if what), "")
        everywhere = list(filter(None, self.processes.gather(here)))
        if everywhere:
            self.way = "before"
            log.warning(
                "rollout_ahead: the reward %s of the process while it scores, which an update beside it meets: from step %d on rows are scored "
                "before the update. In a process of its own (isolate: true) it may change what it likes.",
                everywhere[0], step + 1,
            )  # fmt: skip

    def wait(self) -> None:
        """Until nothing is drawn or scored beside."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        self.queue, lost = pending.queue(), ""
        try:
            with clock.phase(WAITING):
                self._ready = pending.result()
        except WeightsMoved as error:
            lost = str(error)
        everywhere = list(filter(None, self.processes.gather(lost)))
        if everywhere:
            log.warning("the rows of step %d are drawn again: %s", self._begun["step"] + 1, everywhere[0])
            self._ready = None

    def forget(self) -> None:
        """Other weights were put in place: the next step is drawn with them."""
        self._pending = self._ready = self._begun = None
        for name in (AHEAD, *self._moving().values()):
            self.drawing.policy.snapshots.drop(name)

    def state_dict(self) -> dict[str, Any] | None:
        """Plain values, beside the copies among the policy's snapshots; None: nothing lies ready."""
        return self._begun

    def load_state_dict(self, state: Mapping[str, Any] | None, *, name: str) -> None:
        """After the copies are there. Raises CheckpointError for what no run has written; `name` is the checkpoint's."""
        if state is None or not self.config.rollout_ahead:
            self.forget()
            return
        snapshots = self.drawing.policy.snapshots
        absent = [copy for copy in (AHEAD, *self._moving().values()) if copy not in snapshots]
        counts = [state.get(key) for key in ("step", "version")]
        if (
            absent
            or not all(isinstance(n, int) and n >= 0 for n in counts)
            or not isinstance(state.get("parts"), Mapping)
        ):
            raise CheckpointError(f"{name} does not say with what the rows of its next step were drawn.")
        self._begun = dict(state)

    def learning(self) -> bool:
        """Whether a part that learns is asked while rows are drawn, and so must not change meanwhile."""
        return any(True for _ in self._parts())

    def _drawn_again(self, step: int) -> Drawn:
        parts = dict(self._parts())
        present = {path: deepcopy(part.state_dict()) for path, part in parts.items()}
        states = {path: state for path, state in self._begun["parts"].items() if path in parts}
        try:
            for path, state in states.items():
                parts[path].load_state_dict(deepcopy(state))
            with self.drawing.policy.snapshots.standing_in(self._moving()):
                return self.drawing(step, weights=AHEAD)
        finally:
            for path in states:
                parts[path].load_state_dict(present[path])

    def _keep(self) -> None:
        """What is in place is going to be changed by the update."""
        snapshots = self.drawing.policy.snapshots
        snapshots.take(AHEAD, of="sampling" if self.config.sampling else None, in_main_memory=True)
        for name, copy in self._moving().items():
            snapshots.take(copy, of=name, in_main_memory=True)

    def copied_bytes(self) -> int:
        """Of the copies that a checkpoint keeps; they are float32 or wider, whatever is trained."""
        if not self.config.rollout_ahead:
            return 0
        of_one = sum(p.numel() * max(4, p.element_size()) for p in self.drawing.policy.trainable.values())
        return of_one * (1 + len(self._moving()))

    def _moving(self) -> dict[str, str]:
        """Copies of the weights that sampling reads and that a step changes → what they are kept as."""
        reads = set(getattr(self.config.engine, "snapshots", ()))
        still = {"ref"} if self.config.reference_reset is None else set()
        return {name: f"{AHEAD} {name}" for name in sorted(reads - still)}

    def _parts(self) -> Iterator[tuple[str, Stateful]]:
        return ((path, part) for path, part in stateful_parts(self.config) if path.split(".")[0] not in NOT_READ)


def way_of(config: RunConfig, *, members: int = 1) -> tuple[Way, str]:
    """Where the next step's rows are drawn, and why there.

    Args:
        members: processes that hold a row between them.
    """
    if members > 1:
        return "before", "the processes of a row draw and score it together"
    here = [name for name, scorer in config.rewards.items() if not is_apart(scorer) and needs_device(scorer.use)]
    if getattr(config.engine, "draws_apart", False):
        if config.offload_rewards and here:
            return (
                "before",
                f"{here[0]} comes to the device by turns (offload_rewards), and not while weights are updated",
            )
        return "beside", "the engine draws with weights of its own"
    if not hasattr(config.collector, "begin"):
        return "before", "the sampler draws with the trainer's own weights, and the collector may ask it again"
    if config.offload_rewards:
        return "before", "rewards come to the device by turns (offload_rewards)"
    if here:
        return "before", f"the sampler draws with the trainer's own weights, and {here[0]} is a network on its device"
    return "scored beside", "the sampler draws with the trainer's own weights; rewards do not need its device"


def sentence(way: Way, why: str) -> str:
    """For people. Example: "the next step's rows are drawn and scored beside the update: the engine draws with weights of its own"."""
    where = {
        "before": "drawn and scored before the update, in sequence (the numbers are those of an overlap, the time is not)",
        "scored beside": "drawn before the update and scored beside it",
        "beside": "drawn and scored beside the update",
    }
    return f"the next step's rows are {where[way]}: {why}"


def ahead_lines(config: RunConfig, world: int = 1) -> list[str]:
    """What `show` says of rows that are drawn ahead; nothing where they are not."""
    if not config.rollout_ahead:
        return []
    way, why = way_of(config, members=config.distributed.sequence if world > 1 else 1)
    return [f"rollout_ahead = {config.rollout_ahead}: {sentence(way, why)}", correction(config)]


def correction(config: RunConfig) -> str:
    """What takes account of rows that are a step old."""
    if "logprobs" not in config.needs:
        return "the objective has no ratios: that rows are a step old is not corrected, nor does it have to be unbiased"
    weighs = [term for term in config.objective if isinstance(term, Truncated)]
    if config.old_logprobs_of == "rollout":
        return "ratios are against the weights that drew the rows, a step before" + (
            "; the weights of {kind: truncated} are then 1" if weighs else ""
        )
    if weighs:
        return f"rows are weighed by π of the step's beginning over π that drew them, at most {weighs[0].cap:g} (truncated)"
    return (
        "ratios are against the weights of the step's beginning (recompute); that rows were drawn a step before is not weighed, which "
        "{kind: truncated, of: …} does"
    )
