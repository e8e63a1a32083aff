"""How many steps an inversion needs: reconstruction and translation against the number of evaluations.

    python -m tools.experiments inversion-curve           # goes on where it was broken off; --part 0/2 and 1/2 share it
    python -m tools.experiments inversion-curve --table   # of what is there

24 guidance pictures of the bundled benchmark, one prompt each, an edit of 50 steps. Both explicit forms and fixed point
(1, 2, 3 iterations begun at eps(x_t, t), 1 begun at the last eps) with 20, 50, 100, 250 steps, and both explicit forms
with 999. Measured: PSNR of the picture inverted and sampled again in 50 steps, against the VAE's round trip; layout
(IoU of foregrounds) and text fidelity of the translation. Differences are taken picture by picture from 999 steps at
eps(x_t, t'), the authors' way.
"""

import argparse
from pathlib import Path

import minipnp
from minipnp.app.log import Log
from minipnp.files import hub
from minipnp.files.atomic import write_text_atomic
from minipnp.guidance import Inversion
from minipnp.measure import benchmarks, records, report
from minipnp.measure.benchmarks import Benchmark
from minipnp.measure.evaluation import RECONSTRUCTION, Plan, carry_out
from minipnp.methods.plug_and_play import evaluations
from minipnp.pnp import PnP
from tools.experiments.common import layout_and_fidelity

STEPS = (20, 50, 100, 250)
FORMS = {  # what it is called: (at, iterations, steps)
    "eps(x_t, t')": ("next", 0, (*STEPS, 999)),
    "eps(x_t, t)": ("current", 0, (*STEPS, 999)),
    "the last eps, fixed point, 1": ("last", 1, STEPS),
    "fixed point, 1": ("current", 1, STEPS),
    "fixed point, 2": ("current", 2, STEPS),
    "fixed point, 3": ("current", 3, STEPS),
}
YARDSTICK = "eps(x_t, t')", 999
EDIT_STEPS = 50
AXES = {
    "psnr": "PSNR of the reconstruction, dB",
    "iou": "layout (foreground IoU), less that of 999",
    "fidelity": "text fidelity, less that of 999",
}

Setting = tuple[str, int]  # a form's name and the number of steps


def settings() -> dict[Setting, Inversion]:
    """The yardstick, then the cheapest first."""
    made = {(form, n): Inversion(n, at, iterations) for form, (at, iterations, steps) in FORMS.items() for n in steps}
    return dict(sorted(made.items(), key=lambda item: (item[0] != YARDSTICK, cost(item[1]))))


def cost(how: Inversion) -> int:
    """Evaluations of the network for the guidance; resampling, where the edit's levels are not met, included."""
    due = evaluations(PnP(steps=EDIT_STEPS), how, prompts=0)
    return due["inversion"] + due.get("resampling", 0)


def one_prompt_each(whole: Benchmark, n: int) -> Benchmark:
    """n guidance pictures with the first of their prompts, spread evenly over the kinds of pairs."""
    firsts = [pairs[0] for pairs in whole.groups.values()]
    kinds = sorted({pair.kind for pair in firsts})
    rows = [[pair for pair in firsts if pair.kind == kind] for kind in kinds]
    chosen = [row[i] for i in range(max(map(len, rows))) for row in rows if i < len(row)][:n]
    return Benchmark(whole.name, whole.layout, chosen)


def table(values: dict[Setting, dict[str, dict[str, float]]]) -> list[str]:
    """values: by setting, measure and guidance picture."""
    lines = [
        "| inversion | steps | evaluations | PSNR, dB | layout | Δ to 999 | text | Δ to 999 | within |",
        "|---|---:|---:|---|---|---|---|---|---|",
    ]
    for (form, n), measured in sorted(values.items(), key=lambda item: (list(FORMS).index(item[0][0]), item[0][1])):
        cells, inside = [f"{sum(measured['psnr'].values()) / len(measured['psnr']):.1f}"], []
        for name in ("iou", "fidelity"):
            difference = paired(measured[name], values[YARDSTICK][name])
            inside.append(difference.low <= 0 <= difference.high)
            cells += [f"{report.interval(list(measured[name].items())).mean:.3f}", str(difference)]
        cells = ["" if (form, n) == YARDSTICK and i in (2, 4) else cell for i, cell in enumerate(cells)]
        within = "yes" if all(inside) else "no"
        lines.append(f"| {form} | {n} | {cost(settings()[form, n])} | {' | '.join(cells)} | {within} |")
    return lines


