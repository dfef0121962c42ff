"""Rewards of edited pictures on pictures made by hand, with numbers worked out by hand."""

import math

import pytest
import torch
from PIL import Image
from tiny_reward_models import build_dino, build_open_clip

from grpo_mm.errors import ConfigError, UserError
from grpo_mm.registry import lookup
from grpo_mm.rewards.edits.clip_direction import ClipDirection, directional_similarity
from grpo_mm.rewards.edits.edit_judge import EditJudge
from grpo_mm.rewards.edits.edited_region import edited_region
from grpo_mm.rewards.edits.picture_similarity import SourceSimilarity, TargetSimilarity
from grpo_mm.rewards.judges.comparing import ReadsPairs
from grpo_mm.rewards.judges.win_rate import WinRate
from grpo_mm.rollout.prompt_check import check_prompts
from grpo_mm.rollout.scoring import Scorer, Scoring
from grpo_mm.source_picture import source_of
from grpo_mm.types import Prompt

CPU = torch.device("cpu")


def grey(level, size=(8, 8)):
    return torch.full((3, *size), level, dtype=torch.uint8)


def pil(picture):
    return Image.fromarray(picture.permute(1, 2, 0).numpy())


def half(left, right, size=(8, 8)):
    picture = grey(left, size)
    picture[:, :, size[1] // 2 :] = right
    return picture


def prompt(source=None, name="p", **target):
    return Prompt(name, "make the right side white", () if source is None else (source,), target=target or None)


def of(reward, result, *asked):
    return reward(torch.stack([result] * len(asked)), list(asked))


# ── likeness to the source ──


def test_likeness_of_the_whole_by_hand():
    reward = SourceSimilarity(by="pixels")
    assert of(reward, grey(100), prompt(grey(100)))["score"].item() == 1
    assert of(reward, grey(151), prompt(pil(grey(100))))["score"].item() == pytest.approx(1 - 51 / 255)
    assert of(reward, half(0, 255), prompt(grey(0)))["score"].item() == pytest.approx(0.5)


def test_outside_of_a_mask_only_what_was_to_be_kept_counts():
    reward = SourceSimilarity(by="pixels", where="outside", margin=0.0)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, 4:] = True
    for one in (mask, mask.numpy(), pil(half(0, 255)), Image.new("L", (8, 8), 0)):
        asked = prompt(grey(0), mask=one)
        assert reward.applies_to(asked)
    edited = of(reward, half(0, 255), prompt(grey(0), mask=mask))
    assert edited["score"].item() == 1 and edited["outside"].item() == 0.5
    spoilt = of(reward, half(51, 255), prompt(grey(0), mask=pil(half(0, 255))))
    assert spoilt["score"].item() == pytest.approx(0.8)
    empty = of(reward, half(0, 255), prompt(grey(0), mask=Image.new("L", (8, 8), 0)))
    assert empty["score"].item() == pytest.approx(0.5) and empty["outside"].item() == 1
    everything = of(reward, grey(9), prompt(grey(0), mask=Image.new("L", (8, 8), 255)))
    assert everything["score"].isnan().all() and everything["outside"].item() == 0


def test_without_a_mask_it_is_where_source_and_wanted_picture_differ():
    asked = prompt(grey(0), edited_image=pil(half(0, 255)))
    region = edited_region(asked, (8, 8), threshold=0.1, margin=0.0)
    assert region[:, 4:].all() and not region[:, :4].any()
    wider = edited_region(asked, (8, 8), threshold=0.1, margin=0.125)
    assert wider[:, 3:].all() and not wider[:, :3].any()
    assert not edited_region(prompt(grey(0), edited_image=grey(20)), (8, 8), threshold=0.1, margin=0.0).any()
    assert edited_region(prompt(grey(0)), (8, 8), threshold=0.1, margin=0.0) is None
    reward = SourceSimilarity(by="pixels", where="outside", margin=0.0)
    assert of(reward, half(0, 77), asked)["score"].item() == 1


