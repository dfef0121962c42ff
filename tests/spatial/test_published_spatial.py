"""Every shipped spatial config prints its arithmetic, and takes a full training step on a tiny checkpoint of its model format."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from chat_server import ChatServer, parts
from conftest import ROOT
from spatial_settings import CONFIGS, config_of, paths, paths_and_sizes, places_of
from taught_spatial import ANSWERS
from taught_spatial import verdict as judge_says
from test_published_video import check_calls
from typer.testing import CliRunner

from grpo_mm.advantages.state.lagrangian import dual_step
from grpo_mm.cli import app
from grpo_mm.config.run_config import read
from grpo_mm.config.typed_yaml import read_yaml
from grpo_mm.entry import train
from grpo_mm.errors import ConfigError
from grpo_mm.processes.distributed import Processes
from grpo_mm.registry import entries
from grpo_mm.rollout.scoring import Scoring
from grpo_mm.training.learner import Learner

ALIKE = ("fgrpo_qwen25vl_3b", "grit_judge_qwen25vl_3b", "vlm_r1_detection_qwen25vl_3b")
"""Settings much like others; they take their full step among the slow tests."""
each_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)


@pytest.fixture
def judge(monkeypatch):
    """A server on this machine that stands in the place of the published judge."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    server = ChatServer(judge_says)
    yield server
    server.close()


@pytest.fixture
def learner_of(judge, tmp_path):
    def of(stem: str, *more: str) -> Learner:
        config = read(config_of(stem), [*paths_and_sizes(config_of(stem), tmp_path, judge_url=judge.url), *more])
        config.check()
        return Learner(config, Processes(device="cpu"), samples=tmp_path)

    return of


def scores_of(learner: Learner, step: int = 0):
    (batch,), _ = learner.rollout(step)
    prompts = [batch.rollout.prompts[p] for p in batch.rollout.prompt_N.tolist()]
    return batch, prompts, {name: parts_of["score"] for name, parts_of in batch.scores.items()}


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=pytest.mark.slow if path.stem in ALIKE else ()) for path in CONFIGS],
)
def test_published_setting_takes_a_full_step(path, judge, tmp_path):
    overrides, rows = paths_and_sizes(path, tmp_path, judge_url=judge.url), []
    summary = train(path, overrides, on_step=lambda step, row: rows.append(row))
    (row,) = rows
    assert summary["steps"] == 1
    assert math.isfinite(row["loss/total"]) and row["optim/bad_updates"] == 0
    # Whether a group of a random model differs in what it earns is a matter of draws; if one does, it teaches.
    assert (row["optim/grad_norm"] > 0) == (row["advantage/zero_groups_frac"] < 1)
    assert row["policy/logprob_gap"] < 1e-4 and row["rollout/media_failed"] == 0
    config = read(path, overrides)
    # Constraints have rows that they do not apply to, and a text without a verdict counts among the failed.
    masked = {"consistency", "semantic_grounding", "spatial_grounding"} if path.stem.startswith("fgrpo") else set()
    assert {key.split("/")[1] for key in row if key.endswith("/unscored_frac")} <= masked
    assert masked or row["reward/failed_frac"] == 0
    assert set(_means(row)) == set(config.rewards) and all(math.isfinite(mean) for mean in _means(row).values())
    assert set(config.evaluation.benchmarks) <= {key.split("/")[0] for key in summary["eval_after"]}
    check_calls(config, row)


def _means(row: dict[str, float]) -> dict[str, float]:
    return {
        key.split("/")[1]: value
        for key, value in row.items()
        if key.startswith("reward/") and key.endswith("/mean") and key.count("/") == 2
    }


@each_config
def test_show_prints_the_arithmetic_of_every_spatial_config(path):
    plain = read_yaml(path, places_of(path))
    result = CliRunner().invoke(app, ["show", str(path), *places_of(path), "--no-memory"])
    prompts, group = plain["prompts_per_step"], plain["group_size"]
    assert f"{prompts} prompts × {group} samples = {prompts * group} rows per step" in result.output
    assert "network calls per step" in result.output and "reward calls per step" in result.output
    read(path, places_of(path)).check_settings()


@each_config
def test_a_config_without_its_paths_says_which_to_give(path):
    with pytest.raises(ConfigError, match=r"asks for data\.\w+; set data\.\w+="):
        read(path)


# ── Faithful GRPO ──


