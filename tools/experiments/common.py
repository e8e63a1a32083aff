"""What several experiments share: the bundled model's place and pictures, its usual edit, and the measures of it."""

import argparse
from pathlib import Path

import torch
from torch import Tensor

import minipnp
from minipnp.files.hub import WEIGHTS
from minipnp.files.images import find_images, fit, read_image, to_tensor
from minipnp.files.known_words import advice_of
from minipnp.measure import metrics
from minipnp.measure.benchmarks import Benchmark
from minipnp.measure.metrics import Metrics
from minipnp.model import StableDiffusion
from minipnp.pnp import PnP, plug_and_play

BUNDLED = WEIGHTS / "bundled"
EDIT = PnP.given(advice_of(BUNDLED).options)
PROMPT = "a flat icon of a cow on a blue background"


def add_images(parser: argparse.ArgumentParser) -> None:
    """Add the option --images, which `examples` takes the value of."""
    parser.add_argument("--images", type=int, default=3, help="how many of the bundled guidance pictures (default 3)")


def examples(n: int) -> list[Path]:
    """The first n of the guidance pictures that the bundled model comes with."""
    return find_images(BUNDLED / "examples")[:n]


def fitted(sd: StableDiffusion, path: Path) -> Tensor:
    """The picture of a file, of the size that the model takes: [1, 3, H, W]."""
    return to_tensor(fit(read_image(path), sd.size, sd.multiple))


@torch.no_grad()
def translated_latent(sd: StableDiffusion, G: minipnp.Guidance, text: Tensor, null: Tensor, s: PnP) -> Tensor:
    """The latent that the edit ends with, for one embedded prompt."""
    *_, (_, x_0) = plug_and_play(sd.unet, G, [text], null, s=s)
    return x_0


def layout_and_fidelity(benchmark: Benchmark) -> Metrics:
    """The measures of a translation that can be taken without a download."""
    return metrics.load_metrics(("iou", "edges", "icons"), benchmark.layout, None, "cpu")
