"""A run as lines of a log, on a clock that stands until it is set."""

from __future__ import annotations

import logging

from tiny_runs import write_config

from grpo_mm.entry import train
from grpo_mm.looking.progress_lines import Plan, ProgressLines, heard, log, span
from grpo_mm.processes import progress


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def lines_of(**how):
    said, clock = [], Clock()
    return ProgressLines(said.append, clock=clock, beats=False, **how), said, clock


def steps(lines, clock, count, *, seconds, begin=0):
    for step in range(begin + 1, begin + count + 1):
        clock.now += seconds
        lines.stepped(step, {"time/step_seconds": seconds, "reward/shape/mean": 0.25})


def test_the_first_five_steps_and_then_a_line_a_minute():
    lines, said, clock = lines_of()
    lines.begins(Plan(0, 1000, ("shape",)))
    steps(lines, clock, 5, seconds=2)
    assert said[0] == "step 1/1000  shape 0.250  2 s  about 33 min 18 s left" and len(said) == 5
    steps(lines, clock, 295, seconds=2, begin=5)
    at = [int(line.split("/")[0].removeprefix("step ")) for line in said]
    assert at[5:] == [34 + 29 * k for k in range(10)]  # never more than 60 s apart, as the next step would end too late
    steps(lines, clock, 700, seconds=2, begin=300)
    assert said[-1] == "step 1000/1000  shape 0.250  2 s"


def test_a_run_that_goes_on_counts_its_own_first_steps():
    lines, said, clock = lines_of()
    lines.begins(Plan(500, 1000, ("shape",)))
    steps(lines, clock, 8, seconds=1, begin=500)
    assert [line.split()[1] for line in said] == [f"{step}/1000" for step in range(501, 506)]


def test_a_step_of_minutes_says_what_it_is_at():
    lines, said, clock = lines_of()
    lines.begins(Plan(0, 10, ("shape",)))
    with progress.heard_by(lines.working):
        progress.report("texts", 3, 64)
        clock.now += 59
        lines.beat()
        assert said == []
        clock.now += 1
        lines.beat()
        progress.report("training, forwards", 2, 9)
        clock.now += 65
        lines.beat()
    progress.report("texts", 4, 64)  # to nobody
    assert said == [
        "step 1/10: texts 3/64, for 1 min 00 s now",
        "step 1/10: training, forwards 2/9, for 2 min 05 s now",
    ]


def test_evaluations_are_told_and_their_time_is_still_to_come():
    lines, said, clock = lines_of()
    lines.begins(Plan(0, 100, ("shape",), evaluate_every=20))
    lines.evaluating(0, samples=48)
    lines.working("pictures", 16, 48)
    clock.now += 61
    lines.beat()
    lines.evaluated(0, score=0.5, seconds=100.0)
    steps(lines, clock, 1, seconds=1)
    assert said[:3] == [
        "evaluating 48 samples before training",
        "evaluating before training: pictures 16/48, for 1 min 01 s now",
        "evaluated before training: score 0.5, in 1 min 40 s",
    ]
    # 99 steps of a second, and the evaluations after steps 20, 40, 60, 80 and 100.
    assert said[3].endswith("about 9 min 59 s left") and span(599) == "9 min 59 s"


def test_the_watch_keeps_time_by_itself_and_ends_with_the_run():
    said = []
    lines = ProgressLines(said.append, every_seconds=0.05)
    lines.begins(Plan(0, 10, ()))
    while not said:  # ends within moments, or the test hangs and fails
        lines._over.wait(0.01)
    lines.ends()
    assert said[0].startswith("step 1/10, for ")


def test_names_of_rewards_steer_no_terminal():
    lines, said, clock = lines_of()
    lines.begins(Plan(0, 1, ("a\x1b[31m",)))
    steps(lines, clock, 1, seconds=1)
    assert "\x1b" not in said[0]


def test_python_gets_the_lines_where_logging_is_not_set_up(monkeypatch, capsys):
    monkeypatch.setattr(logging.root, "handlers", [])  # as in a script that has not touched logging
    with heard():
        ProgressLines(beats=False).evaluating(0, samples=2)
    assert capsys.readouterr().err == "evaluating 2 samples before training\n" and not log.handlers
    logging.getLogger("grpo_mm.progress").setLevel(logging.WARNING)
    try:
        with heard():
            ProgressLines(beats=False).evaluating(0, samples=2)
    finally:
        logging.getLogger("grpo_mm.progress").setLevel(logging.NOTSET)
    assert capsys.readouterr().err == ""


def test_a_run_from_python_is_logged(tiny_sd3, tmp_path, caplog):
    heard_of = []

    class Listener(ProgressLines):
        def working(self, what, done, total):
            heard_of.append((what, done, total))

    path = write_config(tmp_path, tiny_sd3, {"steps": 2, "checkpoints": {"every": 0}})
    train(path, told=Listener(beats=False))
    said = [record.message for record in caplog.records if record.name == "grpo_mm.progress"]
    assert [line.split("  ")[0] for line in said] == [
        "evaluating 2 samples before training",
        said[1],
        "step 1/2",
        "step 2/2",
        "evaluating 2 samples after step 2",
        said[5],
    ]
    assert said[1].startswith("evaluated before training: score ") and "left" in said[2]
    assert ("pictures", 2, 2) in heard_of and ("scoring by bright", 0, 8) in heard_of
    assert any(what == "training, forwards" and done == total for what, done, total in heard_of)
    assert any(what == "sampling, latents" and done == total for what, done, total in heard_of)