@pytest.mark.parametrize("stem", ["fgrpo_qwen25vl_7b", pytest.param("fgrpo_qwen25vl_3b", marks=pytest.mark.slow)])
def test_faithful_grpo_moves_its_multipliers_by_what_the_batch_before_scored(stem, learner_of):
    learner = learner_of(stem, "steps=2")
    stage = learner.config.advantage[0]
    limits = {name: constraint.threshold for name, constraint in stage.constraints.items()}
    found, moved_by_hand = [learner.step(step) for step in range(2)], []
    for name, threshold in limits.items():
        first, second = (f"constraint/{name}/{what}" for what in ("multiplier", "applicable"))
        assert found[0][first] == 1.0
        rows = stage.state[name]["applicable"]
        assert second in found[1] and rows <= 20
        moved = found[0][f"reward/{name}/mean"]
        if stage.constraints[name].when is None and found[1][second] >= 8:
            wanted = dual_step(1.0, score=moved, threshold=threshold, rate=0.05, highest=5.0)
            assert found[1][first] == pytest.approx(wanted, abs=1e-6) and wanted != 1.0
            moved_by_hand.append(name)
    assert moved_by_hand == ["spatial_grounding"]
    assert "constraint/spatial_grounding/multiplier" in found[1]


def test_boxes_ground_only_sources_that_have_them_and_judges_are_asked_about_the_rest(learner_of, judge):
    learner = learner_of("fgrpo_qwen25vl_7b", "prompts_per_step=8")
    _, prompts, score = scores_of(learner)
    is_sat = torch.tensor([prompt.source == "sat" for prompt in prompts])
    assert is_sat.any() and not is_sat.all()
    assert (
        not score["spatial_grounding"][is_sat].isfinite().any() and score["spatial_grounding"][~is_sat].isfinite().all()
    )
    asked = [parts(request)[-1]["text"] for request in judge.requests]
    texts = [text for text in asked if "Sentence to check" not in text]
    assert 0 < len(texts) < len(asked) and all("Thoughts:" in text for text in texts)
    assert all(len(parts(request)) == 1 + ("Sentence to check" in text) for request, text in zip(judge.requests, asked))
    assert len(set(texts)) == len(texts)  # the same answer is not judged twice
    assert {request["model"] for request in judge.requests} == {"Qwen/Qwen3-VL-30B-A3B-Instruct"}
    assert score["consistency"].isfinite().any() and score["semantic_grounding"].isfinite().any()


def test_faithful_grpo_runs_without_a_server(learner_of, judge):
    free = ["rewards.consistency.use=consistency", "rewards.semantic_grounding.use=semantic_grounding"]
    found = learner_of("fgrpo_qwen25vl_7b", *free).step(0)
    assert judge.requests == [] and math.isfinite(found["loss/total"])
    assert math.isfinite(found["reward/consistency/mean"]) and math.isnan(found["reward/semantic_grounding/mean"])
    assert found["constraint/semantic_grounding/multiplier"] == 1.0


def test_a_run_is_judged_again_from_its_cache_alone(learner_of, judge):
    first = learner_of("fgrpo_qwen25vl_7b")
    _, _, score = scores_of(first)
    asked = len(judge.requests)
    judge.close()
    replayed = ["rewards.consistency.use.judge.replay=true", "rewards.semantic_grounding.use.judge.replay=true"]
    _, _, again = scores_of(learner_of("fgrpo_qwen25vl_7b", *replayed))
    for name in ("consistency", "semantic_grounding"):
        assert torch.equal(again[name].nan_to_num(-1), score[name].nan_to_num(-1)) and score[name].isfinite().any()
    assert len(judge.requests) == asked > 0


# ── the others: what their rewards make of the texts that the checkpoints are taught ──

LEFT, POINT, COUNTED, AGAIN, OBJECT = ANSWERS["qwen2_5_vl"]
POSITION, BOXED, READ = ANSWERS["qwen2_vl"]


@pytest.fixture
def scored(judge, tmp_path):
    """All questions of a config with one text: (prompts, reward → part → values)."""

    def of(stem: str, text: str):
        config = read(config_of(stem), paths(config_of(stem), tmp_path, judge_url=judge.url))
        prompts = [
            replace(prompt, source=name) for name, source in config.prompts.items() for prompt in source.use.load()
        ]
        return prompts, Scoring(config.rewards, torch.device("cpu"))([text] * len(prompts), prompts)

    return of


