"""Named random streams, and copies of the weights that can be put in place and taken out again."""

from __future__ import annotations

import math
from collections import OrderedDict

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from grpo_mm.errors import CheckpointError
from grpo_mm.processes.rng import stream, stream_seed
from grpo_mm.types import Prompt
from grpo_mm.weights.optim import Optim, grad_norm
from grpo_mm.weights.snapshots import Ema, Snapshots

# ── streams ──


def test_a_stream_is_the_same_each_time():
    first, second = (torch.randn(5, generator=stream(1, "sde", 3, "geneval/12", 0)) for _ in range(2))
    assert torch.equal(first, second)


def test_a_stream_is_the_same_in_every_process_and_version():
    assert stream_seed(1, "sde", 3, "geneval/12", 0) == 2914824315943012109


def test_every_part_of_the_key_changes_the_stream():
    base = (1, "sde", 3, "geneval/12", 0)
    others = [(2, *base[1:]), (1, "init", *base[2:]), (1, "sde", 4, "geneval/12", 0), (1, "sde", 3, "geneval/1", 0)]
    others += [(1, "sde", 3, "geneval/12", 1), (1, "sde", 3, "geneval/12"), (1, "sde", 31, "geneval/12", 0)]
    others += [(1, "sde", 3, "geneval/1", 20), (11, "sde", 3, "geneval/12", 0), (1, "sde", "geneval/12", 3, 0)]
    seeds = [stream_seed(*key) for key in (base, *others)]
    assert len(set(seeds)) == len(seeds)


def test_neighbouring_streams_are_unrelated():
    noise = torch.stack([torch.randn(4000, generator=stream(0, "sde", 0, "p", sample)) for sample in range(6)])
    correlation = torch.corrcoef(noise) - torch.eye(6)
    assert correlation.abs().max() < 4 / math.sqrt(4000)


# ── copies of the weights ──


def weights(dtype=torch.float32) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(3, 2, generator=generator).to(dtype)) for name in ("net.a", "net.b")}


