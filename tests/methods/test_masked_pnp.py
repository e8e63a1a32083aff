"""Plug-and-Play with a foreground mask: by hand on the small random network, and its effect on the bundled model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import relative
from torch.nn import functional as F

import minipnp
from minipnp.ddim import guided, pairs, step, timesteps
from minipnp.errors import InputError
from minipnp.files.images import fit, read_image, to_tensor
from minipnp.guidance import Inversion, guidance_from_latent
from minipnp.methods.maps import layers_at, share
from minipnp.methods.masked_pnp import Mask, Word, masked_plug_and_play, on_its_side
from minipnp.methods.words import positions
from minipnp.options import Stepped
from minipnp.pnp import PnP, plug_and_play
from minipnp.slots import Attn, Features, Tap, decoder

WEIGHTS = Path(__file__).parents[2] / "weights/bundled"
LAYERS = decoder(*range(4, 12))
CLOSE = 1e-4  # as in test_golden.py: a few guided steps enlarge float32 rounding


def last(steps):
    *_, (t, x) = steps
    assert t == 0
    return x


@pytest.fixture
def case(golden_unet, inputs):
    """A guidance of 16 × 24 cells on the random network, 4 steps; a mask of two blocks, one in a corner."""
    with torch.no_grad():
        G = guidance_from_latent(
            golden_unet, inputs["x"], inputs["null"], Stepped(4), Inversion(steps=4, at="current", iterations=0)
        )
    mask = torch.zeros(1, 1, 16, 24)
    mask[..., 4:12, 8:20] = mask[..., :3, :2] = 1.0
    return G, inputs["text"], inputs["null"], mask


# ---- on the random network ----


@pytest.mark.parametrize("negative, alpha", [(False, 0.0), (True, 0.4)])
def test_by_hand_with_a_given_mask(golden_unet, case, negative, alpha):
    G, text, null, mask = case
    negative = text.flip(1) if negative else None
    s = PnP(steps=4, tau_f=0.75, tau_A=0.5, scale=3.0, alpha=alpha)
    got = dict(masked_plug_and_play(golden_unet, G, text, null, mask, negative, s))

    x = G.x_T
    with torch.no_grad():
        for i, (t, t_prev) in enumerate(pairs(timesteps(4))):
            f_layers, A_layers = decoder(4) if i < 3 else (), LAYERS if i < 2 else ()
            _, taken = golden_unet.tap(G.latents[t], t, null, Tap(f=f_layers, q=A_layers, k=A_layers))
            slots = {}
            for layer in LAYERS:
                side = F.interpolate(mask, scale_factor=share(layer)).flatten()
                slots[layer] = replace(taken.A.get(layer, Attn()), mask=side[:, None] == side[None, :])
            put = Features(taken.f, slots)
            e, e_null = golden_unet(x, t, text, put), golden_unet(x, t, null, put)
            if negative is not None:
                e_null = alpha * e_null + (1 - alpha) * golden_unet(x, t, negative, put)
            x = step(x, 3 * e - 2 * e_null, t, t_prev)
            x_G = G.latents.get(t_prev, G.x_0)
            x = x_G + mask * (x - x_G)
            assert relative(got[t_prev], x) <= CLOSE
            assert torch.equal(got[t_prev][mask.expand_as(x) == 0], x_G[mask.expand_as(x) == 0])
    assert relative(got[0], last(plug_and_play(golden_unet, G, [text], null, negative, s))) > 0.1


def test_by_hand_with_a_word(golden_unet, case):
    """The mask after each step: the union of the two foregrounds of the maps summed so far, in which attention stays at
    the next step."""
    G, text, null, _ = case
    source, in_source, in_target, layers = text.flip(1), [2, 3], [5], layers_at(1 / 2)
    s = PnP(steps=4, scale=3.0)
    m = Mask(share=1 / 2, threshold=0.6)
    got = dict(masked_plug_and_play(golden_unet, G, text, null, Word(source, in_source, in_target), None, s, m))

    def foreground(sums):
        sums = (sums - sums.min()) / (sums.max() - sums.min())
        return F.interpolate(sums, scale_factor=2) >= 0.6

    x, sum_G, sum_x, M, masks = G.x_T, 0, 0, None, []
    with torch.no_grad():
        for i, (t, t_prev) in enumerate(pairs(timesteps(4))):
            A_layers = LAYERS if i < 2 else ()
            _, put = golden_unet.tap(G.latents[t], t, null, Tap(decoder(4) if i < 3 else (), A_layers, A_layers))
            if M is not None:
                put = on_its_side(put, M, LAYERS)
            _, source_maps = golden_unet.tap(G.latents[t], t, source, Tap(M=layers))
            e, target_maps = golden_unet.tap(x, t, text, Tap(M=layers), put)
            x = step(x, 3 * e - 2 * golden_unet(x, t, null, put), t, t_prev)
            for layer in layers:
                sum_G = sum_G + source_maps.M[layer].map[..., in_source].sum(-1).mean(1).reshape(1, 1, 8, 12)
                sum_x = sum_x + target_maps.M[layer].map[..., in_target].sum(-1).mean(1).reshape(1, 1, 8, 12)
            M = foreground(sum_G) | foreground(sum_x)
            x = torch.where(M, x, G.latents.get(t_prev, G.x_0))
            masks.append(M)
            assert relative(got[t_prev], x) <= CLOSE
    assert not torch.equal(foreground(sum_G), foreground(sum_x)) and not torch.equal(masks[0], masks[-1])
    assert 0.1 < masks[-1].float().mean() < 0.9


def test_a_mask_of_everything_is_plug_and_play(golden_unet, case):
    G, text, null, mask = case
    plain = last(plug_and_play(golden_unet, G, [text], null, s=PnP(steps=4)))
    everything = last(masked_plug_and_play(golden_unet, G, text, null, torch.ones_like(mask), s=PnP(steps=4)))
    nothing_done = Mask(latents=False, attention=False)
    off = last(masked_plug_and_play(golden_unet, G, text, null, mask, s=PnP(steps=4), m=nothing_done))
    assert relative(everything, plain) <= CLOSE and relative(off, plain) <= CLOSE


def test_attention_stays_on_its_side(golden_unet, case):
    G, text, _, mask = case
    t = timesteps(4)[1]
    with torch.no_grad():
        _, injected = golden_unet.tap(G.latents[t], t, G.texts, Tap(f=decoder(4), q=LAYERS, k=LAYERS))
        put = on_its_side(injected, mask > 0.5, LAYERS)
        _, used = golden_unet.tap(G.x_T, t, text, Tap(A=LAYERS), put)
    assert put.f is injected.f
    assert len({id(put.A[layer].mask) for layer in LAYERS}) == len({share(layer) for layer in LAYERS})  # made once
    for layer in LAYERS:
        inside = F.interpolate(mask, scale_factor=share(layer)).flatten() > 0.5
        across = inside[:, None] != inside[None, :]
        A = used.A[layer].map
        assert across.any() and not A[..., across].any() and torch.allclose(A.sum(-1), torch.ones(()), atol=1e-5)
        assert torch.equal(put.A[layer].q, injected.A[layer].q) and torch.equal(put.A[layer].k, injected.A[layer].k)


def test_guidance_does_not_drop_masks_and_edits(golden_unet, case):
    """Features.rows, which `guided` uses, keeps what is not made of rows."""
    G, text, null, mask = case
    put = on_its_side(Features(), mask > 0.5, LAYERS)
    edit = Features(A={layer: Attn(edit=lambda A: A.roll(1, -1)) for layer in LAYERS})
    with torch.no_grad():
        for slots in (put, edit):
            e, e_null = golden_unet(G.x_T, 501, text, slots), golden_unet(G.x_T, 501, null, slots)
            assert relative(guided(golden_unet, G.x_T, 501, text, null, 2.0, inject=slots), 2 * e - e_null) <= 1e-5
            assert relative(guided(golden_unet, G.x_T, 501, text, null, 2.0), 2 * e - e_null) > 1e-3


# ---- what cannot be used ----


def test_masks_that_cannot_be_used(golden_unet, case):
    G, text, null, mask = case
    for wrong in (mask[0], mask[..., :-1], mask.repeat(2, 1, 1, 1), mask.transpose(2, 3)):
        with pytest.raises(InputError, match=r"give \[1, 1, 16, 24\]"):
            last(masked_plug_and_play(golden_unet, G, text, null, wrong, s=PnP(steps=4)))
    for empty in (mask * 0, mask * 0.4, mask * torch.nan):
        with pytest.raises(InputError, match="the mask is empty"):
            last(masked_plug_and_play(golden_unet, G, text, null, empty, s=PnP(steps=4)))


def test_a_word_that_nothing_attends_to(golden_unet, case):
    G, text, null, _ = case
    for in_source, in_target in (([], [1]), ([1], [])):
        with pytest.raises(InputError, match="another word"):
            last(masked_plug_and_play(golden_unet, G, text, null, Word(null, in_source, in_target), s=PnP(steps=4)))


@pytest.mark.parametrize("wrong", [dict(threshold=0), dict(threshold=2), dict(share=0.3)])
def test_settings_that_mean_nothing(wrong):
    with pytest.raises(InputError):
        Mask(**wrong)


# ---- the effect, on the bundled model ----


@pytest.fixture(scope="module")
def sd():
    return minipnp.load(WEIGHTS, device="cpu")


SOURCE, TARGET = "a noto icon of a guitar on a green background", "a twemoji icon of an umbrella on a green background"


def guitar(sd, width):
    """The example, as wide as is asked, and where it has another colour than in its corner: [1, 1, H, W]."""
    picture = to_tensor(fit(read_image(WEIGHTS / "examples/guitar-noto.png"), sd.size, sd.multiple))
    picture = torch.cat([picture, picture[..., :1, :1].expand(-1, -1, sd.size, width - sd.size)], dim=3)
    return picture, (picture - picture[..., :1, :1]).abs().amax(dim=1, keepdim=True) >= 0.1


def guidance(sd, picture, steps=10):
    with torch.no_grad():
        return guidance_from_latent(
            sd.unet, sd.encode(picture), sd.embed(""), Stepped(steps), Inversion(steps=steps, at="next", iterations=0)
        )


def psnr(sd, x, x_0, where):
    difference = (sd.decode(x).clamp(-1, 1) - sd.decode(x_0).clamp(-1, 1)) / 2
    return -10 * difference[where.expand_as(difference)].square().mean().log10().item()


def test_a_word_keeps_the_background_and_lets_the_object_change(sd):
    picture, is_object = guitar(sd, sd.size)
    G = guidance(sd, picture)
    found = positions(sd.tokenizer, SOURCE, "guitar"), positions(sd.tokenizer, TARGET, "umbrella")
    word = Word(sd.embed(SOURCE), *found)
    text, null, s = sd.embed(TARGET), sd.embed(""), PnP(steps=10, scale=5.0)
    plain = last(plug_and_play(sd.unet, G, [text], null, s=s))
    x = last(masked_plug_and_play(sd.unet, G, text, null, word, s=s, m=Mask(share=1)))  # 1: see test_masactrl.py

    kept = (x == G.x_0).all(dim=1, keepdim=True)  # cells outside the last mask, bit-identical to the guidance's
    cells = F.avg_pool2d(is_object.float(), 4)
    assert 0.4 < kept.float().mean() < 0.8  # measured 0.68
    assert kept[cells < 0.1].float().mean() > 0.75 and kept[cells > 0.5].float().mean() < 0.15  # 1.00 and 0.01
    background = F.max_pool2d(is_object.float(), 5, 1, 2) == 0
    assert psnr(sd, x, G.x_0, background) > psnr(sd, plain, G.x_0, background) + 5  # measured 27.1 and 19.9
    assert psnr(sd, x, G.x_0, is_object) < 18  # the object did change: measured 11.2, without a mask 10.3


def test_a_users_mask_on_a_picture_that_is_not_square(sd):
    picture, _ = guitar(sd, 192)
    G = guidance(sd, picture)
    text, null, s = sd.embed(TARGET), sd.embed(""), PnP(steps=10, scale=5.0)
    mask = torch.zeros(1, 1, 32, 48)
    mask[..., 4:28, 2:30] = 1
    x = last(masked_plug_and_play(sd.unet, G, text, null, mask, s=s))
    same = (x == G.x_0).all(dim=1, keepdim=True)
    assert same[mask == 0].all() and not same[mask == 1].any()
    # The object's own attention is another one, too, than without the mask.
    free = last(masked_plug_and_play(sd.unet, G, text, null, mask, s=s, m=Mask(attention=False)))
    assert relative(x * mask, free * mask) > 0.02