def values(found, prompts, name: str, *, source: str | None = None, part: str = "score") -> list[float]:
    """Rounded, of the prompts of one source; -1 where a reward says nothing."""
    kept = [source in (None, prompt.source) for prompt in prompts]
    return [round(v, 4) for v, keep in zip(found[name][part].nan_to_num(-1).tolist(), kept) if keep]


def test_grit_adds_its_parts_and_counts_boxes_on_counting_questions_only(scored):
    prompts, found = scored("grit_qwen25vl_3b", AGAIN)
    assert [prompt.target["question_type"] for prompt in prompts] == ["relation", "count"] * 2
    assert values(found, prompts, "form") == [1.5] * 4
    assert values(found, prompts, "count") == [-1, 0.5] * 2  # one box, and one is right
    assert values(found, prompts, "answer") == [1.1, 0] * 2
    two = AGAIN.replace("[4, 10, 20, 26]", "[4, 10, 20, 26] [30, 34, 50, 60]")
    assert values(scored("grit_qwen25vl_3b", two)[1], prompts, "count") == [-1, 0] * 2


def test_twenty_questions_of_grit_fill_every_step(learner_of):
    """More prompts a step than there are rows: the same question makes several groups, each with its own noise."""
    batch, _, _ = scores_of(learner_of("grit_qwen25vl_3b", "prompts_per_step=6"))
    ids = [prompt.id for prompt in batch.rollout.prompts]
    assert (
        len(ids) == len(set(ids)) == 6 and len({prompt.repeat_of or prompt.id for prompt in batch.rollout.prompts}) == 4
    )
    assert batch.rollout.num_rows == 24


def test_a_judge_of_answers_is_asked_where_rules_do_not_find_them_right(scored, judge):
    prompts, found = scored("grit_judge_qwen25vl_3b", AGAIN)
    assert values(found, prompts, "answer") == [0.1, 0] * 2  # BLEU alone
    assert values(found, prompts, "verdict", part="asked") == [0, 1] * 2
    assert values(found, prompts, "verdict")[::2] == [1, 1] and set(values(found, prompts, "verdict")) <= {0, 1}
    assert len(judge.requests) == 1  # both rows ask the same
    assert "Known answer:\n| 1\n" in parts(judge.requests[0])[-1]["text"] and judge.requests[0]["model"] == "gpt-4o"


def test_treevgr_judges_one_source_and_compares_the_other(scored, judge):
    prompts, found = scored("treevgr_qwen25vl_7b", COUNTED)
    assert values(found, prompts, "count", source="counting") == [1] * 4 and len(judge.requests) == 2
    assert values(found, prompts, "count", source="vstar") == [-1] * 4
    assert values(found, prompts, "answer", source="counting") == [-1] * 4
    assert -1 not in values(found, prompts, "answer", source="vstar") and values(found, prompts, "format") == [1] * 8
    assert values(found, prompts, "iou", source="counting") == [0.75] * 4  # one of two boxes: recall .5, precision 1
    assert values(found, prompts, "iou", source="vstar") == [0] * 4


def test_vlm_r1_scores_boxes_that_stand_in_its_conversations(scored):
    prompts, found = scored("vlm_r1_rec_qwen25vl_3b", OBJECT)
    assert values(found, prompts, "boxes") == [1] * 4 and values(found, prompts, "format") == [1] * 4
    assert all("answer" not in prompt.target and prompt.target["width"] == 84 for prompt in prompts)
    prompts, found = scored("vlm_r1_detection_qwen25vl_3b", OBJECT)
    assert values(found, prompts, "boxes") == [1, 0.5] * 2  # of a cup, and of a cup and a bed
    twice = OBJECT.replace("{", '{"bbox_2d": [60, 60, 70, 70], "label": "cup"}, {')
    assert values(scored("vlm_r1_detection_qwen25vl_3b", twice)[1], prompts, "boxes")[0] <= 0.5


def test_boxes_are_read_in_pixels_of_the_picture_that_the_processor_makes(learner_of):
    """With a smaller budget of pixels the same answer means another place."""
    for most, side in ((7056, 84), (3136, 56)):
        learner = learner_of("vlm_r1_rec_qwen25vl_3b", f"policy.image_pixels=[784, {most}]", "prompts_per_step=1")
        (prompt,) = learner.rollout(0)[0][0].rollout.prompts
        assert [prompt.target[name] for name in ("width", "resized_width", "resized_height")] == [84, side, side]
        there = OBJECT.replace("[4, 10, 20, 26]", str([x * side / 84 for x in (4, 10, 20, 26)]))
        found = learner.rewards([there, OBJECT], [prompt] * 2)["boxes"]["score"].tolist()
        assert found[0] == pytest.approx(1, abs=1e-6) and (found[1] == pytest.approx(1)) == (side == 84)


