"""Drawing answers with vLLM servers: processes of their own, on this machine or others, that are asked over HTTP."""

from __future__ import annotations

import atexit
import logging
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.identity import FREE
from grpo_mm.outside import shown
from grpo_mm.pipelines.vlm.engine_server.asking import Server, check_url
from grpo_mm.pipelines.vlm.engine_server.fleet import Fleet, Unit, Weights
from grpo_mm.pipelines.vlm.engine_server.settings_fit import check_fit
from grpo_mm.pipelines.vlm.engine_server.starting import Launch, Started, start
from grpo_mm.pipelines.vlm.engine_server.weights_to_bring import KeptWeights, files_of, written
from grpo_mm.pipelines.vlm.engine_server.wire import Asked
from grpo_mm.pipelines.vlm.forwards.network import Network
from grpo_mm.pipelines.vlm.prompting.contexts import Context
from grpo_mm.pipelines.vlm.sampling.generation import Draw, Generated, Request
from grpo_mm.pipelines.vlm.sampling.vllm_inputs import EngineInputs
from grpo_mm.pipelines.vlm.sampling.vllm_settings import count_drawn, generated, seed_of, settings_of
from grpo_mm.processes.agreed import agreed, of_the_first
from grpo_mm.processes.clock import count, phase
from grpo_mm.processes.progress import report
from grpo_mm.processes.token import token_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Starts:
    """A server that the run starts itself, as a process beside it, and ends with it."""

    devices: str | None = field(default=None, metadata=FREE)
    """GPUs that it may see, such as "6,7": others than those that train. null: all, which is right on a CPU alone."""
    tensor_parallel: int = field(default=1, metadata=FREE)
    """GPUs that the model is cut over."""
    memory_share: float = field(default=0.9, metadata=FREE)
    """Of each GPU's memory."""
    longest: int | None = field(default=None, metadata=FREE)
    """Tokens of prompt and answer for which there is room; null: the checkpoint's positions, 32,768 at most."""
    at_once: int = field(default=256, metadata=FREE)
    """Answers drawn at once."""
    eager: bool = field(default=False, metadata=FREE)
    """Without CUDA graphs: starts sooner, draws more slowly."""
    cpu_cache_gib: int = field(default=1, metadata=FREE)
    """For keys and values on a CPU."""
    log: str | None = field(default=None, metadata=FREE)
    """The file that it writes to; null: one in the folder for temporary files, which is said."""
    seconds: float = field(default=900.0, metadata=FREE)
    """For the start."""

    def launch(self, network: Network) -> Launch:
        text = network.model.config.get_text_config()
        return Launch(
            model=network.path, dtype=str(network.precision).removeprefix("torch."), devices=self.devices,
            longest=self.longest or min(text.max_position_embeddings, 32_768), at_once=self.at_once, adapter_rank=network.in_place.rank,
            tensor_parallel=self.tensor_parallel, memory_share=self.memory_share, eager=self.eager,
            on_cpu=network.device.type == "cpu", cpu_cache_gib=self.cpu_cache_gib,
        )  # fmt: skip


