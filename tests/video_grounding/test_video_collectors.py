"""Collectors that ask a prompt again with other frames or another text, and the filter of solved prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from toy import ToyRecord

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.video_grounding.alterations import NoisyFrames, ShuffledFrames, altered
from grpo_mm.pipelines.video_grounding.difficulty import DifficultyAugmentation, hint_of
from grpo_mm.pipelines.video_grounding.shuffled_frames import MeasureShuffled
from grpo_mm.pipelines.vlm.prompting.contexts import is_video
from grpo_mm.processes.rng import stream
from grpo_mm.rollout.collectors.more import More
from grpo_mm.rollout.collectors.unsolved import Unsolved
from grpo_mm.rollout.rows import further_rows, plan_rows
from grpo_mm.rollout.table import Table
from grpo_mm.types import Batch, Outputs, Prompt, Rollout, Rows

GROUP = 4


@dataclass(frozen=True)
class Clip:
    """Frames that carry their number."""

    frames_FCHW: torch.Tensor
    time_F: torch.Tensor


CLIP = Clip(torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 4, 4) * 20, torch.arange(6) / 2)
EMPTY = Table({}, {"prompt": torch.zeros(0, dtype=torch.int64)})


def prompts(count: int, *, media: tuple = (CLIP,)) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(f"p{i}", f"question {i}?", media=media, demo="<answer>2.0 to 4.0</answer>") for i in range(count)
    )


class Step:
    """One step of scripted prompts: what each prompt's samples say and earn is a function of the prompt."""

    def __init__(self, earns, *, says=lambda prompt, sample: f"sample {sample}", further=()) -> None:
        self.earns, self.says, self.further, self.asked, self.rows = earns, says, further, [], 0

    def run(self, collector, asked: tuple[Prompt, ...]) -> Batch:
        more = More(
            prompts=lambda number: self.further[number - 1], groups=self._groups, samples=further_rows,
            gather=lambda thing: [thing], generator=lambda name: stream(0, name), parts=1,
        )  # fmt: skip
        (batch,) = collector(self._sample, self._score, self._groups(asked), more)
        return batch

    @staticmethod
    def _groups(asked: tuple[Prompt, ...]) -> Rows:
        return plan_rows(asked, group_size=GROUP, parts=1)[0]

    def _sample(self, rows: Rows) -> tuple[Rollout, Outputs]:
        size = len(rows)
        self.rows += size
        self.asked += [rows.prompts[p] for p in dict.fromkeys(rows.prompt_N.tolist())]
        record = ToyRecord(rows.prompt_N, torch.zeros(size, 2, dtype=torch.int64))
        ones = torch.ones(size, 2)
        rollout = Rollout(rows.prompts, rows.prompt_N, rows.sample_N, -ones, ones.bool(), record)
        texts = [self.says(rows.prompts[p], s) for p, s in zip(rows.prompt_N.tolist(), rows.sample_N.tolist())]
        return rollout, Outputs(texts, torch.arange(size))

    def _score(self, rollout: Rollout, outputs: Outputs) -> dict:
        pairs = zip(rollout.prompt_N.tolist(), rollout.sample_N.tolist())
        earned = [float(self.earns(rollout.prompts[p], s)) for p, s in pairs]
        return {"iou": {"score": torch.tensor(earned, dtype=torch.float64)}}


def ids(batch: Batch) -> list[str]:
    return [p.id for p in batch.rollout.prompts]


# ── altered media ──


def test_shuffled_frames_keep_times_sizes_and_pixels():
    found = ShuffledFrames(CLIP, "a").alter(CLIP)
    assert sorted(found.frames_FCHW[:, 0, 0, 0].tolist()) == CLIP.frames_FCHW[:, 0, 0, 0].tolist()
    assert not torch.equal(found.frames_FCHW, CLIP.frames_FCHW) and torch.equal(found.time_F, CLIP.time_F)
    assert torch.equal(found.frames_FCHW, ShuffledFrames(CLIP, "a").alter(CLIP).frames_FCHW)
    two = Clip(CLIP.frames_FCHW[:2], CLIP.time_F[:2])
    assert all(not torch.equal(ShuffledFrames(two, str(k)).alter(two).frames_FCHW, two.frames_FCHW) for k in range(6))


def test_noise_has_the_strength_that_was_asked_for():
    grey = Clip(torch.full((8, 3, 32, 32), 128, dtype=torch.uint8), torch.arange(8))
    noisy = NoisyFrames(grey, 0.1, "k").alter(grey).frames_FCHW
    assert noisy.dtype == torch.uint8 and (noisy.float() - 128).std() == pytest.approx(25.5, rel=0.05)
    assert torch.equal(noisy, NoisyFrames(grey, 0.1, "k").alter(grey).frames_FCHW)
    picture = torch.full((3, 8, 8), 128, dtype=torch.uint8)
    assert NoisyFrames(picture, 0.1, "k").alter(picture).shape == (3, 8, 8)
    assert ShuffledFrames(picture, "k").alter(picture) is picture


