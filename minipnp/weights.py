"""Published weights → the three networks. All names of files and tensors are here.

Loading is strict: every tensor of a network is in the file with its exact shape, and the file has no other of that
network, but for the exceptions named below. The networks are built without storage (on the meta device) and take their
tensors from the memory-mapped file: those of the wanted dtype without a copy, the others one by one.
"""

import json
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from minipnp.config import TextConfig, UNetConfig, VAEConfig, read_prediction
from minipnp.errors import InputError
from minipnp.text import TextEncoder
from minipnp.unet import UNet
from minipnp.vae import VAE

# ---------------------------------------------------------------------------------------------------------------------
# Names. A layout is a table of substitutions from this project's names to published ones, applied in order.

Rules = list[tuple[str, str | Callable[[re.Match], str]]]

_TRANSFORMER: Rules = [  # the same in both layouts
    (r"transformer\.(norm[123]|self_attn|cross_attn|ff)\.", r"transformer.transformer_blocks.0.\1."),
    (r"\.self_attn\.", ".attn1."),
    (r"\.cross_attn\.", ".attn2."),
    (r"\.(attn[12])\.([qkv])\.", r".\1.to_\2."),
    (r"\.(attn[12])\.out\.", r".\1.to_out.0."),
    (r"\.ff\.proj\.", ".ff.net.0.proj."),
    (r"\.ff\.out\.", ".ff.net.2."),
]

