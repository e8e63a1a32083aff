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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from minipnp.ddim import Eps, invert, step, timesteps
from minipnp.errors import InputError
from minipnp.guidance import Guidance, Progress, guidance_from_text, silent
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


def gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """∇f at x, also where gradients are switched off around it."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(f(x), x)
    if not g.isfinite().all():
        raise InputError("a gradient became infinite: give a smaller lambda_ac, lambda_kl or amount, or use float32")
    return g


def autocorrelation(n: Tensor, shift: Shift, gain: float = 1.0) -> Tensor:
    """L_ac of noise n [1, C, h, w]: Σ (mean of n·(n shifted, circularly))², over channels, levels and both axes."""
    loss = n.new_zeros(())
    for level in n[0]:  # the finest of the pyramid of a channel, [h, w]
        while True:
            roll = shift(min(level.shape) // 2)
            loss = loss + sum((level * level.roll(roll, axis)).mean() ** 2 for axis in (0, 1))
            if min(level.shape) <= 8:
                break
            level = gain * F.avg_pool2d(level[None], kernel_size=2)[0]
    return loss


def kl(n: Tensor) -> Tensor:
    """L_KL, times 2: σ² + μ² − 1 − log σ² of all of n."""
    return n.var() + n.mean() ** 2 - 1 - torch.log(n.var() + 1e-7)


def regularised(e: Tensor, s: Regularisation, shift: Shift) -> Tensor:
    """e ← e − λ·∇L, `iterations` times."""
    for _ in range(s.iterations):
        for _ in range(s.rolls if s.lambda_ac else 0):
            e = e - s.lambda_ac / s.rolls * gradient(lambda n: autocorrelation(n, shift, s.gain), e)
        if s.lambda_kl:
            e = e - s.lambda_kl * gradient(kl, e)
    return e


@torch.no_grad()
def regularised_inversion(
    unet: UNet,
    x_0: Tensor,
    caption: Tensor,
    steps: int = 50,
    how: Regularisation = Regularisation(),
    progress: Progress = silent,
    shift: Shift | None = None,
) -> Guidance:
    """x_0 [1, 4, h, w] → x_T and the latents on the way, at the levels of an edit in as many steps.

    caption: the embedding [1, 77, width] of what the picture shows, or of "". shift: another source of shifts.
    """
    levels = timesteps(steps)
    shift = shift or partial(random.Random(how.seed).randrange, 1)
    if how.authors and steps < 3:
        raise InputError(f"{steps} steps: the authors' schedule leaves out two; give 3 or more")

    def eps(x: Tensor, t: int) -> Tensor:
        return regularised(unet(x, t, caption), how, shift)

    up = authors_invert(eps, x_0, levels) if how.authors else invert(eps, x_0, levels, how.at, iterations=0)
    latents = dict(progress(up, steps - 2 * how.authors, "inversion"))
    x_T = latents[max(latents)]
    if how.resample or how.authors:
        return replace(guidance_from_text(unet, x_T, caption, caption, steps, 1.0, progress=progress), x_0=x_0)
    return Guidance(latents, x_T, x_0, caption)


def authors_invert(eps: Eps, x: Tensor, levels: list[int]) -> Iterator[tuple[int, Tensor]]:
    for t in reversed(levels[1:-1]):
        x = step(x, eps(x, t), t - 1, t - 1 + 1000 // len(levels))
        yield t, x
