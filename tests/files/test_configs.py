"""The config.json files of a model: what is read, and that every setting of another network is refused by name."""

import json
from functools import partial
from inspect import signature
from pathlib import Path

import pytest
from stand_ins import SCHEDULER, SETTINGS, TINY, TINY_SETTINGS, random_states, refused, save_components

from minipnp.config import TextConfig, UNetConfig, VAEConfig
from minipnp.files.configs import read_config, read_prediction
from minipnp.files.loading import find_model

READ = {
    "unet": partial(read_config, UNetConfig),
    "vae": partial(read_config, VAEConfig),
    "text_encoder": partial(read_config, TextConfig),
}


def config(path: Path, folder: str, **changes) -> Path:
    """TINY's settings of this network with these changes; ... leaves one out."""
    settings = SETTINGS[folder] | TINY_SETTINGS[folder] | changes
    (path / "config.json").write_text(json.dumps({key: value for key, value in settings.items() if value is not ...}))
    return path / "config.json"


# What later versions of diffusers and transformers write besides, with the values that SD-1.x has.
LATER = {
    "unet": {
        "addition_embed_type": None, "addition_embed_type_num_heads": 64, "addition_time_embed_dim": None,
        "attention_type": "default", "class_embed_type": None, "class_embeddings_concat": False, "conv_in_kernel": 3,
        "conv_out_kernel": 3, "cross_attention_norm": None, "dropout": 0.0, "dual_cross_attention": False,
        "encoder_hid_dim": None, "encoder_hid_dim_type": None, "mid_block_only_cross_attention": None,
        "mid_block_type": "UNetMidBlock2DCrossAttn", "num_attention_heads": None, "num_class_embeds": None,
        "only_cross_attention": False, "projection_class_embeddings_input_dim": None, "resnet_out_scale_factor": 1.0,
        "resnet_skip_time_act": False, "resnet_time_scale_shift": "default",
        "reverse_transformer_layers_per_block": None, "time_cond_proj_dim": None, "time_embedding_act_fn": None,
        "time_embedding_dim": None, "time_embedding_type": "positional", "timestep_post_act": None,
        "transformer_layers_per_block": 1, "upcast_attention": None, "use_linear_projection": False,
    },
    "vae": {
        "force_upcast": True, "latents_mean": None, "latents_std": None, "mid_block_add_attention": True,
        "scaling_factor": 0.18215, "shift_factor": None, "use_post_quant_conv": True, "use_quant_conv": True,
    },
    "text_encoder": {"dtype": "float16", "bos_token_id": 49406, "eos_token_id": 49407},
}  # fmt: skip


@pytest.mark.parametrize("later", [False, True], ids=["as published", "later versions"])
def test_defaults_are_sd15(tmp_path, later):
    for folder, default in {"unet": UNetConfig(), "vae": VAEConfig(), "text_encoder": TextConfig()}.items():
        path = config(tmp_path, folder, **SETTINGS[folder] | (LATER[folder] if later else {}) | (
            {"scaling_factor": ...} if folder == "vae" and not later else {}))  # fmt: skip
        assert READ[folder](path) == default


def test_smaller_model(tmp_path):
    for folder, expected in TINY.items():
        assert READ[folder](config(tmp_path, folder)) == expected


FOREIGN = {
    "unet": {
        "act_fn": "gelu", "norm_eps": 1e-6, "flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0,
        "mid_block_scale_factor": 2, "center_input_sample": True, "layers_per_block": 1, "use_linear_projection": True,
        "class_embed_type": "identity", "num_class_embeds": 10, "addition_embed_type": "text_time",
        "dual_cross_attention": True, "only_cross_attention": True, "mid_block_only_cross_attention": True,
        "time_embedding_type": "fourier", "time_embedding_dim": 64, "time_embedding_act_fn": "gelu",
        "timestep_post_act": "silu", "time_cond_proj_dim": 256, "resnet_time_scale_shift": "scale_shift",
        "resnet_skip_time_act": True, "resnet_out_scale_factor": 1.5, "mid_block_type": "UNetMidBlock2D",
        "attention_type": "gated", "transformer_layers_per_block": 2, "num_attention_heads": 4,
        "reverse_transformer_layers_per_block": [1, 2, 1, 1], "cross_attention_norm": "layer_norm",
        "encoder_hid_dim": 1024, "encoder_hid_dim_type": "text_proj", "conv_in_kernel": 1, "conv_out_kernel": 1,
        "in_channels": 9, "out_channels": 8, "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 3,
        "up_block_types": ["UpBlock2D"] * 4, "_class_name": "UNetMotionModel",
    },
    "vae": {
        "act_fn": "gelu", "in_channels": 4, "out_channels": 4, "latent_channels": 16, "shift_factor": 0.1,
        "latents_mean": [0.1] * 4, "latents_std": [1.1] * 4, "mid_block_add_attention": False, "use_quant_conv": False,
        "use_post_quant_conv": False, "_class_name": "AutoencoderTiny",
    },
    "text_encoder": {
        "hidden_act": "gelu", "layer_norm_eps": 1e-6, "max_position_embeddings": 248, "model_type": "clip",
    },
}  # fmt: skip


