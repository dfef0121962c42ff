"""A run as one HTML page: what it learnt, what that looks like, and whether the curves are healthy.

    run folder ─▶ Run ─▶ view (plain values for the template) ─▶ report.html

Whatever is missing (no evaluation, no pictures, a killed run) becomes a sentence on the page.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from PIL import Image

from grpo_mm import metrics
from grpo_mm.errors import UserError
from grpo_mm.samples import Cell, Sheet, read_sheets

NUM_ROLLOUT_SHEETS = 5
MAX_SERIES = 6
PIXEL_ART_PX = 96
"""Tiles up to this size are enlarged with hard pixels, larger ones are photographs."""


@dataclass(frozen=True)
class Run:
    """What a run folder holds; empty where it holds nothing (yet)."""

    name: str
    config: Mapping[str, Any]
    config_text: str
    versions: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    """metrics.jsonl"""
    summary: Mapping[str, Any]
    sheets: Sequence[Sheet]


@dataclass(frozen=True)
class Curves:
    """One chart: the metrics whose names match, and what they look like in a healthy run."""

    title: str
    match: tuple[str, ...]
    healthy: str
    split: bool = False
    """One chart for each second part of the name: reward/shape/…, reward/quality/…"""
    log: bool = False
    stacked: bool = False
    leave_out: tuple[str, ...] = ()


CHARTS = {
    "Is it learning?": (
        Curves("Held-out score", ("eval/score", "eval/*/mean", "eval/*/all_correct"),
               "Prompts never trained on, fixed noise. Rises and then levels off; the strict parts rise with the mean."),
        Curves("Reward", ("reward/*/mean", "reward/*/*"), split=True, leave_out=("*/unscored_frac",),
               healthy="Rises with the held-out score. A reward that rises alone is being hacked."),
        Curves("Watched", ("watch/*",), split=True, leave_out=("*/unscored_frac",),
               healthy="Not optimised. Holds or rises; a steady fall is what the reward is being traded for."),
        Curves("Held out and watched", ("eval/*/score", "eval/diversity"),
               "Not optimised, on the held-out prompts. Holds."),
        Curves("Diversity", ("diversity/*",), "Distance between samples of one prompt. May sink; near zero is collapse."),
    ),
    "Are the updates sound?": (
        Curves("Log-prob gap", ("policy/logprob_gap",), log=True,
               healthy="Trainer against sampler on unchanged weights. Stays at rounding; a jump is a bug, not learning."),
        Curves("Ratio", ("objective/ratio",), "Mean importance ratio. Stays within a hair of 1."),
        Curves("Clip fraction", ("objective/clip_frac",), "Above 0, well below 1: the clip guards and does not stall."),
        Curves("KL to the reference", ("objective/ref_kl",), "Grows slowly and bends; a straight climb drifts away."),
        Curves("Groups without signal", ("advantage/zero_groups_frac", "reward/failed_frac", "*/unscored_frac"),
               "Equal rewards in a group teach nothing. Low at first; rising late means solved prompts."),
        Curves("Gradient norm", ("optim/grad_norm",), "Settles after the first steps; rare spikes are clipped."),
        Curves("Learning rate", ("optim/lr",), "As configured: warm-up, then constant or decay."),
    ),
    "Where does the time go?": (
        Curves("Seconds a step, by phase", ("time/*_seconds",), stacked=True,
               leave_out=("time/eval_seconds", "time/step_seconds"),
               healthy="Flat. Networks should dominate; a growing phase is a leak."),
    ),
}  # fmt: skip


def write_report(run_folder: Path) -> Path:
    """Writes `report.html` into the run's folder, one file that needs nothing else.

    Raises:
        UserError: there is no run in that folder.
    """
    run = read_run(Path(run_folder))
    source = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(source)
    path = Path(run_folder) / "report.html"
    aside = path.with_name(".writing_report")
    aside.write_text(template.render(view(run)), encoding="utf-8")
    os.replace(aside, path)
    return path


def read_run(folder: Path) -> Run:
    """Everything that is there and whole."""
    if not any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl", "summary.json")):
        raise UserError(f"{folder} holds no run: there is no config.yaml and no metrics.jsonl. Name a folder like runs/<name>.")
    text = _text(folder / "config.yaml")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        config = None
    config = config if isinstance(config, dict) else {}
    return Run(
        name=str(config.get("name") or folder.resolve().name),
        config=config,
        config_text=text,
        versions=_json(folder / "versions.json"),
        rows=[row for row in metrics.read(folder / "metrics.jsonl") if isinstance(row.get("step"), int)],
        summary=_json(folder / "summary.json"),
        sheets=read_sheets(folder / "samples"),
    )


def view(run: Run) -> dict[str, Any]:
    """What the template shows."""
    before, after = _held_out(run)
    return {
        "name": run.name,
        "headline": _headline(run, before, after),
        "status": _status(run),
        "facts": _facts(run),
        "scores": _score_table(run, before, after),
        "pictures": _before_and_after(run.sheets),
        "sections": _sections(run.rows),
        "rollouts": [_rollout(sheet) for sheet in _spread([s for s in run.sheets if s.kind == "rollout"], NUM_ROLLOUT_SHEETS)],
        "config_text": run.config_text,
        "versions": _flat(run.versions or run.summary.get("versions") or {}),
    }


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path))
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


# ── words and numbers ─────────────────────────────────────────────────────────────────────────────────────────────────


def _held_out(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """The evaluations before and after; of a run without a summary the first and the last in the record."""
    rows = [row for row in run.rows if "eval/score" in row]
    recorded = [{k.removeprefix("eval/"): v for k, v in row.items() if k.startswith("eval/")} for row in rows]
    before = run.summary.get("eval_before") or (recorded[0] if recorded and rows[0]["step"] == 0 else {})
    after = run.summary.get("eval_after") or (recorded[-1] if recorded and rows[-1]["step"] > 0 else {})
    return before, after


def _headline(run: Run, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    seconds = (run.summary.get("seconds") or {}).get("total") or sum(
        row.get("time/step_seconds") or _sum_of(row, "time/") for row in run.rows
    )
    calls = run.summary.get("network_calls") or {}
    network_calls = sum(v for k, v in calls.items() if k != "rewards") or sum(_sum_of(row, "calls/") for row in run.rows)
    return {
        "before": _score(before.get("score")),
        "after": _score(after.get("score")),
        "change": _change(before.get("score"), after.get("score")),
        "steps": _last_step(run),
        "time": duration(seconds) if seconds else "",
        "calls": count(network_calls) if network_calls else "",
    }


def _last_step(run: Run) -> int:
    return run.summary.get("steps") or max((row["step"] for row in run.rows), default=0)


def _sum_of(row: Mapping[str, Any], prefix: str) -> float:
    return sum(v for k, v in row.items() if k.startswith(prefix) and v is not None and not k.endswith("/rewards"))


def _status(run: Run) -> str:
    step, steps = _last_step(run), run.config.get("steps")
    if not run.summary:
        of = f" of {steps}" if steps else ""
        return f"This run has no summary yet: it is still going, or was stopped, after step {step}{of}."
    if run.summary.get("stopped_early"):
        return f"Stopped early after step {step}{f' of {steps}' if steps else ''}: {run.summary['stopped_early']}."
    return ""


def _facts(run: Run) -> list[str]:
    config = run.config
    kinds = [config[key]["kind"] for key in ("policy", "engine") if isinstance(config.get(key), dict) and "kind" in config[key]]
    facts = [" · ".join(dict.fromkeys(kinds))]
    if config.get("prompts_per_step") and config.get("group_size"):
        facts.append(f"{config['prompts_per_step']} prompts × {config['group_size']} samples a step")
    facts += [f"seed {config['seed']}"] if "seed" in config else []
    facts += [f"trains {article(run.summary['product'])}"] if run.summary.get("product") else []
    return [fact for fact in facts if fact]


def article(noun: str) -> str:
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"


def _score_table(run: Run, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per score: the primary one, what is optimised, its parts, what is only watched."""
    weights = {name: (scorer or {}).get("weight", 1.0) for name, scorer in (run.config.get("rewards") or {}).items()}
    rows = []
    for key in dict.fromkeys([*before, *after]):
        name, _, part = key.partition("/")
        optimised = key == "score" or name in weights and weights[name] != 0
        role = "primary" if key == "score" else "optimised" if optimised and part == "mean" else "part" if optimised else "watched"
        b, a = before.get(key), after.get(key)
        in_unit = all(_finite(x) and 0 <= x <= 1 for x in (b, a))
        rows.append({
            "key": key, "role": role, "before": _score(b), "after": _score(a), "change": _change(b, a),
            "dumbbell": (100 * b, 100 * a) if in_unit else None,
        })  # fmt: skip
    order = ("primary", "optimised", "part", "watched")
    return sorted(rows, key=lambda row: order.index(row["role"]))


def _change(before: Any, after: Any) -> dict[str, str] | None:
    if not (_finite(before) and _finite(after)):
        return None
    change = after - before
    text = _score(abs(change))
    return {"text": text if float(text) == 0 else ("+" if change > 0 else "−") + text, "sign": _sign(float(text) and change)}


def _sign(x: float) -> str:
    return "up" if x > 0 else "down" if x < 0 else "same"


def _finite(x: Any) -> bool:
    return isinstance(x, (int, float)) and math.isfinite(x)


def _score(x: Any) -> str:
    return ("–" if not _finite(x) else f"{x:.3f}" if abs(x) < 100 else f"{x:.0f}").replace("-", "−")


def number(x: float) -> str:
    """At most four digits: 0.61, 12300, 3e-5."""
    return f"{x:.4g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e").replace("-", "−")


def duration(seconds: float) -> str:
    """42 s, 3 min 05 s, 1 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole // 60 % 60:02d} min"


def count(x: float) -> str:
    """950, 48 thousand, 1.2 million."""
    for size, word in ((1e9, "billion"), (1e6, "million"), (1e4, "thousand")):
        if x >= size:
            return f"{x / (1e3 if size == 1e4 else size):.3g} {word}"
    return f"{x:.0f}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return found
