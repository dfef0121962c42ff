"""What is looked at in every rollout and not optimised: watched rewards, statistics of the pictures, diversity, and now and
then the pictures or the texts themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo_mm.config.run_config import RunConfig
from grpo_mm.looking import samples, transcripts
from grpo_mm.looking.clips.contact_sheet import one_size
from grpo_mm.looking.clips.movement import MOVEMENT, movement_of
from grpo_mm.looking.clips.shown import films_of, sources_of, tiles_of
from grpo_mm.looking.diversity import distinct_share, pairwise_distance
from grpo_mm.looking.image_statistics import image_statistics
from grpo_mm.looking.text_statistics import distinct_answers, text_means
from grpo_mm.looking.truth import truth_of
from grpo_mm.processes import clock
from grpo_mm.processes.distributed import Processes
from grpo_mm.rollout.scoring import Scoring, mean_scores
from grpo_mm.training.settled import Settled
from grpo_mm.types import (
    Batch,
    Clips,
    Credit,
    Outputs,
    Prompt,
    Rollout,
    is_seen,
    pick_items,
    prompts_of,
    sound_items,
)

SHOWN_GROUPS = 6
MAY_BE_MISSING = ("diversity/mean", "image/diversity", "text/distinct")
"""Not measured where there is nothing to compare."""
MEASURED_PICTURES = MEASURED_TEXTS = 128
"""Of a rank's rollout; of more than these, so many evenly spread ones: enough for a mean, and the time stays bounded."""


