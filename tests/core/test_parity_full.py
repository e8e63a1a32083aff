"""The same at SD-1.5's size, with random weights: every layer, every row and the three networks against the published.

The oracles are built from the config.json files that SD-1.5 is published with, not from our configurations. Tolerances
as in test_parity.py. The networks are in memory one after the other, and once: an oracle shares our weights. 6 GB.
"""

import os
import re

import pytest
import torch
from oracle import effects, noise, pair, published

from minipnp.config import TextConfig, UNetConfig, VAEConfig
from minipnp.slots import Part
from minipnp.text import TextEncoder
from minipnp.unet import TABLE, UNet
from minipnp.vae import VAE
from tools.verify.compare import PER_LAYER
from tools.verify.reference import compare_decode, compare_encode, compare_text, compare_unet

pytestmark = [
    pytest.mark.full,
    pytest.mark.filterwarnings("ignore:`Transformer2DModelOutput`:FutureWarning"),  # diffusers' own affair
]


@pytest.fixture(scope="module", autouse=True)
def all_cores():
    """conftest.py gives the small networks one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def unet():
    """(comparison at 512 × 512 pixels, comparison of a batch of two that is not square, effects)"""
    ours, theirs = pair(UNet, UNetConfig(), published("unet"))
    assert sum(w.numel() for w in ours.parameters()) == 859_520_964
    contexts = noise(2, 77, 768)
    square = compare_unet(ours, theirs, noise(1, 4, 64, 64), torch.tensor([501]), contexts[:1])
    oblong = compare_unet(ours, theirs, noise(2, 4, 16, 40), torch.tensor([981, 1]), contexts)
    with torch.no_grad():
        return square, oblong, effects(ours, noise(1, 4, 16, 16), contexts[:1])


@pytest.fixture(scope="module")
def vae():
    """(comparison of the encoder, of the decoder), at 192 × 256 pixels"""
    ours, theirs = pair(VAE, VAEConfig(), published("vae"))
    assert sum(w.numel() for w in ours.parameters()) == 83_653_863
    picture = noise(1, 3, 192, 256).clamp(-1, 1)
    return compare_encode(ours, theirs, picture), compare_decode(ours, theirs, noise(1, 4, 24, 32))


@pytest.fixture(scope="module")
def text():
    ours, theirs = pair(TextEncoder, TextConfig(), published("text_encoder"))
    assert sum(w.numel() for w in ours.parameters()) == 123_060_480
    return compare_text(ours, theirs, torch.randint(49408, (2, 77), generator=torch.Generator().manual_seed(1)))


def check(found):
    wrong = [str(d) for d in found if not d.within(PER_LAYER)]
    assert not wrong, wrong[0]


KINDS = {  # the layers of a kind by their names, and how many SD-1.5 has
    "ResBlocks": (r".+\.res2?", 22),
    "self-attentions": (r".+\.self_attn", 16),
    "cross-attentions": (r".+\.cross_attn", 16),
    "feed-forwards": (r".+\.ff\.out", 16),
    "transformers": (r".+\.transformer", 16),
    "downsamplings": (r".+\.down", 3),
    "upsamplings": (r".+\.up", 3),
    "time embedding": (r"time\.fc[12]", 2),
    "norms": (r".*norm\w*", 22 * 2 + 16 * 4 + 1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_unet_layers(unet, kind):
    pattern, count = KINDS[kind]
    found = [d for d in unet[0].layers if re.fullmatch(pattern, d.layer)]
    assert len(found) == count, [d.layer for d in found]
    check(found)


STAGES = {"conv": "conv", "down": "down", "R": "res", "T": "transformer", "up": "up"}  # where their results are


@pytest.mark.parametrize("layer", TABLE, ids=str)
def test_unet_row(unet, layer):
    prefix = "middle" if layer.part is Part.MIDDLE else f"{layer.part.name.lower()}.{layer.row}"
    found = {d.layer: d for d in unet[0].layers if d.layer.startswith(f"{prefix}.")}
    assert {f"{prefix}.{STAGES[what]}" for what in TABLE[layer].what.split()} <= found.keys()
    check(found.values())


def test_unet(unet):
    square, oblong, _ = unet
    assert square.fault() is None, square.fault()
    assert oblong.fault() is None, oblong.fault()


def test_every_part_of_the_unet_matters(unet):
    assert all(effect > 0.1 for effect in unet[2].values()), unet[2]


def test_vae_encode(vae):
    assert vae[0].fault() is None, vae[0].fault()


def test_vae_decode(vae):
    assert vae[1].fault() is None, vae[1].fault()


def test_text_encoder(text):
    assert text.fault() is None, text.fault()
