"""What a person sees while a run goes on, and at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table as Sheet

from grpo_mm.config.run_config import RunConfig
from grpo_mm.training.trainer import OnStep


@contextmanager
def progress(config: RunConfig) -> Iterator[OnStep]:
    """A bar with the reward; on a pipe, a line every tenth of the run."""
    console = Console(stderr=True)
    names = [f"reward/{name}/mean" for name in config.rewards]

    def words(row: Mapping[str, float]) -> str:
        return "  ".join(f"{name.split('/')[1]} {row.get(name, float('nan')):.3f}" for name in names)

    if not console.is_terminal:
        every = max(1, config.steps // 10)

        def line(step: int, row: dict[str, float]) -> None:
            if step % every == 0 or step == config.steps:
                console.print(
                    f"step {step}/{config.steps}  {words(row)}  {row['time/step_seconds']:.2f} s", highlight=False
                )

        yield line
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
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
    """The held-out table and where to look."""
    console = Console()
    before, after = summary["eval_before"], summary["eval_after"]
    if after:
        sheet = Sheet(title=f"held-out, {summary['steps']} steps")
        for column in ("", "before", "after", "difference"):
            sheet.add_column(column, justify="left" if not column else "right")
        for name in sorted(after, key=lambda n: (n != "score", n)):
            was, now = before.get(name), after[name]
            gain = None if was is None or now is None else f"{now - was:+.4f}"
            sheet.add_row(name, *("–" if cell is None else cell for cell in (_number(was), _number(now), gain)))
        console.print(sheet)
    seconds = summary["seconds"]
    console.print(f"{seconds['train']:.0f} s of training, {seconds['eval']:.0f} s of evaluation", highlight=False)
    console.print(
        f"run folder  {folder}\nproduct     {folder / summary['product']}\nreport      {report}", highlight=False
    )


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"
