"""What is looked at in every rollout and not optimised: watched rewards, statistics of the pictures, diversity, and now and
then the pictures themselves."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from grpo_mm import clock, samples
from grpo_mm.distributed import Processes
from grpo_mm.diversity import pairwise_distance
from grpo_mm.image_statistics import image_statistics
from grpo_mm.run_config import RunConfig
from grpo_mm.scoring import Scoring, mean_scores
from grpo_mm.types import Batch, Credit, prompts_of

SHOWN_GROUPS = 6
MEASURED_PICTURES = 128
"""Of a rank's rollout; of more than these, so many evenly spread ones: enough for a mean, and the time stays bounded."""


class Onlooker:
    """Looks at a scored batch and changes nothing."""

    def __init__(self, config: RunConfig, processes: Processes, *, samples: Path) -> None:
        self.config, self.processes, self.samples = config, processes, samples
        self.watch = Scoring(config.watched_rewards, processes.device, counter="watch_calls")

    def __call__(self, batch: Batch, earned: Credit, step: int) -> dict[str, float]:
        """`watch/…`, `image/…` and `diversity/mean` of the rollout; a sheet of pictures every `samples_every` steps."""
        outputs, config = batch.outputs, self.config
        found: dict[str, float] = {}
        shown = outputs.pictures()  # one for each row, however many were scored
        items = outputs.items
        items = items[outputs.item_index()[shown]] if isinstance(items, Tensor) else [items[i] for i in shown.tolist()]
        if config.watched_rewards:
            prompts = prompts_of(batch.rollout, outputs.row_M[shown])
            watched = self.watch(items, prompts)
            found |= mean_scores(watched, self.processes, prefix="watch", names={}, applied=self.watch.applied(prompts))
            if config.offload_rewards:
                self.watch.leave_device()
        if not isinstance(outputs.items, Tensor):
            return found
        with clock.phase("look"):
            prompt_M = batch.rollout.prompt_N[outputs.row_M[shown]]
            found |= mean_statistics(items, self.processes, prefix="image")
            found["diversity/mean"] = self._diversity(items, prompt_M)
            if config.samples_every and (step == 0 or (step + 1) % config.samples_every == 0):
                self._write_sheet(batch, earned, items, shown, step)
        return found

    def _diversity(self, images: Tensor, prompt_M: Tensor) -> float:
        small = torch.nn.functional.adaptive_avg_pool2d(images.float(), 32).round().to(torch.uint8)
        ranks = self.processes.gather((small, prompt_M))
        distance = pairwise_distance(torch.cat([s for s, _ in ranks]), torch.cat([p for _, p in ranks]))
        return float(distance.nanmean())

    def _write_sheet(self, batch: Batch, earned: Credit, images: Tensor, shown: Tensor, step: int) -> None:
        row_M = batch.outputs.row_M[shown]
        few = batch.rollout.prompt_N[row_M] < SHOWN_GROUPS
        row_M, shown, images = row_M[few], shown[few], images[few]
        prompt_M = batch.rollout.prompt_N[row_M]
        kept_NA = earned.keep_NA
        advantage_N = torch.where(kept_NA, earned.advantage_NA, 0).sum(1) / kept_NA.sum(1)  # NaN where nothing is kept
        scores = {name: parts["score"][shown] for name, parts in batch.scores.items()}
        ranks = self.processes.gather((images, prompt_M, advantage_N[row_M], scores))
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


def mean_statistics(images: Tensor, processes: Processes, *, prefix: str) -> dict[str, float]:
    """Means of `image_statistics` over the pictures of all ranks; nothing for pictures smaller than 3 × 3."""
    local: dict[str, tuple[float, int]] = {}
    if len(images) and min(images.shape[2:]) >= 3:
        chosen = torch.linspace(0, len(images) - 1, min(MEASURED_PICTURES, len(images))).round().long()
        chunks = [image_statistics(images[part]) for part in chosen.split(16)]
        local = {name: (sum(float(c[name].double().sum()) for c in chunks), len(chosen)) for name in chunks[0]}
    ranks = processes.gather(local)
    return {
        f"{prefix}/{name}": sum(rank[name][0] for rank in ranks if rank) / sum(rank[name][1] for rank in ranks if rank)
        for name in next((rank for rank in ranks if rank), {})
    }
