"""The table and the plot of an evaluation: means with confidence intervals, structure against text as in Fig. 9.

Intervals are percentile bootstraps of 95 %. What is drawn again is the guidance pictures, with all pairs that share
one, since the prompts for a picture are alike; 2000 draws from a fixed seed. Differences of two methods are taken pair
by pair, over the pairs that both have.
"""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minipnp.errors import InputError
from minipnp.files.atomic import atomic
from minipnp.measure.evaluation import RECONSTRUCTION, Plan
from minipnp.measure.metrics import COLUMNS
from minipnp.measure.runs import RUNS

DRAWS = 2000
SEED = 0
FEWEST = 10  # guidance pictures of which a verdict is given: intervals by bootstrap are too narrow for fewer
VERDICTS = {  # whether Plug-and-Play is above on one axis at least, and whether it is below on one
    (True, False): "above, and below on neither",
    (False, True): "below, and above on neither",
    (True, True): "above on one, below on the other",
    (False, False): "no difference seen",
}
# the first of each that was measured
LAYOUT_AXES = ("structure", "iou")
TEXT_AXES = ("clip", "fidelity")


class Interval(NamedTuple):
    """low, high: of 95 %; NaN with fewer than two guidance pictures."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.low):
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Result(NamedTuple):
    guidance: str
    values: Mapping[str, float]


Results = dict[str, dict[str, Result]]  # by method, by pair


def interval(values: list[tuple[str, float]]) -> Interval:
    """values: (guidance picture, value) of each pair. The mean is that of all pairs."""
    groups = {}
    for guidance, value in values:
        groups.setdefault(guidance, []).append(value)
    totals, counts = (np.array([f(group) for group in groups.values()], float) for f in (sum, len))
    low = high = np.nan
    if len(groups) > 1:
        drawn = np.random.default_rng(SEED).integers(len(groups), size=(DRAWS, len(groups)))
        low, high = np.percentile(totals[drawn].sum(axis=1) / counts[drawn].sum(axis=1), (2.5, 97.5))
    return Interval(totals.sum() / counts.sum(), low, high)


def results(plan: Plan, records: Mapping[str, dict]) -> tuple[Results, list[str], int]:
    """What there is of the plan; what failed, a line each; how much is still to be done."""
    found = {name: {} for name in plan.methods}
    failed = []
    missing = 0
    for jobs in plan.jobs.values():
        for job in jobs:
            record = records.get(job.key)
            if record is None:
                missing += 1
            elif "values" in record:
                found[job.method][job.pair.name] = Result(job.pair.guidance, record["values"])
            else:
                failed.append(f"{job.pair.name}, {job.method}: {record['error']}")
    return found, failed, missing


def column(rows: Mapping[str, Result], name: str) -> list[tuple[str, float]]:
    """Of the pairs that have this value, and have a number for it."""
    return [(row.guidance, row.values[name]) for row in rows.values() if has(row, name)]


def has(row: Result, name: str) -> bool:
    return name in row.values and math.isfinite(row.values[name])


def cell(rows: Mapping[str, Result], name: str) -> str:
    """The mean, and of how many pairs it is, where not all of them have the value."""
    values = column(rows, name)
    if not values:
        return ""
    return str(interval(values)) + (f", {len(values)} pairs" if len(values) < len(rows) else "")


def measured(found: Results) -> list[str]:
    """The columns of the translations, in the order of COLUMNS."""
    there = {
        name
        for method, rows in found.items()
        if method != RECONSTRUCTION
        for row in rows.values()
        for name in row.values
    }
    return [name for name in COLUMNS if name in there]


def axes(found: Results) -> tuple[str, str] | None:
    """The columns of layout and of text that Fig. 9 is drawn in; None where one of the two was not measured."""
    there = measured(found)
    pair = [next((name for name in names if name in there), None) for names in (LAYOUT_AXES, TEXT_AXES)]
    return None if None in pair else tuple(pair)


def markdown(plan: Plan, records: Mapping[str, dict], command: str) -> str:
    found, failed, missing = results(plan, records)
    benchmark = plan.benchmark
    there = measured(found)
    lines = [
        f"# {benchmark.name}: {len(benchmark.pairs)} pairs of {len(benchmark.groups)} guidance pictures",
        "",
        f"Made by `{command}`. Means over the pairs, in brackets the bootstrap's 95 % over guidance pictures.",
        "",
    ]
    if missing:
        lines += [f"**Not done yet: {missing} results are missing.**", ""]
    heads = [f"{COLUMNS[name].label} {'↑' if COLUMNS[name].better > 0 else '↓'}" for name in there]
    lines += [f"| {' | '.join(['method', *heads, 'pairs'])} |", f"|---|{'---|' * len(heads)}---:|"]
    for method in plan.methods:
        if method != RECONSTRUCTION and found[method]:
            cells = [cell(found[method], name) for name in there]
            lines.append(f"| {' | '.join([RUNS[method].label, *cells, str(len(found[method]))])} |")
    if found.get(RECONSTRUCTION):
        again = [f"{COLUMNS[name].label} {interval(column(found[RECONSTRUCTION], name))}" for name in ("psnr", "ssim")]
        lines += [
            "",
            f"Inverted and sampled again, against the VAE's round trip: {', '.join(again)}, of "
            f"{len(found[RECONSTRUCTION])} pictures.",
        ]
    lines += [*_by_kind(plan, found), *_differences(found), *_left_out(plan, failed)]
    return "\n".join(lines) + "\n"


def _by_kind(plan: Plan, found: Results) -> list[str]:
    """Plug-and-Play by kind of pair, and by what was held back from training."""
    kinds = {}
    seen = {}
    for pair in plan.benchmark.pairs:
        if row := found.get("pnp", {}).get(pair.name):
            kinds.setdefault(pair.kind, {})[pair.name] = row
            if plan.benchmark.layout == "bundled":
                seen.setdefault(f"guidance {'held back' if pair.held_out else 'trained on'}", {})[pair.name] = row
    groups = kinds | seen
    if len(groups) < 2 or (pair := axes(found)) is None:
        return []
    lines = [
        "",
        f"| Plug-and-Play | {COLUMNS[pair[0]].label} | {COLUMNS[pair[1]].label} | pairs |",
        "|---|---|---|---:|",
    ]
    for kind, rows in groups.items():
        cells = [cell(rows, name) for name in pair]
        lines.append(f"| {' | '.join([kind, *cells, str(len(rows))])} |")
    return lines


def _differences(found: Results) -> list[str]:
    """Plug-and-Play minus every other method on the two axes, signed so that more is better."""
    several = len({row.guidance for row in found.get("pnp", {}).values()}) > 1  # of one there is no interval
    if not several or (pair := axes(found)) is None:
        return []
    lines = []
    for method, rows in found.items():
        ours = found["pnp"]
        shared = [n for n in rows if n in ours and all(has(row, name) for row in (rows[n], ours[n]) for name in pair)]
        if method in ("pnp", RECONSTRUCTION) or not shared:
            continue
        cells = []
        above = False
        below = False
        for name in pair:
            sign = COLUMNS[name].better
            more = interval([(rows[n].guidance, sign * (ours[n].values[name] - rows[n].values[name])) for n in shared])
            cells.append(f"{more.mean:+.3f} [{more.low:+.3f}, {more.high:+.3f}]")
            above = above or more.low > 0
            below = below or more.high < 0
        few = len({rows[n].guidance for n in shared}) < FEWEST
        verdict = f"of fewer than {FEWEST} guidance pictures: not told" if few else VERDICTS[above, below]
        lines.append(f"| {' | '.join([RUNS[method].label, *cells, str(len(shared)), verdict])} |")
    head = [f"{COLUMNS[name].label}, more is better" for name in pair]
    return (
        ["", f"| Plug-and-Play minus | {' | '.join(head)} | pairs | |", "|---|---|---|---:|---|", *lines]
        if lines
        else []
    )


def _left_out(plan: Plan, failed: list[str]) -> list[str]:
    """What was not measured, and why."""
    lacking = Counter(
        f"{RUNS[name].label}: {reason}"
        for name in plan.methods
        if name != RECONSTRUCTION
        for pair in plan.benchmark.pairs
        if (reason := RUNS[name].lacks(pair))
    )
    lines = [f"- {reason} ({n} pairs)" for reason, n in lacking.items()]
    lines += [f"- {reason}" for reason in (*plan.benchmark.bad, *failed)]
    total = sum(lacking.values()) + len(plan.benchmark.bad) + len(failed)
    return ["", f"Left out: {total}", "", *lines] if lines else []


FAMILIES = {  # colour by method, so that ablations of one stand together
    "pnp": "#c1272d",
    "masked-pnp": "#e07b39",
    "sdedit": "#3b6fb6",
    "ddim": "#555555",
    "p2p": "#2e8b57",
    "p2z": "#8a4fa3",
    "skip": "#1f8a8a",
    "masactrl": "#a67c00",
}
MARKERS = "osD^vPX<>"


def plot(plan: Plan, records: Mapping[str, dict], place: Path) -> None:
    """Fig. 9: every method a point, layout to the left, text upwards; bars are the table's intervals.

    InputError: matplotlib is not installed, or only one of the two was measured.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("the plot needs matplotlib: pip install -e '.[evaluate]'") from None
    found, _, _ = results(plan, records)
    if (pair := axes(found)) is None:
        raise InputError("the plot needs a measure of layout (structure or iou) and one of text (clip or icons)")
    figure = Figure(figsize=(8.6, 5.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    area = figure.subplots()
    used = Counter()
    for method in plan.methods:
        if (
            method == RECONSTRUCTION
            or not (x := column(found[method], pair[0]))
            or not (y := column(found[method], pair[1]))
        ):
            continue
        family = method if method in FAMILIES else method.split("-")[0]
        point = (interval(x), interval(y))
        ours = method == "pnp"
        bars = [np.nan_to_num([[p.mean - p.low], [p.high - p.mean]]) for p in point]
        area.errorbar(
            point[0].mean,
            point[1].mean,
            xerr=bars[0],
            yerr=bars[1],
            fmt="*" if ours else MARKERS[used[family] % len(MARKERS)],
            markersize=16 if ours else 7,
            color=FAMILIES[family],
            markeredgecolor="white",
            markeredgewidth=0.6,
            elinewidth=0.9,
            capsize=2,
            ecolor=(FAMILIES[family], 0.45),
            zorder=3 if ours else 2,
            label=RUNS[method].label,
        )
        used[family] += not ours
    layout, text = (COLUMNS[name] for name in pair)
    if layout.better > 0:
        area.invert_xaxis()  # so that the best corner is that of Fig. 9 in either measure
    area.set_xlabel(f"{layout.label}   (← keeps the layout)")
    area.set_ylabel(f"{text.label}   (follows the text →)")
    area.grid(color="#dddddd", linewidth=0.6)
    area.set_axisbelow(True)
    area.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    with atomic(place) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
