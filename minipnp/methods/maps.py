"""What the editing methods share: which layers they read, and what they make of cross-attention maps.

Layers are chosen by the share of the latent's side that they work at (1, 1/2, 1/4, 1/8), so that a choice means the
same at every picture size and in every model: a quarter is 16 × 16 cells in SD-1.5 at 512 × 512.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from minipnp.slots import Attn, Layer
from minipnp.unet import ATTENTIONS, TABLE


def share(layer: Layer) -> float:
    """The side of the layer's cells, as a share of the latent's side."""
    return 2.0 ** -TABLE[layer].level


def layers_at(at: float) -> tuple[Layer, ...]:
    """The attentions that work at this share of the latent's side; a quarter: encoder 7, 8 and decoder 3, 4, 5."""
    return tuple(layer for layer in ATTENTIONS if share(layer) == at)


def layers_up_to(most: float) -> tuple[Layer, ...]:
    """The attentions that work at this share of the latent's side or less."""
    return tuple(layer for layer in ATTENTIONS if share(layer) <= most)


def word_map(M: Mapping[Layer, Attn], positions: Collection[int], height: int, width: int) -> Tensor:
    """How much each cell attends to a word: mean over the tapped layers and heads, sum over the word's positions.

    M: cross-attention maps of layers that work at one share of the latent's side → [B, 1, height, width].
    """
    maps = torch.stack([attn.map.float().mean(dim=1) for attn in M.values()]).mean(dim=0)  # [B, cells, 77]
    # Slices, as the GPU would have to wait for a list of positions; the first one is for a word without any.
    of_word = torch.cat([maps[..., :0], *(maps[..., i : i + 1] for i in positions)], dim=-1)
    return of_word.sum(dim=-1).reshape(-1, 1, height, width)
