"""pix2pix-zero (Parmar et al. 2023): an edit direction in the text, and guidance by cross-attention maps.

    x_T ← regularised DDIM inversion of the picture under its caption c            Sec. 3.1, regularised.py
    Δc  ← mean embedding of target sentences − that of source sentences            Sec. 3.2, directions.py
    for t = T … 1:                                                                 Sec. 3.3, Algorithm 1
        M_t^ref  ← cross-attention maps of the source's x_t under c
        M_t^edit ← cross-attention maps of the edit's x_t under c + Δc
        x_t      ← x_t − λ_xa · ∇_x ‖M_t^edit − M_t^ref‖²
        x_{t−1}  ← DDIM(x_t, ε(x_t, t, c + Δc))

The maps of a step are used in that step and dropped: those of the source are computed again from its latents, where the
authors keep all of them. The gradient reaches back through the network from its last map, for the conditional branch.

The paper's ablation, Table 2. A: SDEdit with the word swapped in the caption. B: inversion without regularisation (both
λ 0), the word swap as Δc (see directions.py), amount 0. C: B with regularisation. D: C with Δc of many sentences. E: D
with λ_xa, the defaults.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minipnp.ddim import guided, pairs, step, timesteps
from minipnp.errors import InputError
from minipnp.guidance import Guidance
from minipnp.methods.regularised import gradient
from minipnp.slots import Attn, Layer, Tap
from minipnp.unet import ATTENTIONS, UNet

Maps = Mapping[Layer, Attn]


@dataclass(frozen=True)
class Pix2PixZero:
    """scale: w of classifier-free guidance. amount: λ_xa; the authors take 0.1 for real, 0.15 for generated pictures.

    authors: as their code, not their paper, has it: the maps of both branches are compared, each branch steps an x of
    its own, and that of the negative branch is the one that goes on. The mean over two rows halves each one's gradient.
    """

    steps: int = 50
    scale: float = 5.0
    amount: float = 0.1
    authors: bool = False

    def __post_init__(self):
        timesteps(self.steps)
        if not math.isfinite(self.scale):
            raise InputError(f"guidance scale {self.scale}: give a number")
        if self.authors and self.scale in (0, 1):
            raise InputError(f"guidance scale {self.scale} has one branch, the authors' form takes two: give another")
        if not 0 <= self.amount < math.inf:
            raise InputError(f"amount {self.amount} of cross-attention guidance: give 0 or more (0.1 is usual)")


def cross_maps(unet: UNet, x: Tensor, t: int, texts: Tensor) -> Maps:
    """M_t of all 16 cross-attentions, [rows, heads, cells, 77] each; the pass ends with the last."""
    return unet.tap(x, t, texts, Tap(M=ATTENTIONS), stop=True)[1].M


def map_distance(M: Maps, M_ref: Maps) -> Tensor:
    """‖M − M_ref‖²: summed over cells, tokens and layers, the mean of the heads (and rows)."""
    return sum((M[layer].map.float() - M_ref[layer].map.float()).square().sum((2, 3)).mean() for layer in M_ref)


def map_gradient(unet: UNet, x: Tensor, t: int, texts: Tensor, M_ref: Maps) -> Tensor:
    """∇_x ‖M_t^edit − M_t^ref‖², of x's shape; where x has two rows, each of its own maps."""
    return gradient(lambda x: map_distance(cross_maps(unet, x, t, texts), M_ref), x)


@torch.no_grad()
def pix2pix_zero(
    unet: UNet, G: Guidance, direction: Tensor, negative: Tensor | None = None, s: Pix2PixZero = Pix2PixZero()
) -> Iterator[tuple[int, Tensor]]:
    """G: of a real picture from `regularised_inversion`, of a generated one from `guidance_from_text`; its text is c.

    direction: Δc [1, 77, width]. negative: embedding of the negative prompt. For a real picture None, which means c:
    only the difference that Δc makes is amplified. For a generated picture that of "", with which it was generated.
    Yields (level, latent [1, 4, h, w]) after each step.
    """
    c, levels = G.texts[-1:], G.levels(s.steps)
    if direction.shape != c.shape:
        raise InputError(f"an edit direction {list(direction.shape)} does not fit text embeddings {list(c.shape)}")
    edited, negative = c + direction.to(c), c if negative is None else negative
    branches = 2 if s.authors else 1
    x = G.x_T
    for t, t_prev in pairs(levels):
        if s.amount:
            M_ref = cross_maps(unet, G.latents[t], t, torch.cat([c, negative])[:branches])
            x = x.repeat(branches, 1, 1, 1)
            x = x - s.amount * map_gradient(unet, x, t, torch.cat([edited, negative])[:branches], M_ref)
        z = guided(unet, x, t, edited, negative, s.scale)  # both of one x, or each of its own
        x = step(x[-1:], z, t, t_prev)
        yield t_prev, x
