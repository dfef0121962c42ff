"""All rewards of a run over some outputs, with their failures counted."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from grpo_mm.processes.clock import count, phase
from grpo_mm.processes.distributed import Processes
from grpo_mm.registry import Role
from grpo_mm.rollout.function_reward import call_function
from grpo_mm.rollout.safe_call import score_safely
from grpo_mm.rollout.surroundings import put_back_after
from grpo_mm.types import Prompt, is_relative

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scorer:
    """A named reward: its weight, the prompt sources it applies to (None: all), and its time limit."""

    use: Annotated[Any, Role("reward")]
    weight: float = 1.0
    sources: tuple[str, ...] | None = None
    timeout_seconds: float | None = None


class Scoring:
    """Named scorers on a device. `errors` keeps the first failure of each, for the message if nothing can be scored."""

    def __init__(self, scorers: Mapping[str, Scorer], device: torch.device, *, counter: str = "rewards") -> None:
        self.scorers = {name: replace(scorer, use=_as_reward(scorer.use)) for name, scorer in scorers.items()}
        self.device, self.counter = device, counter
        self.first_error: dict[str, str] = {}
        self._warned: set[str] = set()

    def __call__(
        self, items: Any, prompts: Sequence[Prompt], group_U: Tensor | None = None
    ) -> dict[str, dict[str, Tensor]]:
        """Scorer name → {"score": [U], parts…}, float32 on the CPU; NaN where it failed or does not apply, and for an item
        that is None.

        `group_U`: [U] int64, the comparison sets, for rewards that compare items with each other; without it they are
        left out.
        """
        asked = {n: s for n, s in self.scorers.items() if group_U is not None or not is_relative(s.use)}
        return {name: self._one(name, scorer, items, prompts, group_U) for name, scorer in asked.items()}

    def applied(self, prompts: Sequence[Prompt]) -> dict[str, int]:
        """Scorer name → how many of the prompts it applies to."""
        return {name: len(_applies(scorer, prompts)) for name, scorer in self.scorers.items()}

    def _one(
        self, name: str, scorer: Scorer, items: Any, prompts: Sequence[Prompt], group_U: Tensor | None
    ) -> dict[str, Tensor]:
        applies = _applies(scorer, prompts)
        if not applies:
            return {"score": torch.full((len(prompts),), torch.nan, dtype=torch.float32)}
        if not isinstance(items, Tensor):
            applies = [i for i in applies if items[i] is not None]
        index = torch.tensor(applies, dtype=torch.int64)
        chosen = items[index] if isinstance(items, Tensor) else [items[i] for i in applies]
        with phase("reward"), put_back_after(f"reward {name!r}"):
            self._move(scorer.use, self.device)
            relative = is_relative(scorer.use)
            use = partial(_with_groups, scorer.use, group_U[index]) if relative else scorer.use
            scores, errors = score_safely(
                use,
                chosen,
                [prompts[i] for i in applies],
                timeout_seconds=scorer.timeout_seconds,
                by_row=not relative,
            )
        count(self.counter, len(applies))
        if errors:
            self.first_error.setdefault(name, errors[0])
            if name not in self._warned:
                self._warned.add(name)
                log.warning("reward %r failed (its rows are left out): %s", name, errors[0])
        return {
            part: torch.full((len(prompts),), torch.nan).index_put_((index,), value) for part, value in scores.items()
        }

    @staticmethod
    def _move(reward: Any, device: torch.device) -> None:
        if hasattr(reward, "to"):
            reward.to(device)

    def leave_device(self) -> None:
        """Network rewards go to main memory until they are asked again."""
        for scorer in self.scorers.values():
            self._move(scorer.use, torch.device("cpu"))


def _with_groups(reward: Any, group_U: Tensor, items: Any, prompts: Sequence[Prompt]) -> Any:
    return reward(items, prompts, group_U)


def applies_to(scorer: Scorer, prompt: Prompt) -> bool:
    """Whether a scorer is asked about a prompt: by the prompt's source, and by what the reward itself says."""
    ruled = getattr(scorer.use, "applies_to", None)
    return (scorer.sources is None or prompt.source in scorer.sources) and (ruled is None or bool(ruled(prompt)))


def _applies(scorer: Scorer, prompts: Sequence[Prompt]) -> list[int]:
    return [i for i, prompt in enumerate(prompts) if applies_to(scorer, prompt)]


def _as_reward(use: Any) -> Any:
    """A user's plain function `(images, prompts, metadata)` behind the signature of a reward."""
    return partial(call_function, use) if inspect.isroutine(use) else use


def mean_scores(
    scores: Mapping[str, Mapping[str, Tensor]],
    processes: Processes,
    *,
    prefix: str,
    names: Mapping[str, str],
    applied: Mapping[str, int],
) -> dict[str, float]:
    """Means over all ranks of every score and part, as `prefix/name/part`; `names` renames a part ("score": "mean").

    Beside a score stands `unscored_frac`, the share without one of the local rows that the reward is `applied` to.
    """
    local = {
        (name, part): (float(v.double().nansum()), int(v.isfinite().sum()), applied[name])
        for name, parts in scores.items()
        for part, v in parts.items()
    }
    metrics: dict[str, float] = {}
    ranks = processes.gather(local)
    # The score last: a part that is called "mean" must not take its place.
    for name, part in sorted(set().union(*ranks), key=lambda key: (key[0], key[1] == "score", key[1])):
        total, good, size = (sum(rank.get((name, part), (0.0, 0, 0))[i] for rank in ranks) for i in range(3))
        metrics[f"{prefix}/{name}/{names.get(part, part)}"] = total / good if good else float("nan")
        if part == "score" and good < size:
            metrics[f"{prefix}/{name}/unscored_frac"] = 1 - good / size
    return metrics
