"""DDIM: one step, and the two loops that are made of it: sampling (noise → picture) and inversion (picture → noise).

    x' = √ᾱ' · (x − √(1−ᾱ)·ε)/√ᾱ + √(1−ᾱ')·ε

moves a latent from noise level ᾱ to ᾱ', down or up. Sampler and inverter differ in the direction, and in where ε is
taken. All x are float32 latents [B, 4, H, W], `eps(x, t)` is a network with its text, and a level's number is its t.
"""

import math
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from minipnp.errors import InputError
from minipnp.slots import Features

# ᾱ_t of SD-1.x, in float64: what checkpoints store may be rounded to half precision, so it is never read from them.
ALPHA_BAR = np.cumprod(1.0 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
CLEAN = 0  # the level of a picture: SD-1.x takes ᾱ_0 = 0.99915 for it, not 1

Eps = Callable[[Tensor, int], Tensor]


# Steps by spacing, at most: 1000 leading ones would begin at a t that is not there, 667 trailing ones end at the clean
# level.
MOST = {"leading": 999, "trailing": 666}


def timesteps(n: int, spacing: str = "leading") -> list[int]:
    """n levels, noisiest first.

    "leading": 981, 961, …, 1 for n = 50, as SD-1.x was published. Where n is small or does not divide 1000, the first
    level is far from pure noise: 667 for n = 334.
    "trailing": 999, 979, …, 19 for n = 50: round(1000 − i·1000/n) − 1, as in "Common Diffusion Noise Schedules and
    Sample Steps are Flawed" (Lin et al. 2024) and in diffusers. Every n begins at pure noise.
    """
    if spacing not in MOST:
        raise InputError(f"timesteps {spacing!r}: give {' or '.join(MOST)}")
    if not 1 <= n <= MOST[spacing]:
        raise InputError(f"{n} steps with {spacing} timesteps: give a number from 1 to {MOST[spacing]}")
    if spacing == "leading":
        return [1 + i * (1000 // n) for i in reversed(range(n))]
    return [round(level) - 1 for level in np.arange(1000, 0, -1000 / n).tolist()]


NOISY = 900  # the least t whose latents are near enough to pure noise to be replaced by it
FEW = 9  # steps up to this number begin lower with the published levels, and are coarse in any case


def check_start(levels: list[int], inverted: bool = False) -> None:
    """Looks at the first level of a run, which begins with pure noise, or with an inverted picture.

    InputError: with noise, in 10 steps or more, at a level that is far below pure noise. Warns where fewer steps do so,
    and where the edit of an inverted picture begins at such a level, at which much of the picture is settled.
    """
    if levels[0] >= NOISY:
        return
    begins = f"{len(levels)} step{'s' * (len(levels) > 1)} begin at t = {levels[0]}"
    remedy = "--timesteps trailing begins at 999"
    if inverted:
        warnings.warn(f"{begins}, where much of the picture is settled already: {remedy}", stacklevel=2)
    elif len(levels) <= FEW:
        warnings.warn(f"{begins}, not at pure noise: {remedy}", stacklevel=2)
    else:
        raise InputError(f"{begins}, not at pure noise: give --timesteps trailing, or 50, 100, 200, 250 or 999 steps")


def pairs(levels: list[int]) -> list[tuple[int, int]]:
    """(t, t') of each sampling step, the last one ending at the clean level."""
    return list(zip(levels, [*levels[1:], CLEAN], strict=True))


def noise(x0: Tensor, z: Tensor, t: int) -> Tensor:
    """Eq. (1): x_t = √ᾱ_t·x_0 + √(1−ᾱ_t)·z, z ~ N(0, 1)."""
    a = float(ALPHA_BAR[t])
    return math.sqrt(a) * x0 + math.sqrt(1 - a) * z


def step(x: Tensor, e: Tensor, t: int, t_next: int) -> Tensor:
    """x at level t → x at level t_next along the noise e; exact if e were the same everywhere on the way."""
    a = float(ALPHA_BAR[t])
    a_next = float(ALPHA_BAR[t_next])
    x0 = (x - math.sqrt(1 - a) * e) / math.sqrt(a)
    return math.sqrt(a_next) * x0 + math.sqrt(1 - a_next) * e


def sample(eps: Eps, x: Tensor, levels: list[int]) -> Iterator[tuple[int, Tensor]]:
    """From x at levels[0] down to the clean level; yields (level, latent) after each step."""
    for t, t_prev in pairs(levels):
        x = step(x, eps(x, t), t, t_prev)
        yield t_prev, x


def check_at(at: str, iterations: int) -> None:
    if at not in ("next", "current") and not (at == "last" and iterations > 0):
        raise InputError(f"inversion at {at!r}: give 'next' or 'current', or 'last' with a fixed-point iteration")


def invert(eps: Eps, x: Tensor, levels: list[int], at: str, iterations: int) -> Iterator[tuple[int, Tensor]]:
    """From the clean x up through `levels` (noisiest first, as for `sample`); yields (level, latent) after each step.

    The exact inverse of a sampling step from t' to t needs ε(x', t') at the point x' that is sought. `at` says what
    takes its place in the step from x at t:

        "next"     ε(x, t'), as pnp-diffusers has it
        "current"  ε(x, t), as plug-and-play has it
        "last"     the ε with which the step before ended, which costs nothing; in the first step ε(x, t')

    Each of the `iterations` then puts the x' found so far into the implicit equation x' = step(x, ε(x', t')). Two steps
    of "last" with one iteration, from the clean level through t = 1 to 21:

        e = ε(x_0, 1)     x' = step(x_0, e)    e = ε(x', 1)      x_1 = step(x_0, e)
        e as it is        x' = step(x_1, e)    e = ε(x', 21)     x_21 = step(x_1, e)
    """
    check_at(at, iterations)
    for t_next, t in reversed(pairs(levels)):
        if at != "last" or t == CLEAN:
            e = eps(x, t if at == "current" else t_next)
        x_next = step(x, e, t, t_next)
        for _ in range(iterations):
            e = eps(x_next, t_next)
            x_next = step(x, e, t, t_next)
        x = x_next
        yield t_next, x


def combine(e: Tensor | float, e_other: Tensor | float, w: float) -> Tensor | float:
    """w·e + (1−w)·e_other: classifier-free guidance, Eq. (5), and the mixture of two prompts in Eq. (6)."""
    return w * e + (1 - w) * e_other


def guided(
    unet: Callable,
    x: Tensor,
    t: int,
    text: Tensor,
    null: Tensor,
    w: float,
    negative: Tensor | None = None,
    alpha: float = 0.0,
    inject: Features = Features(),
) -> Tensor:
    """Classifier-free guidance, from one pass over all branches: ε = w·ε(x_t, P, t) + (1−w)·ε̃ [1, 4, H, W], Eq. (5).

    x: [1, 4, H, W], or a row for each branch, the conditional one first. text, null, negative: [1, 77, width] each.
    ε̃ is ε(x_t, ∅, t), or with a negative prompt P_n ε̃ = α·ε(x_t, ∅, t) + (1−α)·ε(x_t, P_n, t), Eq. (6). inject:
    features of one row for all branches, or of two: the first for the unconditional branches, the second for the
    conditional one. A branch of weight 0 is not evaluated.
    """
    if negative is None:
        alpha = 1.0
    weights = {"P": w, "∅": (1 - w) * alpha, "P_n": (1 - w) * (1 - alpha)}
    branches = [name for name, weight in weights.items() if weight != 0]
    texts = {"P": text, "∅": null, "P_n": negative}
    rows = [-1 if name == "P" else 0 for name in branches]
    e = unet(x, t, torch.cat([texts[name] for name in branches]), inject.rows(rows))
    e = dict.fromkeys(weights, 0.0) | dict(zip(branches, e.split(1), strict=True))
    return combine(e["P"], combine(e["∅"], e["P_n"], alpha), w)


def residual(eps: Eps, x: Tensor, x_next: Tensor, t: int, t_next: int) -> float:
    """‖x' − step(x, ε(x', t'))‖ / ‖x'‖: how far an inversion step is from what sampling would undo. 0 is exact."""
    return ((x_next - step(x, eps(x_next, t_next), t, t_next)).norm() / x_next.norm()).item()
