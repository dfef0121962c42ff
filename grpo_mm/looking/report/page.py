"""A run as one HTML page: what it learnt, what that looks like, and whether the curves are healthy.

    run folder ─▶ Run ─▶ view (plain values; the words are in the two .html.j2) ─▶ report.html

Whatever is missing (no evaluation, no pictures or texts, a killed run) becomes a sentence on the page.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from grpo_mm.errors import UserError
from grpo_mm.looking import metrics
from grpo_mm.looking.report.curves import charts
from grpo_mm.looking.report.pictures import before_and_after, rollout_strip, spread_over
from grpo_mm.looking.report.rules import read_events, rules_of, sentences, upon_curves
from grpo_mm.looking.report.texts import before_and_after_texts, rollout_texts
from grpo_mm.looking.report.words import change_of, count, duration, finite, flat, score
from grpo_mm.looking.samples import Sheet, read_sheets
from grpo_mm.looking.transcripts import Transcript, read_transcripts
from grpo_mm.processes.clock import NETWORK_CALLS

NUM_ROLLOUT_SHEETS = 5


@dataclass(frozen=True)
class Run:
    """What a run folder holds; empty where it holds nothing (yet)."""

    name: str
    config: Mapping[str, Any]
    config_text: str
    versions: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    """metrics.jsonl"""
    events: Sequence[Mapping[str, Any]]
    """events.jsonl: what watch rules did."""
    summary: Mapping[str, Any]
    sheets: Sequence[Sheet]
    transcripts: Sequence[Transcript]


def write_report(run_folder: Path) -> Path:
    """Writes `report.html` into the run's folder, one file that needs nothing else.

    Raises:
        UserError: there is no run in that folder.
    """
    folder = Path(run_folder)
    settings = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, **settings)
    page = templates.get_template("report.html.j2").render(view(read_run(folder)))
    path, aside = folder / "report.html", folder / ".writing_report"
    aside.write_text(page, encoding="utf-8")
    os.replace(aside, path)
    return path


def read_run(folder: Path) -> Run:
    """Everything that is there and whole."""
    if not any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl", "summary.json")):
        raise UserError(f"{folder} holds no run: no config.yaml, no metrics.jsonl. Name a folder like runs/<name>.")
    text = _text(folder / "config.yaml")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        config = None
    summary = _json(folder / "summary.json")
    return Run(
        name=str(summary.get("name") or folder.resolve().name),
        config=config if isinstance(config, dict) else {},
        config_text=text,
        versions=_json(folder / "versions.json") or summary.get("versions") or {},
        rows=[row for row in metrics.read(folder / "metrics.jsonl") if isinstance(row.get("step"), int)],
        events=read_events(folder / "events.jsonl"),
        summary=summary,
        sheets=read_sheets(folder / "samples"),
        transcripts=read_transcripts(folder / "samples"),
    )


def view(run: Run) -> dict[str, Any]:
    """What the template shows."""
    before, after = _held_out(run)
    sheets = [sheet for sheet in run.sheets if sheet.step <= _last_step(run)]  # a resumed run left later ones behind
    rollouts = [sheet for sheet in sheets if sheet.kind == "rollout"]
    texts = [transcript for transcript in run.transcripts if transcript.step <= _last_step(run)]
    text_rollouts = [transcript for transcript in texts if transcript.kind == "rollout"]
    rules = rules_of(run.config, run.rows)
    return {
        "name": run.name,
        "headline": _headline(run, before, after),
        "facts": _facts(run.config, run.summary),
        "scores": _scores(run.config.get("rewards") or {}, before, after),
        "pictures": before_and_after([sheet for sheet in sheets if sheet.kind == "eval"]),
        "rules": rules,
        "events": sentences(run.events),
        "charts": partial(charts, run.rows, rules=upon_curves(rules, run.events)),
        "rollouts": [rollout_strip(sheet) for sheet in spread_over(rollouts, NUM_ROLLOUT_SHEETS)],
        "num_rollouts": len(rollouts) or len(text_rollouts),
        "talk": before_and_after_texts([transcript for transcript in texts if transcript.kind == "eval"]),
        "text_rollouts": [rollout_texts(one) for one in spread_over(text_rollouts, NUM_ROLLOUT_SHEETS)],
        "has_texts": bool(texts),
        "reward_names": list(dict.fromkeys(name for s in sheets for cell in s.cells for name in cell.rewards)),
        "config_text": run.config_text,
        "versions": flat(run.versions),
    }


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path))
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _held_out(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """The evaluations before and after; of a run without a summary the first and the last in the record."""
    rows = [row for row in run.rows if "eval/score" in row]
    found = [{key.removeprefix("eval/"): v for key, v in row.items() if _is_score(key)} for row in rows]
    before = run.summary.get("eval_before") or (found[0] if rows and rows[0]["step"] == 0 else {})
    after = run.summary.get("eval_after") or (found[-1] if rows and rows[-1]["step"] > 0 else {})
    return before, after


def _is_score(key: str) -> bool:
    """Statistics of the pictures are curves, not scores."""
    return key.startswith("eval/") and not key.startswith("eval/image/")


def _headline(run: Run, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of the one sentence; what a run without a summary does not say is summed from its record."""
    seconds = run.summary.get("seconds", {}).get("total") or _total(run.rows, "time/*_seconds", but="time/step_seconds")
    calls = sum(run.summary.get("network_calls", {}).values())
    calls = calls or sum(_total(run.rows, f"calls/{name}") for name in NETWORK_CALLS)
    step = _last_step(run)
    return {
        "before": score(before.get("score")),
        "after": score(after.get("score")),
        "change": change_of(before.get("score"), after.get("score")),
        "step": step,
        "scored_at": max((row["step"] for row in run.rows if "eval/score" in row), default=step),
        "steps": run.config.get("steps"),
        "finished": bool(run.summary),
        "stopped_early": run.summary.get("stopped_early"),
        "time": duration(seconds) if seconds else "",
        "calls": count(calls) if calls else "",
    }


