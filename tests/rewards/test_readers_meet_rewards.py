"""Prompts of every reader are put to every reward that can be made without a model, and to every benchmark."""

from __future__ import annotations

import pytest
import torch
from reader_rows import EXAMPLES

from grpo_mm import registry
from grpo_mm.config.typed_yaml import component
from grpo_mm.errors import ConfigError
from grpo_mm.registry import Role
from grpo_mm.rewards.video.timestamp_matching import TimestampMatching
from grpo_mm.rollout.outputs.takes import takes_of
from grpo_mm.rollout.prompt_check import check_prompts
from grpo_mm.rollout.scoring import Scorer, Scoring
from grpo_mm.types import Clip, Clips, Prompt

SETTINGS = {"information_consistency": {"max_gap": 0.5}}
NEEDS_MORE = {
    "function": "a function of the user", "geneval": "a detector", "clip_score": "weights", "pick_score": "weights", "hps": "weights",
    "image_reward": "weights", "aesthetic": "weights", "nearest_neighbour": "weights", "win_rate": "a judge", "vlm_yes_no": "weights",
    "unified_reward": "a judge", "ocr": "a reader of letters", "remote": "a server", "hpsv3": "weights", "video_align": "weights",
    "edit_reward": "weights", "edit_score": "a judge", "temporal_consistency": "weights", "clip_judge": "a judge",
    "video_ocr": "a reader of letters", "source_similarity": "weights", "target_similarity": "weights", "clip_direction": "weights",
    "edit_judge": "a judge",
}  # fmt: skip
"""Rewards that need more than their settings: what they take of a prompt their own tests say."""
PICTURES = ("shape_world", "quality_guard", "jpeg", "image_quality")
CLIPS = ("temporal_flicker", "motion_amount", "motion_smoothness", "moving_shapes")
TEXTS = (
    "", " ", "<think>a</think><answer>B</answer>", "<answer>2.0 to 5.5</answer>", "<answer>" * 50, "[" * 300, "{" * 300,
    '<answer>[{"bbox_2d": [1, 2, 30, 40], "label": "cup"}]</answer>', "9" * 500, "<answer>1e999 to nan</answer>", "\x00\u2028\ufeff",
)  # fmt: skip
"""Plausible, empty and hostile answers."""
WORLDS = ("shape_world", "clip_world", "scene_world", "moving_shapes")


def prompts_of(name: str, folder) -> list[Prompt]:
    if name in WORLDS:
        return component(Role("prompts"), {"kind": name}, path="prompts").load()[:2]
    EXAMPLES[name].write(folder)
    return EXAMPLES[name].load(folder)


def rewards() -> dict[str, Scorer]:
    kinds = [entry.kind for entry in registry.entries("reward") if entry.kind not in NEEDS_MORE]
    return {
        kind: Scorer(component(Role("reward"), {"kind": kind, **SETTINGS.get(kind, {})}, path=kind)) for kind in kinds
    }


def benchmarks() -> dict[str, Scorer]:
    kinds = [entry.kind for entry in registry.entries("benchmark")]
    return {kind: Scorer(component(Role("benchmark"), {"kind": kind}, path=kind)) for kind in kinds}


def test_every_reader_has_an_example():
    kinds = {entry.kind for entry in registry.entries("prompts")} - {"swapped", "blanked", *WORLDS}
    assert kinds <= {example.kind for example in EXAMPLES.values()}


@pytest.mark.parametrize("name", [*EXAMPLES, *WORLDS])
def test_every_reward_takes_or_leaves_the_prompts_of_a_reader(name, tmp_path):
    """The demonstration scores a number wherever a reward applies; nothing raises, whatever was written."""
    prompts = prompts_of(name, tmp_path)
    before = repr(prompts)
    texts = {kind: scorer for kind, scorer in rewards().items() if kind not in (*PICTURES, *CLIPS)}
    check_prompts({"a": prompts}, texts | benchmarks(), shows_media=True, engine="vlm")
    answers = [(p.demo if isinstance(p.demo, str) else "a", p) for p in prompts] + [
        (t, p) for t in TEXTS for p in prompts
    ]
    scoring = Scoring(texts, torch.device("cpu"))
    found = scoring(
        [text for text, _ in answers], [prompt for _, prompt in answers], torch.arange(len(answers)) % len(prompts)
    )
    assert scoring.first_error == {}
    assert repr(prompts) == before, "our rewards are handed the prompts themselves (own_copies.is_own)"
    for kind, scorer in texts.items():
        if hasattr(scorer.use, "applies_to") and getattr(scorer.use, "judge", "none needed") is not None:
            applied = scoring.applied(prompts)[kind]
            assert found[kind]["score"][: len(prompts)].isfinite().sum() >= applied, kind
    for kind, scorer in benchmarks().items():
        asked = [prompt for prompt in prompts if scorer.use.applies_to(prompt)]
        for given in (*TEXTS, None) if asked and kind != "best_of_modes" else ():  # which compares two sources
            assert all(isinstance(value, float | int) for value in scorer.use([given] * len(asked), asked).values()), (
                kind
            )