def change(params) -> None:
    with torch.no_grad():
        for p in params.values():
            p.mul_(1.37).add_(0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_present_weights_come_back_bit_for_bit(dtype):
    params = weights(dtype)
    snapshots = Snapshots(params)
    snapshots.take("ref")
    old = {k: p.detach().clone() for k, p in params.items()}
    change(params)
    new = {k: p.detach().clone() for k, p in params.items()}
    identity = {k: p.data_ptr() for k, p in params.items()}
    with snapshots.use("ref"):
        assert all(torch.equal(params[k], old[k]) for k in params)
    assert all(torch.equal(params[k], new[k]) for k in params)
    assert {k: p.data_ptr() for k, p in params.items()} == identity  # an optimiser still holds the same memory


def test_the_present_weights_come_back_after_an_error():
    params = weights()
    snapshots = Snapshots(params)
    snapshots.take("ref")
    change(params)
    new = params["net.a"].detach().clone()
    with pytest.raises(RuntimeError, match="inside"), snapshots.use("ref"):
        raise RuntimeError("inside")
    assert torch.equal(params["net.a"], new)


def test_one_copy_can_be_used_inside_another():
    params = weights()
    snapshots = Snapshots(params)
    snapshots.take("ref")
    first = params["net.a"].detach().clone()
    change(params)
    snapshots.take("old")
    second = params["net.a"].detach().clone()
    change(params)
    with snapshots.use("old"):
        with snapshots.use("ref"):
            assert torch.equal(params["net.a"], first)
        assert torch.equal(params["net.a"], second)


def test_a_copy_does_not_follow_the_weights():
    params = weights()
    snapshots = Snapshots(params)
    snapshots.take("ref")
    before = snapshots.state()["ref/net.a"].clone()
    change(params)
    assert torch.equal(snapshots.state()["ref/net.a"], before)


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_copies_are_float32_or_wider(dtype, wanted):
    snapshots = Snapshots(weights(dtype))
    snapshots.take("ema")
    assert {t.dtype for t in snapshots.state().values()} == {wanted}


def test_an_average_of_bfloat16_weights_moves_by_less_than_bfloat16_can_show():
    params = {"w": nn.Parameter(torch.ones(1, dtype=torch.bfloat16))}
    snapshots = Snapshots(params)
    snapshots.take("ema")
    with torch.no_grad():
        params["w"].fill_(1.0078125)
    snapshots.average("ema", 0.9)
    assert snapshots.state()["ema/w"].item() == pytest.approx(1.00078125)


def test_the_decay_warms_up_and_stays_at_its_limit():
    ema = Ema(decay=0.9)
    assert [ema.decay_at(n) for n in (0, 1, 10)] == pytest.approx([1 / 10, 2 / 11, 11 / 20])
    assert ema.decay_at(79) == pytest.approx(80 / 89) and ema.decay_at(1000) == 0.9


def test_the_average_is_the_one_of_the_formula():
    params = {"w": nn.Parameter(torch.tensor([1.0], dtype=torch.float64))}
    snapshots, ema, wanted = Snapshots(params), Ema(decay=0.3), 1.0
    snapshots.take("ema")
    for n in range(8):
        change(params)
        decay = min((1 + n) / (10 + n), 0.3)
        wanted = decay * wanted + (1 - decay) * params["w"].item()
        snapshots.average("ema", ema.decay_at(n))
    assert snapshots.state()["ema/w"].item() == pytest.approx(wanted, rel=1e-12)


def test_copies_are_stored_and_loaded_whole():
    params, other = weights(), weights()
    snapshots, again = Snapshots(params), Snapshots(other)
    snapshots.take("ref")
    change(params)
    snapshots.take("ema")
    again.load(snapshots.state())
    assert "ref" in again and "ema" in again and "old" not in again
    assert again.state().keys() == snapshots.state().keys()
    assert all(torch.equal(again.state()[k], t) for k, t in snapshots.state().items())


def test_what_a_run_draws_ahead_with_is_loaded_into_main_memory():
    snapshots = Snapshots({"w": nn.Parameter(torch.empty(2, device="meta"))})
    snapshots.load({f"{name}/w": torch.zeros(2) for name in ("ref", "ahead", "ahead ref")})
    devices = {name: snapshots.copy_of(name)["w"].device.type for name in ("ref", "ahead", "ahead ref")}
    assert devices == {"ref": "meta", "ahead": "cpu", "ahead ref": "cpu"}


@pytest.mark.parametrize("key", ["ref/net.a", "ref/net.c"])
def test_copies_that_do_not_fit_are_refused(key):
    snapshots = Snapshots(weights())
    snapshots.take("ref")
    state = snapshots.state()
    state.pop(key, None) if key in state else state.update({key: torch.zeros(3, 2)})
    with pytest.raises(CheckpointError, match="copy 'ref' of the weights does not fit the model"):
        snapshots.load(state)


def test_a_copy_that_does_nothing_is_what_is_saved_while_it_is_used():
    network = nn.Module()
    network.lora_B = nn.ParameterDict({"default": nn.Parameter(torch.zeros(2))})
    factor = network.lora_B["default"]
    snapshots = Snapshots({"x.lora_B.default": factor}, adapted=network)
    snapshots.take("ema")
    with torch.no_grad():
        factor.add_(1)
    with snapshots.use("ema"):  # a product, or an engine in another process, reads the tensors
        assert factor.tolist() == [0, 0]
    assert factor.tolist() == [1, 1]


# ── learning rate ──


def test_a_copy_that_acts_does_so_within_one_that_does_nothing():
    layer = nn.Linear(2, 2, bias=False)
    network = get_peft_model(nn.Sequential(OrderedDict(x=layer)), LoraConfig(r=1, target_modules=["x"], lora_alpha=1))
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    snapshots = Snapshots(trained, adapted=network)
    snapshots.take("ref")  # as it begins: its second factors are zero
    with torch.no_grad():
        for p in trained.values():
            p.fill_(0.5)
    snapshots.take("ema")
    x = torch.ones(1, 2)
    present, plain = network(x), layer(x)
    with snapshots.use("ref"):
        assert torch.equal(network(x), plain)
        with snapshots.use("ema"):
            assert torch.equal(network(x), present) and not torch.equal(present, plain)
            with snapshots.use("ref"):
                assert torch.equal(network(x), plain)
            assert torch.equal(network(x), present)
        assert torch.equal(network(x), plain)
    assert torch.equal(network(x), present)


def test_the_learning_rate_warms_up_in_even_steps():
    optim = Optim(lr=1.0, warmup_updates=3)
    assert [optim.lr_at(update, 10) for update in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert Optim(lr=1.0).lr_at(0, 10) == 1


def test_the_learning_rate_falls_as_its_schedule_says():
    linear, cosine = Optim(lr=2.0, schedule="linear"), Optim(lr=2.0, schedule="cosine")
    assert [linear.lr_at(update, 4) for update in range(5)] == pytest.approx([2, 1.5, 1, 0.5, 0])
    assert [cosine.lr_at(update, 4) for update in range(5)] == pytest.approx([2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5, 0])


def test_the_norm_of_the_gradient_is_over_all_parameters_together():
    params = list(weights().values())
    assert grad_norm(params) == 0
    params[0].grad = torch.full((3, 2), 2.0)
    assert grad_norm(params).item() == pytest.approx(24**0.5)
    params[1].grad = torch.ones(3, 2)
    assert grad_norm(params).item() == pytest.approx(30**0.5)


def test_a_copy_of_an_adapter_that_does_nothing_is_used_by_leaving_the_adapter_out(tiny_sd3):
    """The same numbers to the last bit, also of a copy that does something, and the present weights untouched."""
    from unittest import mock

    from grpo_mm.pipelines.flow.models.adapters import Lora
    from grpo_mm.pipelines.flow.models.sd3 import Sd3
    from grpo_mm.pipelines.flow.policy import FlowPolicyConfig
    from grpo_mm.weights import snapshots as module

    config = FlowPolicyConfig(model=Sd3(tiny_sd3), lora=Lora(rank=2), height=32, width=32, text_length=8)
    policy = config.load(torch.device("cpu"))
    condition = policy.encode([Prompt("a", "a red circle")])
    x = torch.randn((1, *policy.family.latent_shape(policy.pipe, 32, 32)))

    def velocity():
        with torch.no_grad():
            return policy.velocity(x, torch.tensor([0.5]), condition, size=(32, 32), guidance=1.0)

    start = velocity()
    policy.snapshots.take("ref")
    with torch.no_grad():
        for p in policy.trainable.values():
            p.add_(0.1)
    policy.snapshots.take("later")
    moved = velocity()
    for name, wanted, off in (("ref", start, 1), ("later", moved, 0)):
        with mock.patch.object(module, "adapters_off", wraps=module.adapters_off) as left_out:
            with policy.snapshots.use(name):
                assert torch.equal(velocity(), wanted)
            assert left_out.call_count == off
    assert torch.equal(velocity(), moved) and not torch.equal(start, moved)
    assert all(p.requires_grad for p in policy.trainable.values())
    policy.snapshots.average("ref", 0.5)
    with policy.snapshots.use("ref"):
        assert not torch.equal(velocity(), start)
