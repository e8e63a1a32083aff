"""Latents at every step, against what the authors' own code computed on a small random network (tests/data/golden).

Tolerance: ‖a−b‖/‖b‖ ≤ 1e-4. The stored vectors are float32 themselves: they differ from the same code in float64 by
up to 2.3e-5, and a perturbation of the start grows up to 28 times on its way through inversion and edit. The method's
effect on the result is above 0.4, four orders of magnitude more than what is allowed here.
"""

import pytest
import torch
from conftest import relative

from minipnp.ddim import guided, invert, sample, timesteps
from minipnp.guidance import Inversion, guidance_from_latent, guidance_from_text
from minipnp.options import Stepped
from minipnp.pnp import PnP, plug_and_play
from minipnp.slots import Features, Tap, decoder

TOLERANCE = 1e-4


# ---- pnp-diffusers: the default ----


@pytest.mark.parametrize("name, steps", [("square", 10), ("nonsquare", 10), ("inv50", 50)])
def test_pnp_diffusers_at_every_step(golden_unet, golden, name, steps):
    d = golden(f"pnp_diffusers_{name}")
    null = d["embed.empty"]
    with torch.no_grad():
        inverted = dict(invert(lambda x, t: golden_unet(x, t, null), d["z0"], timesteps(steps), "next", 0))
        G = guidance_from_latent(
            golden_unet, d["z0"], null, Stepped(10), Inversion(steps=steps, at="next", iterations=0)
        )
    assert sorted(inverted) == d["inv.timesteps"].tolist()
    stored = {int(t): d[f"inv.latent.{i}"] for i, t in enumerate(d["inv.timesteps"]) if f"inv.latent.{i}" in d}
    assert max(relative(inverted[t], x) for t, x in stored.items()) <= TOLERANCE
    assert all(torch.equal(G.latents[t], inverted[t]) for t in timesteps(10))  # what the edit reads is the inversion

    edit = list(plug_and_play(golden_unet, G, [d["embed.target"]], null, d["embed.negative"], PnP(steps=10)))
    assert [t for t, _ in edit] == [*d["edit.timesteps"].tolist()[1:], 0]
    assert relative(G.x_T, d["edit.latent.0"]) <= TOLERANCE
    for i, (_, x) in enumerate(edit):
        assert relative(x, d[f"edit.latent.{i + 1}"]) <= TOLERANCE, f"step {i}"


@pytest.mark.parametrize("name", ["square", "nonsquare"])
def test_pnp_diffusers_without_injection_and_reconstruction(golden_unet, golden, name):
    d = golden(f"pnp_diffusers_{name}")
    null = d["embed.empty"]
    with torch.no_grad():
        G = guidance_from_latent(golden_unet, d["z0"], null, Stepped(10), Inversion(steps=10, at="next", iterations=0))
        *_, (_, recon) = sample(lambda x, t: golden_unet(x, t, null), G.x_T, timesteps(10))
    off = PnP(steps=10, tau_f=0, tau_A=0)
    *_, (_, x) = plug_and_play(golden_unet, G, [d["embed.target"]], null, d["embed.negative"], off)
    stored = next(value for key, value in d.items() if key.startswith("edit.no_injection.latent."))
    assert relative(x, stored) <= TOLERANCE
    assert relative(recon, d["recon"]) <= TOLERANCE
    assert relative(x, d["edit.latent.10"]) > 0.4  # injection is not a small thing, so the test above can fail


@pytest.mark.parametrize("name", ["square", "nonsquare"])
def test_pnp_diffusers_guided_noise(golden_unet, golden, name):
    """ε of the first edit step, before DDIM hides what went into it."""
    d = golden(f"pnp_diffusers_{name}")
    t, layers = int(d["edit.timesteps"][0]), decoder(*range(4, 12))
    with torch.no_grad():
        tap = Tap(f=decoder(4), q=layers, k=layers)
        _, injected = golden_unet.tap(d["edit.latent.0"], t, d["embed.empty"], tap, stop=True)
        args = (golden_unet, d["edit.latent.0"], t, d["embed.target"], d["embed.empty"], 7.5, d["embed.negative"])
        assert relative(guided(*args, inject=injected), d["edit.guided_eps.0"]) <= TOLERANCE
        assert relative(guided(*args, inject=Features()), d["edit.guided_eps.0"]) > 0.1


# ---- plug-and-play, the first code: the option ----


def compvis_edit(golden_unet, d, G, schedule, scale, **changes):
    s = PnP(**{**dict(steps=10, scale=scale, alpha=0.75, alpha_schedule=schedule, inclusive=True), **changes})
    return list(plug_and_play(golden_unet, G, [d["embed.target"]], d["embed.empty"], d["embed.negative"], s))


