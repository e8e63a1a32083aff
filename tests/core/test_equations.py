"""The paper's equations 1 to 6 and Algorithm 1, each written out once more, by hand, next to what the code does.

Tolerance 1e-5 (relative): both sides are float32 sums of the same numbers in another order; a wrong sign, weight or
place changes them by more than 1e-2.
"""

import math

import pytest
import torch
from conftest import relative

from minipnp.ddim import ALPHA_BAR, guided, invert, noise, pairs, sample, step, timesteps
from minipnp.guidance import Inversion, guidance_from_latent
from minipnp.layers import Attention
from minipnp.options import Stepped
from minipnp.pnp import PnP, plug_and_play
from minipnp.slots import Attn, Features, Tap, decoder

CLOSE = 1e-5
LAYERS = decoder(*range(4, 12))
(L4,) = decoder(4)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def features_of(unet, x, t, text, **tap):
    return unet.tap(x, t, text, Tap(**tap))[1]


def test_equation_1_noise(inputs):
    """x_t = √α_t·x_0 + √(1−α_t)·z, with SD-1.x's published α."""
    published = {0: 0.99915, 1: 0.9982960278, 500: 0.2763326838, 981: 0.0057755001, 999: 0.0046600985}
    x_0, z = inputs["x"], torch.randn(inputs["x"].shape, generator=torch.Generator().manual_seed(0))
    for t, alpha in published.items():
        assert ALPHA_BAR[t] == pytest.approx(alpha, abs=1e-9)
        assert relative(noise(x_0, z, t), math.sqrt(alpha) * x_0 + math.sqrt(1 - alpha) * z) <= CLOSE


def test_equation_2_attention():
    """f̂ = A·v with A = softmax(q·kᵀ/√d)."""
    torch.manual_seed(0)
    attention, x = Attention(24, 24, heads=3), torch.randn(2, 10, 24)
    out, a = attention(x, tap_map=True)
    for head in range(3):
        rows = slice(8 * head, 8 * head + 8)
        q, k, v = (x @ f.weight[rows].T for f in (attention.q, attention.k, attention.v))
        A = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(8), dim=-1)
        assert relative(a.map[:, head], A) <= CLOSE
        assert relative(a.v[:, head], v) <= CLOSE
    f_hat = (a.map @ a.v).transpose(1, 2).reshape(2, 10, 24)
    assert relative(out, attention.out(f_hat)) <= CLOSE


def test_equation_3_features_are_overridden(golden_unet, inputs):
    """ε̂(x*_t, P, t; {f^l_t}): f of the guidance takes the place of f* before the skip connection; ∅ is no injection."""
    x, x_G, text, null = inputs["x"], inputs["x"].flip(3), inputs["text"], inputs["null"]
    G = features_of(golden_unet, x_G, 501, null, f=decoder(4, 7))
    z, taken = golden_unet.tap(x, 501, text, Tap(f=decoder(4, 7)), Features(f=G.f))
    assert all(torch.equal(taken.f[layer], G.f[layer]) for layer in G.f)
    plain = golden_unet(x, 501, text)
    assert relative(z, plain) > 1e-2
    assert torch.equal(golden_unet(x, 501, text, Features()), plain)
    block, h = golden_unet.decoder[4].res, torch.randn(1, 128, 4, 6)
    out, _ = block(h, golden_unet.time(torch.tensor([501])), inject=G.f[L4])
    assert torch.equal(out, block.skip(h) + G.f[L4])


