"""Stand-ins for published weights: true names, shapes, types and (mis)alignment, and in each tensor a mark of its own.

The files are sparse: one of full size takes a few MB on the disk. tests/data/headers holds the first bytes of the files
of Stable Diffusion 1.5 as they are published (8 bytes of length, JSON, padding), and names.tsv: a tensor's name in the
single-file layout, in component layout, of its EMA copy.
"""

import gzip
import json
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from minipnp.config import TextConfig, UNetConfig, VAEConfig
from minipnp.errors import InputError
from minipnp.files.loading import load_networks
from minipnp.model import Source
from minipnp.weights import (
    AUTOENCODER,
    NETWORKS,
    TEXT,
    UNET_COMPONENT,
    UNET_SINGLE_FILE,
    VAE_COMPONENT,
    VAE_SINGLE_FILE,
    published_name,
)

CPU = torch.device("cpu")
HEADERS = Path(__file__).parent / "data" / "headers"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "F8_E4M3": torch.float8_e4m3fn}  # fmt: skip

# The published files, by the names of their headers.
EMAONLY, PRUNED, FT_MSE = (
    f"{name}.safetensors" for name in ("v1-5-pruned-emaonly", "v1-5-pruned", "vae-ft-mse-840000-ema-pruned")
)
COMPONENTS = {
    f"{network.folder}/{network.file}{variant}.safetensors": f"{network.folder}__{network.file}{variant}.safetensors"
    for network in NETWORKS
    for variant in ("", ".fp16")
}
SIZES = {
    EMAONLY: 4265146304, PRUNED: 7703324286, FT_MSE: 334641190,
    "unet__diffusion_pytorch_model.safetensors": 3438167540,
    "unet__diffusion_pytorch_model.fp16.safetensors": 1719125304,
    "vae__diffusion_pytorch_model.safetensors": 334643276,
    "vae__diffusion_pytorch_model.fp16.safetensors": 167335342,
    "text_encoder__model.safetensors": 492265874,
    "text_encoder__model.fp16.safetensors": 246144864,
}  # fmt: skip

NAMES = [line.split("\t") for line in gzip.decompress((HEADERS / "names.tsv.gz").read_bytes()).decode().splitlines()]
SINGLE = {single: component for single, component, _ in NAMES}
EMA = {single: ema for single, _, ema in NAMES if ema}
# The mark of a tensor is its line in names.tsv, under whatever name it is published; an EMA copy's is 2000 more.
MARK = {name: i for i, (single, component, _) in enumerate(NAMES) for name in (single, component)}
MARK |= {ema: MARK[single] + 2000 for single, ema in EMA.items()}

Tensors = dict[str, tuple[str, list[int]]]  # name → (dtype, shape)


# ---------------------------------------------------------------------------------------------------------------------
# Files without numbers.


def raw_header(name: str) -> bytes:
    return gzip.decompress((HEADERS / f"{name}.header.gz").read_bytes())


def header(name: str) -> Tensors:
    """The tensors of a published file, in the file's order."""
    entries = json.loads(raw_header(name)[8:])
    return {name: (e["dtype"], e["shape"]) for name, e in entries.items() if name != "__metadata__"}


def published(path: Path, name: str) -> Path:
    """The published file `name`: its header byte for byte, and its size."""
    head = raw_header(name)
    entries = json.loads(head[8:])
    entries.pop("__metadata__", None)
    return _write(path, head, entries, {tensor: mark_of(tensor, name.split("__")[0]) for tensor in entries})


def write(path: Path, tensors: Tensors, marks: dict | None = None, metadata: dict | None = None, padding=0) -> Path:
    """A file with these tensors. padding: spaces after the header beyond those that align the numbers to 8."""
    entries, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * DTYPES[dtype].itemsize
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries if metadata is None else {"__metadata__": metadata} | entries).encode()
    text += b" " * (-len(text) % 8 + padding)
    return _write(path, struct.pack("<Q", len(text)) + text, entries, marks or {n: mark_of(n) for n in tensors})


def _write(path: Path, head: bytes, entries: dict, marks: dict[str, int | None]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + max((e["data_offsets"][1] for e in entries.values()), default=0))
        for name, entry in entries.items():
            dtype, n = DTYPES[entry["dtype"]], math.prod(entry["shape"])
            if marks.get(name) is not None and n >= 3 and dtype.is_floating_point:
                high, low = divmod(marks[name], 256)  # so that bfloat16 holds each exactly
                file.seek(len(head) + entry["data_offsets"][0])
                file.write(_bytes([high, low], dtype))
                file.seek(len(head) + entry["data_offsets"][1] - dtype.itemsize)
                file.write(_bytes([255 - low], dtype))
    return path


def _bytes(values: list[int], dtype: torch.dtype) -> bytes:
    return bytes(torch.tensor(values).to(dtype).view(torch.uint8).tolist())


def mark_of(name: str, folder: str = "") -> int | None:
    """The mark of a tensor by its published name (in component layout: in that folder); None for what is no weight."""
    for old, new in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items():
        name = name.replace(f"attentions.0.{old}.", f"attentions.0.{new}.")
    names = name, f"{folder}/{name}", f"first_stage_model.{name}", f"text_encoder/{name}"
    return next((MARK[name] for name in names if name in MARK), None)


