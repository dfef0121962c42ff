"""Drawing answers with vLLM in the trainer's own process, one engine a rank."""

from __future__ import annotations

import atexit
import importlib.util
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from grpo_mm.errors import ConfigError
from grpo_mm.identity import FREE
from grpo_mm.pipelines.vlm.forwards.network import Network
from grpo_mm.pipelines.vlm.sampling.generation import Draw, Generated, Request
from grpo_mm.pipelines.vlm.sampling.vllm_inputs import EngineInputs
from grpo_mm.processes.clock import phase
from grpo_mm.processes.progress import report

INSIDE = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
ON_CPU = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"}
"""Read as vLLM is imported."""
NEVER = -100.0
"""Added to the logits of forbidden tokens."""


@dataclass(eq=False)
class VllmGenerator:
    """The engine has the model a second time. It is handed what the policy's own processor made, and the weights that are in place
    whenever they are others than at the call before: whole, or an adapter as an adapter. Each answer has a seed of its own, made of the
    row's stream; the same seed gives the same answer, whatever is drawn beside it. It tells log-probabilities of the distribution that
    is trained (temperature and forbidden tokens inside), and they are held against the trainer's before a run begins.

    Positions of text after a video follow the authors' rule (`policy.video_positions: authors`).
    """

    at_once: int = field(default=256, metadata=FREE)
    """Answers that are drawn at once."""
    longest: int | None = field(default=None, metadata=FREE)
    """Tokens of prompt and answer for which the engine has room; null: the checkpoint's positions, 32,768 at most."""
    memory_share: float = field(default=0.4, metadata=FREE)
    """Of a GPU's memory, for the engine's weights and its keys and values."""
    cpu_cache_gib: int = field(default=1, metadata=FREE)
    """For keys and values on a CPU."""
    eager: bool = field(default=False, metadata=FREE)
    """Without CUDA graphs: starts sooner, draws more slowly."""
    sleeps: bool = field(default=True, metadata=FREE)
    """On a GPU the engine gives its memory back between rollouts."""

    is_the_trainers = False
    """Another program computes what is drawn: it is examined before a run begins."""
    tells_top_p = False
    """Its log-probabilities are those within top_p."""

    def __post_init__(self) -> None:
        self._llm: Any = None
        self._given: tuple[int, str] | None = None
        self._base_given, self._adapter, self._asked, self._asleep = False, None, 0, False

    def check(self) -> None:
        if self.at_once < 1 or self.cpu_cache_gib < 1 or not 0 < self.memory_share < 1 or (self.longest or 1) < 1:
            raise ConfigError(
                f"engine.generator: at_once = {self.at_once}, longest = {self.longest}, memory_share = {self.memory_share}, cpu_cache_gib = "
                f"{self.cpu_cache_gib}; wanted 1 or more, and a share between 0 and 1."
            )
        if importlib.util.find_spec("vllm") is None:
            raise ConfigError(
                "engine.generator.kind = vllm needs vLLM, which is not installed: pip install 'grpo_mm[vllm]', or kind: hf, "
                "which needs nothing."
            )

    def describe(self) -> list[str]:
        """What `show` says of it."""
        asleep = ", and gives it back between rollouts" if self.sleeps else ""
        return [
            f"vLLM draws: on a GPU it takes {self.memory_share:.0%} of the memory{asleep}, which the bytes above leave out"
        ]

    @torch.no_grad()
    def generate(self, network: Network, requests: Sequence[Request], draw: Draw) -> Generated:
        """As `Generator`. Raises ConfigError where the engine cannot serve this model."""
        if not requests:
            return _none(draw)
        network.family.refuse("engine.generator.kind = vllm", instead="Use engine.generator.kind=hf.")
        if self._llm is None:
            self._start(network, draw)
        with phase("weight_sync"):
            self._wake()
            self._hand_over(network)
        with phase("rollout_network"):
            outputs = self._run(network, requests, draw)
        self._sleep(network)
        return _read(outputs, draw, self._given)

    def _start(self, network: Network, draw: Draw) -> None:
        on_cpu = network.device.type == "cpu"
        settings = INSIDE | (ON_CPU | {"VLLM_CPU_KVCACHE_SPACE": str(self.cpu_cache_gib)} if on_cpu else {})
        for name, value in settings.items():
            os.environ.setdefault(name, value)
        from vllm import LLM

        text = network.model.config.get_text_config()
        rank = network.in_place.rank
        more = (
            {"block_size": 32, "disable_custom_all_reduce": True}
            if on_cpu
            else {"gpu_memory_utilization": self.memory_share}
        )
        threads = torch.get_num_threads()
        self._llm = LLM(
            model=network.path, dtype=str(network.precision).removeprefix("torch."), seed=0,
            max_model_len=self.longest or min(text.max_position_embeddings, 32_768), max_num_seqs=self.at_once,
            enforce_eager=self.eager or on_cpu, logprobs_mode="processed_logprobs", mm_device_do_normalize=False,
            limit_mm_per_prompt={"image": 64, "video": 16}, enable_prefix_caching=True, enable_sleep_mode=self.sleeps and not on_cpu,
            **({"enable_lora": True, "max_lora_rank": _allowed(rank)} if rank else {}), **more,
        )  # fmt: skip
        atexit.register(
            _end, weakref.ref(self._llm.llm_engine.engine_core)
        )  # before the processes part, which it asks for
        torch.set_num_threads(threads)
        self._inputs = EngineInputs(network.model.config)

    def _hand_over(self, network: Network) -> None:
        """The weights in place, if they are not those that the engine has; what it keeps of prompts was computed with these."""
        source = network.in_place
        if self._given == source.which:
            return
        if not self._base_given or not source.rank:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": source.base()})
            self._base_given = True
        if source.rank:
            from vllm.lora.request import LoRARequest

            self._asked += 1  # a known number would serve what the engine has under it
            self._folder = TemporaryDirectory(prefix="grpo_mm_adapter_")
            source.write_adapter(Path(self._folder.name))
            self._adapter = LoRARequest(f"adapter {self._asked}", self._asked, self._folder.name)
        self._llm.reset_prefix_cache()
        self._llm.llm_engine.reset_encoder_cache()
        self._given = source.which

    def _run(self, network: Network, requests: Sequence[Request], draw: Draw) -> list[Any]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        forbidden = torch.nonzero(network.distribution.forbidden_V).flatten().tolist()
        engine, outputs = self._llm.llm_engine, {}
        try:
            for row, request in enumerate(requests):
                drawn = request.stream is not None
                settings = SamplingParams(
                    temperature=draw.temperature if drawn else 0.0, seed=_seed(request.stream) if drawn else None, top_p=1.0,
                    max_tokens=draw.max_new_tokens, logprobs=0, stop_token_ids=sorted(draw.stop), ignore_eos=True,
                    logit_bias=dict.fromkeys(forbidden, NEVER), detokenize=False, skip_special_tokens=False,
                    output_kind=RequestOutputKind.FINAL_ONLY,
                )  # fmt: skip
                engine.add_request(str(row), self._inputs(request.context), settings, lora_request=self._adapter)
            while engine.has_unfinished_requests():
                for output in engine.step():
                    if output.finished:
                        outputs[int(output.request_id.split("-")[0])] = output
                report("texts", len(outputs), len(requests))
        except BaseException:
            self._llm = None  # it holds on to what was left behind; the next call begins anew
            self._given, self._base_given = None, False
            raise
        return [outputs[row] for row in range(len(requests))]

    def _wake(self) -> None:
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False

    def _sleep(self, network: Network) -> None:
        """Weights and keys go; the weights come back from the trainer, which has others by then."""
        if self.sleeps and network.device.type == "cuda":
            self._llm.sleep(level=1)
            self._asleep = True


