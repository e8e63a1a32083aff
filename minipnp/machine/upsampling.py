"""Upsampling with 4/9 of the products: nearest neighbour and 3 × 3 convolution folded into four of 2 × 2.

Of the nine cells that a new cell sees, some are copies of one old cell: only 2 × 2 are different. Which of the nine
fall together depends on the new cell's place on its old one (a: lower half, b: right half). So the whole is four
convolutions of the old cells, 2 × 2 each, whose weights are sums of the nine.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from minipnp.layers import Upsample


class FoldedUpsample(Upsample):
    """Computes what `plain` computes, whose weights it shares. The sums are taken in float32, once."""

    def __init__(self, plain: Upsample):
        nn.Module.__init__(self)  # not Upsample's, which would make weights of its own
        self.conv = plain.conv
        merge = torch.tensor([[[1.0, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], device=self.conv.weight.device)
        w = torch.einsum("aip, bjq, ocpq -> abocij", merge, merge, self.conv.weight.float())
        self.register_buffer("quarters", w.to(self.conv.weight.dtype).contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[2:]
        x = F.pad(x, (1, 1, 1, 1))
        y = [
            F.conv2d(x[:, :, a : a + H + 1, b : b + W + 1], self.quarters[a, b], self.conv.bias)
            for a in (0, 1)
            for b in (0, 1)
        ]
        return rearrange(y, "(a b) n c h w -> n c (h a) (w b)", a=2)


def fold(network: nn.Module) -> None:
    """Puts the folded form in the place of each upsampling of a network that has its weights."""
    for parent, name, up in list(_upsamplings(network)):
        if not isinstance(up, FoldedUpsample):
            setattr(parent, name, FoldedUpsample(up))


def unfold(network: nn.Module) -> None:
    """Puts the plain form back."""
    for parent, name, up in list(_upsamplings(network)):
        with torch.device("meta"):
            plain = Upsample(up.conv.in_channels)
        plain.conv = up.conv
        setattr(parent, name, plain)


def _upsamplings(network: nn.Module):
    for parent in network.modules():
        for name, child in parent.named_children():
            if isinstance(child, Upsample):
                yield parent, name, child
