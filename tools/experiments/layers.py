"""Which layer's f holds the layout? Each decoder layer's f is injected alone, in all steps, with no self-attention.

    python -m tools.experiments layers                              # the bundled model, 12 of the pairs for choosing
    python -m tools.experiments layers --model M PICTURES --prompt 'a bronze horse' --metrics edges

The paper takes f of layer 4, which has 16 × 16 cells in Stable Diffusion at 512 pixels. In a model of another size the
same cells are in other layers, and what suits it has to be measured: that is what this is for. PICTURES is a folder of
pictures, all edited to --prompt, or a benchmark as `minipnp evaluate` takes it.

The first table has how far the edit's latent moves from the one without any injection, and the measures' differences to
that, pair by pair, with the bootstrap's 95 % interval. The second has the same beside self-attention, which is injected
in layers 4 to 11. Others have found that the layers to inject differ between architectures: SkipInject (arXiv
2501.14524), FeatureInject ("One Size Does Not Fit All").
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import minipnp
from minipnp.errors import InputError
from minipnp.files import hub
from minipnp.files.images import find_images, to_image, to_tensor
from minipnp.measure import metrics
from minipnp.measure.benchmarks import Benchmark, Pair, read_benchmark
from minipnp.measure.metrics import COLUMNS, Case
from minipnp.measure.report import interval
from minipnp.model import StableDiffusion
from minipnp.pnp import PnP
from minipnp.see.injection import ALL_A, Variant, every, injections
from minipnp.see.sheet import side_by_side
from minipnp.slots import decoder
from minipnp.unet import TABLE
from tools.experiments.common import BUNDLED, fitted

SHOWN = ("structure", "iou", "edges", "clip", "probability")  # of the measures' columns: layout, and text
ALONE = (Variant("nothing"), *(Variant(f"f of layer {i}", decoder(i)) for i in range(12)))
BESIDE_A = tuple(replace(v, label="A alone" if not v.f else f"A and {v.label}", A=ALL_A) for v in ALONE)


def options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("pictures", nargs="?", default=str(BUNDLED / "choosing"), help="a folder of pictures, or a benchmark")
    add("--prompt", help="what to make of every picture of a folder")
    add("--model", default="bundled")
    add("--metrics", default="edges,iou,icons", help="as of `minipnp evaluate` (default: %(default)s)")
    add("--limit", type=int, default=12, help="pairs (default: %(default)s)")
    add("--steps", type=int, default=20, help="default: %(default)s")
    add("--out", type=Path, default=Path("out/layers.png"), help="the picture (default: %(default)s)")
    add("--rows", type=int, default=2, help="pairs that the picture shows (default: %(default)s)")


def pairs_of(pictures: str, prompt: str | None, limit: int) -> Benchmark:
    """The pairs of a benchmark, or every picture of a folder with one prompt."""
    if prompt is None:
        return read_benchmark(pictures).some(limit)
    pairs = [Pair(path.stem, path.stem, prompt, path) for path in find_images(pictures)[:limit]]
    return Benchmark(Path(pictures).name, "ti2i", pairs)


def edits(sd: StableDiffusion, pair: Pair, s: PnP, variants: tuple[Variant, ...]) -> tuple[Tensor, Tensor]:
    """→ the guidance picture [1, 3, H, W], and the latents [variants, 4, h, w] of all variants' edits."""
    picture = fitted(sd, pair.image)
    G = minipnp.guidance_from_picture(sd, picture, s, keep=every(s, variants))
    text, null = sd.embed(pair.prompt), sd.embed("")
    *_, (_, x_0) = injections(sd.unet, G, text, null, None, s, G.x_T, variants)
    return picture, x_0


def run(args: argparse.Namespace) -> None:
    benchmark = pairs_of(args.pictures, args.prompt, args.limit)
    if any(pair.image is None for pair in benchmark.pairs):
        raise InputError(f"{args.pictures}: its guidance is generated; give pictures")
    measures = metrics.load_metrics(args.metrics.split(","), benchmark.layout, None, "cpu")
    sd = minipnp.load(hub.resolve(args.model))
    s = sd.advised(PnP, steps=args.steps, tau_f=1.0, tau_A=1.0)
    variants = ALONE + BESIDE_A
    moved = {v.label: [] for v in variants}
    found = {v.label: [] for v in variants}
    rows = []
    for pair in tqdm(benchmark.pairs, file=sys.stderr):
        before, x_0 = edits(sd, pair, s, variants)
        pictures = [to_image(x) for x in sd.decode(x_0)]
        for i, v in enumerate(variants):
            base = x_0[0 if i < len(ALONE) else len(ALONE)]
            moved[v.label].append((pair.guidance, (torch.dist(x_0[i], base) / base.norm()).item()))
            values = measures(Case(pair, before, to_tensor(pictures[i])))
            found[v.label].append((pair.guidance, values))
        if len(rows) < 2 * args.rows:
            cells = list(zip([v.label for v in variants], pictures, strict=True))
            rows += [[("guidance", to_image(before)), *part] for part in (cells[: len(ALONE)], cells[len(ALONE) :])]
    names = [name for name in SHOWN if name in found["nothing"][0][1]]
    print(f"{len(benchmark.pairs)} pairs, {args.steps} steps, scale {s.scale:g}.\n")
    side = sd.unet.config.size
    for some in (ALONE, BESIDE_A):
        base = found[some[0].label]
        print(f"| beside {some[0].label} | cells | change of x_0 | {' | '.join(COLUMNS[n].label for n in names)} |")
        print(f"|---|---:|---:|{'---|' * len(names)}")
        for v in some[1:]:
            cells = side >> TABLE[v.f[0]].level
            change = interval(moved[v.label]).mean
            deltas = [
                interval([(g, x[n] - y[n]) for (g, x), (_, y) in zip(found[v.label], base, strict=True)]) for n in names
            ]
            shown = " | ".join(f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]" for d in deltas)
            print(f"| {v.label} | {cells} × {cells} | {change:.0%} | {shown} |")
        print()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    labels, pictures = ([[cell[i] for cell in row] for row in rows] for i in (0, 1))
    side_by_side(pictures, labels, 128).save(args.out)
    print(args.out)