def test_an_altered_prompt_is_a_repeat_with_an_id_of_its_own():
    (prompt,) = prompts(1)
    twice = altered(altered(prompt, lambda i: i, name="a"), lambda i: i, name="b", text="other")
    assert (twice.id, twice.repeat_of, twice.text) == ("p0~a~b", "p0", "other")
    assert is_video(CLIP) and is_video(ShuffledFrames(CLIP, "")) and not is_video(torch.zeros(3, 4, 4))


# ── Video-R1 ──


def test_shuffled_accuracy_is_measured_and_only_ordered_rows_are_trained():
    step = Step(lambda prompt, sample: 0.25 if "shuffled" in prompt.id else sample % 2)
    batch = step.run(MeasureShuffled(), prompts(2) + prompts(3, media=())[2:])
    assert ids(batch) == ["p0", "p1", "p2"] and batch.rollout.num_rows == 3 * GROUP
    told = batch.rollout.columns["shuffled_accuracy"].reshape(3, GROUP)
    assert told[:2].eq(0.25).all() and told[2].isnan().all()
    asked_again = [p for p in step.asked if p.id.endswith("~shuffled")]
    assert [p.repeat_of for p in asked_again] == ["p0", "p1"]
    assert all(isinstance(p.media[0], ShuffledFrames) and p.media[0].item is CLIP for p in asked_again)
    assert batch.metrics == {"rollout/shuffled_accuracy": 0.25}


def test_without_a_video_nothing_is_asked_twice():
    step = Step(lambda prompt, sample: 1)
    batch = step.run(MeasureShuffled(), prompts(2, media=()))
    assert len(step.asked) == 2 and batch.rollout.columns["shuffled_accuracy"].isnan().all() and not batch.metrics


# ── DeepVideo-R1 ──


@pytest.mark.parametrize(
    ("text", "fraction", "hint"),
    [
        (
            "<think>It moves left. Then it stops. Seen at 2.0.</think><answer>2.0 to 4.0</answer>",
            0.9,
            "It moves left. Then it stops.",
        ),
        ("<think>It moves left. Then it stops.</think><answer>2.0 to 4.0</answer>", 0.5, "It moves left."),
        ("<think>It is there from 2.0 on.</think><answer>2.0 to 4.0</answer>", 1.0, ""),
        ("It moves to the left.<answer>2.0 to 4.0</answer>", 1.0, "It moves to the left."),  # "to" tells nothing
        ("<think>It is blue. It is a circle.</think><answer>blue</answer>", 1.0, "It is a circle."),
        ("", 1.0, ""),
        ("<think>" * 500, 1.0, "<think>" * 500),
    ],
)
def test_a_hint_is_the_beginning_of_a_reasoning_without_the_answer(text, fraction, hint):
    assert hint_of(text, fraction=fraction) == hint


def test_the_first_step_knows_no_difficulty_and_changes_nothing():
    step = Step(lambda prompt, sample: int(prompt.id[1]))
    collector = DifficultyAugmentation()
    batch = step.run(collector, prompts(2))
    assert ids(batch) == ["p0", "p1"] and len(step.asked) == 2
    collector.update(EMPTY)
    assert list(collector.means) == [0.0, 1.0]


def after_a_usual_step(**settings) -> DifficultyAugmentation:
    collector = DifficultyAugmentation(**settings)
    collector.load_state_dict({"means": [0.5, 0.5]})
    return collector


def test_easy_prompts_get_noise_and_hard_ones_a_hint_and_train_on_what_was_asked():
    says = lambda prompt, s: f"<think>Look left {s}. It comes late.</think><answer>2.0 to 4.0</answer>"  # noqa: E731
    earns = lambda p, s: {"p0": 0.9, "p1": 0.1, "p2": 0.5}[p.id] if "~" not in p.id else s / 10  # noqa: E731
    step, collector = Step(earns, says=says), after_a_usual_step(hint_scale=2.0)
    batch = step.run(collector, prompts(3))
    assert ids(batch) == ["p2", "p0~noise", "p1~hint"] and batch.rollout.num_rows == 3 * GROUP
    noisy, hinted = batch.rollout.prompts[1:]
    assert noisy.media[0].std == pytest.approx(0.3) and noisy.text == "question 0?"  # .4, capped
    assert hinted.text == "question 1?\nHint: Look left 3." and hinted.media == (CLIP,)  # the best explanation's half
    explained = next(p for p in step.asked if p.id == "p1~explain")
    assert "2.0 to 4.0" in explained.text and "<answer>" not in explained.text
    assert "explain" not in " ".join(ids(batch))
    assert (
        batch.scores["iou"]["score"][:GROUP].eq(0.5).all() and batch.rollout.prompt_N.bincount().tolist() == [GROUP] * 3
    )
    assert batch.metrics["difficulty/noised_frac"] == pytest.approx(1 / 3)
    collector.update(EMPTY)
    assert list(collector.means) == [0.5, 0.5, 0.9, 0.1, 0.5]  # of the prompts as they are


