"""The sizes of the three networks. The defaults are Stable Diffusion 1.x; a smaller model has other values."""

from dataclasses import dataclass


@dataclass(frozen=True)
class UNetConfig:
    """ε_θ: the denoising network. Its 12 + 1 + 12 rows are fixed (unet.py); these are their widths."""

    in_channels: int = 4
    channels: tuple[int, int, int, int] = (320, 640, 1280, 1280)  # of the four resolutions
    heads: int = 8  # per attention; a head's size is channels / heads
    context: int = 768  # width of the text embedding
    groups: int = 32  # of every GroupNorm
    size: int = 64  # side of the square latent it was trained on
    prediction: str = "epsilon"  # what the last convolution means: "epsilon", or "v" for the fine-tunes that need it


@dataclass(frozen=True)
class VAEConfig:
    """The autoencoder between pictures [3, H, W] and latents [4, H/factor, W/factor]."""

    channels: tuple[int, ...] = (128, 256, 512, 512)  # of the resolutions, finest first
    blocks: int = 2  # ResBlocks per resolution in the encoder; the decoder has one more
    groups: int = 32
    latent_channels: int = 4
    scale: float = 0.18215  # latents are multiplied by it, so that they have about unit variance

    @property
    def factor(self) -> int:
        """Pixels per latent cell and side."""
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class TextConfig:
    """CLIP's text encoder, ViT-L/14's for SD-1.x."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    vocabulary: int = 49408
    positions: int = 77
