"""What is edited: a picture or a generated one, and what several methods need of it, made once."""

from functools import cached_property

from torch import Tensor

from minipnp.guidance import Guidance, Inversion, Progress, guidance_from_latent, guidance_from_text, silent
from minipnp.methods.maps import usual_share
from minipnp.methods.regularised import Regularisation, regularised_inversion
from minipnp.model import StableDiffusion
from minipnp.pipeline import keeps_features, start
from minipnp.pnp import PnP

SOURCE_SCALE = 7.5  # guidance scale of a generated picture


class Original:
    """What is edited: the latent x_0 of a picture, or the picture that `source` and `seed` generate.

    source: a text for it; "" where there is none. square: the picture was cropped to one. keep: with the inversion
    under the empty prompt the features that Plug-and-Play reads. Inversions are made when a method asks, each once.
    """

    def __init__(
        self, sd: StableDiffusion, x_0: Tensor | None, source: str = "", seed: int = 0,
        size: tuple[int, int] | None = None, inversion: Inversion = Inversion(), source_scale: float = SOURCE_SCALE,
        progress: Progress = silent, square: bool = False, keep: bool = False,
    ):  # fmt: skip
        self.sd, self.source, self.seed, self.progress, self.square = sd, source, seed, progress, square
        self.inversion, self.source_scale, self.generated, self.keep = inversion, source_scale, x_0 is None, keep
        self.null = sd.embed("")
        self._x_0, self._size, self._made = x_0, size, {}

    @cached_property
    def text(self) -> Tensor:
        """The source's, embedded."""
        return self.sd.embed(self.source)

    def guidance(self, steps: int, by_source: bool = False) -> Guidance:
        """The original's denoising: inverted under the empty prompt or the source's text, or generated from that."""
        key = steps, by_source and not self.generated
        if key not in self._made and self.generated:
            x_T = start(self.sd, *(self._size or (self.sd.size, self.sd.size)), self.seed, steps)
            args = self.sd.unet, x_T, self.text, self.null, steps, self.source_scale
            self._made[key] = guidance_from_text(*args, progress=self.progress)
        elif key not in self._made:
            under, how = self.text if by_source else self.null, self.inversion
            reads = self.keep and not by_source and keeps_features(how, steps)
            taps = PnP(steps=steps).taps() if reads else {}
            args = self.sd.unet, self._x_0, under, steps, how, self.progress, taps, self.sd.keeper(len(taps))
            self._made[key] = guidance_from_latent(*args)
        return self._made[key]

    def regularised(self, steps: int, how: Regularisation) -> Guidance:
        """x_0 inverted under the source's text as pix2pix-zero does."""
        if (steps, how) not in self._made:
            args = self.sd.unet, self.x_0(steps), self.text, steps, how, self.progress
            self._made[steps, how] = regularised_inversion(*args)
        return self._made[steps, how]

    @property
    def cells(self) -> int:
        """The latent's shorter side."""
        pixels = min(self._size or (self.sd.size,)) if self.generated else 0
        return pixels // self.sd.vae.config.factor if self.generated else min(self._x_0.shape[2:])

    @property
    def share(self) -> float:
        return usual_share(self.cells)

    def x_0(self, steps: int) -> Tensor:
        return self.guidance(steps).x_0 if self.generated else self._x_0
