"""Sizes that are known by name, what fits on which card, and what `show` says where something is missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from grpo_mm.cli import app
from grpo_mm.config.run_config import read
from grpo_mm.errors import ConfigError, UserError
from grpo_mm.ledger.cards import card, needed, smallest
from grpo_mm.ledger.counting import AsOnDevice, Counter
from grpo_mm.ledger.entries import GIB, Entry, Ledger, Phase, Spread
from grpo_mm.ledger.words import Asked, memory_lines, seconds_of_a_step, time_lines
from grpo_mm.pipelines.vlm.models.known import known_config

ROOT = Path(__file__).parents[2]
PUBLISHED = {
    "Qwen/Qwen2-VL-2B-Instruct": 2.209, "Qwen/Qwen2-VL-7B-Instruct": 8.291, "Qwen/Qwen2.5-VL-3B-Instruct": 3.755,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8.292, "Qwen/Qwen2.5-VL-32B-Instruct": 33.453, "Qwen/Qwen2.5-VL-72B-Instruct": 73.411,
    "Qwen/Qwen3-VL-2B-Instruct": 2.128, "Qwen/Qwen3-VL-4B-Instruct": 4.438, "Qwen/Qwen3-VL-8B-Instruct": 8.767,
}  # fmt: skip
"""10⁹ weights, as their pages on the hub count them."""


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_known_name_has_as_many_weights_as_its_page_says(name):
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(known_config(name)[0])
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(PUBLISHED[name], abs=0.001)


def test_an_unknown_name_says_what_to_do():
    with pytest.raises(ConfigError, match=r"neither on this disk nor a size that is known.*config\.json.*policy\.path"):
        known_config("somebody/a-model-that-nobody-knows")


def test_views_and_what_was_there_before_count_nothing():
    before = torch.zeros(1000)
    with Counter("cpu") as counter:
        view = before.view(10, 100).t()
        made = torch.zeros(250)
        again = made[:10]
        del made
        assert counter.live == counter.peak == 1000
        del again
    assert counter.live == 0 and counter.peak == 1000 and view.numel() == 1000


def test_attention_without_numbers_keeps_no_scores():
    shape = (1, 2, 4096, 16)
    query, key, value = (torch.empty(shape, device="meta", requires_grad=True) for _ in range(3))
    with AsOnDevice(), Counter() as counter:
        torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert counter.peak < 4 * 4096 * 4096 and counter.flops == 2 * 2 * 2 * 4096 * 4096 * 16


LEDGER = Ledger(
    resident=(Entry("weights", 10 * GIB, "bfloat16", split="weights"), Entry("text encoders", 9 * GIB, place="host")),
    phases=(Phase("update", (Entry("activations", 40 * GIB),), "policy.micro_batch"), Phase("sampling", (Entry("activations", GIB),))),
    flops={"train": 395.6e12}, trained=1, weights=2,
)  # fmt: skip


def test_the_peak_is_what_is_always_held_and_the_fullest_phase():
    assert LEDGER.peak == 50 * GIB and LEDGER.host == 9 * GIB and LEDGER.on(Spread(2, sharded=True)).held == 5 * GIB


def test_the_smallest_card_leaves_room_for_cuda_and_the_words_say_what_to_change():
    assert [smallest(int(gib * GIB)) for gib in (20, 22.5, 40, 50, 74, 129, 140)] == [24, 40, 48, 80, 141, 141, None]
    assert needed(50 * GIB) == pytest.approx((50 * 1.05 + 1) / 0.97)
    told = "\n".join(memory_lines(LEDGER))
    assert "smallest GPU that holds this: 80 GB" in told
    assert (
        "for 48 GB: Less for update (policy.micro_batch); or 3 such devices hold it with distributed.kind=sharded."
        in told
    )
    assert "by dtype: activations of several dtypes 40.00, bfloat16 10.00; main memory 9.00 GiB" in told


def test_seconds_follow_from_operations_and_a_measured_step_goes_before():
    assert seconds_of_a_step(LEDGER, Asked(gpu="h100", share=0.4))[0] == pytest.approx(1.0)
    assert "3600 steps = 1 h, 1 GPU hours at 2 = 2" in time_lines(LEDGER, Asked(price=2.0), steps=3600)[0]
    measured = time_lines(LEDGER, Asked(measured_seconds=7.0, measured_on="a run"), steps=10)[0]
    assert "7 s a step (measured: a run)" in measured
    with pytest.raises(UserError, match="--gpu 'b9000': wanted one of"):
        card("b9000")


def test_data_that_are_not_set_do_not_hide_the_arithmetic(tmp_path):
    text = (ROOT / "configs/quickstart/flow.yaml").read_text()
    (tmp_path / "run.yaml").write_text(
        text.replace("{kind: shape_world, split: train}", "{kind: file, path: '${data.texts}'}")
        + "data: {texts: null}\n"
    )
    found = CliRunner().invoke(app, ["show", str(tmp_path / "run.yaml")])
    assert "smallest GPU that holds this: 24 GB" in found.output and "s a step" in found.output
    assert isinstance(found.exception, ConfigError) and "data.texts not set" in str(found.exception)


def test_every_config_of_a_card_is_free_of_contradictions():
    paths = sorted((ROOT / "configs/cards").glob("*.yaml"))
    assert len(paths) >= 6
    for path in paths:
        read(path, unset=[]).check_settings()


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "configs/cards").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_config_of_a_card_fits_on_it(path):
    from grpo_mm.training.forecast import ledger_of, plan_of

    peak = ledger_of(config := read(path, unset=[]), plan_of(config)).peak
    assert needed(peak) <= int(path.stem.rpartition("_")[2].removesuffix("gb"))
    (said,) = re.findall(r"([\d.]+) GiB at the peak", path.read_text())
    assert float(said) == pytest.approx(peak / GIB, abs=0.06)


def test_sizes_of_reward_networks_are_those_of_their_models():
    from open_clip import CLIP
    from open_clip.factory import get_model_config

    from grpo_mm.rewards.shared.network_sizes import NUMBERS, network_bytes

    for name in ("ViT-L-14", "ViT-H-14"):
        settings = get_model_config(name)
        with torch.device("meta"):
            model = CLIP(settings["embed_dim"], settings["vision_cfg"], settings["text_cfg"])
        assert sum(p.numel() for p in model.parameters()) == NUMBERS[name]
    assert network_bytes("ViT-H-14-quickgelu", "bfloat16") == 2 * NUMBERS["ViT-H-14"] and network_bytes("mine") is None
