"""The sizes of the three networks. The defaults are Stable Diffusion 1.x; a smaller model is another value of the same.

Each class reads the `config.json` that lies beside published weights in component layout, and refuses, by name, a
setting that these networks do not have: what is read and not understood would be a picture that is silently wrong.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from minipnp.errors import InputError

_UNET_BLOCKS = {
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}


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
        c = _read(path, fixed=dict(
            layers_per_block=2, norm_eps=1e-5, act_fn="silu", flip_sin_to_cos=True, freq_shift=0, downsample_padding=1,
            mid_block_scale_factor=1, center_input_sample=False, use_linear_projection=False, class_embed_type=None,
            addition_embed_type=None, dual_cross_attention=False, only_cross_attention=False, time_embedding_type=
            "positional", resnet_time_scale_shift="default", mid_block_type="UNetMidBlock2DCrossAttn",
            transformer_layers_per_block=1, upcast_attention=False, num_attention_heads=None, **_UNET_BLOCKS,
        ))  # fmt: skip
        if not isinstance(c["attention_head_dim"], int):
            raise InputError(
                f"{path}: attention_head_dim {c['attention_head_dim']} is not SD-1.x's; SD-2.x has no place here"
            )
        if c.get("out_channels", 4) != 4 or len(c["block_out_channels"]) != 4:
            raise InputError(f"{path}: not the UNet of Stable Diffusion 1.x (4 resolutions, 4 output channels)")
        # The key's name is a historical mistake of the layout: for SD-1.x it holds the number of heads.
        return cls(in_channels=c["in_channels"], channels=tuple(c["block_out_channels"]), heads=c["attention_head_dim"],
                   context=c["cross_attention_dim"], groups=c["norm_num_groups"], size=c["sample_size"], prediction=prediction)  # fmt: skip


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
        c = _read(path, fixed=dict(
            act_fn="silu", in_channels=3, out_channels=3, mid_block_add_attention=True, use_quant_conv=True,
            use_post_quant_conv=True, shift_factor=None, latents_mean=None,
        ))  # fmt: skip
        return cls(channels=tuple(c["block_out_channels"]), blocks=c["layers_per_block"], groups=c["norm_num_groups"],
                   latent_channels=c["latent_channels"], scale=c.get("scaling_factor", 0.18215))  # fmt: skip


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
        # bos/eos/pad ids in these files are wrong for SD-1.x and not used: the tokenizer has them.
        c = _read(path, fixed=dict(hidden_act="quick_gelu", layer_norm_eps=1e-5))
        return cls(width=c["hidden_size"], layers=c["num_hidden_layers"], heads=c["num_attention_heads"],
                   mlp=c["intermediate_size"], vocabulary=c["vocab_size"], positions=c["max_position_embeddings"])  # fmt: skip


def read_prediction(path: Path) -> str:
    """The prediction type in a model's `scheduler_config.json`; a schedule other than SD-1.x's is refused."""
    c = _read(path, fixed=dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
                               num_train_timesteps=1000, trained_betas=None, rescale_betas_zero_snr=False))  # fmt: skip
    kind = c.get("prediction_type", "epsilon")
    known = {"epsilon": "epsilon", "v_prediction": "v"}
    if kind not in known:
        raise InputError(f"{path}: prediction_type {kind!r} is not one of {', '.join(known)}")
    return known[kind]


def _read(path: Path, fixed: dict) -> dict:
    """The settings in `path`. Those in `fixed` have one value in SD-1.x, in which a file may also leave them out."""
    try:
        c = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable config.json ({error})") from None
    wrong = {key: c[key] for key, value in fixed.items() if key in c and c[key] != value}
    if wrong:
        said = ", ".join(f"{key} = {value}" for key, value in wrong.items())
        raise InputError(f"{path}: not Stable Diffusion 1.x: {said}")
    return _Settings(path, c)


class _Settings(dict):
    """A config.json whose missing keys are named in one line."""

    def __init__(self, path: Path, settings: dict):
        super().__init__(settings)
        self.path = path

    def __missing__(self, key: str):
        raise InputError(f"{self.path}: the setting {key!r} is missing")
