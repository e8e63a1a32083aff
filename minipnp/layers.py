"""The building blocks of the UNet, with the slots into which features are injected.

x is the stream, h the branch that is added to it. Shapes: B batch, C channels, H × W cells, N = H·W tokens.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from minipnp.slots import Attn


def repeated(x: Tensor, n: int) -> Tensor:
    """Expand one row to n without copying: what all branches share is computed once."""
    return x if len(x) == n else x.expand(n, *x.shape[1:])


class ResBlock(nn.Module):
    """skip(x) + f, f: the paper's spatial feature f^l_t: two convolutions of x and, in the UNet, of the time."""

    def __init__(self, c_in: int, c_out: int, groups: int, eps: float, time: int | None):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps=eps)
        self.conv1 = nn.Conv2d(c_in, c_out, kernel_size=3, padding=1)
        self.time = None if time is None else nn.Linear(time, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out, eps=eps)
        self.conv2 = nn.Conv2d(c_out, c_out, kernel_size=3, padding=1)
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, kernel_size=1)

    def f(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time is not None:
            h = h + self.time(F.silu(time))[:, :, None, None]
        return self.conv2(F.silu(self.norm2(h)))

    def forward(self, x: Tensor, time: Tensor | None = None, inject: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x: [B, C_in, H, W], time: [1 or B, time width] → skip(x) + f and f, both [B, C_out, H, W].

        inject: takes the place of f, Eq. (3); then neither norms nor convolutions run, only the skip connection.
        """
        f = self.f(x, time) if inject is None else inject
        return self.skip(x) + f, f


class Attention(nn.Module):
    """Self-attention, or cross-attention where a context is given: f̂ = A·v, A = softmax(q·kᵀ/√d), Eq. (2)."""

    def __init__(self, width: int, context: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(context, width, bias=False)
        self.v = nn.Linear(context, width, bias=False)
        self.out = nn.Linear(width, width)
        self.attend = attend  # machine/ puts a faster form of the same function here

    def forward(
        self, x: Tensor, context: Tensor | None = None, inject: Attn | None = None, tap_map: bool = False
    ) -> tuple[Tensor, Attn]:
        """x: [B, N, C], context: the text, [B, 77, its width], or None for x itself → [B, N, C], and q, k, v (and map).

        inject: see `Attn`; a quantity that is given, or that nothing needs any more, is not computed.
        tap_map: also return the map, as it is used, after an edit.
        """
        slot = inject or Attn()
        y = x if context is None else context
        q = k = None
        if slot.map is None:
            q = self.split(self.q(x)) if slot.q is None else slot.q
            k = self.split(self.k(y)) if slot.k is None else slot.k
        v = self.split(self.v(y)) if slot.v is None else slot.v

        A = slot.map
        if A is None and (tap_map or slot.edit is not None):
            A = attention_map(q, k, slot.mask)
        if slot.edit is not None:
            A = slot.edit(A)
        if slot.map is not None or slot.edit is not None:
            n = max(len(A), len(v))
            h = repeated(A, n) @ repeated(v, n)
        else:
            # A tapped map stands beside the fused kernel, not in its place: a tap does not change the output by a bit.
            h = self.attend(q, k, v, slot.mask)
        return self.out(rearrange(h, "b heads n d -> b n (heads d)")), Attn(q=q, k=k, v=v, map=A)

    def split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (heads d) -> b heads n d", heads=self.heads)


def attention_map(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """A = softmax(q·kᵀ/√d): [B, heads, queries, keys], each row summing to 1. The softmax runs in float32."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf)
    return logits.float().softmax(dim=-1).to(q.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ/√d)·v by a fused kernel: [n, heads, queries, d], each argument of n rows or of one for all."""
    n = max(len(q), len(k), len(v))
    return F.scaled_dot_product_attention(repeated(q, n), repeated(k, n), repeated(v, n), attn_mask=mask)


class FeedForward(nn.Module):
    """GEGLU, four times as wide: the second half of the projection is the gate."""

    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return self.out(x * F.gelu(gate))  # the exact gelu, not its tanh approximation


class Transformer(nn.Module):
    """Self-attention, cross-attention with the text, feed-forward: the attention half of a row of the UNet."""

    def __init__(self, width: int, context: int, heads: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)  # 1e-6 here, 1e-5 in the ResBlocks
        self.proj_in = nn.Conv2d(width, width, kernel_size=1)
        self.norm1 = nn.LayerNorm(width, eps=1e-5)
        self.self_attn = Attention(width, width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-5)
        self.cross_attn = Attention(width, context, heads)
        self.norm3 = nn.LayerNorm(width, eps=1e-5)
        self.ff = FeedForward(width)
        self.proj_out = nn.Conv2d(width, width, kernel_size=1)

    def tokens(self, x: Tensor) -> Tensor:
        return rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        inject_A: Attn | None = None,
        inject_M: Attn | None = None,
        tap_A: bool = False,
        tap_M: bool = False,
    ) -> tuple[Tensor, Attn, Attn]:
        """x: [B, C, H, W], context: the text, [B, 77, its width] → [B, C, H, W], and what the two attentions give back.

        One latent may serve n rows of text: x is broadcast at the cross-attention, and the output has n rows.
        """
        h = self.tokens(x)  # [B, N, C]
        out, A = self.self_attn(self.norm1(h), None, inject_A, tap_A)
        h = h + out
        out, M = self.cross_attn(self.norm2(h), context, inject_M, tap_M)
        h = h + out
        h = h + self.ff(self.norm3(h))
        h = rearrange(h, "b (h w) c -> b c h w", h=x.shape[2])
        return x + self.proj_out(h), A, M


class Upsample(nn.Module):
    """Twice the resolution: nearest neighbour, then a convolution."""

    def __init__(self, c: int):
        super().__init__()
        self.conv = nn.Conv2d(c, c, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class TimeEmbedding(nn.Module):
    """The timestep as cosines and sines (cosines first), then two linear layers."""

    def __init__(self, channels: int):
        super().__init__()
        self.frequencies = channels // 2
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, 4 * channels)

    def forward(self, t: Tensor) -> Tensor:
        """t: [n] timesteps → [n, 4·channels]. The angles are float32: near t = 981 half precision has steps of 0.5."""
        i = torch.arange(self.frequencies, dtype=torch.float32, device=t.device)
        angle = t.float()[:, None] * torch.exp(-math.log(10_000) * i / self.frequencies)
        wave = torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.fc1.weight.dtype)
        return self.fc2(F.silu(self.fc1(wave)))
