"""What Plug-and-Play's settings are worth: layout and text on pairs of a bundled list, side by side.

    python -m tools.experiments thresholds          # the 48 pairs for choosing, 20 steps; half an hour of one core

The thresholds τ_f and τ_A, the layers of f, the guidance scale, each changed by itself, and SDEdit for comparison.
Differences are taken pair by pair from what the model advises, with their bootstrap's 95 % interval. The model's advice
was chosen by these means.
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
from minipnp.measure.metrics import COLUMNS, Case
from minipnp.measure.report import interval
from minipnp.methods.registry import edit
from minipnp.methods.sdedit import SDEdit
from minipnp.pnp import PnP
from tools.experiments.common import BUNDLED, layout_and_fidelity

SETTINGS: dict[str, Callable[[PnP], PnP]] = {
    "as advised": lambda s: s,
    "f of layer 4": lambda s: replace(s, f_layers=(4,)),
    "f of layer 8": lambda s: replace(s, f_layers=(8,)),
    "f of layers 6 to 8": lambda s: replace(s, f_layers=(6, 7, 8)),
    "f of layers 4 to 11": lambda s: replace(s, f_layers=range(4, 12)),
    "τ_A 0.3": lambda s: replace(s, tau_A=0.3),
    "τ_A 0.8": lambda s: replace(s, tau_A=0.8),
    "τ_f 0.5": lambda s: replace(s, tau_f=0.5),
    "τ_A and τ_f 1: all steps": lambda s: replace(s, tau_A=1.0, tau_f=1.0),
    "guidance scale 2": lambda s: replace(s, scale=2.0),
    "guidance scale 4": lambda s: replace(s, scale=4.0),
    "guidance scale 5": lambda s: replace(s, scale=5.0),
}
SDEDIT = {f"SDEdit {strength}": strength for strength in (0.5, 0.6, 0.7, 0.8)}
AXES = ("iou", "edges", "probability", "fidelity")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=int, default=48, help="pairs (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="default: %(default)s")


def run(args: argparse.Namespace) -> None:
    benchmark = benchmarks.read_benchmark(str(BUNDLED / "choosing")).some(args.limit)
    measures = layout_and_fidelity(benchmark)
    sd = minipnp.load(hub.resolve("bundled"), device="cpu")
    usual = sd.advised(PnP, steps=args.steps)
    plan = Plan(benchmark, ("pnp",), measures, {}, steps=args.steps, advised=sd.advice.options)
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
    print(f"{len(benchmark.pairs)} pairs, {args.steps} steps.\n")
    print(f"| | {' | Δ | '.join(COLUMNS[axis].label for axis in AXES)} | Δ |\n|---|{'---:|---|' * len(AXES)}")
    for name, values in found.items():
        cells = [name]
        for axis in AXES:
            pairs = zip(values[axis], first[axis], strict=True)
            more = interval([(guidance, value - usual) for (guidance, value), (_, usual) in pairs])
            cells += [f"{interval(values[axis]).mean:.3f}", "" if values is first else str(more)]
        print(f"| {' | '.join(cells)} |")
