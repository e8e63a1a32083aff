"""What features cost that were kept at the iterate before, not at the latent itself: python -m tools.kept_features

With eps(x_t, t') or a fixed point on it, the evaluation for a level is made at the latent of the level before (or at
the last but one iterate); begun at the last eps, which is the default, at a point that it predicts. Kept, its features
save the edit's passes for the guidance, but are not those of these. Prints, of the bundled guidance picture at which it
is worst, how far the edit's latent and picture are from the edit with passes of its own. At eps(x_t, t) they are the
same to the bit; the first row shows that.
"""

import argparse
from pathlib import Path

import torch

import minipnp
from minipnp.guidance import Inversion
from minipnp.images import find_images, fit, psnr, read_image, to_image, to_tensor
from minipnp.known_words import KnownWords
from minipnp.pnp import PnP, plug_and_play

BUNDLED = Path(__file__).parent.parent / "weights" / "bundled"
EDIT = PnP(scale=KnownWords.of(BUNDLED).scale)
PROMPT = "a flat icon of a cow on a blue background"
WAYS = {
    "eps(x_t, t), 50 steps": Inversion(50, "current", 0),
    "the last eps, 50 steps, 1": Inversion(50, "last", 1),
    **{f"eps(x_t, t'), {n} steps": Inversion(n, "next", 0) for n in (50, 100, 250, 999)},
    **{f"fixed point on it, 50 steps, {n}": Inversion(50, "next", n) for n in (1, 2)},
}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=3, help="how many of the bundled guidance pictures (default 3)")
    images = find_images(BUNDLED / "examples")[: parser.parse_args().images]
    sd = minipnp.load(BUNDLED)
    text, null = sd.embed(PROMPT), sd.embed("")
    print(f"| inversion, features kept | latent, relative error | PSNR, dB (the worst of {len(images)} pictures) |")
    print("|---|---:|---:|")
    for name, how in WAYS.items():
        errors, likenesses = [], []
        for path in images:
            picture = to_tensor(fit(read_image(path), sd.size, sd.multiple))
            edits = []
            for keep in (EDIT, None):
                G = minipnp.guidance_from_picture(sd, picture, how=how, keep=keep)
                *_, (_, x) = plug_and_play(sd.unet, G, [text], null, s=EDIT)
                edits.append(x)
            kept, own = edits
            errors.append(((kept - own).norm() / own.norm()).item())
            likenesses.append(psnr(*(to_image(sd.decode(x)) for x in edits)))
        print(f"| {name} | {max(errors):.1e} | {min(likenesses):.1f} |", flush=True)


if __name__ == "__main__":
    main()