def check_compvis(golden_unet, d, G, mode, scale):
    compared = 0
    for i, t in enumerate(timesteps(10)[1:]):
        assert relative(G.latents[t], d[f"{mode}.source.latent_after.{i}"]) <= TOLERANCE, f"source step {i}"
    for schedule in ("constant", "linear", "exp"):
        for i, (_, x) in enumerate(compvis_edit(golden_unet, d, G, schedule, scale)):
            if (key := f"{mode}.{schedule}.latent_after.{i}") in d:
                assert relative(x, d[key]) <= TOLERANCE, key
                compared += 1
    x = compvis_edit(golden_unet, d, G, "constant", scale, alpha=1.0)[-1][1]
    assert relative(x, d[f"{mode}.alpha1_constant.final"]) <= TOLERANCE
    x = compvis_edit(golden_unet, d, G, "linear", scale, tau_f=0, tau_A=0)[-1][1]
    assert relative(x, d[f"{mode}.linear.no_injection.final"]) <= TOLERANCE
    return compared


def test_plug_and_play_generated_guidance(golden_unet, golden):
    d = golden("plug_and_play")
    with torch.no_grad():
        G = guidance_from_text(
            golden_unet, d["generated.x_T"], d["embed.source"], d["embed.empty"], Stepped(10), 5.0, both=True
        )
    assert relative(G.x_0, d["generated.source.final"]) <= TOLERANCE
    assert check_compvis(golden_unet, d, G, "generated", 7.5) == 30


def test_plug_and_play_source_features(golden_unet, golden):
    """f of layer 4 and q, k of layer 5 as the authors saved them: rows uncond and cond."""
    d = golden("plug_and_play")
    with torch.no_grad():
        G = guidance_from_text(
            golden_unet, d["generated.x_T"], d["embed.source"], d["embed.empty"], Stepped(10), 5.0, both=True
        )
        t = timesteps(10)[2]
        tap = Tap(f=decoder(4), q=decoder(5), k=decoder(5))
        _, taken = golden_unet.tap(G.latents[t], t, G.texts, tap, stop=True)
    (layer4,), (layer5,) = decoder(4), decoder(5)
    assert relative(taken.f[layer4], d["generated.source.step2.out_layers_4"]) <= TOLERANCE
    assert relative(taken.A[layer5].q.flatten(0, 1), d["generated.source.step2.q_5"]) <= TOLERANCE
    assert relative(taken.A[layer5].k.flatten(0, 1), d["generated.source.step2.k_5"]) <= TOLERANCE


@pytest.fixture(scope="module")
def real(golden_unet, golden):
    """999 inversion steps that take ε at the current latent; the source resampled in 10 and in 100 steps."""
    d = golden("plug_and_play")
    with torch.no_grad():
        how = Inversion(steps=999, at="current", resample=10, iterations=0)
        real = guidance_from_latent(golden_unet, d["real.z0"], d["embed.empty"], Stepped(10), how)
        eps = lambda x, t: golden_unet(x, t, d["embed.empty"])  # noqa: E731
        kept = {100: real.x_T}  # the same inversion, not computed twice
        fine = {timesteps(100)[0]: real.x_T, **dict(sample(eps, kept[100], timesteps(100)))}
    return {
        "real": real,
        "real100": real.__class__({t: fine[t] for t in timesteps(10)}, real.x_T, real.x_0, real.texts),
    }


def test_plug_and_play_real_guidance(golden_unet, golden, real):
    d = golden("plug_and_play")
    assert relative(real["real"].x_T, d["real.z_enc"]) <= TOLERANCE
    assert real["real"].resampled
    assert check_compvis(golden_unet, d, real["real"], "real", 10.0) == 30


def test_plug_and_play_real_guidance_resampled_in_100_steps(golden_unet, golden, real):
    d = golden("plug_and_play")
    for schedule in ("linear",):
        for i, (_, x) in enumerate(compvis_edit(golden_unet, d, real["real100"], schedule, 10.0)):
            assert relative(x, d[f"real100.{schedule}.latent_after.{i}"]) <= TOLERANCE


def test_plug_and_play_inversion_at_the_current_latent(golden_unet, golden):
    d = golden("plug_and_play")
    levels = [37 * (i + 1) for i in reversed(range(27))]
    with torch.no_grad():
        z = dict(invert(lambda x, t: golden_unet(x, t, d["embed.empty"]), d["real.z0"], levels, "current", 0))
    for i in (0, 1, 2, 13, 26):
        assert relative(z[37 * (i + 1)], d[f"real.encode27.latent.{i}"]) <= TOLERANCE
