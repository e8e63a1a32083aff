"""Where a picture's foreground is: what is farther than a threshold from the colour of its border."""

import torch
from torch import Tensor

THRESHOLD = 32  # Euclidean, in sRGB levels of 0 … 255; the one that agrees best with the true coverage of real icons


def foreground(x: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Pictures [n, 3, H, W] in [−1, 1] → bool [n, H, W]. The border's colour is its median, channel by channel."""
    ring = max(1, x.shape[-1] // 64)
    inside = torch.zeros(x.shape[2:], dtype=torch.bool, device=x.device)
    inside[ring:-ring, ring:-ring] = True
    border = x[:, :, ~inside].median(dim=2).values
    return 127.5 * (x - border[:, :, None, None]).norm(dim=1) > threshold


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of masks [n, H, W] → [n]; two empty masks agree."""
    union = (a | b).sum(dim=(1, 2))
    return torch.where(union > 0, (a & b).sum(dim=(1, 2)) / union.clamp(min=1), 1.0)
