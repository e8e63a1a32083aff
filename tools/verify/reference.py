"""The three networks as published: diffusers' UNet and VAE, transformers' text encoder. minipnp itself never sees them.

`like` gives the counterpart of one of our networks, with its weights; `load` one of a model's, read from its files by
the published loaders. The `compare_…` say how each network is called on both sides.
"""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minipnp.errors import InputError
from minipnp.model import Source
from minipnp.text import TextEncoder
from minipnp.unet import UNet
from minipnp.vae import VAE
from minipnp.weights import TEXT, UNET_COMPONENT, VAE_COMPONENT, Rules, published_name
from tools.verify.compare import Comparison, compare

try:
    import diffusers
    import transformers
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from safetensors.torch import load_file
    from transformers import CLIPTextConfig, CLIPTextModel
except ImportError as error:
    raise InputError(f"the reference is not installed ({error.name}): pip install -e '.[test]'") from None
diffusers.utils.logging.set_verbosity_error()
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


class Published(NamedTuple):
    """A published network: the table of its names, how it is built, and our configuration in its config.json's terms.

    What the last leaves out has the library's own default: every eps, padding and activation, the order of sines.
    """

    rules: Rules
    build: Callable[[dict], nn.Module]
    settings: Callable[..., dict]


PUBLISHED = {
    UNet: Published(
        UNET_COMPONENT,
        UNet2DConditionModel.from_config,
        lambda c: dict(
            in_channels=c.in_channels, block_out_channels=c.channels, attention_head_dim=c.heads,
            norm_num_groups=c.groups, cross_attention_dim=c.context, sample_size=c.size,
        ),
    ),
    VAE: Published(
        VAE_COMPONENT,
        AutoencoderKL.from_config,
        lambda c: dict(
            block_out_channels=c.channels, layers_per_block=c.blocks, norm_num_groups=c.groups,
            latent_channels=c.latent_channels, scaling_factor=c.scale,
            down_block_types=["DownEncoderBlock2D"] * len(c.channels),
            up_block_types=["UpDecoderBlock2D"] * len(c.channels),
        ),
    ),
    TextEncoder: Published(
        TEXT,
        lambda settings: CLIPTextModel(CLIPTextConfig.from_dict(settings)),
        lambda c: dict(
            hidden_size=c.width, num_hidden_layers=c.layers, num_attention_heads=c.heads, intermediate_size=c.mlp,
            vocab_size=c.vocabulary, max_position_embeddings=c.positions,
        ),
    ),
}  # fmt: skip


SCHEDULE = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def like(ours: nn.Module, settings: dict | None = None) -> nn.Module:
    """The published network with the weights of ours; the two share their memory.

    settings: of its config.json. By default those that our own configuration says.
    """
    rules, build, own = PUBLISHED[type(ours)]
    with torch.device("meta"):
        theirs = build(settings or own(ours.config))
    return filled(theirs, {published_name(name, rules): tensor for name, tensor in ours.state_dict().items()})


def filled(theirs: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """A network built on the meta device, with these weights: all that it has and no others."""
    theirs.load_state_dict(weights, strict=True, assign=True)
    for name, buffer in list(theirs.named_buffers()):  # no weights, hence still without values
        owner, _, last = name.rpartition(".")
        assert last == "position_ids", f"{name} has no value"
        theirs.get_submodule(owner).position_ids = torch.arange(buffer.shape[-1])[None]
    return theirs.eval().requires_grad_(False)


def load(ours: type[nn.Module], source: Source) -> nn.Module:
    """A model's published network in float32, read by the published loader: minipnp's tables of names have no part."""
    folder = {UNet: "unet", VAE: "vae", TextEncoder: "text_encoder"}[ours]
    file, settings = source.files[folder], PUBLISHED[ours].settings(source.configs[folder])
    single_file = source.files["unet"] == source.files["text_encoder"]
    if not single_file and not (file.parent / "config.json").exists():
        raise InputError(f"{file.parent}: there is no config.json, which the published loader needs; put it there")
    try:
        theirs = _from_single_file(ours, file, settings) if single_file else _from_folder(ours, file)
    except (OSError, ValueError, LookupError, RuntimeError) as error:
        raise InputError(f"{file}: the published loader cannot read it ({str(error).splitlines()[0]})") from None
    return theirs.float().eval().requires_grad_(False)


def _from_folder(ours: type[nn.Module], file: Path) -> nn.Module:
    build = {UNet: UNet2DConditionModel, VAE: AutoencoderKL, TextEncoder: CLIPTextModel}[ours]
    variant = "fp16" if file.name.endswith(".fp16.safetensors") else None
    return build.from_pretrained(file.parent, variant=variant, use_safetensors=True, local_files_only=True)


def _from_single_file(ours: type[nn.Module], file: Path, settings: dict) -> nn.Module:
    with torch.device("meta"):
        theirs = PUBLISHED[ours].build(settings)
    if ours is TextEncoder:  # transformers does not read single files; its names stand there behind a prefix
        names = re.compile(r"cond_stage_model\.transformer\.(?:text_model\.)?(?!.*position_ids$)(.+)")
        return filled(theirs, {found[1]: w for name, w in load_file(file).items() if (found := names.match(name))})
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_config(folder)
        return type(theirs).from_single_file(str(file), config=folder, torch_dtype=torch.float32)


def compare_unet(ours: UNet, theirs: nn.Module, x: Tensor, t: Tensor, context: Tensor) -> Comparison:
    """x: [B, 4, H, W], t: [1 or B], context: [B, 77, width]. Both end with ε, also where the network predicts v."""

    def reference(net: nn.Module) -> Tensor:
        out = net(x, t, encoder_hidden_states=context).sample
        if ours.config.prediction == "v":
            a = SCHEDULE.alphas_cumprod.to(x.device)[t].reshape(-1, 1, 1, 1)
            out = a**0.5 * out + (1 - a) ** 0.5 * x  # as DDIMScheduler.step does it
        return out

    return compare(ours, theirs, UNET_COMPONENT, lambda net: net(x, t, context), reference)


def compare_encode(ours: VAE, theirs: nn.Module, picture: Tensor) -> Comparison:
    """picture: [B, 3, H, W]. Both end with the scaled mean of the posterior."""

    def reference(net: nn.Module) -> Tensor:
        return net.encode(picture).latent_dist.mean * net.config.scaling_factor

    return compare(ours, theirs, VAE_COMPONENT, lambda net: net.encode(picture), reference)


def compare_decode(ours: VAE, theirs: nn.Module, z: Tensor) -> Comparison:
    """z: scaled latent [B, 4, h, w]."""

    def reference(net: nn.Module) -> Tensor:
        return net.decode(z / net.config.scaling_factor).sample

    return compare(ours, theirs, VAE_COMPONENT, lambda net: net.decode(z), reference)


def compare_text(ours: TextEncoder, theirs: nn.Module, ids: Tensor) -> Comparison:
    """ids: [B, 77]."""
    return compare(ours, theirs, TEXT, lambda net: net(ids), lambda net: net(ids).last_hidden_state)
