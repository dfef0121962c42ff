"""Texts beside the curves: what is kept of questions and answers, and that a run writes it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from children import launch
from PIL import Image
from torch import Tensor
from toy import LENGTH, ToyEngine, ToyPolicy, ToyPolicyConfig, ToyPrompts
from typer.testing import CliRunner

from grpo_mm.cli import app
from grpo_mm.config.run_config import RunConfig
from grpo_mm.config.typed_yaml import build
from grpo_mm.entry import train
from grpo_mm.errors import ConfigError, UserError
from grpo_mm.looking.diversity import distinct_share
from grpo_mm.looking.samples import read_sheets
from grpo_mm.looking.transcripts import (
    MAX_ANSWERS,
    MAX_MARKS,
    MAX_TEXT,
    Answer,
    Marks,
    read_transcripts,
    write_transcript,
)
from grpo_mm.rewards.video.time_line import TimeLine
from grpo_mm.tools.inference import sample
from grpo_mm.types import Outputs, Prompt, Rollout, Rows

CLIP = Prompt("clip/0", "When does the circle appear?", target={"spans": [[2.0, 5.5]], "duration": 9.0})
ANSWERS = (
    Answer("<answer>1 to 2</answer>", {"iou": 0.0}, -1.0),
    Answer("<answer>2 to 5.5</answer>", {"iou": 1.0}, 2.0),
    Answer(None, {}, None),
    Answer("<answer>5 to 3</answer>", {"iou": float("nan")}, float("nan"), is_demo=True),
    Answer("none", {"iou": 0.0}, 0.5),
)


def write(folder, asked=((CLIP, ANSWERS),), **changes):
    settings = {"name": "step_000010", "kind": "rollout", "step": 10, "asked": asked, "sketch": TimeLine()}
    return write_transcript(folder, **(settings | changes))


def only(folder):
    (transcript,) = read_transcripts(folder)
    (exchange,) = transcript.exchanges
    return exchange


def frames(count, height=8, width=12):
    """Evenly grey frames, each lighter than the one before."""
    grey_K = torch.arange(count, dtype=torch.uint8) * 10 + 5
    return grey_K[:, None, None, None].expand(-1, 3, height, width)


# ── what is kept ──


def test_answers_come_best_first_with_what_they_point_at(tmp_path):
    assert write(tmp_path) == tmp_path / "step_000010.jsonl"
    (transcript,) = read_transcripts(tmp_path)
    assert (transcript.name, transcript.kind, transcript.step) == ("step_000010", "rollout", 10)
    found = only(tmp_path)
    assert (found.id, found.question, found.group_size) == (CLIP.id, CLIP.text, 5)
    assert found.truth == Marks(extent=9.0, spans=[[2.0, 5.5]], boxes=[], names=[])
    assert [answer.advantage for answer in found.answers] == [2.0, 0.5, -1.0, None, None]
    assert [answer.marks.spans for answer in found.answers] == [[[2.0, 5.5]], [], [[1.0, 2.0]], [], [[5.0, 3.0]]]
    assert [answer.text is None for answer in found.answers] == [False, False, False, True, False]
    assert found.answers[-1].is_demo and found.answers[-1].rewards == {"iou": None}
    assert "NaN" not in (tmp_path / "step_000010.jsonl").read_text()


def test_each_line_stands_alone(tmp_path):
    other = replace(CLIP, id="clip/1", text="two\nlines\u2028and a separator")
    rows = [json.loads(line) for line in write(tmp_path, [(CLIP, ANSWERS), (other, ())]).read_bytes().splitlines()]
    assert [(row["step"], row["kind"], row["id"]) for row in rows] == [
        (10, "rollout", "clip/0"),
        (10, "rollout", "clip/1"),
    ]
    assert read_transcripts(tmp_path)[0].exchanges[1].question == other.text


def test_equal_input_gives_equal_bytes_and_nothing_else_stays_behind(tmp_path):
    for name in ("a", "b"):
        for _ in range(2):
            write(tmp_path / name, illustrate=lambda prompt: frames(3))
    files = [sorted(path for path in (tmp_path / name).rglob("*") if path.is_file()) for name in ("a", "b")]
    assert [path.suffix for path in files[0]] == [".png", ".jsonl"]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_a_large_group_keeps_its_best_and_its_worst(tmp_path):
    many = [Answer(str(i), {}, float(i)) for i in range(MAX_ANSWERS + 5)]
    write(tmp_path, [(CLIP, many)])
    kept = only(tmp_path)
    assert kept.group_size == MAX_ANSWERS + 5
    assert [a.advantage for a in kept.answers] == [20, 19, 18, 17, 16, 15, 14, 13, 7, 6, 5, 4, 3, 2, 1, 0]


def test_a_long_text_loses_its_middle_and_is_drawn_whole(tmp_path):
    text = "a" * MAX_TEXT + "<answer>3 to 4</answer>" + "z" * MAX_TEXT
    write(tmp_path, [(CLIP, [Answer(text)])])
    (answer,) = only(tmp_path).answers
    assert answer.left_out == len(text) - MAX_TEXT
    assert answer.text == "a" * (MAX_TEXT // 2) + " … " + "z" * (MAX_TEXT // 2)
    assert answer.marks.spans == [[3.0, 4.0]]


def test_text_that_is_no_unicode_is_kept_as_far_as_it_goes(tmp_path):
    write(tmp_path, [(CLIP, [Answer("a lone \ud800 half")])])
    assert only(tmp_path).answers[0].text == "a lone ? half"


def test_marks_are_finite_and_few():
    found = Marks.of({"extent": float("inf"), "spans": [[0.0, float("nan")], (1, 2)], "boxes": [[0, 0, 1, 1]] * 99})
    assert found == Marks(spans=[[1.0, 2.0]], boxes=[[0.0, 0.0, 1.0, 1.0]] * MAX_MARKS, names=[])
    with pytest.raises(TypeError, match="span"):
        Marks.of({"span": [1, 2]})
    with pytest.raises(ValueError, match=r"\[1, 2, 3\] has 3 entries, wanted 2"):
        Marks.of({"spans": [[1, 2, 3]]})


def test_a_sketch_that_fails_draws_nothing_and_ends_nothing(tmp_path, caplog):
    class Broken(TimeLine):
        def __call__(self, prompt, text):
            return {"spans": [[1.0, text.index("to")]]}

    write(tmp_path, sketch=Broken())
    assert [bool(answer.marks.spans) for answer in only(tmp_path).answers] == [True, False, True, False, True]
    assert "nothing is drawn of prompt 'clip/0': ValueError: substring not found" in caplog.text


def test_spans_are_those_that_the_reward_reads():
    text = "10 to 12 <answer>1 to 2, then 3 to 4</answer>"
    assert TimeLine()(CLIP, text) == {"spans": [[1.0, 2.0], [3.0, 4.0]]}
    assert TimeLine(pick="last")(CLIP, text) == {"spans": [[3.0, 4.0]]}
    assert TimeLine(pick="first", tag=None)(CLIP, text) == {"spans": [[10.0, 12.0]]}
    assert TimeLine(pick="first", require_tag=True)(CLIP, "1 to 2") == {"spans": []}
    assert Marks.of(TimeLine().truth(Prompt("a", "b"))) == Marks(spans=[], boxes=[], names=[])


# ── pictures ──


def test_frames_stand_side_by_side_in_one_file_for_all_who_show_them(tmp_path):
    for name in ("step_000010", "eval_after"):
        write(tmp_path, [(CLIP, ANSWERS), (replace(CLIP, id="b"), ANSWERS)], name=name, illustrate=lambda _: frames(3))
    (file,) = (tmp_path / "media").iterdir()
    pictures = {e.picture for t in read_transcripts(tmp_path) for e in t.exchanges}
    (picture,) = pictures
    assert (picture.file, picture.frames, picture.size_px) == (f"media/{file.name}", 3, (12, 8))
    with Image.open(file) as strip:
        assert strip.size == (36, 8)
        assert [strip.getpixel((12 * k + 6, 4)) for k in range(3)] == [(5,) * 3, (15,) * 3, (25,) * 3]


@pytest.mark.parametrize(
    ("count", "size_px", "kept_px", "kind"),
    [
        (1, (96, 40), (96, 40), "png"),
        (1, (100, 50), (100, 50), "jpeg"),
        (1, (1000, 500), (384, 192), "jpeg"),
        (2, (500, 1000), (80, 160), "jpeg"),
    ],
)
def test_small_pictures_stay_exact_and_large_ones_are_shrunk(tmp_path, count, size_px, kept_px, kind):
    write(tmp_path, illustrate=lambda _: frames(count, size_px[1], size_px[0]))
    picture = only(tmp_path).picture
    assert (picture.size_px, picture.file.rpartition(".")[2]) == (kept_px, kind)
    with Image.open(tmp_path / picture.file) as strip:
        assert strip.size == (count * kept_px[0], kept_px[1])


def test_a_prompt_without_anything_to_show_has_no_picture(tmp_path):
    write(tmp_path, illustrate=lambda prompt: None)
    assert only(tmp_path).picture is None and not (tmp_path / "media").exists()


def test_pictures_of_another_kind_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"torch.float32 \(2, 3, 8, 12\); wanted uint8"):
        write(tmp_path, illustrate=lambda prompt: frames(2).float())


# ── files ──


def test_transcripts_come_by_step_and_damaged_ones_are_left_out(tmp_path):
    for step in (20, 3, 100, 7):
        write(tmp_path, name=f"step_{step:06d}", step=step)
    (tmp_path / "step_000003.jsonl").write_text('{"step": 3, "kin')
    (tmp_path / "step_000007.jsonl").write_text("")
    assert [transcript.step for transcript in read_transcripts(tmp_path)] == [20, 100]
    assert read_transcripts(tmp_path / "no such folder") == read_sheets(tmp_path) == []


# ── a run that makes texts ──


@dataclass(frozen=True)
class TextPrompts(ToyPrompts):
    def load(self) -> list[Prompt]:
        return [replace(prompt, media=(f"{prompt.text}.mp4",)) for prompt in super().load()]


class TextPolicy(ToyPolicy):
    product = "model"

    def usage(self) -> dict[str, str]:
        return {"base_model": "toy", "library": "none", "code": "", "tags": "text-generation"}

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class TextPolicyConfig(ToyPolicyConfig):
    def load(self, device: torch.device) -> TextPolicy:
        return TextPolicy(self)


@dataclass(frozen=True)
class TextEngine(ToyEngine):
    """Texts like "<answer>3 1 4</answer>"; the video of prompt 1 cannot be read."""

    demos: bool = True

    def network_calls(self, policy: Any, **_: Any) -> dict[str, int]:
        return {"rollout": 1, "train": 1}

    def sample(self, policy: Any, rows: Rows, **how: Any) -> tuple[Rollout, Outputs]:
        rollout, outputs = super().sample(policy, rows, **how)
        good_N = torch.tensor([rows.prompts[p].text != "1" for p in rows.prompt_N.tolist()])
        shown = torch.nonzero(good_N).flatten()
        texts = [_text(outputs.items[i][0]) for i in shown.tolist()]
        columns = rollout.columns | {"demo": rollout.columns["demo"] * good_N}
        rollout = replace(rollout, mask_NA=rollout.mask_NA & good_N[:, None], columns=columns)
        return rollout, Outputs(texts, shown)

    def render(self, policy: ToyPolicy, rows: Rows, *, seed: int) -> list[str | None]:
        prompts = [rows.prompts[p] for p in rows.prompt_N.tolist()]
        best_PA = policy.logits.argmax(-1).tolist()
        opened = [" ".join(type(item).__name__ for item in p.media if not isinstance(item, str)) for p in prompts]
        return [
            None if p.text == "1" else _text(best_PA[int(p.text)]) + what
            for p, what in zip(prompts, opened, strict=True)
        ]

    def illustrate(self, policy: TextPolicyConfig, prompt: Prompt) -> Tensor | None:
        assert isinstance(policy, TextPolicyConfig) and prompt.media[0].endswith(".mp4")
        return None if prompt.text == "1" else frames(4) + int(prompt.text)


def _text(tokens: Sequence[int]) -> str:
    return f"<answer>{' '.join(map(str, tokens))}</answer>"


@dataclass(frozen=True)
class LikesOnes:
    def __call__(self, items: Sequence[str], prompts: Sequence[Prompt]) -> Tensor:
        assert all(isinstance(item, str) for item in items)
        return torch.tensor([item.count("1") / LENGTH for item in items])


def text_run(folder: Path, **changes: Any) -> RunConfig:
    settings = {
        "name": "texts", "policy": TextPolicyConfig(start=0.5), "engine": TextEngine(), "runs_dir": str(folder / "runs"),
        "prompts": {"toy": {"use": TextPrompts()}}, "eval_prompts": {"toy": {"use": TextPrompts(4)}},
        "rewards": {"ones": {"use": LikesOnes()}}, "watch": {"watched": {"use": LikesOnes()}}, "sketch": TimeLine(),
        "steps": 4, "prompts_per_step": 8, "group_size": 4, "samples_every": 2, "optim": {"lr": 0.1},
        "checkpoints": {"every": 2}, "device": "cpu", "threads": 1,
    }  # fmt: skip
    return build(RunConfig, settings | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[Path]:
    config = text_run(tmp_path_factory.mktemp("texts"))
    train(config)
    yield config.folder


def test_a_run_of_texts_writes_transcripts_instead_of_sheets(run):
    found = read_transcripts(run / "samples")
    assert [(t.name, t.step) for t in found] == [
        ("eval_before", 0), ("step_000001", 1), ("step_000002", 2), ("eval_after", 4), ("step_000004", 4)
    ]  # fmt: skip
    assert read_sheets(run / "samples") == []
    rollout = found[1]
    assert [len(e.answers) for e in rollout.exchanges] == [4] * 6  # the first of eight groups
    for exchange in rollout.exchanges:
        if exchange.question == "1":
            assert exchange.picture is None and all(a.text is None and a.advantage is None for a in exchange.answers)
            continue
        assert exchange.picture.frames == 4
        assert [a.is_demo for a in exchange.answers].count(True) == 1
        for answer in exchange.answers:
            assert answer.rewards == {"ones": pytest.approx(answer.text.count("1") / LENGTH, abs=1e-5)}
        advantages = [a.advantage for a in exchange.answers]
        assert advantages == sorted(advantages, reverse=True) and abs(sum(advantages)) < 1e-4


def test_evaluations_show_the_same_questions(run):
    before, after = (t for t in read_transcripts(run / "samples") if t.kind == "eval")
    assert [e.id for e in before.exchanges] == [e.id for e in after.exchanges] == [f"toy/{i}" for i in range(4)]
    assert [e.picture for e in before.exchanges] == [e.picture for e in after.exchanges]
    unread = after.exchanges[1].answers[0]
    assert unread.text is None and unread.rewards == {"ones": None} and unread.advantage is None
    ones = [sum(e.answers[0].text.count("1") for e in t.exchanges if e.answers[0].text) for t in (before, after)]
    assert ones[1] > ones[0]


def test_a_resumed_run_writes_the_same_transcripts(run, tmp_path):
    config = text_run(tmp_path, steps=4)
    train(config)
    files = sorted(p.relative_to(run) for p in (run / "samples").rglob("*") if p.is_file())
    first = {name: (config.folder / name).read_bytes() for name in files}
    (config.folder / "samples/step_000004.jsonl").unlink()
    (config.folder / "samples/eval_after.jsonl").unlink()
    train(config, checkpoint="step_000002")
    assert {name: (config.folder / name).read_bytes() for name in files} == first
    assert first == {name: (run / name).read_bytes() for name in files}


def test_watched_rewards_do_not_see_demonstrations(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first = next(row for row in rows if row["step"] == 1)
    assert first["watch/watched/score"] == pytest.approx(first["reward/ones/mean"], abs=1e-6)


def test_the_card_is_tagged_as_the_policy_says(run):
    assert "tags: [text-generation, grpo, grpo_mm]" in (run / "model/README.md").read_text()


def test_two_processes_write_what_one_writes(run, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, pathlib\n"
        "from grpo_mm.entry import train\n"
        "from test_transcripts import text_run\n"
        "train(text_run(pathlib.Path(sys.argv[1]), steps=1))\n"
    )
    launch(script, tmp_path)
    files = [folder / "samples/step_000001.jsonl" for folder in (run, tmp_path / "runs/texts")]
    assert files[0].read_text() == files[1].read_text()


# ── sampling from it ──


def test_sampling_gives_answers_and_writes_them(run, tmp_path):
    made = sample(run, prompts=["0", "1"], out=tmp_path / "out", count=2)
    assert len(made.answers) == 2 and made.answers[1] == [None, None]
    assert made.answers[0][0].startswith("<answer>") and made.answers[0][0] == made.answers[0][1]
    assert made.files == [tmp_path / "out/answers.json"]
    found = json.loads(made.files[0].read_text())
    assert found == [{"prompt": p, "answers": a} for p, a in zip(["0", "1"], made.answers)]


def test_the_command_prints_the_answers_and_opens_media_by_their_endings(run, tmp_path):
    for name in ("a.PNG", "b.mkv"):
        (tmp_path / name).touch()
    command = ["sample", str(run), "--prompt", "0", "--prompt", "1", "--out", str(tmp_path / "out"), "--media"]
    done = CliRunner().invoke(app, [*command, str(tmp_path / "a.PNG"), "--media", str(tmp_path / "b.mkv")])
    lines = done.output.splitlines()
    assert lines[0] == "0" and lines[1].startswith("  <answer>") and lines[1].endswith("</answer>ImageFile VideoFile")
    assert lines[2:] == ["1", "  (not asked; see above)", str(tmp_path / "out/answers.json")]
    missing = CliRunner().invoke(app, [*command, str(tmp_path / "none.mp4")])
    assert isinstance(missing.exception, UserError) and "none.mp4: there is no such file" in str(missing.exception)


def test_media_for_an_engine_that_looks_at_none_are_refused(run, tmp_path):
    config = tmp_path / "toy.yaml"
    config.write_text((run / "config.yaml").read_text().replace(f"{TextEngine.__module__}:TextEngine", "toy:ToyEngine"))
    with pytest.raises(ConfigError, match="toy:ToyEngine looks at no media; leave them out"):
        sample(config, prompts=["0"], media=["a.mp4"], out=tmp_path / "out")


def test_distinct_share_runs_from_one_answer_to_all_different():
    assert distinct_share(["a", "a", "a", "b", "c", "d"], [0, 0, 0, 1, 1, 1]) == 0.5
    assert distinct_share(["a", "b", "a"], [0, 0, 0]) == 0.5
    assert distinct_share(["a", "a", "b"], [0, 0, 1]) == 0  # a prompt with one text says nothing
    assert math.isnan(distinct_share(["a"], [0])) and math.isnan(distinct_share([], []))