UNET_SINGLE_FILE: Rules = [
    (r"\.(res2?)\.norm1\.", r".\1.in_layers.0."),
    (r"\.(res2?)\.conv1\.", r".\1.in_layers.2."),
    (r"\.(res2?)\.time\.", r".\1.emb_layers.1."),
    (r"\.(res2?)\.norm2\.", r".\1.out_layers.0."),
    (r"\.(res2?)\.conv2\.", r".\1.out_layers.3."),
    (r"\.(res2?)\.skip\.", r".\1.skip_connection."),
    *_TRANSFORMER,
    (r"^time\.fc1\.", "time_embed.0."),
    (r"^time\.fc2\.", "time_embed.2."),
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
    (r"^norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
]


def _down(kind: str) -> Callable[[re.Match], str]:  # encoder rows 1–11 are 4 blocks of 3: two of layers, one downsampler
    return lambda m: f"down_blocks.{(int(m[1]) - 1) // 3}.{kind}.{(int(m[1]) - 1) % 3}."


def _up(kind: str) -> Callable[[re.Match], str]:  # decoder rows 0–11 are 4 blocks of 3
    return lambda m: f"up_blocks.{int(m[1]) // 3}.{kind}.{int(m[1]) % 3}."


UNET_COMPONENT: Rules = [
    (r"\.(res2?)\.time\.", r".\1.time_emb_proj."),
    (r"\.(res2?)\.skip\.", r".\1.conv_shortcut."),
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
]

VAE_SINGLE_FILE: Rules = [
    (r"\.skip\.", ".nin_shortcut."),
    (r"\.mid\.res([12])\.", r".mid.block_\1."),
    (r"\.mid\.attn\.out\.", ".mid.attn_1.proj_out."),
    (r"\.mid\.attn\.", ".mid.attn_1."),
    (r"^encoder\.levels\.(\d)\.down\.", r"encoder.down.\1.downsample.conv."),
    (r"^encoder\.levels\.(\d)\.res\.", r"encoder.down.\1.block."),
    (r"^decoder\.levels\.(\d)\.up\.", lambda m: f"decoder.up.{3 - int(m[1])}.upsample."),  # numbered finest first
    (r"^decoder\.levels\.(\d)\.res\.", lambda m: f"decoder.up.{3 - int(m[1])}.block."),
    (r"^(post_)?quant\.", r"\1quant_conv."),
]

_VAE_COMPONENT: Rules = [
    (r"\.skip\.", ".conv_shortcut."),
    (r"\.mid\.res1\.", ".mid_block.resnets.0."),
    (r"\.mid\.res2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn\.", ".mid_block.attentions.0."),
    (r"^encoder\.levels\.(\d)\.down\.", r"encoder.down_blocks.\1.downsamplers.0.conv."),
    (r"^encoder\.levels\.(\d)\.res\.", r"encoder.down_blocks.\1.resnets."),
    (r"^decoder\.levels\.(\d)\.up\.", r"decoder.up_blocks.\1.upsamplers.0."),
    (r"^decoder\.levels\.(\d)\.res\.", r"decoder.up_blocks.\1.resnets."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"^(post_)?quant\.", r"\1quant_conv."),
]
VAE_COMPONENT: Rules = [*_VAE_COMPONENT, (r"\.0\.([qkv])\.(?=\w+$)", r".0.to_\1."), (r"\.0\.out\.", ".0.to_out.0.")]
VAE_COMPONENT_OLD: Rules = [  # before diffusers 0.17; SD-1.5's own fp32 file
    *_VAE_COMPONENT,
    (r"\.0\.q\.", ".0.query."),
    (r"\.0\.k\.", ".0.key."),
    (r"\.0\.v\.", ".0.value."),
    (r"\.0\.out\.", ".0.proj_attn."),
]

TEXT: Rules = [
    (r"^tokens\.", "embeddings.token_embedding."),
    (r"^positions\.", "embeddings.position_embedding."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"\.attn\.([qkv])\.", r".self_attn.\1_proj."),
    (r"\.attn\.out\.", ".self_attn.out_proj."),
    (r"\.(fc[12])\.", r".mlp.\1."),
    (r"^norm_out\.", "final_layer_norm."),
]


@dataclass(frozen=True)
class Network:
    """One of the three networks: how it is built, where its tensors may stand, what may stand beside them."""

    name: str
    config: type
    build: type[nn.Module]
    folder: str  # in component layout
    file: str
    layouts: tuple[tuple[str, Rules], ...]  # (prefix, table); the one of which most is there is taken
    extras: str  # names after the prefix that carry nothing: recomputed here, or never used for drawing


_NONE = r"(?!)"
UNET = Network(
    "UNet", UNetConfig, UNet, "unet", "diffusion_pytorch_model",
    (("model.diffusion_model.", UNET_SINGLE_FILE), ("", UNET_COMPONENT), ("", UNET_SINGLE_FILE)), _NONE,
)  # fmt: skip
AUTOENCODER = Network(
    "VAE", VAEConfig, VAE, "vae", "diffusion_pytorch_model",
    (("first_stage_model.", VAE_SINGLE_FILE), ("", VAE_COMPONENT), ("", VAE_COMPONENT_OLD), ("", VAE_SINGLE_FILE),
     ("vae.", VAE_SINGLE_FILE)), r"^loss\.|^model_ema\.(decay|num_updates)$",
)  # fmt: skip
TEXT_ENCODER = Network(
    "text encoder", TextConfig, TextEncoder, "text_encoder", "model",
    (("cond_stage_model.transformer.text_model.", TEXT), ("cond_stage_model.transformer.", TEXT),
     ("text_model.", TEXT), ("", TEXT)), r"^(text_model\.)?embeddings\.position_ids$|(^|\.)(text_projection|logit_scale)",
)  # fmt: skip

# Beside the networks a single file holds the schedule (recomputed here, see ddim.py) and averages of the UNet.
_KNOWN_BESIDE = re.compile(
    r"model_ema\.|betas$|\w*alphas_cumprod\w*$|posterior_\w+$|logvar$|ztsnr$|v_pred$|embedding_manager\.|denoiser\.sigmas$"
)


# ---------------------------------------------------------------------------------------------------------------------
# Files.


class TensorFile:
    """A safetensors file: names and shapes at once, tensors when asked for. What it cannot be is said by name."""

    def __init__(self, path: Path):
        self.path, self.header = path, _read_header(path)
        _refuse_unsupported(path, self.header)
        try:
            self._file = safe_open(path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: damaged ({error}); download it again") from None

    def names(self) -> set[str]:
        return set(self.header)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.header[name]["shape"])

    def tensor(self, name: str) -> Tensor:
        """Memory-mapped, read-only; its address may be no multiple of its element size."""
        return self._file.get_tensor(name)


def _read_header(path: Path) -> dict[str, dict]:
    if path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        raise InputError(f"{path}: a pickle, which can run any program when it is read; get the .safetensors of this model")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
            (length,) = struct.unpack("<Q", head[:8].ljust(8, b"\0"))
            header = head[8:] + file.read(max(0, min(length, size) - len(head) + 8))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    for start, kind in {
        b"version https://git-lfs": "a git-lfs pointer, not the weights; run `git lfs pull`, or download the file itself",
        b"<": "a web page saved as weights; download the file itself",
        b"PK\x03\x04": "a pickle under another name; get the .safetensors of this model",
        b"\x80": "a pickle under another name; get the .safetensors of this model",
        b"GGUF": "a GGUF file, which is not supported; get the .safetensors of this model",
    }.items():
        if head.lstrip().startswith(start):
            raise InputError(f"{path}: {kind}")
    if size < 8 or length > size - 8:
        raise InputError(f"{path}: cut short or no safetensors file ({size} bytes); download it again")
    try:
        tensors = {name: entry for name, entry in json.loads(header[:length]).items() if name != "__metadata__"}
        end = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: its header is damaged; download it again") from None
    if size < end:
        raise InputError(f"{path}: cut short ({size} bytes, its header says {end}); download it again")
    return tensors


def _refuse_unsupported(path: Path, header: dict[str, dict]) -> None:
    for pattern, kind in {
        r"lora_(unet|te\d?|up|down)|\.lora_[AB]\.|hada_w1|lokr_w1": "a LoRA, which changes a model but is none",
        r"control_model\.|controlnet_": "a ControlNet",
        r"emb_params$|string_to_param": "a textual inversion",
        r"conditioner\.embedders\.|\.label_emb\.|^label_emb\.|^add_embedding\.": "SDXL",
        r"cond_stage_model\.roberta\.": "AltDiffusion",
        r"joint_blocks\.|double_blocks\.|(^|\.)transformer_blocks\.0\.norm1\.linear": "a transformer (SD 3, Flux …)",
        r"cond_stage_model\.model\.": "Stable Diffusion 2.x",
    }.items():
        if any(re.search(pattern, name) for name in header):
            raise InputError(f"{path}: this is {kind}; minipnp runs Stable Diffusion 1.x only")
    for name, entry in header.items():
        if re.search(r"(input_blocks\.0\.0|^conv_in|^unet\.conv_in)\.weight$", name) and entry["shape"][1:2] in ([8], [9]):
            kind = {8: "an instruction or view model", 9: "an inpainting model"}[entry["shape"][1]]
            raise InputError(f"{path}: this is {kind} ({entry['shape'][1]} input channels); give an ordinary SD-1.x model")
        if name.endswith("attn2.to_k.weight") and entry["shape"][1:] == [1024]:
            raise InputError(f"{path}: this is Stable Diffusion 2.x; minipnp runs Stable Diffusion 1.x only")
        if entry["dtype"] not in ("F32", "F16", "BF16", "F64", "I64", "I32"):
            raise InputError(f"{path}: {name} is stored as {entry['dtype']}; get the fp32, fp16 or bf16 file of this model")


# ---------------------------------------------------------------------------------------------------------------------
# Loading.


def published_name(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def ema_name(name: str) -> str:
    """The name of the averaged copy of a UNet tensor of the single-file layout."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def load_network(
    network: Network, file: TensorFile, config: object, device: torch.device, dtype: torch.dtype, ema: bool | None = None
) -> nn.Module:
    """The network with this file's weights, frozen. Raises InputError unless names and shapes agree.

    ema: take the averaged copies of the UNet's weights (single-file layout); None: only where the plain are missing.
    """
    with torch.device("meta"):
        module = network.build(config)
    expected = {name: tuple(p.shape) for name, p in module.state_dict().items()}
    there = file.names()

    layouts = [(prefix, {name: prefix + published_name(name, rules) for name in expected}) for prefix, rules in network.layouts]
    prefix, published = max(layouts, key=lambda layout: len(there.intersection(layout[1].values())))
    own = {name for name in there if name.startswith(prefix)}
    found = there.intersection(published.values())
    if network is UNET and (ema or (ema is None and not found)):
        published = {name: ema_name(UNET.layouts[0][0] + published_name(name, UNET_SINGLE_FILE)) for name in expected}
        found, own = there.intersection(published.values()), set()
        if ema and not found:
            raise InputError(f"{file.path}: it has no averaged (EMA) weights; leave out --ema")
    if not found:
        raise InputError(f"{file.path}: there is no {network.name} in it")
    if missing := sorted(set(published.values()) - there):
        raise InputError(f"{file.path}: {len(missing)} of {len(expected)} tensors of the {network.name} are missing: {_some(missing)}")
    if prefix:
        unexpected = own - set(published.values())
    else:
        unexpected = there - set(published.values())
    if unexpected := sorted(n for n in unexpected if not re.search(network.extras, n.removeprefix(prefix))):
        raise InputError(f"{file.path}: {len(unexpected)} tensors that the {network.name} does not have: {_some(unexpected)}")

    weights = {}
    for name, shape in expected.items():
        tensor = file.tensor(published[name])
        # The VAE's attention is published as linear layers or as the same numbers in 1×1 convolutions.
        if network is AUTOENCODER and ".attn." in name and tensor.shape == (*shape, 1, 1):
            tensor = tensor.reshape(shape)
        if tensor.shape != shape:
            raise InputError(
                f"{file.path}: {published[name]} has the shape {list(tensor.shape)}, the {network.name} {list(shape)}; "
                "for a model of another size give the folder with its config.json files"
            )
        if tensor.data_ptr() % tensor.element_size():  # misaligned in the file: some kernels would read it wrongly or fail
            tensor = tensor.clone()
        weights[name] = tensor.to(device=device, dtype=dtype)
    module.load_state_dict(weights, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


@dataclass(frozen=True)
class Source:
    """Where a model's three networks come from: a file each (it may be the same one) and their sizes."""

    files: dict[str, Path]  # by the network's folder name
    configs: dict[str, object]


def find(path: Path, vae: Path | None = None, prediction: str | None = None, half: bool = False) -> Source:
    """A single file, or a folder in component layout. half: where the folder has fp16 files too, take those."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    networks = (UNET, AUTOENCODER, TEXT_ENCODER)
    if path.is_file():
        files = {network.folder: path for network in networks}
        configs = {network.folder: network.config() for network in networks}
    else:
        files = {network.folder: _component(path, network, half) for network in networks if not (network is AUTOENCODER and vae)}
        configs = {network.folder: _config(path, network) for network in networks}
    if vae is not None:
        files["vae"] = _component(vae.parent, replace(AUTOENCODER, folder=vae.name), half) if vae.is_dir() else vae
        beside = vae / "config.json" if vae.is_dir() else vae.parent / "config.json"
        configs["vae"] = VAEConfig.read(beside) if vae.is_dir() or beside.exists() else VAEConfig()
    scheduler = path / "scheduler" / "scheduler_config.json"
    sidecar = path.with_suffix(".yaml")
    if prediction is None and scheduler.exists():
        prediction = read_prediction(scheduler)
    if prediction is None and path.is_file() and sidecar.exists():
        v = re.search(r"^\s*parameterization:\s*[\"']?v[\"']?\s*$", sidecar.read_text(errors="replace"), re.MULTILINE)
        prediction = "v" if v else "epsilon"
    configs["unet"] = replace(configs["unet"], prediction=prediction or "epsilon")
    return Source(files, configs)


def _component(path: Path, network: Network, half: bool) -> Path:
    folder = path / network.folder
    plain, fp16 = folder / f"{network.file}.safetensors", folder / f"{network.file}.fp16.safetensors"
    for file in (fp16, plain) if half else (plain, fp16):
        if file.exists():
            return file
    pickles = sorted(folder.glob("*.bin"))
    said = f"only the pickle {pickles[0].name}; get the .safetensors" if pickles else f"no {plain.name} in {folder}"
    raise InputError(f"{path}: the {network.name} is missing: {said}")


def _config(path: Path, network: Network) -> object:
    file = path / network.folder / "config.json"
    return network.config.read(file) if file.exists() else network.config()


def load_networks(
    source: Source, device: torch.device, dtype: torch.dtype, ema: bool | None = None
) -> Iterator[nn.Module]:
    """UNet, VAE and text encoder, in this order."""
    files = {path: TensorFile(path) for path in source.files.values()}
    for path, file in files.items():
        prefixes = tuple(prefix for network in (UNET, AUTOENCODER, TEXT_ENCODER) for prefix, _ in network.layouts[:2] if prefix)
        if list(source.files.values()).count(path) == 3:
            beside = sorted(n for n in file.names() if not n.startswith(prefixes) and not _KNOWN_BESIDE.match(n))
            if beside:
                warnings.warn(f"{path}: {len(beside)} unknown tensors are not used: {_some(beside)}", stacklevel=2)
    for network in (UNET, AUTOENCODER, TEXT_ENCODER):
        file = files[source.files[network.folder]]
        yield load_network(network, file, source.configs[network.folder], device, dtype, ema)