class Onlooker:
    """Looks at a scored batch and changes nothing."""

    def __init__(self, config: RunConfig, processes: Processes, *, samples: Path) -> None:
        self.config, self.processes, self.samples = config, processes, samples
        self.watch = Scoring(config.watched_rewards, processes.device, counter="watch_calls")

    def __call__(
        self, batch: Batch, earned: Credit, step: int, *, why: Callable[[], Settled] = dict
    ) -> dict[str, float]:
        """`watch/…`, `image/…` or `text/…`, and `diversity/mean` of the rollout; a sheet or a transcript every `samples_every` steps.

        What is watched, and statistics, are means over at most 128 outputs of a rank (`MEASURED_PICTURES`).

        `why` says what settled the advantages of pictures; it is asked for a sheet alone.
        Demonstrations that were put into a group are shown, and measured nowhere.
        """
        outputs, config = batch.outputs, self.config
        found: dict[str, float] = {}
        shown = outputs.pictures()  # one for each row, however many were scored
        if config.watched_rewards:
            own = _spread(shown[~is_demo(batch.rollout)[outputs.row_M[shown]]], MEASURED_PICTURES)
            prompts = prompts_of(batch.rollout, outputs.row_M[own])
            watched = self.watch(_items(outputs, own), prompts)
            found |= mean_scores(watched, self.processes, prefix="watch", names={}, applied=self.watch.applied(prompts))
            if config.offload_rewards:
                self.watch.leave_device()
        due = is_shown(step, every=config.samples_every)
        with clock.phase("look"):
            if is_seen(outputs.items):
                images, sound = sound_items(_items(outputs, shown))
                found |= mean_statistics(images, self.processes, prefix="image")
                found |= mean_movement(_items(outputs, shown), self.processes, prefix="clip")
                diversity = self._diversity(images, batch.rollout.prompt_N[outputs.row_M[shown[sound]]])
                found |= {"diversity/mean": diversity, "image/diversity": diversity}
                if due:
                    self._write_sheet(batch, earned, shown, step, why())
            else:
                own = shown[~is_demo(batch.rollout)[outputs.row_M[shown]]]
                prompt_m = batch.rollout.prompt_N[outputs.row_M[own]].tolist()
                said = [str(item) for item in _items(outputs, own)]
                found |= mean_text_statistics(said, self.processes, prefix="text")
                ranks = self.processes.gather((said, prompt_m))
                texts, prompts = ([one for rank in ranks for one in rank[i]] for i in (0, 1))
                found["diversity/mean"] = distinct_share(texts, prompts)
                found["text/distinct"] = distinct_answers(list(dict(zip(reversed(prompts), reversed(texts))).values()))
                if due:
                    self._write_transcript(batch, earned, shown, step)
        return {name: value for name, value in found.items() if value == value or name not in MAY_BE_MISSING}

    def _diversity(self, images: Tensor, prompt_M: Tensor) -> float:
        ranks = self.processes.gather((shrunk(images), prompt_M))
        everywhere = torch.cat([s for s, _ in ranks])
        if not len(everywhere):
            return float("nan")
        return float(pairwise_distance(everywhere, torch.cat([p for _, p in ranks])).nanmean())

    def _write_sheet(self, batch: Batch, earned: Credit, shown: Tensor, step: int, why: Settled) -> None:
        row_M = batch.outputs.row_M[shown]
        few = batch.rollout.prompt_N[row_M] < SHOWN_GROUPS
        row_M, shown = row_M[few], shown[few]
        tiles = tiles_of(_items(batch.outputs, shown), max_px=samples.MAX_TILE_PX)
        prompt_M = batch.rollout.prompt_N[row_M]
        scores = {name: parts["score"][shown] for name, parts in batch.scores.items()}
        settled = [why.get(key, []) for key in zip(prompt_M.tolist(), batch.rollout.sample_N[row_M].tolist())]
        ranks = self.processes.gather((tiles, prompt_M, _mean_advantage(earned)[row_M], scores, settled))
        if self.processes.is_main:
            samples.write_rollout_sheet(
                self.samples,
                step=step + 1,
                images_MCHW=one_size([r[0].images for r in ranks if len(r[0].images)] or [tiles.images]),
                prompt_M=torch.cat([r[1] for r in ranks]),
                prompts=[p.text for p in batch.rollout.prompts],
                truths=[truth_of(p) for p in batch.rollout.prompts],
                advantage_M=torch.cat([r[2] for r in ranks]),
                rewards={name: torch.cat([r[3][name] for r in ranks]) for name in scores},
                settled_M=[one for r in ranks for one in r[4]] if why else None,
                sources=sources_of(batch.rollout.prompts[:SHOWN_GROUPS]),
                films=films_of([r[0] for r in ranks]),
            )

    def _write_transcript(self, batch: Batch, earned: Credit, shown: Tensor, step: int) -> None:
        """Every row of the first groups is an answer; one without an output could not be asked."""
        rollout, config = batch.rollout, self.config
        output_of_row = dict(zip(batch.outputs.row_M[shown].tolist(), shown.tolist()))
        advantage_N, demo_N = _mean_advantage(earned).tolist(), is_demo(rollout).tolist()
        texts = dict(zip(shown.tolist(), _items(batch.outputs, shown)))
        local = []
        for row, p in enumerate(rollout.prompt_N.tolist()):
            if p < SHOWN_GROUPS:
                output = output_of_row.get(row)
                scores = {} if output is None else {n: float(s["score"][output]) for n, s in batch.scores.items()}
                answer = transcripts.Answer(texts.get(output), scores, advantage_N[row], demo_N[row])
                local.append((p, int(rollout.sample_N[row]), answer))
        ranks = self.processes.gather(local)
        if self.processes.is_main:
            said = sorted((one for rank in ranks for one in rank), key=lambda one: one[:2])
            transcripts.write_transcript(
                self.samples, name=f"step_{step + 1:06d}", kind="rollout", step=step + 1,
                asked=[
                    (rollout.prompts[p], [answer for q, _, answer in said if q == p])
                    for p in sorted({q for q, _, _ in said})
                ],
                sketch=config.sketch, illustrate=illustrator(config),
            )  # fmt: skip


def is_shown(step: int, *, every: int) -> bool:
    """Whether a sheet or a transcript of a step (from 0) is written."""
    return bool(every) and (step == 0 or (step + 1) % every == 0)


def illustrator(config: RunConfig) -> Callable[[Prompt], Tensor | None] | None:
    """What shows a prompt's media, where the engine can: `engine.illustrate(policy config, prompt)`."""
    illustrate = getattr(config.engine, "illustrate", None)
    return None if illustrate is None else partial(illustrate, config.policy)


