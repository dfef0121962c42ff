"""Starting vLLM as a server, in any process: an ordinary function that returns once the server answers, or says why it does not.

    with start(Launch(model="Qwen/Qwen2.5-VL-7B-Instruct", host="0.0.0.0", devices="0,1", tensor_parallel=2), log=Path("engine.log")) as server:
        print(server.url)        # http://HOST:PORT, for `engine.generator: {kind: vllm_server, urls: […]}`

A launcher that keeps engines on other machines calls it in a process of its own there (an actor's `__init__`), keeps the handle, and hands the
address on. The server ends with `stop()`, and with the process that called `start`, however that ends: a killed actor leaves none behind.
Started anew, it has the checkpoint's weights: whoever draws from it notices that by its version and gives it the present ones.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from grpo_mm.errors import ConfigError, UserError
from grpo_mm.outside import plain, shown
from grpo_mm.pipelines.vlm.engine_server import keeper
from grpo_mm.pipelines.vlm.engine_server.wire import DOOR
from grpo_mm.pipelines.vlm.sampling.vllm_settings import ON_CPU, QUIET, allowed_rank

TOKEN = "GRPO_MM_TOKEN"
"""The environment variable that holds the secret of a server and of those who ask it."""
LAST_LINES = 12
LOOK_SECONDS = 0.25
STOP_SECONDS = keeper.GRACE_SECONDS + 10.0


@dataclass(frozen=True)
class Launch:
    """What a vLLM server of one policy is started with. Raises ConfigError for values that it cannot have."""

    model: str
    """Folder or hub name of the checkpoint: `policy.path`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """What it computes in: as the policy (`policy.dtype`), or the comparison before the run stops it."""
    host: str = "127.0.0.1"
    """The address that is listened on. Others than this machine's own need a token."""
    port: int = 0
    """0: one that is free."""
    longest: int = 32_768
    """Tokens of prompt and answer for which there is room."""
    at_once: int = 256
    """Answers drawn at once."""
    adapter_rank: int = 0
    """The largest rank of an adapter; 0: the model itself is trained."""
    tensor_parallel: int = 1
    """GPUs that the model is cut over."""
    memory_share: float = 0.9
    """Of each GPU's memory."""
    eager: bool = False
    """Without CUDA graphs: starts sooner, draws more slowly."""
    devices: str | None = None
    """GPUs that it may see, as CUDA_VISIBLE_DEVICES; None: those that the caller sees."""
    on_cpu: bool = False
    cpu_cache_gib: int = 1
    """For keys and values on a CPU."""
    more: tuple[str, ...] = ()
    """Further arguments of vLLM's, as on its command line."""

    def __post_init__(self) -> None:
        wrong = [
            f"{name} = {getattr(self, name)}"
            for name in ("longest", "at_once", "tensor_parallel", "cpu_cache_gib")
            if getattr(self, name) < 1
        ]
        wrong += [f"memory_share = {self.memory_share}"] * (not 0 < self.memory_share <= 1)
        wrong += [f"port = {self.port}"] * (not 0 <= self.port < 65536)
        wrong += [f"adapter_rank = {self.adapter_rank}"] * (self.adapter_rank < 0)
        if wrong:
            raise ConfigError(f"a vLLM server cannot be started with {', '.join(wrong)}.")
        if self.on_cpu and self.tensor_parallel > 1:
            raise ConfigError(f"tensor_parallel = {self.tensor_parallel}: a CPU holds the whole model; use 1.")

    def command(self, port: int) -> list[str]:
        """What is run; the same flags serve a server that you start by hand."""
        flags: dict[str, Any] = {
            "model": self.model, "middleware": DOOR, "host": self.host, "port": port, "dtype": self.dtype, "seed": 0,
            "logprobs-mode": "processed_logprobs", "no-mm-device-do-normalize": True, "max-model-len": self.longest,
            "max-num-seqs": self.at_once, "enable-prefix-caching": True, "mm-processor-cache-gb": 0, "limit-mm-per-prompt": '{"image": 64, "video": 16}',
            "enforce-eager": self.eager or self.on_cpu, "enable-lora": self.adapter_rank > 0, "uvicorn-log-level": "warning",
            "tensor-parallel-size": self.tensor_parallel,
        }  # fmt: skip
        if self.adapter_rank:
            flags["max-lora-rank"] = allowed_rank(self.adapter_rank)
        flags |= {"block-size": 32} if self.on_cpu else {"gpu-memory-utilization": self.memory_share}
        words = [
            [f"--{name}"] if value is True else [f"--{name}", str(value)]
            for name, value in flags.items()
            if value is not False
        ]
        return [sys.executable, *_program(), *sum(words, []), *self.more]

    def environment(self, token: str | None) -> dict[str, str]:
        """Of the server, beside what the caller has."""
        found = dict(QUIET) | ({TOKEN: token} if token else {})
        if self.on_cpu:
            found |= ON_CPU | {"VLLM_CPU_KVCACHE_SPACE": str(self.cpu_cache_gib)}
        if self.devices is not None:
            found["CUDA_VISIBLE_DEVICES"] = self.devices
        return found


