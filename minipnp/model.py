"""A loaded model: the three networks and the tokenizer, and the way between words, pictures and what ε_θ works on."""

import warnings
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from minipnp.advice import Advice
from minipnp.errors import InputError
from minipnp.options import Options
from minipnp.slots import Features
from minipnp.text import TextEncoder
from minipnp.tokenizer import Tokenizer
from minipnp.unet import UNet
from minipnp.vae import VAE

Settings = TypeVar("Settings", bound=Options)


@dataclass(frozen=True)
class Source:
    """Where a model's three networks come from: a file each (it may be the same one) and their sizes."""

    files: dict[str, Path]  # by the network's folder name
    configs: dict[str, object]


@dataclass(frozen=True)
class StableDiffusion:
    unet: UNet
    vae: VAE
    text_encoder: TextEncoder
    tokenizer: Tokenizer
    source: Source
    device: torch.device
    dtype: torch.dtype
    advice: Advice = Advice()

    def advised(self, settings: type[Settings], **given: object) -> Settings:
        """The settings of this class that suit the model: what it advises, else the defaults; `given` wins.

        given: values by the options' names, such as steps=20. Raises InputError for a value out of range.
        """
        return settings.given({**self.advice.options, **given})

    @property
    def size(self) -> int:
        """The short side, in pixels, of the pictures it was trained on: 512 for SD-1.5."""
        return self.unet.config.size * self.vae.config.factor

    @property
    def multiple(self) -> int:
        """Sides of pictures must be multiples of this many pixels, so that every level of the UNet halves evenly."""
        return self.vae.config.factor * 2 ** (len(self.unet.config.channels) - 1)

    @torch.no_grad()
    def embed(self, *prompts: str) -> Tensor:
        """Prompts → text embeddings [n, 77, width]; each encoded by itself, so that none depends on the others."""
        rows = [self.text_encoder(self.tokenizer(prompt).to(self.device)) for prompt in prompts]
        return torch.cat(rows)

    @torch.no_grad()
    def encode(self, picture: Tensor, seed: int | None = None) -> Tensor:
        """Picture [1, 3, H, W] in [−1, 1] → x_0 [1, 4, h, w]: the posterior's mean, or with a seed a sample of it."""
        height, width = (side // self.vae.config.factor for side in picture.shape[2:])
        z = None if seed is None else self.noise(height, width, seed)
        return self._finite(lambda x: self.vae.encode(x.to(self.device), z), picture)

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """x_0 [n, 4, h, w] → pictures [n, 3, H, W], about [−1, 1], float32 on the CPU. Decoded one at a time."""
        return torch.cat([self._finite(self._decode_one, x) for x in x0.split(1)])

    def _decode_one(self, x0: Tensor) -> Tensor:
        return self.vae.decode(x0).cpu()

    def _finite(self, by_vae: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """What the VAE makes of x. Where float16 overflows in it, as in those of some fine-tuned models, it is made
        again in float32: of this x only, so that no picture depends on those before it.

        Raises InputError where it is not finite all the same. It is one wait for the device.
        """
        made = by_vae(x)
        if made.isfinite().all():
            return made
        half = self.dtype == torch.float16
        if not x.isfinite().all():
            remedy = "the UNet overflows in float16, try --dtype float32" if half else "get the model's files again"
            raise InputError(f"NaN in the result: {remedy}")
        if half:
            warnings.warn("the VAE overflows in float16, so it was used in float32", stacklevel=4)
            self.vae.float()
            try:
                made = by_vae(x)
            finally:
                self.vae.to(self.dtype)  # exact: they were numbers of float16
        if not made.isfinite().all():
            raise InputError("NaN in what the VAE makes: get its file again, or give another with --vae")
        return made

    def keeper(self, levels: int) -> MutableMapping[int, Features]:
        """A place for the features of so many levels, which the edit reads; here a dictionary."""
        return {}

    def noise(self, height: int, width: int, seed: int) -> Tensor:
        """Unit noise [1, 4, height, width] (in cells), the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(1, self.vae.config.latent_channels, height, width, generator=generator).to(self.device)
