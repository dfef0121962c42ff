"""Rows that are cut over processes: the log-probabilities and the gradient of one process."""

from __future__ import annotations

import json
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_vlm
import torch
from children import launch
from safetensors.torch import load_file, save_file
from test_vlm_sharding import PART, WHOLE, gradient, made, moved, norm
from tiny_vlm import policy

from grpo_mm.config.run_config import read
from grpo_mm.entry import train
from grpo_mm.errors import ConfigError, UserError
from grpo_mm.looking import metrics
from grpo_mm.pipelines.vlm.forwards.cut_rows import check_heads
from grpo_mm.pipelines.vlm.models.adapters import Lora
from grpo_mm.pipelines.vlm.policy import VlmPolicyConfig
from grpo_mm.processes.distributed import Distributed, Processes
from grpo_mm.processes.sequence import SequenceGroup
from grpo_mm.tools.export import export
from grpo_mm.types import Prompt

MASKED = "masked, as on a GPU"
"""Keys of prompts and answers in one call, with a mask."""
POLICIES = {
    "shared prompts, tower": {"prefix_sharing": "on", "train_tower": True, "micro_batch": 8},
    "in parts, computed again": {"prefix_sharing": "on", "gradient_checkpointing": True, "micro_batch": 2},
    "repeated, tower, computed again": {
        "prefix_sharing": "off", "train_tower": True, "gradient_checkpointing": True, "micro_batch": 3,
    },
    "adapter": {"prefix_sharing": "on", "lora": Lora(rank=4), "micro_batch": 2},
    MASKED: {"prefix_sharing": "on", "train_tower": True, "micro_batch": 8},
}  # fmt: skip
CASES = [(family, name) for family in tiny_vlm.FAMILIES for name in POLICIES]
QUICK = CASES[::6]
"""Each family, and three of the settings; the others are slow."""
SCRIPT = """
import sys
from test_cut_rows import work

work(*sys.argv[1:])
"""


def run(folder: Path, cases, *, world: int = 2, in_float32: bool = False, **distributed) -> Path:
    script = folder / "work.py"
    script.write_text(SCRIPT)
    folders = {family: tiny_vlm.folder(family) for family in tiny_vlm.FAMILIES}
    asked = {"folders": folders, "cases": cases, "exact": not in_float32, "distributed": distributed}
    launch(script, folder, json.dumps(asked), world=world)
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory, request) -> Path:
    own = "test_a_cut_row_is_a_row["
    asked = [item.callspec.params["case"] for item in request.session.items if item.name.startswith(own)]
    return run(tmp_path_factory.mktemp("together"), asked, sequence=2)


@pytest.mark.parametrize(
    "case", [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in CASES], ids=", ".join
)
def test_a_cut_row_is_a_row(case, together):
    compare(case, together, PART)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_four_processes_hold_rows_in_pairs(kind, tmp_path):
    """Two ranks with rows of their own, one of them without any for some time; the objective couples all rows."""
    case = ("qwen2_5_vl", "in parts, computed again")
    compare(case, run(tmp_path, [case], world=4, sequence=2, kind=kind), WHOLE)


@contextmanager
def float64():
    """The library and we compute norms, positions and log-probabilities in float32 whatever a model is: here that means float64."""
    kept = torch.float32, torch.Tensor.float
    torch.float32, torch.Tensor.float = torch.float64, torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.float32, torch.Tensor.float = kept
        torch.set_default_dtype(torch.float32)


def policy_of(family: str, name: str, **processes):
    made = policy(family, **POLICIES[name], **processes)
    if name == MASKED:
        made.network.attention = "sdpa"
    return made


def compare(case, folder: Path, objective) -> None:
    family, name = case
    plain = policy_of(family, name)
    wanted = values(plain, family, objective, Processes(device="cpu"))
    found = load_file(folder / f"{family}, {name}.safetensors")
    assert found.keys() == wanted.keys() and len(found) > 5
    logprobs = [tensors.pop("logprobs") for tensors in (found, wanted)]
    assert (logprobs[0] - logprobs[1]).norm() < 1e-9 * logprobs[1].norm()
    assert norm({k: found[k] - wanted[k] for k in wanted}) < 1e-9 * norm(wanted) > 0


