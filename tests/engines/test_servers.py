"""Servers of answers, with an engine behind the door that needs no vLLM: what is lost, stale, wrong or away is noticed and told."""

from __future__ import annotations

import asyncio
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import httpx2
import pytest
import torch
from stand_in_engine import ServedStandIn
from tiny_vlm import PROMPTS, change, policy, rows_of

from grpo_mm.errors import ConfigError, TrainingStopped
from grpo_mm.findings import first_difference
from grpo_mm.pipelines.vlm.engine import VlmEngine
from grpo_mm.pipelines.vlm.engine_server import asking, door, served_weights
from grpo_mm.pipelines.vlm.engine_server.asking import Server
from grpo_mm.pipelines.vlm.engine_server.served_engine import all_or_none
from grpo_mm.pipelines.vlm.engine_server.vllm_server import VllmServer
from grpo_mm.pipelines.vlm.engine_server.weights_to_bring import ADAPTER, KeptWeights, files_of
from grpo_mm.pipelines.vlm.models.adapters import Lora
from grpo_mm.pipelines.vlm.sampling.generation import Draw, Request
from grpo_mm.processes.clock import Clock, use
from grpo_mm.processes.rng import stream

LENGTH, SAMPLES = 6, 3


@pytest.fixture(scope="module")
def ours():
    return policy("qwen2_5_vl")


@pytest.fixture(scope="module")
def contexts(ours):
    return [ours.encode(prompt) for prompt in (PROMPTS[0], PROMPTS[4], PROMPTS[5])]


@pytest.fixture
def served(contexts):
    made = []

    def serve(**faults):
        made.append(ServedStandIn(contexts, **faults))
        return made[-1]

    yield serve
    for server in made:
        if server.thread.is_alive():
            server.close()


@pytest.fixture
def counts():
    clock = use(Clock())
    yield lambda: clock.take()[1]
    use(Clock())


def generator(*servers, **settings):
    return VllmServer(
        urls=tuple(s.url for s in servers), **{"timeout_seconds": 20.0, "rows_per_request": 2, **settings}
    )


def draws(engine, ours, contexts, seed=0, **draw):
    requests = [Request(c, stream(seed, c.prompt_id, s)) for c in contexts for s in range(SAMPLES)]
    return engine.generate(ours.network, requests, Draw(LENGTH, ours.loaded.stop, 1.0, **draw))


def test_rows_come_back_in_order_with_what_the_trainer_would_say(served, ours, contexts, counts):
    server = served()
    made = draws(generator(server), ours, contexts)
    assert [ids.tolist() for ids in made.prompt_ids] == [
        c.input_ids_L.tolist() for c in contexts for _ in range(SAMPLES)
    ]
    assert made.weights == ours.snapshots.which and int(made.length_N.min()) >= 1
    again = draws(generator(server, rows_per_request=8, requests_at_once=1), ours, contexts)
    assert torch.equal(made.token_NA, again.token_NA) and torch.allclose(made.logprob_NA, again.logprob_NA, atol=1e-5)
    assert counts()["engine_prompt_tokens"] == 2 * SAMPLES * sum(map(len, contexts))


def test_each_answer_is_told_of_once_and_in_the_thread_that_asked(served, ours, contexts):
    """For rewards that are asked early."""
    heard, threads = {}, set()

    def finished(row, tokens):
        assert row not in heard
        heard[row] = tokens.tolist()
        threads.add(threading.current_thread())

    made = draws(generator(served()), ours, contexts, finished=finished)
    rows = zip(made.token_NA.tolist(), made.length_N.tolist(), strict=True)
    assert heard == {row: ids[:length] for row, (ids, length) in enumerate(rows)}
    assert threads == {threading.current_thread()}


def test_weights_are_brought_once_and_again_when_they_are_others(served, ours, contexts, counts):
    server, other = served(), served()
    engine = generator(server, other)
    before = draws(engine, ours, contexts)
    assert (server.engine.changes, other.engine.changes) == (1, 1)
    draws(engine, ours, contexts)
    assert (server.engine.changes, other.engine.changes) == (1, 1)
    change(ours, scale=0.05)
    ours.snapshots.changed()
    after = draws(engine, ours, contexts)
    assert (server.engine.changes, other.engine.changes) == (2, 2) and counts()["engine_weights_brought"] == 4
    assert not torch.equal(before.logprob_NA, after.logprob_NA)
    for mine, theirs in zip(ours.model.state_dict().values(), server.engine.policy.model.state_dict().values()):
        assert torch.equal(mine, theirs)


