"""What any engine of answers has to keep: one file for all of them. Engines that are not installed are skipped by name.

`make test-engines` installs vLLM for a CPU beside the project's own versions and runs this room.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import tempfile
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import torch
from tiny_runs import accelerate_launch, record
from tiny_vlm import FAMILIES, PROMPTS, folder, policy, rows_of

from grpo_mm.errors import ConfigError
from grpo_mm.findings import first_difference
from grpo_mm.pipelines.vlm.engine import VlmEngine
from grpo_mm.pipelines.vlm.engine_server.starting import Launch, Started, start
from grpo_mm.pipelines.vlm.engine_server.vllm_server import Starts, VllmServer
from grpo_mm.pipelines.vlm.models.adapters import Lora
from grpo_mm.pipelines.vlm.models.families import resolve
from grpo_mm.pipelines.vlm.prompting.record import TextRecord
from grpo_mm.pipelines.vlm.sampling.generation import Draw, HfGenerator, Request
from grpo_mm.pipelines.vlm.sampling.vllm_generator import VllmGenerator
from grpo_mm.processes.clock import Clock, use
from grpo_mm.processes.rng import stream

HAS_VLLM = importlib.util.find_spec("vllm") is not None
NEEDS_VLLM = [pytest.mark.vllm, pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed: make test-engines")]


def needs_vllm(test):
    for mark in NEEDS_VLLM:
        test = mark(test)
    return test


ENGINES = [
    pytest.param(lambda family: HfGenerator(), id="hf"),
    pytest.param(lambda family: VllmGenerator(longest=1024, at_once=32), id="vllm", marks=NEEDS_VLLM),
    pytest.param(lambda family: VllmServer(urls=(SERVERS(family).url,)), id="vllm_server", marks=NEEDS_VLLM),
]
pytestmark = pytest.mark.timeout(1200)  # a server of three processes starts within some tests
BOUND = 1e-4
"""Of a log-probability in float32."""
SAMPLES, LENGTH = 3, 8


class Servers:
    """One vLLM server at a time, of one family, with room for adapters."""

    def __init__(self) -> None:
        self.running: tuple[str, Started] | None = None

    def __call__(self, family: str) -> Started:
        if self.running is None or self.running[0] != family:
            self.stop()
            launch = Launch(
                model=folder(family), dtype="float32", longest=1024, at_once=32, adapter_rank=8, on_cpu=True
            )
            self.running = (family, start(launch, log=Path(tempfile.mkdtemp()) / "engine.log"))
        return self.running[1]

    def stop(self) -> None:
        if self.running is not None:
            self.running[1].stop()
        self.running = None


SERVERS = Servers()


@pytest.fixture(scope="module", autouse=True)
def no_server_is_left():
    yield
    SERVERS.stop()


class Bench:
    """A policy and an engine that draws from it."""

    def __init__(self, make, family: str, lora: bool) -> None:
        self.generator = make(family)
        self.policy = policy(family, lora=Lora(rank=3, alpha=7) if lora else None)
        with torch.no_grad():
            for name, p in self.policy.trainable.items():
                p.add_(0.02 * torch.randn(p.shape, generator=stream(0, "bench", name)))
        self.policy.snapshots.changed()
        self.policy.snapshots.take("ema")
        self.contexts = [self.policy.encode(prompt) for prompt in PROMPTS]

    def change(self, seed: int) -> None:
        with torch.no_grad():
            for name, p in self.policy.trainable.items():
                p.add_(0.03 * torch.randn(p.shape, generator=stream(seed, "change", name)))
        self.policy.snapshots.changed()

    def draws(self, contexts=None, *, seed: int = 0, greedy: bool = False, samples: int = SAMPLES):
        contexts = self.contexts if contexts is None else contexts
        requests = [
            Request(c, None if greedy else stream(seed, c.prompt_id, s)) for c in contexts for s in range(samples)
        ]
        return self.generator.generate(
            self.policy.network, requests, Draw(LENGTH, self.policy.loaded.stop, self.policy.config.temperature)
        )

    def apart(self, made, contexts=None, weights: str | None = None) -> float:
        """The largest difference of a log-probability between engine and trainer."""
        contexts = self.contexts if contexts is None else contexts
        which_N = torch.arange(len(contexts)).repeat_interleave(len(made.token_NA) // len(contexts))
        record = TextRecord(tuple(contexts), which_N, made.token_NA, made.length_N)
        value_NA = self.policy.values_under(weights, record, torch.arange(len(which_N)))
        inside_NA = torch.arange(LENGTH) < made.length_N[:, None]
        return float((value_NA - made.logprob_NA).abs().where(inside_NA, 0).max())


# One list, so that a server serves all tests of its family before the next is started.
BENCHES = [
    pytest.param((engine.values[0], family, lora), id=f"{engine.id}-{family}{'-lora' * lora}", marks=engine.marks)
    for engine in ENGINES
    for family in FAMILIES
    for lora in (False, True)
]


@pytest.fixture(scope="module", params=BENCHES)
def bench(request) -> Bench:
    return Bench(*request.param)


def test_it_says_the_trainers_log_probabilities_of_texts_pictures_and_videos(bench):
    made = bench.draws()
    assert bench.apart(made) <= BOUND
    assert made.token_NA.shape == (SAMPLES * len(PROMPTS), LENGTH) and made.logprob_NA.dtype == torch.float32
    assert int(made.length_N.min()) >= 1 and int(made.length_N.max()) <= LENGTH
    beyond = torch.arange(LENGTH) >= made.length_N[:, None]
    assert not made.token_NA[beyond].any() and not made.logprob_NA[beyond].any()


def test_it_reads_the_tokens_that_the_policy_has_made(bench):
    made = bench.draws()
    if made.prompt_ids is None:
        pytest.skip("this engine is handed embeddings and does not tell")
    wanted = [c.input_ids_L.tolist() for c in bench.contexts for _ in range(SAMPLES)]
    assert [ids.tolist() for ids in made.prompt_ids] == wanted


def test_a_row_has_a_seed_of_its_own(bench):
    """The same whatever is drawn beside it; other samples of a prompt are others."""
    whole, again, alone = bench.draws(), bench.draws(), bench.draws(bench.contexts[2:3])
    assert torch.equal(whole.token_NA, again.token_NA)
    assert torch.equal(whole.token_NA[2 * SAMPLES : 3 * SAMPLES], alone.token_NA)
    assert not torch.equal(whole.token_NA, bench.draws(seed=1).token_NA)
    assert len(whole.token_NA[:SAMPLES].unique(dim=0)) > 1


def test_it_never_draws_what_is_forbidden_and_stops_where_it_should(bench):
    made, stop = bench.draws(samples=8), bench.policy.loaded.stop
    assert not bench.policy.network.distribution.forbidden_V[made.token_NA].any()
    for ids, length in zip(made.token_NA.tolist(), made.length_N.tolist()):
        ended = [place for place, token in enumerate(ids[:length]) if token in stop]
        assert ended in ([], [length - 1]) and (ended or length == LENGTH)


def test_without_chance_it_draws_the_most_probable_token(bench):
    made, reference = bench.draws(greedy=True, samples=1), HfGenerator()
    draw = Draw(LENGTH, bench.policy.loaded.stop, 1.0)
    wanted = reference.generate(bench.policy.network, [Request(c, None) for c in bench.contexts], draw)
    assert torch.equal(made.token_NA, wanted.token_NA)


@pytest.mark.parametrize("changes", [1, 20])
def test_after_a_change_of_weights_nothing_of_the_old_ones_is_left(bench, changes):
    """Weights, caches of prompts and of pictures; the adapter's name."""
    before = bench.draws()
    for seed in range(changes):
        bench.change(seed + changes)
        made = bench.draws(samples=1)
        assert bench.apart(made) <= BOUND
        assert made.weights in (None, bench.policy.snapshots.which)
    assert not torch.equal(bench.draws().logprob_NA, before.logprob_NA)