def test_visual_rft_reads_positions_and_confidences_in_thousandths(scored):
    prompts, found = scored("visual_rft_qwen2vl_2b", POSITION)
    assert values(found, prompts, "boxes") == [1.9] * 4 and values(found, prompts, "format") == [1] * 4
    absolute = POSITION.replace("[100, 300, 600, 900]", "[8, 25, 50, 76]")
    assert values(scored("visual_rft_qwen2vl_2b", absolute)[1], prompts, "boxes") == [0.1] * 4


def test_perception_r1_has_a_reward_for_each_task(scored):
    prompts, found = scored("perception_r1_qwen2vl_2b", BOXED)
    for name, source in {"box": "grounding", "boxes": "detection", "text": "ocr"}.items():
        told = values(found, prompts, name)
        assert [value != -1 for value in told] == [prompt.source == source for prompt in prompts]
        assert set(told) == ({-1, 1} if name != "text" else set(told))
    prompts, found = scored("perception_r1_qwen2vl_2b", READ)
    assert values(found, prompts, "text", source="ocr") == [0.6] * 4 and values(found, prompts, "format") == [1] * 12


def test_spacer_takes_numbers_by_their_relative_error_and_maps_where_a_row_has_one(scored):
    prompts, found = scored("spacer_qwen25vl_7b", COUNTED)
    kinds = [prompt.target["answer_type"] for prompt in prompts]
    assert (
        values(found, prompts, "accuracy") == [1 if kind == "numerical" else 0 for kind in kinds]
        and len(set(kinds)) == 2
    )
    drawn = COUNTED.replace("<think>", '<think><map>{"cup": [[2, 3]]}</map>')
    _, found = scored("spacer_qwen25vl_7b", drawn)
    assert values(found, prompts, "accuracy") == [2 if kind == "numerical" else 0 for kind in kinds]
    assert values(found, prompts, "format") == [1] * 4


def test_vigorl_pays_half_for_a_point_in_the_thought(scored):
    prompts, found = scored("vigorl_qwen25vl_7b", POINT)
    right = [prompt.target["answer"] == "(B)" for prompt in prompts]
    assert any(right) and not all(right)  # options stand in a drawn order
    assert values(found, prompts, "grounded") == [0.5 + 0.5 * is_right for is_right in right]
    assert values(scored("vigorl_qwen25vl_7b", LEFT)[1], prompts, "grounded") == [
        0.5 - 0.5 * is_right for is_right in right
    ]


def test_care_on_pictures_pays_for_likely_answers_that_are_right(learner_of):
    learner = learner_of("care_image_qwen25vl_7b", "prompts_per_step=6")
    batch, prompts, _ = scores_of(learner)
    assert all(len(prompt.media) == 1 for prompt in prompts) and learner.config.ema.decay == 0.995
    table = learner.table(batch)
    accuracy = table.values["accuracy"]
    paid = learner.config.advantage[0](table).values["accuracy"] / accuracy.clamp_min(1e-9)
    assert set(paid[accuracy > 0.1].round(decimals=6).tolist()) <= {1.0, 1.5} and (paid == 1.5).any()


def test_every_spatial_config_is_a_preset_of_the_registry():
    presets = {entry.config for entry in entries("preset") if "/spatial/" in entry.config}
    assert presets == {str(path.relative_to(ROOT)) for path in CONFIGS}


def test_a_judge_that_is_down_masks_its_constraints_and_the_run_goes_on(learner_of):
    down = [f"rewards.{name}.use.judge.calls_in_all=0" for name in ("consistency", "semantic_grounding")]
    learner = learner_of("fgrpo_qwen25vl_7b", *down)
    found = learner.step(0)
    assert found["reward/failed_frac"] == 0 and found["reward/consistency/unscored_frac"] == 1
    assert (found["optim/grad_norm"] > 0) == (found["advantage/zero_groups_frac"] < 1)
    assert learner.step(1)["constraint/consistency/multiplier"] == 1  # nothing was measured, nothing moves
