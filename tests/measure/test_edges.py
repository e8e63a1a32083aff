"""The correlation of edges: against its formula written out with numpy, and on pictures whose answer is known."""

import numpy as np
import pytest
import torch

from minipnp.measure.edges import edge_correlation


def strength(x: np.ndarray) -> np.ndarray:
    """|∇x| by Sobel's kernels, the border repeated; x: [H, W]."""
    p = np.pad(x, 1, mode="edge")
    rows, columns = x.shape
    at = lambda dy, dx: p[1 + dy : 1 + dy + rows, 1 + dx : 1 + dx + columns]  # noqa: E731
    gx = at(-1, 1) + 2 * at(0, 1) + at(1, 1) - at(-1, -1) - 2 * at(0, -1) - at(1, -1)
    gy = at(1, -1) + 2 * at(1, 0) + at(1, 1) - at(-1, -1) - 2 * at(-1, 0) - at(-1, 1)
    return np.sqrt(gx**2 + gy**2)


def test_it_is_the_formula():
    x, y = torch.randn(2, 1, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    a, b = (strength(z[0].mean(dim=0).double().numpy()).ravel() for z in (x, y))
    assert edge_correlation(x, y) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-5)  # float32 against float64


def test_known_answers():
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert edge_correlation(x, x) == pytest.approx(1) and edge_correlation(x, -x) == pytest.approx(1)
    assert edge_correlation(x, x.flip(2)) < 0.5 and edge_correlation(x, torch.zeros_like(x)) == 0
