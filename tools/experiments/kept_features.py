"""What features cost that were kept at the iterate before, not at the latent itself.

    python -m tools.experiments kept-features [--images N]

With eps(x_t, t') or a fixed point on it, the evaluation for a level is made at the latent of the level before (or at
the last but one iterate); begun at the last eps, which is the default, at a point that it predicts. Kept, its features
save the edit's passes for the guidance, but are not those of these. Prints, of the bundled guidance picture at which it
is worst, how far the edit's latent and picture are from the edit with passes of its own. At eps(x_t, t) they are the
same to the bit; the first row shows that.
"""

import argparse

import torch

import minipnp
from minipnp.files.images import psnr, to_image
from minipnp.guidance import Inversion
from tools.experiments.common import BUNDLED, EDIT, PROMPT, add_images, examples, fitted, translated_latent

WAYS = {
    "eps(x_t, t), 50 steps": Inversion(50, "current", 0),
    "the last eps, 50 steps, 1": Inversion(50, "last", 1),
    **{f"eps(x_t, t'), {n} steps": Inversion(n, "next", 0) for n in (50, 100, 250, 999)},
    **{f"fixed point on it, 50 steps, {n}": Inversion(50, "next", n) for n in (1, 2)},
}


def options(parser: argparse.ArgumentParser) -> None:
    add_images(parser)


@torch.no_grad()
def run(args: argparse.Namespace) -> None:
    images = examples(args.images)
    sd = minipnp.load(BUNDLED)
    text, null = sd.embed(PROMPT), sd.embed("")
    print(f"| inversion, features kept | latent, relative error | PSNR, dB (the worst of {len(images)} pictures) |")
    print("|---|---:|---:|")
    for name, how in WAYS.items():
        errors, likenesses = [], []
        for path in images:
            picture = fitted(sd, path)
            edits = []
            for keep in (EDIT, None):
                G = minipnp.guidance_from_picture(sd, picture, how=how, keep=keep)
                edits.append(translated_latent(sd, G, text, null, EDIT))
            kept, own = edits
            errors.append(((kept - own).norm() / own.norm()).item())
            likenesses.append(psnr(*(to_image(sd.decode(x)) for x in edits)))
        print(f"| {name} | {max(errors):.1e} | {min(likenesses):.1f} |", flush=True)
