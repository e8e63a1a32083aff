"""What Plug-and-Play's settings are worth: layout and text fidelity on pairs of the bundled benchmark, side by side.

    python -m tools.experiments thresholds          # 40 pairs; a quarter of an hour of one core

The thresholds τ_f and τ_A, the layers of f, the guidance scale, each changed by itself, and SDEdit for comparison.
Differences are taken pair by pair from the settings of `make translate`, with their bootstrap's 95 % interval.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace

from tqdm import tqdm

import minipnp
from minipnp.files import hub
from minipnp.files.images import to_image, to_tensor
from minipnp.measure import benchmarks
from minipnp.measure.evaluation import Plan, original_of
from minipnp.measure.metrics import Case
from minipnp.measure.report import interval
from minipnp.methods.registry import edit
from minipnp.methods.sdedit import SDEdit
from minipnp.pnp import PnP
from tools.experiments.common import layout_and_fidelity

SETTINGS: dict[str, Callable[[PnP], PnP]] = {
    "as in `make translate`": lambda s: s,
    "τ_A 0.8 of the steps": lambda s: replace(s, tau_A=0.8),
    "τ_A and τ_f 1: all steps": lambda s: replace(s, tau_A=1.0, tau_f=1.0),
    "f of layers 4 and 7": lambda s: replace(s, f_layers=(4, 7)),
    "f of layers 4 to 11": lambda s: replace(s, f_layers=range(4, 12)),
    "guidance scale 2": lambda s: replace(s, scale=2.0),
    "guidance scale 5": lambda s: replace(s, scale=5.0),
}
SDEDIT = {f"SDEdit {strength}": strength for strength in (0.1, 0.25)}
AXES = ("iou", "fidelity")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=int, default=40, help="pairs (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=PnP().steps)


def run(args: argparse.Namespace) -> None:
    benchmark = benchmarks.read_benchmark("bundled").some(args.limit)
    measures = layout_and_fidelity(benchmark)
    sd = minipnp.load(hub.resolve("bundled"), device="cpu")
    usual = sd.advised(PnP, steps=args.steps)
    plan = Plan(benchmark, ("pnp",), measures, {}, steps=args.steps)
    settings = {name: change(usual) for name, change in SETTINGS.items()}
    settings |= {name: SDEdit(args.steps, strength, usual.scale) for name, strength in SDEDIT.items()}
    found = {name: {axis: [] for axis in AXES} for name in settings}
    for pairs in tqdm(benchmark.groups.values(), file=sys.stderr):
        o, before = original_of(plan, sd, pairs[0])
        for pair in pairs:
            for name, s in settings.items():
                after = edit(o, pair.prompt, s)  # inverted once; where kept features lack a layer, it makes its passes
                values = measures(Case(pair, before, to_tensor(to_image(after))))
                for axis in AXES:
                    found[name][axis].append((pair.guidance, values[axis]))
    first = found[next(iter(SETTINGS))]
    print(f"{len(benchmark.pairs)} pairs of the bundled benchmark, {args.steps} steps.\n")
    print("| | layout: mask IoU | Δ | text fidelity | Δ |\n|---|---:|---|---:|---|")
    for name, values in found.items():
        cells = [name]
        for axis in AXES:
            pairs = zip(values[axis], first[axis], strict=True)
            more = interval([(guidance, value - usual) for (guidance, value), (_, usual) in pairs])
            cells += [f"{interval(values[axis]).mean:.3f}", "" if values is first else str(more)]
        print(f"| {' | '.join(cells)} |")