def test_weights_go_through_a_folder_as_well(served, ours, contexts, tmp_path, monkeypatch):
    server = served()
    monkeypatch.chdir(tmp_path.parent)
    asked = []
    monkeypatch.setattr(
        Server, "bring", lambda self, *a, bring=Server.bring, **k: asked.append(k) or bring(self, *a, **k)
    )
    change(ours, scale=0.05)
    ours.snapshots.changed()
    draws(generator(server, weights_folder=tmp_path.name), ours, contexts)
    assert server.engine.changes == 1 and not list(tmp_path.iterdir())
    assert asked[0]["folder"].startswith(f"{tmp_path}/")  # a server links to what lies in it
    assert torch.equal(server.engine.policy.model.lm_head.weight, ours.model.lm_head.weight)


def test_a_server_that_came_back_with_old_weights_is_given_the_present_ones(served, ours, contexts, counts):
    server = served()
    engine = generator(server)
    wanted = draws(engine, ours, contexts)
    server.restart()
    made = draws(engine, ours, contexts)
    assert torch.equal(made.token_NA, wanted.token_NA) and torch.allclose(made.logprob_NA, wanted.logprob_NA, atol=1e-5)
    assert server.engine.changes == 1 and counts()["engine_restarts"] == 1


def test_one_that_dies_in_the_middle_is_waited_for_and_its_rows_are_asked_again(served, ours, contexts, counts):
    server = served(seconds=0.2)
    engine = generator(server, requests_at_once=2)
    wanted = draws(engine, ours, contexts)
    counts()
    killing = threading.Thread(target=lambda: (_until(lambda: server.engine.drawn > 10), server.restart()))
    killing.start()
    made = draws(engine, ours, contexts)
    killing.join(20)
    found = counts()
    assert found["engine_restarts"] == 1 and found["engine_rows_again"] >= 1 and server.engine.changes == 1
    assert torch.equal(made.token_NA, wanted.token_NA) and torch.allclose(made.logprob_NA, wanted.logprob_NA, atol=1e-5)


def test_one_that_is_gone_before_it_is_asked_is_not_asked_without_a_pause(served, ours, contexts, counts):
    """It was there when weights were brought, and no request is under way that could be lost."""
    server = served()
    engine = generator(server, requests_at_once=1)
    wanted = draws(engine, ours, contexts)
    engine._fleet.prepare = lambda weights: server.close()
    counts()
    coming = threading.Timer(0.4, server.open)
    coming.start()
    made = draws(engine, ours, contexts)
    coming.join(20)
    assert 1 <= counts()["engine_rows_again"] <= 20 and torch.equal(made.token_NA, wanted.token_NA)


def test_a_server_that_dies_while_the_policy_is_trained_gets_what_was_handed_over(served, ours, contexts, counts):
    """Others are in place by then; the thread that draws goes on with the name of those before."""
    server = served()
    engine, which = generator(server), ours.snapshots.which
    engine.hand_over(ours.network)
    handed = {name: value.clone() for name, value in ours.model.state_dict().items()}
    held = SimpleNamespace(
        **{**vars(ours.network), "in_place": SimpleNamespace(which=which, rank=0), "precision": torch.float32}
    )
    change(ours, scale=0.05)
    ours.snapshots.changed()
    server.restart()
    requests = [Request(c, stream(0, c.prompt_id)) for c in contexts]
    made = engine.generate(held, requests, Draw(LENGTH, ours.loaded.stop, 1.0))
    assert made.weights == which != ours.snapshots.which
    there = server.engine.policy.model.state_dict()
    assert all(torch.equal(value, there[name]) for name, value in handed.items()) and counts()["engine_restarts"] == 1
    assert draws(engine, ours, contexts).weights == ours.snapshots.which
    assert torch.equal(server.engine.policy.model.lm_head.weight, ours.model.lm_head.weight)


def test_where_one_of_two_is_away_the_other_draws_all(served, ours, contexts, counts):
    server, away = served(), served()
    engine = generator(server, away)
    draws(engine, ours, contexts)
    away.close()
    drawn = server.engine.drawn
    draws(engine, ours, contexts)
    assert server.engine.drawn - drawn == SAMPLES * len(contexts)
    away.open()
    time.sleep(0.6)
    draws(engine, ours, contexts)


def test_a_dead_server_is_one_sentence(served, ours, contexts):
    server = served()
    server.close()
    with pytest.raises(
        TrainingStopped, match=rf"no engine server \({server.url}\) gave an answer within 1 seconds: it cannot"
    ):
        draws(generator(server, timeout_seconds=1.0), ours, contexts)


