"""What is refused for want of memory, what is proposed instead, and what a run records beside the measured peak."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from grpo_mm.cli import app
from grpo_mm.config.run_config import read
from grpo_mm.errors import ConfigError
from grpo_mm.ledger.cards import needed, usable
from grpo_mm.ledger.entries import GIB, Entry, Ledger, Phase, Spread
from grpo_mm.ledger.fit import cheapest_fix, close, fewest, refusal
from grpo_mm.ledger.page import by_owner, line_of, row
from grpo_mm.ledger.words import number_of_cards
from grpo_mm.processes.distributed import Processes
from grpo_mm.training import forecast
from grpo_mm.training.forecast import ledger_of, plan_of

ROOT = Path(__file__).parents[2]
FULL = Ledger(
    resident=(
        Entry("weights, trained", 32 * GIB, "float32", split="weights"),
        Entry("moments of AdamW", 64 * GIB, "float32", split="weights"),
        Entry("latents of a step", 8 * GIB, "float32", split="rows"),
    ),
    phases=(
        Phase("update", (
            Entry("gradients", 32 * GIB, "float32"), Entry("compute copies (autocast)", 14 * GIB, when="replicated"),
            Entry("gathered weights", 16 * GIB, when="sharded"), Entry("activations", 2 * GIB),
        ), "policy.micro_batch", ("policy.micro_batch", 2)),
        Phase("optimiser step", (Entry("gradients", 32 * GIB, split="weights"), Entry("root of the second moment", 32 * GIB, split="weights"))),
    ),
)  # fmt: skip
ADAPTER = Ledger(
    resident=(Entry("transformer, frozen", 5 * GIB), Entry("text encoders", 10 * GIB)),
    phases=(Phase("update", (Entry("activations", 40 * GIB),), "policy.micro_batch", ("policy.micro_batch", 8)), Phase("encoding prompts", ())),
)  # fmt: skip


def test_sharding_leaves_parts_of_state_and_gathers_weights_whole():
    here = FULL.on(Spread(8, sharded=True))
    assert here.held == (32 + 64 + 8) // 8 * GIB
    assert here.fullest.name == "update" and here.fullest.bytes == (32 + 16 + 2) * GIB
    assert FULL.on(Spread(8)).held == (32 + 64 + 1) * GIB and FULL.peak == (104 + 64) * GIB


def test_the_number_of_cards_grows_until_they_hold_it():
    assert fewest(FULL, 170 * GIB) == Spread(1)
    assert fewest(FULL, 80 * GIB) == Spread(4, sharded=True)
    assert fewest(FULL, 50 * GIB) is None
    assert number_of_cards(FULL, 141) == "2 (sharded)" and number_of_cards(FULL, 24) == "none up to 128"
    assert needed(usable(80)) == pytest.approx(80)


def test_weights_that_come_and_go_within_forwards_are_counted_one_block_at_a_time():
    counted = ledger_of(
        config := read(ROOT / "configs/quickstart/flow.yaml", ["policy.lora=null", "policy.dtype=bfloat16"]),
        plan_of(config, kind="cuda", devices=2),
    )
    phase, forward = (counted.on(Spread(2, True, gather)) for gather in ("phase", "forward"))
    (whole,), (within,) = ([p for p in here.phases if p.name == "update"] for here in (phase, forward))
    sizes = {entry.owner: entry.bytes for entry in within.parts}
    assert {e.owner: e.bytes for e in whole.parts}["gradients"] == 2 * sizes["gradients"] == 4 * counted.trained
    assert 0 < sizes["gathered weights"] < 0.9 * 2 * counted.trained and phase.held == forward.held
    assert 0 < sizes["gradients of a block"] < sizes["gathered weights"] * 2
    form = ("whole", "forward")
    entries = [Entry("gradients", 32 * GIB, when=form[0]), Entry("gradients", GIB, when=form[1])]
    large = Ledger(FULL.resident, (Phase("update", tuple(entries)),), devices=1)
    assert (
        fewest(large, 20 * GIB) == Spread(6, True, "forward")
        and number_of_cards(large, 24) == "6 (sharded, gather=forward)"
    )
    assert "distributed.gather=forward" in cheapest_fix(large, 20 * GIB, Spread(8, sharded=True))


def test_a_row_of_the_page_leaves_out_no_byte_and_names_the_cards():
    here = FULL.on(Spread(4, sharded=True))
    columns = by_owner(here)
    assert (
        sum(columns.values()) == here.peak and columns["weights"] == (8 + 16) * GIB and columns["gradients"] == 32 * GIB
    )
    config = read(ROOT / "configs/quickstart/flow.yaml")
    counted = ledger_of(config, plan_of(config, kind="cuda"))
    assert sum(by_owner(counted.on(Spread())).values()) == counted.peak
    assert row("x", FULL).cells()[2:6] == ["none", "6 s", "2 s", "102.0 s"]


def test_a_reward_in_a_process_of_its_own_on_the_runs_gpu_is_counted_and_said_but_not_held_against_the_measured_peak():
    use = {"rewards.mine.use": "{kind: pick_score}", "rewards.mine.isolate": "true"}
    here = {"device": "cuda", "rewards": "{}"} | use

    def counted(**changes: str) -> Ledger:
        words = [f"{key}={value}" for key, value in (here | changes).items()]
        config = read(ROOT / "configs/quickstart/flow.yaml", words)
        return ledger_of(config, plan_of(config, kind="cuda"))

    shared, elsewhere = counted(), counted(**{"rewards.mine.device": "cpu"})
    more = {entry.owner: entry.bytes for entry in shared.resident if entry.owner.endswith("in a process of its own")}
    network = more["reward network mine, in a process of its own"]
    assert network > GIB and more["CUDA of reward mine, in a process of its own"] == GIB // 2
    assert shared.peak == elsewhere.peak + network + GIB // 2
    assert any("mine; rewards.mine.device sets another" in line and "while weights" in line for line in shared.said)
    assert not any("sets another" in line for line in elsewhere.said)
    measured = {"time/device_peak_gib": 1.0}
    assert forecast.beside_measured(shared, measured) == forecast.beside_measured(elsewhere, measured)
    moved = counted(offload_rewards="true")
    assert moved.peak < shared.peak and not any("while weights" in line for line in moved.said)
    assert any(phase.name == "scoring" for phase in moved.phases)


def test_what_fits_is_not_refused_and_what_is_near_is_warned_of():
    assert refusal(ADAPTER, 60 * GIB) is None and close(ADAPTER, 62 * GIB) is None
    assert "55.0 GiB is near to the 58.0 GiB" in close(ADAPTER, 58 * GIB)
    assert refusal(FULL.on(Spread(4, sharded=True)), 80 * GIB) is None


@pytest.mark.parametrize(
    ("ledger", "gib", "fix"),
    [
        (ADAPTER, 46, "Set policy.offload=[encoders]: 10.0 GiB less."),
        (ADAPTER, 30, "Set policy.offload=[encoders] policy.micro_batch=5."),
        (ADAPTER, 15, "Set policy.offload=[encoders] policy.micro_batch=2."),
        (
            FULL,
            80,
            "4 such devices hold it with distributed.kind=sharded; or train an adapter (policy.lora={rank: 32}).",
        ),
        (FULL, 40, "Train an adapter (policy.lora={rank: 32})."),
    ],
)
def test_a_refusal_names_the_number_and_the_cheapest_change(ledger, gib, fix):
    told = refusal(ledger, gib * GIB)
    assert f"needs about {ledger.peak / GIB:.1f} GiB" in told and f"{gib:.1f} GiB are free" in told and fix in told


FLOW = (
    "device=cpu",
    "prompts_per_step=2",
    "group_size=8",
    "policy.micro_batch=8",
    "policy.gradient_checkpointing=true",
)


def test_the_proposed_value_fits_when_it_is_counted():
    def counted(*overrides):
        config = read(ROOT / "configs/quickstart/flow.yaml", [*FLOW, *overrides])
        return ledger_of(config, plan_of(config))

    whole = counted("policy.micro_batch=8")
    assert whole.fullest.name == "update"
    free = whole.peak - whole.fullest.proportional // 3
    (value,) = re.findall(r"policy\.micro_batch=\d+", cheapest_fix(whole, free, Spread()))
    assert counted(value).peak <= free * 1.02


def test_a_run_on_a_gpu_is_refused_before_anything_is_loaded(monkeypatch):
    config = read(ROOT / "configs/quickstart/flow.yaml", ["device=auto"])
    processes = Processes(device="cpu")
    monkeypatch.setattr(processes, "device", torch.device("cuda"), raising=False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30 * 2**20, 80 * GIB))
    with pytest.raises(ConfigError, match=r"needs about .* GiB of each device .* 0\.0 GiB are free"):
        forecast.forecast(config, processes)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 * GIB, 80 * GIB))
    ledger = forecast.forecast(config, processes)
    row = forecast.beside_measured(ledger, {"time/device_peak_gib": 0.1})
    assert row == {"time/device_forecast_gib": pytest.approx(ledger.peak / GIB)}
    assert forecast.beside_measured(ledger, {}) == {} == forecast.beside_measured(None, {"time/device_peak_gib": 0.1})


def test_nothing_is_foretold_without_a_device_whose_memory_is_known():
    assert forecast.forecast(read(ROOT / "configs/quickstart/flow.yaml"), Processes(device="cpu")) is None


def test_show_prints_several_devices_and_refuses_an_unknown_card(tmp_path):
    flow = str(ROOT / "configs/quickstart/flow.yaml")
    found = CliRunner().invoke(
        app, ["show", flow, "device=auto", "--devices", "4", "--sharded", "--gpu", "h200", "--price", "3"]
    )
    assert "memory of each of 4 processes, weights sharded" in found.output and "gathered weights" in found.output
    assert "4 × h200:" in found.output and "GPU hours at 3" in found.output
    assert "fewest GPUs that hold this: 1 × 24 GB, 1 × 80 GB, 1 × 141 GB" in found.output


def test_every_shipped_config_has_a_row_on_the_page_of_memory():
    page = (ROOT / "docs/memory.md").read_text()
    shipped = [
        path for path in (ROOT / "configs").glob("*/*.yaml") if path.parent.name not in ("accelerate", "scorers")
    ]
    assert [path for path in shipped if f"| {path.parent.name}/{path.stem} |" not in page] == []


@pytest.mark.slow
def test_a_row_of_the_page_is_what_the_config_counts_now():
    config = read(ROOT / "configs/flow/fast_sd35.yaml", unset=[])
    cells = row("flow/fast_sd35", ledger_of(config, plan_of(config, kind="cuda"))).cells()
    assert line_of(cells) in (ROOT / "docs/memory.md").read_text().splitlines()
