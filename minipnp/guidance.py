"""The guidance image's own denoising x^G_t: inverted from a picture, or generated from a text."""

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from itertools import chain
from types import MappingProxyType

import torch
from torch import Tensor

from minipnp.ddim import CLEAN, check_at, guided, invert, residual, sample, timesteps
from minipnp.errors import InputError
from minipnp.options import COUNT, STEPS, Options, choice, option
from minipnp.slots import Features, Tap
from minipnp.unet import UNet

Progress = Callable[[Iterable, int, str], Iterable]  # (things, how many, what they are) → the same things, one by one


SOURCE_SCALE = 5.0  # guidance scale at which a guidance image is generated, where nobody says another


def silent(things: Iterable, total: int, what: str) -> Iterable:
    return things


@dataclass(frozen=True)
class Guidance:
    """What the editing methods read of the guidance image's denoising.

    latents: x^G_t [1, 4, h, w] at the levels t of the edit to come. x_T: where it starts. x_0: the clean latent.
    texts: [1, 77, width], the text under which features are taken; or [2, 77, width]: the first for the unconditional
    branches, the second for the conditional one. resampled: the latents were sampled from x_T, and are not those of the
    inversion. features: by level, those of the passes that made the latents, where they were kept.
    """

    latents: dict[int, Tensor]
    x_T: Tensor
    x_0: Tensor
    texts: Tensor
    resampled: bool = False
    features: Mapping[int, Features] = field(default_factory=dict)

    def levels(self, steps: int) -> list[int]:
        """`timesteps(steps)`, of the edit. Raises InputError where the guidance was made for another one."""
        levels = timesteps(steps)
        if set(levels) != set(self.latents):
            raise InputError(f"the guidance was made for an edit in {len(self.latents)} steps, not in {steps}")
        return levels

    def for_steps(self, steps: int) -> "Guidance":
        """This guidance for an edit in so many steps, where it has their levels. InputError: it has not.

        Latents that were sampled again from x_T belong to the steps they were sampled in.
        """
        levels = timesteps(steps)
        there = len(self.latents)
        if not self.latents.keys() >= set(levels) or (self.resampled and steps != there):
            raise InputError(f"made for an edit in {there} steps: give --steps {there}, or `minipnp invert` again")
        x_T = self.x_T if self.resampled else self.latents[levels[0]]
        return replace(self, latents={t: self.latents[t] for t in levels}, x_T=x_T)


@dataclass(frozen=True)
class Inversion(Options):
    """How a picture is inverted. The defaults are what docs/performance.md found to be enough."""

    steps: int | None = option(
        None, "steps of the inversion (default: those of the edit)", STEPS, name="inversion_steps"
    )
    at: str = option(
        "last", "where a step of the inversion first takes eps", choice("next", "current", "last"), name="inversion_at"
    )
    iterations: int = option(1, "iterations of the implicit equation in a step", COUNT, name="fixed_point")
    resample: int = option(0, "sample the guidance again in so many steps; 0: only where the edit needs it", COUNT)

    def __post_init__(self):
        super().__post_init__()
        check_at(self.at, self.iterations)

    def steps_for(self, edit_steps: int) -> int:
        return self.steps or edit_steps

    def record_for(self, edit_steps: int) -> dict[str, object]:
        """Its record, with the number of steps that it has for such an edit."""
        return self.record() | {"inversion_steps": self.steps_for(edit_steps)}

    def schedule(self, edit_steps: int) -> tuple[list[int], list[int]]:
        """The levels of the inversion, and of the resampling (none: []), for an edit in so many steps, noisiest first.

        Where the edit has levels that the inversion has not, the source is resampled in edit_steps.
        """
        edit = timesteps(edit_steps)
        up = timesteps(self.steps_for(edit_steps))
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

    def keeps_features(self, edit_steps: int) -> bool:
        """Whether the inversion's own passes are at the latents that the edit reads, or as near as makes no difference.

        Their features then serve the edit, which makes no passes for the guidance (docs/performance.md).
        """
        return self.at != "next" or bool(self.schedule(edit_steps)[1])


def guidance_from_latent(
    unet: UNet,
    x_0: Tensor,
    null: Tensor,
    edit_steps: int,
    how: Inversion = Inversion(),
    progress: Progress = silent,
    keep: Mapping[int, Tap] = MappingProxyType({}),
    features: MutableMapping[int, Features] | None = None,
) -> Guidance:
    """x^G_T ← DDIM-inv(I^G), the first line of Algorithm 1: under the empty prompt `null` [1, 77, width], unguided.

    keep: what to store by level (`PnP.taps`), in `features`, while inverting, so that the edit need not run the UNet on
    the guidance image. Where ε is taken at "current", or the source is resampled, the inversion's passes are at x^G_t
    itself, and the features are exact; else they are taken at the last iterate before x^G_t, and near to it.
    """
    edit = timesteps(edit_steps)
    up, down = how.schedule(edit_steps)
    features = {} if features is None else features
    wanted = {} if down else keep

    def eps(x: Tensor, t: int) -> Tensor:
        if t not in wanted:
            return unet(x, t, null)
        e, features[t] = unet.tap(x, t, null, wanted[t])
        return e

    inverting = progress(invert(eps, x_0, up, how.at, how.iterations), len(up), "inversion")
    latents = {t: x for t, x in inverting if t in edit or t == up[0]}
    x_T = latents[up[0]]
    if up[0] in wanted and how.at == "current":  # the one level at which the inversion has no evaluation
        eps(x_T, up[0])
    if down:
        wanted = keep
        latents = _resample(eps, x_T, down, edit, progress, "resampling")
    return Guidance({t: latents[t] for t in edit}, x_T, x_0, null, bool(down), features)


def guidance_from_text(
    unet: UNet,
    x_T: Tensor,
    source: Tensor,
    null: Tensor,
    edit_steps: int,
    scale: float = SOURCE_SCALE,
    both: bool = False,
    progress: Progress = silent,
) -> Guidance:
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


def residuals(unet: UNet, G: Guidance, checks: int) -> dict[int, float]:
    """How far the inversion is from what sampling would undo, at about so many of the guidance's levels, evenly.

    By level the `ddim.residual` of the step to it from the level below: 0 is exact. One evaluation of ε_θ each.
    """
    levels = sorted(G.latents)
    below = dict(zip(levels, [CLEAN, *levels[:-1]], strict=True))
    x = {**G.latents, CLEAN: G.x_0}

    def eps(x: Tensor, t: int) -> Tensor:
        return unet(x, t, G.texts[:1])

    checked = levels[:: -(-len(levels) // checks)]
    return {t: residual(eps, x[below[t]], x[t], below[t], t) for t in checked}