def test_a_silent_server_is_given_up_and_one_that_is_at_work_is_not(served, ours, contexts, monkeypatch):
    monkeypatch.setattr(asking, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(door, "BLANK_SECONDS", 0.1)
    made = draws(generator(served(seconds=0.8)), ours, contexts[:1])
    assert int(made.length_N.min()) >= 1
    monkeypatch.setattr(door, "BLANK_SECONDS", 30.0)
    with pytest.raises(TrainingStopped, match="failed 1 times on the same prompt: the connection was lost"):
        draws(generator(served(seconds=3.0), retries=0), ours, contexts[:1])


def test_answers_of_other_weights_are_asked_again_and_stop_a_run_in_the_end(served, ours, contexts, counts):
    made = draws(generator(served(notes=("another's", 1)), requests_at_once=1), ours, contexts)
    assert made.weights == ours.snapshots.which and counts()["engine_rows_again"] == 2
    with pytest.raises(TrainingStopped, match='draws with the weights ."another\'s".*does another run use it'):
        draws(generator(served(notes=("another's", 99)), retries=1), ours, contexts)


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"facts": {"hidden_size": 96}}, "has another model, 'here': its hidden_size is 96, the policy's 64. Start it with --model"),
        ({"facts": {"model_type": "qwen2_vl"}}, "its model_type is 'qwen2_vl'"),
        ({"settings": {"mm_device_do_normalize": True}}, "its pixels: True.*--no-mm-device-do-normalize"),
        ({"settings": {"logprobs_mode": "raw_logprobs"}}, "--logprobs-mode processed_logprobs"),
        ({"settings": {"dtype": "bfloat16"}}, "its precision: 'bfloat16', wanted 'float32'. Start it with --dtype float32"),
        ({"settings": {"api_server_count": 4}}, "--api-server-count 1"),
    ],
)  # fmt: skip
def test_one_that_was_started_otherwise_is_refused_by_name(served, ours, contexts, faults, words):
    with pytest.raises(ConfigError, match=words):
        draws(generator(served(**faults)), ours, contexts)


@pytest.mark.parametrize(
    ("faults", "place", "words"),
    [
        ({"pixels": 0.5}, "log-probability of first tokens", "other pictures"),
        ({"takes": 1}, "log-probability of first tokens, weights changed", "are those of before the last change"),
        ({}, None, ""),
    ],
)  # fmt: skip
def test_the_examination_names_what_a_server_says_nothing_of(served, ours, contexts, faults, place, words):
    """Pixels that are normalised a second time; weights that never come to be in place."""
    engine = VlmEngine(max_new_tokens=LENGTH, generator=generator(served(**faults), rows_per_request=64))
    found = first_difference(list(engine.examine(ours, rows_of((PROMPTS[0], PROMPTS[4]), SAMPLES), seed=0)))
    if place is None:
        assert found is None, found
    else:
        assert found.name == place and words in found.cause, found


def test_one_without_room_for_the_adapter_is_refused(served, contexts):
    with pytest.raises(
        ConfigError, match="takes adapters up to rank 0, and the policy's has 3.*--enable-lora --max-lora-rank 3"
    ):
        draws(generator(served()), policy("qwen2_5_vl", lora=Lora(rank=3, alpha=7)), contexts)


def test_a_token_is_asked_for_everything_but_health(served, ours, contexts, monkeypatch):
    monkeypatch.setenv("GRPO_MM_TOKEN", "right")
    server = served()
    with pytest.raises(TrainingStopped, match="refuses the token"):
        draws(generator(server), ours, contexts)
    draws(generator(server, token_env="GRPO_MM_TOKEN"), ours, contexts)
    for path, status in (("/v1/models", 401), ("/grpo_mm/state", 401), ("/health", 200)):
        assert httpx2.get(server.url + path).status_code == status, path
    with pytest.raises(ConfigError, match="NOT_SET"):
        generator(server, token_env="NOT_SET").check()


def test_without_a_token_only_this_machine_is_let_in_by_its_name(served):
    server = served()
    assert httpx2.get(server.url + "/grpo_mm/state").status_code == 200
    assert httpx2.get(server.url + "/grpo_mm/state", headers={"Host": "elsewhere:80"}).status_code == 403
    assert httpx2.get(server.url + "/v1/models").json() == {"of": "vllm"}
    scope = {"type": "http", "path": "/grpo_mm/state", "client": ("10.0.0.9", 1), "headers": [(b"host", b"localhost")]}
    assert server.door._refused(scope, own=True)[0] == 403


def test_a_vllm_without_the_door_is_told_so(ours, contexts):
    """A server that knows nothing of the paths under /grpo_mm/."""
    plain = ThreadingHTTPServer(("127.0.0.1", 0), _KnowsNothing)
    thread = threading.Thread(target=plain.serve_forever, daemon=True)
    thread.start()
    try:
        with pytest.raises(TrainingStopped, match="--middleware grpo_mm.pipelines.vlm.engine_server.door.Door"):
            draws(VllmServer(urls=(f"http://127.0.0.1:{plain.server_port}",), timeout_seconds=5.0), ours, contexts)
    finally:
        plain.shutdown()
        plain.server_close()
        thread.join(5)


