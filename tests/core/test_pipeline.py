"""The Python API beside the same thing put together from the core: the same operations, so the same bits."""

from pathlib import Path

import pytest
import torch

import minipnp
from minipnp.ddim import guided, sample, timesteps
from minipnp.errors import InputError
from minipnp.files.images import fit, read_image, to_tensor
from minipnp.guidance import Inversion, guidance_from_latent, guidance_from_text
from minipnp.options import Stepped
from minipnp.pipeline import Sampling
from minipnp.pnp import PnP, plug_and_play

BUNDLED = Path(__file__).resolve().parents[2] / "weights/bundled"
PROMPT, NEGATIVE = "a glossy icon of a cow on a teal background", "a flat icon of a dog on a red background"
STEPS = 2
HOW = Inversion(at="current", iterations=0)


@pytest.fixture(scope="module")
def sd():
    return minipnp.load(BUNDLED, device="cpu")


@pytest.fixture(scope="module")
def picture(sd):
    return to_tensor(fit(read_image(BUNDLED / "examples/horse-noto.png"), sd.size, sd.multiple))


@pytest.fixture(scope="module")
def G(sd, picture):
    return minipnp.guidance_from_picture(sd, picture, Stepped(STEPS), HOW)


def last(steps):
    *_, (_, x) = steps
    return x


def test_draw_is_guided_sampling(sd):
    got = minipnp.draw(sd, PROMPT, Sampling(seed=3, steps=STEPS, scale=4.0, height=64, width=128), NEGATIVE)
    text, against, x_T = sd.embed(PROMPT), sd.embed(NEGATIVE), sd.noise(16, 32, 3)
    with torch.no_grad():
        steps = sample(lambda x, t: guided(sd.unet, x, t, text, against, 4.0), x_T, timesteps(STEPS))
        assert torch.equal(got, sd.decode(last(steps)))
    assert got.shape == (1, 3, 64, 128)


@pytest.mark.parametrize("seed", [None, 3])
def test_the_guidance_of_a_picture_is_its_latent_inverted(sd, picture, seed):
    got = minipnp.guidance_from_picture(sd, picture, Stepped(STEPS), HOW, vae_seed=seed)
    with torch.no_grad():
        x_0 = sd.vae.encode(picture, None if seed is None else sd.noise(32, 32, seed))
        expected = guidance_from_latent(sd.unet, x_0, sd.embed(""), Stepped(STEPS), HOW)
    assert torch.equal(got.x_0, x_0) and torch.equal(got.x_T, expected.x_T)
    assert torch.equal(got.texts, sd.embed("")) and sorted(got.latents) == timesteps(STEPS)[::-1]


@pytest.mark.parametrize("both", [False, True])
def test_the_guidance_of_a_text_is_sampled_under_it(sd, both):
    got = minipnp.guidance_from_prompt(sd, PROMPT, 3, Stepped(STEPS), 2.0, both, height=64, width=128)
    text, null = sd.embed(PROMPT), sd.embed("")
    with torch.no_grad():
        expected = guidance_from_text(sd.unet, sd.noise(16, 32, 3), text, null, Stepped(STEPS), 2.0, both)
    assert torch.equal(got.x_0, expected.x_0) and got.latents.keys() == expected.latents.keys()
    assert torch.equal(got.texts, torch.cat([null, text]) if both else text)


@pytest.mark.parametrize("negative, seed", [(None, None), (NEGATIVE, None), (NEGATIVE, 9)])
def test_translate_is_plug_and_play(sd, G, negative, seed):
    s = PnP(steps=STEPS, scale=3.0, random_start=seed)
    got = minipnp.translate(sd, G, [PROMPT, "a cat"], negative, s)
    texts, against = [sd.embed(PROMPT), sd.embed("a cat")], None if negative is None else sd.embed(negative)
    x_T = None if seed is None else sd.noise(32, 32, seed)
    with torch.no_grad():
        expected = sd.decode(last(plug_and_play(sd.unet, G, texts, sd.embed(""), against, s, x_T)))
    assert got.shape == (2, 3, 128, 128) and torch.equal(got, expected)


def test_reconstruct_is_sampling_from_where_the_inversion_ended(sd, G):
    text = sd.embed("")
    with torch.no_grad():
        expected = sd.decode(last(sample(lambda x, t: sd.unet(x, t, text), G.x_T, timesteps(STEPS))))
    assert torch.equal(minipnp.reconstruct(sd, G), expected)


def test_sizes_and_steps_that_cannot_be_are_refused(sd, picture, G):
    with pytest.raises(InputError, match="multiples of 32"):
        minipnp.draw(sd, PROMPT, Sampling(height=72, steps=STEPS))
    with pytest.raises(InputError, match="multiples of 32"):
        minipnp.guidance_from_picture(sd, picture[..., :40], Stepped(STEPS))
    with pytest.raises(InputError, match="600 steps begin at t = 600"):
        minipnp.draw(sd, PROMPT, Sampling(steps=600))
    with pytest.raises(InputError, match="600 steps begin at t = 600"):
        minipnp.translate(sd, G, [PROMPT], settings=PnP(steps=600, random_start=1))
    with pytest.raises(InputError, match="made for an edit in 2 steps"):
        minipnp.translate(sd, G, [PROMPT], settings=PnP(steps=3))
