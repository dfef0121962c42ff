"""Video-R1: how well the policy does when frames come in the wrong order, measured beside the rollout."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.video_grounding.alterations import ShuffledFrames, altered
from grpo_mm.pipelines.vlm.prompting.contexts import is_video
from grpo_mm.rollout.collectors.more import More, Sample, Score, all_scores, per_prompt, scored
from grpo_mm.types import Batch, Rows


@dataclass(frozen=True)
class MeasureShuffled:
    """Half as many samples again, of every prompt with a video, with its frames shuffled; only the ordered rows are trained.

    The rollout gets the column `shuffled_accuracy` [N], the mean reward of its prompt's shuffled samples, NaN for a prompt
    without a video; {kind: temporal_bonus} reads it.

    Source: arXiv:2503.21776 (Video-R1), T-GRPO: G = 8 ordered, G / 2 shuffled; grades A, B.
    """

    metric: str | None = None
    """The reward that is accuracy; None: the only one."""
    samples: int | None = None
    """Shuffled samples of a prompt; None: half the group."""

    makes = frozenset({"shuffled_accuracy"})

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise ConfigError(f"shuffled_frames: samples = {self.samples}; wanted at least 1.")

    def further_groups(self, prompts: int, group_size: int) -> tuple[int, int]:
        """(prompts, samples of each) beside the groups of a step, at most: prompts without a video are not asked."""
        return prompts, max(1, group_size // 2) if self.samples is None else self.samples

    def __call__(self, sample: Sample, score: Score, rows: Rows, more: More) -> list[Batch]:
        batch = scored(sample, score, rows)
        has_video_P = torch.tensor([any(is_video(item) for item in prompt.media) for prompt in rows.prompts])
        _, each = self.further_groups(len(rows.prompts), rows.group_size)
        shuffled = tuple(altered(p, lambda i, p=p: _shuffled(i, p.id), name="shuffled") for p in rows.prompts)
        count_P = each * has_video_P.long()
        here = more.samples(shuffled, first_P=torch.zeros_like(count_P), count_P=count_P, group_size=each)
        asked = scored(sample, score, here) if len(here) else None
        prompt_M, score_M = all_scores(asked, self.metric, more, kind="shuffled_frames")
        mean_P, _ = per_prompt(score_M, prompt_M, len(shuffled))
        rollout = batch.rollout
        columns = {**rollout.columns, "shuffled_accuracy": mean_P[rollout.prompt_N.cpu()]}
        metrics = {"rollout/shuffled_accuracy": float(mean_P.nanmean())} if mean_P.isfinite().any() else {}
        return [replace(batch, rollout=replace(rollout, columns=columns), metrics=metrics)]


def _shuffled(item: object, key: str) -> object:
    return ShuffledFrames(item, key) if is_video(item) else item
