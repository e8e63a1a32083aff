"""A loaded model: the three networks and the tokenizer, and the way between words, pictures and what ε_θ works on."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minipnp.errors import InputError
from minipnp.text import TextEncoder
from minipnp.tokenizer import Tokenizer
from minipnp.unet import UNet
from minipnp.vae import VAE
from minipnp.weights import Source, find, load_networks


@dataclass(frozen=True)
class StableDiffusion:
    unet: UNet
    vae: VAE
    text_encoder: TextEncoder
    tokenizer: Tokenizer
    source: Source
    device: torch.device
    dtype: torch.dtype

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
        """Prompts → text embeddings [n, 77, width]. Each is encoded by itself, so that it does not depend on the others."""
        rows = [self.text_encoder(self.tokenizer(prompt).to(self.device)) for prompt in prompts]
        return torch.cat(rows)

    @torch.no_grad()
    def encode(self, picture: Tensor, seed: int | None = None) -> Tensor:
        """Picture [1, 3, H, W] in [−1, 1] → x_0 [1, 4, h, w]: the posterior's mean, or with a seed a sample of it."""
        height, width = (side // self.vae.config.factor for side in picture.shape[2:])
        z = None if seed is None else self.noise(height, width, seed)
        return self.vae.encode(picture.to(self.device), z)

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """x_0 [n, 4, h, w] → pictures [n, 3, H, W], about [−1, 1], float32 on the CPU. Decoded one at a time."""
        return torch.cat([self.vae.decode(x0[i : i + 1]) for i in range(len(x0))]).cpu()

    def noise(self, height: int, width: int, seed: int) -> Tensor:
        """Unit noise [1, 4, height, width] (in cells), the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(1, self.vae.config.latent_channels, height, width, generator=generator).to(self.device)


def load(
    path: Path | str,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    vae: Path | str | None = None,
    prediction: str | None = None,
    ema: bool | None = None,
) -> StableDiffusion:
    """A model from a single file, or a folder in component layout (`unet/ vae/ text_encoder/`).

    device: default CUDA, else MPS, else the CPU. dtype: float32, float16 or bfloat16; default float16 on CUDA, else float32.
    vae: a file (or folder) to take the VAE from instead. prediction: "epsilon" or "v", if the model's files do not say.
    ema: see `weights.load_network`. Raises InputError for whatever cannot be loaded exactly.
    """
    device = pick_device(device)
    dtype = pick_dtype(dtype, device)
    if prediction not in (None, "epsilon", "v"):
        raise InputError(f"prediction type {prediction!r}: give 'epsilon' or 'v'")
    source = find(Path(path), Path(vae) if vae else None, prediction, half=dtype == torch.float16)
    unet, autoencoder, text_encoder = load_networks(source, device, dtype, ema)
    return StableDiffusion(unet, autoencoder, text_encoder, Tokenizer(), source, device, dtype)


def pick_device(device: str | torch.device | None = None) -> torch.device:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device is None:
        device = next(name for name, usable in there.items() if usable)
    try:
        device = torch.device(device)
    except RuntimeError:
        raise InputError(f"device {device!r}: give cpu, cuda, cuda:N or mps") from None
    if not there.get(device.type) or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        usable = ", ".join(name for name, usable in there.items() if usable)
        raise InputError(f"device {str(device)!r} is not usable here; there is: {usable}")
    return device


def pick_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    if isinstance(dtype, str) and dtype not in known:
        raise InputError(f"dtype {dtype!r}: give {', '.join(known)}")
    return known.get(dtype, dtype)
