"""What is looked at in every rollout and not optimised: watch rewards, diversity, and now and then the pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from grpo_mm import clock, samples
from grpo_mm.distributed import Processes
from grpo_mm.diversity import pairwise_distance
from grpo_mm.run_config import RunConfig
from grpo_mm.scoring import Scoring, mean_scores
from grpo_mm.types import Batch, Credit

SHOWN_GROUPS = 6


class Onlooker:
    """Looks at a scored batch and changes nothing."""

    def __init__(self, config: RunConfig, processes: Processes, *, samples: Path) -> None:
        self.config, self.processes, self.samples = config, processes, samples
        self.watch = Scoring(config.watch, processes.device)

    def __call__(self, batch: Batch, earned: Credit, step: int) -> dict[str, float]:
        """`watch/…` and `diversity/mean` of the rollout; a sheet of pictures every `samples_every` steps."""
        outputs, config = batch.outputs, self.config
        found: dict[str, float] = {}
        if config.watch:
            prompts = batch.output_prompts()
            watched = self.watch(outputs.items, prompts)
            found |= mean_scores(watched, self.processes, prefix="watch", names={}, applied=self.watch.applied(prompts))
            if config.offload_rewards:
                self.watch.leave_device()
        if not isinstance(outputs.items, Tensor):
            return found
        with clock.phase("look"):
            prompt_M = batch.rollout.prompt_N[outputs.row_M]
            found["diversity/mean"] = self._diversity(outputs.items, prompt_M)
            if config.samples_every and (step == 0 or (step + 1) % config.samples_every == 0):
                self._write_sheet(batch, earned, prompt_M, step)
        return found

    def _diversity(self, images: Tensor, prompt_M: Tensor) -> float:
        small = torch.nn.functional.adaptive_avg_pool2d(images.float(), 32).round().to(torch.uint8)
        ranks = self.processes.gather((small, prompt_M))
        distance = pairwise_distance(torch.cat([s for s, _ in ranks]), torch.cat([p for _, p in ranks]))
        return float(distance.nanmean())

    def _write_sheet(self, batch: Batch, earned: Credit, prompt_M: Tensor, step: int) -> None:
        show = prompt_M < SHOWN_GROUPS
        row_M = batch.outputs.row_M[show]
        advantage_M = earned.advantage_NA.mean(1)[row_M].masked_fill(~earned.keep_N[row_M], torch.nan)
        scores = {name: parts["score"][show] for name, parts in batch.scores.items()}
        ranks = self.processes.gather((batch.outputs.items[show], prompt_M[show], advantage_M, scores))
        if self.processes.is_main:
            samples.write_rollout_sheet(
                self.samples,
                step=step + 1,
                images_MCHW=torch.cat([r[0] for r in ranks]),
                prompt_M=torch.cat([r[1] for r in ranks]),
                prompts=[p.text for p in batch.rollout.prompts],
                advantage_M=torch.cat([r[2] for r in ranks]),
                rewards={name: torch.cat([r[3][name] for r in ranks]) for name in scores},
            )
