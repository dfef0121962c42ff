"""Families beside Qwen2-VL, Qwen2.5-VL and Qwen3-VL: each against its plain library, trained, saved and loaded there again."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from newer_vlm import MAKERS
from tiny_vlm import PROMPTS, clip, folder, library_logprobs, policy, sample

from grpo_mm.config.run_config import RunConfig
from grpo_mm.config.typed_yaml import build
from grpo_mm.errors import ConfigError
from grpo_mm.ledger.counting import AsOnDevice, Counter
from grpo_mm.ledger.entries import Plan
from grpo_mm.pipelines.vlm import counted_layers
from grpo_mm.pipelines.vlm import ledger as ledger_module
from grpo_mm.pipelines.vlm.conform import conform
from grpo_mm.pipelines.vlm.engine import VlmEngine
from grpo_mm.pipelines.vlm.forwards.counted_scan import scan
from grpo_mm.pipelines.vlm.ledger import vlm_ledger
from grpo_mm.pipelines.vlm.models.adapters import Lora, save_merged
from grpo_mm.pipelines.vlm.models.families import FAMILIES
from grpo_mm.pipelines.vlm.policy import VlmPolicyConfig
from grpo_mm.processes.distributed import Processes
from grpo_mm.training.learner import Learner
from grpo_mm.types import Prompt

NEWER = tuple(MAKERS)
QUICK = ("qwen3_5_moe", "internvl")
"""The others are slow: these two have linear attention, experts, and media that are not of Qwen's kind."""
each_newer = pytest.mark.parametrize(
    "family", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in NEWER]
)
KINDS = (*PROMPTS, Prompt("clips", "which is longer", media=(clip(4, seed=6), clip(4, fps=2.0, seed=7))))
"""One and several pictures, one and several videos, both, neither."""


@dataclass(frozen=True)
class AllKinds:
    family: str

    def load(self) -> list[Prompt]:
        return list(shown(self.family))


def shown(family: str) -> tuple[Prompt, ...]:
    """Of these, what the family's library can show."""
    return tuple(p for p in KINDS if not refused(family, p))


def refused(family: str, prompt: Prompt) -> str:
    frames = [len(item.frames_FCHW) for item in prompt.media if hasattr(item, "frames_FCHW")]
    kinds = ["video" if hasattr(item, "frames_FCHW") else "image" for item in prompt.media]
    return FAMILIES[family].refused_media(kinds, frames)


def letters(texts, prompts, metadata):
    """The share of characters that are e."""
    return [text.count("e") / max(1, len(text)) for text in texts]


def settings(family: str, **change: Any) -> RunConfig:
    base = {
        "name": "tiny", "policy": {"kind": "vlm", "path": folder(family), "micro_batch": 8},
        "engine": {"kind": "vlm", "max_new_tokens": 5}, "prompts": {"kinds": {"use": AllKinds(family)}},
        "rewards": {"letters": {"use": letters}}, "steps": 3, "prompts_per_step": len(shown(family)), "group_size": 3,
        "objective": [{"kind": "clipped_ratio"}, {"kind": "kl", "weight": 0.01}],
        "device": "cpu", "samples_every": 0, "optim": {"lr": 3e-3, "weight_decay": 0.0},
    }  # fmt: skip
    return build(RunConfig, base | change)


@each_newer
def test_it_is_what_it_is_in_its_own_library(family):
    findings = list(conform(folder(family), dtype="float32", device=torch.device("cpu")))
    assert not [f for f in findings if f.differs], findings
    assert {"tokens of prompts", "positions", "greedy answers", "adapter: merged"} <= {f.name for f in findings}


