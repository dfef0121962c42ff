"""What a person sees while a run goes on, and at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table as Sheet
from rich.text import Text

from grpo_mm.looking import held_out
from grpo_mm.looking.origin import origin_of
from grpo_mm.looking.progress_lines import Plan, ProgressLines, Told, reward_words
from grpo_mm.looking.same_figures import shown_once
from grpo_mm.outside import finite_number, plain

VERDICT_STYLES = {"better": "bold green", "worse": "bold red", "suspect": "bold yellow"}


@contextmanager
def progress() -> Iterator[Told]:
    """A bar with the reward; on a pipe, lines."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield ProgressLines(partial(_print, console))
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        yield Bar(bars)


class Bar:
    """Hears of a run, and draws it as one bar of its steps."""

    def __init__(self, bars: Progress) -> None:
        self.bars, self.plan, self.step, self.evaluates = bars, Plan(0, 0, ()), "", ""
        self.task = bars.add_task("loading", total=None)

    def begins(self, plan: Plan) -> None:
        self.plan = plan
        self.bars.update(self.task, total=plan.steps, completed=plan.step, description="sampling")

    def evaluating(self, step: int, *, samples: int) -> None:
        self.evaluates = "evaluating before training" if step == 0 else "evaluating"
        self.bars.update(self.task, description=self.evaluates)

    def evaluated(self, step: int, *, score: float, seconds: float) -> None:
        self.evaluates = ""
        self.bars.update(self.task, description=self.step or f"score before training: {score:.3f}")

    def stepped(self, step: int, row: Mapping[str, float]) -> None:
        self.step = f"reward: {reward_words(self.plan.rewards, row)}"
        self.bars.update(self.task, completed=step, description=self.step)

    def working(self, what: str, done: int, total: int) -> None:
        if self.evaluates:
            self.bars.update(self.task, description=f"{self.evaluates}: {what} {done}/{total}")

    def ends(self) -> None:
        pass


def before_after(summary: Mapping[str, Any], folder: Path, report: Path) -> None:
    """The held-out table, the verdict and where to look; what a summary does not tell is left out."""
    console = Console()
    if "nothing_was_run" in summary:
        _print(console, str(summary["nothing_was_run"]))
    before, after = summary.get("eval_before") or {}, summary.get("eval_after") or {}
    if after:
        console.print(_held_out_sheet(before, after, folder, steps=summary.get("steps", "?")))
    found = summary.get("verdict")
    if isinstance(found, Mapping) and isinstance(found.get("sentence"), str):
        style = VERDICT_STYLES.get(str(found.get("verdict")), "")
        console.print(Text(plain(found["sentence"], 2000), style=style), soft_wrap=True)
    train, evaluation = (finite_number((summary.get("seconds") or {}).get(part)) for part in ("train", "eval"))
    if train is not None and evaluation is not None:
        _print(console, f"{train:.0f} s of training, {evaluation:.0f} s of evaluation")
    origin = origin_of(summary.get("product_of"))
    product = f"{folder / str(summary.get('product', '?'))}" + (f"  ({origin.words()})" if origin else "")
    better = origin and origin.better(str(folder))
    _print(console, f"run folder  {folder}\nproduct     {product}\nreport      {report}")
    if better:
        _print(console, better)


def _held_out_sheet(before: Mapping[str, Any], after: Mapping[str, Any], folder: Path, *, steps: Any) -> Sheet:
    """Each score with the standard error of its difference over prompts, what is one number once."""
    sheet = Sheet(title=f"held-out, {steps} steps", caption="± standard error of the difference, paired by prompt")
    for column in ("", "before", "after", "difference", "±", "prompts"):
        sheet.add_column(column, justify="left" if not column else "right")
    evaluations = held_out.read(folder / held_out.NAME, [])
    order = sorted(after, key=lambda n: (n != "score", n))
    for name, names in shown_once(order, before, after).items():
        was, now = finite_number(before.get(name)), finite_number(after[name])
        change = held_out.paired(evaluations[0], evaluations[-1], name) if len(evaluations) > 1 else None
        gain = None if was is None or now is None else Text(f"{now - was:+.4f}", style=_style(change))
        cells = (_number(was), _number(now), gain, _number(change and change.error), str(change.n) if change else None)
        sheet.add_row(
            Text(" = ".join(plain(one, 120) for one in names)), *("–" if cell is None else cell for cell in cells)
        )
    return sheet


def _style(change: held_out.Estimate | None) -> str:
    """Grey within the error."""
    return "" if change is None else "dim" if change.within_error else "bold"


def _print(console: Console, text: str) -> None:
    """Names and paths are no markup: [red] and :smile: stand in them as they are."""
    console.print(Text(plain(text, 4000)), soft_wrap=True)


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"
