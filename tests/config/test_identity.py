"""Every key is free, noted or refused, and says so; the page of keys is what the dataclasses say."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
import yaml
from conftest import ROOT

from grpo_mm import registry
from grpo_mm.config.differences import components_of, differences_of
from grpo_mm.config.key_docs import doc_of, first_sentence
from grpo_mm.config.recorded import as_of_today
from grpo_mm.config.run_config import RunConfig, plain, read
from grpo_mm.config.settings import Settings
from grpo_mm.identity import FREE, OF_A_ROLE, identity_of
from grpo_mm.registry import Role
from grpo_mm.tools.keys.reference import reference_page

FLOW, VLM = ROOT / "configs/quickstart/flow.yaml", ROOT / "configs/quickstart/video.yaml"
KINDS = [entry for entry in registry.table() if entry.role != "preset"]


@dataclasses.dataclass(frozen=True)
class OwnReward:
    """A user's reward: what it does not say of its settings is noted."""

    strength: float = 1.0
    batch_size: int = dataclasses.field(default=4, metadata=FREE)

    def __call__(self, items: Any, prompts: Any) -> list[float]:
        return [self.strength] * len(prompts)


@pytest.mark.parametrize("entry", KINDS, ids=lambda e: f"{e.role}-{e.kind}")
def test_every_field_of_every_component_is_decided_or_has_the_default_of_its_role(entry):
    assert entry.role in OF_A_ROLE
    found = registry.load(entry.target)
    for field in dataclasses.fields(found) if inspect.isclass(found) and dataclasses.is_dataclass(found) else ():
        assert identity_of(field, OF_A_ROLE[entry.role]) in ("free", "noted", "refused")


def test_every_key_of_a_run_is_decided_where_it_stands():
    undecided = [f.name for f in dataclasses.fields(Settings) if "identity" not in f.metadata]
    assert undecided == []
    assert [f.name for f in dataclasses.fields(RunConfig)] == [f.name for f in dataclasses.fields(Settings)]


def test_a_class_that_is_none_is_refused():
    field = dataclasses.field(metadata={"identity": "maybe"})
    field.name = "x"
    with pytest.raises(ValueError, match="'maybe', wanted free, noted or refused"):
        identity_of(field, "noted")


def told(path: Path, *overrides: str, base: tuple[str, ...] = ()) -> dict[str, str]:
    """Key → class of what differs between a config with the overrides, and the record of one without them."""
    there = as_of_today(yaml.safe_load(yaml.safe_dump(plain(read(path, base)))))
    return {each.key: each.identity for each in differences_of(there, read(path, [*base, *overrides]))}


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("policy.micro_batch=2", "free"), ("policy.decode_batch=2", "free"), ("policy.offload=[decoder]", "free"),
        ("trackers=[tensorboard]", "free"), ("samples_every=3", "free"), ("evaluation.every=7", "free"), ("threads=1", "free"),
        ("distributed.shard_over=2", "free"), ("checkpoints.keep_last=9", "free"), ("steps=31", "free"), ("steps=29", "free"), ("runs_dir=elsewhere", "free"),
        ("rewards.shape.timeout_seconds=9", "free"), ("rewards.shape.isolate=true", "free"), ("engine.rollout_batch=1", "free"),
        ("optim.lr=1", "noted"), ("rewards.shape.weight=2", "noted"), ("engine.noise.level=0.1", "noted"), ("policy.guidance=2", "noted"),
        ("prompts.shapes.use.limit=3", "noted"), ("optim.schedule=linear", "noted"), ("engine.eval_steps=3", "noted"),
        ("objective.0.clip_low=0.5", "noted"), ("seed=9", "refused"), ("group_size=2", "refused"), ("updates.passes=2", "refused"),
        ("policy.dtype=bfloat16", "refused"), ("policy.model.path=x", "refused"), ("engine.steps=3", "refused"),
        ("objective=[{kind: sapo}]", "refused"), ("engine.noise=all", "refused"), ("ema.decay=0.5", "refused"),
    ],
)  # fmt: skip
def test_what_a_change_of_a_picture_run_is(override, wanted):
    key = override.partition("=")[0]
    (found,) = told(FLOW, override).items()
    assert found == ("ema" if key.startswith("ema") else key, wanted)


