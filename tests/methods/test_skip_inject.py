"""SkipInject: against its algorithm written out, at every step, and its effect on the bundled model."""

from pathlib import Path

import torch
from conftest import relative

import minipnp
from minipnp.ddim import guided, pairs, sample, step, timesteps
from minipnp.files.images import find_images, fit, read_image, to_tensor
from minipnp.guidance import Inversion, guidance_from_latent, guidance_from_text
from minipnp.measure.edges import edge_correlation
from minipnp.methods.skip_inject import SkipInject, skip_inject
from minipnp.options import Stepped
from minipnp.slots import Features, Tap, decoder

WEIGHTS = Path(__file__).parents[2] / "weights/bundled"
HOW = Inversion(at="current", iterations=0)


def test_every_step_is_the_algorithm_s(golden_unet, inputs):
    """Its layers and steps by hand: of 4 steps a share of 0.5 injects in two."""
    x_0, null, text = inputs["x"], inputs["null"], inputs["text"]
    G = guidance_from_latent(golden_unet, x_0, null, Stepped(4), HOW)
    got = list(skip_inject(golden_unet, G, text, null, SkipInject(4, tau_s=0.5, scale=3.0)))
    x = G.x_T
    with torch.no_grad():
        for i, (t, t_prev) in enumerate(pairs(timesteps(4))):
            s = {}
            if i < 2:
                _, taken = golden_unet.tap(G.latents[t], t, null, Tap(s=decoder(4, 5)))
                s = {layer: taken.s[layer] for layer in decoder(4, 5)}
            e_null = golden_unet(x, t, null, Features(s=s))
            e_text = golden_unet(x, t, text, Features(s=s))
            x = step(x, 3.0 * e_text - 2.0 * e_null, t, t_prev)
            # Branches in one pass or in two: a rounding of float32 in each of four steps.
            assert got[i][0] == t_prev and relative(got[i][1], x) <= 1e-5


def test_a_share_is_counted_without_a_rounding(golden_unet, inputs, monkeypatch):
    """0.07 of 100 steps are 7, though 0.07 · 100 is 7.000000000000001 in floating point."""
    G = guidance_from_latent(golden_unet, inputs["x"], inputs["null"], Stepped(100), Inversion(at="next", iterations=0))
    stopped = []
    tap = type(golden_unet).tap
    monkeypatch.setattr(
        type(golden_unet), "tap", lambda *args, **how: stopped.append(how.get("stop", False)) or tap(*args, **how)
    )
    list(skip_inject(golden_unet, G, inputs["text"], inputs["null"], SkipInject(100, tau_s=0.07)))
    assert sum(stopped) == 7


def test_without_a_share_it_is_guided_sampling(golden_unet, inputs):
    x_0, null, text = inputs["x"], inputs["null"], inputs["text"]
    G = guidance_from_latent(golden_unet, x_0, null, Stepped(3), HOW)
    with torch.no_grad():
        plain = list(sample(lambda x, t: guided(golden_unet, x, t, text, null, 3.0), G.x_T, timesteps(3)))
    off = list(skip_inject(golden_unet, G, text, null, SkipInject(3, tau_s=0.0, scale=3.0)))
    none = list(skip_inject(golden_unet, G, text, null, SkipInject(3, s_layers=(), scale=3.0)))
    assert all(torch.equal(a, b) and torch.equal(a, c) for (_, a), (_, b), (_, c) in zip(plain, off, none, strict=True))


def test_a_pass_s_own_skip_connections_change_no_bit(golden_unet, inputs):
    """Nor does it to tap them; one row serves two branches."""
    x, null, text = inputs["x"], inputs["null"], inputs["text"]
    layers = decoder(*range(12))
    with torch.no_grad():
        plain = golden_unet(x, 501, text)
        e, taken = golden_unet.tap(x, 501, text, Tap(s=layers))
        assert torch.equal(e, plain) and taken.s.keys() == {*layers}
        assert torch.equal(golden_unet(x, 501, text, Features(s=taken.s)), plain)
        other = golden_unet(x.flip(3), 501, text, Features(s=taken.s))
        assert relative(other, golden_unet(x.flip(3), 501, text)) > 1e-2
        both = golden_unet(x, 501, torch.cat([text, null]), Features(s=taken.s))
        assert both.shape[0] == 2 and relative(both[:1], plain) <= 1e-5
    only = taken.only(Tap(s=decoder(4)))
    assert only.s.keys() == {*decoder(4)} and taken.only(Tap(f=decoder(4))) is None
    two = Features(s={decoder(4)[0]: torch.cat([taken.s[decoder(4)[0]]] * 2)})
    assert two.rows([0, 1, 1]).s[decoder(4)[0]].shape[0] == 3


def test_a_picture_s_own_skip_connections_give_it_again_to_the_bit(golden_unet, inputs):
    """All twelve at all steps, under its own text: each pass is then the one that they were taken from."""
    x_0, null = inputs["x"], inputs["null"]
    G = guidance_from_latent(golden_unet, x_0, null, Stepped(4), Inversion(at="current", iterations=0, resample=4))
    got = dict(skip_inject(golden_unet, G, null, null, SkipInject(4, 1.0, range(12), scale=1.0)))
    with torch.no_grad():
        again = dict(sample(lambda x, t: golden_unet(x, t, null), G.x_T, timesteps(4)))
    assert all(torch.equal(got[t], x) for t, x in again.items())
    assert all(torch.equal(got[t], G.latents[t]) for t in timesteps(4)[1:])


def test_under_both_texts_each_branch_has_its_own(golden_unet, inputs):
    """Of a generated original: the first tapped row is for the unconditional branch, the second for the other."""
    null, text, source = inputs["null"], inputs["text"], inputs["text"].flip(1)
    G = guidance_from_text(golden_unet, inputs["x"], source, null, Stepped(2), both=True)
    t, t_prev = timesteps(2)
    got = dict(skip_inject(golden_unet, G, text, null, SkipInject(2, tau_s=1.0, scale=3.0)))
    with torch.no_grad():
        e = []
        for own, branch in ((source, text), (null, null)):
            _, taken = golden_unet.tap(G.latents[t], t, own, Tap(s=decoder(4, 5)))
            e.append(golden_unet(G.x_T, t, branch, Features(s=taken.s)))
    assert relative(got[t_prev], step(G.x_T, 3.0 * e[0] - 2.0 * e[1], t, t_prev)) <= 1e-5


@torch.no_grad()
def test_it_keeps_edges_where_the_picture_has_them():
    """On the bundled model, four pictures; layers 9 to 11 have all cells. Measured in 20 steps: 0.34 against 0.23."""
    sd = minipnp.load(WEIGHTS, device="cpu")
    text, null = sd.embed("a flat icon of a cow on a blue background"), sd.embed("")
    edges = {0.0: [], 0.8: []}
    for path in find_images(WEIGHTS / "examples")[:4]:
        picture = to_tensor(fit(read_image(path), sd.size, sd.multiple))
        G = minipnp.guidance_from_picture(sd, picture, Stepped(10))
        for tau_s, values in edges.items():
            s = SkipInject(10, tau_s, decoder(9, 10, 11), scale=3.0)
            *_, (_, x) = skip_inject(sd.unet, G, text, null, s)
            values.append(edge_correlation(sd.decode(x), picture))
    assert sum(edges[0.8]) / 4 > sum(edges[0.0]) / 4 + 0.03
