"""Where a model's maps of words find the object: at which share of the latent's side.

    python -m tools.experiments word-maps        # half a minute

The pairs are those for choosing whose object the model knows. The guidance picture is noised to a level, and the
cross-attention to the word for the object is taken, the mean over the layers of one size. Printed is the correlation of
that map, enlarged to the picture, with the mask of the foreground by colour: 1 where they agree.
"""

import argparse
from statistics import fmean

import torch
from torch.nn import functional as F

import minipnp
from minipnp.advice import SHARES
from minipnp.ddim import noise
from minipnp.files import hub
from minipnp.measure import benchmarks
from minipnp.measure.icons import foreground
from minipnp.methods.maps import layers_at, word_map
from minipnp.methods.words import positions
from minipnp.slots import Tap
from tools.experiments.common import BUNDLED, fitted

LEVELS = (801, 541, 281)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--limit", type=int, default=16, help="pairs (default: %(default)s)")


@torch.no_grad()
def run(args: argparse.Namespace) -> None:
    pairs = [p for p in benchmarks.read_benchmark(str(BUNDLED / "choosing")).pairs if not p.held_out][: args.limit]
    sd = minipnp.load(hub.resolve(args.model), device="cpu")
    found = {(share, t): [] for share in SHARES for t in LEVELS}
    for pair in pairs:
        picture = fitted(sd, pair.image)
        x_0, text = sd.encode(picture), sd.embed(pair.source)
        z = sd.noise(*x_0.shape[2:], seed=5)
        word = positions(sd.tokenizer, pair.source, pair.word.partition("=")[0])
        truth = foreground(picture)[0].float().flatten()
        for share, t in found:
            taps = sd.unet.tap(noise(x_0, z, t), t, text, Tap(M=layers_at(share)))[1]
            cells = (int(side * share) for side in x_0.shape[2:])
            seen = F.interpolate(word_map(taps.M, word, *cells), picture.shape[2:], mode="bilinear").flatten()
            found[share, t].append(torch.corrcoef(torch.stack([seen, truth]))[0, 1].item())
    print(f"{len(pairs)} pairs.\n")
    print(f"| share of the latent's side | {' | '.join(f't = {t}' for t in LEVELS)} |\n|---|{'---:|' * len(LEVELS)}")
    for share in SHARES:
        print(f"| {share:g} | {' | '.join(f'{fmean(found[share, t]):.2f}' for t in LEVELS)} |")
