"""One batch with several pictures, several videos, both of them in one prompt, and rows without media, of every newer family."""

from __future__ import annotations

import pytest
import torch
from newer_vlm import MAKERS
from tiny_vlm import PROMPTS, clip, folder, library_logprobs, picture, policy, sample
from transformers import AutoModelForImageTextToText

from grpo_mm.pipelines.vlm.models.families import FAMILIES
from grpo_mm.types import Prompt

TWO = (picture(56, 28, seed=8), picture(28, 56, seed=9))
CLIPS = (clip(4, seed=6), clip(4, fps=2.0, seed=7))
BATCH = (
    PROMPTS[1],
    PROMPTS[5],
    Prompt("clips", "which is longer", media=CLIPS),
    Prompt("many", "is <image> or <image> in <video> and <video>", media=(*TWO, *CLIPS)),
    Prompt("turns about", "<video> <image> <video> <image> which", media=(CLIPS[1], TWO[1], CLIPS[0], TWO[0])),
    Prompt("more text", "one two three four"),
    PROMPTS[2],
)


@pytest.mark.parametrize("family", MAKERS)
def test_rows_of_all_kinds_are_drawn_and_trained_as_each_alone_in_its_own_library(family):
    of_family = FAMILIES[family]
    kinds = {p.id: ["video" if hasattr(m, "frames_FCHW") else "image" for m in p.media] for p in BATCH}
    shown = tuple(p for p in BATCH if not of_family.refused_media(kinds[p.id], [4] * kinds[p.id].count("video")))
    mixed = {p.id for p in shown if len(set(kinds[p.id])) == 2}
    assert mixed == (
        set() if family.startswith("glm4") else {"many", "turns about"}
    )  # its library takes one kind a prompt
    ours = policy(family, micro_batch=2 * len(shown))
    rollout, _ = sample(ours, shown, group_size=2, max_new_tokens=3)
    record = rollout.record
    assert not [context.failure for context in record.contexts if context.failure]
    together_NA = ours.values_under(None, record, torch.arange(rollout.num_rows))  # all rows in one forward
    model = AutoModelForImageTextToText.from_pretrained(folder(family)).eval()
    of_family.follow(model, ours.config.video_positions)
    for row in range(0, rollout.num_rows, 2):
        length, context = int(record.length_N[row]), record.contexts[int(record.context_N[row])]
        alone = library_logprobs(model, ours, context, record.token_NA[row, :length])
        assert torch.allclose(alone, rollout.behaviour_NA[row, :length], atol=1e-4), context
        assert torch.allclose(alone, together_NA[row, :length], atol=1e-4)
