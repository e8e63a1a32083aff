"""What each difference from the authors' two codebases does to the picture, on the bundled model.

    python -m tools.experiments differences [--images N]

Starts from the defaults and changes one thing at a time to what the authors do, then all of either codebase.
Prints, as the mean over the bundled guidance pictures, the PSNR between the changed picture and the default one: the
lower, the larger the effect. (Two different prompts on the same guidance are given as a yardstick.)
"""

import argparse
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

import minipnp
from minipnp.files.images import psnr, to_image
from tools.experiments.common import BUNDLED, EDIT, PROMPT, add_images, examples, fitted

OTHER = "a glossy icon of a dog on a green background"
HERE = minipnp.Inversion()
NEXT, CURRENT = minipnp.Inversion(999, "next", 0), minipnp.Inversion(999, "current", 0)
RESAMPLED = replace(CURRENT, resample=999)
LARGER = EDIT.scale * 10 / 7.5  # plug-and-play's 10 to pnp-diffusers' 7.5

# what is changed: (inversion, edit, seed of the VAE's sample, prompt)
CHANGES = {
    "another prompt (yardstick)": (HERE, EDIT, None, OTHER),
    "one step more of f and of A (41, 26 of 50)": (HERE, replace(EDIT, inclusive=True), None, PROMPT),
    f"guidance scale {LARGER:g} in place of {EDIT.scale:g}": (HERE, replace(EDIT, scale=LARGER), None, PROMPT),
    "VAE posterior sampled, not its mean": (HERE, EDIT, 0, PROMPT),
    "inversion in 999 steps": (CURRENT, EDIT, None, PROMPT),
    "the same at eps(x_t, t'): pnp-diffusers": (NEXT, EDIT, None, PROMPT),
    "in 999 steps, and source re-sampled in 999": (RESAMPLED, EDIT, None, PROMPT),
    "all of plug-and-play": (RESAMPLED, replace(EDIT, inclusive=True, scale=LARGER), 0, PROMPT),
}


def options(parser: argparse.ArgumentParser) -> None:
    add_images(parser)


def run(args: argparse.Namespace) -> None:
    images = examples(args.images)
    sd = minipnp.load(BUNDLED)

    @cache
    def guidance(path: Path, how: minipnp.Inversion, vae_seed: int | None) -> minipnp.Guidance:
        keep = EDIT if how is HERE else None
        return minipnp.guidance_from_picture(sd, fitted(sd, path), EDIT, how, vae_seed, keep=keep)

    def picture(path, how, edit, vae_seed, prompt):
        return to_image(minipnp.translate(sd, guidance(path, how, vae_seed), [prompt], settings=edit))

    default = {path: picture(path, HERE, EDIT, None, PROMPT) for path in images}
    print(f"{'change':<46} PSNR to the default, dB ({len(images)} pictures)")
    for change, (how, edit, vae_seed, prompt) in CHANGES.items():
        values = [psnr(picture(path, how, edit, vae_seed, prompt), default[path]) for path in images]
        print(f"{change:<46} {torch.tensor(values).mean().item():.1f}", flush=True)