def test_a_row_that_says_not_where_is_left_out_and_told_once(caplog):
    reward = SourceSimilarity(by="pixels", where="outside")
    rows = [
        prompt(grey(0), "a"),
        prompt(grey(0), "b", mask=Image.new("L", (8, 8), 0)),
        prompt(grey(0), "c"),
        prompt(None, "d"),
    ]
    scoring = Scoring({"kept": Scorer(reward)}, CPU)
    found = scoring(torch.stack([grey(0)] * 4), rows)["kept"]["score"]
    assert found.isfinite().tolist() == [False, True, False, False] and scoring.first_error == {}
    told = [record.message for record in caplog.records if "where: outside" in record.message]
    assert len(told) == 1 and "'a' has neither mask nor edited_image" in told[0]
    with pytest.raises(UserError, match="says not where it is to be edited"):
        of(reward, grey(0), rows[0])


def test_a_source_of_another_size_or_shape_is_stretched():
    reward = SourceSimilarity(by="pixels")
    large = half(0, 255, (32, 64))
    assert of(reward, half(0, 255, (8, 16)), prompt(large))["score"].item() > 0.95
    assert of(reward, half(0, 255, (8, 8)), prompt(large))["score"].item() > 0.9


@pytest.mark.parametrize("by", ["clip", "dino"])
def test_likeness_by_features(by, tmp_path):
    model = build_dino(tmp_path) if by == "dino" else build_open_clip(tmp_path)
    noise = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    reward = SourceSimilarity(by=by, model=model)
    reward.check()
    same, other = (float(of(reward, picture, prompt(noise))["score"]) for picture in (noise, 255 - noise))
    assert same == pytest.approx(1, abs=1e-5) and other < same
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:, 16:] = True
    edited = noise.clone()
    edited[:, :, 16:] = 0
    kept = SourceSimilarity(by=by, model=model, where="outside", margin=0.0)
    assert float(of(kept, edited, prompt(noise, mask=mask))["score"]) == pytest.approx(1, abs=1e-5)
    assert of(kept, edited, prompt(noise, mask=torch.ones(32, 32, dtype=torch.bool)))["score"].isnan().all()


def test_likeness_to_the_wanted_picture():
    reward = TargetSimilarity(by="pixels")
    asked = prompt(grey(0), edited_image=pil(grey(204)))
    assert of(reward, grey(204), asked)["score"].item() == 1 and of(reward, grey(0), asked)[
        "score"
    ].item() == pytest.approx(0.2)
    assert reward.applies_to(asked) and not reward.applies_to(prompt(grey(0)))
    with pytest.raises(UserError, match="has no edited_image"):
        of(reward, grey(0), prompt(grey(0)))


# ── direction ──


def test_the_direction_by_hand():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert directional_similarity(a, b, a, b).item() == pytest.approx(1)
    assert directional_similarity(a, b, b, a).item() == pytest.approx(-1)
    diagonal = torch.tensor([[0.6, 0.8]])
    # (−0.4, 0.8) and (−1, 1): (0.4 + 0.8) / (√0.8 √2)
    assert directional_similarity(a, diagonal, a, b).item() == pytest.approx(1.2 / math.sqrt(1.6))
    assert directional_similarity(a, a, a, b).isnan().all() and directional_similarity(a, b, a, a).isnan().all()


def test_the_direction_takes_the_captions_of_the_row(tmp_path):
    reward = ClipDirection(model=build_open_clip(tmp_path))
    reward.check()
    noise = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    said = {"source_caption": "a dark wall", "edited_caption": "a white wall"}
    forth, back = prompt(noise, **said), prompt(noise, "q", source_caption="a white wall", edited_caption="a dark wall")
    found = of(reward, 255 - noise, forth, back)
    assert found["score"][0].item() == pytest.approx(-found["score"][1].item(), abs=1e-5) and found["score"][0] != 0
    assert of(reward, noise, forth)["score"].item() == 0, "nothing done is no direction"
    assert (
        reward.applies_to(forth)
        and not reward.applies_to(prompt(noise))
        and not reward.applies_to(prompt(None, **said))
    )
    assert not reward.applies_to(prompt(noise, source_caption="x", edited_caption=" "))
    with pytest.raises(UserError, match="lacks source_caption or edited_caption"):
        of(reward, noise, prompt(noise))


