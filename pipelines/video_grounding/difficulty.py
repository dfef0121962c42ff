"""DeepVideo-R1: what is easier than usual is made harder, and what is harder easier, before the group is sampled again."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.video_grounding.alterations import NoisyFrames, altered
from grpo_mm.rollout.collectors.dynamic_sampling import pick_groups
from grpo_mm.rollout.collectors.more import More, Sample, Score, all_scores, dealt, join, per_prompt, scored
from grpo_mm.rollout.table import Table
from grpo_mm.types import Batch, Prompt, Rows

ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
SENTENCE_END = re.compile(r"(?<=[.!?;,])\s+|\n+")


def hint_of(text: str, *, fraction: float) -> str:
    """The beginning of a reasoning, whole sentences, without those that tell the answer; "" if nothing is left.

    Args:
        text: a completion; its reasoning is what stands in <think>, or before the answer. Of several answers none is told.
        fraction: of the reasoning's characters, at most.
    """
    before, thought, _ = text.partition("</think>")
    reasoning = before.partition("<think>")[2] if thought and "<think>" in before else text.split("<answer>")[0]
    closed = (piece.partition("</answer>") for piece in text.split("<answer>")[1:])
    words = set().union(*(_words(inner) for inner, end, _ in closed if end))
    # Numbers tell a span or a count; the "to" between them does not.
    told = {word for word in words if any(c.isdigit() for c in word)} or words
    sentences = [s.strip() for s in SENTENCE_END.split(reasoning.strip()) if s and s.strip()]
    room, kept = fraction * len(reasoning), []
    for sentence in sentences:
        room -= len(sentence)
        if room < 0:
            break
        if not told & _words(sentence):
            kept.append(sentence)
    return " ".join(kept)


def _words(text: str) -> set[str]:
    return {word.strip(".").lower() for word in re.findall(r"[\w.]+", text)}


@dataclass(eq=False)
class DifficultyAugmentation:
    """Samples each group twice: as it is, to see how hard it is, and changed, to train on; the state is a window of rewards.

    Difficulty Δ is the mean of the last `window` group means minus this group's mean reward. Easy prompts (Δ < 0) get Gaussian
    noise of std min(noise_scale · |Δ|, noise_most) on their frames. For hard ones (Δ > 0) the model is told the answer and asked
    to explain it; of the explanation with the highest reward the first min(hint_scale · Δ, hint_most) becomes a hint in the prompt,
    without sentences that tell the answer. Prompts within `tolerance`, or whose hint came out empty, train on what was sampled
    first. The loss is taken on the changed prompt and pixels.

    Source: arXiv:2506.07464 (DeepVideo-R1), section 4; grade B. The window holds groups (the text says steps, the appendix
    samples: uncertain); the mappings of Δ are not printed, ours are linear and capped.
    """

    metric: str | None = None
    """The reward that difficulty is measured by; None: the only one."""
    window: int = 100
    """Groups whose mean rewards are remembered."""
    tolerance: float = 0.05
    """Difficulty, in units of the reward, up to which a prompt stays as it is."""
    noise_scale: float = 1.0
    """Standard deviation of the noise on frames (pixels in [0, 1]) for a prompt that is easier by 1."""
    noise_most: float = 0.3
    """The largest standard deviation of that noise."""
    hint_scale: float = 1.0
    """Share of the explanation that becomes a hint for a prompt that is harder by 1."""
    hint_most: float = 0.5
    """The largest share of it."""
    explain: str = "{text}\nThe correct answer is {answer}. Explain how one finds it, then answer."
    """The prompt that asks for explanations; {answer} is the prompt's `demo`."""
    hinted: str = "{text}\nHint: {hint}"
    """The prompt with the hint: {text} is the prompt, {hint} what was taken of the explanation."""
    means: deque[float] = field(default_factory=deque, init=False)
    _pending: list[float] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if self.window < 1 or min(self.tolerance, self.noise_scale, self.noise_most, self.hint_scale) < 0:
            raise ConfigError(
                f"difficulty: window = {self.window}, tolerance = {self.tolerance}, noise_scale = {self.noise_scale}, noise_most = "
                f"{self.noise_most}, hint_scale = {self.hint_scale}; wanted at least 1, and 0 or more."
            )
        if not 0 <= self.hint_most <= 1 or "{hint}" not in self.hinted or "{answer}" not in self.explain:
            raise ConfigError("difficulty: wanted hint_most in [0, 1], {hint} in `hinted` and {answer} in `explain`.")

    def further_groups(self, prompts: int, group_size: int) -> tuple[int, int]:
        """(prompts, samples of each) beside the groups of a step, at most: each is explained, then asked again with a hint."""
        return (2 if self.hint_most else 1) * prompts, group_size

    def __call__(self, sample: Sample, score: Score, rows: Rows, more: More) -> list[Batch]:
        first = scored(sample, score, rows)
        mean_P = self._means(first, len(rows.prompts), more)
        self._pending = [value for value in mean_P.tolist() if value == value]
        usual = sum(self.means) / len(self.means) if self.means else float("nan")
        hard_P = (usual - mean_P).nan_to_num()
        hints = self._hints(sample, score, rows, hard_P, more)
        changed = {
            p: prompt
            for p, d in enumerate(hard_P.tolist())
            if (prompt := self._changed(rows.prompts[p], d, hints.get(p)))
        }
        metrics = {
            "difficulty/noised_frac": float((hard_P < -self.tolerance).double().mean()),
            "difficulty/hinted_frac": len(hints) / len(rows.prompts),
            "difficulty/usual": usual if self.means else float(mean_P.nanmean()),
        }
        kept = [p for p in range(len(rows.prompts)) if p not in changed]
        parts = [pick_groups(first, torch.tensor(kept, dtype=torch.int64), start=0)]
        if changed:
            asked = tuple(changed.values())
            here = self._samples(asked, rows.group_size, more)
            if len(here):
                parts.append(pick_groups(scored(sample, score, here), torch.arange(len(asked)), start=len(kept)))
        prompts = tuple(rows.prompts[p] for p in kept) + tuple(changed.values())
        joined = join([part for part in parts if len(part.outputs)] or parts[:1], prompts)
        return [dealt(Batch(joined.rollout, joined.outputs, joined.scores, metrics=metrics), more.parts)]

    def _changed(self, prompt: Prompt, difficulty: float, hint: str | None) -> Prompt | None:
        if difficulty < -self.tolerance and prompt.media:
            std = min(self.noise_scale * -difficulty, self.noise_most)
            return altered(prompt, lambda item: NoisyFrames(item, std, prompt.id), name="noise") if std else None
        if hint:
            return altered(prompt, lambda item: item, name="hint", text=self.hinted.format(text=prompt.text, hint=hint))
        return None

    def _hints(self, sample: Sample, score: Score, rows: Rows, hard_P: Tensor, more: More) -> dict[int, str]:
        """Prompt → hint, for the hard prompts that one was found for; the same on every rank."""
        hard = [p for p, d in enumerate(hard_P.tolist()) if d > self.tolerance and rows.prompts[p].demo]
        if not hard or not self.hint_most:
            return {}
        asked = []
        for p in hard:
            prompt = rows.prompts[p]
            answer = ANSWER.search(prompt.demo)
            told = self.explain.format(text=prompt.text, answer=answer.group(1).strip() if answer else prompt.demo)
            asked.append(altered(prompt, lambda item: item, name="explain", text=told))
        here = self._samples(tuple(asked), rows.group_size, more)
        batch = scored(sample, score, here) if len(here) else None
        prompt_M, score_M = all_scores(batch, self.metric, more, kind="difficulty")
        items = [] if batch is None else [batch.outputs.items[i] for i in batch.outputs.item_index().tolist()]
        texts = [text for rank in more.gather(items) for text in rank]
        found = {}
        for i, p in enumerate(hard):
            own = torch.nonzero((prompt_M == i) & score_M.isfinite()).flatten().tolist()
            if not own:
                continue
            best = max(own, key=lambda m: float(score_M[m]))
            hint = hint_of(texts[best], fraction=min(self.hint_scale * float(hard_P[p]), self.hint_most))
            if hint:
                found[p] = hint
        return found

    def _samples(self, prompts: tuple[Prompt, ...], each: int, more: More) -> Rows:
        count_P = torch.full((len(prompts),), each)
        return more.samples(prompts, first_P=torch.zeros_like(count_P), count_P=count_P, group_size=each)

    def _means(self, batch: Batch, prompts: int, more: More) -> Tensor:
        """The mean reward of each group, [P]; NaN where none was scored."""
        prompt_M, score_M = all_scores(batch, self.metric, more, kind="difficulty")
        return per_prompt(score_M, prompt_M, prompts)[0]

    def update(self, table: Table) -> None:
        self.means.extend(self._pending)
        self._pending = []
        while len(self.means) > self.window:
            self.means.popleft()

    def state_dict(self) -> dict[str, Any]:
        return {"means": list(self.means)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.means = deque(float(value) for value in state["means"])
