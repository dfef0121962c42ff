"""What a person sees while a run goes on, and at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table as Sheet
from rich.text import Text

from grpo_mm.config.run_config import RunConfig
from grpo_mm.looking import held_out
from grpo_mm.looking.held_out import repeats_its_mean
from grpo_mm.outside import finite_number, plain
from grpo_mm.training.trainer import OnStep

VERDICT_STYLES = {"better": "bold green", "worse": "bold red", "suspect": "bold yellow"}


@contextmanager
def progress(config: RunConfig) -> Iterator[OnStep]:
    """A bar with the reward; on a pipe, a line every tenth of the run."""
    console = Console(stderr=True)
    names = {name: f"reward/{name}/mean" for name in config.rewards}

    def words(row: Mapping[str, float]) -> str:
        return "  ".join(f"{plain(name, 60)} {row.get(key, float('nan')):.3f}" for name, key in names.items())

    if not console.is_terminal:
        every = max(1, config.steps // 10)

        def line(step: int, row: dict[str, float]) -> None:
            if step % every == 0 or step == config.steps:
                _print(console, f"step {step}/{config.steps}  {words(row)}  {row['time/step_seconds']:.2f} s")

        yield line
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        task = bars.add_task("evaluating before training", total=config.steps)

        def advance(step: int, row: dict[str, float]) -> None:
            done = step == config.steps
            bars.update(task, completed=step, description="evaluating" if done else f"reward: {words(row)}")

        yield advance


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
    _print(
        console, f"run folder  {folder}\nproduct     {folder / str(summary.get('product', '?'))}\nreport      {report}"
    )


def _held_out_sheet(before: Mapping[str, Any], after: Mapping[str, Any], folder: Path, *, steps: Any) -> Sheet:
    """Each score with the standard error of its difference over prompts; a part that repeats its reward's mean is left out."""
    sheet = Sheet(title=f"held-out, {steps} steps", caption="± standard error of the difference, paired by prompt")
    for column in ("", "before", "after", "difference", "±", "prompts"):
        sheet.add_column(column, justify="left" if not column else "right")
    evaluations = held_out.read(folder / held_out.NAME, [])
    for name in sorted(after, key=lambda n: (n != "score", n)):
        if repeats_its_mean(name, before, after):
            continue
        was, now = finite_number(before.get(name)), finite_number(after[name])
        change = held_out.paired(evaluations[0], evaluations[-1], name) if len(evaluations) > 1 else None
        gain = None if was is None or now is None else Text(f"{now - was:+.4f}", style=_style(change))
        cells = (_number(was), _number(now), gain, _number(change and change.error), str(change.n) if change else None)
        sheet.add_row(Text(plain(name, 120)), *("–" if cell is None else cell for cell in cells))
    return sheet


def _style(change: held_out.Estimate | None) -> str:
    """Grey within the error."""
    return "" if change is None else "dim" if change.within_error else "bold"


def _print(console: Console, text: str) -> None:
    """Names and paths are no markup: [red] and :smile: stand in them as they are."""
    console.print(Text(plain(text, 4000)), soft_wrap=True)


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"
