"""DDIM + word swap: invert under the source prompt, sample under the same prompt with a word swapped.

The simplest of the baselines that the pix2pix-zero paper compares with (Sec. 4). The inverted noise x_T alone carries
the picture: at guidance 1 and with the source prompt it comes back, with any other guidance or prompt it drifts.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minipnp.ddim import guided, sample, timesteps
from minipnp.errors import InputError
from minipnp.guidance import Guidance
from minipnp.unet import UNet


@dataclass(frozen=True)
class DDIMSwap:
    """scale: w of Eq. (5), in sampling only; 5 as in pix2pix-zero's code, whose paper gives all methods the same."""

    steps: int = 50
    scale: float = 5.0

    def __post_init__(self):
        timesteps(self.steps)
        if not math.isfinite(self.scale):
            raise InputError(f"guidance scale {self.scale}: give a number")


@torch.no_grad()
def ddim_swap(
    unet: UNet, G: Guidance, text: Tensor, null: Tensor, s: DDIMSwap = DDIMSwap()
) -> Iterator[tuple[int, Tensor]]:
    """G: `guidance_from_latent(unet, x_0, source, s.steps)` with the source prompt's embedding for the empty prompt's.

    text, null: the edited prompt's embedding [1, 77, width], and that of the empty or of a negative prompt.
    Yields (level, latent [1, 4, h, w]) after each step.
    """
    yield from sample(lambda x, t: guided(unet, x, t, text, null, s.scale), G.x_T, G.levels(s.steps))
