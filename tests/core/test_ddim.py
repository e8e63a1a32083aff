"""DDIM without a network: the schedule, the step, and the two loops on noise predictions that are known."""

import math
import warnings

import pytest
import torch
from conftest import relative

from minipnp.ddim import ALPHA_BAR, CLEAN, check_start, guided, invert, pairs, residual, sample, step, timesteps
from minipnp.errors import InputError
from minipnp.guidance import Guidance, Inversion, guidance_from_latent, guidance_from_text, residuals
from minipnp.options import Stepped
from minipnp.pnp import PnP
from minipnp.slots import Layer, Part, decoder

X = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
NULL = torch.zeros(1, 77, 8)


# ---- schedule ----


def test_alpha_bar_is_the_published_one():
    """Scaled linear betas. A plain linear schedule ends at 0.00158; the tolerance is the published table's rounding."""
    published = {0: 0.99915, 1: 0.9982960278384514, 20: 0.981314362200552, 500: 0.2763326838229746}
    published |= {961: 0.007281727140942984, 981: 0.00577550013949575, 999: 0.004660098513077238}
    assert {t: ALPHA_BAR[t] for t in published} == pytest.approx(published, rel=1e-12)
    assert len(ALPHA_BAR) == 1000 and ALPHA_BAR[CLEAN] != 1


def test_timesteps():
    assert timesteps(50) == list(range(981, 0, -20))
    assert timesteps(3) == [667, 334, 1]
    assert timesteps(999) == list(range(999, 0, -1))
    assert timesteps(30)[0] == 958 and len(timesteps(30)) == 30  # 30 does not divide 1000
    assert all(0 < t < 1000 for n in range(1, 1000) for t in timesteps(n))
    assert pairs([981, 961, 1]) == [(981, 961), (961, 1), (1, 0)]


def test_trailing_timesteps():
    assert timesteps(50, "trailing") == list(range(999, 0, -20)) and timesteps(1, "trailing") == [999]
    assert timesteps(7, "trailing") == [999, 856, 713, 570, 428, 285, 142]
    with pytest.raises(InputError, match="1 to 666"):
        timesteps(667, "trailing")
    with pytest.raises(InputError, match="leading or trailing"):
        timesteps(50, "linspace")