# ── judges ──


class Says:
    def __init__(self, *answers):
        self.answers, self.asked = answers, []

    def ask(self, questions):
        self.asked += questions
        return [self.answers[i % len(self.answers)] for i in range(len(questions))]


class PairModel(ReadsPairs, Says):
    form = "edit"


def test_a_judge_sees_source_result_and_instruction():
    model = Says("done\nFinal Score: 5", None)
    found = EditJudge(vlm=model)(torch.stack([grey(1), grey(2)]), [prompt(grey(0)), prompt(grey(7))])
    assert found["score"][0].item() == 1 and found["score"][1].isnan()
    assert [[int(i[0, 0, 0]) for i in q.images] for q in model.asked] == [[0, 1], [7, 2]]
    assert "Instruction: [make the right side white]" in model.asked[0].text


def test_two_edits_are_compared_beside_their_source():
    model = PairModel("<answer>Image 2 is better</answer>")
    reward = WinRate(judge=model)
    found = reward(torch.stack([grey(1), grey(2)]), [prompt(grey(0))] * 2, torch.zeros(2, dtype=torch.int64))
    assert found["score"].tolist() == [0, 1] and reward.takes == ("pictures",)
    assert [int(i[0, 0, 0]) for i in model.asked[0].images] == [0, 1, 2]
    with pytest.raises(UserError, match="brings no picture"):
        reward(torch.stack([grey(1), grey(3)]), [prompt(None, "q")] * 2, torch.zeros(2, dtype=torch.int64))


# ── sources ──


def test_the_source_is_the_first_of_the_media_however_it_comes(tmp_path):
    pil(grey(5)).save(tmp_path / "a.png")

    class File:
        def open(self):
            return Image.open(tmp_path / "a.png")

    for medium in (pil(grey(5)), grey(5), grey(5).numpy(), str(tmp_path / "a.png"), File(), pil(grey(5)).convert("L")):
        assert torch.equal(source_of(prompt(medium)), grey(5))
    (tmp_path / "b.png").write_bytes(b"no")
    for wrong in (
        torch.zeros(3, 8, 8),
        torch.zeros(8, 8, dtype=torch.uint8),
        str(tmp_path / "b.png"),
        str(tmp_path / "c.png"),
        7,
    ):
        with pytest.raises(UserError, match="prompt 'p': its picture"):
            source_of(prompt(wrong))
    with pytest.raises(UserError, match="brings no picture"):
        source_of(prompt(None))


def test_prompts_without_a_picture_are_refused_before_a_model_is_loaded():
    edit = Scorer(EditJudge(vlm=Says("x")))
    with pytest.raises(ConfigError, match="prompt 'p' of 's' brings no picture, and kept judges"):
        check_prompts({"s": [prompt(None)]}, {"kept": edit}, shows_media=True, engine="flow")
    check_prompts({"s": [prompt(grey(0))]}, {"kept": edit}, shows_media=True, engine="flow")
    check_prompts({"s": [prompt(None)]}, {"kept": Scorer(edit.use, sources=("t",))}, shows_media=True, engine="flow")
    assert all(
        lookup("reward", kind).needs_source
        for kind in ("edit_reward", "edit_score", "clip_direction", "source_similarity")
    )


def test_settings_that_mean_nothing_are_refused():
    for settings in ({"threshold": 1.0}, {"threshold": -0.1}, {"margin": 0.5}):
        with pytest.raises(ConfigError, match="wanted"):
            SourceSimilarity(by="pixels", **settings)
