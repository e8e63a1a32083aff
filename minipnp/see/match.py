"""Correspondence between two pictures: the place of B whose feature is most like that of a place of A.

Features f [C, H, W] stand at the centres of their cells; between these they are interpolated (bilinear). A place is
(x, y) in shares of the picture's width and height, each 0 to 1, from the upper left corner. Alike is the cosine.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def at(f: Tensor, places: Tensor) -> Tensor:
    """The features [C, H, W] at places [n, 2], of unit length → [n, C]. Outside the outer centres they are constant."""
    grid = (2 * places - 1)[None, None].to(f)
    x = F.grid_sample(f[None], grid, mode="bilinear", padding_mode="border", align_corners=False)
    return F.normalize(x[0, :, 0].T, dim=1)


def centres(height: int, width: int) -> Tensor:
    """The places of the centres of height × width cells or pixels, row by row: [height·width, 2]."""
    y = (torch.arange(height) + 0.5) / height
    x = (torch.arange(width) + 0.5) / width
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)


def blocks(height: int, width: int) -> tuple[Tensor, ...]:
    """The same in blocks: features of all pixels at once, of SD-1.5 at 512 × 512, would be 1.3 GB."""
    return centres(height, width).split(1 << 14)


def nearest(f_a: Tensor, f_b: Tensor, places: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """For places [n, 2] of A the nearest among the centres of height × width pixels of B → places [n, 2], cosines [n].

    Of equally near ones the first, row by row.
    """
    queries = at(f_a, places)
    found = torch.zeros(len(places), 2)
    best = torch.full((len(places),), -2.0)
    for block in blocks(height, width):
        cosines, index = (queries @ at(f_b, block).T).max(dim=1)
        better = cosines > best
        found = torch.where(better[:, None], block[index], found)
        best = torch.where(better, cosines, best)
    return found, best