@each_newer
@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}], ids=["full", "adapter"])
def test_it_trains_and_its_product_loads_in_the_plain_library(family, lora, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    chosen = {"kind": "vlm", "path": folder(family), "micro_batch": 8, "lora": lora}
    config = settings(family, policy=chosen)
    config.check()
    learner = Learner(config, Processes(device="cpu"), samples=tmp_path)
    steps = [learner.step(step) for step in range(3)]
    assert steps[0]["policy/logprob_gap"] < 1e-4 and steps[-1]["objective/ref_kl"] > 0
    trained = learner.policy
    rollout, _ = sample(trained, shown(family), group_size=1, max_new_tokens=5)
    assert int(rollout.record.length_N.min()) > 0, [c.failure for c in rollout.record.contexts]
    trained.save(tmp_path / "product")
    model = AutoModelForImageTextToText.from_pretrained(folder(family) if lora else tmp_path / "product")
    model = model.eval() if lora is None else PeftModel.from_pretrained(model, tmp_path / "product").eval()
    assert apart(model, trained, rollout) < 1e-3
    if lora is not None:
        save_merged(trained.wrapped, trained.processor, tmp_path / "merged")
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
        assert apart(model, trained, rollout) < 1e-3


@pytest.mark.parametrize(
    "family", ["qwen3_5_moe", *(pytest.param(f, marks=pytest.mark.slow) for f in ("qwen3_vl_moe", "glm4v_moe"))]
)
def test_an_adapter_on_experts_trains_and_loads_in_the_plain_library(family, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    chosen = {"kind": "vlm", "path": folder(family), "micro_batch": 8, "lora": {"rank": 2, "alpha": 4, "experts": True}}
    config = settings(family, policy=chosen)
    config.check()
    learner = Learner(config, Processes(device="cpu"), samples=tmp_path)
    steps = [learner.step(step) for step in range(3)]
    assert steps[0]["policy/logprob_gap"] < 1e-4 and steps[0]["objective/ref_kl"] == pytest.approx(0, abs=1e-8)
    assert steps[-1]["objective/ref_kl"] > 0
    trained = learner.policy
    on = {name: p for name, p in trained.trainable.items() if ".experts." in name and "shared_expert" not in name}
    assert len(on) >= 8 and all(bool(p.any()) for p in on.values())
    rollout, _ = sample(trained, shown(family), group_size=1, max_new_tokens=5)
    trained.save(tmp_path / "product")
    plain = AutoModelForImageTextToText.from_pretrained(folder(family))
    assert apart(PeftModel.from_pretrained(plain, tmp_path / "product").eval(), trained, rollout) < 1e-3
    save_merged(trained.wrapped, trained.processor, tmp_path / "merged")
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    assert apart(merged, trained, rollout) < 1e-3
    before = AutoModelForImageTextToText.from_pretrained(folder(family)).state_dict()
    moved = [
        n for n, v in merged.state_dict().items() if n.endswith("experts.down_proj") and not torch.equal(v, before[n])
    ]
    assert moved
    plan = Plan(prompts=2, group_size=3, updates=1, calls={"rollout": 6, "train": 6, "ref": 6}, media="picture")
    ledger = vlm_ledger(config.policy, config.engine, plan)
    assert ledger.trained == sum(p.numel() for p in trained.trainable.values())
    assert any("is on each expert's gate, up and down projections" in line for line in ledger.said)


def test_experts_are_asked_for_where_there_are_some(tmp_path):
    with pytest.raises(ConfigError, match="policy.lora.experts: a qwen2_5_vl model has no experts"):
        policy("qwen2_5_vl", lora=Lora(rank=2, experts=True))
    with pytest.raises(ConfigError, match="experts = true is for a new adapter"):
        Lora(experts=True, start_from=str(tmp_path)).check()


def apart(model: Any, trained: Any, rollout: Any) -> float:
    """Largest difference of log-probabilities, by the plain model and as they were drawn."""
    trained.loaded.family.follow(model, trained.config.video_positions)
    found = []
    for row, length in enumerate(rollout.record.length_N.tolist()):
        context = rollout.record.contexts[int(rollout.record.context_N[row])]
        plain = library_logprobs(model, trained, context, rollout.record.token_NA[row, :length])
        found.append(float((plain - rollout.behaviour_NA[row, :length]).abs().max()))
    return max(found)


def test_linear_attention_goes_with_eager_attention():
    """Its masks take another way through the library."""
    eager, usual = (policy("qwen3_5_moe", attention=attention, prefix_sharing="on") for attention in ("eager", "sdpa"))
    rollout, _ = sample(eager, shown("qwen3_5_moe"), group_size=2, max_new_tokens=5)
    rows = torch.arange(rollout.num_rows)
    values = [p.values_under(None, rollout.record, rows) for p in (eager, usual)]
    for found_NA in values:
        assert torch.allclose(
            found_NA.where(rollout.mask_NA, 0), rollout.behaviour_NA.where(rollout.mask_NA, 0), atol=5e-5
        )


@each_newer
@pytest.mark.parametrize("cut", [8, 2], ids=["whole groups", "in parts"])
def test_a_shared_prompt_gives_the_gradient_of_a_repeated_one(family, cut):
    rollout, _ = sample(policy(family), shown(family), group_size=3, max_new_tokens=7)
    length_N = (torch.arange(rollout.num_rows) % 7 + 1).minimum(
        rollout.record.length_N
    )  # ragged, single tokens among them
    inside_NA = torch.arange(rollout.num_actions) < length_N[:, None]
    rollout = replace(rollout, record=replace(rollout.record, length_N=length_N), mask_NA=rollout.mask_NA & inside_NA)
    shared, wanted = (gradients(family, rollout, sharing, cut) for sharing in ("on", "off"))
    assert torch.allclose(shared[0], wanted[0], atol=2e-5)
    assert shared[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        assert float((shared[1][name] - gradient).norm()) < 1e-4 * float(gradient.norm()) + 1e-6, name


def gradients(family: str, rollout: Any, sharing: str, cut: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probabilities, and the gradient of a sum that weighs all of them differently; checkpoints where rows go in parts."""
    p = policy(family, prefix_sharing=sharing, micro_batch=cut, train_tower=True, gradient_checkpointing=cut == 2)
    weight_NA = torch.linspace(0.5, 1.5, rollout.mask_NA.numel()).view(rollout.mask_NA.shape)
    found_NA = torch.zeros(rollout.mask_NA.shape)
    for index, values in p.logprobs(
        rollout, p.plan(rollout, rollout.mask_NA), needs=frozenset({"logprobs"}), grad=True
    ):
        found_NA.view(-1)[index] = values["logprobs"].detach()
        (values["logprobs"] * weight_NA.view(-1)[index] * rollout.mask_NA.view(-1)[index]).sum().backward()
    return found_NA.where(rollout.mask_NA, 0), {n: v.grad for n, v in p.trainable.items() if v.grad is not None}


@each_newer
@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}], ids=["full", "adapter"])
def test_its_memory_is_counted_without_numbers(family, lora):
    config = settings(family, policy={"kind": "vlm", "path": folder(family), "micro_batch": 8, "lora": lora})
    plan = Plan(prompts=2, group_size=3, updates=1, calls={"rollout": 6, "train": 6, "ref": 6}, media="picture")
    ledger = vlm_ledger(config.policy, config.engine, plan)
    real = policy(family, lora=config.policy.lora)
    assert ledger.trained == sum(p.numel() for p in real.trainable.values())
    assert ledger.weights == sum(p.numel() for p in policy(family).model.parameters())
    assert {"update", "drawing answers", "vision tower"} <= {phase.name for phase in ledger.phases}


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}], ids=["full", "adapter"])
def test_two_repetitions_of_a_pattern_of_layers_say_what_all_of_them_take(lora, monkeypatch):
    known = ledger_module.known_config

    def longer(path: str) -> tuple[Any, str]:
        config, source = known(path)
        text = config.get_text_config()
        text.layer_types, text.num_hidden_layers = ["linear_attention", "full_attention"] * 5, 10
        return config, source

    monkeypatch.setattr(ledger_module, "known_config", longer)
    chosen = {"kind": "vlm", "path": folder("qwen3_5_moe"), "micro_batch": 4, "lora": lora}
    config = settings("qwen3_5_moe", policy=chosen)
    plan = Plan(prompts=2, group_size=3, updates=1, calls={"rollout": 6, "train": 6, "ref": 6}, media="picture")
    counted = vlm_ledger(config.policy, config.engine, plan)
    monkeypatch.setattr(counted_layers, "FEWEST", 99)
    whole = vlm_ledger(config.policy, config.engine, plan)
    pairs = [
        (phase.name, part, other)
        for phase, same in zip(counted.phases, whole.phases, strict=True)
        for part, other in zip(phase.parts, same.parts, strict=True)
    ]
    assert replace(counted, phases=()) == replace(whole, phases=()) and counted.trained > 0
    for name, part, other in pairs:  # of a tiny model passes without gradient have their peak elsewhere in few layers
        near = 0.1 if part.owner == "activations" and name != "update" else 0
        assert part.bytes == pytest.approx(other.bytes, rel=near, abs=0), (name, part.owner)


ODD = Prompt("odd clips", "which is longer", media=(clip(4, seed=6), clip(6, fps=2.0, seed=7)))


@pytest.mark.parametrize(("family", "prompt", "why"), [
    ("internvl", ODD, "odd clips.*4, 6 frames; InternVL's processor takes several of one length only"),
    ("glm4v", KINDS[4], "both.*has both pictures and videos"),
])  # fmt: skip
def test_a_prompt_that_the_library_cannot_show_fails_by_name(family, prompt, why):
    context = policy(family).encode(prompt)
    assert len(context) == 0 and re.search(why, context.failure)


@pytest.mark.parametrize(
    ("family", "setting"), [(f, s) for f in NEWER for s in FAMILIES[f].without if s.startswith("policy.")]
)
def test_what_does_not_go_with_it_is_refused_by_name(family, setting):
    name, _, value = setting.removeprefix("policy.").partition(" = ")
    given = (
        value or {"compile": True, "image_pixels": (784, 7840), "video_pixels": (784, 7840), "quantize": "nf4"}[name]
    )
    more = {"lora": {"rank": 2}} if name == "quantize" else {}
    config = build(VlmPolicyConfig, {"path": folder(family), name: given, **more})
    with pytest.raises(ConfigError, match=rf"policy\.{name}.*\({family}\)"):
        config.check()


@pytest.mark.parametrize("tokens", [64, 300])
def test_linear_attention_is_counted_as_the_library_computes_it(tokens):
    from transformers.models.qwen3_5.modeling_qwen3_5 import torch_chunk_gated_delta_rule

    peaks, flops = [], []
    for function in (scan, torch_chunk_gated_delta_rule):
        query, key, value = (torch.empty(2, tokens, h, 16, device="meta", requires_grad=True) for h in (2, 2, 4))
        g, beta = (torch.empty(2, tokens, 4, device="meta", requires_grad=True) for _ in range(2))
        before = torch.empty(2, 4, 16, 16, device="meta", requires_grad=True)
        with AsOnDevice(), Counter() as counter:
            out, last = function(
                query, key, value, g=g, beta=beta, initial_state=before, output_final_state=True, use_qk_l2norm_in_kernel=True
            )  # fmt: skip
            (out.sum() + last.sum()).backward()
        assert out.shape == value.shape and last.shape == (2, 4, 16, 16)
        peaks.append(counter.peak)
        flops.append(counter.flops)
    assert flops[0] == flops[1] > 0 and peaks[0] == pytest.approx(peaks[1], rel=1 / 6)


@pytest.mark.parametrize("family", [f for f in NEWER if "distributed.sequence" in FAMILIES[f].without])
def test_rows_cut_over_processes_and_other_engines_are_refused_by_name(family):
    config = VlmPolicyConfig(path=folder(family))
    with pytest.raises(ConfigError, match=rf"distributed\.sequence: .*\({family}\)"):
        config.load(torch.device("cpu"), sequence=SimpleNamespace(size=2))
    engine = VlmEngine(generator=Elsewhere())
    with pytest.raises(ConfigError, match=rf"engine\.generator\.kind = vllm: .*\({family}\).*kind=hf"):
        engine.check(config, group_size=2)


class Elsewhere:
    """A generator that is another program."""

    is_the_trainers = False

    def check(self) -> None:
        pass