@pytest.mark.parametrize("name", ["ema"])
def test_a_copy_of_the_weights_that_is_in_place_is_what_draws(bench, name):
    bench.change(100)
    bench.policy.snapshots.take(name)
    bench.change(101)
    for used in (name, None, name):
        with bench.policy.snapshots.use(name) if used else nullcontext():
            made = bench.draws()
        assert bench.apart(made, weights=used) <= BOUND


def test_sampler_and_trainer_pass_the_examination(bench):
    engine = VlmEngine(max_new_tokens=LENGTH, generator=bench.generator)
    found = list(engine.examine(bench.policy, rows_of(PROMPTS[:4], SAMPLES), seed=0))
    assert first_difference(found) is None, first_difference(found)


@needs_vllm
def test_a_failure_in_the_middle_leaves_nothing_behind():
    bench = Bench(lambda family: VllmGenerator(longest=1024, at_once=32), "qwen2_5_vl", False)
    bench.draws()
    step = bench.generator._llm.llm_engine.step

    def breaks():
        step()
        raise OSError("the wire is cut")

    bench.generator._llm.llm_engine.step = breaks
    with pytest.raises(OSError):
        bench.draws()
    assert bench.apart(bench.draws()) <= BOUND


def test_what_it_cannot_do_is_refused_before_a_model_is_loaded(monkeypatch):
    from grpo_mm.pipelines.vlm.policy import VlmPolicyConfig

    asked = VlmEngine(generator=VllmGenerator())
    tiny = VlmPolicyConfig(path="zoo:vision_language")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install"):
        asked.check(tiny, group_size=2)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    asked.check(tiny, group_size=2)
    with pytest.raises(ConfigError, match="top_p"):
        VlmEngine(generator=VllmGenerator(), top_p=0.9).check(tiny, group_size=2)
    with pytest.raises(ConfigError, match="video_positions"):
        asked.check(VlmPolicyConfig(path="zoo:vision_language", video_positions="library"), group_size=2)
    with pytest.raises(ConfigError, match="memory_share"):
        VlmEngine(generator=VllmGenerator(memory_share=1.5)).check(tiny, group_size=2)


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("engine", ENGINES[1:])
@pytest.mark.parametrize("lora", [False, True])
def test_two_hundred_changes_of_weights_leave_no_memory_behind(engine, lora):
    bench, seen = Bench(engine, "qwen2_5_vl", lora), []
    for step in range(200):
        bench.change(step)
        with torch.no_grad():
            for p in bench.policy.trainable.values():
                p.mul_(0.98)  # so that they stay small
        bench.policy.snapshots.changed()
        made = bench.draws(samples=1)
        if step % 50 == 49:
            assert bench.apart(made) <= BOUND
            seen.append(sum(map(resident_mib, family_of(os.getpid()))))
    assert seen[-1] - seen[0] < 32, seen


