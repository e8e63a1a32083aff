"""SSIM (Wang et al. 2004): are luminance, contrast and structure of two pictures alike, place by place?

    SSIM = (2·μ_x·μ_y + C_1)·(2·σ_xy + C_2) / ((μ_x² + μ_y² + C_1)·(σ_x² + σ_y² + C_2)),   C_i = (K_i·L)²

μ, σ: under a Gaussian window of 11 × 11 with σ = 1.5, only where it lies inside the picture; K = 0.01, 0.03; L = 2, the
range of values in [−1, 1]. The mean over places and over the three colours. 1 for the same picture, 0 for unlike ones.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from minipnp.errors import InputError

SIDE = 11
SIGMA = 1.5
RANGE = 2.0


def ssim(x: Tensor, y: Tensor) -> float:
    """Pictures [1, 3, H, W] in [−1, 1], of one shape. InputError: smaller than the window."""
    if x.shape != y.shape or min(x.shape[-2:]) < SIDE:
        raise InputError(f"SSIM needs two pictures of one size, at least {SIDE} × {SIDE} pixels")
    g = torch.exp(-((torch.arange(SIDE, dtype=torch.float64) - SIDE // 2) ** 2) / (2 * SIGMA**2))
    window = torch.outer(g, g) / g.sum() ** 2

    def mean(values: Tensor) -> Tensor:
        return F.conv2d(values.transpose(0, 1), window[None, None])

    x = x.double()
    y = y.double()
    mu_x = mean(x)
    mu_y = mean(y)
    var_x = mean(x * x) - mu_x**2
    var_y = mean(y * y) - mu_y**2
    cov = mean(x * y) - mu_x * mu_y
    c_1 = (0.01 * RANGE) ** 2
    c_2 = (0.03 * RANGE) ** 2
    value = (2 * mu_x * mu_y + c_1) * (2 * cov + c_2) / ((mu_x**2 + mu_y**2 + c_1) * (var_x + var_y + c_2))
    return value.mean().item()
