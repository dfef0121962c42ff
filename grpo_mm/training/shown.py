"""Samples of an evaluation as a sheet of pictures or a transcript."""

from __future__ import annotations

from torch import Tensor

from grpo_mm.config.run_config import RunConfig
from grpo_mm.looking import samples, transcripts
from grpo_mm.looking.clips.shown import sources_of, tiles_of
from grpo_mm.looking.truth import truth_of
from grpo_mm.run.run_folder import RunFolder
from grpo_mm.training.evaluate import EvalResult
from grpo_mm.training.onlooker import illustrator, player
from grpo_mm.types import Clips

EVAL_FILM_PX = 480
"""Of the longer side of a held-out clip's file; `grpo-mm sample` writes clips as they are."""


def show_evaluation(result: EvalResult, step: int, *, name: str, folder: RunFolder, config: RunConfig) -> None:
    """Writes samples/NAME of what was asked at `step`."""
    shown, prompts, rewards = result.shown, result.shown_prompts, result.shown_rewards
    if isinstance(shown, Tensor | Clips):
        tiles = tiles_of(shown, max_px=EVAL_FILM_PX)
        samples.write_eval_sheet(
            folder.samples, name=name, step=step, images_MCHW=tiles.images, prompts=[p.text for p in prompts],
            rewards=rewards, truths=[truth_of(p) for p in prompts], sources=sources_of(prompts), films=tiles.films,
        )  # fmt: skip
        return
    answers = [
        transcripts.Answer(text, {reward: float(value[i]) for reward, value in rewards.items()})
        for i, text in enumerate(shown)
    ]
    transcripts.write_transcript(
        folder.samples, name=name, kind="eval", step=step,
        asked=[(prompt, [answer]) for prompt, answer in zip(prompts, answers, strict=True)],
        sketch=config.sketch, illustrate=illustrator(config), play=player(config),
    )  # fmt: skip
