"""One reward in several processes of its own, which share its outputs among them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import torch
from torch import Tensor

from grpo_mm.rollout.isolated import IsolatedReward, Talk, joined
from grpo_mm.types import Prompt, pick_items


class IsolatedPool:
    """As `IsolatedReward`, over `workers` processes: each scores one run of neighbouring rows, all at the same time.

    For rewards that look at one output at a time: what one of them says of a row must not depend on the rows beside it. A process
    that ends or is too late loses its own rows alone. Threads of torch are divided among the processes.
    """

    def __init__(
        self, use: Any, *, name: str, workers: int, timeout_seconds: float | None = None, talk: Talk | None = None
    ) -> None:
        """Raises ConfigError as `sendable`."""
        self.members = [
            IsolatedReward(use, name=name, timeout_seconds=timeout_seconds, share=workers, talk=talk)
            for _ in range(workers)
        ]

    def score(
        self,
        items: Any,
        prompts: Sequence[Prompt],
        *,
        device: torch.device,
        group_U: Tensor | None = None,
        patience: float = 1.0,
    ) -> tuple[dict[str, Tensor], list[str]]:
        """As `IsolatedReward.score`. A part that one process gives and another does not is NaN in the other's rows.

        group_U: None; rewards over sets have one process.
        """
        if group_U is not None:
            raise ValueError("a reward over sets has one process.")
        if not prompts:
            return {"score": torch.zeros(0)}, []
        runs = torch.arange(len(prompts)).tensor_split(min(len(self.members), len(prompts)))
        with ThreadPoolExecutor(len(runs), thread_name_prefix="grpo_mm-reward") as threads:
            try:
                asked = [
                    threads.submit(
                        copy_context().run,
                        member.score,
                        pick_items(items, run),
                        [prompts[i] for i in run.tolist()],
                        device=device,
                        patience=patience,
                    )
                    for member, run in zip(self.members, runs)
                ]
                answers = [answer.result() for answer in asked]
            except BaseException:  # Ctrl-C: the threads would wait for their answers
                self.end()
                raise
        return joined(runs, answers)

    def start(self, device: torch.device) -> None:
        """As `IsolatedReward.start`, one after the other: they share a disk."""
        for member in self.members:
            member.start(device)

    def leave_device(self) -> None:
        """All their networks go to main memory until they are asked again."""
        for member in self.members:
            member.leave_device()

    def end(self) -> None:
        """Kills the processes."""
        for member in self.members:
            member.end()