def player(config: RunConfig) -> Callable[[Prompt], Tensor | None] | None:
    """What gives a prompt's video for playing, where the engine can: `engine.clip(policy config, prompt)`."""
    clip = getattr(config.engine, "clip", None)
    return None if clip is None else partial(clip, config.policy)


def is_demo(rollout: Rollout) -> Tensor:
    """[N] bool, the rows that were put in and not sampled."""
    none_N = torch.zeros(rollout.num_rows, dtype=torch.bool)
    return rollout.columns["demo"].bool().cpu() if "demo" in rollout.columns else none_N


def _items(outputs: Outputs, which: Tensor) -> Any:
    """What was scored of these outputs [m]."""
    return pick_items(outputs.items, outputs.item_index()[which])


def _spread(index: Tensor, most: int) -> Tensor:
    """At most so many of an index [m], evenly spread over it."""
    return index[torch.linspace(0, len(index) - 1, most).round().long()] if len(index) > most else index


def _mean_advantage(earned: Credit) -> Tensor:
    """[N], over the actions that count; NaN where none does."""
    kept_NA = earned.keep_NA
    return torch.where(kept_NA, earned.advantage_NA, 0).sum(1) / kept_NA.sum(1)


def shrunk(images: Tensor, side_px: int = 32) -> Tensor:
    """uint8 [M, 3, side_px, side_px]: small enough to be gathered."""
    shrink = torch.nn.functional.adaptive_avg_pool2d
    parts = [shrink(part.float(), side_px).round().to(torch.uint8) for part in images.split(64)]
    return torch.cat(parts) if len(images) else torch.zeros(0, 3, side_px, side_px, dtype=torch.uint8)


def mean_statistics(images: Tensor, processes: Processes, *, prefix: str) -> dict[str, float]:
    """Means of `image_statistics` over the pictures of all ranks; nothing for pictures smaller than 3 × 3."""
    local: dict[str, tuple[float, int]] = {}
    if len(images) and min(images.shape[2:]) >= 3:
        chosen = _spread(torch.arange(len(images)), MEASURED_PICTURES)
        chunks = [image_statistics(images[part]) for part in chosen.split(16)]
        local = {name: (sum(float(c[name].double().sum()) for c in chunks), len(chosen)) for name in chunks[0]}
    ranks = processes.gather(local)
    return {
        f"{prefix}/{name}": sum(rank[name][0] for rank in ranks if rank) / sum(rank[name][1] for rank in ranks if rank)
        for name in next((rank for rank in ranks if rank), {})
    }


def mean_movement(items: Any, processes: Processes, *, prefix: str) -> dict[str, float]:
    """PREFIX/motion and PREFIX/flicker over the clips of all ranks, at most 128 of each; nothing for pictures."""
    clips = [clip for clip in items if clip is not None] if isinstance(items, Clips) else []
    chosen = [clips[i] for i in _spread(torch.arange(len(clips)), MEASURED_PICTURES).tolist()]
    measured = [movement_of(clip) for clip in chosen]
    known = {name: [m[name] for m in measured if math.isfinite(m[name])] for name in MOVEMENT}
    ranks = processes.gather({name: (math.fsum(values), len(values)) for name, values in known.items()})
    sizes = {name: sum(rank[name][1] for rank in ranks) for name in MOVEMENT}
    return {f"{prefix}/{n}": sum(rank[n][0] for rank in ranks) / sizes[n] for n in MOVEMENT if sizes[n]}


def mean_text_statistics(texts: Sequence[str], processes: Processes, *, prefix: str) -> dict[str, float]:
    """Means of `text_statistics` over the texts of all ranks; nothing where there is none."""
    chosen = _spread(torch.arange(len(texts)), MEASURED_TEXTS).tolist()
    ranks = [rank for rank in processes.gather(text_means([texts[i] for i in chosen])) if rank]
    return {
        f"{prefix}/{name}": sum(rank[name][0] for rank in ranks) / sum(rank[name][1] for rank in ranks)
        for name in next(iter(ranks), {})
    }