def paired(a: dict[str, float], b: dict[str, float]) -> report.Interval:
    return report.interval([(picture, a[picture] - b[picture]) for picture in a if picture in b])


def plot(values: dict[Setting, dict[str, dict[str, float]]], path: Path) -> None:
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    colours = dict(zip(FORMS, ("#b5473c", "#1d3f66", "#d19a2e", "#7fb069", "#3d8361", "#14532d"), strict=True))
    marks = dict(zip(FORMS, "osXv^D", strict=True))
    figure, axes = plt.subplots(1, len(AXES), figsize=(13, 4.6))
    for ax, (name, label) in zip(axes, AXES.items(), strict=True):
        base = {} if name == "psnr" else values[YARDSTICK][name]  # what the others are shown less
        for form in FORMS:
            there = [(cost(settings()[s]), s, values[s][name]) for s in values if s[0] == form]
            there = [row for row in there if not base or row[1] != YARDSTICK]
            if not there:
                continue
            costs, _, of = zip(*sorted(there, key=lambda row: row[1]), strict=True)  # by steps
            points = [report.interval([(key, x - base.get(key, 0.0)) for key, x in each.items()]) for each in of]
            y, ends = [p.mean for p in points], [[p.mean - p.low for p in points], [p.high - p.mean for p in points]]
            how = dict(marker=marks[form], color=colours[form], label=form, markersize=5, linewidth=1.4)
            ax.errorbar(costs, y, ends, elinewidth=0.8, **how)
        if base:
            ax.axhline(0, color="black", linewidth=0.8)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator([20, 50, 100, 250, 500, 1000]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.set_xlabel("evaluations of the network for the guidance")
        ax.set_title(label, fontsize=11)
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=len(FORMS), frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=100)
    plt.close(figure)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--limit", type=int, default=24, help="guidance pictures")
    parser.add_argument("--part", default="0/1", help="this process's share of them")
    parser.add_argument("--table", action="store_true", help="of the settings that are done; measure nothing")
    parser.add_argument("--out", type=Path, default=Path("out/inversion-curve"))


def run(args: argparse.Namespace) -> None:
    part, parts = map(int, args.part.split("/"))
    log, path = Log(), hub.resolve(args.model)
    benchmark = one_prompt_each(benchmarks.read_benchmark("bundled"), args.limit)
    measures = layout_and_fidelity(benchmark)
    sd = minipnp.load(path, device="cpu")
    about = {"weights_sha256": {network: hub.sha256(file) for network, file in sd.source.files.items()}}
    plans = {
        s: Plan(benchmark, (RECONSTRUCTION, "pnp"), measures, about, how, advised=sd.advice.options)
        for s, how in settings().items()
    }
    for (form, n), plan in ({} if args.table else plans).items():
        log.say(f"{form}, {n} steps")
        carry_out(plan, sd, args.out / "records", log, part, parts)

    known, values = records.read_records(args.out / "records")[0], {}
    for setting, plan in plans.items():
        found, failed, missing = report.results(plan, known)
        if missing or failed:
            log.say(f"{setting}: {missing} results are missing, {len(failed)} failed {'; '.join(failed)}")
            continue
        translated, again = found["pnp"].values(), found[RECONSTRUCTION].values()
        values[setting] = {
            "psnr": {row.guidance: row.values["psnr"] for row in again},
            **{name: {row.guidance: row.values[name] for row in translated} for name in ("iou", "fidelity")},
        }
    if YARDSTICK not in values or not args.table and len(values) < len(plans):
        there = "--table makes one of what is there" if YARDSTICK in values else "not even the yardstick is done"
        log.say(f"no table yet, the process that is done last makes it: {there}")
        return
    lines = [
        f"{len(benchmark.pairs)} guidance pictures of the bundled benchmark, one prompt each. Δ: mean of the paired",
        "differences to the authors' 999 steps, with its bootstrap's 95 % interval; within: 0 lies in both.", "",
        *table(values),
    ]  # fmt: skip
    write_text_atomic("\n".join(lines) + "\n", args.out / "inversion.md")
    plot(values, args.out / "inversion.png")
    print(*lines, args.out / "inversion.md", args.out / "inversion.png", sep="\n")
