"""What may be sent to a server of rewards by anybody: nothing crashes, hangs or grows it, and nobody without the token is heard."""

import base64
import http.client
import io
import json
import random
import socket
import struct
import threading
import time
import zlib
from copy import deepcopy

import pytest
import torch
from PIL import Image
from served import Served

from grpo_mm.errors import ConfigError
from grpo_mm.registry import lookup
from grpo_mm.rewards.images.image_quality import ImageQuality
from grpo_mm.rewards.service.remote import Remote
from grpo_mm.rewards.service.server import Limits, check_host, is_loopback
from grpo_mm.rollout.scoring import Scorer, Scoring
from grpo_mm.types import Prompt

TOKEN = "a-token-of-the-test"
ALLOWED = {200, 400, 401, 403, 404, 405, 408, 413, 415, 422, 503}
MOST_BYTES = 2**20


@pytest.fixture(scope="module")
def served():
    rewards = {
        "quality": ImageQuality(),
        "iou": lookup("reward", "temporal_iou")(),
        "peers": lookup("reward", "peer_similarity")(),
    }
    one = Served(rewards, token=TOKEN, limits=Limits(MOST_BYTES, picture_pixels=4096))
    yield one
    one.close()


def ask(served, method, path, body=None, headers=None):
    """(status, what the answer says); status 0: the connection was closed without one."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    try:
        connection.request(
            method,
            path,
            body,
            {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"} | (headers or {}),
        )
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (ConnectionError, http.client.BadStatusLine):
        return 0, b""
    finally:
        connection.close()


def png(width, height, mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def prompt(**changes):
    return {
        "id": "p",
        "text": "when?",
        "source": "",
        "repeat_of": "",
        "messages": [],
        "target": None,
        "media": [],
        "demo": None,
    } | changes


def request(**changes):
    return {
        "reward": "iou", "prompts": [prompt(target={"span": [1, 2]})], "row_prompt": [0, 0],
        "items": {"kind": "texts", "values": ["1 to 2", "?"]}, "groups": None,
    } | changes  # fmt: skip


def pictures(*values):
    return request(
        reward="quality",
        row_prompt=[0] * len(values),
        items={"kind": "pictures", "stacked": False, "values": list(values)},
    )


def test_a_sound_request_is_answered(served):
    status, said = ask(served, "POST", "/score", json.dumps(request()))
    assert status == 200 and len(json.loads(said)["scores"]["score"]) == 2
    assert ask(served, "POST", "/score", json.dumps(pictures(png(64, 64))))[0] == 200
    status, said = ask(served, "GET", "/health")
    assert status == 200 and json.loads(said)["rewards"]["peers"]["scope"] == "set"


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer x", f"bearer {TOKEN}", f"Bearer {TOKEN}x", TOKEN, "Basic " + TOKEN]
)
@pytest.mark.parametrize("path", ["/health", "/score", "/applies", "/docs", "/nothing"])
def test_nobody_is_heard_without_the_token(served, header, path):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    body = json.dumps(request())
    connection.request(
        "GET" if path == "/health" else "POST", path, body, {} if header is None else {"Authorization": header}
    )
    answer = connection.getresponse()
    assert answer.status == 401 and b"iou" not in answer.read()
    connection.close()


def test_a_run_with_a_wrong_token_does_not_begin(served, monkeypatch):
    monkeypatch.setenv("OWN_TOKEN", "another")
    with pytest.raises(ConfigError, match=r"refuses the token \(token_env\)"):
        Scoring({"far": Scorer(Remote(served.url, "quality", token_env="OWN_TOKEN"))}, torch.device("cpu")).load(
            leave=False
        )
    monkeypatch.setenv("OWN_TOKEN", TOKEN)
    scoring = Scoring({"far": Scorer(Remote(served.url, "quality", token_env="OWN_TOKEN"))}, torch.device("cpu"))
    assert scoring(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [Prompt("p", "x")])["far"]["score"].isfinite().all()


def test_without_a_token_only_this_machine_is_served():
    for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9"):
        assert is_loopback(host) and check_host(host, None) is None
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "127.0.0.1.example.org", ""):
        with pytest.raises(ConfigError, match="can be reached by others"):
            check_host(host, None)
        check_host(host, TOKEN)
    open_one = Served({"iou": lookup("reward", "temporal_iou")()})
    for host, status in (("127.0.0.1", 200), ("localhost:1", 200), ("[::1]:80", 200), ("evil.example", 403), ("", 403)):
        assert ask(open_one, "GET", "/health", headers={"Host": host})[0] == status
    open_one.close()


def bomb(width, height):
    """A PNG that says it is large, of a few bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "no JSON"),
        (b"\xff\xfe", 400, "no UTF-8"),
        (b"[" * 100_000, 400, "no JSON"),
        (b"[" * 100_000 + b"]" * 100_000, 400, "no JSON"),
        (b'{"a": NaN}', 400, "NaN"),
        (b'{"reward": "a", "reward": "b"}', 400, "stands twice"),
        (b"9" * 10_000, 400, "no JSON"),
        (b"[]", 422, "wanted an object"),
        (request(reward="other"), 404, "no reward 'other' is served"),
        (request(more=1), 422, "wanted an object with"),
        (request(row_prompt=[0, 1]), 422, "numbers below 1"),
        (request(row_prompt=[0, True]), 422, "numbers below 1"),
        (request(row_prompt=[0, -1]), 422, "numbers below 1"),
        (request(row_prompt=[]), 422, "1 to 4096 numbers"),
        (request(row_prompt=[0] * 5000), 422, "1 to 4096 numbers"),
        (request(prompts=[prompt()] * 5000), 422, "a list of 1 to 4096"),
        (request(items={"kind": "texts", "values": ["a"]}), 422, "1 values for 2 outputs"),
        (request(items={"kind": "texts", "values": ["a", 1]}), 422, "wanted texts"),
        (request(items={"kind": [], "values": []}), 422, "kind"),
        (request(groups=[0]), 422, "2 whole numbers"),
        (request(reward="peers"), 422, "groups are wanted"),
        (request(prompts=[prompt(target={"$": "pickle", "v": "gASVAAAA"})]), 422, "stands for nothing that is known"),
        (request(prompts=[prompt(target={"$": "array", "dtype": "object", "shape": [1], "v": "AAAAAAAAAAA="})]), 422, "no array"),
        (request(prompts=[prompt(target={"$": "array", "dtype": "int8", "shape": [2**30, 2**30], "v": ""})]), 422, "has not 0 bytes"),
        (request(prompts=[prompt(target={"$": "dict", "v": [[[1], 2]]})]), 422, "can be none"),
        (pictures(png(65, 64)), 422, "at most 4096 pixels"),
        (pictures(bomb(60_000, 60_000)), 422, "too large a picture"),
        (pictures(bomb(2**31 - 1, 2**31 - 1)), 422, "output 0"),
        (pictures(bomb(64, 64)), 422, "output 0"),
        (pictures(png(8, 8, "P")), 422, "mode P"),
        (pictures("no base64!"), 422, "cannot be read as base64 of a PNG"),
        (pictures(*[png(64, 64)] * 800), 422, "more pixels than are allowed together"),
        (request(items={"kind": "texts", "values": ["," * (MOST_BYTES + 1), ""]}), 413, "more than 1048576 bytes"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_named(served, body, status, message):
    found, said = ask(served, "POST", "/score", body if isinstance(body, bytes) else json.dumps(body))
    assert found == status and message in json.loads(said)["error"]


def test_what_is_too_long_is_refused_before_it_is_read(served):
    def status_of(head, *chunks):
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as raw:
            raw.sendall(
                f"POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n{head}\r\n\r\n".encode()
            )
            try:
                for chunk in chunks:
                    raw.sendall(chunk)
            except OSError:
                pass
            return raw.recv(100).split(b" ")[1]

    assert status_of("Content-Length: 99999999999") == b"413"  # nothing of it was sent
    assert status_of(f"Content-Length: {10**400}") in (b"413", b"400")
    piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    assert status_of("Transfer-Encoding: chunked", *[piece] * 17) == b"413"
    assert ask(served, "POST", "/score", b"x" * 100, {"Content-Encoding": "gzip"})[0] == 415
    assert ask(served, "POST", "/score", b"{}", {"Content-Type": "text/plain"})[0] == 415


def test_what_holds_too_many_values_is_refused():
    one = Served({"iou": lookup("reward", "temporal_iou")()}, limits=Limits(2**23))
    status, said = ask(one, "POST", "/score", b"[" + b"[]," * 2_000_001 + b"0]")
    one.close()
    assert status == 413 and b"more than 2000000 values" in said


def test_too_much_at_once_is_told_to_come_again(served):
    """Requests that never arrive hold what they announced: others are refused, until they are gone."""
    waiting = []
    for _ in range(16):
        raw = socket.create_connection(("127.0.0.1", served.port), timeout=20)
        raw.sendall(
            f"POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\nContent-Length: {MOST_BYTES}\r\n\r\n".encode()
        )
        waiting.append(raw)
    until, status = time.monotonic() + 20, 0
    while status != 503 and time.monotonic() < until:
        status = ask(served, "POST", "/score", json.dumps(request()))[0]
    assert status == 503
    for raw in waiting:
        raw.close()
    scoring_until = time.monotonic() + 20
    while status != 200 and time.monotonic() < scoring_until:
        status = ask(served, "POST", "/score", json.dumps(request()))[0]
    assert status == 200


# ── mutated requests ──

WORDS = (
    None,
    True,
    -1,
    0,
    2**63,
    10**30,
    1e308,
    "",
    "x" * 5000,
    "\u0000\ud83d",
    [],
    {},
    [[]],
    {"$": "tuple"},
    {"$": "image", "v": "AAAA"},
)
HEADERS = ((),) * 20 + (  # as a rule none
    (("Content-Type", "text/xml"),), (("Authorization", "Bearer no"),), (("Content-Encoding", "gzip"),), (("Content-Length", "7"),),
)  # fmt: skip


def mutated(draw):
    """(method, path, body, headers): a sound request in which one to four things are changed."""
    sound = draw.choice([
        request(), pictures(png(8, 8), png(8, 8, "L")), request(reward="peers", groups=[0, 0]),
        request(prompts=[prompt(media=[{"image": png(4, 4)}], target={"$": "tuple", "v": [1, {"$": "float", "v": "nan"}]})]),
        request(reward="quality", items={"kind": "clips", "stacked": True, "values": [[png(4, 4)] * 2] * 2}),
        {"reward": "iou", "prompts": [prompt()] * 3},
    ])  # fmt: skip
    body = json.loads(json.dumps(sound))
    for _ in range(draw.choice((0, 1, 1, 2, 4))):
        _change(body, draw)
    data = bytearray(json.dumps(body).encode())
    for _ in range(draw.choice((0, 0, 0, 1, 8))):
        kind, at = draw.randrange(4), draw.randrange(len(data) + 1)
        if kind == 0:
            data[at : at + 1] = bytes([draw.randrange(256)])
        elif kind == 1:
            del data[at : at + draw.randrange(40)]
        elif kind == 2:
            data[at:at] = data[: draw.randrange(60)]
        else:
            data[at:at] = draw.choice((b'"', b"{", b"]", b"\\ud800", b"1e999", b"\x00", b"NaN", b"," * 50))
    headers = dict(draw.choice(HEADERS))
    path = draw.choice(("/score",) * 24 + ("/applies",) * 6 + ("/health", "/%00", "/score/../score", "/" + "x" * 3000))
    return draw.choice(("POST",) * 19 + ("PUT",)), path, bytes(data), headers


def _change(value, draw):
    """Somewhere within a mapping or list a value is replaced, removed or doubled."""
    inner = [
        one for one in (value.values() if isinstance(value, dict) else value) if isinstance(one, dict | list) and one
    ]
    if inner and draw.random() < 0.7:
        return _change(draw.choice(inner), draw)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, kind = draw.choice(keys), draw.randrange(3)
    if kind == 0:
        value[key] = deepcopy(draw.choice(WORDS))
    elif kind == 1:
        del value[key]
        return None if value else value.update(x=1) if isinstance(value, dict) else value.append(1)
    else:
        other = draw.choice(keys)
        value[key] = deepcopy(value[other])
    return None


def memory():
    """MiB of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def bombard(served, number, seed):
    draw, seen = random.Random(seed), {}
    for i in range(number):
        method, path, body, headers = mutated(draw)
        status, _ = ask(served, method, path, body, headers)
        assert status in ALLOWED, (i, status, method, path, body[:300])
        assert status == 401 or "Authorization" not in headers
        seen[status] = seen.get(status, 0) + 1
    return seen


def check_bombarded(served, number):
    bombard(served, 100, seed=0)
    before, threads = memory(), threading.active_count()
    seen = bombard(served, number, seed=1)
    assert memory() - before < 64 and threading.active_count() <= threads + 2
    assert {200, 400, 401, 415, 422} <= set(seen), seen
    assert seen[200] > number / 20, seen
    assert ask(served, "POST", "/score", json.dumps(request()))[0] == 200
    return seen


def test_two_thousand_mutated_requests(served):
    check_bombarded(served, 2_000)


@pytest.mark.slow
def test_ten_thousand_mutated_requests(served):
    print(check_bombarded(served, 10_000))
