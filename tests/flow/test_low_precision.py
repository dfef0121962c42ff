"""bfloat16 with an adapter: the network's products are bfloat16, the adapter's weights and gradients float32, and ratios begin at 1."""

from __future__ import annotations

import pytest
import tiny_vlm
import torch
from tiny_runs import record, write_config

from grpo_mm.entry import train
from grpo_mm.pipelines.flow.models.adapters import Lora
from grpo_mm.pipelines.flow.models.sd3 import Sd3
from grpo_mm.pipelines.flow.policy import FlowPolicyConfig
from grpo_mm.pipelines.vlm.models.adapters import Lora as TextLora
from grpo_mm.types import Prompt


def adapters_of(network: torch.nn.Module) -> dict[str, torch.nn.Module]:
    return {name: m for name, m in network.named_modules() if ".lora_" in name and isinstance(m, torch.nn.Linear)}


def products(modules: dict[str, torch.nn.Module], run) -> set[torch.dtype]:
    """What the modules give in a run."""
    found: set[torch.dtype] = set()
    hooks = [m.register_forward_hook(lambda _m, _i, out: found.add(out.dtype)) for m in modules.values()]
    run()
    for hook in hooks:
        hook.remove()
    return found


def assert_float32_masters(modules: dict[str, torch.nn.Module]) -> None:
    assert modules
    assert {m.weight.dtype for m in modules.values()} == {torch.float32}
    grads = [m.weight.grad for m in modules.values() if m.weight.grad is not None]
    assert grads and {g.dtype for g in grads} == {torch.float32} and any(g.abs().sum() > 0 for g in grads)


def test_a_flow_adapter_multiplies_in_bfloat16_and_learns_in_float32(tiny_sd3):
    config = FlowPolicyConfig(Sd3(tiny_sd3), lora=Lora(rank=2), dtype="bfloat16", height=32, width=32, text_length=16)
    policy = config.load(torch.device("cpu"))
    condition = policy.encode([Prompt("a", "a red circle")])
    x, sigma = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5])
    modules = adapters_of(policy.network)

    def run() -> None:
        policy.velocity(x, sigma, condition, size=(32, 32), guidance=1.0).square().sum().backward()

    assert products(modules, run) == {torch.bfloat16}
    assert_float32_masters(modules)


def test_a_text_adapter_multiplies_in_bfloat16_and_learns_in_float32():
    policy = tiny_vlm.policy(lora=TextLora(rank=2), dtype="bfloat16")
    modules, context = adapters_of(policy.model), policy.encode(tiny_vlm.PROMPTS[0])
    given = products(modules, lambda: policy.network.hidden([context])[0].float().square().sum().backward())
    assert given == {torch.bfloat16}
    assert_float32_masters(modules)


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_ratios_of_pictures_begin_at_1_in_bfloat16(lora, tiny_sd3, tmp_path):
    changes = {
        "policy": {"dtype": "bfloat16", "lora": lora, "micro_batch": 4}, "steps": 1, "optim": {"lr": 0.0},
        "updates": {"count": 1}, "eval_prompts": None,
    }  # fmt: skip
    train(write_config(tmp_path, tiny_sd3, changes))
    row = next(row for row in record(tmp_path / "runs/tiny") if "objective/ratio" in row)
    assert row["objective/ratio"] == 1 and row["objective/approx_kl"] == 0 and row["policy/logprob_gap"] == 0
