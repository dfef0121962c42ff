"""Watch rules and what they did: as sentences, and as bands and marks upon the curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grpo_mm.looking.default_rules import default_rules
from grpo_mm.looking.own_files import json_rows
from grpo_mm.looking.report.curves import Rule
from grpo_mm.looking.report.words import finite, number
from grpo_mm.looking.watch import Band, Watched, absolute_band, describe

_FIELDS = {"step", "rule", "metric", "value", "band", "asked", "action"}


@dataclass(frozen=True)
class RuleView:
    """A rule of the config and how its metric fared."""

    name: str
    metric: str
    action: str
    band: Band
    """In values of the metric."""
    words: str
    """The band, e.g. "0.1 to 0.6", or of a metric without a record "0.5 to 2 × its first value"."""
    last: str
    records: int
    outside: int


def read_events(path: Path, damage: list[str] | None = None) -> list[dict[str, Any]]:
    """The whole lines of events.jsonl; others are named in `damage`."""
    said: list[str] = [] if damage is None else damage
    rows = json_rows(path, said)
    whole = [event for event in rows if _is_event(event)]
    if len(whole) < len(rows):
        said.append(f"{path.name}: {len(rows) - len(whole)} lines tell of no watch rule; they were skipped")
    return whole


def _is_event(event: Mapping[str, Any]) -> bool:
    """Whether `describe` has words for it."""
    if not event.keys() >= _FIELDS or not all(
        isinstance(event[name], str) for name in ("rule", "metric", "asked", "action")
    ):
        return False
    band = event["band"]
    bounds = isinstance(band, list) and len(band) == 2 and all(bound is None or finite(bound) for bound in band)
    put_back = event["action"] != "rollback" or finite(event.get("weights_of"))
    changed = event["action"] not in ("rollback", "lower_lr") or finite(event.get("factor"))
    return bounds and finite(event["value"]) and put_back and changed


def rules_of(config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[RuleView]:
    """The entries of `watch` that have a band, and the default rules that were left for a while."""
    found = []
    watch = config.get("watch")
    watch = watch if isinstance(watch, Mapping) else {}
    defaults = default_rules(watch) if config.get("default_watch", True) else {}
    for name, entry in [*watch.items(), *((name, asdict(rule)) for name, rule in defaults.items())]:
        low, high = (entry.get(end) if isinstance(entry, Mapping) else None for end in ("low", "high"))
        if not (finite(low) or finite(high)):
            continue
        metric, relative = entry.get("metric") or f"watch/{name}/score", bool(entry.get("relative"))
        values = [row[metric] for row in rows if finite(row.get(metric))]
        shift = bool(entry.get("shift"))
        unit = next((v for v in values if v), None) if relative else 1.0
        start = next(iter(values), None) if shift else 0.0
        words = _words((low, high)) + (" × its first value" if relative else " beside its first value")
        band: Band = (None, None)
        if unit is not None and start is not None:
            band = absolute_band(low, high, unit=unit, start=start)
            words = _words(band)
        outside = [row[key] for row in rows if (key := f"watch_rule/{name}/outside") in row]
        if name in defaults and not any(outside):
            continue
        found.append(
            RuleView(
                name=name,
                metric=metric,
                action=str(entry.get("action") or "warn"),
                band=band,
                words=words,
                last=number(values[-1]) if values else "–",
                records=len(outside),
                outside=sum(map(bool, outside)),
            )
        )
    return found


def bands_of(config: Mapping[str, Any]) -> dict[str, Watched]:
    """The rules of a config, default ones included, for the verdict; an entry that no run can have is left out."""
    watch = config.get("watch")
    watch = watch if isinstance(watch, Mapping) else {}
    found = default_rules(watch) if config.get("default_watch", True) else {}
    for name, entry in watch.items():
        if not isinstance(entry, Mapping):
            continue
        low, high = (entry.get(end) if finite(entry.get(end)) else None for end in ("low", "high"))
        if low is not None or high is not None:
            kinds = {kind: bool(entry.get(kind)) for kind in ("relative", "shift")}
            metric = str(entry.get("metric") or f"watch/{name}/score")
            found[str(name)] = Watched(metric=metric, low=low, high=high, **kinds)
    return found


def _words(band: Band) -> str:
    low, high = (None if bound is None else number(bound) for bound in band)
    return f"≤ {high}" if low is None else f"≥ {low}" if high is None else f"{low} to {high}"


def sentences(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """(step, action, words) of each event."""
    return [{"step": e["step"], "action": e["action"], "words": describe(e)} for e in events]


def upon_curves(rules: Sequence[RuleView], events: Sequence[Mapping[str, Any]]) -> dict[str, list[Rule]]:
    """Bands and marks by metric; what changed the learning rate is marked there too."""
    found: dict[str, list[Rule]] = {}
    for rule in rules:
        found.setdefault(rule.metric, []).append(Rule(band=rule.band))
    for event in events:
        mark = (event["step"], event["action"], f"step {event['step']}: {describe(event)}")
        for metric in (event["metric"], *(["optim/lr"] if event.get("factor", 1) != 1 else [])):
            found.setdefault(metric, []).append(Rule(marks=[mark]))
    return found
