"""What quantized bases are counted as: the arithmetic, and the bytes of really quantized ones where the package is at hand."""

from __future__ import annotations

import pytest
import torch
from test_ledger import ROOT, TEXTS, measured, predicted
from torch import nn
from typer.testing import CliRunner

from grpo_mm.cli import app
from grpo_mm.config.run_config import read
from grpo_mm.errors import ConfigError
from grpo_mm.ledger.counting import Counter
from grpo_mm.ledger.fit import fewest
from grpo_mm.ledger.quantized import bytes_read, count_of
from grpo_mm.ledger.state import held
from grpo_mm.pipelines.vlm.ledger import vlm_ledger
from grpo_mm.pipelines.vlm.seen import Seen
from grpo_mm.processes.distributed import Processes
from grpo_mm.training.forecast import ledger_of, plan_of
from grpo_mm.training.learner import Learner
from grpo_mm.weights.eight_bit import quantize

WIDE = (*TEXTS, "policy.path=random:qwen2_5_vl/width512", "policy.lora={rank: 4, alpha: 8}")


def net(kind: str, *, device: str = "meta") -> nn.Module:
    """Two layers that can be quantized, and one that cannot."""
    made = nn.Sequential(nn.Linear(128, 320), nn.Tanh(), nn.Linear(320, 50, bias=False), nn.Linear(50, 6))
    made = made.to(device).requires_grad_(False).eval()
    assert quantize([made], kind, compute=torch.float32) == 2
    return made


@pytest.mark.parametrize(
    ("kind", "packed"),
    [
        # Half a byte a weight, a float32 for each 64 and the 16 levels of each layer.
        ("nf4", (128 * 320 + 320 * 50) // 2 + 4 * (128 * 320 + 320 * 50) // 64 + 2 * 16 * 4),
        ("int8", 128 * 320 + 320 * 50 + 4 * (320 + 50)),  # a byte a weight and a float32 a row
    ],
)
def test_bytes_by_hand(kind, packed):
    made = net(kind)
    assert held(made) == packed + 4 * 320 + 4 * (50 * 6 + 6)  # biases, and the layer that stays, are float32
    assert count_of(made) == 128 * 320 + 320 + 320 * 50 + 50 * 6 + 6
    plain = 4 * (320 + 50 * 6 + 6)
    unpacked = 2 * 4 * (128 * 320 + 320 * 50)
    assert bytes_read(made, 1, size=4) == packed + plain + (unpacked if kind == "int8" else 0)
    assert bytes_read(made, 99, size=4) == packed + plain + unpacked


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_forward_and_backward_are_counted_as_products_of_the_plain_layers_that_keep_nothing(kind):
    made = nn.Sequential(*(net(kind)[i] for i in (0, 2)))
    with Counter() as counter:
        x = torch.empty(7, 128, device="meta", requires_grad=True)
        y = made(x)
        assert y.shape == (7, 50) and counter.live == 4 * 7 * (128 + 50)
        flops = counter.flops
        y.sum().backward()
    assert flops == 2 * 7 * (128 * 320 + 320 * 50) and counter.flops == 2 * flops
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_bytes_of_really_quantized_layers(kind):
    pytest.importorskip("bitsandbytes")
    assert real_bytes(net(kind, device="cpu")) == held(net(kind))


def real_bytes(module: nn.Module) -> int:
    """Of each storage once: parameters, and the scales and levels that lie beside them."""
    found = [*module.parameters(), *module.buffers()]
    for part in module.modules():
        if type(part).__module__.startswith(("bitsandbytes", "grpo_mm.weights")):
            state = getattr(part.weight, "quant_state", None)
            found += [state.absmax, state.code] if state is not None else [_first(part.state.SCB, part.weight.SCB)]
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in found}.values())


def _first(*tensors: torch.Tensor | None) -> torch.Tensor:
    return next(t for t in tensors if t is not None)


@pytest.mark.parametrize(
    ("kind", "checkpointed"),
    [
        pytest.param("nf4", False),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("nf4", True), ("int8", False), ("int8", True))),
    ],
)
def test_a_quantized_run_holds_what_its_ledger_says_within_a_tenth(kind, checkpointed, tmp_path):
    pytest.importorskip("bitsandbytes")
    more = f"policy.quantize={kind}", f"policy.gradient_checkpointing={str(checkpointed).lower()}"
    config = read(ROOT / "configs/bench/prefix_cpu.yaml", [*WIDE, *more])
    learner = Learner(config, Processes(device="cpu"), samples=tmp_path)
    context = learner.policy.encode(learner.prompts.batch(0, 1, 0)[0])
    grid = tuple(context.inputs["video_grid_thw"][0].tolist())
    visual = int(torch.tensor(grid).prod()) // 4
    ledger = vlm_ledger(
        config.policy, config.engine, plan_of(config), seen=Seen(len(context) - visual, visual, grid, "video", "")
    )
    weights = sum(entry.bytes for entry in ledger.resident if entry.owner.startswith("weights"))
    assert weights == real_bytes(learner.policy.model)
    assert predicted(ledger) == pytest.approx(measured(config, tmp_path), rel=0.1)


def test_a_quantized_run_counts_the_same_weights_in_fewer_bytes_and_is_never_cut_over_devices():
    plain, packed = (
        ledger_of(config, plan_of(config))
        for config in (
            read(ROOT / "configs/bench/prefix_cpu.yaml", [*WIDE, *more]) for more in ([], ["policy.quantize=nf4"])
        )
    )
    assert (plain.weights, plain.trained) == (packed.weights, packed.trained)
    numbers = 4 * (2 * 512 * 512 + 2 * 512 * 128 + 3 * 512 * 2048)  # of 4 layers
    assert plain.held - packed.held == numbers * 4 - (numbers // 2 + numbers // 64 * 4 + 28 * 16 * 4)
    assert f"quantized (nf4): 28 linear layers with {numbers / 1e6:.2f} M weights" in packed.said[-1]
    half = packed.held // 2
    assert fewest(plain, half) is None or fewest(plain, half).sharded
    assert fewest(packed, half) is None


def test_quantized_and_cut_over_processes_is_refused_by_the_config_and_said_by_show():
    more = "policy.quantize=nf4", "policy.path=random:qwen2_5_vl/width512", "policy.lora={rank: 4}"
    with pytest.raises(ConfigError, match=r"policy.quantize = nf4 and distributed.kind = sharded"):
        read(ROOT / "configs/quickstart/video.yaml", [*more, "distributed.kind=sharded"]).check_settings()
    found = CliRunner().invoke(app, ["show", "quickstart/video.yaml", *more, "--devices", "2", "--sharded"])
    assert "policy.quantize" in found.output and "are not cut over GPUs" in found.output
