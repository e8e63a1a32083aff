"""SDEdit (Meng et al. 2022): noise the picture up to a strength, then denoise it with the target prompt.

What the noise drowned is painted anew by the prompt: one number weighs keeping the picture against following the text.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minipnp.ddim import guided, noise, sample
from minipnp.errors import InputError
from minipnp.methods.method import Method, Steps
from minipnp.methods.original import Original
from minipnp.options import SHARE, Stepped, option, scale_option
from minipnp.unet import UNet

STRENGTHS = (0.25, 0.5, 0.75)  # the Plug-and-Play paper compares three, "low" to "high", without saying which


@dataclass(frozen=True)
class SDEdit(Stepped):
    """The settings of an edit. Raises InputError for a strength of less than one step."""

    strength: float = option(0.5, "share of the steps that run, the cleanest ones", SHARE)
    scale: float = scale_option(7.5)

    def __post_init__(self):
        super().__post_init__()
        if not self.sampled:
            least = f"{1 / self.steps:.2g}"
            raise InputError(f"strength {self.strength:g} of {self.steps} steps is none: give {least} or more")

    @property
    def sampled(self) -> list[int]:
        """The levels that are sampled, noisiest first. A part of a step is left out."""
        n = math.floor(self.steps * self.strength + 1e-9)
        return self.levels[self.steps - n :]


@torch.no_grad()
def sdedit(
    unet: UNet, x_0: Tensor, z: Tensor, text: Tensor, null: Tensor, s: SDEdit = SDEdit()
) -> Iterator[tuple[int, Tensor]]:
    """x_0: the picture's latent [1, 4, h, w]; z: noise ~ N(0, 1) of the same shape. text, null: the target prompt's
    embedding [1, 77, width], and that of the empty or of a negative prompt.

    Yields (level, latent) after each step.
    """
    x = noise(x_0, z, s.sampled[0])  # Eq. (1)
    yield from sample(lambda x, t: guided(unet, x, t, text, null, s.scale), x, s.sampled)


def _edit(o: Original, prompt: str, negative: str | None, s: SDEdit) -> Steps:
    """A generated original began with the noise of its seed, so that of the next is added to it."""
    z = o.noise(o.seed + o.generated)
    return sdedit(o.unet, o.x_0(s), z, o.sd.embed(prompt), o.against(negative), s)


METHOD = Method(
    "sdedit", "SDEdit: noise to a strength, denoise with the prompt", SDEdit, _edit, draws=True, under_both=False
)