@dataclass(eq=False)
class VllmServer:
    """vLLM as a server of its own, or several with the same weights. It is handed what the policy's own processor made, and the weights
    that are in place whenever it has others: whole, or an adapter as an adapter. Nobody draws while they change, every answer says which
    weights drew it, and one of other weights is asked again: a server that died and came back is noticed and given the weights anew.

    Servers are compared with the trainer before a run begins, as any engine. They are started with this package's door
    (docs/engines.md), or by the run itself (`start`).
    """

    urls: tuple[str, ...] = field(default=(), metadata=FREE)
    """Addresses such as http://node7:8100. Rows go to whichever is free."""
    start: Starts | None = field(default=None, metadata=FREE)
    """One more, started by the run; null: none."""
    token_env: str | None = field(default=None, metadata=FREE)
    """The environment variable that holds the servers' token, so that no config does."""
    weights_folder: str | None = field(default=None, metadata=FREE)
    """A folder that run and servers both see under this name, through which weights go; null: they are sent."""
    requests_at_once: int = field(default=32, metadata=FREE)
    """Requests under way at once, from this process to each server."""
    rows_per_request: int = field(default=16, metadata=FREE)
    """Answers to one prompt that are asked together; its pixels are sent once for them."""
    timeout_seconds: float = field(default=900.0, metadata=FREE)
    """For all answers of a call, waiting for servers that are away included; and before, for the weights."""
    retries: int = field(default=3, metadata=FREE)
    """Further tries of answers after a failure; waiting for a server that is away counts none."""

    draws_apart = True
    """It may draw while the policy is trained, with weights that were handed over before."""
    is_the_trainers = False
    """Another program computes what is drawn: it is examined before a run begins."""
    tells_top_p = False
    """Its log-probabilities are those within top_p."""

    def __post_init__(self) -> None:
        self._fleet: Fleet | None = None
        self._started: Started | None = None
        self._kept: KeptWeights | None = None
        self._revivals = 0

    def check(self) -> None:
        if not self.urls and self.start is None:
            raise ConfigError(
                "engine.generator.kind = vllm_server: name the servers in urls, or start one: start: {}; `grpo-mm launch` starts those of "
                "launch.engines."
            )
        for url in self.urls:
            check_url(url)
        if len(set(self.urls)) < len(self.urls):
            raise ConfigError("engine.generator.urls: an address stands twice.")
        for name, least in (("requests_at_once", 1), ("rows_per_request", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"engine.generator.{name} = {getattr(self, name)}; wanted {least} or more.")
        if self.weights_folder is not None and not Path(self.weights_folder).is_dir():
            raise ConfigError(f"engine.generator.weights_folder: there is no folder {shown(self.weights_folder)} here.")
        if not self.timeout_seconds > 0:
            raise ConfigError(f"engine.generator.timeout_seconds = {self.timeout_seconds}; wanted above 0.")
        if self.start is not None and find_spec("vllm") is None:
            raise ConfigError(
                "engine.generator.start needs vLLM, which is not installed: pip install 'grpo_mm[vllm]'; or name servers elsewhere in urls."
            )
        self._token()

    def describe(self) -> list[str]:
        """What `show` says of it."""
        own = (
            "" if self.start is None else f"one that the run starts (GPUs: {self.start.devices or 'all that it sees'})"
        )
        return [
            f"vLLM servers draw: {', '.join([*self.urls, *([own] if own else [])])}; the bytes above leave them out"
        ]

    @torch.no_grad()
    def hand_over(self, network: Network) -> None:
        """Gives the weights in place to the servers, for a `generate` that is called beside their training. A copy is kept on this machine's
        disk until the next, for a server that dies meanwhile. Raises as `generate`."""
        if self._fleet is None:
            self._open(network)
        with phase("weight_sync"):
            self._kept = KeptWeights(network, before=self._kept)
            self._fleet.prepare(self._weights(network))

    @torch.no_grad()
    def generate(self, network: Network, requests: Sequence[Request], draw: Draw) -> Generated:
        """As `Generator`.

        Raises:
            ConfigError: a server cannot serve this model.
            TrainingStopped: none answers in time, or one does not do what it is asked.
        """
        if not requests:
            return generated([], draw, prompt_ids=(), weights=None)
        network.family.refuse("engine.generator.kind = vllm", instead="Use engine.generator.kind=hf.")
        if self._fleet is None:
            self._open(network)
        which, weights = network.in_place.which, self._weights(network)
        with phase("weight_sync"):
            self._fleet.prepare(weights)
        units = list(self._units(network, requests, draw, weights.version))

        def told(done: int, fresh: Sequence[Unit]) -> None:
            if draw.finished is not None:
                for unit in fresh:
                    for row, answer in zip(unit.rows, unit.answered.rows, strict=True):
                        draw.finished(row, torch.tensor(answer.ids))
            report("texts", done, len(requests))

        with phase("rollout_network"):
            self._fleet.draw(units, weights, told)
        rows: dict[int, Any] = {}
        prompts: dict[int, Tensor] = {}
        for unit in units:
            ids = torch.tensor(unit.answered.prompt_ids)
            rows |= dict(zip(unit.rows, unit.answered.rows, strict=True))
            prompts |= dict.fromkeys(unit.rows, ids)
            count("engine_queued_ms", round(1000 * sum(unit.answered.queued_seconds)))
        order = range(len(requests))
        count_drawn([rows[i] for i in order], [len(prompts[i]) for i in order])
        return generated([rows[i] for i in order], draw, prompt_ids=[prompts[i] for i in order], weights=which)

    def _open(self, network: Network) -> None:
        token, urls = self._token(), list(self.urls)
        self._run = agreed("engine_server/run", uuid.uuid4().hex)
        if self.start is not None:
            urls.append(self._own(network, token))
        servers = [Server(url, token, connections=self.requests_at_once) for url in urls]
        self._inputs = EngineInputs(network.model.config)
        self._fleet = Fleet(
            servers, check=lambda url, state: check_fit(url, state, network), revive=self._revive, at_once=self.requests_at_once,
            retries=self.retries, seconds=self.timeout_seconds,
        )  # fmt: skip

    def _token(self) -> str | None:
        return None if self.token_env is None else token_of(self.token_env, must=True)

    def _own(self, network: Network, token: str | None) -> str:
        """The address of the server that the first process that comes here starts, for all."""
        launch = self.start.launch(network)

        def started() -> str:
            log_file = self.start.log or os.path.join(tempfile.mkdtemp(prefix="grpo_mm_engine_"), "engine.log")
            log.info("a vLLM server is started; its log: %s", log_file)
            self._started = start(launch, log=Path(log_file), token=token, seconds=self.start.seconds)
            self._launch, self._secret = replace(launch, port=int(self._started.url.rpartition(":")[2])), token
            atexit.register(self._started.stop)
            return self._started.url

        return of_the_first("engine_server/started", started, seconds=self.start.seconds + 60)

    def _revive(self, url: str) -> None:
        """Starts our own server again, where it has ended."""
        if (
            self._started is None
            or self._started.url != url
            or self._started.is_alive
            or self._revivals >= self.retries
        ):
            return
        self._revivals += 1
        log.warning("the vLLM server has ended and is started again; the log of the new one: %s", self._started.log)
        self._started = start(self._launch, log=self._started.log, token=self._secret, seconds=self.start.seconds)
        atexit.register(self._started.stop)

    def _version(self, which: tuple[int, str]) -> str:
        """Names weights for servers: of this run alone, or another's would be taken for ours."""
        return f"{self._run}/{which[0]}/{which[1]}"

    def _weights(self, network: Network) -> Weights:
        which = network.in_place.which
        return Weights(self._version(which), lambda *args: self._bring(network, which, *args))

    def _bring(
        self, network: Network, which: tuple[int, str], server: Server, state: Mapping[str, Any], until: float
    ) -> None:
        source = network.in_place
        # Under an adapter the model stays, as long as a server says that it has had it from this run.
        base = not source.rank or not str(state["version"]).startswith(f"{self._run}/")
        with ExitStack() as stack:
            kept = self._kept is not None and self._kept.which == which
            folder, files = None, self._kept.files(base=base) if kept else files_of(network, which, base=base)
            if self.weights_folder is not None:
                where = os.path.abspath(self.weights_folder)  # a server may have another working folder
                folder = stack.enter_context(TemporaryDirectory(prefix="grpo_mm_", dir=where))
                files = written(files, Path(folder))
            brought = server.bring(
                self._version(which), files, base=base, adapter=source.rank > 0, folder=folder, until=until,
                under=None if base else f"{self._run}/",
            )  # fmt: skip
        count("engine_weights_brought", int(brought))

    def _units(self, network: Network, requests: Sequence[Request], draw: Draw, version: str) -> Iterator[Unit]:
        """Answers to one prompt, as many together as shall be."""
        settings = settings_of(draw, network.distribution.forbidden_V)
        rows_of: dict[Context, list[int]] = {}
        for row, request in enumerate(requests):
            rows_of.setdefault(request.context, []).append(row)
        seeds = [seed_of(request) for request in requests]
        for context, rows in rows_of.items():
            for start_ in range(0, len(rows), self.rows_per_request):
                some = rows[start_ : start_ + self.rows_per_request]
                yield Unit(
                    Asked(version, settings, draw.temperature, [seeds[i] for i in some], self._inputs(context)), some
                )
