"""DDIM + word swap: invert under the source prompt, sample under the same prompt with a word swapped.

The simplest of the baselines that the pix2pix-zero paper compares with (Sec. 4). The inverted noise x_T alone carries
the picture: at guidance 1 and with the source prompt it comes back, with any other guidance or prompt it drifts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minipnp.ddim import guided, sample
from minipnp.guidance import Guidance
from minipnp.methods.method import Method, Steps
from minipnp.methods.original import Original
from minipnp.options import Stepped, scale_option
from minipnp.unet import UNet


@dataclass(frozen=True)
class DDIMSwap(Stepped):
    """The settings of an edit. The scale is that of sampling only: 5, as pix2pix-zero's code has it for all methods."""

    scale: float = scale_option(5.0)


@torch.no_grad()
def ddim_swap(
    unet: UNet, G: Guidance, text: Tensor, null: Tensor, s: DDIMSwap = DDIMSwap()
) -> Iterator[tuple[int, Tensor]]:
    """G: `guidance_from_latent(unet, x_0, source, s.steps)` with the source prompt's embedding for the empty prompt's.

    text, null: the edited prompt's embedding [1, 77, width], and that of the empty or of a negative prompt.
    Yields (level, latent [1, 4, h, w]) after each step.
    """
    yield from sample(lambda x, t: guided(unet, x, t, text, null, s.scale), G.x_T, G.levels(s))


def _inverted(o: Original, s: DDIMSwap) -> Guidance:
    return o.guidance(s, by_source=True)


def _edit(o: Original, prompt: str, negative: str | None, s: DDIMSwap) -> Steps:
    return ddim_swap(o.unet, _inverted(o, s), o.sd.embed(prompt), o.against(negative), s)


METHOD = Method(
    "ddim",
    "DDIM + word swap: invert with the source text, sample with the prompt",
    DDIMSwap,
    _edit,
    guidance=_inverted,
    needs_source=lambda s: True,
    under_both=False,
)