def test_equation_4_attention_is_overridden(golden_unet, inputs):
    """ε̂(x*_t, P, t; f^4_t, {A^l_t}): the map used is the guidance's; what it weighs is the translation's own v."""
    x, x_G, text, null = inputs["x"], inputs["x"].flip(3), inputs["text"], inputs["null"]
    wanted = dict(f=decoder(4), q=LAYERS, k=LAYERS)
    G = features_of(golden_unet, x_G, 501, null, **wanted, A=LAYERS)
    put = Features(G.f, {layer: Attn(q=a.q, k=a.k) for layer, a in G.A.items()})
    z, used = golden_unet.tap(x, 501, text, Tap(A=LAYERS, v=LAYERS), put)
    for layer in LAYERS:
        assert relative(used.A[layer].map, G.A[layer].map) <= CLOSE
    maps = Features(G.f, {layer: Attn(map=a.map) for layer, a in G.A.items()})
    assert relative(golden_unet(x, 501, text, maps), z) <= CLOSE  # overriding A itself is the same thing
    own = features_of(golden_unet, x, 501, text, v=decoder(4))
    free = golden_unet.tap(x, 501, text, Tap(v=decoder(4)), Features(A=put.A))[1]
    assert torch.equal(free.A[L4].v, own.A[L4].v)  # the first layer with an injected A still has its own values


def test_equation_5_guidance(golden_unet, inputs):
    """ε = w·ε(x_t, P, t) + (1−w)·ε(x_t, ∅, t)."""
    x, text, null = inputs["x"], inputs["text"], inputs["null"]
    e_text, e_null = golden_unet(x, 301, text), golden_unet(x, 301, null)
    for w in (0.0, 1.0, 7.5):
        assert relative(guided(golden_unet, x, 301, text, null, w), w * e_text + (1 - w) * e_null) <= CLOSE


def test_equation_6_negative_prompt(golden_unet, inputs):
    """ε̃ = α·ε(x_t, ∅, t) + (1−α)·ε(x_t, P_n, t) takes the place of ε(x_t, ∅, t) in Eq. (5)."""
    x, text, null, negative = inputs["x"], inputs["text"], inputs["null"], inputs["text"].flip(1)
    e, e_null, e_negative = (golden_unet(x, 301, prompt) for prompt in (text, null, negative))
    for alpha in (0.0, 0.3, 1.0):
        e_tilde = alpha * e_null + (1 - alpha) * e_negative
        got = guided(golden_unet, x, 301, text, null, 5.0, negative, alpha)
        assert relative(got, 5 * e + (1 - 5) * e_tilde) <= CLOSE


@pytest.mark.parametrize("schedule", ["constant", "linear", "exp"])
def test_equation_6_alpha_schedules(golden, schedule):
    stored = golden("plug_and_play")[f"negative_alpha.{schedule}"]
    assert PnP(steps=10, alpha=0.75, alpha_schedule=schedule).alphas() == pytest.approx(stored.tolist(), rel=1e-6)


def test_algorithm_1(golden_unet, inputs):
    """The loop as the paper prints it: both denoisings side by side, one network evaluation at a time."""
    n, w, tau_f, tau_A = 5, 3.0, 0.8, 0.4
    null, P = inputs["null"], inputs["text"]

    *_, (_, x_G) = invert(lambda x, t: golden_unet(x, t, null), inputs["x"], timesteps(n), "next", 0)
    x = x_G
    for i, (t, t_prev) in enumerate(pairs(timesteps(n))):
        z_G, taken = golden_unet.tap(x_G, t, null, Tap(f=decoder(4), q=LAYERS, k=LAYERS))
        x_G = step(x_G, z_G, t, t_prev)
        put = Features(taken.f if i < tau_f * n else {}, taken.A if i < tau_A * n else {})
        z = w * golden_unet(x, t, P, put) + (1 - w) * golden_unet(x, t, null, put)
        x = step(x, z, t, t_prev)

    G = guidance_from_latent(
        golden_unet, inputs["x"], null, Stepped(n), Inversion(steps=n, at="next", iterations=0, resample=n)
    )
    *_, (t, got) = plug_and_play(golden_unet, G, [P], null, s=PnP(steps=n, scale=w, tau_f=tau_f, tau_A=tau_A))
    assert t == 0
    assert relative(got, x) <= 1e-4  # five steps at guidance 3 enlarge rounding; see the tolerance of test_golden.py
    plain = dict(sample(lambda x, t: guided(golden_unet, x, t, P, null, w), G.x_T, timesteps(n)))[0]
    assert relative(got, plain) > 0.1
