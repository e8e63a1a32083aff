"""A model on a device that is small for it: one network there at a time, and large pictures decoded in tiles."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from minipnp.machine.kept import Kept
from minipnp.model import StableDiffusion

# cells of the latent: a tile's side, and what neighbours share of it
TILE = 64
OVERLAP = 16


class Roomy(StableDiffusion):
    """The same model, all of it on the device. A picture that does not fit beside it at the end is not lost."""

    def keeper(self, levels: int) -> Kept:
        return Kept(self.device, levels)

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """In tiles, with a warning, where memory is short."""
        try:
            return super().decode(x0)
        except torch.OutOfMemoryError:
            warnings.warn("too little memory to decode at once: decoded in tiles, nearly equal", stacklevel=2)
        torch.cuda.empty_cache()
        return torch.cat([decode_in_tiles(self, x0[i : i + 1], TILE // 2) for i in range(len(x0))])


class LowMemory(StableDiffusion):
    """The same model, of which the device holds the UNet, or another network in its place while that is used.

    Features that are kept for an edit lie elsewhere, too (`Kept`, beside).
    """

    def keeper(self, levels: int) -> Kept:
        return Kept(self.device, levels, beside=False)

    @contextmanager
    def only(self, network: nn.Module) -> Iterator[None]:
        self.unet.to("cpu")
        network.to(self.device)
        try:
            yield
        finally:
            network.to("cpu")
            self.unet.to(self.device)

    def embed(self, *prompts: str) -> Tensor:
        with self.only(self.text_encoder):
            return super().embed(*prompts)

    def encode(self, picture: Tensor, seed: int | None = None) -> Tensor:
        with self.only(self.vae):
            return super().encode(picture, seed)

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        with self.only(self.vae):
            return torch.cat([decode_in_tiles(self, x0[i : i + 1]) for i in range(len(x0))])


def decode_in_tiles(sd: StableDiffusion, x0: Tensor, side: int | None = None) -> Tensor:
    """x_0 [1, 4, h, w] → picture [1, 3, H, W] on the CPU. In tiles of `side` (TILE) where it is larger than one.

    Not exact then: norms and attention of the decoder see a tile in the place of the picture. Neighbours are blended
    linearly over what they share, so that no seam shows.
    """
    (h, w), factor, side = x0.shape[2:], sd.vae.config.factor, side or TILE
    if max(h, w) <= side + OVERLAP:
        return sd.vae.decode(x0).cpu()
    picture = torch.zeros(1, 3, h * factor, w * factor)
    weight = torch.zeros(1, 1, h * factor, w * factor)
    for top in _starts(h, side):
        for left in _starts(w, side):
            tile = sd.vae.decode(x0[:, :, top : top + side, left : left + side]).cpu()
            share = _ramp(tile.shape[2], factor)[:, None] * _ramp(tile.shape[3], factor)
            rows = slice(top * factor, top * factor + tile.shape[2])
            columns = slice(left * factor, left * factor + tile.shape[3])
            picture[..., rows, columns] += tile * share
            weight[..., rows, columns] += share
    return picture / weight


def _starts(cells: int, side: int) -> list[int]:
    """Of tiles that cover so many cells, the last one flush with the end."""
    return sorted({min(start, max(cells - side, 0)) for start in range(0, max(cells - OVERLAP, 1), side - OVERLAP)})


def _ramp(pixels: int, factor: int) -> Tensor:
    """Weights along a tile's side: rising over the overlap, 1 in the middle, falling again; nowhere 0."""
    distance = torch.minimum(torch.arange(pixels), torch.arange(pixels).flip(0)) + 1
    return (distance / (OVERLAP * factor)).clamp(max=1)