def test_which_first_levels_a_run_may_have():
    for n in range(10, 1000):
        if timesteps(n)[0] < 900:
            with pytest.raises(InputError, match=f"{n} steps begin at t = .* give --timesteps trailing"):
                check_start(timesteps(n))
    for n in range(1, 10):
        with pytest.warns(UserWarning, match="not at pure noise: --timesteps trailing"):
            check_start(timesteps(n))
    for n in (1, 334, 501, 600):
        with pytest.warns(UserWarning, match="much of the picture is settled"):
            check_start(timesteps(n), inverted=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for levels in (
            timesteps(50),
            timesteps(10),
            timesteps(999),
            timesteps(1, "trailing"),
            timesteps(334, "trailing"),
        ):
            check_start(levels)
            check_start(levels, inverted=True)


def test_an_inversion_has_the_timesteps_of_its_edit():
    edit = Stepped(5, spacing="trailing")
    G = guidance_from_latent(CountingNetwork(), X, NULL, edit)
    assert sorted(G.latents, reverse=True) == edit.levels == [999, 799, 599, 399, 199]
    assert Inversion(steps=10).schedule(edit) == (timesteps(10, "trailing"), [])
    assert Inversion(steps=999).schedule(edit) == (timesteps(999), [])  # which are all levels there are
    with pytest.raises(InputError, match="not in 5 with leading timesteps"):
        G.levels(Stepped(5))


@pytest.mark.parametrize("n", [0, 1000, -5])
def test_steps_out_of_range_are_refused(n):
    with pytest.raises(InputError, match="from 1 to 999"):
        timesteps(n)


SHARES = [(0.8, 50, 40), (0.5, 50, 25), (0.58, 50, 29), (0.29, 100, 29), (0, 50, 0), (1, 50, 50), (0.999, 50, 49)]


@pytest.mark.parametrize("tau, steps, n", SHARES)
def test_a_share_of_the_steps_loses_none_to_rounding(tau, steps, n):
    assert PnP(steps=steps).injected_steps(tau) == n
    inclusive = PnP(steps=steps, inclusive=True).injected_steps(tau)
    assert inclusive == (0 if n == 0 and tau == 0 else min(n + 1, steps))


SHARE, WHOLE, COUNT = "give a share from 0 to 1", "give a whole number from 1 to 999", "give a whole number, 0 or more"
OUT_OF_RANGE = {
    PnP: [
        ({"tau_f": 1.5}, f"tau_f = 1.5: {SHARE}"),
        ({"tau_A": -0.1}, f"tau_A = -0.1: {SHARE}"),
        ({"tau_f": math.nan}, f"tau_f = nan: {SHARE}"),
        ({"tau_f": "0.5"}, f"tau_f = '0.5': {SHARE}"),
        ({"tau_A": True}, f"tau_A = True: {SHARE}"),
        ({"alpha": 2}, f"alpha = 2: {SHARE}"),
        ({"steps": 1000}, f"steps = 1000: {WHOLE}"),
        ({"steps": 2.5}, f"steps = 2.5: {WHOLE}"),
        ({"steps": None}, f"steps = None: {WHOLE}"),
        ({"scale": math.nan}, "scale = nan: give a number"),
        ({"alpha_schedule": "x"}, "alpha_schedule = 'x': give one of constant, linear, exp"),
        ({"f_layers": (4, 12)}, "f_layers = (4, 12): give decoder layers from 0 to 11"),
        ({"f_layers": (Layer(Part.ENCODER, 3),)}, "f_layers: no ResBlock in encoder 3; give decoder layers"),
        ({"A_layers": (2, 4)}, "A_layers: no self-attention in decoder 2; give from 3 to 11"),
        ({"random_start": -1}, "random_start = -1: give a whole number from 0 to"),
    ],
    Inversion: [
        ({"steps": 0}, f"inversion_steps = 0: {WHOLE}"),
        ({"at": "here"}, "inversion_at = 'here': give one of next, current, last"),
        ({"iterations": -1}, f"fixed_point = -1: {COUNT}"),
        ({"resample": -1}, f"resample = -1: {COUNT}"),
        ({"at": "last", "iterations": 0}, "or 'last' with a fixed-point iteration"),
    ],
}


@pytest.mark.parametrize(
    "settings, values, said", [(settings, *row) for settings, rows in OUT_OF_RANGE.items() for row in rows]
)
def test_settings_out_of_range_are_refused(settings, values, said):
    with pytest.raises(InputError) as caught:
        settings(**values)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_layers_may_be_numbers():
    assert PnP(f_layers=(4, 7), A_layers=range(4, 12)) == PnP(f_layers=decoder(4, 7))
    assert PnP(f_layers="4-6", A_layers="none") == PnP(f_layers=decoder(4, 5, 6), A_layers=())
    assert hash(PnP(f_layers=[4, 7])) == hash(PnP(f_layers=(4, 7)))  # settings know each other: they are kept as keys


# ---- the step ----


@pytest.mark.parametrize("t, t_next", [(981, 961), (1, CLEAN), (CLEAN, 1), (501, 901)])
def test_a_step_keeps_picture_and_noise_and_changes_their_shares(t, t_next):
    x_0, e = X, X.flip(3)
    at = lambda t: math.sqrt(ALPHA_BAR[t]) * x_0 + math.sqrt(1 - ALPHA_BAR[t]) * e  # noqa: E731
    # At t = 981, x_0 is divided by √ᾱ = 0.076, which enlarges rounding 13 times.
    assert relative(step(at(t), e, t, t_next), at(t_next)) <= 5e-6
    assert relative(step(step(X, e, t, t_next), e, t_next, t), X) <= 5e-6


def test_sampling_and_inversion_undo_each_other_where_the_noise_is_known():
    eps = lambda x, t: X.flip(3)  # noqa: E731
    for at in ("next", "current"):
        *_, (t, x_T) = invert(eps, X, timesteps(50), at, 0)
        *_, (end, x_0) = sample(eps, x_T, timesteps(50))
        assert (t, end) == (981, CLEAN)
        assert relative(x_0, X) <= 1e-4  # a hundred steps of rounding, enlarged 13 times


def test_inversion_takes_eps_where_it_says():
    seen = []

    def eps(x, t):
        seen.append(t)
        return 0.1 * x

    list(invert(eps, X, timesteps(4), "next", 0))
    assert seen == [1, 251, 501, 751]
    seen.clear()
    list(invert(eps, X, timesteps(4), "current", 0))
    assert seen == [0, 1, 251, 501]
    seen.clear()
    list(invert(eps, X, timesteps(2), "current", iterations=2))
    assert seen == [0, 1, 1, 1, 501, 501]
    seen.clear()
    list(invert(eps, X, timesteps(4), "last", iterations=1))
    assert seen == [1, 1, 251, 501, 751]
    with pytest.raises(InputError, match="or 'last' with a fixed-point"):
        list(invert(eps, X, timesteps(2), "last", 0))
    with pytest.raises(InputError, match="'next' or 'current'"):
        list(invert(eps, X, timesteps(2), "here", 1))


def test_fixed_point_iterations_close_the_loop():
    """Each iteration shrinks the residual of the implicit equation, and with it the error of the round trip."""
    eps = lambda x, t: torch.tanh(x * (1 + t / 1000))  # noqa: E731
    levels, errors, residuals = timesteps(20), [], []
    for iterations in (0, 1, 2, 4, 8):
        x, worst = X, 0.0
        for (t_next, t), (_, x_next) in zip(
            reversed(pairs(levels)), invert(eps, X, levels, "next", iterations), strict=True
        ):
            worst, x = max(worst, residual(eps, x, x_next, t, t_next)), x_next
        *_, (_, back) = sample(eps, x, levels)
        errors.append(relative(back, X))
        residuals.append(worst)
    assert errors == sorted(errors, reverse=True) and residuals == sorted(residuals, reverse=True)
    assert errors[0] > 10 * errors[-1] and residuals[-1] < 1e-2 * residuals[0]


def test_the_last_eps_closes_the_loop_better_than_an_explicit_form_does():
    """At the same price, an evaluation a step: its error is of second order in the step, so it shrinks faster."""
    eps = lambda x, t: torch.tanh(x * (1 + t / 1000))  # noqa: E731

    def error(steps, *how):
        *_, (_, x) = invert(eps, X, timesteps(steps), *how)
        *_, (_, back) = sample(eps, x, timesteps(steps))
        return relative(back, X)

    ratios = [error(steps, "current", 0) / error(steps, "last", 1) for steps in (20, 50, 100)]
    assert ratios[0] > 2 and ratios == sorted(ratios)


def test_the_first_iterate_is_the_form_next():
    eps = lambda x, t: torch.sin(x + t)  # noqa: E731
    *_, (_, x) = invert(eps, X, [1], "next", 0)
    assert torch.equal(x, step(X, eps(X, 1), 0, 1))


# ---- what the guidance keeps ----


class CountingNetwork:
    """ε = x/2 for any text; remembers at which t it was called."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, t, text, inject=None):
        self.calls.append(t)
        return 0.5 * x.expand(len(text), *x.shape[1:])


def test_the_inversion_ends_where_the_edit_begins():
    unet = CountingNetwork()
    G = guidance_from_latent(unet, X, NULL, Stepped(50), Inversion(steps=999, at="next", iterations=0))
    assert len(unet.calls) == 981 and max(unet.calls) == 981
    assert sorted(G.latents) == timesteps(50)[::-1] and G.x_T is G.latents[981] and not G.resampled
    to_the_end = dict(invert(lambda x, t: CountingNetwork()(x, t, NULL), X, timesteps(999), "next", 0))
    assert len(to_the_end) == 999 and all(torch.equal(x, to_the_end[t]) for t, x in G.latents.items())


def test_the_residual_is_measured_between_neighbouring_levels_of_the_guidance():
    """At a few of them, evenly, for one evaluation each; written out: what a step up from the level below misses by."""
    unet = CountingNetwork()
    G = guidance_from_latent(unet, X, NULL, Stepped(10), Inversion(steps=100, at="next", iterations=0))
    inversion = len(unet.calls)
    found = residuals(unet, G, 5)
    assert list(found) == [1, 201, 401, 601, 801] == unet.calls[inversion:] and inversion == 91
    below = {1: (0, G.x_0), 201: (101, G.latents[101]), 801: (701, G.latents[701])}
    for t, (t_below, x) in below.items():
        missed = G.latents[t] - step(x, 0.5 * G.latents[t], t_below, t)
        assert found[t] == pytest.approx((missed.norm() / G.latents[t].norm()).item(), rel=1e-6)
    assert all(1e-5 < r < 0.1 for r in found.values())
    for checks, n in ((1, 1), (3, 3), (10, 10), (99, 10)):
        assert len(residuals(unet, G, checks)) == n


def test_the_residual_is_zero_where_sampling_undoes_the_inversion():
    """Every level was reached with the ε that sampling takes there, under the first of the guidance's texts."""
    levels, null = timesteps(5), torch.zeros(1, 77, 8)
    eps = lambda x, t, text: X.flip(3) * (1 + text.mean())  # noqa: E731
    latents = dict(invert(lambda x, t: eps(x, t, null), X, levels, "next", 0))
    G = Guidance(latents, latents[801], X, torch.cat([null, null + 1]))
    assert max(residuals(eps, G, 5).values()) < 1e-6
    other = Guidance(latents, latents[801], X, torch.cat([null + 1, null]))
    assert min(residuals(eps, other, 5).values()) > 1e-2


def test_a_guidance_serves_fewer_steps_where_it_has_their_levels():
    G = guidance_from_latent(CountingNetwork(), X, NULL, Stepped(10), Inversion())
    fewer = G.for_edit(Stepped(5))
    assert sorted(fewer.latents, reverse=True) == timesteps(5) == [801, 601, 401, 201, 1]
    assert all(x is G.latents[t] for t, x in fewer.latents.items()) and fewer.x_T is G.latents[801]
    assert fewer.x_0 is G.x_0 and fewer.texts is G.texts and fewer.levels(Stepped(5)) == timesteps(5)
    with pytest.raises(
        InputError, match=r"does not serve 4 steps .*: give --steps 10 --timesteps leading \(also served: 5, 2, 1\)"
    ):
        G.for_edit(Stepped(4))
    sampled = guidance_from_text(CountingNetwork(), X, NULL, NULL, Stepped(10))
    assert sampled.for_edit(Stepped(10)).x_T is sampled.x_T
    with pytest.raises(InputError, match="give --steps 10 --timesteps leading, or"):
        sampled.for_edit(Stepped(5))  # its x_T is of another level
    every = guidance_from_text(CountingNetwork(), X, NULL, NULL, Stepped(999))
    with pytest.raises(InputError, match="give --steps 999 --timesteps leading, or"):
        every.for_edit(Stepped(50))
    many = guidance_from_latent(CountingNetwork(), X, NULL, Stepped(100), Inversion())
    with pytest.raises(InputError, match=r"also served: 50, 25, 20, 10, 5, 4 …\)"):
        many.for_edit(Stepped(30))


def test_a_guidance_knows_what_it_was_made_for():
    for edit in (Stepped(10), Stepped(10, spacing="trailing"), Stepped(1)):
        assert guidance_from_latent(CountingNetwork(), X, NULL, edit, Inversion()).made_for == edit
    odd = Guidance({7: X, 3: X}, X, X, NULL)
    with pytest.raises(InputError, match="of no number of steps"):
        odd.made_for  # noqa: B018


def test_levels_that_the_inversion_has_not_are_resampled():
    unet = CountingNetwork()
    G = guidance_from_latent(unet, X, NULL, Stepped(30), Inversion(steps=50, at="next", iterations=0))
    assert G.resampled and sorted(G.latents) == timesteps(30)[::-1]
    assert max(unet.calls) == 961  # the inversion's level nearest to 958, where the edit begins
    assert G.latents[958] is G.x_T


def test_resampling_starts_from_the_last_level_of_the_inversion():
    unet = CountingNetwork()
    G = guidance_from_latent(unet, X, NULL, Stepped(50), Inversion(steps=999, at="current", resample=999, iterations=0))
    assert len(unet.calls) == 999 + 999 and G.resampled
    assert not torch.equal(G.x_T, G.latents[981])
    with pytest.raises(InputError, match="misses levels"):
        guidance_from_latent(unet, X, NULL, Stepped(50), Inversion(resample=30))


def test_generated_guidance_ends_in_a_picture():
    unet = CountingNetwork()
    G = guidance_from_text(unet, X, NULL, NULL, Stepped(10))
    *_, (_, x_0) = sample(lambda x, t: 0.5 * x, X, timesteps(10))
    assert relative(G.x_0, x_0) <= 1e-5 and sorted(G.latents) == timesteps(10)[::-1]
    assert len(G.texts) == 1 and len(guidance_from_text(unet, X, NULL, NULL, Stepped(10), both=True).texts) == 2


def test_branches_of_weight_zero_are_not_evaluated():
    rows = []

    def unet(x, t, text, inject=None):
        rows.append(len(text))
        return x.expand(len(text), *x.shape[1:])

    guided(unet, X, 1, NULL, NULL, 1.0)
    guided(unet, X, 1, NULL, NULL, 7.5)
    guided(unet, X, 1, NULL, NULL, 7.5, negative=NULL, alpha=0.0)
    guided(unet, X, 1, NULL, NULL, 7.5, negative=NULL, alpha=1.0)
    guided(unet, X, 1, NULL, NULL, 7.5, negative=NULL, alpha=0.5)
    assert rows == [1, 2, 2, 2, 3]
