"""The vLLM server of a config's policy, started with the flags that its runs need, until it is interrupted."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from grpo_mm.config.run_config import read
from grpo_mm.errors import ConfigError, UserError
from grpo_mm.outside import shown
from grpo_mm.pipelines.vlm.engine_server.starting import TOKEN, Launch, start
from grpo_mm.pipelines.vlm.models.families import resolve
from grpo_mm.processes.token import token_of

LOOK_SECONDS = 0.5


def serve_engine(
    config: str | Path,
    overrides: Sequence[str] = (),
    *,
    host: str,
    port: int,
    token_env: str | None,
    log: Path | None,
    trust: bool = False,
    told: Callable[[str], None] = print,
) -> None:
    """Starts it and waits; `told` gets its address. GPUs: all that this process sees (CUDA_VISIBLE_DEVICES), the model cut over them.

    Args:
        log: None: a new file below the folder for temporary files, which is told.

    Raises:
        ConfigError: the policy draws no texts; others could ask without a token.
        UserError: the server does not come up, or ends.
    """
    launch = launch_of(config, overrides, host=host, port=port, trust=trust)
    if log is None:
        file, name = tempfile.mkstemp(
            prefix="grpo_mm_engine_", suffix=".log"
        )  # nobody else's to read, or to have put there
        os.close(file)
        log = Path(name)
    token = token_of(TOKEN if token_env is None else token_env, must=token_env is not None)
    told(f"a vLLM server is started; its log: {log}")
    with start(launch, log=log, token=token) as server:
        told(f"{server.url} draws for runs with engine.generator={{kind: vllm_server, urls: [{server.url}]}}")
        while server.is_alive:
            time.sleep(LOOK_SECONDS)
    raise UserError(f"the vLLM server has ended; its log: {log}")


def launch_of(config: str | Path, overrides: Sequence[str], *, host: str, port: int, trust: bool = False) -> Launch:
    """What the server of a config is started with."""
    run = read(config, overrides, trust=trust)
    policy = run.policy
    if not hasattr(policy, "video_positions"):
        raise ConfigError(
            f"{config}: its policy is {shown(type(policy).__name__, 40)}, and only policies that write texts have an engine server."
        )
    model, generator = resolve(policy.path), run.engine.generator
    room = getattr(generator, "longest", None) or getattr(getattr(generator, "start", None), "longest", None)
    if room is None:
        from transformers import AutoConfig

        room = min(AutoConfig.from_pretrained(model).get_text_config().max_position_embeddings, Launch.longest)
    gpus = torch.cuda.device_count()
    on_cpu = run.device == "cpu" or gpus == 0
    return Launch(
        model=model, dtype=policy.dtype, host=host, port=port, adapter_rank=0 if policy.lora is None else policy.lora.rank,
        tensor_parallel=1 if on_cpu else gpus, on_cpu=on_cpu, longest=room,
    )  # fmt: skip