@dataclass(eq=False)
class Started:
    """A server that answers. As a context it is stopped at the end."""

    url: str
    log: Path
    """What it writes."""
    process: subprocess.Popen = field(repr=False)
    """Of the keeper, which ends the server with this process."""

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        """Ends it, within 20 seconds, with everything that it has started."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()  # the command dies with its keeper
            self.process.wait()

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start(launch: Launch, *, log: Path, token: str | None = None, seconds: float = 900.0) -> Started:
    """Returns once the server has loaded the model and answers.

    Args:
        log: the file that the server writes to; it is begun anew, and others of this machine cannot read it.
        token: what those who ask have to send; None: only this machine is served.
        seconds: for the whole start.

    Raises:
        ConfigError: no vLLM here, or others could ask without a token.
        UserError: it ended, or was not there in time; with the end of the log. Nothing is left running.
    """
    if find_spec("vllm") is None:
        raise ConfigError("a vLLM server needs vLLM, which is not installed here: pip install 'grpo_mm[vllm]'.")
    if token is None and launch.host not in ("127.0.0.1", "localhost", "::1"):
        raise ConfigError(
            f"a server at host {shown(launch.host)} can be asked by others, and there is no token: set {TOKEN}, or use 127.0.0.1."
        )
    port = launch.port or _free_port(launch.host)
    command = [sys.executable, keeper.__file__, *launch.command(port)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(f"{shlex.join(command[2:])}\n".encode())
        file.flush()
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            env=os.environ | launch.environment(token),
        )  # fmt: skip
    server = Started(f"http://{_reached_at(launch.host)}:{port}", log, process)
    until = time.monotonic() + seconds
    try:
        while not _answers(f"http://{_here(launch.host)}:{port}/health"):
            if not server.is_alive:
                raise UserError(f"the vLLM server ended before it answered; the end of its log, {log}:\n{_end_of(log)}")
            if time.monotonic() > until:
                raise UserError(
                    f"the vLLM server did not answer within {seconds:g} seconds; the end of its log, {log}:\n{_end_of(log)}"
                )
            time.sleep(LOOK_SECONDS)
    except BaseException:
        server.stop()
        raise
    return server


def _program() -> list[str]:
    """`vllm serve`, which looks for a package of just this name: its build for CPUs has another."""
    try:
        version("vllm")
    except PackageNotFoundError:
        return ["-m", "vllm.entrypoints.openai.api_server"]
    return ["-m", "vllm.entrypoints.cli.main", "serve"]


def _answers(url: str) -> bool:
    own = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with own.open(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _end_of(log: Path) -> str:
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        text = file.read().decode("utf-8", "replace")
    return plain("\n".join(text.splitlines()[-LAST_LINES:]), 4000)


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family)) as found:
        found.bind((host, 0))
        return found.getsockname()[1]


def _here(host: str) -> str:
    """How this machine itself reaches what listens on a host."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)


def _reached_at(host: str) -> str:
    return socket.gethostname() if host in ("0.0.0.0", "::") else _here(host)