def test_processes_of_one_run_bring_weights_once(served, ours, contexts, monkeypatch):
    """Both miss them at the same time."""
    server = served()
    engines = [generator(server), generator(server)]
    monkeypatch.setattr("grpo_mm.pipelines.vlm.engine_server.vllm_server.agreed", lambda key, word: "one run")
    made = {}
    threads = [threading.Thread(target=lambda k=k: made.update({k: draws(engines[k], ours, contexts)})) for k in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert server.engine.changes == 1 and torch.equal(made[0].token_NA, made[1].token_NA)


def test_an_adapter_is_not_put_on_the_model_of_another_run(served, contexts, monkeypatch):
    """Which comes between the question what is in place and the answer to it."""
    server, adapted = served(settings={"max_lora_rank": 8}), policy("qwen2_5_vl", lora=Lora(rank=3, alpha=7))
    engine, brought = generator(server), []
    change_, state = server.engine.change, Server.state

    async def noting(folder, version, **what):
        brought.append(what)
        await change_(folder, version, **what)

    monkeypatch.setattr(server.engine, "change", noting)
    draws(engine, adapted, contexts[:1])
    adapted.snapshots.changed()
    draws(engine, adapted, contexts[:1])
    others = iter(["another/1"])

    def overtaken(self, **how):
        found = state(self, **how)
        server.engine.weights.version = next(others, server.engine.weights.version)
        return found

    monkeypatch.setattr(Server, "state", overtaken)
    adapted.snapshots.changed()
    draws(engine, adapted, contexts[:1])
    assert [what["base"] for what in brought] == [True, False, True] and all(what["adapter"] for what in brought)


def test_the_model_under_an_adapter_is_kept_once():
    adapted = policy("qwen2_5_vl", lora=Lora(rank=3, alpha=7))
    first = KeptWeights(adapted.network)
    whole = dict(first.files(base=True))
    change(adapted, scale=0.05)
    adapted.snapshots.changed()
    second = KeptWeights(adapted.network, before=first)
    del first
    assert {path.name for path in second._folder.files()} == {*ADAPTER}
    assert dict(second.files(base=True)) == dict(files_of(adapted.network, adapted.snapshots.which, base=True))
    assert set(dict(second.files(base=False))) == {*ADAPTER} and second.which == adapted.snapshots.which
    assert dict(second.files(base=True))[ADAPTER[1]] != whole[ADAPTER[1]]


def test_who_brings_weights_and_falls_silent_is_replaced(served, ours, contexts, monkeypatch):
    server = served()
    assert httpx2.post(server.url + "/grpo_mm/weights/begin", json={"version": "x"}).json()["state"] == "bring"
    monkeypatch.setattr(served_weights, "CLAIM_SECONDS", 0.3)
    draws(generator(server), ours, contexts)
    assert server.engine.changes == 1


def test_what_cannot_be_asked_is_refused_before_a_model_is_loaded():
    for settings, words in (
        ({}, "name the servers in urls"),
        ({"urls": ("ftp://x",)}, "wanted the like of http"),
        ({"urls": ("http://user:secret@host:1",)}, "holds a user name or a password"),
        ({"urls": ("http://a:1", "http://a:1")}, "stands twice"),
        ({"urls": ("http://a:1",), "rows_per_request": 0}, "rows_per_request = 0"),
        ({"urls": ("http://a:1",), "weights_folder": "/not/there"}, "there is no folder '/not/there' here"),
        ({"urls": ("http://a:1",), "timeout_seconds": 0}, "timeout_seconds = 0"),
    ):
        with pytest.raises(ConfigError, match=words) as found:
            VllmServer(**settings).check()
        assert "secret" not in str(found.value)


class _KnowsNothing(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(404)

    def log_message(self, *_):
        pass


def _until(is_so, seconds: float = 15.0) -> None:
    until = time.monotonic() + seconds
    while not is_so() and time.monotonic() < until:
        time.sleep(0.01)


def test_where_a_row_cannot_be_drawn_the_others_are_given_up():
    given_up: list[str] = []

    async def drawn(name: str, seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            given_up.append(name)
            raise
        return name

    async def fails() -> str:
        await asyncio.sleep(0.01)
        raise ValueError("no")

    async def asked() -> None:
        assert await all_or_none([drawn("a", 0.0), drawn("b", 0.0)]) == ["a", "b"]
        with pytest.raises(ValueError, match="no"):
            await all_or_none([drawn("quick", 0.0), drawn("long", 60.0), fails(), drawn("longer", 60.0)])
        assert given_up == ["long", "longer"]  # by the time that it is told of

    asyncio.run(asked())
