"""A run as one HTML page: what it learnt, what that looks like, and whether the curves are healthy.

    run folder ─▶ Run ─▶ view (plain values; the words are in the two .html.j2) ─▶ report.html

Whatever is missing (no evaluation, no pictures or texts, a killed run) becomes a sentence on the page.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from grpo_mm.errors import UserError
from grpo_mm.findings import Finding, as_table
from grpo_mm.looking import held_out
from grpo_mm.looking.changes import Change, read_changes
from grpo_mm.looking.origin import Origin, read_product
from grpo_mm.looking.own_files import (
    MAX_NAME,
    SAMPLER,
    SCORERS,
    is_step,
    json_object,
    json_rows,
    own_bytes,
    summary_of,
    tell_of_steps,
)
from grpo_mm.looking.report.curves import Columns, charts_of, columns_of
from grpo_mm.looking.report.pictures import before_and_after, rollout_strip, spread_over
from grpo_mm.looking.report.rules import bands_of, read_events, rules_of, sentences, upon_curves
from grpo_mm.looking.report.texts import before_and_after_texts, rollout_texts
from grpo_mm.looking.report.words import change_of, count, duration, finite, flat, score
from grpo_mm.looking.same_figures import shown_once
from grpo_mm.looking.samples import Sheet, read_sheets
from grpo_mm.looking.transcripts import Transcript, read_transcripts
from grpo_mm.looking.verdict import Verdict, verdict
from grpo_mm.outside import plain, reason, shown
from grpo_mm.processes.clock import NETWORK_CALLS

NUM_ROLLOUT_SHEETS = 5
MAX_SCORES = 500
LARGEST_CONFIG, LARGEST_SHOWN_CONFIG, MAX_ALIASES = 2**18, 100_000, 100
"""Bytes of a config.yaml that is read, characters of it on the page, aliases in it: more is none of ours."""
ALIAS = re.compile(r"[*&][\w-]+|<<\s*:")


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
    evaluations: Sequence[held_out.Evaluation] = ()
    """held_out.jsonl: scores by prompt."""
    product: tuple[str, Origin] | None = None
    """What lies there for others to use, and which step it is of; of a run that was interrupted as well."""
    folder: str = "RUN"
    """For commands that the page gives."""
    damage: Sequence[str] = ()
    """What cannot be used of them, a sentence each."""
    changes: Sequence[Change] = ()
    """changes.jsonl: what was changed on the way."""
    sampler: Mapping[str, Any] = field(default_factory=dict)
    """sampler.json: how an engine that draws was compared with the trainer."""
    scorers: Mapping[str, Any] = field(default_factory=dict)
    """scorers.json: what their golden pictures said of scorers."""


def write_report(run_folder: Path) -> Path:
    """Writes `report.html` into the run's folder, one file that needs nothing else.

    Raises:
        UserError: there is no run in that folder, or the page cannot be written there.
    """
    folder = Path(run_folder)
    settings = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, **settings)
    template = templates.get_template("report.html.j2")
    shown_run = view(read_run(folder))
    told = len(shown_run["damage"])
    page = template.render(shown_run)
    if len(shown_run["damage"]) > told:  # what only drawing finds belongs at the top as well
        page = template.render(shown_run)
    path, aside = folder / "report.html", folder / ".writing_report"
    try:
        aside.unlink(missing_ok=True)  # it might be a link to another file
        aside.write_text(page, encoding="utf-8", errors="replace")
        os.replace(aside, path)
    except OSError as error:
        raise UserError(f"{plain(str(path))} cannot be written ({reason(error)}).") from error
    return path


def read_run(folder: Path) -> Run:
    """Everything that is there and whole; `damage` names what is not."""
    if not any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl", "summary.json")):
        raise UserError(f"{folder} holds no run: no config.yaml, no metrics.jsonl. Name a folder like runs/<name>.")
    damage: list[str] = []
    text, config = _config(folder, damage)
    summary = summary_of(folder / "summary.json", damage)
    samples = folder / "samples"
    if samples.exists() and not samples.resolve().is_relative_to(folder.resolve()):
        damage.append("samples leads out of this folder: it was not followed")
        samples = folder / ".no_samples"
    rows = json_rows(folder / "metrics.jsonl", damage)
    tell_of_steps(rows, "metrics.jsonl", damage)
    return Run(
        name=str(summary.get("name") or plain(folder.resolve().name)),
        config=config,
        config_text=text,
        versions=json_object(folder / "versions.json", folder, damage) or summary.get("versions") or {},
        rows=rows,
        events=read_events(folder / "events.jsonl", damage),
        summary=summary,
        sheets=read_sheets(samples, damage),
        transcripts=read_transcripts(samples, damage),
        evaluations=held_out.read(folder / held_out.NAME, damage),
        product=read_product(folder, damage),
        folder=plain(str(folder)),
        damage=damage,
        changes=read_changes(folder, damage),
        sampler=json_object(folder / SAMPLER, folder, damage),
        scorers=json_object(folder / SCORERS, folder, damage),
    )


def view(run: Run) -> dict[str, Any]:
    """What the template shows. A part that cannot be made of what there is becomes a line of "damage"."""
    damage = list(run.damage)
    part = partial(_part, damage)
    columns = columns_of(run.rows, damage)
    last = part("metrics.jsonl and summary.json", 0, _last_step, run)
    before, after = part("held-out scores", ({}, {}), _held_out, run)
    found = part("held-out scores by prompt", None, _verdict, run, last)
    evaluations = [one for one in run.evaluations if one.step <= last]
    sheets = [sheet for sheet in run.sheets if sheet.step <= last]  # a resumed run left later ones behind
    rollouts = [sheet for sheet in sheets if sheet.kind == "rollout"]
    texts = [transcript for transcript in run.transcripts if transcript.step <= last]
    text_rollouts = [transcript for transcript in texts if transcript.kind == "rollout"]
    rules = part("watch rules of config.yaml", [], rules_of, run.config, run.rows)
    upon = part("events.jsonl", {}, upon_curves, rules, run.events)
    rewards = run.config.get("rewards")
    strips = [part(f"samples/{s.name}.png", None, rollout_strip, s) for s in spread_over(rollouts, NUM_ROLLOUT_SHEETS)]
    talks = [
        part(f"samples/{t.name}.jsonl", None, rollout_texts, t) for t in spread_over(text_rollouts, NUM_ROLLOUT_SHEETS)
    ]
    evals, said = [s for s in sheets if s.kind == "eval"], [t for t in texts if t.kind == "eval"]

    repeated = part("metrics.jsonl", [], _repeated, run.config, columns, upon)

    def drawn(*match: str, without: Sequence[str] = (), **how: Any) -> list[dict[str, Any]]:
        how |= {"rules": upon, "without": [*without, *repeated]}
        return part(f"curves {', '.join(match)}", [], charts_of, columns, *match, **how)

    return {
        "name": run.name,
        "verdict": None if found is None else {"word": found.word, "sentence": found.sentence},
        "headline": _headline(run, columns, before, after, last),
        "facts": part("config.yaml", [], _facts, run.config, run.summary),
        "scores": part(
            "held-out scores", [], _scores, rewards if isinstance(rewards, dict) else {}, before, after, evaluations
        ),
        "product": _product(run, last),
        "pictures": part("pictures before and after in samples", None, before_and_after, evals),
        "rules": rules,
        "events": part("events.jsonl", [], sentences, run.events),
        "charts": drawn,
        "rollouts": [strip for strip in strips if strip is not None],
        "num_rollouts": len(rollouts) or len(text_rollouts),
        "talk": part("answers before and after in samples", None, before_and_after_texts, said),
        "text_rollouts": [talk for talk in talks if talk is not None],
        "has_texts": bool(texts),
        "reward_names": list(dict.fromkeys(name for s in sheets for cell in s.cells for name in cell.rewards)),
        "changes": part("changes.jsonl", [], lambda: [plain(str(change), 300) for change in run.changes]),
        "config_text": run.config_text,
        "versions": dict(list(part("versions.json", {}, flat, run.versions).items())[:MAX_SCORES]),
        "sampler": part(SAMPLER, "", _sampler, run.sampler),
        "scorers": part(SCORERS, {}, _scorers, run.scorers),
        "held_out_claim": _held_out_claim(run.rows),
        "damage": damage,
    }


def _sampler(found: Mapping[str, Any]) -> str:
    """A table of the comparisons, or nothing."""
    names = ("name", "figure", "bound", "cause", "at_least", "asked")
    rows = [{name: row[name] for name in names} for row in found.get("findings", [])[:MAX_SCORES]]
    return plain(
        as_table([Finding(**{**row, "figure": math.nan if row["figure"] is None else row["figure"]}) for row in rows]),
        LARGEST_SHOWN_CONFIG,
    ) if rows else ""  # fmt: skip


def _scorers(found: Mapping[str, Any]) -> dict[str, str]:
    """Name -> what its golden pictures said."""
    return {
        plain(name, 100): f"{plain(row['kind'], 100)}, {plain(row['said'], 500)}"
        for name, row in list(found.items())[:MAX_SCORES]
    }


def _held_out_claim(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the record says of the held-out prompts: whether they are trained on was looked at, or was not."""
    told = [(r.get("data/held_out_in_training"), r.get("data/held_out")) for r in rows]
    twice, count = next((pair for pair in reversed(told) if all(map(finite, pair))), (None, None))
    if twice is None:
        return "Held-out prompts"
    if not twice:
        return "Prompts never trained on"
    return f"{twice:g} of these {count:g} prompts are trained on as well, so it tells what was learnt by heart too"