@pytest.mark.parametrize("name", ["prompts as lines", "prompts as json lines", "geneval", "ocr", "shape_world", "hub"])
def test_every_reward_of_pictures_takes_the_prompts_of_a_reader(name, tmp_path):
    prompts = prompts_of(name, tmp_path)
    asked = {kind: scorer for kind, scorer in rewards().items() if kind in PICTURES}
    check_prompts({"a": prompts}, asked, shows_media=False, engine="flow")
    scoring, before = Scoring(asked, torch.device("cpu")), repr(prompts)
    pictures = torch.zeros(len(prompts), 3, 32, 32, dtype=torch.uint8)
    found = scoring(pictures, prompts)
    assert repr(prompts) == before and not pictures.any()
    errors = {
        kind: error for kind, error in scoring.first_error.items() if kind != "shape_world" or name == "shape_world"
    }
    assert errors == {} and found["jpeg"]["score"].isfinite().all()


def test_what_a_reward_takes_is_known_of_every_kind():
    for kind, scorer in rewards().items():
        wanted = "pictures" if kind in PICTURES else "clips" if kind in CLIPS else "texts"
        assert takes_of(scorer.use) == {wanted}, kind
    for entry in registry.entries("reward"):
        if entry.kind in NEEDS_MORE and entry.kind not in ("function", "remote"):
            assert takes_of(registry.lookup("reward", entry.kind).__new__(registry.lookup("reward", entry.kind))), (
                entry.kind
            )


@pytest.mark.parametrize("name", ["prompts as lines", "prompts as json lines", "geneval", "moving_shapes", "hub"])
def test_every_reward_of_clips_takes_the_prompts_of_a_reader(name, tmp_path):
    prompts = prompts_of(name, tmp_path)
    asked = {kind: scorer for kind, scorer in rewards().items() if kind in CLIPS}
    clips = Clips(Clip(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), 8.0) for _ in prompts)
    found = (scoring := Scoring(asked, torch.device("cpu")))(clips, prompts)
    errors = {kind for kind in scoring.first_error if kind != "moving_shapes" or name == "moving_shapes"}
    assert not errors and all(found[kind]["score"].isfinite().all() for kind in CLIPS[:3])


def test_saliency_by_several_annotators_counts_with_its_mean():
    reward = TimestampMatching()
    by_three = Prompt("a", "", target={"saliency": [[0, 0, 0], [1, 2, 3], [4, 4, 4]]})
    by_one = Prompt("b", "", target={"saliency": [0, 2, 4]})
    none = Prompt("c", "", target={"saliency": [[0, 0, 0]]})
    text = "<answer>2, 4 seconds, scores 2, 3</answer>"
    first, second, third = reward([text] * 3, [by_three, by_one, none])["score"].tolist()
    assert first == pytest.approx(second) and first > 0.8 and third != third and not reward.applies_to(none)


class Unruly:
    """A reward that cannot say whether it applies to prompts without a number."""

    def applies_to(self, prompt):
        return prompt.target["n"] > 0

    def __call__(self, items, prompts):
        return [1.0 for _ in items]


def test_a_reward_that_cannot_say_whether_it_applies_is_told_before_a_model_is_loaded_or_fails_its_row():
    prompts = [Prompt("a", "x", target={"n": 1}), Prompt("b", "x", target=None), Prompt("c", "x", target={"n": 0})]
    with pytest.raises(ConfigError, match="prompt 'b' of 's': r cannot say whether it applies .TypeError.*sources"):
        check_prompts({"s": prompts}, {"r": Scorer(Unruly())}, shows_media=True, engine="vlm")
    check_prompts({"s": prompts}, {"r": Scorer(Unruly(), sources=("other",))}, shows_media=True, engine="vlm")
    scoring = Scoring({"r": Scorer(Unruly())}, torch.device("cpu"))
    score = scoring(["x"] * 3, prompts)["r"]["score"]
    assert (
        score[0] == 1 and score[1:].isnan().all() and "cannot say whether it applies to 'b'" in scoring.first_error["r"]
    )
    assert scoring.applied(prompts) == {"r": 2}
