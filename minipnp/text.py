"""CLIP's text encoder as SD-1.x uses it: all 77 positions of the last layer, after the final norm, no projection."""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from minipnp.config import TextConfig


class CausalAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (rearrange(f(x), "b n (heads d) -> b heads n d", heads=self.heads) for f in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(rearrange(h, "b heads n d -> b n (heads d)"))


class Block(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-5)
        self.attn = CausalAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-5)
        self.fc1 = nn.Linear(config.width, config.mlp)
        self.fc2 = nn.Linear(config.mlp, config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        h = self.fc1(self.norm2(x))
        return x + self.fc2(h * torch.sigmoid(1.702 * h))  # "quick gelu": what OpenAI's CLIP was trained with


class TextEncoder(nn.Module):
    def __init__(self, config: TextConfig = TextConfig()):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.positions, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm_out = nn.LayerNorm(config.width, eps=1e-5)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids [n, 77] → text embeddings [n, 77, width]. Padding is not masked: SD-1.x was trained without."""
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm_out(x)
