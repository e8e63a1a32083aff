"""Structure distance (Tumanyan et al. 2022, Splicing ViT features): how much of the layout was changed?

    S(x)_ij = cos(k_i(x), k_j(x)),   distance = mean over i, j of (S(x)_ij − S(y)_ij)²

k_i: the key of token i in the last block of DINO ViT-B/8, all 12 heads in one row of 768; the class token is one of the
785 tokens. 0 for the same picture; published figures are from 0.04 to 0.1. Network: `vit_base_patch8_224.dino` of
timm. Pictures are brought to 224 × 224 (bilinear) and normalised from [0, 1]: a network that is given levels of 0 to
255, as in PIE-Bench's published code, gives figures on another scale. A picture that is not square is stretched here,
where the authors bring its short side to 224.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from minipnp.measure.published import DINO, find_published

# of ImageNet, in [0, 1]
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)


def load_dino(folder: Path | None = None, device: torch.device | str = "cpu") -> torch.nn.Module:
    """InputError: the weights are not in the folder, or cannot be fetched."""
    path = find_published(DINO, folder)
    import timm

    model = timm.create_model("vit_base_patch8_224.dino", pretrained=False, checkpoint_path=str(path))
    return model.eval().requires_grad_(False).to(device)


@torch.no_grad()
def structure_distance(vit: torch.nn.Module, x: Tensor, y: Tensor) -> float:
    """vit: of timm. x, y: pictures [1, 3, H, W] in [−1, 1]."""
    return F.mse_loss(self_similarity(keys(vit, x)), self_similarity(keys(vit, y))).item()


def keys(vit: torch.nn.Module, x: Tensor) -> Tensor:
    """Of the last block's self-attention, [tokens, heads · head size]; the class token is the first."""
    weights = vit.patch_embed.proj.weight
    mean, deviation = (torch.tensor(value)[:, None, None] for value in (MEAN, DEVIATION))
    pixels = F.interpolate((x.cpu() + 1) / 2, vit.patch_embed.img_size, mode="bilinear", antialias=True)
    h = vit.norm_pre(vit._pos_embed(vit.patch_embed(((pixels - mean) / deviation).to(weights))))
    *before, last = vit.blocks
    for block in before:
        h = block(h)
    _, k, _ = last.attn.qkv(last.norm1(h)).chunk(3, dim=-1)
    return k[0]


def self_similarity(k: Tensor) -> Tensor:
    """[tokens, width] → cosines [tokens, tokens]."""
    k = F.normalize(k.float(), dim=-1)
    return k @ k.T
