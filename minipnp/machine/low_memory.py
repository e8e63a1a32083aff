"""A model on a device that is small for it: not all networks there at a time, and large pictures decoded in tiles."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minipnp.errors import is_lack_of_memory
from minipnp.machine.kept import Kept
from minipnp.model import StableDiffusion

# cells of the latent: a tile's side, and what neighbours share of it
TILE = 64
OVERLAP = 16


class Roomy(StableDiffusion):
    """The same model, all of it on the device. A picture that does not fit beside it at the end is not lost."""

    def keeper(self, levels: int) -> Kept:
        return Kept(self.device, levels)

    def _decode_one(self, x0: Tensor) -> Tensor:
        """In tiles, with a warning, where memory is short."""
        try:
            return super()._decode_one(x0)
        except (RuntimeError, MemoryError) as error:
            if not is_lack_of_memory(error):
                raise
            warnings.warn("too little memory to decode at once: decoded in tiles, nearly equal", stacklevel=2)
        _empty_cache(self.device)  # now that the error, and with it what was computed, is gone
        return decode_in_tiles(self, x0, TILE // 2)


@dataclass(frozen=True)
class LowMemory(StableDiffusion):
    """The same model, of which the device holds the UNet, or the VAE in its place while that is used.

    The text encoder comes beside the UNet: it has 0.25 GB in half precision, the UNet 1.7. The CPU's memory holds all
    weights all the time, so that none are copied back. Features that are kept for an edit lie there, too (`Kept`,
    beside). On the CPU itself nothing moves; only large pictures are decoded in tiles.
    """

    def __post_init__(self):
        networks = (self.unet, self.vae, self.text_encoder)
        object.__setattr__(self, "_on_cpu", {network: network.cpu().state_dict() for network in networks})
        self.unet.to(self.device)

    def keeper(self, levels: int) -> Kept:
        return Kept(self.device, levels, beside=False)

    @contextmanager
    def _there(self, network: nn.Module) -> Iterator[None]:
        """The network is on the device, and after that on the CPU only."""
        network.to(self.device)
        try:
            yield
        finally:
            self._leave(network)

    @contextmanager
    def _in_place_of_the_unet(self, network: nn.Module) -> Iterator[None]:
        self._leave(self.unet)
        try:
            with self._there(network):
                yield
        finally:
            self.unet.to(self.device)

    def _leave(self, network: nn.Module) -> None:
        network.load_state_dict(self._on_cpu[network], assign=True)

    def embed(self, *prompts: str) -> Tensor:
        with self._there(self.text_encoder):
            return super().embed(*prompts)

    def encode(self, picture: Tensor, seed: int | None = None) -> Tensor:
        with self._in_place_of_the_unet(self.vae):
            return super().encode(picture, seed)

    def decode(self, x0: Tensor) -> Tensor:
        with self._in_place_of_the_unet(self.vae):
            return super().decode(x0)

    def _decode_one(self, x0: Tensor) -> Tensor:
        return decode_in_tiles(self, x0)


def _empty_cache(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if device.type == "mps":
        torch.mps.empty_cache()


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
