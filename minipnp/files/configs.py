"""From the `config.json` files beside published weights to the sizes of the three networks.

A setting that the networks here do not have is refused by name: one that is passed over could spoil the picture
silently.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from minipnp.config import TextConfig, UNetConfig, VAEConfig
from minipnp.errors import InputError

# Settings that have one value in SD-1.x, also where a file leaves them out. Most of them change no shape: only here
# can a foreign network be told. Settings of precision (upcast_attention, force_upcast) and of training are not among
# them.
UNET_FIXED = dict(
    _class_name="UNet2DConditionModel", in_channels=4, out_channels=4, layers_per_block=2, conv_in_kernel=3,
    conv_out_kernel=3, act_fn="silu", norm_eps=1e-5, downsample_padding=1, mid_block_scale_factor=1,
    center_input_sample=False, down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    mid_block_type="UNetMidBlock2DCrossAttn", up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    resnet_time_scale_shift="default", resnet_skip_time_act=False, resnet_out_scale_factor=1, flip_sin_to_cos=True,
    freq_shift=0, time_embedding_type="positional", time_embedding_dim=None, time_embedding_act_fn=None,
    timestep_post_act=None, time_cond_proj_dim=None, class_embed_type=None, num_class_embeds=None,
    addition_embed_type=None, encoder_hid_dim=None, encoder_hid_dim_type=None, attention_type="default",
    num_attention_heads=None, transformer_layers_per_block=1, reverse_transformer_layers_per_block=None,
    use_linear_projection=False, dual_cross_attention=False, only_cross_attention=False,
    mid_block_only_cross_attention=None, cross_attention_norm=None,
)  # fmt: skip


VAE_FIXED = dict(
    _class_name="AutoencoderKL", in_channels=3, out_channels=3, latent_channels=4, act_fn="silu", shift_factor=None,
    latents_mean=None, latents_std=None, mid_block_add_attention=True, use_quant_conv=True, use_post_quant_conv=True,
)  # fmt: skip


# The ids of special tokens in these files are wrong for SD-1.x and not used: the tokenizer has them.
TEXT_FIXED = dict(
    model_type="clip_text_model", hidden_act="quick_gelu", layer_norm_eps=1e-5, max_position_embeddings=77
)


SCHEDULE_FIXED = dict(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, num_train_timesteps=1000, trained_betas=None,
    rescale_betas_zero_snr=False,
)  # fmt: skip


class PublishedConfig(dict):
    """What a config.json says. Raises InputError where that is not SD-1.x, not there or no use.

    fixed: the settings that have one value. required: those of them that a file may not leave out.
    """

    def __init__(self, path: Path, fixed: dict, required: tuple[str, ...] = ()):
        try:
            super().__init__(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{path}: not a readable config.json ({error})") from None
        self.path = path
        wrong = [f"{key} = {self[key]!r}" for key in fixed if key in (*self, *required) and self[key] != fixed[key]]
        if wrong:
            raise InputError(f"{path}: not Stable Diffusion 1.x: {', '.join(wrong)}")

    def __missing__(self, key: str):
        raise InputError(f"{self.path}: the setting {key!r} is missing")

    def size(self, key: str, divides: Iterable[int] = ()) -> int:
        """A whole number of at least 1, which divides the given ones."""
        value = self[key]
        if type(value) is not int or value < 1 or any(n % value for n in divides):
            of = f" that divides {list(divides)}" if divides else ""
            raise InputError(f"{self.path}: the setting {key} = {value!r} is not a size{of}")
        return value

    def sizes(self, key: str, count: int | None = None) -> tuple[int, ...]:
        values = self[key]
        if not isinstance(values, list) or not values or any(type(n) is not int or n < 1 for n in values):
            raise InputError(f"{self.path}: the setting {key} = {values!r} is not a list of sizes")
        if count not in (None, len(values)):
            raise InputError(f"{self.path}: not Stable Diffusion 1.x: {key} = {values}, which has {count} resolutions")
        return tuple(values)


def read_config(kind: type, path: Path) -> UNetConfig | VAEConfig | TextConfig:
    """The sizes of one network, of the class `kind`, from its config.json. InputError: it is not SD-1.x's."""
    return {UNetConfig: _unet, VAEConfig: _vae, TextConfig: _text}[kind](path)


def _unet(path: Path) -> UNetConfig:
    c = PublishedConfig(path, UNET_FIXED)
    channels = c.sizes("block_out_channels", count=4)
    return UNetConfig(
        channels=channels,
        # The name attention_head_dim is a historical mistake of the layout: in SD-1.x it holds the number of heads.
        heads=c.size("attention_head_dim", divides=channels),
        context=c.size("cross_attention_dim"),
        groups=c.size("norm_num_groups", divides=channels),
        size=c.size("sample_size"),
    )


def _vae(path: Path) -> VAEConfig:
    c = PublishedConfig(path, VAE_FIXED)
    channels = c.sizes("block_out_channels")
    scale = c.get("scaling_factor", VAEConfig.scale)
    if isinstance(scale, bool) or not isinstance(scale, float | int) or not 0 < scale < float("inf"):
        raise InputError(f"{path}: the setting scaling_factor = {scale!r} is not a positive number")
    return VAEConfig(
        channels=channels,
        blocks=c.size("layers_per_block"),
        scale=scale,
        groups=c.size("norm_num_groups", divides=channels),
    )


def _text(path: Path) -> TextConfig:
    c = PublishedConfig(path, TEXT_FIXED)
    width = c.size("hidden_size")
    vocabulary = c.size("vocab_size")
    if vocabulary < TextConfig.vocabulary:
        raise InputError(f"{path}: vocab_size = {vocabulary} is less than the {TextConfig.vocabulary} tokens of CLIP")
    return TextConfig(
        width=width,
        layers=c.size("num_hidden_layers"),
        vocabulary=vocabulary,
        heads=c.size("num_attention_heads", divides=[width]),
        mlp=c.size("intermediate_size"),
    )


def read_prediction(path: Path) -> str:
    """The prediction type in a model's `scheduler_config.json`; a schedule other than SD-1.x's is refused."""
    c = PublishedConfig(path, SCHEDULE_FIXED, required=("beta_schedule", "beta_start", "beta_end"))
    kind = c.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise InputError(f"{path}: prediction_type = {kind!r}; minipnp knows epsilon and v_prediction")
    return kind.removesuffix("_prediction")
