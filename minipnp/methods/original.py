"""What is edited: a picture, a generated one, or a guidance in a file; and what the methods need of it, made once."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from minipnp.guidance import (
    SOURCE_SCALE,
    Guidance,
    Inversion,
    Progress,
    guidance_from_latent,
    guidance_from_text,
    silent,
)
from minipnp.methods.regularised import Regularisation, regularised_inversion
from minipnp.model import StableDiffusion
from minipnp.options import NUMBER, SEED, SWITCH, Options, Stepped, option, whole
from minipnp.pipeline import check_sides, start
from minipnp.pnp import PnP
from minipnp.unet import UNet

T = TypeVar("T")


@dataclass(frozen=True)
class Taking(Options):
    """How an original is taken from its picture, or generated from its text."""

    size: int | None = option(None, "short side in pixels (default: the model's own)", whole(1))
    square: bool = option(False, "crop the centre to a square, as the paper does", SWITCH)
    seed: int = option(0, "seed of what is drawn at random", SEED)
    source_scale: float | None = option(
        None, "guidance scale at which --source is generated (default: pnp 5, other methods --scale's)", NUMBER
    )
    vae_sampled: bool = option(False, "encode to a sample of the VAE's posterior, not to its mean", SWITCH)
    both: bool = option(
        False, "take the features of a generated original under both texts, as plug-and-play does", SWITCH
    )


class Original:
    """What is edited. Make it by `from_picture`, `from_text` or `from_guidance`.

    source: a text for it; "" where there is none. Inversions are made when a method asks for them, each once.
    """

    def __init__(
        self,
        sd: StableDiffusion,
        source: str,
        taking: Taking,
        inversion: Inversion,
        keep: PnP | None,
        progress: Progress,
        x_0: Tensor | None = None,
        latent_sides: tuple[int, int] | None = None,
        given: Guidance | None = None,
    ):
        self.sd = sd
        self.source = source
        self.taking = taking
        self.inversion = inversion
        self.keep = keep
        self.progress = progress
        self.generated = x_0 is None
        self.null = sd.embed("")
        self.latent_sides = latent_sides or tuple(x_0.shape[2:])  # height and width, in cells
        self._x_0 = x_0
        self._given = given
        self._made: dict = {}

    @classmethod
    def from_picture(
        cls,
        sd: StableDiffusion,
        picture: Tensor,
        source: str = "",
        taking: Taking = Taking(),
        inversion: Inversion = Inversion(),
        keep: PnP | None = None,
        progress: Progress = silent,
    ) -> "Original":
        """picture: [1, 3, H, W] in [−1, 1], as `taking` says, sides multiples of sd.multiple.

        keep: store, while inverting under the empty prompt, the features that an edit with these settings reads.
        """
        check_sides(sd, *picture.shape[2:])
        x_0 = sd.encode(picture, taking.seed if taking.vae_sampled else None)
        return cls(sd, source, taking, inversion, keep, progress, x_0)

    @classmethod
    def from_text(
        cls, sd: StableDiffusion, source: str, taking: Taking = Taking(), progress: Progress = silent
    ) -> "Original":
        """The picture that `source` and the seed generate, a square."""
        side = taking.size or sd.size
        check_sides(sd, side, side)
        cells = side // sd.vae.config.factor
        return cls(sd, source, taking, Inversion(), None, progress, latent_sides=(cells, cells))

    @classmethod
    def from_guidance(
        cls,
        sd: StableDiffusion,
        G: Guidance,
        source: str = "",
        taking: Taking = Taking(),
        inversion: Inversion = Inversion(),
        progress: Progress = silent,
    ) -> "Original":
        """G: an inversion under the empty prompt. What a method needs beyond it is made from its x_0."""
        return cls(sd, source, taking, inversion, None, progress, G.x_0, given=G)

    @property
    def unet(self) -> UNet:
        return self.sd.unet

    @property
    def seed(self) -> int:
        return self.taking.seed

    @cached_property
    def text(self) -> Tensor:
        """The source's text, embedded: [1, 77, width]."""
        return self.sd.embed(self.source)

    def against(self, negative: str | None) -> Tensor:
        """What guidance leads away from, embedded: the negative prompt, or the empty one."""
        return self.null if negative is None else self.sd.embed(negative)

    def noise(self, seed: int) -> Tensor:
        """Unit noise of the latent's shape."""
        return self.sd.noise(*self.latent_sides, seed % 2**64)

    @property
    def share(self) -> float:
        """The share of the latent's side at which maps of words are read."""
        return self.sd.advice.share

    def x_0(self, edit: Stepped) -> Tensor:
        """The clean latent [1, 4, h, w]; a generated original is sampled in the steps of the edit."""
        return self.guidance(edit).x_0 if self.generated else self._x_0

    def guidance(self, edit: Stepped, by_source: bool = False) -> Guidance:
        """The original's denoising, at the levels of an edit: inverted, or as it was generated.

        by_source: invert under the source's text, not under the empty prompt.
        """
        levels = tuple(edit.levels)
        if self.generated:
            return self.once(("generated", levels), lambda: self._generated(edit))
        return self.once(("inverted", levels, by_source), lambda: self._inverted(edit, by_source))

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` makes; the next time that it is asked for by this key, the same again."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _generated(self, edit: Stepped) -> Guidance:
        height, width = (side * self.sd.vae.config.factor for side in self.latent_sides)
        x_T = start(self.sd, height, width, self.seed, edit)
        scale = SOURCE_SCALE if self.taking.source_scale is None else self.taking.source_scale
        return guidance_from_text(self.unet, x_T, self.text, self.null, edit, scale, self.taking.both, self.progress)

    def _inverted(self, edit: Stepped, by_source: bool) -> Guidance:
        if self._given is not None and not by_source:
            return self._given.for_edit(edit)
        reads = self.keep is not None and not by_source and self.inversion.keeps_features(edit)
        taps = replace(self.keep, steps=edit.steps, spacing=edit.spacing).taps() if reads else {}
        under = self.text if by_source else self.null
        return guidance_from_latent(
            self.unet, self._x_0, under, edit, self.inversion, self.progress, taps, self.sd.keeper(len(taps))
        )

    def regularised(self, edit: Stepped, how: Regularisation) -> Guidance:
        """x_0 inverted under the source's text with noise that is kept white, as pix2pix-zero does."""
        args = self.unet, self._x_0, self.text, edit, how, self.progress
        return self.once(("regularised", tuple(edit.levels), how), lambda: regularised_inversion(*args))

    @torch.no_grad()
    def picture(self, edit: Stepped) -> Tensor:
        """The original as the VAE decodes it: [1, 3, H, W], about [−1, 1]."""
        return self.sd.decode(self.x_0(edit))
