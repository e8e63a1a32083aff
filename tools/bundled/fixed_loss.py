"""The loss of a model's UNet on pictures that are the same at each call: how far its training is.

    python -m tools.bundled.fixed_loss                  # of weights/bundled

The mean over 6 × 32 pictures of the icons of the second phase, at 128 × 128 pixels, whatever size the model is for.
"""

import argparse
from pathlib import Path
from statistics import fmean

import torch

from minipnp.files.loading import load
from minipnp.vae import VAE
from tools.bundled import run
from tools.bundled.captions import Tokens
from tools.bundled.data import Icons
from tools.bundled.export import FOLDER
from tools.bundled.fetch import DATA
from tools.bundled.train import prepare
from tools.bundled.train_unet import Both, batch, loss
from tools.bundled.training import FINISHED

BATCHES, SIZE, SEED = 6, 32, 999


@torch.no_grad()
def fixed_loss(both: Both, vae: VAE, icons: Icons, tokens: Tokens) -> float:
    cells = FINISHED // vae.config.factor
    both = both.for_size(cells).eval().to(memory_format=torch.channels_last)
    batches = (batch(icons, vae, tokens, SIZE, SEED, step) for step in range(BATCHES))
    return fmean(loss(both, *now).item() for now in batches)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("model", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--data", type=Path, default=DATA)
    args = parser.parse_args(argv)
    prepare(args.data, FINISHED)
    tokens = Tokens.read(args.data)
    vae = load(args.model, device="cpu").vae.to(memory_format=torch.channels_last)
    icons = Icons.read(args.data, FINISHED).finished()
    print(f"{fixed_loss(Both.load(args.model, tokens.used()), vae, icons, tokens):.4f}")


if __name__ == "__main__":
    run(main)