def read_mark(tensor: Tensor) -> int:
    """The mark of a loaded tensor, of which first and last numbers are where they should be."""
    flat = tensor.detach().flatten()
    high, low, last = int(flat[0]), int(flat[1]), int(flat[-1])
    assert last == 255 - low, f"begins with {high}, {low} and ends with {last}: not one tensor's"
    return 256 * high + low


# ---------------------------------------------------------------------------------------------------------------------
# A tenth of Stable Diffusion 1.x: all its names, about a tenth of its widths.

SMALL = {
    "unet": UNetConfig(channels=(32, 64, 128, 128), context=48),
    "vae": VAEConfig(channels=(32, 64, 128, 128)),
    "text_encoder": TextConfig(width=48, mlp=192),
}
_SMALLER = {768: 48, 3072: 192, 128: 32, 256: 64, 512: 128}


def small(tensors: Tensors) -> Tensors:
    """The same tensors in the sizes of SMALL."""

    def size(n: int) -> int:
        return n // 10 if n % 320 == 0 else _SMALLER.get(n, n)

    return {name: (dtype, [size(n) for n in shape]) for name, (dtype, shape) in tensors.items()}


def load_small(path: Path, dtype=torch.float32, ema: bool | None = None, **files: Path) -> list[torch.nn.Module]:
    """The networks of a single file, or of others for some of them, in the sizes of SMALL."""
    source = Source({folder: files.get(folder, path) for folder in SMALL}, dict(SMALL))
    return list(load_networks(source, CPU, dtype, ema))


def renamed(tensors: Tensors, pattern: str, replacement: str) -> tuple[Tensors, dict[str, int | None]]:
    """The tensors under other names, and the marks that they keep."""
    new = {name: re.sub(pattern, replacement, name) for name in tensors}
    return {new[name]: t for name, t in tensors.items()}, {new[name]: mark_of(name) for name in tensors}


def without(tensors: Tensors, pattern: str) -> Tensors:
    return {name: t for name, t in tensors.items() if not re.search(pattern, name)}


# ---------------------------------------------------------------------------------------------------------------------
# Tiny models with numbers, saved in both layouts.

TINY = {
    "unet": UNetConfig(channels=(8, 8, 16, 16), heads=2, context=16, groups=4, size=8),
    "vae": VAEConfig(channels=(8, 16), blocks=1, groups=4, scale=0.5),
    "text_encoder": TextConfig(width=16, layers=2, heads=2, mlp=32),
}
# The config.json files of SD-1.5, and what differs in TINY's.
SETTINGS = {
    "unet": {
        "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu", "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False, "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "downsample_padding": 1,
        "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1,
        "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    },
    "vae": {
        "_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3,
        "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "text_encoder": {
        "_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"], "attention_dropout": 0.0,
        "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 768,
        "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": 12,
        "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768, "torch_dtype": "float32",
        "transformers_version": "4.22.0.dev0", "vocab_size": 49408,
    },
}  # fmt: skip
TINY_SETTINGS = {
    "unet": {"block_out_channels": [8, 8, 16, 16], "attention_head_dim": 2, "cross_attention_dim": 16,
             "norm_num_groups": 4, "sample_size": 8},
    "vae": {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "scaling_factor": 0.5},
    "text_encoder": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
}  # fmt: skip
SCHEDULER = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip
SINGLE_FILE = {"unet": UNET_SINGLE_FILE, "vae": VAE_SINGLE_FILE, "text_encoder": TEXT}
COMPONENT = {"unet": UNET_COMPONENT, "vae": VAE_COMPONENT, "text_encoder": [*TEXT, ("^", "text_model.")]}

States = dict[str, dict[str, Tensor]]  # folder → own name → tensor


def random_states() -> States:
    torch.manual_seed(0)
    states = {network.folder: network.build(TINY[network.folder]).state_dict() for network in NETWORKS}
    return {folder: {name: torch.randn_like(t) for name, t in state.items()} for folder, state in states.items()}


def mapped_states(states: States, change: Callable[[Tensor], Tensor]) -> States:
    return {folder: {name: change(t) for name, t in state.items()} for folder, state in states.items()}


def save_components(folder: Path, states: States, suffix: str = "", **changes: dict) -> Path:
    """A folder in component layout. changes: by network's folder, settings that differ."""
    for network in NETWORKS:
        rules, state = COMPONENT[network.folder], states[network.folder]
        (folder / network.folder).mkdir(parents=True, exist_ok=True)
        settings = SETTINGS[network.folder] | TINY_SETTINGS[network.folder] | changes.get(network.folder, {})
        (folder / network.folder / "config.json").write_text(json.dumps(settings))
        named = {published_name(name, rules): tensor for name, tensor in state.items()}
        save_file(named, folder / network.folder / f"{network.file}{suffix}.safetensors", {"format": "pt"})
    if scheduler := changes.get("scheduler"):
        (folder / "scheduler").mkdir()
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder


def save_single(path: Path, states: States) -> Path:
    """The single-file layout, in which the VAE's attention is 1×1 convolutions."""
    named = {}
    for network in NETWORKS:
        prefix, rules = network.prefixes[0], SINGLE_FILE[network.folder]
        for name, tensor in states[network.folder].items():
            if network is AUTOENCODER and ".attn." in name and tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
            named[prefix + published_name(name, rules)] = tensor
    save_file(named, path)
    return path


def refused(action: Callable[[], object], *said: str) -> None:
    """The action ends in one line, which says all of that."""
    with pytest.raises(InputError) as error:
        action()
    message = str(error.value)
    assert "\n" not in message and len(message) < 600, message
    for part in said:
        assert part in message, message
