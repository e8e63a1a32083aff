"""Parts of pictures: k-means clusters of their features or of their self-attention."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from minipnp.errors import InputError
from minipnp.see.match import at, blocks


def k_means(rows: Tensor, k: int, seed: int = 0, restarts: int = 10, iterations: int = 100) -> Tensor:
    """Centres [k, C] of rows [n, C], n ≥ k: Lloyd's algorithm from k-means++ starts (Arthur & Vassilvitskii, 2007).

    The best of the restarts by the sum of squared distances; the largest cluster first. Deterministic for a seed.
    """
    if not 1 <= k <= len(rows):
        raise InputError(f"{k} parts of {len(rows)} cells: give a number from 1 to {len(rows)}")
    x = rows.double()
    generator = torch.Generator().manual_seed(seed)
    best = None
    for _ in range(restarts):
        c = x[torch.randint(len(x), (1,), generator=generator)]
        while len(c) < k:  # next centre: a row, with a chance proportional to its squared distance from the nearest one
            d = distances(x, c).amin(dim=1)
            d = d if d.sum() > 0 else torch.ones_like(d)
            c = torch.cat([c, x[torch.multinomial(d, 1, generator=generator)]])
        for _ in range(iterations):
            own = F.one_hot(distances(x, c).argmin(dim=1), k).double()
            n = own.sum(dim=0)[:, None]
            moved = torch.where(n > 0, own.T @ x / n.clamp(min=1), c)
            if torch.equal(moved, c):
                break
            c = moved
        d, own = distances(x, c).min(dim=1)
        if best is None or d.sum() < best[0]:
            best = d.sum(), c[torch.bincount(own, minlength=k).argsort(descending=True, stable=True)]
    return best[1]


def distances(x: Tensor, c: Tensor) -> Tensor:
    """Squared Euclidean distances of rows [n, C] from centres [k, C] → [n, k]."""
    return torch.stack([(x - centre).square().sum(dim=1) for centre in c], dim=1)


def parts_by_features(
    features: Sequence[Tensor], k: int, sizes: Sequence[tuple[int, int]], seed: int = 0
) -> list[Tensor]:
    """Features [C, H, W] of one or several pictures → the part of each pixel, 0 … k−1: [height, width], as in sizes.

    Clusters of the cells of all pictures together, by the direction of their features (so nearness is the cosine's, as
    in `match`). A pixel belongs to the centre that is nearest to the features interpolated there.
    """
    means = k_means(torch.cat([F.normalize(f.flatten(1).T, dim=1) for f in features]), k, seed)
    return [
        torch.cat([distances(at(f, block).double(), means).argmin(dim=1) for block in blocks(*size)]).reshape(size)
        for f, size in zip(features, sizes, strict=True)
    ]


def parts_by_attention(A: Tensor, height: int, width: int, k: int, seed: int = 0) -> Tensor:
    """Self-attention [H·W, H·W] of one picture → the part of each cell, 0 … k−1, [H, W].

    Clusters of the cells by where they attend to. Square roots of A's rows, so that the distance is Hellinger's between
    distributions. Places of one picture are not those of another, so pictures are not clustered together.
    """
    rows = A.double().sqrt()
    return distances(rows, k_means(rows, k, seed)).argmin(dim=1).reshape(height, width)
