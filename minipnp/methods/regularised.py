"""Regularised inversion, Sec. 3.1 of pix2pix-zero: DDIM inversion whose noise is kept close to white Gaussian noise.

The noise of a plain inversion still shows the picture: neighbouring cells are alike. Such a start is hard to edit. So
at every step the predicted noise e descends two losses,

    L_ac: the autocorrelation of e at random shifts, on all levels of a pyramid
    L_KL: the divergence of N(mean of e, variance of e) from N(0, 1)

which costs some of the reconstruction. It is the first half of pix2pix-zero; any method that reads a `Guidance` can
start from it. Where the authors' code differs from the paper, that is the option `authors`; of the gain its 1 is the
default.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from minipnp.ddim import Eps, check_start, invert, step
from minipnp.errors import InputError
from minipnp.guidance import Guidance, Progress, guidance_from_text, silent
from minipnp.options import Stepped
from minipnp.unet import UNet

Shift = Callable[[int], int]  # n → a shift of 1 to n − 1 cells


@dataclass(frozen=True)
class Regularisation:
    """lambda_ac, lambda_kl: λ of the two losses; with both 0 it is plain DDIM inversion.

    iterations: how often both are descended at each step, L_ac in `rolls` parts, each at new shifts, drawn from `seed`.
    gain: of each level of the pyramid over the one before, 2 in the paper and 1 in its code. at: where ε is taken, see
    `ddim.invert`; "current" in the paper and its code. resample: the source is then sampled again from x_T under its
    caption, as the authors do, and its latents are those. authors: that, and their schedule, which leaves out the first
    and the last timestep, and treats the latent of timestep t as one of level t − 1 (`at` has no say then).
    """

    lambda_ac: float = 20.0
    lambda_kl: float = 20.0
    iterations: int = 5
    rolls: int = 5
    gain: float = 1.0
    at: str = "next"
    seed: int = 0
    resample: bool = False
    authors: bool = False

    def __post_init__(self):
        if not all(0 <= x < math.inf for x in (self.lambda_ac, self.lambda_kl, self.gain)):
            raise InputError("lambda_ac, lambda_kl and gain of the regularisation: give numbers of 0 or more")
        if self.iterations < 0 or self.rolls < 1:
            raise InputError("the regularisation takes 0 or more iterations, and 1 or more rolls in each")
        if self.at not in ("next", "current"):
            raise InputError(f"inversion takes eps at 'next' or 'current', not {self.at!r}")


def gradient_ac(n: Tensor, shift: Shift, gain: float = 1.0) -> Tensor:
    """∇L_ac at noise n [1, C, h, w]; L_ac = Σ a², a = mean of n·(n shifted, circularly), over channels, levels, axes.

    Written out, as autograd would launch five times as many kernels for so little: each level has the gradient of its
    own a², and of what it hands on to the next, a quarter of that cell's for each of the four in it.
    """
    pyramid = [n[0]]  # finest first, [C, h, w] each
    while min(pyramid[-1].shape[1:]) > 8:
        pyramid.append(gain * F.avg_pool2d(pyramid[-1], kernel_size=2))
    shifts = [[shift(min(level.shape[1:]) // 2) for level in pyramid] for _ in n[0]]
    g = None
    for level, of_channels in reversed(list(zip(pyramid, zip(*shifts, strict=True), strict=True))):
        own = sum(_gradient_of_axis(level, of_channels, axis) for axis in (1, 2))
        if g is not None:
            h, w = level.shape[1:]
            spread = F.interpolate(gain / 4 * g[None], scale_factor=2.0)[0]
            own = own + F.pad(spread, (0, w % 2, 0, h % 2))  # an odd side's last cells are in no mean
        g = own
    return g[None]


def _gradient_of_axis(level: Tensor, shifts: Sequence[int], axis: int) -> Tensor:
    """∇a² of each channel of a level [C, h, w], along this axis: 2a·∇a, ∇a = (n shifted + n shifted back)/hw."""
    side = level.shape[axis]
    twice = torch.cat([level, level], dim=axis)  # of which a circular shift is a part
    forth = torch.stack([n.narrow(axis - 1, side - roll, side) for n, roll in zip(twice, shifts, strict=True)])
    back = torch.stack([n.narrow(axis - 1, roll, side) for n, roll in zip(twice, shifts, strict=True)])
    a = (level * forth).mean(dim=(1, 2), keepdim=True)
    return 2 / level[0].numel() * a * (forth + back)


def gradient_kl(n: Tensor) -> Tensor:
    """∇L_KL at noise n; L_KL, times 2: σ² + μ² − 1 − log σ² of all of n."""
    variance, mean = torch.var_mean(n)
    return 2 * (1 - 1 / (variance + 1e-7)) / (n.numel() - 1) * (n - mean) + 2 / n.numel() * mean


def regularised(e: Tensor, s: Regularisation, shift: Shift) -> Tensor:
    """e ← e − λ·∇L, `iterations` times."""
    for _ in range(s.iterations):
        for _ in range(s.rolls if s.lambda_ac else 0):
            e = e - s.lambda_ac / s.rolls * gradient_ac(e, shift, s.gain)
        if s.lambda_kl:
            e = e - s.lambda_kl * gradient_kl(e)
    if not e.isfinite().all():
        raise InputError("a gradient became infinite: give a smaller lambda_ac or lambda_kl, or use float32")
    return e


@torch.no_grad()
def regularised_inversion(
    unet: UNet,
    x_0: Tensor,
    caption: Tensor,
    edit: Stepped = Stepped(),
    how: Regularisation = Regularisation(),
    progress: Progress = silent,
    shift: Shift | None = None,
) -> Guidance:
    """x_0 [1, 4, h, w] → x_T and the latents on the way, at the levels of an edit.

    caption: the embedding [1, 77, width] of what the picture shows, or of "". shift: another source of shifts.
    """
    levels = edit.levels
    check_start(levels, inverted=True)
    shift = shift or partial(random.Random(how.seed).randrange, 1)
    if how.authors and edit.steps < 3:
        raise InputError(f"{edit.steps} steps: the authors' schedule leaves out two; give 3 or more")

    def eps(x: Tensor, t: int) -> Tensor:
        return regularised(unet(x, t, caption), how, shift)

    up = authors_invert(eps, x_0, levels) if how.authors else invert(eps, x_0, levels, how.at, iterations=0)
    latents = dict(progress(up, edit.steps - 2 * how.authors, "inversion"))
    x_T = latents[max(latents)]
    if how.resample or how.authors:
        return replace(guidance_from_text(unet, x_T, caption, caption, edit, 1.0, progress=progress), x_0=x_0)
    return Guidance(latents, x_T, x_0, caption)


def authors_invert(eps: Eps, x: Tensor, levels: list[int]) -> Iterator[tuple[int, Tensor]]:
    for t in reversed(levels[1:-1]):
        x = step(x, eps(x, t), t - 1, t - 1 + 1000 // len(levels))
        yield t, x