def test_what_a_change_of_a_video_run_is():
    found = told(VLM, "policy.temperature=0.7", "policy.head_chunk=64", "engine.generator={kind: hf, batch: 1}", "policy.prefix_sharing=off",
                 "policy.media={kind: frame_store, memory_mib: 1}", "engine.max_new_tokens=9", "policy.video_positions=library")  # fmt: skip
    assert found == {
        "policy.temperature": "noted", "policy.head_chunk": "free", "engine.generator.batch": "free", "policy.prefix_sharing": "free",
        "policy.media.memory_mib": "free", "engine.max_new_tokens": "noted", "policy.video_positions": "refused",
    }  # fmt: skip


def test_what_comes_and_goes_has_the_class_of_the_key_that_holds_it():
    assert told(FLOW, "rewards.jpeg={use: jpeg, weight: 0.1}") == {"rewards.jpeg": "noted"}
    assert told(FLOW, "watch.jpeg={use: jpeg}") == {"watch.jpeg": "free"}
    assert told(FLOW, "ema={decay: 0.5}") == {"ema": "refused"}


def test_what_is_free_by_itself_is_noted_where_something_reads_it():
    def one(*overrides: str, base: str) -> str:
        return told(FLOW, *overrides, base=tuple(base.split("|")))[overrides[0].partition("=")[0]]

    assert one("steps=99", base="optim.schedule=cosine") == "noted"
    assert one("evaluation.every=7", base="evaluation.every=5|evaluation.patience=2") == "noted"
    acting = "watch.r={metric: reward/shape/mean, low: 0.1, action: rollback}|evaluation.every=5"
    assert one("checkpoints.every=7", base=acting) == "noted"
    assert one("watch.r.low=0.2", base=acting) == "noted"
    assert one("evaluation.every=7", base=acting.replace("reward/shape/mean", "eval/score")) == "noted"
    for base, wanted in (
        ("policy.dtype=bfloat16|policy.lora=null", "noted"),
        ("policy.dtype=bfloat16", "free"),
        ("seed=1", "free"),
    ):
        lora = "policy.lora={rank: 2}|" if wanted == "free" else ""
        assert told(FLOW, "distributed.kind=sharded", base=tuple((lora + base).split("|"))) == {"distributed": wanted}
    assert one("device=cpu", base="device=auto") == ("noted" if torch.cuda.is_available() else "free")


def test_a_users_own_component_is_noted_but_for_what_it_calls_free():
    def of(**settings: Any) -> RunConfig:
        return dataclasses.replace(config, rewards={"own": type(scorer)(use=OwnReward(**settings))})

    config = read(FLOW)
    scorer = next(iter(config.rewards.values()))
    there = as_of_today(yaml.safe_load(yaml.safe_dump(plain(of()))))
    assert not differences_of(there, of())
    found = {d.key: d.identity for d in differences_of(there, of(strength=2.0, batch_size=1))}
    assert found == {"rewards.own.use.strength": "noted", "rewards.own.use.batch_size": "free"}
    assert ("rewards.own.use", "reward") in [each[:2] for each in components_of(of())]


def test_a_key_that_an_earlier_version_did_not_write_counts_as_its_default():
    there = as_of_today(yaml.safe_load(yaml.safe_dump(plain(read(FLOW)))))
    del there["sampling"], there["policy"]["vae_tiling"]
    assert differences_of(there, read(FLOW)) == []
    (found,) = differences_of(there | {"gone": 1}, read(FLOW))
    assert (found.key, found.identity) == ("gone", "refused") and "(not there) here" in str(found)


def test_the_page_of_keys_is_what_the_dataclasses_say():
    page = reference_page()
    assert (ROOT / "docs/reference.md").read_text(encoding="utf-8") == page
    assert "| `optim.lr` | number | 0.0003 | noted |" in page and "| `seed` | whole number | 0 | refused |" in page
    named = [entry.kind for entry in KINDS if entry.role != "prediction_file" and f"`{entry.kind}`" not in page]
    assert named == []


def test_the_meaning_of_a_key_is_what_stands_under_its_field():
    assert doc_of(RunConfig, "offload_rewards") == "Network rewards leave the device while they are not asked."
    assert first_sentence("0: none. And more.") == "0: none."
    assert first_sentence("By e.g. cpu, see it. More.") == "By e.g. cpu, see it."
    missing = [f.name for f in dataclasses.fields(Settings) if not doc_of(Settings, f.name)]
    assert set(missing) <= {"advantage", "objective"}


@dataclasses.dataclass
class Outer:
    within: Annotated[Any, Role("reward")] = None


def test_components_within_components_are_found():
    assert [each[0] for each in components_of(Outer(OwnReward()))] == ["within"]