@pytest.mark.parametrize("folder, key", [(folder, key) for folder, settings in FOREIGN.items() for key in settings])
def test_setting_of_a_foreign_network(tmp_path, folder, key):
    """Most of these change no name and no shape: without this the picture would be wrong in silence."""
    value = FOREIGN[folder][key]
    path = config(tmp_path, folder, **{key: value})
    refused(lambda: READ[folder](path), str(path), f"not Stable Diffusion 1.x: {key} = {value!r}")


@pytest.mark.parametrize("folder, model", [("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL")])
def test_every_setting_of_diffusers_is_judged(folder, model):
    """One that a later version adds must be looked at: does it change the result?"""
    diffusers = pytest.importorskip("diffusers")
    # Of training or precision, of parts that are refused, or seen in the tensors' names (the blocks of a VAE).
    harmless = {
        "unet": {"dropout", "upcast_attention", "addition_time_embed_dim", "class_embeddings_concat",
                 "projection_class_embeddings_input_dim", "addition_embed_type_num_heads"},
        "vae": {"sample_size", "force_upcast", "down_block_types", "up_block_types"},
    }[folder]  # fmt: skip
    theirs = set(signature(getattr(diffusers, model).__init__).parameters) - {"self"}
    assert theirs - harmless - set(TINY_SETTINGS[folder]) <= set(FOREIGN[folder])


SIZES = [(folder, key) for folder, settings in TINY_SETTINGS.items() for key in settings if key != "scaling_factor"]


@pytest.mark.parametrize("folder, key", [*SIZES, ("text_encoder", "vocab_size")])
@pytest.mark.parametrize("value", [..., None, "8", 0, -8, 2.5, [], [0], {}, True], ids=repr)
def test_size_that_is_none(tmp_path, folder, key, value):
    path = config(tmp_path, folder, **{key: value})
    refused(lambda: READ[folder](path), str(path), key, "missing" if value is ... else "not a")


@pytest.mark.parametrize("folder, key, value", [
    ("unet", "attention_head_dim", 3), ("unet", "attention_head_dim", [5, 10, 20, 20]), ("unet", "norm_num_groups", 3),
    ("unet", "block_out_channels", [8, 16, 16]), ("vae", "norm_num_groups", 3), ("vae", "scaling_factor", "x"),
    ("vae", "scaling_factor", 0), ("vae", "scaling_factor", None), ("vae", "scaling_factor", float("nan")),
    ("text_encoder", "num_attention_heads", 3), ("text_encoder", "vocab_size", 49407),
])  # fmt: skip
def test_size_that_does_not_fit(tmp_path, folder, key, value):
    path = config(tmp_path, folder, **{key: value})
    refused(lambda: READ[folder](path), str(path), f"{key} = {value!r}")


@pytest.mark.parametrize("content", [b"", b"{", b"5", b"null", b'"x"', b"[1]", b"\xff\xfe{}", b"[" * 100_000],
                         ids=lambda content: repr(content[:8]))  # fmt: skip
def test_damaged_file(tmp_path, content):
    folder = save_components(tmp_path, random_states())
    (folder / "unet" / "config.json").write_bytes(content)
    refused(lambda: find_model(folder), str(folder / "unet" / "config.json"), "not a readable config.json")


def test_published_schedule(tmp_path):
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(SCHEDULER))
    assert read_prediction(path) == "epsilon"


@pytest.mark.parametrize("key, value", [
    ("beta_schedule", "linear"), ("beta_schedule", "squaredcos_cap_v2"), ("beta_start", 0.0001), ("beta_end", 0.02),
    ("num_train_timesteps", 500), ("trained_betas", [0.1]), ("rescale_betas_zero_snr", True),
    ("prediction_type", "sample"), ("prediction_type", "flow_prediction"),
    ("beta_schedule", ...), ("beta_start", ...), ("beta_end", ...),  # left out they would mean another schedule
])  # fmt: skip
def test_foreign_schedule(tmp_path, key, value):
    """Also where the prediction type is given by hand: that says nothing of the schedule."""
    settings = {k: v for k, v in (SCHEDULER | {key: value}).items() if v is not ...}
    folder = save_components(tmp_path, random_states(), scheduler=settings)
    for prediction in (None, "v"):
        refused(lambda prediction=prediction: find_model(folder, prediction=prediction), "scheduler_config.json", key)
