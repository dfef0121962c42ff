"""What vLLM in the process is handed and when: held against the calls, where a CPU would ignore them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_vlm import PROMPTS, policy

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.vlm.models.adapters import Lora
from grpo_mm.pipelines.vlm.sampling import weight_files
from grpo_mm.pipelines.vlm.sampling.generation import Draw, Request
from grpo_mm.pipelines.vlm.sampling.vllm_generator import VllmGenerator

GPU = torch.device("cuda")


@dataclass
class Engine:
    """Notes what it is told, in vLLM's words."""

    calls: list[tuple] = field(default_factory=list)
    files: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.llm_engine = SimpleNamespace(reset_encoder_cache=lambda: self.calls.append(("forget pictures",)))

    def collective_rpc(self, name: str, kwargs: dict[str, Any]) -> None:
        if "weights_path" in kwargs:
            for path in sorted(Path(kwargs["weights_path"]).glob("*.safetensors")):
                self.files |= load_file(path)
        self.calls.append((name, *kwargs))

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(("wake", *tags))

    def sleep(self, level: int) -> None:
        self.calls.append(("sleep", level))

    def reset_prefix_cache(self) -> None:
        self.calls.append(("forget prompts",))


@pytest.fixture
def drawn(monkeypatch):
    """A generator whose engine is on a GPU, and what is told to it in each of some calls."""

    def calls(generator: VllmGenerator, times: int, here) -> tuple[Engine, list[list[tuple]]]:
        generator._llm, told = Engine(), []
        network = SimpleNamespace(device=GPU, in_place=here.network.in_place, family=here.network.family)
        output = SimpleNamespace(
            prompt_token_ids=[1, 2], num_cached_tokens=1,
            outputs=[SimpleNamespace(token_ids=[3], logprobs=[{3: SimpleNamespace(logprob=-0.5)}])],
        )  # fmt: skip
        monkeypatch.setattr(generator, "_run", lambda *_: generator._llm.calls.append(("draw",)) or [output])
        for _ in range(times):
            made = generator.generate(network, [Request(here.encode(PROMPTS[5]), None)], Draw(4, frozenset({0}), 1.0))
            assert made.weights == here.snapshots.which and made.token_NA[0, 0] == 3
            told.append(list(generator._llm.calls))
            generator._llm.calls.clear()
            here.snapshots.changed()
        return generator._llm, told

    return calls


GIVEN = [("reload_weights", "weights_iterator"), ("forget prompts",), ("forget pictures",)]


@pytest.mark.parametrize("level", [1, 2])
def test_the_engine_sleeps_while_the_policy_trains(drawn, level):
    """Weights wake first, and are new before keys and values take their room."""
    _, (first, second) = drawn(VllmGenerator(sleep_level=level), 2, policy())
    assert first == [*GIVEN, ("draw",), ("sleep", level)]
    assert second == [("wake", "weights"), *GIVEN, ("wake", "kv_cache"), ("draw",), ("sleep", level)]


def test_an_engine_that_does_not_sleep_is_not_woken(drawn):
    _, (_, second) = drawn(VllmGenerator(sleeps=False), 2, policy())
    assert second == [*GIVEN, ("draw",)]


@pytest.mark.parametrize(("level", "base_again"), [(1, False), (2, True)])
def test_the_base_under_an_adapter_comes_again_where_sleep_has_dropped_it(drawn, monkeypatch, level, base_again):
    monkeypatch.setitem(__import__("sys").modules, "vllm", SimpleNamespace())
    monkeypatch.setitem(__import__("sys").modules, "vllm.lora", SimpleNamespace())
    request = SimpleNamespace(LoRARequest=lambda *given: given)
    monkeypatch.setitem(__import__("sys").modules, "vllm.lora.request", request)
    here = policy(lora=Lora(rank=3, alpha=7))
    _, (_, second) = drawn(VllmGenerator(sleep_level=level), 2, here)
    assert (GIVEN[0] in second) == base_again


def test_an_engine_over_several_gpus_reads_files(drawn):
    here = policy()
    engine, _ = drawn(VllmGenerator(tensor_parallel=2), 1, here)
    wanted = dict(here.network.in_place.base())
    assert set(engine.files) == set(wanted) and "lm_head.weight" in wanted  # tied, and told all the same
    assert all(torch.equal(engine.files[name], value) for name, value in wanted.items())


def test_weights_are_cut_into_files_and_rounded_as_the_engine_would(monkeypatch, tmp_path):
    monkeypatch.setattr(weight_files, "PIECE_BYTES", 10_000)
    source = policy().network.in_place
    weight_files.write_base(source, tmp_path, dtype=torch.bfloat16)
    files = sorted(tmp_path.iterdir())
    found = {name: value for path in files for name, value in load_file(path).items()}
    assert len(files) > 3 and set(found) == {name for name, _ in source.base()}
    assert all(torch.equal(found[name], value.bfloat16()) for name, value in source.base())


def test_settings_are_handed_over_as_they_are():
    here = policy()
    network = SimpleNamespace(
        device=GPU, in_place=here.network.in_place, model=here.model, path="/m", precision=torch.bfloat16
    )
    given = VllmGenerator(tensor_parallel=4, dtype="float16", memory_share=0.3, eager=True).arguments(network)
    assert (given["tensor_parallel_size"], given["dtype"], given["gpu_memory_utilization"]) == (4, "float16", 0.3)
    assert given["enforce_eager"] and given["enable_sleep_mode"] and not given["mm_device_do_normalize"]
    plain = VllmGenerator(sleeps=False).arguments(network)
    assert (plain["tensor_parallel_size"], plain["dtype"], plain["enable_sleep_mode"]) == (1, "bfloat16", False)


def test_what_no_engine_in_the_process_can_do_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match="tensor_parallel = 0"):
        VllmGenerator(tensor_parallel=0).check()
    VllmGenerator(tensor_parallel=2).check()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="in a run of 2 processes.*kind = vllm_server"):
        VllmGenerator(tensor_parallel=2).check()
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="needs as many GPUs, and this run is on a CPU"):
        VllmGenerator(tensor_parallel=2)._start(policy().network)