def _last_step(run: Run) -> int:
    return run.summary.get("steps") or max((row["step"] for row in run.rows), default=0)


def _total(rows: Sequence[Mapping[str, Any]], match: str, *, but: str = "") -> float:
    return sum(v for row in rows for key, v in row.items() if fnmatch(key, match) and key != but and finite(v))


def _facts(config: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    policy = config.get("policy")
    facts = [f"policy {policy['kind']}"] if isinstance(policy, dict) and "kind" in policy else []
    if "prompts_per_step" in config and "group_size" in config:
        facts.append(f"{config['prompts_per_step']} prompts × {config['group_size']} samples a step")
    facts += [f"seed {config['seed']}"] if "seed" in config else []
    return facts + ([f"product: {summary['product']}"] if "product" in summary else [])


def _scores(rewards: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per score: the primary one, each optimised reward with its parts, what is only watched."""
    known = rewards or {key.partition("/")[0]: {} for key in after if key.endswith("/mean")}
    names = [name for name, scorer in known.items() if (scorer or {}).get("weight") != 0]
    rows = []
    for key in dict.fromkeys([*before, *after]):
        name, _, part = key.partition("/")
        role = "watched" if name not in names else "optimised" if part == "mean" else "part"
        role = "primary" if key == "score" else role
        place = (len(names) if role == "watched" else -1 if role == "primary" else names.index(name), role == "part")
        b, a = before.get(key), after.get(key)
        is_share = all(finite(x) and 0 <= x <= 1 for x in (b, a)) and not key.endswith("rmse")
        ends = (100 * b, 100 * a) if is_share else None
        words = {"before": score(b), "after": score(a), "change": change_of(b, a)}
        rows.append({"key": key, "role": role, "place": place, **words, "ends": ends})
    return sorted(rows, key=lambda row: row["place"])
