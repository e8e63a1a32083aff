"""Attention for a Mac's GPU (MPS), so that the scores q·kᵀ never lie in its memory all at once.

MPS has a fused kernel for heads of a few sizes. For any other it writes out the scores of all queries, and past 2³²
bytes the process dies: the UNet of SD-1.5 in float32, with heads of 40, is there at 768 × 768 pixels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minipnp.layers import Attention, repeated
from minipnp.vae import SpatialAttention

FUSED = (32, 64, 72, 80, 96, 128, 256)  # sizes of heads that the kernel takes
MOST = 2**30  # bytes of scores that are written out at once


def attend_in_parts(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Computes what `layers.attend` computes. A head is filled up with zeros to the next size that is fused.

    They change no product, and the scale is that of the head's own size. Where no size is large enough (the VAE's one
    head of 512), or there is a mask, the queries come a part at a time, each with all of the keys.
    """
    n = max(len(q), len(k), len(v))
    d = q.shape[-1]
    size = next((size for size in FUSED if size >= d), d)
    if size > d:
        q, k, v = (F.pad(x, (0, size - d)) for x in (q, k, v))
    q, k, v = (repeated(x, n) for x in (q, k, v))
    queries = q.shape[2]
    part = queries
    if size not in FUSED or mask is not None:
        part = max(1, MOST // (4 * n * q.shape[1] * k.shape[2]))  # scores are float32, at most
    if mask is not None:
        mask = mask.expand(*mask.shape[:-2], queries, k.shape[2])
    h = [
        F.scaled_dot_product_attention(
            q[:, :, i : i + part], k, v, None if mask is None else mask[..., i : i + part, :], scale=d**-0.5
        )
        for i in range(0, queries, part)
    ]
    return torch.cat(h, dim=2)[..., :d]


def attend_for_mps(network: nn.Module) -> None:
    """Makes every attention of the network, the UNet's and the VAE's, compute so."""
    for module in network.modules():
        if isinstance(module, Attention | SpatialAttention):
            module.attend = attend_in_parts
