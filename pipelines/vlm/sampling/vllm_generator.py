"""Drawing answers with vLLM in the trainer's own process, one engine a rank."""

from __future__ import annotations

import atexit
import importlib.util
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from grpo_mm.errors import ConfigError
from grpo_mm.identity import FREE, NOTED
from grpo_mm.pipelines.vlm.forwards.network import Network
from grpo_mm.pipelines.vlm.sampling.generation import Draw, Generated, Request
from grpo_mm.pipelines.vlm.sampling.vllm_inputs import EngineInputs
from grpo_mm.pipelines.vlm.sampling.vllm_settings import (
    ON_CPU,
    QUIET,
    allowed_rank,
    count_drawn,
    drawn_of,
    generated,
    params_of,
    seed_of,
    settings_of,
)
from grpo_mm.pipelines.vlm.sampling.weight_files import write_base
from grpo_mm.processes.clock import phase
from grpo_mm.processes.own_folder import OwnFolder
from grpo_mm.processes.progress import report

INSIDE = QUIET | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


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
    dtype: Literal["float32", "bfloat16", "float16"] | None = field(default=None, metadata=NOTED)
    """What the engine computes in; null: what the policy does. Another one is a difference that the comparison before the run tells."""
    tensor_parallel: int = field(default=1, metadata=FREE)
    """GPUs that the engine is cut over, for a run of one process. Runs of several ask servers ({kind: vllm_server})."""
    sleeps: bool = field(default=True, metadata=FREE)
    """On a GPU the engine gives its memory back between rollouts."""
    sleep_level: Literal[1, 2] = field(default=1, metadata=FREE)
    """1: its weights wait in the machine's memory. 2: they are dropped, and handed over again before each rollout, the base under an
    adapter too."""

    is_the_trainers = False
    """Another program computes what is drawn: it is examined before a run begins."""
    tells_top_p = False
    """Its log-probabilities are those within top_p."""

    def __post_init__(self) -> None:
        self._llm: Any = None
        self._given: tuple[int, str] | None = None
        self._base_given, self._adapter, self._asked = False, None, 0
        self._asleep: list[str] = []

    def check(self) -> None:
        if self.tensor_parallel < 1:
            raise ConfigError(f"engine.generator.tensor_parallel = {self.tensor_parallel}; wanted 1 or more.")
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if self.tensor_parallel > 1 and world > 1:
            raise ConfigError(
                f"engine.generator.tensor_parallel = {self.tensor_parallel} in a run of {world} processes: each has rows of its own and "
                "would need GPUs of its own. Start a server that is cut over GPUs, and ask it: engine.generator.kind = vllm_server."
            )
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

    @property
    def draws_apart(self) -> bool:
        """Whether it may draw while the policy is trained: on a GPU it has to keep its memory meanwhile."""
        return not (self.sleeps and torch.cuda.is_available())

    def hand_over(self, network: Network) -> None:
        """Takes the weights in place, for a `generate` that is called beside their training."""
        if self._llm is None:
            self._start(network)
        with phase("weight_sync"):
            self._wake("weights")
            self._hand_over(network)
            self._wake("kv_cache")

    @torch.no_grad()
    def generate(self, network: Network, requests: Sequence[Request], draw: Draw) -> Generated:
        """As `Generator`. Raises ConfigError where the engine cannot serve this model."""
        if not requests:
            return generated([], draw, prompt_ids=(), weights=None)
        network.family.refuse("engine.generator.kind = vllm", instead="Use engine.generator.kind=hf.")
        if self._llm is None:
            self._start(network)
        with phase("weight_sync"):
            self._wake("weights")
            self._hand_over(network)
            self._wake("kv_cache")
        with phase("rollout_network"):
            outputs = self._run(network, requests, draw)
        drew = self._given
        self._sleep(network)
        prompts = [torch.tensor(output.prompt_token_ids) for output in outputs]
        rows = [drawn_of(output) for output in outputs]
        count_drawn(rows, [len(prompt) for prompt in prompts])
        return generated(rows, draw, prompt_ids=prompts, weights=drew)

    def _start(self, network: Network) -> None:
        on_cpu = network.device.type == "cpu"
        if on_cpu and self.tensor_parallel > 1:
            raise ConfigError(
                f"engine.generator.tensor_parallel = {self.tensor_parallel} needs as many GPUs, and this run is on a CPU: use 1."
            )
        settings = INSIDE | (ON_CPU | {"VLLM_CPU_KVCACHE_SPACE": str(self.cpu_cache_gib)} if on_cpu else {})
        for name, value in settings.items():
            os.environ.setdefault(name, value)
        from vllm import LLM

        threads = torch.get_num_threads()
        self._llm = LLM(**self.arguments(network))
        atexit.register(
            _end, weakref.ref(self._llm.llm_engine.engine_core)
        )  # before the processes part, which it asks for
        torch.set_num_threads(threads)
        self._inputs = EngineInputs(network.model.config)

    def arguments(self, network: Network) -> dict[str, Any]:
        """What vLLM's `LLM` is made with."""
        on_cpu, rank = network.device.type == "cpu", network.in_place.rank
        text = network.model.config.get_text_config()
        more = (
            {"block_size": 32, "disable_custom_all_reduce": True}
            if on_cpu
            else {"gpu_memory_utilization": self.memory_share, "tensor_parallel_size": self.tensor_parallel}
        )
        return dict(
            model=network.path, dtype=self.dtype or str(network.precision).removeprefix("torch."), seed=0,
            max_model_len=self.longest or min(text.max_position_embeddings, 32_768), max_num_seqs=self.at_once,
            enforce_eager=self.eager or on_cpu, logprobs_mode="processed_logprobs", mm_device_do_normalize=False,
            limit_mm_per_prompt={"image": 64, "video": 16}, enable_prefix_caching=True, enable_sleep_mode=self.sleeps and not on_cpu,
            **({"enable_lora": True, "max_lora_rank": allowed_rank(rank)} if rank else {}), **more,
        )  # fmt: skip

    def _hand_over(self, network: Network) -> None:
        """The weights in place, if they are not those that the engine has; what it keeps of prompts was computed with these."""
        source = network.in_place
        if self._given == source.which:
            return
        if not self._base_given or not source.rank:
            self._reload(source)
            self._base_given = True
        if source.rank:
            from vllm.lora.request import LoRARequest

            self._asked += 1  # a known number would serve what the engine has under it
            self._folder = OwnFolder("adapter")
            source.write_adapter(self._folder.path)
            self._adapter = LoRARequest(f"adapter {self._asked}", self._asked, str(self._folder.path))
        self._llm.reset_prefix_cache()
        self._llm.llm_engine.reset_encoder_cache()
        self._given = source.which

    def _reload(self, source: Any) -> None:
        if self.tensor_parallel == 1:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": source.base()})
            return
        folder = OwnFolder("weights")  # workers are processes of their own
        try:
            write_base(source, folder.path)
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder.path)})
        finally:
            folder.close()

    def _run(self, network: Network, requests: Sequence[Request], draw: Draw) -> list[Any]:
        settings = settings_of(draw, network.distribution.forbidden_V)
        engine, outputs = self._llm.llm_engine, {}
        try:
            for row, request in enumerate(requests):
                params = params_of(settings, seed=seed_of(request), temperature=draw.temperature)
                engine.add_request(str(row), self._inputs(request.context).for_vllm, params, lora_request=self._adapter)
            while engine.has_unfinished_requests():
                for output in engine.step():
                    if output.finished:
                        outputs[row := int(output.request_id.split("-")[0])] = output
                        if draw.finished is not None:
                            draw.finished(row, torch.tensor(list(output.outputs[0].token_ids)))
                report("texts", len(outputs), len(requests))
        except BaseException:
            self._llm = None  # it holds on to what was left behind; the next call begins anew
            self._given, self._base_given, self._asleep = None, False, []
            raise
        return [outputs[row] for row in range(len(requests))]

    def _wake(self, part: str) -> None:
        """Weights first: keys and values have room once the old weights have gone."""
        if part in self._asleep:
            self._llm.wake_up(tags=[part])
            self._asleep.remove(part)

    def _sleep(self, network: Network) -> None:
        if self.sleeps and network.device.type == "cuda":
            self._llm.sleep(level=self.sleep_level)
            self._asleep = ["weights", "kv_cache"]
            if self.sleep_level == 2:
                self._given, self._base_given = None, False


def _end(engine: weakref.ref[Any]) -> None:
    if engine() is not None:
        engine().shutdown()
