"""Damaged, foreign and hostile run folders: a page that says what is wrong and shows the rest, without a traceback."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from test_report import CLIP, a_run, a_text_run, a_watched_run, text_of

from grpo_mm.looking import metrics
from grpo_mm.looking.report.curves import LONG, MAX_POINTS, charts, thinned
from grpo_mm.looking.report.page import write_report

EVIL = '<script>alert(1)</script>"><img src=x onerror=alert(2)>{{ 7*7 }}\x1b[31m'
JSONS = {
    "cut": b'{"name": "a_run", "st', "no UTF-8": b"\xff\xfe\x00{", "a list": b"[1, 2]", "a number": b"7", "deep": b"[" * 100_000,
    "empty": b"", "binary": bytes(range(256)) * 40, "many digits": b'{"steps": ' + b"9" * 5000 + b"}", "null": b"null",
    "all wrong": json.dumps(
        {"name": 7, "kind": [], "step": "x", "steps": -3, "eval_before": [1], "eval_after": {"score": "a"}, "groups": 3,
         "seconds": {"total": "x"}, "network_calls": {"rollout_calls": []}, "versions": 4, "product": {}, "cells": {}}
    ).encode(),
    "extremes": b'{"name": "x", "steps": 12, "eval_before": {"score": 1e308}, "eval_after": {"score": -1e308}, "kind": "eval", '
    b'"step": 0, "columns": 1, "cells": [{"prompt": "x", "rewards": {"a": NaN}}], "tile_px": [1000000000, 1], "gap_px": 0}',
}  # fmt: skip
OTHERS = {
    "summary.json": "summary.json",
    "versions.json": "versions.json",
    "samples/step_000001.json": "step_000001.json",
}


def line(**values) -> bytes:
    return json.dumps(values).encode() + b"\n"


RECORDS = {
    "garbage in the middle": (b"\xff\x00 garbage\n", "line 6"),
    "a list": (b"[1]\n", "line 6"),
    "no step": (line(loss=1), "line 6"),
    "a step of text": (line(step="5"), "line 6"),
    "a negative step": (line(step=-5), "line 6"),
    "a huge step": (b'{"step": 1' + b"0" * 400 + b"}\n", "line 6"),
    "deep": (b"[" * 100_000 + b"\n", "line 6"),
    "extremes": (b'{"step": 5, "optim/lr": 1e308, "optim/grad_norm": -1e308, "loss/total": NaN}\n', "no numbers"),
    "texts for numbers": (line(step=5, **{"optim/lr": "fast", "objective/ratio": [1]}), "no numbers"),
    "a name with markup": (line(step=5, **{f"reward/{EVIL}/mean": 0.5}), None),
    "many names": (line(step=5, **{f"reward/r{i}/mean": 0.5 for i in range(5000)}), "metrics the first"),
}
CONFIGS = {
    "cut": b"name: [", "no UTF-8": b"\xff\xfe", "a list": b"- 1\n", "deep": b"a: " + b"[" * 5000,
    "aliases": b"a: &a [1,1]\n" + b"".join(b"k%d: [*a,*a]\n" % i for i in range(200)), "large": b"a: 1\n" * 100_000,
    "python": b"!!python/object/apply:os.system ['true']\n",
    "all wrong": b"rewards: [1]\nwatch: {x: [1], y: {low: a, high: 1}}\nsteps: many\npolicy: {kind: [1]}\nseed: {a: b}\n",
    "wrong rewards": b"rewards: {shape: 3, 4: null}\nwatch: 7\n",
}  # fmt: skip
EVENT = {
    "step": 3,
    "rule": "light",
    "metric": "image/luminance",
    "value": 0.7,
    "band": [0.1, 0.6],
    "asked": "warn",
    "action": "warn",
}
EVENTS = {
    "band": {"band": 3}, "value": {"value": "x"}, "action": {"action": []}, "rollback": {"action": "rollback"},
    "metric": {"metric": {"a": 1}},
}  # fmt: skip


def page_of(folder: Path) -> str:
    page = text_of(write_report(folder))
    html = (folder / "report.html").read_text()
    assert "<script>alert" not in html and "<img src=x" not in html and "onerror=alert(2)>" not in html
    assert html.rstrip().endswith("</html>")
    return page


def rollout(folder: Path) -> dict:
    return json.loads((folder / "samples/step_000001.json").read_text())


@pytest.mark.parametrize("how", RECORDS)
def test_a_damaged_line_is_skipped_and_told_and_what_follows_is_kept(how, tmp_path):
    folder = a_run(tmp_path)
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    data, told = RECORDS[how]
    path.write_bytes(b"".join([*lines[:5], data, *lines[5:]]))
    page = page_of(folder)
    assert "0.487 → 0.622" in page and (told is None or told in page)
    assert metrics.read(path)[-1]["step"] == 12
    metrics.cut_back(path, step=12)
    assert [row["step"] for row in metrics.read(path)][-3:] == [11, 12, 12]


STEPS = {
    "missing": (lambda rows: [*rows[:3], *rows[6:]], "3 of 12 steps have no line (the first is step 3)"),
    "twice": (lambda rows: [*rows[:4], *rows[2:]], "2 lines repeat a step (the first is step 2)"),
    "backwards": (lambda rows: rows[::-1], None),
    "a torn last line": (lambda rows: [*rows, b'{"step": 13, "lo'], None),
    "zeros at the end": (lambda rows: [*rows, bytes(4096)], "1 of 15 lines cannot be read (line 15)"),
    "old ends of lines": (lambda rows: [b"".join(rows).replace(b"\n", b"\r")], "1 of 1 lines cannot be read (line 1)"),
}


@pytest.mark.parametrize("how", STEPS)
def test_steps_that_a_record_lacks_or_repeats_are_told(how, tmp_path):
    folder = a_run(tmp_path)
    path, (change, told) = folder / "metrics.jsonl", STEPS[how]
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    page = page_of(folder)
    assert told in page if told else "metrics.jsonl: " not in page


def test_many_versions_make_a_small_page(tmp_path):
    folder = a_run(tmp_path, steps=2)
    (folder / "versions.json").write_text(json.dumps({f"p{i}": "x" * 1000 for i in range(20_000)}))
    page_of(folder)
    assert (folder / "report.html").stat().st_size < 3e6


@pytest.mark.slow
@pytest.mark.parametrize("how", JSONS)
@pytest.mark.parametrize("name", OTHERS)
def test_a_damaged_file_is_named(name, how, tmp_path):
    folder = a_run(tmp_path, steps=2)
    (folder / name).write_bytes(JSONS[how])
    page = page_of(folder)
    assert OTHERS[name] in page or (name, how) in {("versions.json", "all wrong"), ("versions.json", "extremes")}
    assert "before" in page


@pytest.mark.slow
@pytest.mark.parametrize("how", CONFIGS)
def test_a_damaged_config_has_a_page(how, tmp_path):
    folder = a_run(tmp_path, steps=2)
    (folder / "config.yaml").write_bytes(CONFIGS[how])
    assert "config.yaml" in page_of(folder) or how in ("all wrong", "wrong rewards")


@pytest.mark.parametrize("how", EVENTS)
def test_events_that_are_none_are_counted(how, tmp_path):
    folder = a_watched_run(tmp_path)
    (folder / "events.jsonl").write_bytes(line(**(EVENT | EVENTS[how])) + line(**EVENT))
    page = page_of(folder)
    assert "events.jsonl: 1 lines" in page and "left its band" in page


SHEETS = {
    "prompt": lambda s: s["groups"][0].update(prompt=7),
    "rewards": lambda s: s["groups"][0]["cells"][0].update(rewards=[1]),
    "advantage": lambda s: s["groups"][0]["cells"][0].update(advantage="x"),
    "kind": lambda s: s.update(kind="else"),
    "step": lambda s: s.update(step=None),
    "outside": lambda s: s.update(tile_px=[10**9, 10**9]),
    "negative": lambda s: s.update(gap_px=-100),
    "no cells": lambda s: s["groups"][0].update(cells=[]),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", SHEETS)
def test_a_sheet_of_wrong_things_is_left_out_and_named(how, tmp_path):
    folder = a_run(tmp_path, steps=2)
    sheet = rollout(folder)
    SHEETS[how](sheet)
    (folder / "samples/step_000001.json").write_text(json.dumps(sheet))
    assert "samples/step_000001.json is left out" in page_of(folder)


@pytest.mark.parametrize(
    "data", [b"", b"no picture", b"GIF89a" + bytes(90), "cut"], ids=["empty", "text", "gif", "cut"]
)
def test_a_sheet_whose_picture_is_none_is_named(data, tmp_path):
    folder = a_run(tmp_path, steps=2)
    png = folder / "samples/step_000001.png"
    png.write_bytes(png.read_bytes()[:60] if data == "cut" else data)
    assert "samples/step_000001" in page_of(folder)


TEXTS = {
    "no answers": lambda e: e.update(answers=7),
    "text": lambda e: e["answers"][0].update(text=[1]),
    "rewards": lambda e: e["answers"][0].update(rewards={"a": "b"}),
    "marks": lambda e: e["answers"][0].update(marks={"spans": [["a", "b"]]}),
    "more": lambda e: e.update(truth={"unknown": 1}),
    "group": lambda e: e.update(group_size="many"),
    "picture": lambda e: e.update(picture={"file": "../../x.png", "frames": 1, "size_px": [1, 1]}),
    "frames": lambda e: e["picture"].update(frames=-1),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", TEXTS)
def test_a_transcript_of_wrong_things_is_left_out_and_named(how, tmp_path):
    folder = a_text_run(tmp_path)
    path = folder / "samples/step_000001.jsonl"
    exchange = json.loads(path.read_text().splitlines()[0])
    TEXTS[how](exchange)
    path.write_text(json.dumps(exchange) + "\n")
    page = page_of(folder)
    assert "samples/step_000001.jsonl is left out" in page and CLIP.text.split()[0] in page


LINKED = ("config.yaml", "summary.json", "versions.json", "metrics.jsonl", "events.jsonl", "samples/step_000001.png")


@pytest.mark.parametrize("name", LINKED)
def test_no_link_out_of_the_run_is_followed(name, tmp_path):
    folder = a_run(tmp_path, steps=2)
    secret = tmp_path / "secret"
    if name.endswith(".png"):
        shutil.copy(folder / name, secret)
    else:
        secret.write_text('{"step": 1, "secret": "SECRET"}')
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    page = page_of(folder)
    assert "SECRET" not in page and Path(name).name in page


def test_pictures_of_texts_are_no_links_and_are_pictures(tmp_path):
    folder = a_text_run(tmp_path)
    (picture,) = (folder / "samples/media").iterdir()
    shutil.copy(picture, tmp_path / "elsewhere.png")
    picture.unlink()
    picture.symlink_to(tmp_path / "elsewhere.png")
    assert "is no picture of this run" in page_of(folder)
    picture.unlink()
    picture.write_text("SECRET")
    page_of(folder)
    assert "U0VDUkVU" not in (folder / "report.html").read_text()


def test_a_link_where_the_page_is_written_does_not_overwrite_its_target(tmp_path):
    folder, victim = a_run(tmp_path, steps=2), tmp_path / "victim"
    victim.write_text("mine")
    (folder / ".writing_report").symlink_to(victim)
    (folder / "report.html").symlink_to(victim)
    write_report(folder)
    assert victim.read_text() == "mine" and not (folder / "report.html").is_symlink()


def test_hostile_names_are_words_wherever_they_stand(tmp_path):
    folder = a_run(tmp_path, steps=2, prompts=[EVIL, EVIL])
    summary = json.loads((folder / "summary.json").read_text())
    bad = {f"{EVIL}/mean": 0.5, "score": 0.1}
    (folder / "summary.json").write_text(
        json.dumps(summary | {"name": EVIL, "eval_before": bad, "eval_after": bad, "product": EVIL})
    )
    (folder / "versions.json").write_text(json.dumps({EVIL: EVIL}))
    (folder / "config.yaml").write_text(
        json.dumps({"name": EVIL, "policy": {"kind": EVIL}, "seed": EVIL, "rewards": {EVIL: {}}})
    )
    assert "alert(1)" in page_of(folder) and "49" not in re.findall(r"\b49\b", page_of(folder))


def test_long_curves_keep_their_extremes():
    points = [(step, float(step % 7)) for step in range(50_000)]
    points[31_415], points[2_718] = (31_415, 99.0), (2_718, -99.0)
    found = thinned(points)
    assert len(found) <= MAX_POINTS and {points[0], points[-1], points[31_415], points[2_718]} <= set(found)
    assert found == sorted(found) and thinned(points[:LONG], LONG) == points[:LONG]


def test_a_long_record_makes_a_small_page():
    rows = [{"step": step, "a/x": (step * 37 % 101) / 100, "a/y": step / 5000} for step in range(5000)]
    (chart,) = charts(rows, "a/*")
    assert all(len(s["path"]) < 20 * MAX_POINTS for s in chart["series"]) and len(chart["data"]["steps"]) <= 400
    assert chart["data"]["steps"][0] == 0 and chart["data"]["steps"][-1] == 4999


def test_a_large_png_is_not_decoded(tmp_path):
    folder = a_run(tmp_path, steps=2)
    Image.new("1", (30_000, 30_000)).save(folder / "samples/step_000001.png")
    assert "samples/step_000001.json is left out" in page_of(folder)
