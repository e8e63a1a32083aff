"""The guidance image's own denoising x^G_t: inverted from a picture, or generated from a text."""

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from itertools import chain
from types import MappingProxyType

import torch
from torch import Tensor

from minipnp.ddim import CLEAN, check_at, guided, invert, pairs, residual, sample, timesteps
from minipnp.errors import InputError
from minipnp.slots import Features, Tap
from minipnp.unet import UNet

Progress = Callable[[Iterable, int, str], Iterable]  # (things, how many, what they are) → the same things, one by one


def silent(things: Iterable, total: int, what: str) -> Iterable:
    return things


@dataclass(frozen=True)
class Guidance:
    """What Plug-and-Play reads of the guidance image.

    latents: x^G_t [1, 4, h, w] at the levels t of the edit to come. x_T: where it starts. x_0: the clean latent.
    texts: [1, 77, width], the text under which features are taken; or [2, 77, width]: the first for the unconditional
    branches, the second for the conditional one. residuals: `ddim.residual` by level, at a few steps of the inversion.
    resampled: the latents were sampled from x_T, and are not those of the inversion. features: by level, those of the
    passes that made the latents, where they were kept.
    """

    latents: dict[int, Tensor]
    x_T: Tensor
    x_0: Tensor
    texts: Tensor
    residuals: dict[int, float] = field(default_factory=dict)
    resampled: bool = False
    features: Mapping[int, Features] = field(default_factory=dict)

    def levels(self, steps: int) -> list[int]:
        """`timesteps(steps)`, of the edit. Raises InputError where the guidance was made for another one."""
        if set(levels := timesteps(steps)) != set(self.latents):
            raise InputError(f"the guidance was made for an edit in {len(self.latents)} steps, not in {steps}")
        return levels


@dataclass(frozen=True)
class Inversion:
    """How a picture is inverted. The defaults are what docs/performance.md found to be enough.

    steps: None: those of the edit. at, iterations: see `ddim.invert`. resample: 0: x^G_t are the inverted latents (if
    these have all levels of the edit); n: they are sampled again from x_T in n steps, as the paper's Algorithm 1 does.
    checks: steps at which the residual is measured, one evaluation of the network each.
    """

    steps: int | None = None
    at: str = "last"
    iterations: int = 1
    resample: int = 0
    checks: int = 0

    def __post_init__(self):
        timesteps(1 if self.steps is None else self.steps)
        check_at(self.at, self.iterations)
        if min(self.iterations, self.resample, self.checks) < 0:
            raise InputError("the inversion's iterations, resampling steps and checks cannot be less than 0")

    def steps_for(self, edit_steps: int) -> int:
        return self.steps or edit_steps

    def schedule(self, edit_steps: int) -> tuple[list[int], list[int]]:
        """The levels of the inversion, and of the resampling (none: []), for an edit in so many steps, noisiest first.

        Where the edit has levels that the inversion has not, the source is resampled in edit_steps.
        """
        edit, up = timesteps(edit_steps), timesteps(self.steps_for(edit_steps))
        down = [] if set(edit) <= set(up) and not self.resample else timesteps(self.resample or edit_steps)
        if down and not set(edit) <= set(down):
            raise InputError(f"resampling in {len(down)} steps misses levels: give {edit_steps} steps, or 999")
        # Where the inversion ends: with `resample` at its last level, else at the one nearest to the edit's first.
        start = up[0] if self.resample else min(up, key=lambda t: abs(t - edit[0]))
        # A resampling takes that latent for one of level down[0]: 951 (of 20 steps) for 981 (of 50) is near enough.
        # On request, as in the authors' code, it may also be that of 999, for any level below.
        if down and (down[0] - start > 50 or not self.resample and start - down[0] > 50):
            raise InputError(f"inverted to t = {start}, not near {down[0]}: give {len(down)} inversion steps, or 999")
        return [t for t in up if t <= start], down


def guidance_from_latent(
    unet: UNet, x_0: Tensor, null: Tensor, edit_steps: int, how: Inversion = Inversion(), progress: Progress = silent,
    keep: Mapping[int, Tap] = MappingProxyType({}), features: MutableMapping[int, Features] | None = None,
) -> Guidance:  # fmt: skip
    """x^G_T ← DDIM-inv(I^G), the first line of Algorithm 1: under the empty prompt `null` [1, 77, width], unguided.

    keep: what to keep by level (`PnP.taps`), in `features`, from the passes that are made anyway. Where ε is taken at
    "current", or the source is resampled, these passes are at x^G_t itself, and the edit needs none of its own; else
    they are at the last iterate before it, and near to that: the nearer, the more iterations (docs/performance.md).
    """
    edit, (up, down) = timesteps(edit_steps), how.schedule(edit_steps)
    start, features = up[0], {} if features is None else features
    wanted, last = {} if down else keep, (None, None, None)

    def eps(x: Tensor, t: int) -> Tensor:
        nonlocal last
        if last[0] is not x or last[1] != t:  # what a check evaluates may be the next step's
            if t in wanted:
                e, features[t] = unet.tap(x, t, null, wanted[t])
            else:
                e = unet(x, t, null)
            last = x, t, e
        return last[2]

    checked = set(up[:: -(-len(up) // how.checks)]) if how.checks else set()
    measured = eps if how.at == "current" else lambda x, t: unet(x, t, null)  # no check decides what is kept
    x, latents, residuals = x_0, {}, {}
    steps = progress(invert(eps, x_0, up, how.at, how.iterations), len(up), "inversion")
    for (_, x_next), (t_next, t) in zip(steps, reversed(pairs(up)), strict=True):
        if t_next in checked:
            residuals[t_next] = residual(measured, x, x_next, t, t_next)
        if t_next in edit:
            latents[t_next] = x_next
        x = x_next
    x_T = x
    if start in wanted and how.at == "current":  # the one level at which the inversion has no evaluation
        eps(x_T, start)
    if down:
        wanted, last = keep, (None, None, None)  # of a check's pass at x_T nothing was kept
        latents = _resample(eps, x_T, down, edit, progress, "resampling")
    return Guidance({t: latents[t] for t in edit}, x_T, x_0, null, residuals, bool(down), features)


def guidance_from_text(
    unet: UNet, x_T: Tensor, source: Tensor, null: Tensor, edit_steps: int, scale: float = 5.0, both: bool = False,
    progress: Progress = silent,
) -> Guidance:  # fmt: skip
    """A generated guidance image: sampled from x_T with the text `source` [1, 77, width] at this guidance scale.

    Its features are taken under the source text (the paper's footnote 1); both: under the empty prompt for the
    unconditional branches and under the source text for the conditional one, as plug-and-play does.
    """

    def eps(x: Tensor, t: int) -> Tensor:
        return guided(unet, x, t, source, null, scale)

    levels = timesteps(edit_steps)
    latents = _resample(eps, x_T, levels, [*levels, CLEAN], progress, "guidance")
    x_0 = latents.pop(CLEAN)
    return Guidance(latents, x_T, x_0, torch.cat([null, source]) if both else source, resampled=True)


def _resample(eps, x_T: Tensor, down: list[int], keep: list[int], progress: Progress, what: str) -> dict[int, Tensor]:
    """x^G_{t−1} ← DDIM-samp(x^G_t, z^G_{t−1}) from x_T; the latents at the levels in `keep`."""
    steps = progress(sample(eps, x_T, down), len(down), what)
    return {t: x for t, x in chain([(down[0], x_T)], steps) if t in keep}
