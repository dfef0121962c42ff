"""A tiny run from its config to its product."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_rewards
import torch
import yaml
from safetensors.torch import load_file
from tiny_runs import PROMPTS, record, summary, write_config

from grpo_mm.config.run_config import Scorer
from grpo_mm.config.run_config import read as read_config
from grpo_mm.entry import train
from grpo_mm.looking.metrics import read
from grpo_mm.training.trainer import Trainer
from grpo_mm.weights import checkpoint

NAMES = {
    "step", "reward/bright/mean", "reward/failed_frac", "advantage/zero_groups_frac", "advantage/abs_mean",
    "advantage/max", "advantage/left_out_frac", "watch/quality/score", "diversity/mean", "optim/lr", "optim/grad_norm",
    "optim/bad_updates", "policy/logprob_gap", "loss/total", "loss/policy", "objective/clip_frac", "objective/ratio",
    "objective/approx_kl", "calls/rollout_calls", "calls/train_calls", "calls/rewards", "time/rollout_seconds",
    "time/rollout_network_seconds", "time/train_network_seconds", "time/decode_seconds", "time/encode_seconds",
    "time/reward_seconds", "time/optim_seconds", "time/step_seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_sd3, tmp_path_factory) -> Path:
    """A whole run with a watched score, averaged weights and evaluation on the way."""
    changes = {
        "watch": {"quality": {"use": "image_quality"}}, "ema": {"decay": 0.9, "every_updates": 1},
        "evaluation": {"every": 1}, "trackers": ["tensorboard"], "samples_every": 2, "optim": {"lr": 0.01},
        "old_logprobs": "recompute",
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("run")
    steps = []
    found = train(write_config(folder, tiny_sd3, changes), on_step=lambda step, row: steps.append((step, row)))
    run = folder / "runs/tiny"
    assert found == summary(run) and [step for step, _ in steps] == [1, 2, 3]
    return run


def test_the_run_folder_holds_all_that_is_promised(run):
    assert {p.name for p in run.iterdir()} >= {
        "config.yaml", "versions.json", "metrics.jsonl", "summary.json", "samples", "checkpoints", "checkpoints.jsonl",
        "adapter",
    }  # fmt: skip
    assert {"grpo_mm", "torch", "diffusers", "python"} <= set(json.loads((run / "versions.json").read_text()))
    assert {p.name for p in (run / "samples").iterdir()} >= {
        "eval_before.png", "eval_after.png", "step_000001.png", "step_000001.json", "step_000002.png",
        "eval_step_000001.png",
    }  # fmt: skip
    assert not [p for p in run.rglob("*") if "writing" in p.name]


def test_the_resolved_config_is_the_one_that_ran(run):
    config = read_config(run / "config.yaml")
    assert config.old_logprobs == "recompute" and config.optim.betas == (0.9, 0.999)
    assert yaml.safe_load((run / "config.yaml").read_text())["advantage"][0]["kind"] == "group_norm"


def test_metrics_have_their_names_and_finite_values(run):
    rows = read(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 1, 2, 2, 3, 3]
    trained = [row for row in rows if "reward/bright/mean" in row]
    for row in trained:
        assert set(row) >= NAMES and all(isinstance(value, (int, float)) for value in row.values())
        assert row["policy/logprob_gap"] < 1e-6 and row["reward/failed_frac"] == 0
        assert row["calls/rollout_calls"] == 8 * 3 and row["calls/rewards"] == row["calls/watch_calls"] == 8
        assert row["calls/train_calls"] == row["calls/value_calls"] == 8 * 2  # updates, and old log-probs before them
    evaluated = [row for row in rows if "eval/score" in row]
    assert {"eval/bright/mean", "eval/quality/score", "time/eval_seconds"} <= set(evaluated[0])
    assert evaluated[0]["eval/score"] == evaluated[0]["eval/bright/mean"]


def test_the_summary_tells_before_and_after(run):
    found, rows = summary(run), [row for row in read(run / "metrics.jsonl") if "eval/score" in row]
    assert (
        found["eval_before"]["score"] == rows[0]["eval/score"]
        and found["eval_after"]["score"] == rows[-1]["eval/score"]
    )
    assert found["steps"] == 3 and found["stopped_early"] is None and found["bad_updates"] == 0
    assert found["best_step"] == max(rows, key=lambda row: row["eval/score"])["step"]
    assert (
        found["seconds"]["train"] > 0 and found["seconds"]["eval"] > 0 and found["network_calls"]["rollout_calls"] == 72
    )
    assert "torch" in found["versions"]


def test_the_product_loads_in_plain_diffusers_and_carries_the_averaged_weights(run, tiny_sd3):
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline.from_pretrained(tiny_sd3)
    pipe.load_lora_weights(run / "adapter")
    loaded = {n: p for n, p in pipe.transformer.named_parameters() if "lora_" in n}
    state = load_file(run / "checkpoints/step_000003/snapshots.safetensors")
    averaged = {n.removeprefix("ema/"): t for n, t in state.items() if n.startswith("ema/")}
    strip = lambda name: name.replace(".default_0.", ".").replace(".default.", ".")  # noqa: E731
    assert {strip(n) for n in loaded} == {strip(n) for n in averaged}
    averaged = {strip(n): t for n, t in averaged.items()}
    assert all(torch.equal(p, averaged[strip(n)]) for n, p in loaded.items())
    last = load_file(run / "checkpoints/step_000003/weights.safetensors")
    assert any(not torch.equal(t, averaged[strip(n)]) for n, t in last.items())


def test_the_model_card_says_how_to_load_it_and_what_it_scores(run, tiny_sd3):
    card = (run / "adapter/README.md").read_text()
    assert "load_lora_weights" in card and "StableDiffusion3Pipeline" in card and tiny_sd3 in card
    assert (
        f"| score = bright/mean | {summary(run)['eval_before']['score']:.4f} | {summary(run)['eval_after']['score']:.4f} |"
        in card
    )


def test_the_report_is_one_file(run):
    from grpo_mm.looking.report.page import write_report

    page = write_report(run).read_text()
    assert "reward" in page and "data:image/png;base64" in page and 'src="http' not in page


def test_the_tracker_has_the_curves(run):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(next(run.rglob("events.out.*")).parent))
    events.Reload()
    rewards = [row["reward/bright/mean"] for row in read(run / "metrics.jsonl") if "reward/bright/mean" in row]
    assert [s.value for s in events.Scalars("reward/bright/mean")] == pytest.approx(rewards)
    assert [s.step for s in events.Scalars("eval/score")] == [0, 1, 2, 3]


def test_evaluation_sees_the_averaged_weights(run, tiny_sd3, tmp_path):
    from grpo_mm.tools.inference import evaluate

    assert evaluate(run)["eval/score"] == summary(run)["eval_after"]["score"]
    state = run / "checkpoints/step_000003"
    plain = tmp_path / "plain"
    (plain / "checkpoints").mkdir(parents=True)
    loaded = checkpoint.read(state)
    weights = {"weights": loaded.tensors["weights"], "optimizer": {}, "snapshots": {}}
    checkpoint.write(plain / "checkpoints", checkpoint.Checkpoint(weights, loaded.state), step=3)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (plain / "config.yaml").write_text(yaml.safe_dump(config | {"ema": None}))
    assert evaluate(plain, trust=True)["eval/score"] != summary(run)["eval_after"]["score"]


FAST = {
    "steps": 8, "group_size": 8, "updates": {"count": 1}, "engine": {"steps": 2},
    "policy": {"lora": None, "micro_batch": 32},
    "objective": [{"kind": "clipped_ratio", "clip_low": 0.1, "clip_high": 0.1}],
    "optim": {"lr": 0.01}, "checkpoints": {"every": 0}, "samples_every": 0,
}  # fmt: skip


def gain(found: dict) -> float:
    return found["eval_after"]["score"] - found["eval_before"]["score"]


def test_a_reward_rises(tiny_sd3, tmp_path):
    config = write_config(tmp_path, tiny_sd3, FAST)
    settings = ["evaluation.samples_per_prompt=4", "steps=12"]
    gains = [gain(train(config, [f"name=run{seed}", f"seed={seed}", *settings])) for seed in (1, 2)]
    assert sum(gains) / 2 > 0.02  # measured: .06, and .01 to .02 of chance a seed


def test_a_reward_in_python_replaces_those_of_the_file(tiny_sd3, tmp_path):
    """`dark` is minus `bright`: what rises in one falls in the other."""
    config = write_config(
        tmp_path, tiny_sd3, FAST | {"watch": {"bright": {"use": "tiny_rewards:bright"}}, "rewards": None}
    )
    seen = []

    def dark(images, prompts, metadata):
        seen.append((images[0].size, prompts[0] in PROMPTS, metadata[0]))
        return tiny_rewards.dark(images, prompts, metadata)

    found = train(config, ["name=python"], rewards={"dark": dark})
    assert seen[0] == ((32, 32), True, {}) and gain(found) > 0.01
    assert found["eval_after"]["bright/score"] < found["eval_before"]["bright/score"]
    saved = yaml.safe_load((tmp_path / "runs/python/config.yaml").read_text())
    assert list(saved["rewards"]) == ["dark"]
    mixed = {"dark": Scorer(use=dark, weight=0.5), "loud": Scorer(use=tiny_rewards.bright, weight=0.25)}
    found = train(config, ["name=mixed", "steps=1", "watch={}"], rewards=mixed)
    after = found["eval_after"]
    assert after["score"] == pytest.approx(0.5 * after["dark/mean"] + 0.25 * after["loud/mean"])


def test_a_watched_score_changes_nothing(tiny_sd3, tmp_path):
    rows = []
    for name, watch in (("with", {"dark": {"use": "tiny_rewards:dark"}}), ("without", None)):
        config = write_config(tmp_path, tiny_sd3, {"name": name, "watch": watch, "eval_prompts": None})
        train(config)
        rows.append(record(tmp_path / "runs" / name))
    assert all(row.pop("watch/dark/score") < 0 and row.pop("calls/watch_calls") == 8 for row in rows[0])
    assert rows[0] == rows[1]


def test_sources_have_their_own_rewards_and_shares(tiny_sd3, tmp_path):
    (tmp_path / "more.jsonl").write_text("".join(json.dumps({"prompt": p, "level": 1}) + "\n" for p in PROMPTS))
    config = write_config(
        tmp_path,
        tiny_sd3,
        {
            "steps": 2, "prompts_per_step": 4, "updates": {"by": "action", "count": 2}, "eval_prompts": None,
            "prompts": {"lines": {"weight": 3}, "more": {"use": {"kind": "file", "path": f"{tmp_path}/more.jsonl"}}},
            "rewards": {
                "bright": {"weight": 2.0},
                "level": {"use": "tiny_rewards:level", "sources": ["more"], "weight": 0.5},
            },
        },
    )  # fmt: skip
    train(config)
    for row in record(tmp_path / "runs/tiny"):
        assert row["calls/rewards"] == 4 * 4 + 1 * 4 and row["reward/level/mean"] == 1
        assert (
            row["reward/failed_frac"] == 0 == row["advantage/left_out_frac"] and "reward/level/unscored_frac" not in row
        )


def test_the_best_and_the_last_checkpoints_stay_and_patience_ends_the_run(tiny_sd3, tmp_path, monkeypatch):
    """Held-out scores are made up: the best comes at step 2."""
    scores = iter([0.1, 0.3, 0.5, 0.4, 0.5, 0.2, 0.9])
    evaluate = Trainer.evaluate.__globals__["evaluate"]

    def made_up(*args):
        result = evaluate(*args)
        result.metrics["eval/score"] = next(scores)
        return result

    monkeypatch.setitem(Trainer.evaluate.__globals__, "evaluate", made_up)
    config = write_config(
        tmp_path,
        tiny_sd3,
        {"steps": 9, "evaluation": {"every": 1, "patience": 3}, "checkpoints": {"every": 0, "keep_last": 1}},
    )
    found = train(config)
    run = tmp_path / "runs/tiny"
    assert (found["steps"], found["stopped_early"], found["best_step"]) == (5, "patience", 2)
    assert found["eval_after"]["score"] == 0.2
    assert checkpoint.steps(run / "checkpoints") == [2, 5]
    listed = [json.loads(line) for line in (run / "checkpoints.jsonl").read_text().splitlines()]
    assert [(row["name"], row["best"]) for row in listed] == [("step_000002", True), ("step_000005", False)]
    before = record(run)
    assert train(config).items() >= found.items() and record(run) == before
    assert "after 5 steps (patience ended it early), nothing was run" in train(config, ["steps=12"])["nothing_was_run"]
    (run / "summary.json").unlink()  # killed before its last words: it says them, and does not train on
    assert train(config)["steps"] == 5 and record(run) == before
    again = train(config, ["evaluation.patience=5", "steps=6"], accept=True)  # more patience: it goes on
    assert (again["steps"], again["stopped_early"], again["best_step"]) == (6, None, 6)


def test_full_fine_tuning_leaves_a_pipeline(tiny_sd3, tmp_path):
    from diffusers import StableDiffusion3Pipeline

    train(write_config(tmp_path, tiny_sd3, {"steps": 1, "policy": {"lora": None}, "eval_prompts": None}))
    run = tmp_path / "runs/tiny"
    assert summary(run)["product"] == "model" and summary(run)["eval_after"] == {}
    pipe = StableDiffusion3Pipeline.from_pretrained(run / "model")
    trained = load_file(run / "checkpoints/step_000001/weights.safetensors")
    assert all(torch.equal(p, trained[n]) for n, p in pipe.transformer.named_parameters())
    assert "from_pretrained" in (run / "model/README.md").read_text()