def _part(damage: list[str], name: str, without: Any, make: Callable[..., Any], /, *given: Any, **how: Any) -> Any:
    """What `make` gives; `without` where what it is given is damaged, which is told once."""
    try:
        return make(*given, **how)
    except Exception as error:  # whatever foreign values do to code that was written for ours
        said = f"{name}: damaged, left out ({reason(error)})"
        damage += [] if said in damage else [said]
        return without


def _config(folder: Path, damage: list[str]) -> tuple[str, dict[str, Any]]:
    """(config.yaml as text, its settings as far as they can be read)"""
    text = own_bytes(folder / "config.yaml", folder, damage, most=LARGEST_CONFIG).decode("utf-8", errors="replace")
    config: Any = {}
    if len(ALIAS.findall(text)) > MAX_ALIASES:
        damage.append(f"config.yaml has more than {MAX_ALIASES} aliases: its settings were not read")
    else:
        try:
            config = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            damage.append(f"config.yaml is damaged ({reason(error)})")
    if config and not isinstance(config, dict):
        damage.append(f"config.yaml is damaged: it holds {shown(config, 40)}")
    return plain(text, LARGEST_SHOWN_CONFIG), config if isinstance(config, dict) else {}


def _held_out(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """The evaluations before and after; of a run without a summary the first and the last in the record."""
    rows = [row for row in run.rows if "eval/score" in row]
    found = [
        {plain(key, MAX_NAME).removeprefix("eval/"): v for key, v in row.items() if _is_score(key)} for row in rows
    ]
    found = [dict(list(scores.items())[:MAX_SCORES]) for scores in found]
    before = run.summary.get("eval_before") or (found[0] if rows and rows[0]["step"] == 0 else {})
    after = run.summary.get("eval_after") or (found[-1] if rows and rows[-1]["step"] > 0 else {})
    return before, after


def _verdict(run: Run, last: int) -> Verdict:
    """Of the record: that of summary.json may be of another version, and of a run that goes on there is none."""
    watch = run.config.get("watch")
    entries = watch.items() if isinstance(watch, Mapping) else ()
    watched = [str(name) for name, entry in entries if isinstance(entry, Mapping) and entry.get("use")]
    rows = [row for row in run.rows if row["step"] <= last]
    return verdict(rows, run.evaluations, rules=bands_of(run.config), watched=watched)


def _repeated(config: Mapping[str, Any], columns: Columns, upon: Mapping[str, Any]) -> list[str]:
    """Watched figures that have a chart already: statistics of pictures, measured in every run. One with a band keeps its own."""
    watch = config.get("watch")
    uses = (
        {str(n): e.get("use") for n, e in watch.items() if isinstance(e, Mapping)} if isinstance(watch, Mapping) else {}
    )
    names = [n for n, use in uses.items() if (use.get("kind") if isinstance(use, Mapping) else use) == "image_quality"]
    statistics = [points for key, points in columns.items() if key.startswith("image/") and points]
    found = []
    for key, points in columns.items():
        who, _, name = key.partition("/")
        is_watched = who == "watch" or (who == "eval" and name.partition("/")[0] in uses)
        of_pictures = name.partition("/")[0] in names and "image/sharpness" in columns
        if is_watched and key not in upon and (of_pictures or points in statistics):
            found.append(key)
    return found


def _is_score(key: str) -> bool:
    """Statistics of pictures and texts are curves, not scores."""
    return key.startswith("eval/") and not key.startswith(("eval/image/", "eval/clip/", "eval/text/"))


def _headline(
    run: Run, columns: Columns, before: Mapping[str, Any], after: Mapping[str, Any], step: int
) -> dict[str, Any]:
    """The numbers of the one sentence; what a run without a summary does not say is summed from its record."""
    seconds = run.summary.get("seconds", {}).get("total") or (
        _total(columns, "time/step_seconds") + _total(columns, "time/eval_seconds")
    )
    calls = sum(number or 0 for number in run.summary.get("network_calls", {}).values())
    calls = calls or sum(_total(columns, f"calls/{name}") for name in NETWORK_CALLS)
    steps = run.config.get("steps")
    return {
        "before": score(before.get("score")),
        "after": score(after.get("score")),
        "change": change_of(before.get("score"), after.get("score")),
        "step": step,
        "scored_at": max((row["step"] for row in run.rows if "eval/score" in row), default=step),
        "steps": steps if is_step(steps) else None,
        "finished": bool(run.summary),
        "stopped_early": run.summary.get("stopped_early"),
        "time": duration(seconds) if finite(seconds) and seconds > 0 else "",
        "calls": count(calls) if finite(calls) and calls > 0 else "",
    }


def _last_step(run: Run) -> int:
    return run.summary.get("steps") or max((row["step"] for row in run.rows), default=0)


def _total(columns: Columns, name: str) -> float:
    return sum(value for _, value in columns.get(name, ()))


def _facts(config: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    policy = config.get("policy")
    facts = [f"policy {_brief(policy['kind'])}"] if isinstance(policy, dict) and "kind" in policy else []
    if "prompts_per_step" in config and "group_size" in config:
        facts.append(f"{_brief(config['prompts_per_step'])} prompts × {_brief(config['group_size'])} samples a step")
    facts += [f"seed {_brief(config['seed'])}"] if "seed" in config else []
    return facts + ([f"product: {summary['product']}"] if "product" in summary else [])


def _product(run: Run, last: int) -> str:
    """Which step the product is of, and where another was better, in a sentence; empty where nothing says so."""
    if run.product is None or run.product[1].step > last:
        return ""
    name, origin = run.product
    better = origin.better(run.folder)
    return f"The {name} that lies in the run folder holds the {origin.words()}" + (f"; {better}." if better else ".")


def _brief(value: Any) -> str:
    return plain(value, 60) if isinstance(value, str) else shown(value, 60)


def _scores(
    rewards: Mapping[str, Any],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    evaluations: Sequence[held_out.Evaluation],
) -> list[dict[str, Any]]:
    """A row per score: the primary one, each optimised reward with its parts, what is only watched; each with the number of
    prompts and its standard errors. A part that repeats its reward's mean is left out."""
    known = rewards or {key.partition("/")[0]: {} for key in after if key.endswith("/mean")}
    names = [
        str(name) for name, scorer in known.items() if not (isinstance(scorer, dict) and scorer.get("weight") == 0)
    ]
    sides = (
        evaluations[0] if evaluations and evaluations[0].step == 0 else None,
        evaluations[-1] if evaluations else None,
    )
    rows = []
    keys = list(dict.fromkeys([*before, *after]))
    names_of = shown_once(keys, before, after)
    for key in keys:
        name, _, part = key.partition("/")
        role = "watched" if name not in names else "optimised" if part == "mean" else "part"
        role = "primary" if key == "score" else role
        place = (len(names) if role == "watched" else -1 if role == "primary" else names.index(name), role == "part")
        b, a = before.get(key), after.get(key)
        is_share = all(finite(x) and 0 <= x <= 1 for x in (b, a)) and not key.endswith("rmse")
        ends = (100 * b, 100 * a) if is_share else None
        words = {"before": score(b), "after": score(a), "change": change_of(b, a)}
        words["label"] = " = ".join(names_of.get(key, ()))  # empty: another row shows the same number
        rows.append({"key": key, "role": role, "place": place, **words, "ends": ends, **_errors(key, sides)})
        if rows[-1]["change"] and rows[-1]["within_error"]:
            rows[-1]["change"]["sign"] = "same"
    return sorted(rows, key=lambda row: row["place"])


def _errors(key: str, sides: tuple[held_out.Evaluation | None, held_out.Evaluation | None]) -> dict[str, Any]:
    """Standard errors in words, "" where they are not known, and the number of prompts."""
    alone = [None if side is None else held_out.mean_of(side, key) for side in sides]
    paired = held_out.paired(*sides, key) if None not in sides and sides[0] is not sides[1] else None
    before, after, change = (
        "" if one is None or one.error is None else f"± {score(one.error)}" for one in (*alone, paired)
    )
    n = next((one.n for one in (paired, *alone[::-1]) if one is not None), None)
    within = paired is not None and paired.within_error
    return {"before_error": before, "after_error": after, "error": change, "n": n, "within_error": within}
