"""The rows of an evaluation as plain values: what was asked, what was said, what is true, how it was scored; errors over prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from grpo_mm.outside import shown
from grpo_mm.tools.drawn_files import drawn_ending, write_drawn
from grpo_mm.training.evaluate import Scored
from grpo_mm.types import is_seen

LONGEST = 200
"""Characters of what is no plain value, such as a picture in a target."""
Row = dict[str, Any]


def prediction_rows(scored: Scored, processes: Any) -> list[Row]:
    """A row for each prompt and sample of all ranks, in the order of the prompts; those of the main process come first."""
    own = [_row(scored, i) for i in range(len(scored.prompts))]
    return [row for part in processes.gather(own) for row in part]


def _row(scored: Scored, i: int) -> Row:
    prompt, item = scored.prompts[i], scored.items[i]
    return {
        "id": prompt.id,
        "source": prompt.source,
        "sample": int(scored.rows.sample_N[i]),
        "prompt": prompt.text,
        "prediction": None if is_seen(scored.items) else item,
        "picture": None,
        "truth": json_value(prompt.target),
        "rewards": _scores_of(scored.scores, i),
        "watched": _scores_of(scored.watched, i),
    }


def _scores_of(scores: Mapping[str, Mapping[str, Any]], i: int) -> dict[str, dict[str, float | None]]:
    return {name: {part: json_value(float(v[i])) for part, v in parts.items()} for name, parts in scores.items()}


def json_value(value: Any) -> Any:
    """Plain JSON values as they are, NaN and infinities as null; of anything else the beginning of how it prints."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_value(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(part) for part in value]
    return shown(value, LONGEST)


def standard_errors(
    rows: Sequence[Row], metrics: Mapping[str, float], score_weights: Mapping[str, float]
) -> dict[str, float]:
    """Of every metric that is a mean over prompts: the standard deviation of the prompts' means by the root of their number.

    A prompt's samples are averaged first: they are no independent draws of prompts. "eval/score" is a sum of means, each over
    the prompts that its reward applies to; its error is that of the sum of what each prompt adds.

    Args:
        score_weights: metric → its weight in "eval/score".
    """
    by_metric: dict[str, dict[tuple[str, str], list[float]]] = {}
    for row in rows:
        for key, value in _named(row):
            if value is not None and key in metrics:
                by_metric.setdefault(key, {}).setdefault((row["source"], row["id"]), []).append(value)
    means = {key: {prompt: fmean(values) for prompt, values in found.items()} for key, found in by_metric.items()}
    errors = {key: stdev(found.values()) / math.sqrt(len(found)) for key, found in means.items() if len(found) > 1}
    added: dict[tuple[str, str], float] = {}
    for key, weight in score_weights.items():
        found = means.get(key, {})
        for prompt, value in found.items():
            added[prompt] = added.get(prompt, 0.0) + weight * (value - fmean(found.values())) / len(found)
    if len(added) > 1 and "eval/score" in metrics:
        errors["eval/score"] = math.sqrt(len(added) / (len(added) - 1) * sum(value**2 for value in added.values()))
    return dict(sorted(errors.items()))


def _named(row: Row) -> list[tuple[str, float | None]]:
    """The row's scores under the names of the metrics that they are averaged to."""
    found = []
    for name, parts in row["rewards"].items():
        for part, value in parts.items():
            key = f"{name}/{'mean' if part == 'score' else part}"
            if part == "score" or not (part == "mean" and "score" in parts):
                found += [(f"eval/{key}", value), (f"eval/{row['source']}/{key}", value)]
    return found + [(f"eval/{name}/{part}", v) for name, parts in row["watched"].items() for part, v in parts.items()]


def write_pictures(loaded: Any, scored: Scored, rows: Sequence[Row], folder: Path) -> None:
    """Writes the pictures or clips that an evaluation shows, with the noise that each started from, and names them in their rows."""
    if not is_seen(scored.items):
        return
    from safetensors.torch import save_file

    whole_m = [i for i in scored.shown_m.tolist() if scored.items[i] is not None]
    for i in whole_m:
        rows[i]["picture"] = f"{i:04d}{drawn_ending(scored.items)}"
        write_drawn(scored.items[i], folder / rows[i]["picture"])
    engine, seed = loaded.config.engine, loaded.config.evaluation.seed
    if whole_m and hasattr(engine, "evaluation_noise"):
        picked = scored.rows.take(scored.shown_m.new_tensor(whole_m))
        noise = engine.evaluation_noise(loaded.policy, picked, seed=seed)
        save_file({"latents": noise.cpu().contiguous()}, folder / "latents.safetensors")
