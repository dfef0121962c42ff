"""Adapters stay out of the vision tower, products load with plain libraries, gradients do not depend on how rows are cut."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_vlm import PROMPTS, change, each_family, folder, library_logprobs, policy, sample

from grpo_mm.errors import ConfigError
from grpo_mm.objectives import ClippedRatio
from grpo_mm.pipelines.vlm.forwards.packing import pack
from grpo_mm.pipelines.vlm.models.adapters import Lora
from grpo_mm.pipelines.vlm.models.families import adapter_targets
from grpo_mm.pipelines.vlm.policy import VlmPolicyConfig
from grpo_mm.types import Counts, View


def logprobs(p, rollout, needs=("logprobs",)):
    """Every named value [N, A]."""
    found = {}
    for index, values in p.logprobs(rollout, p.plan(rollout, rollout.mask_NA), needs=frozenset(needs), grad=False):
        for name, value in values.items():
            found.setdefault(name, torch.zeros_like(rollout.behaviour_NA)).view(-1)[index] = value
    return found


def plain_rows(model, p, rollout):
    """Log-probabilities of every row by a model of plain transformers with the positions that the card gives it."""
    record = rollout.record
    p.loaded.family.follow(model, p.config.video_positions)
    rows = zip(record.context_N.tolist(), record.token_NA, record.length_N.tolist())
    return torch.cat([library_logprobs(model, p, record.contexts[c], tokens[:length]) for c, tokens, length in rows])


@each_family
def test_an_adapter_changes_the_language_model_alone(family):
    p = policy(family, lora=Lora(rank=2))
    layers = p.model.config.get_text_config().num_hidden_layers
    assert len(p.trainable) == 2 * 7 * layers
    assert all("language_model.layers" in name and "visual" not in name for name in p.trainable)
    visual = {name for name, module in p.model.model.visual.named_modules() if isinstance(module, torch.nn.Linear)}
    assert visual and not any(re.fullmatch(adapter_targets(), f"model.visual.{name}") for name in visual)
    before = {name: v.clone() for name, v in p.model.model.visual.state_dict().items()}
    change(p)
    assert all(torch.equal(before[name], v) for name, v in p.model.model.visual.state_dict().items())


def test_targets_may_be_fewer_and_never_others():
    p = policy(lora=Lora(rank=2, targets=("q_proj", "v_proj")))
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in p.trainable} == {"q_proj", "v_proj"}
    with pytest.raises(ConfigError, match="linear layers of the language model"):
        Lora(targets=("qkv",)).check()


@each_family
def test_full_fine_tuning_leaves_the_tower_alone_unless_told(family):
    def tower(p):
        return [name for name in p.trainable if "visual" in name]

    assert not tower(policy(family)) and len(tower(policy(family, train_tower=True))) > 4
    assert any("embed_tokens" in name for name in policy(family).trainable)


@each_family
def test_a_saved_adapter_gives_the_same_probabilities_in_plain_peft(family, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    p = policy(family, lora=Lora(rank=2))
    start = logprobs(p, sample(p, group_size=1)[0])["logprobs"]
    change(p)
    rollout, _ = sample(p, group_size=1)
    p.save(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    plain = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(folder(family)), tmp_path)
    found = plain_rows(plain.get_base_model().eval(), p, rollout)
    most = 1e-3  # sums in another order come to 1e-4 of a log-probability here, the adapter to more than 1e-2
    assert torch.allclose(found, rollout.behaviour_NA[rollout.mask_NA], atol=most)
    assert float((logprobs(p, rollout)["logprobs"] - start).abs().max()) > 0.01
    again = policy(family, lora=Lora(start_from=str(tmp_path)))
    assert torch.allclose(logprobs(again, rollout)["logprobs"], rollout.behaviour_NA, atol=most)
    merged = policy(family, merge_adapter=str(tmp_path))
    assert torch.allclose(logprobs(merged, rollout)["logprobs"], rollout.behaviour_NA, atol=most)


@pytest.mark.parametrize("settings", [{"lora": Lora(rank=2), "save_merged": True}, {}, {"train_tower": True}], ids=str)
def test_a_saved_model_gives_the_same_probabilities_in_plain_transformers(settings, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    p = policy(**settings)
    change(p)
    rollout, _ = sample(p, group_size=1)
    p.save(tmp_path)
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert torch.allclose(plain_rows(plain, p, rollout), rollout.behaviour_NA[rollout.mask_NA], atol=1e-4)
    assert AutoProcessor.from_pretrained(tmp_path).tokenizer.get_vocab() == p.processor.tokenizer.get_vocab()
    assert torch.allclose(logprobs(p, rollout)["logprobs"], rollout.behaviour_NA, atol=1e-4)  # saving changed nothing
    assert p.product == "model" and str(p.usage()["code"]).count("from_pretrained") == 2


def test_full_fine_tuning_in_bfloat16_keeps_float32_weights_and_saves_bfloat16(tmp_path):
    from safetensors.torch import load_file

    p = policy(dtype="bfloat16")
    assert {value.dtype for value in p.trainable.values()} == {torch.float32}
    rollout, _ = sample(p, group_size=1)
    assert rollout.behaviour_NA.dtype == torch.float32
    p.save(tmp_path)
    assert {v.dtype for v in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}


def test_the_card_names_base_and_adapter():
    code = policy(lora=Lora(rank=2)).usage()["code"]
    compile(code, "card", "exec")
    assert folder("qwen2_5_vl") in code and 'PeftModel.from_pretrained(model, "path/of/this/folder")' in code


def gradient(p, rollout):
    """The gradient of the clipped ratio, by parameter, as one update accumulates it."""
    mask = rollout.mask_NA.float()
    generator = torch.Generator().manual_seed(3)
    view = View(
        old_logprobs=rollout.behaviour_NA,
        advantage=torch.randn(len(mask), 1, generator=generator).expand_as(mask),
        mask=mask,
        row=torch.arange(len(mask))[:, None].expand_as(mask),
        group=rollout.prompt_N[:, None].expand_as(mask),
        row_actions=mask.sum(1, keepdim=True).clamp_min(1).expand_as(mask),
        counts=Counts(float(mask.sum()), float(len(mask)), mask.shape[1]),
    )
    for index, values in p.logprobs(
        rollout, p.plan(rollout, rollout.mask_NA), needs=frozenset({"logprobs"}), grad=True
    ):
        ClippedRatio()(values, view.at(index)).value().backward()
    found = {name: value.grad.clone() for name, value in p.trainable.items()}
    for value in p.trainable.values():
        value.grad = None
    return found


CUTS = {
    "one row": {"micro_batch": 1},
    "all rows": {"micro_batch": 64},
    "by tokens": {"micro_batch": 64, "micro_batch_tokens": 80},
    "small chunks": {"head_chunk": 3},
    "checkpoints": {"gradient_checkpointing": True},
}


@each_family
def test_the_gradient_does_not_depend_on_how_rows_are_cut(family):
    rollout, _ = sample(policy(family), group_size=2)
    wanted = gradient(policy(family, train_tower=True), rollout)
    assert all(float(g.abs().max()) > 0 for name, g in wanted.items() if "lm_head" not in name)
    for name, cut in CUTS.items():
        found = gradient(policy(family, train_tower=True, **cut), rollout)
        for key, value in wanted.items():
            assert torch.allclose(found[key], value, rtol=1e-3, atol=2e-5 * float(value.abs().max()) + 1e-8), (
                name,
                key,
            )


def test_gradient_checkpointing_still_samples_with_a_cache_and_agrees():
    p, plain = policy(gradient_checkpointing=True), policy()
    rollout, _ = sample(plain)
    gradient(p, rollout)
    again, _ = sample(p)
    assert torch.equal(again.record.token_NA, rollout.record.token_NA)


def test_a_plan_covers_whole_rows_once_and_keeps_a_prompt_together():
    p = policy(micro_batch=4)
    rollout, _ = sample(p, group_size=3)
    shuffled = rollout.take(torch.randperm(18, generator=torch.Generator().manual_seed(0)))
    mask_NA = shuffled.mask_NA.clone()
    mask_NA[5] = False
    plan = p.plan(shuffled, mask_NA)
    rows = torch.cat([index[:, 0] // 8 for index in plan])
    assert sorted(rows.tolist()) == [i for i in range(18) if i != 5] and all(len(index) <= 4 for index in plan)
    contexts = shuffled.record.context_N[rows].tolist()
    assert contexts == sorted(contexts)
    limited = policy(micro_batch=99, micro_batch_tokens=70, prefix_sharing="off").plan(shuffled, mask_NA)
    for index in limited:
        record = shuffled.record.take(index[:, 0] // 8)
        longest = max(len(record.contexts[c]) + n for c, n in zip(record.context_N.tolist(), record.length_N.tolist()))
        assert len(index) == 1 or len(index) * longest <= 70


def test_rows_are_packed_by_number_and_by_tokens():
    assert list(pack([4, 4, 9, 1], most=8, most_tokens=10)) == [[0, 1], [2], [3]]
    assert list(pack([4, 4, 9, 1], most=2)) == [[0, 1], [2, 3]]
    assert list(pack([50], most=2, most_tokens=10)) == [[0]] and list(pack([], most=2)) == []


@pytest.mark.parametrize("settings", [{}, {"lora": Lora(rank=2)}], ids=["full", "lora"])
def test_a_forward_without_positions_still_reaches_the_weights(settings):
    p = policy(**settings)
    rollout, _ = sample(p, PROMPTS[:1])
    for rows in (rollout, _without_tokens(rollout), rollout.take(torch.zeros(0, dtype=torch.int64))):
        nothing = torch.zeros(0, dtype=torch.int64)
        ((index, values),) = p.logprobs(rows, [nothing], needs=frozenset({"logprobs"}), grad=True)
        assert index.numel() == 0 and values["logprobs"].shape == (0,)
        values["logprobs"].sum().backward()
        assert any(v.grad is not None and float(v.grad.abs().sum()) == 0 for v in p.trainable.values())


def _without_tokens(rollout):
    record = replace(rollout.record, length_N=torch.zeros_like(rollout.record.length_N))
    return replace(rollout, record=record)


def test_the_reference_is_the_snapshot_and_survives_saving_and_loading_its_state():
    p = policy(lora=Lora(rank=2))
    p.snapshots.take("ref")
    rollout, _ = sample(p, group_size=2)
    change(p)
    found = p.with_values_of("ref", rollout, rollout.mask_NA)
    values = logprobs(p, found, needs=("logprobs", "ref_logprobs"))
    assert torch.allclose(values["ref_logprobs"], rollout.behaviour_NA, atol=1e-4)
    assert float((values["logprobs"] - values["ref_logprobs"]).abs().max()) > 0.01
    other = policy(lora=Lora(rank=2))
    other.snapshots.load(p.snapshots.state())
    again = other.with_values_of("ref", rollout, rollout.mask_NA)
    assert torch.equal(again.record.ref_NA, found.record.ref_NA)


def test_values_follow_rows_through_take_and_cat():
    p = policy()
    p.snapshots.take("ref")
    rollout, _ = sample(p, group_size=2)
    rollout = p.with_values_of("ref", rollout, rollout.mask_NA)
    order = torch.tensor([11, 0, 5, 6])
    parts = [rollout.take(order[:2]), rollout.take(order[2:])]
    joined = type(rollout).cat(parts)
    assert len(joined.record.contexts) == 4 and joined.record.context_N.tolist() == [1, 0, 2, 3]
    for name in ("logprobs", "ref_logprobs"):
        whole, part = logprobs(p, rollout)[name], logprobs(p, joined)[name]
        assert torch.allclose(whole[order], part, atol=1e-5)


def test_entropy_is_that_of_the_distribution_that_is_sampled_from():
    p = policy(temperature=0.7, head_chunk=3)
    rollout, _ = sample(p, PROMPTS[:1], group_size=1)
    context, tokens = rollout.record.contexts[0], rollout.record.token_NA[0]
    hidden, _ = p.network.hidden([context], tokens[None])
    with torch.no_grad():
        logits = p.network.logits(hidden)[0, len(context) - 1 : -1]
    logits[:, list(p.loaded.forbidden)] = -torch.inf
    wanted = torch.distributions.Categorical(logits=logits / 0.7).entropy()
    found = logprobs(p, rollout, needs=("entropy",))["entropy"][0]
    length = int(rollout.record.length_N[0])
    assert torch.allclose(found[:length], wanted[:length], atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "no/such/folder"}, "neither an existing folder"),
        ({"lora": Lora(rank=0)}, "rank = 0"),
        ({"lora": Lora(start_from="./nowhere")}, "neither an existing folder"),
        ({"save_merged": True}, "there is no adapter"),
        ({"lora": Lora(), "train_tower": True}, "leave out policy.lora"),
        ({"micro_batch": 0}, "policy.micro_batch = 0"),
        ({"attention": "flash_attention_2"}, "set policy.dtype=bfloat16"),
        ({"temperature": 0.0}, "policy.temperature"),
        ({"image_pixels": (100, 10)}, "wanted .least, most."),
    ],
    ids=lambda value: "",
)
def test_settings_that_cannot_work_are_refused_before_anything_is_loaded(settings, message):
    with pytest.raises(ConfigError, match=message):
        VlmPolicyConfig(**{"path": folder("qwen2_5_vl"), **settings}).check()


def test_a_folder_of_another_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no config.json"):
        VlmPolicyConfig(path=str(tmp_path)).check()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ConfigError, match="'llama' model; wanted one of qwen2_vl, qwen2_5_vl, qwen3_vl"):
        VlmPolicyConfig(path=str(tmp_path)).check()


def test_an_adapter_that_reaches_into_the_tower_is_not_continued(tmp_path):
    from peft import LoraConfig, get_peft_model

    p = policy()
    wide = get_peft_model(p.model, LoraConfig(r=2, target_modules=r".*(visual.*\.qkv|q_proj)"))
    wide.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="changes the vision tower.*Merge it instead"):
        policy(lora=Lora(start_from=str(tmp_path)))
    assert Path(tmp_path, "adapter_config.json").is_file() and policy(merge_adapter=str(tmp_path)).product == "model"


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
BESIDE = {
    "pointer for a template": ("chat_template.jinja", POINTER, "its chat template leaves out the question"),
    "template without answers": (
        "chat_template.jinja",
        "{% for m in messages %}{% if m['role'] == 'user' %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endif %}"
        "{% endfor %}",
        "leaves out the answer of a turn",
    ),
    "pointer for settings of generation": ("generation_config.json", POINTER, "generation_config.json .* Git LFS"),
    "empty settings of generation": ("generation_config.json", "", "generation_config.json is not valid JSON"),
    "pointer for a tokenizer": ("tokenizer.json", POINTER, "tokenizer.json is a pointer of Git LFS"),
    "cut settings of a tokenizer": ("tokenizer_config.json", '{"a": 1', "tokenizer_config.json is not valid JSON"),
    "an adapter": ("adapter_config.json", '{"peft_type": "LORA", "r": 2}', "holds an adapter .* beside a model"),
    "an index without a map": ("model.safetensors.index.json", "{}", "has no weight_map"),
}


@pytest.mark.parametrize("how", BESIDE)
def test_what_lies_beside_the_weights_is_read_or_refused_by_its_name(how, tmp_path):
    name, text, message = BESIDE[how]
    copy = Path(shutil.copytree(folder("qwen2_5_vl"), tmp_path / "m"))
    (copy / name).write_text(text)
    if name.endswith("index.json"):
        (copy / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=message):
        VlmPolicyConfig(path=str(copy)).load(torch.device("cpu"))
