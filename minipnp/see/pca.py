"""Principal components of features: the paper's Fig. 3 and 4.

Cells are the samples and channels the variables. The components are fitted to the cells of all pictures together, so
that what is alike in them gets the same colour.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def principal(rows: Tensor, k: int = 3) -> Tensor:
    """The k leading directions of rows [n, C] about their mean → [C, k], orthonormal, float64, largest variance first.

    Eigenvectors of the scatter matrix. Their signs, which it leaves open, are such that the largest entry is positive.
    """
    x = rows.double() - rows.double().mean(dim=0)
    directions = torch.linalg.eigh(x.T @ x).eigenvectors[:, -k:].flip(1)  # eigenvalues ascend
    return directions * directions.gather(0, directions.abs().argmax(dim=0, keepdim=True)).sign()


def joint(features: Sequence[Sequence[Tensor]], k: int = 3) -> list[list[Tensor]]:
    """Components of one layer's features [C, H, W] → [k, H, W] each; H and W may differ.

    features: groups, such as the timesteps, of pictures each. Each group is centred by itself and the directions are
    common to all: from one t to another the mean moves far, and would be the first component, even in any picture.
    """
    cells = [[x.flatten(1).T.double() for x in group] for group in features]
    centred = [[x - torch.cat(group).mean(dim=0) for x in group] for group in cells]
    directions = principal(torch.cat([x for group in centred for x in group]), k)
    return [
        [(x @ directions).T.reshape(-1, *f.shape[1:]).float() for x, f in zip(group, originals, strict=True)]
        for group, originals in zip(centred, features, strict=True)
    ]


def spread(components: Tensor) -> Tensor:
    """[k, H, W] → the same in 0 … 1: of each component the least is 0 and the greatest 1; 0.5 where all are equal."""
    low = components.amin(dim=(1, 2), keepdim=True)
    high = components.amax(dim=(1, 2), keepdim=True)
    flat = high - low <= 1e-6 * components.abs().max()  # rounding errors, which would look like features
    return torch.where(flat, 0.5, (components - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny))
