"""From words and pictures to pictures by Plug-and-Play, for use from Python.

sd = minipnp.load("weights/bundled")
G = minipnp.guidance_from_picture(sd, picture)
pictures = minipnp.translate(sd, G, ["a flat icon of a cow on a blue background"])
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minipnp.ddim import check_start, guided, sample
from minipnp.errors import InputError
from minipnp.guidance import (
    SOURCE_SCALE,
    Guidance,
    Inversion,
    Progress,
    guidance_from_latent,
    guidance_from_text,
    silent,
)
from minipnp.model import StableDiffusion
from minipnp.options import SEED, Stepped, option, scale_option, whole
from minipnp.pnp import PnP, plug_and_play


@torch.no_grad()
def guidance_from_picture(
    sd: StableDiffusion,
    picture: Tensor,
    edit: Stepped = Stepped(),
    how: Inversion = Inversion(),
    vae_seed: int | None = None,
    progress: Progress = silent,
    keep: PnP | None = None,
) -> Guidance:
    """picture: [1, 3, H, W] in [−1, 1], sides multiples of sd.multiple. vae_seed: encode to a sample, not the mean.

    edit: the settings of the edit to come, or `Stepped` with its steps. keep: the features that an edit with these
    settings reads are kept, and it needs no passes of its own for them; exact or near as `guidance_from_latent` says.
    """
    check_sides(sd, *picture.shape[2:])
    taps = keep.taps() if keep else {}
    x_0 = sd.encode(picture, vae_seed)
    null = sd.embed("")
    return guidance_from_latent(sd.unet, x_0, null, edit, how, progress, taps, sd.keeper(len(taps)))


@torch.no_grad()
def guidance_from_prompt(
    sd: StableDiffusion,
    prompt: str,
    seed: int,
    edit: Stepped = Stepped(),
    scale: float = SOURCE_SCALE,
    both: bool = False,
    height: int | None = None,
    width: int | None = None,
    progress: Progress = silent,
) -> Guidance:
    """A generated guidance picture: no inversion is needed. height, width: pixels, by default sd.size."""
    x_T = start(sd, height or sd.size, width or sd.size, seed, edit)
    return guidance_from_text(sd.unet, x_T, sd.embed(prompt), sd.embed(""), edit, scale, both, progress)


@torch.no_grad()
def translate(
    sd: StableDiffusion,
    G: Guidance,
    prompts: list[str],
    negative: str | None = None,
    settings: PnP | None = None,
    progress: Progress = silent,
) -> Tensor:
    """Plug-and-Play: one picture per prompt → [n, 3, H, W], about [−1, 1].

    settings: by default what the model advises, in the guidance's steps.
    """
    if settings is None:
        settings = sd.advised(PnP, steps=G.made_for.steps, timesteps=G.made_for.spacing)
    steps = translation(sd, G, prompts, negative, settings)
    *_, (_, x_0) = progress(steps, settings.steps, "translation")
    return sd.decode(x_0)


def translation(
    sd: StableDiffusion, G: Guidance, prompts: Sequence[str], negative: str | None, settings: PnP
) -> Iterator[tuple[int, Tensor]]:
    """The steps of Plug-and-Play for prompts: yields (level, latents [n, 4, h, w]) after each."""
    texts = list(sd.embed(*prompts).split(1))
    against = None if negative is None else sd.embed(negative)
    return plug_and_play(sd.unet, G, texts, sd.embed(""), against, settings, random_start(sd, G, settings))


def random_start(sd: StableDiffusion, G: Guidance, settings: PnP) -> Tensor | None:
    """The noise that an edit starts from in the place of the guidance's x_T; None: it starts from that."""
    if settings.random_start is None:
        return None
    check_start(settings.levels)
    return sd.noise(*G.x_T.shape[2:], settings.random_start)


@torch.no_grad()
def reconstruct(sd: StableDiffusion, G: Guidance, progress: Progress = silent) -> Tensor:
    """The guidance sampled again from its x_T, unguided: what the inversion lost shows in it. [1, 3, H, W]."""
    levels = sorted(G.latents, reverse=True)
    steps = sample(lambda x, t: sd.unet(x, t, G.texts[:1]), G.x_T, levels)
    *_, (_, x_0) = progress(steps, len(levels), "reconstruction")
    return sd.decode(x_0)


@dataclass(frozen=True)
class Sampling(Stepped):
    """How a picture is drawn from text alone."""

    scale: float = scale_option(7.5)
    seed: int = option(0, "seed of the noise", SEED)
    width: int | None = option(None, "width in pixels (default: the model's own)", whole(1))
    height: int | None = option(None, "height in pixels (default: the model's own)", whole(1))


@torch.no_grad()
def draw(
    sd: StableDiffusion,
    prompt: str,
    settings: Sampling | None = None,
    negative: str | None = None,
    progress: Progress = silent,
) -> Tensor:
    """A picture from text alone: [1, 3, H, W], about [−1, 1]. settings: by default what the model advises."""
    s = settings or sd.advised(Sampling)
    x_T = start(sd, s.height or sd.size, s.width or sd.size, s.seed, s)
    text = sd.embed(prompt)
    null = sd.embed(negative or "")
    denoising = sample(lambda x, t: guided(sd.unet, x, t, text, null, s.scale), x_T, s.levels)
    *_, (_, x_0) = progress(denoising, s.steps, "sampling")
    return sd.decode(x_0)


def start(sd: StableDiffusion, height: int, width: int, seed: int, edit: Stepped) -> Tensor:
    """x_T ~ N(0, 1) for a picture of this size in pixels, to be sampled in these steps."""
    check_sides(sd, height, width)
    check_start(edit.levels)
    return sd.noise(height // sd.vae.config.factor, width // sd.vae.config.factor, seed)


SUITS = 1.5  # times the short side that a model was trained on, or one part of it: sizes that it draws well enough


def check_sides(sd: StableDiffusion, height: int, width: int) -> None:
    if height < 1 or width < 1 or height % sd.multiple or width % sd.multiple:
        raise InputError(f"{width} × {height} pixels: both sides must be multiples of {sd.multiple}")
    short = min(height, width)
    if not sd.size / SUITS <= short <= sd.size * SUITS:
        warnings.warn(f"the model was trained on {sd.size} pixels and draws badly on {short}", stacklevel=2)
