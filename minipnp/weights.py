"""Published weights → the three networks. All names of tensors are here.

Loading is strict: every tensor of a network is in the file with its exact shape, and the file has no other of that
network, but for the exceptions named below. The networks are built without storage (on the meta device) and take their
tensors from the memory-mapped file: those of the wanted dtype without a copy, the others one by one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minipnp.config import TextConfig, UNetConfig, VAEConfig
from minipnp.errors import InputError
from minipnp.text import TextEncoder
from minipnp.unet import UNet
from minipnp.vae import VAE

# ---------------------------------------------------------------------------------------------------------------------
# Names. A layout is a table of substitutions from this project's names to published ones, applied in order.

Rules = list[tuple[str, str | Callable[[re.Match], str]]]

_TRANSFORMER: Rules = [  # the same in both layouts
    (r"transformer\.(norm[123]|self_attn|cross_attn|ff)\.", r"transformer.transformer_blocks.0.\1."),
    (r"\.self_attn\.", ".attn1."), (r"\.cross_attn\.", ".attn2."),
    (r"\.(attn[12])\.([qkv])\.", r".\1.to_\2."), (r"\.(attn[12])\.out\.", r".\1.to_out.0."),
    (r"\.ff\.proj\.", ".ff.net.0.proj."), (r"\.ff\.out\.", ".ff.net.2."),
]  # fmt: skip

UNET_SINGLE_FILE: Rules = [
    (r"\.(res2?)\.norm1\.", r".\1.in_layers.0."), (r"\.(res2?)\.conv1\.", r".\1.in_layers.2."),
    (r"\.(res2?)\.time\.", r".\1.emb_layers.1."), (r"\.(res2?)\.skip\.", r".\1.skip_connection."),
    (r"\.(res2?)\.norm2\.", r".\1.out_layers.0."), (r"\.(res2?)\.conv2\.", r".\1.out_layers.3."),
    *_TRANSFORMER,
    (r"^time\.fc1\.", "time_embed.0."), (r"^time\.fc2\.", "time_embed.2."),
    (r"^encoder\.(\d+)\.(conv|res)\.", r"input_blocks.\1.0."),
    (r"^encoder\.(\d+)\.down\.", r"input_blocks.\1.0.op."),
    (r"^encoder\.(\d+)\.transformer\.", r"input_blocks.\1.1."),
    (r"^middle\.res\.", "middle_block.0."),
    (r"^middle\.transformer\.", "middle_block.1."),
    (r"^middle\.res2\.", "middle_block.2."),
    (r"^decoder\.(\d+)\.res\.", r"output_blocks.\1.0."),
    (r"^decoder\.(\d+)\.transformer\.", r"output_blocks.\1.1."),
    (r"^decoder\.2\.up\.", "output_blocks.2.1."),  # no transformer before it in this row
    (r"^decoder\.(\d+)\.up\.", r"output_blocks.\1.2."),
    (r"^norm_out\.", "out.0."), (r"^conv_out\.", "out.2."),
]  # fmt: skip


def _down(kind: str) -> Callable[[re.Match], str]:  # encoder rows 1–11 are blocks of 3, the third a downsampler
    return lambda m: f"down_blocks.{(int(m[1]) - 1) // 3}.{kind}.{(int(m[1]) - 1) % 3}."


def _up(kind: str) -> Callable[[re.Match], str]:  # decoder rows 0–11 are 4 blocks of 3
    return lambda m: f"up_blocks.{int(m[1]) // 3}.{kind}.{int(m[1]) % 3}."


UNET_COMPONENT: Rules = [
    (r"\.(res2?)\.time\.", r".\1.time_emb_proj."), (r"\.(res2?)\.skip\.", r".\1.conv_shortcut."),
    *_TRANSFORMER,
    (r"^time\.fc", "time_embedding.linear_"),
    (r"^encoder\.0\.conv\.", "conv_in."),
    (r"^encoder\.(\d+)\.res\.", _down("resnets")),
    (r"^encoder\.(\d+)\.transformer\.", _down("attentions")),
    (r"^encoder\.(\d+)\.down\.", lambda m: f"down_blocks.{int(m[1]) // 3 - 1}.downsamplers.0.conv."),
    (r"^middle\.res\.", "mid_block.resnets.0."),
    (r"^middle\.transformer\.", "mid_block.attentions.0."),
    (r"^middle\.res2\.", "mid_block.resnets.1."),
    (r"^decoder\.(\d+)\.res\.", _up("resnets")),
    (r"^decoder\.(\d+)\.transformer\.", _up("attentions")),
    (r"^decoder\.(\d+)\.up\.", lambda m: f"up_blocks.{int(m[1]) // 3}.upsamplers.0."),
    (r"^norm_out\.", "conv_norm_out."),
]  # fmt: skip

_VAE_SINGLE_FILE: Rules = [
    (r"\.skip\.", ".nin_shortcut."),
    (r"\.mid\.res([12])\.", r".mid.block_\1."), (r"\.mid\.attn\.", ".mid.attn_1."),
    (r"^encoder\.levels\.(\d)\.down\.", r"encoder.down.\1.downsample.conv."),
    (r"^encoder\.levels\.(\d)\.res\.", r"encoder.down.\1.block."),
    (r"^decoder\.levels\.(\d)\.up\.", lambda m: f"decoder.up.{3 - int(m[1])}.upsample."),  # numbered finest first
    (r"^decoder\.levels\.(\d)\.res\.", lambda m: f"decoder.up.{3 - int(m[1])}.block."),
    (r"^(post_)?quant\.", r"\1quant_conv."),
]  # fmt: skip
VAE_SINGLE_FILE: Rules = [*_VAE_SINGLE_FILE, (r"\.attn_1\.out\.", ".attn_1.proj_out.")]
VAE_SINGLE_FILE_NEW: Rules = [  # as some programs write it that make a single file of diffusers' names
    *_VAE_SINGLE_FILE, (r"\.attn_1\.([qkv])\.", r".attn_1.to_\1."), (r"\.attn_1\.out\.", ".attn_1.to_out.0."),
]  # fmt: skip

_VAE_COMPONENT: Rules = [
    (r"\.skip\.", ".conv_shortcut."),
    (r"\.mid\.res1\.", ".mid_block.resnets.0."), (r"\.mid\.res2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn\.norm\.", ".mid_block.attentions.0.group_norm."), (r"\.mid\.attn\.", ".mid_block.attentions.0."),
    (r"^encoder\.levels\.(\d)\.down\.", r"encoder.down_blocks.\1.downsamplers.0.conv."),
    (r"^encoder\.levels\.(\d)\.res\.", r"encoder.down_blocks.\1.resnets."),
    (r"^decoder\.levels\.(\d)\.up\.", r"decoder.up_blocks.\1.upsamplers.0."),
    (r"^decoder\.levels\.(\d)\.res\.", r"decoder.up_blocks.\1.resnets."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"^(post_)?quant\.", r"\1quant_conv."),
]  # fmt: skip
VAE_COMPONENT: Rules = [*_VAE_COMPONENT, (r"\.0\.([qkv])\.", r".0.to_\1."), (r"\.0\.out\.", ".0.to_out.0.")]
_OLD = {"q": "query", "k": "key", "v": "value", "out": "proj_attn"}  # before diffusers 0.17; SD-1.5's own fp32 file
VAE_COMPONENT_OLD: Rules = [*_VAE_COMPONENT, (r"\.0\.([qkv]|out)\.", lambda m: f".0.{_OLD[m[1]]}.")]

TEXT: Rules = [
    (r"^tokens\.", "embeddings.token_embedding."), (r"^positions\.", "embeddings.position_embedding."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"\.attn\.([qkv])\.", r".self_attn.\1_proj."), (r"\.attn\.out\.", ".self_attn.out_proj."),
    (r"\.(fc[12])\.", r".mlp.\1."),
    (r"^norm_out\.", "final_layer_norm."),
]  # fmt: skip


class Tensors(Protocol):
    """A file of weights: path; header: by name, the shape and the dtype (in safetensors' terms) of each tensor."""

    path: Path
    header: dict[str, dict]

    def names(self) -> set[str]: ...

    def tensor(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class Network:
    """One of the three networks: how it is built, where its tensors may stand, what may stand beside them."""

    name: str
    config: type
    build: type[nn.Module]
    folder: str  # in component layout
    file: str
    prefixes: tuple[str, ...]  # that are usual, in front of all its names
    tables: tuple[Rules, ...]  # of names; exporters mix them
    extras: str  # names after the prefix that carry nothing: recomputed here, or never used for drawing
    remedy: str  # for a file in which there is none of it, or not all


UNET = Network(
    "UNet", UNetConfig, UNet, "unet", "diffusion_pytorch_model",
    ("model.diffusion_model.", ""), (UNET_SINGLE_FILE, UNET_COMPONENT),
    extras=r"(?!)", remedy="give a whole model: one file, or a folder of components",
)  # fmt: skip
UNET_EMA = replace(  # averages of its weights over the training
    UNET, name="averaged (EMA) UNet", remedy="leave --ema out",
    prefixes=("model_ema.diffusion_model",), tables=([*UNET_SINGLE_FILE, (r"\.", "")],),
)  # fmt: skip
AUTOENCODER = Network(
    "VAE", VAEConfig, VAE, "vae", "diffusion_pytorch_model",
    ("first_stage_model.", "", "vae."), (VAE_SINGLE_FILE, VAE_SINGLE_FILE_NEW, VAE_COMPONENT, VAE_COMPONENT_OLD),
    extras=r"^loss\.|^model_ema\.(decay|num_updates)$", remedy="name a file that has one with --vae",
)  # fmt: skip
TEXT_ENCODER = Network(
    "text encoder", TextConfig, TextEncoder, "text_encoder", "model",
    ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.", "text_model.", ""), (TEXT,),
    extras=r"^(text_model\.)?embeddings\.position_ids$|^text_projection(\.weight)?$|^logit_scale$",
    remedy="get the complete file of this model",
)  # fmt: skip
NETWORKS = (UNET, AUTOENCODER, TEXT_ENCODER)


# ---------------------------------------------------------------------------------------------------------------------
# Loading.


def published_name(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def locate(network: Network, file: Tensors, names: list[str]) -> dict[str, str]:
    """This project's names of a network's tensors → theirs in this file. InputError, unless exactly they are there.

    Under a prefix that is not usual it must be there whole, and once.
    """
    there = file.names()
    spellings = [{name: published_name(name, table) for name in names} for table in network.tables]
    first = {f".{spelling[names[0]]}" for spelling in spellings}
    unusual = {name.removesuffix(end[1:]) for name in there for end in first if name.endswith(end)}
    usual = [_named(prefix, spellings, there) for prefix in network.prefixes]
    others = [_named(prefix, spellings, there) for prefix in sorted(unusual.difference(network.prefixes))]
    prefix, published, missing = min(usual, key=lambda found: len(found[2]))
    whole = [found for found in others if not found[2]]
    if missing and len(whole) == 1:
        prefix, published, missing = whole[0]
    others = {name for name in there.difference(published.values()) if name.startswith(prefix)}
    unexpected = {name for name in others if not re.search(network.extras, name.removeprefix(prefix))}
    if len(missing) == len(names):
        raise InputError(f"{file.path}: there is no {network.name} in it; {network.remedy}")
    if missing:
        raise InputError(
            f"{file.path}: {len(missing)} tensors of its {network.name} are missing: {listed(missing)}; "
            f"{network.remedy}"
        )
    if unexpected:
        raise InputError(f"{file.path}: no SD-1.x {network.name}, it has {len(unexpected)} more: {listed(unexpected)}")
    return published


def _named(prefix: str, spellings: list[dict[str, str]], there: set[str]) -> tuple[str, dict[str, str], set[str]]:
    """The prefix; own names → those in the file, each as one of the spellings has it; which of these are not there."""
    usual_first = sorted(spellings, key=lambda s: -len(there.intersection(prefix + name for name in s.values())))
    published = {}
    for name in spellings[0]:
        ways = [prefix + spelling[name] for spelling in usual_first]
        published[name] = next((way for way in ways if way in there), ways[0])
    return prefix, published, set(published.values()) - there


def listed(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (" …" if len(names) > 3 else "")


class _NoInit(TorchFunctionMode):
    """Modules draw no random numbers to begin with. On the meta device the first `normal_` would import for seconds."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return None if getattr(function, "__module__", "") == nn.init.__name__ else function(*args, **kwargs or {})


def prepare(network: Network, file: Tensors, config: object, ema: bool | None) -> tuple[nn.Module, dict[str, str]]:
    """The network without storage, and where its tensors are: names, shapes and types all fit."""
    if network is UNET:
        prefixes = "model.diffusion_model.", "model_ema.diffusion_model"
        plain, averaged = (any(name.startswith(prefix) for name in file.names()) for prefix in prefixes)
        network = UNET_EMA if ema or (ema is None and averaged and not plain) else UNET
    with torch.device("meta"), _NoInit():
        module = network.build(config)
    shapes = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    published = locate(network, file, list(shapes))
    for name, shape in shapes.items():
        stored = file.header[published[name]]
        # The VAE's attention is published as linear layers, or as the same numbers in 1×1 convolutions.
        convolution = [*shape, 1, 1] if network is AUTOENCODER and ".attn." in name else shape
        if stored["shape"] not in (shape, convolution):
            raise InputError(
                f"{file.path}: {published[name]} has the shape {stored['shape']}, the {network.name} {shape}; "
                "for a model of another size give the folder with its config.json files"
            )
        if stored["dtype"] not in ("F16", "BF16", "F32", "F64"):
            raise InputError(f"{file.path}: {published[name]} has the type {stored['dtype']}; get an fp32 or fp16 file")
    return module, published


def fill(
    module: nn.Module, file: Tensors, published: dict[str, str], device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """The network with its tensors. InputError: one of them holds NaN or infinity, in the file or after the cast."""
    weights = {}
    for name, empty in module.state_dict().items():
        stored = file.tensor(published[name]).reshape(empty.shape)
        if stored.data_ptr() % stored.element_size():  # misaligned in the file: some kernels read that wrongly or fail
            stored = stored.clone()
        place = f"{file.path}: {published[name]}"
        extremes = torch.stack(torch.aminmax(stored))  # rounding keeps the order, so they tell of all numbers
        if not extremes.isfinite().all():
            raise InputError(f"{place} holds NaN or infinity: a merge that failed or a damaged file; get another copy")
        if not extremes.to(dtype).isfinite().all():
            raise InputError(f"{place} has numbers too large for {str(dtype)[6:]}; give --dtype float32 or bfloat16")
        weights[name] = stored.to(device=device, dtype=dtype)
    module.load_state_dict(weights, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def finite(x: Tensor) -> bool:
    """Whether no number in it is NaN or infinite. The extremes tell, in a twentyfifth of the time of torch.isfinite."""
    return bool(torch.stack(torch.aminmax(x)).isfinite().all())


def load_network(
    network: Network, file: Tensors, config: object, device: torch.device, dtype: torch.dtype, ema=None
) -> nn.Module:
    """The network with this file's weights, frozen. Raises InputError unless names and shapes agree.

    ema: take the averaged copies of the UNet's weights (single-file layout); None: only where the plain are missing.
    """
    module, published = prepare(network, file, config, ema)
    return fill(module, file, published, device, dtype)
