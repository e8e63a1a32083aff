"""Layout by edges: are the edges of two pictures in the same places?

    corr(|∇x|, |∇y|),   −1 … 1; 1 for the same edges

∇: Sobel's, of the mean of the three colours. Pictures of one colour have no edges, and get 0.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def edge_correlation(x: Tensor, y: Tensor) -> float:
    """Pictures [1, 3, H, W] in [−1, 1], of one shape."""
    grey = torch.cat([x, y]).mean(dim=1, keepdim=True)
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    kernels = torch.stack([sobel, sobel.T])[:, None]
    strength = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), kernels).norm(dim=1)
    return torch.corrcoef(strength.flatten(1))[0, 1].nan_to_num().item()
