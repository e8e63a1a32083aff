"""From a path to a ready model: what lies on the disk, recognised or refused by name, in one line.

Whatever is not exactly a model of Stable Diffusion 1.x ends here: a file of another kind, another model, a part that is
missing or damaged, settings that do not fit. The tensors' names are in weights.py.
"""

import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from minipnp.config import TextConfig
from minipnp.errors import InputError
from minipnp.files.added_words import read_added_words
from minipnp.files.configs import read_config, read_prediction
from minipnp.files.known_words import advice_of
from minipnp.files.tensors import TensorFile, _readable, is_safetensors
from minipnp.machine.low_memory import LowMemory, Roomy
from minipnp.machine.speed import check_compiler, compile_blocks, exact_float32, suit
from minipnp.model import Source, StableDiffusion
from minipnp.tokenizer import Tokenizer
from minipnp.weights import AUTOENCODER, NETWORKS, TEXT_ENCODER, Network, fill, listed, prepare


def load(
    path: Path | str,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    vae: Path | str | None = None,
    prediction: str | None = None,
    ema: bool | None = None,
    low_memory: bool = False,
    compile: bool = False,
) -> StableDiffusion:
    """A model from a single file, or a folder in component layout (`unet/ vae/ text_encoder/`).

    device: see `pick_device`. dtype: float32, float16 or bfloat16; default float16 on CUDA, else float32. On CUDA,
    float32 switches TF32 off in this process, see `speed.exact_float32`. vae: a file or folder to take the VAE from.
    prediction: "epsilon" or "v", if the model's files do not say. ema: see `weights.load_network`. low_memory: see
    `low_memory.LowMemory`. compile: see `speed.compile_blocks`. Raises InputError for what cannot be loaded exactly.
    """
    device = pick_device(device)
    dtype = pick_dtype(dtype, device)
    if compile:
        check_compiler(device)
    if dtype == torch.float32:
        exact_float32(device)
    if prediction not in (None, "epsilon", "v"):
        raise InputError(f"prediction type {prediction!r}: give 'epsilon' or 'v'")
    source = find_model(Path(path), Path(vae) if vae else None, prediction, half=dtype == torch.float16)
    elsewhere = torch.device("cpu") if low_memory else device
    unet, autoencoder, text_encoder = load_networks(source, elsewhere, dtype, ema)
    for network in (unet, autoencoder):
        suit(network, device)
    if compile:
        compile_blocks(unet)
    kind = LowMemory if low_memory else Roomy
    tokenizer = Tokenizer(_added_words(Path(path), source))
    return kind(unet, autoencoder, text_encoder, tokenizer, source, device, dtype, advice_of(Path(path)))


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """Default CUDA, else MPS, else the CPU. Of several processes under torchrun, `cuda` gives each a GPU of its own."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device is None:
        device = next(name for name, usable in there.items() if usable)
    try:
        device = torch.device(device)
    except RuntimeError:
        raise InputError(f"device {device!r}: give cpu, cuda, cuda:N or mps") from None
    if not there.get(device.type) or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        usable = ", ".join(name for name, usable in there.items() if usable)
        raise InputError(f"device {str(device)!r} is not usable here; there is: {usable}")
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:  # set by torchrun
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    return device


def pick_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    if isinstance(dtype, str) and dtype not in known:
        raise InputError(f"dtype {dtype!r}: give {', '.join(known)}")
    return known.get(dtype, dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Models.

# What a single file may hold besides without a warning: whole networks that are not asked for, averages of the UNet,
# the schedule (recomputed here, see ddim.py), the text encoder's extras.
_BESIDE = re.compile(
    r"(model\.diffusion_model|model_ema|first_stage_model|vae)\."
    r"|(betas|\w*alphas_cumprod\w*|posterior_\w+|logvar|lvlb_weights|v_pred)$"
    r"|cond_stage_model\.(.+\.)?(position_ids|text_projection(\.weight)?|logit_scale)$"
)


def load_networks(
    source: Source, device: torch.device, dtype: torch.dtype, ema: bool | None = None
) -> Iterator[nn.Module]:
    """UNet, VAE and text encoder, in this order. Whatever does not fit is known before the first tensor is read."""
    opened = {path: TensorFile(path) for path in set(source.files.values())}
    plan = []
    for network in NETWORKS:
        file = opened[source.files[network.folder]]
        plan.append((file, *prepare(network, file, source.configs[network.folder], ema)))
    # A single file may hold more than the networks; the file of one component has been found to hold just that.
    file = plan[0][0]
    used = {name for _, _, published in plan for name in published.values()}
    if unknown := {name for name in file.names() - used if not _BESIDE.match(name)}:
        warnings.warn(f"{file.path}: {len(unknown)} unknown tensors, not used: {listed(unknown)}", stacklevel=2)
    for file, module, published in plan:
        yield fill(module, file, published, device, dtype)


@_readable()
def find_model(path: Path, vae: Path | None = None, prediction: str | None = None, half: bool = False) -> Source:
    """A single file, or a folder in component layout. half: where the folder has fp16 files too, take those."""
    if not there(path):
        raise InputError(f"{path}: no such file or folder")
    files = {
        network.folder: path if path.is_file() else _component(path, network, half)
        for network in NETWORKS
        if not (network is AUTOENCODER and vae)
    }
    if vae is not None:
        files["vae"] = _component(vae, replace(AUTOENCODER, folder="."), half) if there(vae) and vae.is_dir() else vae
    for file in files.values():
        _refuse_part(file)
    opened = {file: TensorFile(file) for file in set(files.values())}  # before the configs: these name what is foreign

    configs = {network.folder: _config(path / network.folder, network) for network in NETWORKS}
    unet, own_vae, text = configs.values()
    if text.width != unet.context:
        raise InputError(f"{path}: its text encoder is {text.width} wide, but its UNet reads {unet.context}")
    if vae is not None:
        configs["vae"] = given = _config(files["vae"].parent, AUTOENCODER)
        if (given.scale, given.factor) != (own_vae.scale, own_vae.factor):
            raise InputError(
                f"{vae}: a VAE for another kind of model: its latents have 1/{given.factor} of the size and the scale "
                f"{given.scale}, those of this model 1/{own_vae.factor} and {own_vae.scale}"
            )
    stated = _stated_prediction(path, opened[files["unet"]])
    configs["unet"] = replace(unet, prediction=prediction or stated)
    return Source(files, configs)


def _component(path: Path, network: Network, half: bool) -> Path:
    """The file of one network in a folder: by its usual name, else the only one that there is."""
    folder = path / network.folder
    plain = folder / f"{network.file}.safetensors"
    fp16 = folder / f"{network.file}.fp16.safetensors"
    for file in (fp16, plain) if half else (plain, fp16):
        if there(file):
            return file
    pickles = sorted(folder.glob("*.bin"))
    found = sorted(folder.glob("*.safetensors")) or [file for file in pickles if is_safetensors(file)]
    for file in found:
        _refuse_part(file)
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise InputError(f"{path}: which of these is the {network.name}? {names}: call the one to take {plain.name}")
    if found and there(found[0]):
        return found[0]
    if pickles:
        raise InputError(f"{path}: the {network.name} is there only as a pickle, {pickles[0].name}; get {plain.name}")
    single = [f"; or give {file}" for file in sorted(path.glob("*.safetensors"))[:1]]
    raise InputError(f"{path}: the {network.name} is missing: no {plain}{''.join(single)}")


def there(path: Path) -> bool:
    """Whether something is there. InputError: a link that leads nowhere, as in a hub's cache of which parts are gone.

    What passed such a link over would take the defaults in place of a model's own settings.
    """
    if path.is_symlink() and not path.exists():
        raise InputError(
            f"{path}: a link to {os.readlink(path)}, which is not there; remove the link and fetch the file again"
        )
    return path.exists()


def _refuse_part(file: Path) -> None:
    if found := re.search(r"-\d{5}-of-(\d{5})\.safetensors$", file.name):
        raise InputError(
            f"{file}: one of {int(found[1])} parts (shards); save each network as one file: "
            "pipeline.save_pretrained(FOLDER, max_shard_size='20GB') in diffusers"
        )


def _config(folder: Path, network: Network) -> object:
    file = folder / "config.json"
    return read_config(network.config, file) if there(file) else network.config()


def _added_words(path: Path, source: Source) -> set[str]:
    """Words that have tokens beyond CLIP's in this model."""
    more = source.configs[TEXT_ENCODER.folder].vocabulary - TextConfig.vocabulary
    words = read_added_words(path / "tokenizer") if more else set()
    if more and not words:
        warnings.warn(
            f"{path}: its text encoder has {more} tokens more than CLIP, for words that no file in its tokenizer/ "
            "names: in a prompt they would be read as others",
            stacklevel=3,
        )
    return words


def _stated_prediction(path: Path, file: TensorFile) -> str:
    """What a model's files say of its prediction type, in one of four places; epsilon, where they say nothing."""
    scheduler = path / "scheduler" / "scheduler_config.json"
    sidecar = path.parent / f"{path.stem}.yaml"
    if there(scheduler):
        return read_prediction(scheduler)
    kind = "v" if "v_pred" in file.names() or file.metadata.get("modelspec.prediction_type") == "v" else "eps"
    if path.is_file() and there(sidecar):
        said = re.search(r"^\s*parameterization\s*:\s*[\"']?(\w+)", sidecar.read_text(errors="replace"), re.MULTILINE)
        kind = said[1] if said else kind
    if kind not in ("eps", "v"):
        raise InputError(f"{sidecar}: parameterization {kind}; minipnp knows eps and v")
    return {"eps": "epsilon", "v": "v"}[kind]
