"""An engine server without vLLM: the door, and behind it the own sampler with a second copy of a tiny policy."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny_vlm import policy

from grpo_mm.pipelines.vlm.engine_server.door import Door
from grpo_mm.pipelines.vlm.engine_server.served_engine import facts_of
from grpo_mm.pipelines.vlm.engine_server.served_weights import Declined, ServedWeights
from grpo_mm.pipelines.vlm.engine_server.wire import Answered, Asked
from grpo_mm.pipelines.vlm.prompting.contexts import Context
from grpo_mm.pipelines.vlm.sampling.generation import Draw, HfGenerator, Request
from grpo_mm.pipelines.vlm.sampling.vllm_settings import Drawn
from grpo_mm.tools.serving.serve import server_of

SETTINGS = {
    "dtype": "float32", "logprobs_mode": "processed_logprobs", "max_model_len": 1024, "max_lora_rank": 0,
    "mm_device_do_normalize": False, "tensor_parallel_size": 1, "api_server_count": 1,
}  # fmt: skip


class StandIn:
    """What `ServedEngine` is, for prompts that it is shown beforehand."""

    def __init__(self, contexts: Sequence[Context], *, family: str = "qwen2_5_vl", **faults: Any) -> None:
        """faults: settings, facts (what it says of itself otherwise); notes (a version that it notes of what it draws, so many times);
        seconds (before each answer); pixels (a factor that it puts on them); takes (so many changes of weights; of later
        ones it only says that they are in place)."""
        self.policy, self.contexts = policy(family), {tuple(c.input_ids_L.tolist()): c for c in contexts}
        self.faults, self.weights, self.boot = faults, ServedWeights(), uuid.uuid4().hex
        self.noted, self.changes, self.drawn = "default", 0, 0
        self._turn = asyncio.Lock()

    def about(self) -> dict[str, Any]:
        config = self.policy.model.config
        facts = facts_of(config.model_type, config.get_text_config(), config.vision_config) | self.faults.get(
            "facts", {}
        )
        return {
            "engine": "stand-in", "boot": self.boot, "version": self.weights.version, "model": "here", "facts": facts, "drawing": 0,
            "settings": SETTINGS | self.faults.get("settings", {}),
        }  # fmt: skip

    async def draw(self, asked: Asked) -> Answered:
        context = self.contexts.get(tuple(asked.prompt.ids))
        if context is None:
            raise Declined(422, "a prompt that nobody has shown")
        async with self.weights.drawing(asked.version):
            await asyncio.sleep(self.faults.get("seconds", 0))
            async with self._turn:
                return await asyncio.to_thread(self._draw, asked, context)

    def _draw(self, asked: Asked, context: Context) -> Answered:
        for name, value in asked.prompt.tensors.items():
            assert torch.equal(torch.as_tensor(context.inputs[name]).to(value.dtype), value), name
        if "pixels" in self.faults:
            context = _with(context, self.faults["pixels"])
        draw = Draw(asked.settings["max_tokens"], frozenset(asked.settings["stop_token_ids"]), asked.temperature)
        streams = [None if seed is None else torch.Generator().manual_seed(seed) for seed in asked.seeds]
        made = HfGenerator().generate(self.policy.network, [Request(context, stream) for stream in streams], draw)
        self.drawn += len(streams)
        rows = [
            Drawn(ids[:length].tolist(), logprobs[:length].tolist())
            for ids, logprobs, length in zip(made.token_NA, made.logprob_NA, made.length_N.tolist())
        ]
        return Answered(rows, [[self._note()] for _ in rows], list(asked.prompt.ids), [0.0] * len(rows))

    def _note(self) -> str:
        wrong, times = self.faults.get("notes", ("", 0))
        if times > 0:
            self.faults["notes"] = (wrong, times - 1)
            return wrong
        return self.noted

    async def change(self, folder: Path, version: str, *, base: bool, adapter: bool) -> None:
        if base and self.changes < self.faults.get("takes", 10**6):
            own = self.policy.model.state_dict()
            with torch.no_grad():
                for path in folder.glob("base-*.safetensors"):
                    for name, value in load_file(path).items():
                        own[name].copy_(value)
        self.policy.snapshots.changed()
        self.noted, self.changes = version, self.changes + 1


class ServedStandIn:
    """At `url` until `close`; `restart` makes it as it was when it started, at the same port."""

    def __init__(self, contexts: Sequence[Context], **faults: Any) -> None:
        self.contexts, self.port = contexts, 0
        self.engine = StandIn(contexts, **faults)
        self.open()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        self.door = Door(_vllms_own)
        self.door._engine = self.engine
        self.socket = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self.port = self.socket.getsockname()[1]
        self.server = server_of(self.door)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.thread.start()
        until = time.monotonic() + 20
        while not self.server.started and time.monotonic() < until:
            time.sleep(0.005)
        assert self.server.started

    def close(self) -> None:
        """Connections are cut, as when the process is killed."""
        self.server.should_exit = self.server.force_exit = True
        for connection in list(self.server.server_state.connections):
            connection.loop.call_soon_threadsafe(connection.transport.abort)
        self.thread.join(20)
        self.socket.close()
        assert not self.thread.is_alive()

    def restart(self, **faults: Any) -> None:
        self.close()
        self.engine = StandIn(self.contexts, **faults)
        self.open()


def _with(context: Context, factor: float) -> Context:
    from dataclasses import replace

    inputs: Mapping[str, Any] = {
        name: value * factor if name.startswith("pixel") else value for name, value in context.inputs.items()
    }
    return replace(context, inputs=inputs)


async def _vllms_own(scope: Any, receive: Any, send: Any) -> None:
    """Answers every path of vLLM's own."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b'{"of": "vllm"}'})
