"""The two simplest methods, SDEdit and DDIM + word swap, on the bundled model: what they keep, and when."""

from pathlib import Path

import pytest
import torch
from conftest import relative

import minipnp
from minipnp.ddim import ALPHA_BAR, guided, noise, pairs, step, timesteps
from minipnp.errors import InputError
from minipnp.files.images import fit, read_image, to_tensor
from minipnp.guidance import Inversion, guidance_from_latent
from minipnp.methods.align import word_swap
from minipnp.methods.ddim_swap import DDIMSwap, ddim_swap
from minipnp.methods.masactrl import MasaCtrl, masactrl
from minipnp.methods.masked_pnp import masked_plug_and_play
from minipnp.methods.p2p import P2P, WordEdit, prompt_to_prompt
from minipnp.methods.pix2pix_zero import Pix2PixZero, pix2pix_zero
from minipnp.methods.sdedit import STRENGTHS, SDEdit, sdedit
from minipnp.methods.skip_inject import SkipInject, skip_inject
from minipnp.options import Stepped
from minipnp.pnp import PnP, plug_and_play
from minipnp.see.injection import fig_5, injections

WEIGHTS = Path(__file__).parents[2] / "weights/bundled"
SOURCE, TARGET = "a noto icon of a horse on a yellow background", "a noto icon of a cow on a blue background"
STEPS = 10


@pytest.fixture(scope="module")
def sd():
    return minipnp.load(WEIGHTS, device="cpu")


@pytest.fixture(scope="module")
def x_0(sd):
    return sd.encode(to_tensor(fit(read_image(WEIGHTS / "examples/horse-noto.png"), sd.size, sd.multiple)))


def last(steps):
    *_, (t, x) = steps
    assert t == 0
    return x


def psnr(sd, x, x_0) -> float:
    """dB between the pictures of two latents; against x_0 that is the VAE's round trip of the source."""
    return -10 * ((sd.decode(x).clamp(-1, 1) - sd.decode(x_0).clamp(-1, 1)) / 2).square().mean().log10().item()


# ---- SDEdit ----


def edited(sd, x_0, strength, **changes):
    z, s = sd.noise(32, 32, seed=0), SDEdit(**{**dict(steps=STEPS, strength=strength), **changes})
    return last(sdedit(sd.unet, x_0, z, sd.embed(TARGET), sd.embed(""), s))


def test_more_noise_keeps_less(sd, x_0):
    kept = [psnr(sd, edited(sd, x_0, strength), x_0) for strength in (0.1, *STRENGTHS, 1)]
    assert all(less > more + 0.4 for less, more in zip(kept, kept[1:], strict=False)), kept  # measured: by 0.7 and more
    assert kept[0] > 35 and kept[-1] < 15


def test_sdedit_by_hand(sd, x_0):
    """x_t = √ᾱ_t·x_0 + √(1−ᾱ_t)·z at the first of the last n·s levels, then guided DDIM."""
    z, text, null = sd.noise(32, 32, seed=1), sd.embed(TARGET), sd.embed("")
    levels = [401, 301, 201, 101, 1]
    x = ALPHA_BAR[401] ** 0.5 * x_0 + (1 - ALPHA_BAR[401]) ** 0.5 * z
    got = list(sdedit(sd.unet, x_0, z, text, null, SDEdit(steps=10, strength=0.5)))
    with torch.no_grad():
        for (t, t_prev), (level, x_prev) in zip(pairs(levels), got, strict=True):
            x = step(x, guided(sd.unet, x, t, text, null, 7.5), t, t_prev)
            assert level == t_prev and relative(x_prev, x) <= 1e-4


def test_full_strength_begins_at_the_noisiest_level(sd, x_0):
    """Even then with what is left of the picture: x_981 is not the noise alone."""
    z, text = sd.noise(32, 32, seed=2), sd.embed(TARGET)
    s = SDEdit(steps=3, strength=1, scale=1.0)
    (t_prev, x), *_ = sdedit(sd.unet, x_0, z, text, sd.embed(""), s)
    with torch.no_grad():
        t = timesteps(3)[0]
        x_t = noise(x_0, z, t)
        assert t_prev == timesteps(3)[1] and relative(x, step(x_t, sd.unet(x_t, t, text), t, t_prev)) <= 1e-5


