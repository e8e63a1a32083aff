"""SDEdit (Meng et al. 2022): noise the picture up to a strength, then denoise it with the target prompt.

What the noise drowned is painted anew by the prompt: one number weighs keeping the picture against following the text.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minipnp.ddim import CLEAN, guided, noise, sample, timesteps
from minipnp.methods.method import Method, Steps
from minipnp.methods.original import Original
from minipnp.options import SHARE, Options, option, scale_option, steps_option
from minipnp.unet import UNet

STRENGTHS = (0.25, 0.5, 0.75)  # the Plug-and-Play paper compares three, "low" to "high", without saying which


@dataclass(frozen=True)
class SDEdit(Options):
    """The settings of an edit. A strength of 0 gives the picture itself."""

    steps: int = steps_option()
    strength: float = option(0.5, "share of the steps that run, the cleanest ones", SHARE)
    scale: float = scale_option(7.5)

    @property
    def levels(self) -> list[int]:
        """The levels that are sampled, noisiest first. A part of a step is left out."""
        n = math.floor(self.steps * self.strength + 1e-9)
        return timesteps(self.steps)[self.steps - n :]


@torch.no_grad()
def sdedit(
    unet: UNet, x_0: Tensor, z: Tensor, text: Tensor, null: Tensor, s: SDEdit = SDEdit()
) -> Iterator[tuple[int, Tensor]]:
    """x_0: the picture's latent [1, 4, h, w]; z: noise ~ N(0, 1) of the same shape. text, null: the target prompt's
    embedding [1, 77, width], and that of the empty or of a negative prompt.

    Yields (level, latent) after each step; where no step runs, (0, x_0).
    """
    levels = s.levels
    if not levels:
        yield CLEAN, x_0
        return
    x = noise(x_0, z, levels[0])  # Eq. (1)
    yield from sample(lambda x, t: guided(unet, x, t, text, null, s.scale), x, levels)


def _edit(o: Original, prompt: str, negative: str | None, s: SDEdit) -> Steps:
    """A generated original began with the noise of its seed, so that of the next is added to it."""
    z = o.noise(o.seed + o.generated)
    return sdedit(o.unet, o.x_0(s.steps), z, o.sd.embed(prompt), o.against(negative), s)


METHOD = Method(
    "sdedit", "SDEdit: noise to a strength, denoise with the prompt", SDEdit, _edit, draws=True, under_both=False
)
