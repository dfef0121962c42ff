"""What crosses between a run and an engine server: nothing is lost, and what is no request is refused by name, never with a crash."""

from __future__ import annotations

import json
import random

import httpx2
import pytest
import torch
from safetensors.torch import save
from stand_in_engine import ServedStandIn
from tiny_vlm import FAMILIES, PROMPTS, policy

from grpo_mm.errors import UserError
from grpo_mm.pipelines.vlm.engine_server.wire import (
    Asked,
    Unreadable,
    pack_answered,
    pack_asked,
    read_answered,
    read_asked,
)
from grpo_mm.pipelines.vlm.sampling.generation import Draw
from grpo_mm.pipelines.vlm.sampling.vllm_inputs import EngineInputs
from grpo_mm.pipelines.vlm.sampling.vllm_settings import settings_of
from grpo_mm.processes import agreed as module

MUTATIONS = 150


def asked_of(ours, prompt, version="v") -> Asked:
    inputs = EngineInputs(ours.model.config)
    settings = settings_of(Draw(4, ours.loaded.stop, 1.0), ours.network.distribution.forbidden_V)
    return Asked(version, settings, 0.9, [1, None, 2**31 - 1], inputs(ours.encode(prompt)))


@pytest.fixture(scope="module")
def ours():
    return policy("qwen2_5_vl")


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_of_a_prompt_is_lost(family):
    here = policy(family)
    for prompt in PROMPTS:
        asked = asked_of(here, prompt)
        found = read_asked(pack_asked(asked))
        assert (found.version, found.settings, found.temperature, found.seeds) == (
            "v",
            asked.settings,
            0.9,
            asked.seeds,
        )
        assert found.prompt.ids == asked.prompt.ids and found.prompt.items == asked.prompt.items
        assert set(found.prompt.tensors) == set(asked.prompt.tensors)
        for name, value in asked.prompt.tensors.items():
            assert torch.equal(value, found.prompt.tensors[name]) and value.dtype == found.prompt.tensors[name].dtype
    video = asked_of(here, PROMPTS[2]).prompt.items["video"][0].place
    assert (video.inside is not None) == (family == "qwen3_vl")  # times stand between its frames


def test_what_does_not_fit_together_is_refused(ours):
    good = asked_of(ours, PROMPTS[4])

    def changed(**values) -> bytes:
        body = pack_asked(good)
        size = int.from_bytes(body[:8], "little")
        head = json.loads(json.loads(body[8 : 8 + size])["__metadata__"]["asked"])
        tensors = {**good.prompt.tensors, **values.pop("tensors", {})}
        return save({k: v for k, v in tensors.items() if v is not None}, metadata={"asked": json.dumps(head | values)})

    assert read_asked(changed()).seeds == good.seeds
    pixels = good.prompt.tensors["pixel_values"]
    for values, words in (
        ({"ids": [-1, *good.prompt.ids[1:]]}, "a token"),
        ({"ids": good.prompt.ids[:3]}, "outside of the 3 tokens"),
        ({"seeds": []}, "seeds"),
        ({"seeds": ["1"]}, "seeds"),
        ({"settings": 3}, "settings"),
        ({"version": 3}, "no short text"),
        ({"tensors": {"pixel_values": pixels[:-1]}}, "do not fit"),
        ({"tensors": {"pixel_values": None}}, "pixels and grids"),
        ({"tensors": {"image_grid_thw": torch.tensor([[1, -2, 2]])}}, "from 1 on"),
        ({"tensors": {"more": pixels.clone()}}, "unknown media"),
        ({"tensors": {"second_per_grid_ts": torch.ones(5)}}, "one number for each video"),
    ):
        with pytest.raises(Unreadable, match=words):
            read_asked(changed(**values))
    with pytest.raises(Unreadable, match="2 answers|3 questions|cannot be read"):
        read_answered({"rows": [], "versions": [], "prompt_ids": [], "queued_seconds": []}, 3)


def test_hostile_requests_are_refused_and_the_server_goes_on(ours):
    context = ours.encode(PROMPTS[4])
    server = ServedStandIn([context])
    good, dice = pack_asked(asked_of(ours, PROMPTS[4], version="")), random.Random(0)
    try:
        with httpx2.Client(base_url=server.url, timeout=20) as client:
            assert client.post("/grpo_mm/draw", content=good).status_code == 200
            seen = {client.post("/grpo_mm/draw", content=_mutated(good, dice)).status_code for _ in range(MUTATIONS)}
            assert 422 in seen and seen <= {200, 409, 422}
            for method, path, body, status in (
                ("POST", "/grpo_mm/nothing", b"", 404),
                ("GET", "/grpo_mm/draw", b"", 404),
                ("POST", "/grpo_mm/weights/begin", b"[]", 422),
                ("POST", "/grpo_mm/weights/begin", b'{"version": 3}', 422),
                ("POST", "/grpo_mm/weights/begin", b"{" * 70_000, 413),
                ("PUT", "/grpo_mm/weights/x/base-0.safetensors", b"x", 410),
                ("POST", "/grpo_mm/weights/finish", b'{"upload": "x", "version": "y"}', 410),
            ):
                assert client.request(method, path, content=body).status_code == status, path
            upload = client.post("/grpo_mm/weights/begin", json={"version": "w"}).json()["upload"]
            for name in ("..%2Fx.json", ".hidden.json", "x.bin", "x.pt"):
                assert client.put(f"/grpo_mm/weights/{upload}/{name}", content=b"x").status_code in (400, 404), name
            assert client.post("/grpo_mm/draw", content=good).status_code == 200
    finally:
        server.close()


def test_processes_agree_without_meeting(monkeypatch):
    store = torch.distributed.HashStore()
    monkeypatch.setattr(module, "_store", lambda: store)
    assert (module.agreed("run", "a"), module.agreed("run", "b")) == ("a", "a")
    assert module.of_the_first("url", lambda: "http://x", seconds=1) == "http://x"
    assert module.of_the_first("url", lambda: "http://y", seconds=1) == "http://x"
    with pytest.raises(ZeroDivisionError):
        module.of_the_first("bad", lambda: str(1 // 0), seconds=1)
    with pytest.raises(UserError, match="in another process of the run: ZeroDivisionError"):
        module.of_the_first("bad", lambda: "x", seconds=1)
    store.add("late/comers", 1)
    with pytest.raises(UserError, match="waited 0.1 seconds"):
        module.of_the_first("late", lambda: "x", seconds=0.1)
    monkeypatch.setattr(module, "_store", lambda: None)
    assert module.agreed("run", "c") == "c" and module.of_the_first("url", lambda: "z", seconds=1) == "z"


def test_an_answer_is_read_as_it_was(ours):
    from stand_in_engine import StandIn

    made = StandIn([ours.encode(PROMPTS[5])])._draw(asked_of(ours, PROMPTS[5]), ours.encode(PROMPTS[5]))
    assert read_answered(json.loads(json.dumps(pack_answered(made))), 3) == made


def _mutated(body: bytes, dice: random.Random) -> bytes:
    """Bytes of its head changed, left out or doubled; or cut off."""
    found, size = bytearray(body), int.from_bytes(body[:8], "little") + 8
    for _ in range(dice.randint(1, 8)):
        at = dice.randrange(min(size, len(found)))
        match dice.randrange(4):
            case 0:
                found[at] = dice.randrange(256)
            case 1:
                del found[at : at + dice.randint(1, 20)]
            case 2:
                found[at:at] = found[at : at + dice.randint(1, 20)]
            case 3:
                del found[dice.randrange(len(found)) :]
                found = found or bytearray(b"\0")
    return bytes(found)
