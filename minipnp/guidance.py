"""The guidance image's own denoising x^G_t: inverted from a picture, or generated from a text."""

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from itertools import chain
from types import MappingProxyType

import torch
from torch import Tensor

from minipnp.ddim import CLEAN, MOST, check_at, check_start, guided, invert, residual, sample, timesteps
from minipnp.errors import InputError
from minipnp.options import COUNT, STEPS, Options, Stepped, choice, option
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

    def levels(self, edit: Stepped) -> list[int]:
        """The levels of the edit. Raises InputError where the guidance was made for another one."""
        if set(edit.levels) != set(self.latents):
            raise InputError(
                f"the guidance was made for an edit in {len(self.latents)} steps, "
                f"not in {edit.steps} with {edit.spacing} timesteps"
            )
        return edit.levels

    def serves(self, edit: Stepped) -> bool:
        """Whether it has the levels of the edit.

        Latents that were sampled again from x_T belong to the steps they were sampled in.
        """
        levels = set(edit.levels)
        return levels == self.latents.keys() or (not self.resampled and levels <= self.latents.keys())

    def for_edit(self, edit: Stepped) -> "Guidance":
        """This guidance for an edit, where it has its levels. InputError: it has not."""
        if not self.serves(edit):
            raise InputError(f"it does not serve {edit.steps} steps with {edit.spacing} timesteps: {self.served()}")
        check_start(edit.levels, inverted=True)
        x_T = self.x_T if self.resampled else self.latents[edit.levels[0]]
        return replace(self, latents={t: self.latents[t] for t in edit.levels}, x_T=x_T)

    @property
    def made_for(self) -> Stepped:
        """The steps that have just its levels. InputError: none have."""
        n = len(self.latents)
        for spacing in MOST:
            if n <= MOST[spacing] and self.latents.keys() == {*timesteps(n, spacing)}:
                return Stepped(n, spacing=spacing)
        raise InputError("the guidance has levels that are those of no number of steps")

    def served(self) -> str:
        """What to give for an edit that it serves; of fewer steps those that divide its own number."""
        most = self.made_for
        divisors = (n for n in range(most.steps - 1, 0, -1) if most.steps % n == 0)
        fewer = [n for n in divisors if self.serves(replace(most, steps=n))]
        also = f" (also served: {', '.join(map(str, fewer[:6]))}{' …' if len(fewer) > 6 else ''})" if fewer else ""
        return f"give --steps {most.steps} --timesteps {most.spacing}{also}, or `minipnp invert` again"


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

    def record_for(self, edit: Stepped) -> dict[str, object]:
        """Its record, with the number of steps that it has for such an edit."""
        return self.record() | {"inversion_steps": self.steps or edit.steps}

    def schedule(self, s: Stepped) -> tuple[list[int], list[int]]:
        """The levels of the inversion, and of the resampling (none: []), for an edit, noisiest first.

        Where the edit has levels that the inversion has not, the source is resampled at those of the edit.
        """

        def levels(steps: int) -> list[int]:
            return timesteps(steps, "leading" if steps == 999 else s.spacing)  # 999 are all there are

        edit = s.levels
        up = levels(self.steps or s.steps)
        down = [] if set(edit) <= set(up) and not self.resample else levels(self.resample or s.steps)
        if down and not set(edit) <= set(down):
            raise InputError(f"resampling in {len(down)} steps misses levels: give {s.steps} steps, or 999")
        # Where the inversion ends: with `resample` at its last level, else at the one nearest to the edit's first.
        start = up[0] if self.resample else min(up, key=lambda t: abs(t - edit[0]))
        # A resampling takes that latent for one of level down[0]: 951 (of 20 steps) for 981 (of 50) is near enough.
        # On request, as in the authors' code, it may also be that of 999, for any level below.
        if down and (down[0] - start > 50 or not self.resample and start - down[0] > 50):
            raise InputError(f"inverted to t = {start}, not near {down[0]}: give {len(down)} inversion steps, or 999")
        return [t for t in up if t <= start], down

    def keeps_features(self, edit: Stepped) -> bool:
        """Whether the inversion's own passes are at the latents that the edit reads, or as near as makes no difference.

        Their features then serve the edit, which makes no passes for the guidance (docs/performance.md).
        """
        return self.at != "next" or bool(self.schedule(edit)[1])


def guidance_from_latent(
    unet: UNet,
    x_0: Tensor,
    null: Tensor,
    edit: Stepped,
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
    levels = edit.levels
    check_start(levels, inverted=True)
    up, down = how.schedule(edit)
    features = {} if features is None else features
    wanted = {} if down else keep

    def eps(x: Tensor, t: int) -> Tensor:
        if t not in wanted:
            return unet(x, t, null)
        e, features[t] = unet.tap(x, t, null, wanted[t])
        return e

    inverting = progress(invert(eps, x_0, up, how.at, how.iterations), len(up), "inversion")
    latents = {t: x for t, x in inverting if t in levels or t == up[0]}
    x_T = latents[up[0]]
    if up[0] in wanted and how.at == "current":  # the one level at which the inversion has no evaluation
        eps(x_T, up[0])
    if down:
        wanted = keep
        latents = _resample(eps, x_T, down, levels, progress, "resampling")
    return Guidance({t: latents[t] for t in levels}, x_T, x_0, null, bool(down), features)


def guidance_from_text(
    unet: UNet,
    x_T: Tensor,
    source: Tensor,
    null: Tensor,
    edit: Stepped,
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

    latents = _resample(eps, x_T, edit.levels, [*edit.levels, CLEAN], progress, "guidance")
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