@pytest.mark.slow
@needs_vllm
def test_a_server_that_is_killed_is_started_again_and_given_the_present_weights(tmp_path):
    """What the run itself has started; by itself it would come back with the checkpoint's."""
    SERVERS.stop()
    starts = Starts(longest=1024, at_once=32, log=str(tmp_path / "engine.log"))
    bench, clock = Bench(lambda family: VllmServer(start=starts), "qwen2_5_vl", False), use(Clock())
    try:
        bench.change(1)
        before = bench.draws()
        keeper = bench.generator._started.process.pid
        for pid in [pid for pid in family_of(keeper) if pid != keeper]:
            os.kill(pid, signal.SIGKILL)
        after = bench.draws()
        assert torch.equal(before.token_NA, after.token_NA) and bench.apart(after) <= BOUND
        assert clock.take()[1]["engine_restarts"] == 1
    finally:
        use(Clock())
        bench.generator._started.stop()


@pytest.mark.slow
@needs_vllm
def test_a_server_that_normalises_pixels_again_is_named(tmp_path):
    SERVERS.stop()
    launch = Launch(
        model=folder("qwen2_5_vl"), dtype="float32", longest=1024, on_cpu=True, more=("--mm-device-do-normalize",)
    )
    with start(launch, log=tmp_path / "engine.log") as server:
        with pytest.raises(
            ConfigError, match="its pixels: True, wanted False. Start it with --no-mm-device-do-normalize"
        ):
            Bench(lambda family: VllmServer(urls=(server.url,)), "qwen2_5_vl", False).draws()
        with pytest.raises(ConfigError, match="has another model.*model_type"):
            Bench(lambda family: VllmServer(urls=(server.url,)), "qwen3_vl", False).draws()


def family_of(pid: int) -> list[int]:
    """A process and all that it has started."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            children.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_two_processes_have_an_engine_each(tmp_path, kind):
    accelerate_launch(
        "-m", "grpo_mm.cli", "train", "configs/quickstart/video.yaml", f"runs_dir={tmp_path}", "name=x", "steps=2", "threads=1",
        "eval_prompts={}", "engine.generator={kind: vllm, longest: 2048, at_once: 32}", f"distributed.kind={kind}", "device=cpu",
    )  # fmt: skip
    rows = record(tmp_path / "x")
    assert len(rows) == 2 and max(row["policy/logprob_gap"] for row in rows) <= BOUND


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_two_processes_share_a_server(tmp_path, kind):
    SERVERS.stop()
    launch = Launch(model=resolve("zoo:vision_language"), dtype="float32", longest=2048, at_once=32, on_cpu=True)
    with start(launch, log=tmp_path / "engine.log") as server:
        accelerate_launch(
            "-m", "grpo_mm.cli", "train", "configs/quickstart/video.yaml", f"runs_dir={tmp_path}", "name=x", "steps=2", "threads=1",
            "eval_prompts={}", f"engine.generator={{kind: vllm_server, urls: ['{server.url}']}}", f"distributed.kind={kind}", "device=cpu",
        )  # fmt: skip
    rows = record(tmp_path / "x")
    assert len(rows) == 2 and max(row["policy/logprob_gap"] for row in rows) <= BOUND
    assert rows[1]["calls/engine_weights_brought"] == 1 and "calls/engine_rows_again" not in rows[1]
