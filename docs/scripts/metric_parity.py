"""Writes docs/metric_parity.md: `grpo-mm eval` beside what the official scorers print for the same prediction files.

    .venv/bin/python docs/scripts/metric_parity.py FOLDER

FOLDER holds the published files, which are not part of this repository: QVHighlights' validation annotations, Moment-DETR's sample
predictions, and TimeChat's example predictions with the annotations that belong to them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from typer.testing import CliRunner

from grpo_mm.cli import app

VAL = "qvhighlights/highlight_val_release.jsonl"
LEVELS = ("fair", "good", "very_good")
PARITY: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "Moment-DETR's sample predictions, QVHighlights val": (
        ("qvhighlights/moment_detr_sample_val_preds.jsonl", VAL, "qvhighlights"),
        {
            "moments/full/r1_at_0.5": "53.94", "moments/full/r1_at_0.7": "34.84", "moments/full/map": "32.20",
            "moments/full/map_at_0.5": "54.96", "moments/full/map_at_0.75": "31.01", "moments/short/map": "3.28",
            "moments/middle/map": "32.30", "moments/long/map": "41.11",
        }
        | {f"highlights/{level}/map": value for level, value in zip(LEVELS, ("67.77", "58.09", "35.65"))}
        | {f"highlights/{level}/hit_at_1": value for level, value in zip(LEVELS, ("66.45", "64.45", "55.55"))},
    ),
    "TimeChat's highlights, the 1,463 queries that they answer": (
        ("timechat_metrics/qvhighlights_val_pred.json", VAL, "qvhighlights", "--answered-only"),
        {f"highlights/{level}/map": value for level, value in zip(LEVELS, ("28.80", "22.80", "13.24"))}
        | {f"highlights/{level}/hit_at_1": value for level, value in zip(LEVELS, ("24.61", "23.17", "18.87"))},
    ),
    "TimeChat's spans, 500 queries of Charades-STA": (
        ("timechat_metrics/charades_sta_pred_500.json", "charades_sta/charades_test.json", "charades", "--answered-only"),
        {"r1_at_0.3": "9.0", "r1_at_0.5": "3.4", "r1_at_0.7": "1.4", "miou": "6.2998"},
    ),
}  # fmt: skip


def main(folder: Path) -> None:
    lines = [
        "# Metrics beside the official scorers",
        "",
        "`python docs/scripts/metric_parity.py FOLDER`: `grpo-mm eval --predictions FILE --annotations FILE --as KIND` on published predictions, to "
        "as many digits as the official scorer prints. (The figures that ship beside TimeChat's highlights, 26.45 / 22.35 and so on, are "
        "stale; its script prints those below.)",
    ]
    for title, ((predictions, truth, kind, *more), official) in PARITY.items():
        paths = ("--predictions", str(folder / predictions), "--annotations", str(folder / truth))
        done = CliRunner().invoke(app, ["eval", *paths, "--as", kind, *more, "--json"], catch_exceptions=False)
        found = json.loads(done.stdout)
        told = " ".join(("--as", kind, *more))
        lines += ["", f"{title}: `{told}`", "", "| metric | official | grpo-mm eval | |", "| --- | --- | --- | --- |"]
        for name, value in official.items():
            own = f"{found[name]:.{len(value.partition('.')[2])}f}"
            lines.append(f"| {name} | {value} | {own} | {'equal' if own == value else 'DIFFERENT'} |")
    (Path(__file__).parents[1] / "metric_parity.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1])) if len(sys.argv) == 2 else sys.exit(__doc__)
