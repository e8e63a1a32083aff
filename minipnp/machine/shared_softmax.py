"""One softmax for all branches of a pass that share an injected self-attention map A = softmax(q·kᵀ/√d)."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minipnp.layers import Attention, attend

WIDEST = 256  # the kernels' largest head


def attend_once(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Computes what `layers.attend` computes. Where q and k have one row for the n rows of v, A is computed once.

    The n values lie side by side as one wide head. The kernels want q and k as wide as that: zeros change no product.
    """
    n = max(len(q), len(k), len(v))
    d = v.shape[-1]
    if not (len(q) == len(k) == 1 < n and mask is None and n * d <= WIDEST):
        return attend(q, k, v, mask)
    q, k = (F.pad(x, (0, (n - 1) * d)) for x in (q, k))
    h = F.scaled_dot_product_attention(q, k, rearrange(v, "n heads m d -> 1 heads m (n d)"), scale=d**-0.5)
    return rearrange(h, "1 heads m (n d) -> n heads m d", n=n)


def share_softmax(network: nn.Module, shared: bool = True) -> None:
    """Makes every attention of the network compute A once for all branches, or, with False, once for each."""
    for module in network.modules():
        if isinstance(module, Attention):
            module.attend = attend_once if shared else attend
