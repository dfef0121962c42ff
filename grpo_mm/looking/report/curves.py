"""Curves as SVG paths in a box of 1000 × 1000 that the page stretches, so that text and strokes keep their size."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import accumulate
from typing import Any

from grpo_mm.looking.own_files import LARGEST_NUMBER, MAX_NAME
from grpo_mm.looking.report.words import finite, number, superscript
from grpo_mm.looking.watch import Band
from grpo_mm.outside import plain

MAX_SERIES = 6
SMOOTH_FROM = 80
"""Longer series are drawn faintly, with a moving average on top."""

MAX_POINTS, MAX_READ_OUT = 600, 400
"""Of a longer curve so many points are drawn, lowest and highest ones among them, and so many read out under the pointer: a
chart is about as many pixels wide."""
LONG = 2000
"""Curves up to this many points are drawn as they are."""
MAX_COLUMNS, MAX_FAMILIES = 2000, 60
"""Metrics of a record, and charts of one kind, that are drawn."""

Points = list[tuple[int, float]]
"""(step, value), finite, by step."""
Columns = dict[str, Points]
"""By metric."""


@dataclass(frozen=True)
class Rule:
    """What is drawn upon the curve of a metric."""

    band: Band = (None, None)
    marks: Sequence[tuple[int, str, str]] = ()
    """(step, action, words)"""


def columns_of(rows: Sequence[Mapping[str, Any]], damage: list[str] | None = None) -> Columns:
    """The curves of a record, by metric in the order of the record; entries that are no numbers are counted in `damage`."""
    columns: defaultdict[str, Points] = defaultdict(list)
    odd = 0
    for row in rows:
        step = row["step"]
        for key, value in row.items():
            # The first test is the second one for what nearly all entries are: a record may have millions.
            if type(value) is float and -LARGEST_NUMBER <= value <= LARGEST_NUMBER:
                columns[key].append((step, value))
            elif finite(value):
                columns[key].append((step, float(value)))
            else:
                odd += value is not None
                columns.setdefault(key, [])  # its place in the order, though it may never be drawn
    said = [f"metrics.jsonl: {odd} entries are no numbers that can be drawn"] if odd else []
    if len(columns) > MAX_COLUMNS:
        said.append(f"metrics.jsonl: of {len(columns)} metrics the first {MAX_COLUMNS} are drawn")
    if damage is not None:
        damage += said
    return {plain(key, MAX_NAME): columns[key] for key in list(columns)[:MAX_COLUMNS]}


def charts(rows: Sequence[Mapping[str, Any]], *match: str, **how: Any) -> list[dict[str, Any]]:
    """`charts_of` the columns of a record."""
    return charts_of(columns_of(rows), *match, **how)


def charts_of(
    columns: Columns,
    *match: str,
    split: bool = False,
    log: bool = False,
    zero: bool = False,
    exact: bool = False,
    stacked: bool = False,
    without: Sequence[str] = (),
    rules: Mapping[str, Sequence[Rule]] = {},  # noqa: B006
) -> list[dict[str, Any]]:
    """Charts of the metrics that match; none where there is nothing to draw.

    Args:
        match: patterns like "reward/*/mean"; the series come in their order.
        split: one chart for each second part of the name (reward/shape/…, reward/quality/…) instead of one for all.
        zero: the axis starts at 0, even where that makes a flat line.
        exact: only the values, where a moving average would hide or smear what matters.
        without: patterns of names to leave out.
        rules: by metric.
    """
    known = [key for key in columns if not any(fnmatch(key, w) for w in without)]
    families: dict[str, dict[str, Points]] = {}
    upon: dict[tuple[str, str], list[Rule]] = {}
    for key in dict.fromkeys(key for pattern in match for key in known if fnmatch(key, pattern)):
        _, _, name = key.partition("/")
        family, _, name = name.partition("/") if split else ("", "", name)
        points = columns[key]
        series = families.setdefault(family, {})
        if points:
            name = name.removeprefix("image/").removeprefix("clip/").removesuffix("_seconds").replace("_", " ")
            # A single reward is the score: one line is enough.
            name = next((other for other, there in series.items() if there == points), name)
            series[name] = points
            upon.setdefault((family, name), []).extend(rules.get(key, ()))
    x = step_axis(max((points[-1][0] for points in columns.values() if points), default=0))
    if stacked:
        return [{"family": "", **_draw_stack(series, x)} for series in families.values() if series]
    return [
        {
            "family": " · ".join(filter(None, title)),
            **_draw_lines(series, {name: upon[family, name] for name in series}, x, log=log, zero=zero, exact=exact),
        }
        for family, all_series in list(families.items())[:MAX_FAMILIES]
        for title, series in _by_scale(family, all_series)
    ]


def thinned(points: Points, most: int = MAX_POINTS) -> Points:
    """At most `most` points: the first, the last, and of equal shares of the others the lowest and the highest."""
    if len(points) <= most:
        return points
    shares = (most - 2) // 2
    kept = {0, len(points) - 1}
    for i in range(shares):
        share = range(1 + i * (len(points) - 2) // shares, 1 + (i + 1) * (len(points) - 2) // shares)
        kept |= {min(share, key=lambda k: points[k][1]), max(share, key=lambda k: points[k][1])}
    return [points[k] for k in sorted(kept)]


def _some(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most`, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i * (len(items) - 1) // (most - 1)] for i in range(most)]


def _by_scale(family: str, series: Mapping[str, Points]) -> list[tuple[tuple[str, str], dict[str, Points]]]:
    """Series that can share an axis, with a title: all up to 1 together, larger ones by powers of ten."""
    scales: dict[int, dict[str, Points]] = {}
    for name, points in series.items():
        largest = max(abs(v) for _, v in points)
        scales.setdefault(math.ceil(math.log10(max(largest, 1))), {})[name] = points
    return [((family, next(iter(s)) if len(scales) > 1 and len(s) == 1 else ""), s) for s in scales.values()]


def _draw_lines(
    series: dict[str, Points], upon: Mapping[str, Sequence[Rule]], x: Axis, *, log: bool, zero: bool, exact: bool
) -> dict[str, Any]:
    shown = dict(list(series.items())[:MAX_SERIES])
    values = [v for points in shown.values() for _, v in points]
    rules = {name: upon[name] for name in shown}
    y = log_axis(values) if log else value_axis(values + [0.0] * zero + _bounds_in_reach(rules, values))
    lines = []
    for name, points in shown.items():
        dots = "".join(f"M{x.place(step):.1f} {1000 - y.place(v):.1f}h0" for step, v in points[:31])
        is_long = len(points) > LONG
        mean = _smooth(points) if len(points) > SMOOTH_FROM and not exact else []
        smooth = _path(mean, x, y) if mean else ""
        line = {
            "path": _path(thinned(points) if is_long else points, x, y),
            "smooth": smooth,
            "dots": dots if len(points) <= 30 else "",
        }
        lines.append({"name": name, "last": y.show(points[-1][1]), "bands": _bands(rules[name], y), **line})
    marks = [
        {"at": x.place(step) / 10, "action": action, "words": words}
        for step, action, words in sorted(mark for all_rules in rules.values() for r in all_rules for mark in r.marks)
    ]
    return _chart(lines, x, y, shown, more=len(series) - len(shown), marks=marks)


def _bounds_in_reach(rules: Mapping[str, Sequence[Rule]], values: Sequence[float]) -> list[float]:
    """Bounds that the axis can take in without making the curve flat."""
    low, high = min(values), max(values)
    reach = max(high - low, abs(low) / 2, abs(high) / 2)
    bounds = [bound for all_rules in rules.values() for rule in all_rules for bound in rule.band if bound is not None]
    return [bound for bound in bounds if low - reach <= bound <= high + reach]


def _bands(rules: Sequence[Rule], y: Axis) -> list[dict[str, str]]:
    """The inside of each band as an area, and its bounds as lines where they are on the chart."""
    drawn = []
    for low, high in (rule.band for rule in rules if rule.band != (None, None)):
        at = [None if bound is None else 1000 - y.place(bound) for bound in (low, high)]
        bottom, top = (min(max(end, 0.0), 1000.0) for end in (at[0] if low is not None else 1000.0, at[1] or 0.0))
        lines = "".join(f"M0 {end:.1f}H1000" for end in at if end is not None and 0 <= end <= 1000)
        drawn.append({"area": f"M0 {bottom:.1f}H1000V{top:.1f}H0Z", "lines": lines})
    return drawn


def _draw_stack(series: dict[str, Points], x: Axis) -> dict[str, Any]:
    """Areas upon each other, the largest at the bottom, the smallest together as "other"."""
    steps = sorted({step for points in series.values() for step, _ in points})
    parts = {name: list((dict.fromkeys(steps, 0.0) | dict(points)).items()) for name, points in series.items()}
    order = sorted(parts, key=lambda name: -sum(v for _, v in parts[name]))
    shown = {name: parts[name] for name in order[: MAX_SERIES - (len(order) > MAX_SERIES)]}
    if rest := [parts[name] for name in order[len(shown) :]]:
        shown["other"] = _sum(rest)
    drawn = {name: _smooth(part) if len(part) > SMOOTH_FROM else part for name, part in shown.items()}
    if len(steps) > LONG:
        steps = _some(steps, MAX_READ_OUT)
    y = value_axis([0.0, *(v for _, v in _sum(list(drawn.values())))])
    below, areas = [(step, 0.0) for step in steps], []
    for name, part in drawn.items():
        above = _sum([below, part])
        path = f"{_path(above, x, y)}L{_path(below[::-1], x, y)[1:]}Z"
        last = y.show(shown[name][-1][1])
        # A single step has no area: dots show it.
        dots = (
            "".join(f"M{x.place(step):.1f} {1000 - y.place(v):.1f}h0" for step, v in above) if len(steps) == 1 else ""
        )
        areas.append({"name": name, "last": last, "path": path, "smooth": "", "dots": dots, "bands": []})
        below = above
    return _chart(areas, x, y, shown, areas=True)


def _sum(parts: Sequence[Points]) -> Points:
    """Of parts that have the same steps."""
    return [(at[0][0], sum(v for _, v in at)) for at in zip(*parts)]


def _chart(
    lines: list[dict[str, Any]],
    x: Axis,
    y: Axis,
    series: Mapping[str, Points],
    *,
    areas: bool = False,
    more: int = 0,
    marks: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """What the template draws, and what the page reads out under the pointer."""
    steps = sorted({step for points in series.values() for step, _ in points})
    steps = _some(steps, MAX_READ_OUT) if len(steps) > LONG else steps
    by_step = [dict(points) for points in series.values()]
    values = [[y.show(part[step]) if step in part else None for step in steps] for part in by_step]
    x_ticks, y_ticks = (
        [{"at": axis.place(v) / 10, "label": axis.show(v, tick=True)} for v in axis.ticks] for axis in (x, y)
    )
    data = {"steps": steps, "at": [round(x.place(step), 1) for step in steps], "values": values}
    ticks = {"x_ticks": x_ticks, "y_ticks": y_ticks}
    return {"series": lines, "areas": areas, "more": more, "marks": marks, **ticks, "data": data}


def _path(points: Points, x: Axis, y: Axis) -> str:
    return "M" + "L".join(f"{x.place(step):.1f} {1000 - y.place(v):.1f}" for step, v in points)


def _smooth(points: Points) -> Points:
    """The mean over a fortieth of the run, centred; of a long curve at MAX_READ_OUT places."""
    half, count = max(2, len(points) // 80), len(points)
    total = [0.0, *accumulate(v for _, v in points)]
    at = _some(range(count), MAX_READ_OUT) if count > LONG else range(count)
    ends = [(i, max(0, i - half), min(count, i + half + 1)) for i in at]
    return [(points[i][0], (total[stop] - total[start]) / (stop - start)) for i, start, stop in ends]


@dataclass(frozen=True)
class Axis:
    """Where a value lies, and how it is written. A logarithmic one counts in exponents and puts 0 at its foot."""

    low: float
    high: float
    ticks: list[float]
    digits: int | None = None
    """After the point, for ticks; values have more. None: as many as it takes."""
    log: bool = False

    def place(self, value: float) -> float:
        """0..1000"""
        at = (math.log10(value) if value > 0 else self.low) if self.log else value
        return 1000 * (at - self.low) / (self.high - self.low)

    def show(self, value: float, *, tick: bool = False) -> str:
        if self.log and tick and value > 0:
            return "10" + superscript(round(math.log10(value)))
        if self.digits is None:
            return number(value)
        digits = self.digits if tick else min(self.digits + 2, max(self.digits + 1, 3))
        return f"{value:.{digits}f}".replace("-", "−")


def step_axis(last_step: int) -> Axis:
    """From 0 to the last step, which need not be a tick."""
    last_step = max(last_step, 1)
    size = max(1, _nice(last_step / 4))
    return Axis(0, last_step, ticks=[i * size for i in range(int(last_step / size) + 1)], digits=0)


def value_axis(values: Sequence[float]) -> Axis:
    """From tick to tick around all values; from 0 unless they differ by less than a tenth."""
    low, high = min(values), max(values)
    if math.isclose(low, high, rel_tol=1e-9):
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
    if low > 0 and high - low > high / 10:
        low = 0.0
    size = _nice((high - low) / 4)
    first, last = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    digits = None if max(abs(low), abs(high)) < 1e-3 else max(0, -math.floor(math.log10(size) + 1e-9))
    return Axis(first * size, last * size, ticks=[i * size for i in range(first, last + 1)], digits=digits)


def log_axis(values: Sequence[float]) -> Axis:
    """Whole powers of ten; a decade more at the foot if there is a 0 to show."""
    exponents = [math.log10(v) for v in values if v > 0]
    if not exponents:
        return Axis(0, 1, ticks=[0.0], log=True)
    low, high = math.floor(min(exponents)), math.floor(max(exponents)) + 1
    powers = [10.0**e for e in range(low, high + 1, math.ceil((high - low) / 4))]
    has_zero = min(values) <= 0
    return Axis(low - has_zero, high, ticks=[0.0] * has_zero + powers, log=True)


def _nice(size: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(size))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= size * 0.999)