def test_a_hard_prompt_without_a_useful_explanation_trains_as_it_is():
    step = Step(lambda p, s: 0.0, says=lambda p, s: "<answer>2.0 to 4.0</answer>")
    assert ids(step.run(after_a_usual_step(), prompts(1))) == ["p0"]


def test_where_every_prompt_is_changed_nothing_of_the_first_rollout_is_trained():
    step = Step(lambda p, s: 0.2 if "~" in p.id else 1.0)
    batch = step.run(after_a_usual_step(), prompts(2))
    assert ids(batch) == ["p0~noise", "p1~noise"] and batch.scores["iou"]["score"].eq(0.2).all()


def test_the_window_forgets_and_is_resumed():
    collector = DifficultyAugmentation(window=3)
    for _ in range(2):
        Step(lambda p, s: 0.5).run(collector, prompts(2))
        collector.update(EMPTY)
    again = DifficultyAugmentation(window=3)
    again.load_state_dict(collector.state_dict())
    assert list(again.means) == list(collector.means) == [0.5] * 3


def test_settings_that_cannot_be_are_refused():
    for wrong in ({"window": 0}, {"noise_most": -1.0}, {"hint_most": 2.0}, {"hinted": "no place"}, {"explain": "none"}):
        with pytest.raises(ConfigError, match="difficulty"):
            DifficultyAugmentation(**wrong)


# ── what a step plans ──


@pytest.mark.parametrize("samples", [None, 3])
def test_the_shuffled_rows_are_planned(samples):
    collector = MeasureShuffled(samples=samples)
    prompts_more, each = collector.further_groups(3, GROUP)
    step = Step(lambda p, s: 1)
    step.run(collector, prompts(3))
    assert step.rows == 3 * GROUP + prompts_more * each
    assert (prompts_more, each) == (3, samples or GROUP // 2)


def test_changed_prompts_never_ask_for_more_than_is_planned():
    says = lambda prompt, s: f"<think>Look left {s}. It comes late.</think><answer>2.0 to 4.0</answer>"  # noqa: E731
    for earns, asked in ((lambda p, s: 0.1, 2), (lambda p, s: 0.9, 1), (lambda p, s: 0.5, 0)):  # hard, easy, usual
        step, collector = Step(earns, says=says), after_a_usual_step(hint_scale=2.0)
        more, each = collector.further_groups(3, GROUP)
        step.run(collector, prompts(3))
        assert step.rows == 3 * GROUP * (1 + asked) and step.rows <= 3 * GROUP + more * each == 9 * GROUP
    assert DifficultyAugmentation(hint_most=0.0).further_groups(3, GROUP) == (3, GROUP)


# ── Time-R1 ──


def table(**means: float) -> Table:
    from grpo_mm.rollout.table import prompt_ids

    asked = [Prompt(name, "") for name in means]
    return Table({"iou": torch.tensor(list(means.values()), dtype=torch.float64)}, {"prompt_id": prompt_ids(asked)})


def test_solved_prompts_are_asked_last():
    collector = Unsolved(pool=2)
    collector.update(table(p0=0.9, p1=0.2, p3=0.8))
    repeat = replace(prompts(2)[1], id="p1+1", repeat_of="p1")
    step = Step(lambda p, s: 0.5, further=[(repeat, prompts(4)[3], prompts(5)[4])])
    batch = step.run(collector, prompts(3))
    assert ids(batch) == ["p1", "p2", "p4"]  # p0 and p3 are solved, p1 is not asked twice
    assert batch.metrics == {"rollout/unsolved_frac": 1.0, "rollout/solved_prompts": 2.0}


def test_where_all_are_solved_a_step_is_still_full():
    collector = Unsolved(pool=2)
    collector.update(table(p0=0.9, p1=0.9))
    batch = Step(lambda p, s: 1.0, further=[prompts(2)]).run(collector, prompts(2))
    assert len(batch.rollout.prompts) == 2 and batch.metrics["rollout/unsolved_frac"] == 0
    again = Unsolved()
    again.load_state_dict(collector.state_dict())
    assert again.means == collector.means


def test_a_prompt_that_is_forgotten_again_is_asked_again():
    collector = Unsolved()
    collector.update(table(p0=0.9))
    collector.update(table(p0=0.3))
    assert ids(Step(lambda p, s: 1.0, further=[prompts(1)]).run(collector, prompts(1))) == ["p0"]
