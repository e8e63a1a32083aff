"""Features of a picture at chosen timesteps and layers: what ε_θ computes when it is given the picture's x_t.

x_t comes from one of three places, one function each:

* `inverted`: DDIM inversion of the picture, as in the Plug-and-Play paper;
* `noised`: Eq. (1), one pass of the network per timestep, as in DIFT (Tang et al., NeurIPS 2023);
* `generated`: the picture is itself sampled from a text, and x_t is met on the way.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from minipnp.ddim import CLEAN, guided, invert, noise, sample
from minipnp.errors import InputError
from minipnp.guidance import SOURCE_SCALE, Inversion, Progress, silent
from minipnp.model import StableDiffusion
from minipnp.options import Stepped
from minipnp.pipeline import check_sides, start
from minipnp.slots import Layer, Part, Tap
from minipnp.unet import ATTENTIONS, TABLE
from minipnp.weights import finite


@dataclass(frozen=True)
class Seen:
    """A picture on its way through the noise.

    x: latents x_t [1, 4, h, w] by t. text: [1, 77, width], under which features are taken. x_0: the clean latent.
    """

    x: dict[int, Tensor]
    text: Tensor
    x_0: Tensor


@torch.no_grad()
def inverted(
    sd: StableDiffusion,
    picture: Tensor,
    ts: Collection[int],
    prompt: str = "",
    steps: Stepped = Stepped(),
    progress: Progress = silent,
) -> Seen:
    """x_t by DDIM inversion under `prompt`, unguided. picture: [1, 3, H, W] in [−1, 1]. It ends at the largest of `ts`.

    InputError: a t that an inversion in so many steps does not meet.
    """
    up = [t for t in levels(ts, steps) if t <= max(ts)]
    how = Inversion()
    x_0 = encoded(sd, picture)
    text = sd.embed(prompt)
    met = progress(invert(lambda x, t: sd.unet(x, t, text), x_0, up, how.at, how.iterations), len(up), "inversion")
    return Seen({t: x for t, x in met if t in ts}, text, x_0)


@torch.no_grad()
def noised(sd: StableDiffusion, picture: Tensor, ts: Collection[int], prompt: str = "", seed: int = 0) -> Seen:
    """x_t = √ᾱ_t·x_0 + √(1−ᾱ_t)·z with one z for all t.

    Pictures that are to be compared need different seeds: with one z, cells of the same place would look alike.
    """
    check_range(ts)
    x_0 = encoded(sd, picture)
    z = sd.noise(*x_0.shape[2:], seed)
    return Seen({t: noise(x_0, z, t) for t in ts}, sd.embed(prompt), x_0)


@torch.no_grad()
def generated(
    sd: StableDiffusion,
    prompt: str,
    ts: Collection[int],
    seed: int = 0,
    steps: Stepped = Stepped(),
    scale: float = SOURCE_SCALE,
    size: int | None = None,
    progress: Progress = silent,
) -> Seen:
    """A square picture from a text, sampled at this guidance scale. Its features are taken under it (footnote 1).

    size: pixels, by default sd.size. InputError: a t that sampling in so many steps does not meet.
    """
    down = levels(ts, steps)
    side = size or sd.size
    text = sd.embed(prompt)
    null = sd.embed("")
    x = start(sd, side, side, seed, steps)
    met = {down[0]: x}
    denoising = sample(lambda x, t: guided(sd.unet, x, t, text, null, scale), x, down)
    met |= progress(denoising, steps.steps, "sampling")
    return Seen({t: met[t] for t in ts}, text, met[CLEAN])


@torch.no_grad()
def features(sd: StableDiffusion, seen: Seen, t: int, of: str, layers: Sequence[Layer]) -> dict[Layer, Tensor]:
    """One quantity at t, by layer, from one pass. float32 on the CPU. InputError: there is NaN in it.

    of: "f", "q", "k": [C, H, W], of q and k the heads side by side. "A": [H·W, H·W], the mean over heads.
    """
    check_layers(of, layers)
    taken = sd.unet.tap(seen.x[t], t, seen.text, Tap(**{of: layers}), stop=True)[1]
    if of == "f":
        found = {layer: taken.f[layer][0] for layer in layers}
    elif of == "A":
        found = {layer: taken.A[layer].map[0].float().mean(dim=0) for layer in layers}
    else:
        found = {
            layer: rearrange(
                getattr(taken.A[layer], of)[0], "heads (h w) d -> (heads d) h w", h=cells_of(layer, seen)[0]
            )
            for layer in layers
        }
    found = {layer: x.float().cpu() for layer, x in found.items()}
    if not all(map(finite, found.values())):
        raise InputError("NaN in the features: try --dtype float32")
    return found


def cells_of(layer: Layer, seen: Seen) -> tuple[int, int]:
    """Height and width of the layer's cells, of this picture."""
    height, width = (side >> TABLE[layer].level for side in seen.x_0.shape[2:])
    return height, width


def check_layers(of: str, layers: Sequence[Layer]) -> None:
    if of != "f" and (bare := [str(layer.row) for layer in layers if layer not in ATTENTIONS]):
        raise InputError(f"no attention in decoder layer {', '.join(bare)}: for {of} give layers from 3 to 11")
    if of == "f" and any(layer.part is not Part.DECODER for layer in layers):
        raise InputError("f is looked at in the decoder: give its layers, 0 to 11")


def levels(ts: Collection[int], steps: Stepped) -> list[int]:
    """The levels of the steps, noisiest first. InputError: one of `ts` is not among them."""
    check_range(ts)
    there = steps.levels
    for t in ts:
        if t not in there:
            near = sorted(sorted(there, key=lambda level: abs(level - t))[:2])
            raise InputError(
                f"t = {t} is not met in {steps.steps} steps with {steps.spacing} timesteps: give "
                f"{' or '.join(map(str, near))}, or 999 steps with leading ones, which meet all"
            )
    return there


def check_range(ts: Collection[int]) -> None:
    if bad := [t for t in ts if not 1 <= t <= 999]:
        raise InputError(f"t = {bad[0]}: give timesteps from 1 to 999")


def encoded(sd: StableDiffusion, picture: Tensor) -> Tensor:
    check_sides(sd, *picture.shape[2:])
    return sd.encode(picture)