def values(p, family: str, objective, processes: Processes, own=None, *, exact=True) -> dict[str, torch.Tensor]:
    """The gradient and the log-probabilities, in float64 if `exact`; the weights are the same float32 numbers."""
    rollout = made("all", family)
    moved(p)
    if exact:
        p.model.double()
    with float64() if exact else nullcontext():
        _, found = gradient(p, rollout, objective, processes, own=own)
        found["logprobs"] = p.values_under(None, rollout.record, torch.arange(len(rollout.record.length_N)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", tiny_vlm.FAMILIES)
def test_in_float32_a_cut_row_is_as_near_to_the_exact_one_as_an_uncut_one(family, tmp_path):
    """Sums in another order: neither is nearer by much, so the two are no further apart than both are from the exact one."""
    case = (family, "shared prompts, tower")
    found = load_file(run(tmp_path, [case], sequence=2, in_float32=True) / f"{', '.join(case)}.safetensors")
    one, exact = (values(policy_of(*case), family, PART, Processes(device="cpu"), exact=e) for e in (False, True))
    logprobs = [tensors.pop("logprobs") for tensors in (found, one)]
    exact.pop("logprobs")
    assert (logprobs[0] - logprobs[1]).norm() < 1e-6 * logprobs[1].norm()
    cut, uncut = (norm({k: t[k] - exact[k] for k in exact}) / norm(exact) for t in (found, one))
    assert cut < 2 * uncut < 1e-4


def kept_bytes(p) -> int:
    """Of tensors that a forward over a clip of 24 frames keeps for its backward pass, weights not counted."""
    weights, total = {w.untyped_storage().data_ptr() for w in p.model.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            total[storage.data_ptr()] = storage.nbytes()
        return tensor

    prompt = Prompt("long", "what", media=(tiny_vlm.clip(24, height=56),))
    rollout, _ = tiny_vlm.sample(p, (prompt,), group_size=2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = list(p.logprobs(rollout, p.plan(rollout, rollout.mask_NA), needs=frozenset(), grad=True))
    return sum(total.values()) if found else 0


def test_each_process_keeps_its_part(together):
    whole = kept_bytes(policy("qwen2_5_vl", prefix_sharing="on"))
    for text in (together / "kept.txt").read_text().split():
        assert 0.4 * whole < int(text) < 0.65 * whole  # beside its part: features and last hidden states of all


def work(folder: str, asked: str) -> None:
    """What a process does."""
    asked = json.loads(asked)
    tiny_vlm._FOLDERS.update(asked["folders"])
    processes = Processes(device="cpu", distributed=Distributed(timeout_minutes=1, **asked["distributed"]))
    ranks = processes.world
    if ranks == 1:
        cut = policy("qwen2_5_vl", sequence=processes.sequence, prefix_sharing="on")
        kept = processes.gather_all(kept_bytes(cut))
        (Path(folder) / "kept.txt").write_text(" ".join(map(str, kept)))
    for family, name in asked["cases"]:
        shard = {"shard": processes.shard} if processes.cuts_weights else {}
        p = policy_of(family, name, sequence=processes.sequence, **shard)
        own = None if ranks == 1 else ((0, 1, 2), (3,))[processes.rank]
        found = values(p, family, PART if ranks == 1 else WHOLE, processes, own, exact=asked["exact"])
        if processes.is_main:
            save_file({k: v.contiguous() for k, v in found.items()}, Path(folder) / f"{family}, {name}.safetensors")


TRAIN = """
import sys
from grpo_mm.config.run_config import read
from grpo_mm.entry import train

train("configs/quickstart/video.yaml", sys.argv[1:])
"""
SETTINGS = (
    "steps=2", "prompts_per_step=2", "group_size=4", "policy.micro_batch=3", "rewards={letters: {use: 'tiny_rewards:letters'}}",
    "engine.max_new_tokens=6", "eval_prompts.clips.use.count=2", "optim.warmup_updates=0", "device=cpu",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_a_run_goes_as_that_of_one_process(world, tmp_path):
    path, folders = f"policy.path={tiny_vlm.folder('qwen2_5_vl')}", [tmp_path / "one", tmp_path / "cut"]
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    train("configs/quickstart/video.yaml", [*SETTINGS, path, f"runs_dir={folders[0]}"])
    launch(script, *SETTINGS, path, f"runs_dir={folders[1]}", "distributed.sequence=2", world=world)
    one, cut = (metrics.read(folder / "quickstart_video/metrics.jsonl") for folder in folders)
    assert len(one) == len(cut) == 4  # two steps, evaluated before and after
    for a, b in zip(one, cut):
        names = [
            n for n in a if n.startswith(("reward/", "advantage/", "optim/", "loss/", "objective/", "calls/", "eval/"))
        ]
        assert all(b[n] == pytest.approx(a[n], rel=1e-3, abs=1e-5) for n in names), (a, b)
    assert one[1]["optim/grad_norm"] > 0 and one[1]["calls/train_calls"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_a_run_goes_on_from_its_checkpoint_and_is_exported_by_one_process(kind, tmp_path):
    cut = ("distributed.sequence=2", f"distributed.kind={kind}", "checkpoints.every=1", "eval_prompts={}")
    common = (*(each for each in SETTINGS if not each.startswith(("steps", "eval"))), *cut)
    path, script = f"policy.path={tiny_vlm.folder('qwen2_5_vl')}", tmp_path / "train.py"
    script.write_text(TRAIN)
    for folder, parts in (("whole", (2,)), ("parts", (1, 2))):
        for steps in parts:
            launch(script, *common, path, f"runs_dir={tmp_path / folder}", f"steps={steps}", "checkpoints.keep_last=2")
    whole, parts = (tmp_path / folder / "quickstart_video" for folder in ("whole", "parts"))
    rows = [metrics.read(folder / "metrics.jsonl")[1] for folder in (whole, parts)]
    assert rows[0]["step"] == 2 and rows[0]["optim/grad_norm"] > 0
    assert all(rows[1][n] == v for n, v in rows[0].items() if not n.startswith("time/"))
    product = export(parts, to=tmp_path / "product")
    for file in sorted((whole / json.loads((whole / "summary.json").read_text())["product"]).glob("*.safetensors")):
        a, b = load_file(file), load_file(product / file.name)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
def test_heads_of_keys_that_suffice_are_sent_once(tmp_path, monkeypatch):
    text = tiny_vlm._text

    def more(config, **rope):
        return text(config, **rope | {"mrope_section": [3, 3, 2]}) | {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }

    monkeypatch.setattr(tiny_vlm, "_text", more)
    monkeypatch.setitem(tiny_vlm._FOLDERS, "qwen2_5_vl", str(tiny_vlm.build("qwen2_5_vl", tmp_path / "model")))
    case = ("qwen2_5_vl", "shared prompts, tower")
    compare(case, run(tmp_path, [case], sequence=2), PART)


def test_heads_that_cannot_be_dealt_are_refused():
    def config(heads, shared, tower):
        text = SimpleNamespace(num_attention_heads=heads, num_key_value_heads=shared)
        return SimpleNamespace(get_text_config=lambda: text, vision_config=SimpleNamespace(num_heads=tower))

    check_heads(config(28, 4, 16), 4)
    check_heads(config(32, 2, 16), 8)  # each head of keys goes to four processes
    for heads, shared, tower, size in ((28, 4, 16, 8), (12, 4, 12, 6), (16, 2, 15, 2)):
        with pytest.raises(ConfigError, match=f"distributed.sequence = {size}: the model's {heads} heads"):
            check_heads(config(heads, shared, tower), size)


def test_processes_that_cannot_be_dealt_are_refused():
    with pytest.raises(UserError, match="distributed.sequence = 3 does not divide 4 processes"):
        read("configs/quickstart/video.yaml", ["distributed.sequence=3"]).check_settings(world=4)
    with pytest.raises(UserError, match="the policy flow cannot cut rows"):
        read("configs/quickstart/flow.yaml", ["distributed.sequence=2"]).check_settings(world=2)
    with pytest.raises(UserError, match="do not divide over 4 processes"):
        read("configs/quickstart/video.yaml", ["prompts_per_step=1", "group_size=6"]).check_settings(world=4)
    read(
        "configs/quickstart/video.yaml", ["prompts_per_step=1", "group_size=6", "distributed.sequence=2"]
    ).check_settings(world=4)


def test_heads_are_looked_at_before_a_model_is_loaded():
    config = VlmPolicyConfig(path="Qwen/Qwen2.5-VL-7B-Instruct")
    with pytest.raises(
        ConfigError, match=r"distributed.sequence = 8: the model's 28 heads with 4 of keys, and its tower's 16"
    ):
        config.load(torch.device("cpu"), sequence=SequenceGroup(None, 0, 8))


@pytest.mark.parametrize("settings", [{"attention": "eager"}, {"prefix_sharing": "check"}, {"compile": True}])
def test_settings_that_cannot_cut_rows_are_refused(settings):
    config = VlmPolicyConfig(path=tiny_vlm.folder("qwen2_vl"), **settings)
    with pytest.raises(ConfigError, match="distributed.sequence = 2 cuts rows under policy.attention = sdpa"):
        config.load(torch.device("cpu"), sequence=SequenceGroup(None, 0, 2))
