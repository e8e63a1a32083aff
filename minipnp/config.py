"""The sizes of the three networks. The defaults are Stable Diffusion 1.x; a smaller model is another value of the same.

Each class reads the `config.json` that lies beside published weights in component layout, and refuses, by name, a
setting that these networks do not have (settings.py): one that is passed over could spoil the picture silently.
"""

from dataclasses import dataclass
from pathlib import Path

from minipnp.errors import InputError
from minipnp.settings import SCHEDULE, TEXT, UNET, VAE, Settings


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

    @classmethod
    def read(cls, path: Path, prediction: str = "epsilon") -> "UNetConfig":
        c = Settings(path, UNET)
        channels = c.sizes("block_out_channels", count=4)
        # The name attention_head_dim is a historical mistake of the layout: in SD-1.x it holds the number of heads.
        return cls(channels=channels, heads=c.size("attention_head_dim", divides=channels),
                   context=c.size("cross_attention_dim"), groups=c.size("norm_num_groups", divides=channels),
                   size=c.size("sample_size"), prediction=prediction)  # fmt: skip


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

    @classmethod
    def read(cls, path: Path) -> "VAEConfig":
        c = Settings(path, VAE)
        channels, scale = c.sizes("block_out_channels"), c.get("scaling_factor", cls.scale)
        if isinstance(scale, bool) or not isinstance(scale, float | int) or not 0 < scale < float("inf"):
            raise InputError(f"{path}: the setting scaling_factor = {scale!r} is not a positive number")
        return cls(channels=channels, blocks=c.size("layers_per_block"), scale=scale,
                   groups=c.size("norm_num_groups", divides=channels))  # fmt: skip


@dataclass(frozen=True)
class TextConfig:
    """CLIP's text encoder, ViT-L/14's for SD-1.x."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    vocabulary: int = 49408
    positions: int = 77

    @classmethod
    def read(cls, path: Path) -> "TextConfig":
        c = Settings(path, TEXT)
        width, vocabulary = c.size("hidden_size"), c.size("vocab_size")
        if vocabulary < cls.vocabulary:
            raise InputError(f"{path}: vocab_size = {vocabulary} is less than the {cls.vocabulary} tokens of CLIP")
        return cls(width=width, layers=c.size("num_hidden_layers"), vocabulary=vocabulary,
                   heads=c.size("num_attention_heads", divides=[width]), mlp=c.size("intermediate_size"))  # fmt: skip


def read_prediction(path: Path) -> str:
    """The prediction type in a model's `scheduler_config.json`; a schedule other than SD-1.x's is refused."""
    c = Settings(path, SCHEDULE, required=("beta_schedule", "beta_start", "beta_end"))
    kind = c.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise InputError(f"{path}: prediction_type = {kind!r}; minipnp knows epsilon and v_prediction")
    return kind.removesuffix("_prediction")