def _end(engine: weakref.ref[Any]) -> None:
    if engine() is not None:
        engine().shutdown()


def _seed(stream: torch.Generator) -> int:
    return int(torch.randint(2**31, (), generator=stream))


def _allowed(rank: int) -> int:
    """The least rank of an adapter, of those that the engine has kernels for, that holds this one."""
    return next((allowed for allowed in (8, 16, 32, 64, 128, 256, 320, 512) if allowed >= rank), rank)


def _none(draw: Draw) -> Generated:
    empty = torch.zeros(0, draw.max_new_tokens)
    return Generated(empty.long(), torch.zeros(0, dtype=torch.int64), empty)


def _read(outputs: Sequence[Any], draw: Draw, weights: tuple[int, str] | None) -> Generated:
    shape = (len(outputs), draw.max_new_tokens)
    token_NA, logprob_NA = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.float32)
    length_N = torch.zeros(shape[0], dtype=torch.int64)
    for row, output in enumerate(outputs):
        answer = output.outputs[0]
        ids = list(answer.token_ids)
        length_N[row], token_NA[row, : len(ids)] = len(ids), torch.tensor(ids)
        logprob_NA[row, : len(ids)] = torch.tensor([at[token].logprob for token, at in zip(ids, answer.logprobs)])
    prompts = tuple(torch.tensor(output.prompt_token_ids) for output in outputs)
    return Generated(token_NA, length_N, logprob_NA, prompt_ids=prompts, weights=weights)