def test_steps_are_not_lost_to_rounding():
    assert len(SDEdit(steps=50, strength=0.58).sampled) == 29  # 50 · 0.58 is 28.999… in floating point
    assert len(SDEdit(steps=10, strength=0.25).sampled) == 2


@pytest.mark.parametrize("wrong", [dict(strength=-0.1), dict(strength=0), dict(strength=0.01), dict(strength=1.1),
                                   dict(strength=float("nan")), dict(steps=0),
                                   dict(scale=float("inf"))])  # fmt: skip
def test_sdedit_settings_that_mean_nothing(wrong):
    with pytest.raises(InputError):
        SDEdit(**wrong)


# ---- DDIM + word swap ----


@pytest.fixture(scope="module")
def G(sd, x_0):
    with torch.no_grad():
        return guidance_from_latent(
            sd.unet, x_0, sd.embed(SOURCE), Stepped(STEPS), Inversion(steps=STEPS, at="next", iterations=0)
        )


def swapped(sd, G, prompt, scale):
    return last(ddim_swap(sd.unet, G, sd.embed(prompt), sd.embed(""), DDIMSwap(STEPS, scale)))


def test_the_same_prompt_gives_the_picture_back(sd, x_0, G):
    """At guidance 1: 26 dB to the round trip in 10 steps. Guidance or another prompt leads away from it."""
    same = psnr(sd, swapped(sd, G, SOURCE, 1.0), x_0)
    assert same > 25
    assert same > psnr(sd, swapped(sd, G, TARGET, 1.0), x_0) + 3
    assert same > psnr(sd, swapped(sd, G, SOURCE, 5.0), x_0) + 6


def test_the_sampling_is_guided_by_the_edited_prompt(sd, G):
    text, null, x = sd.embed(TARGET), sd.embed(""), G.x_T
    with torch.no_grad():
        for t, t_prev in pairs(timesteps(STEPS)):
            x = step(x, 5 * sd.unet(x, t, text) - 4 * sd.unet(x, t, null), t, t_prev)
    assert DDIMSwap().scale == 5.0
    assert relative(swapped(sd, G, TARGET, 5.0), x) <= 1e-3  # the guidance enlarges rounding: measured 2e-6


@pytest.mark.parametrize("steps", [2 * STEPS, STEPS // 2])  # the latter's levels are all there, but x_T is of another
def test_a_guidance_for_another_number_of_steps(sd, G, steps):
    text, null, same = sd.embed(TARGET), sd.embed(""), WordEdit(word_swap(sd.tokenizer, SOURCE, SOURCE))
    for run in (
        lambda: ddim_swap(sd.unet, G, text, null, DDIMSwap(steps)),
        lambda: plug_and_play(sd.unet, G, [text], null, s=PnP(steps)),
        lambda: masked_plug_and_play(sd.unet, G, text, null, torch.ones_like(G.x_T[:, :1]), s=PnP(steps)),
        lambda: masactrl(sd.unet, G, text, null, s=MasaCtrl(steps, start_step=1)),
        lambda: prompt_to_prompt(sd.unet, G, text, text, null, same, P2P(steps)),
        lambda: pix2pix_zero(sd.unet, G, torch.zeros_like(text), null, Pix2PixZero(steps)),
        lambda: skip_inject(sd.unet, G, text, null, SkipInject(steps)),
        lambda: injections(sd.unet, G, text, null, None, PnP(steps), G.x_T, fig_5(PnP(steps))),
    ):
        with pytest.raises(InputError, match=f"made for an edit in {STEPS} steps, not in {steps}"):
            next(run())


@pytest.mark.parametrize("wrong", [dict(steps=1000), dict(scale=float("nan"))])
def test_ddim_swap_settings_that_mean_nothing(wrong):
    with pytest.raises(InputError):
        DDIMSwap(**wrong)
