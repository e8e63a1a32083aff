"""`edit` of an original in Python: what each method is given of it, and what is made once for all."""

import functools
from dataclasses import replace

import pytest
import torch
from shell import CAT, PROMPT, SOURCE

import minipnp
from minipnp import pipeline
from minipnp.errors import InputError
from minipnp.files import hub
from minipnp.files.images import fit, read_image, to_tensor
from minipnp.methods import (
    ddim_swap,
    masactrl,
    masked_pnp,
    original,
    p2p,
    pix2pix_zero,
    sdedit,
    skip_inject,
)
from minipnp.methods.align import new_phrase, word_swap
from minipnp.methods.ddim_swap import DDIMSwap
from minipnp.methods.directions import direction, save_direction, sentences
from minipnp.methods.masactrl import MasaCtrl
from minipnp.methods.masked_pnp import Mask, MaskedPnP
from minipnp.methods.original import Original, Taking
from minipnp.methods.p2p import P2P
from minipnp.methods.pix2pix_zero import Pix2PixZero
from minipnp.methods.registry import METHODS, edit, method_of
from minipnp.methods.regularised import Regularisation
from minipnp.methods.sdedit import SDEdit
from minipnp.methods.skip_inject import SkipInject
from minipnp.methods.words import positions
from minipnp.options import Options, Stepped, options_of
from minipnp.pnp import PnP

pytest_plugins = ["shell_fixtures"]
pytestmark = pytest.mark.usefixtures("here")
TWO = minipnp.Inversion(steps=2)


@pytest.fixture
def sd(load_once):
    return load_once(hub.WEIGHTS / "bundled", device="cpu")


@pytest.fixture
def picture(sd):
    return to_tensor(fit(read_image(CAT), sd.size, sd.multiple))


@pytest.fixture
def given(sd, picture, monkeypatch):
    """given(settings, negative, prompt) → the original, and what the method's algorithm is called with."""

    def given(s, negative=None, prompt=PROMPT, generated=False):
        taking = Taking(seed=7)
        if generated:
            o = Original.from_text(sd, SOURCE, taking)
        else:
            o = Original.from_picture(sd, picture, SOURCE, taking, TWO)
        calls = {}

        def recorder(name):
            def record(*args, **how):
                calls[name] = args
                assert not how
                return o.guidance(Stepped(2)) if name == "regularised_inversion" else iter([(0, o.x_0(Stepped(2)))])

            return record

        algorithms = {
            "plug_and_play": pipeline, "sdedit": sdedit, "ddim_swap": ddim_swap, "prompt_to_prompt": p2p,
            "pix2pix_zero": pix2pix_zero, "masactrl": masactrl, "masked_plug_and_play": masked_pnp,
            "skip_inject": skip_inject, "regularised_inversion": original,
        }  # fmt: skip
        with monkeypatch.context() as patch:
            for name, module in algorithms.items():
                patch.setattr(module, name, recorder(name))
            edit(o, prompt, s, negative)
        return o, calls

    return given


def test_prompt_to_prompt_is_given_what_was_asked_for(given):
    asked = P2P(
        2, cross_replace=0.7, self_replace=0.3, scale=3.0, self_side=0.5, weight={"tiger": 2.0}, share={"teal": 0.6},
        blend=["cat=tiger"], spare=["background"], blend_threshold=0.4, blend_start=0.1,
    )  # fmt: skip
    o, calls = given(asked)
    _, G, source, target, null, words, s = calls["prompt_to_prompt"]
    where = functools.partial(positions, o.sd.tokenizer)
    assert G is o.guidance(Stepped(2), by_source=True) and torch.equal(source, o.text)
    assert torch.equal(target, o.sd.embed(PROMPT)) and torch.equal(null, o.text) and s == asked
    assert words.weights == dict.fromkeys(where(PROMPT, "tiger"), 2.0)
    assert words.shares == dict.fromkeys(where(PROMPT, "teal"), 0.6)
    assert words.blend.words == ({"cat": where(SOURCE, "cat")}, {"tiger": where(PROMPT, "tiger")})
    assert words.blend.substruct == tuple({"background": where(text, "background")} for text in (SOURCE, PROMPT))
    assert (words.blend.thresholds, words.blend.start, words.blend.side) == ((0.4, 0.4), 0.1, o.share)
    expected = word_swap(o.sd.tokenizer, SOURCE, PROMPT)
    assert all(torch.equal(a, b) for a, b in zip(words.alignment, expected, strict=True))
    o, calls = given(P2P(2, align="phrase"), negative="red")
    _, _, _, _, null, words, s = calls["prompt_to_prompt"]
    assert torch.equal(null, o.sd.embed("red")) and s.self_side == o.share
    expected = new_phrase(o.sd.tokenizer, SOURCE, PROMPT)
    assert all(torch.equal(a, b) for a, b in zip(words.alignment, expected, strict=True))
    o, calls = given(P2P(2), generated=True)
    assert torch.equal(calls["prompt_to_prompt"][4], o.null)  # it was generated against the empty prompt


def test_masactrl_is_given_what_was_asked_for(given):
    asked = MasaCtrl(2, 3.0, start_step=1, start_layer=9, threshold=0.2, word="cat=tiger")
    o, calls = given(asked, "red")
    _, G, target, null, words, s = calls["masactrl"]
    assert torch.equal(G.texts, torch.cat([o.null, o.text])) and G.x_T is o.guidance(Stepped(2)).x_T
    assert torch.equal(target, o.sd.embed(PROMPT)) and torch.equal(null, o.sd.embed("red"))
    assert words == (positions(o.sd.tokenizer, SOURCE, "cat"), positions(o.sd.tokenizer, PROMPT, "tiger"))
    assert s == replace(asked, mask_share=o.share)
    o, calls = given(MasaCtrl(2, start_step=1))
    assert calls["masactrl"][4] is None and torch.equal(calls["masactrl"][3], o.null)


def test_pix2pix_zero_is_given_what_was_asked_for(given):
    how = dict(scale=3.0, amount=0.3, lambda_ac=5.0, lambda_kl=6.0, gain=0.5, authors=True)
    o, calls = given(Pix2PixZero(2, change="cat=dog", **how))
    _, x_0, source, edit, regularisation, _ = calls["regularised_inversion"]
    assert x_0 is o.x_0(Stepped(2)) and torch.equal(source, o.text) and edit.levels == [501, 1]
    assert regularisation == Regularisation(5.0, 6.0, gain=0.5, seed=7, authors=True)
    _, G, delta, against, s = calls["pix2pix_zero"]
    assert against is None and s == Pix2PixZero(2, change="cat=dog", **how)
    assert torch.equal(delta, direction(o.sd.embed, sentences("cat"), sentences("dog")))
    o, calls = given(Pix2PixZero(2))
    assert torch.equal(calls["pix2pix_zero"][2], o.sd.embed(PROMPT) - o.text)
    o, calls = given(Pix2PixZero(2), negative="red", generated=True)
    _, G, _, against, s = calls["pix2pix_zero"]
    assert "regularised_inversion" not in calls and G is o.guidance(Stepped(2))
    assert s.amount == 0.15 and torch.equal(against, o.sd.embed("red"))


def test_the_others_are_given_what_was_asked_for(given):
    o, calls = given(PnP(2, scale=3.0, tau_f=0.6, tau_A=0.4), "red")
    _, G, (target,), null, negative, s, x_T = calls["plug_and_play"]
    assert s == PnP(2, scale=3.0, tau_f=0.6, tau_A=0.4) and G is o.guidance(Stepped(2)) and x_T is None
    assert torch.equal(target, o.sd.embed(PROMPT)) and torch.equal(null, o.null)
    assert torch.equal(negative, o.sd.embed("red"))
    o, calls = given(PnP(2, random_start=9))
    assert calls["plug_and_play"][4] is None and torch.equal(calls["plug_and_play"][6], o.noise(9))
    o, calls = given(SDEdit(2, 0.6, 3.0), "red")
    _, x_0, z, target, null, s = calls["sdedit"]
    assert s == SDEdit(2, 0.6, 3.0) and x_0 is o.x_0(Stepped(2)) and torch.equal(z, o.noise(7))
    assert torch.equal(target, o.sd.embed(PROMPT)) and torch.equal(null, o.sd.embed("red"))
    o, calls = given(DDIMSwap(2, 3.0), "red")
    _, G, target, null, s = calls["ddim_swap"]
    assert (
        G is o.guidance(Stepped(2), by_source=True) and s == DDIMSwap(2, 3.0) and torch.equal(null, o.sd.embed("red"))
    )
    o, calls = given(SkipInject(2, 0.6, scale=3.0), "red")
    _, G, target, null, s = calls["skip_inject"]
    assert G is o.guidance(Stepped(2)) and s == SkipInject(2, 0.6, scale=3.0) and torch.equal(null, o.sd.embed("red"))


def test_masked_pnp_is_given_what_was_asked_for(given):
    asked = MaskedPnP(2, 0.6, 0.4, 3.0, word="cat=tiger", threshold=0.2, random_start=9)
    o, calls = given(asked, "red")
    _, G, target, null, where, negative, s, m, x_T = calls["masked_plug_and_play"]
    assert s == asked and m == Mask(threshold=0.2, share=o.share) and torch.equal(x_T, o.noise(9))
    assert torch.equal(where.source, o.text) and where.in_source == positions(o.sd.tokenizer, SOURCE, "cat")
    assert where.in_target == positions(o.sd.tokenizer, PROMPT, "tiger")
    assert torch.equal(null, o.null) and torch.equal(negative, o.sd.embed("red"))


def test_an_inversion_is_made_once_for_all_methods(sd, picture, passes):
    o = Original.from_picture(sd, picture, SOURCE, inversion=TWO)
    assert o.guidance(Stepped(2)) is o.guidance(Stepped(2)) and o.guidance(Stepped(2)) is not o.guidance(
        Stepped(2), by_source=True
    )
    assert torch.equal(edit(o, PROMPT, DDIMSwap(2)), edit(o, PROMPT, DDIMSwap(2)))
    passes.clear()
    edit(o, PROMPT, P2P(2, cross_replace=0.0, self_replace=0.0))
    assert sum(passes) == 4  # its own two steps of two texts: DDIM's inversion serves it
    assert o.regularised(Stepped(2), Regularisation()) is o.regularised(Stepped(2), Regularisation())
    assert o.regularised(Stepped(2), Regularisation()) is not o.regularised(Stepped(2), Regularisation(seed=1))


def test_a_direction_is_made_once_for_the_check_and_the_edit(sd, picture, monkeypatch):
    o, made = Original.from_picture(sd, picture, SOURCE, inversion=TWO), []
    monkeypatch.setattr(pix2pix_zero, "direction", lambda *texts: made.append(texts) or direction(*texts))
    s = Pix2PixZero(2, change="cat=dog")
    METHODS["pix2pix-zero"].check(o, PROMPT, s)
    edit(o, PROMPT, s)
    assert len(made) == 1


@pytest.mark.parametrize("s", [PnP(4), MaskedPnP(4, word="cat=tiger")])
def test_features_kept_with_the_inversion_make_the_same_picture_to_the_bit(sd, picture, s):
    how = minipnp.Inversion(steps=4, at="current")
    keeping, plain = (Original.from_picture(sd, picture, SOURCE, inversion=how, keep=keep) for keep in (s, None))
    assert torch.equal(edit(keeping, PROMPT, s), edit(plain, PROMPT, s))
    assert len(keeping.guidance(Stepped(4)).features) == 3 and not plain.guidance(Stepped(4)).features


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if name != "masked-pnp"])
def test_a_guidance_is_an_original_too(sd, picture, method):
    s = METHODS[method].settings.given({"steps": 2, "start_step": 0})
    G = minipnp.guidance_from_picture(sd, picture, Stepped(2))
    here, there = (
        Original.from_guidance(sd, G, SOURCE, inversion=TWO),
        Original.from_picture(sd, picture, SOURCE, inversion=TWO),
    )
    assert torch.equal(edit(here, PROMPT, s), edit(there, PROMPT, s))
    assert torch.equal(
        here.picture(Stepped(2)), there.picture(Stepped(2))
    ) and here.latent_sides == there.latent_sides == (32, 32)


def test_sdedit_of_a_generated_picture_does_not_begin_with_that_picture_s_own_noise(sd, monkeypatch):
    seeds, noise = [], type(sd).noise
    monkeypatch.setattr(type(sd), "noise", lambda sd, h, w, seed: seeds.append(seed) or noise(sd, h, w, seed))
    edit(Original.from_text(sd, SOURCE, Taking(seed=5)), PROMPT, SDEdit(2))
    assert sorted(seeds) == [5, 6]


def test_several_prompts_are_a_row_each(sd, picture):
    o = Original.from_picture(sd, picture, SOURCE, inversion=TWO)
    for s in (PnP(2), DDIMSwap(2)):
        both = edit(o, [PROMPT, "a dog"], s)
        assert both.shape == (2, 3, 128, 128)
        assert torch.equal(both[1:], edit(o, "a dog", s)) and torch.equal(both[:1], edit(o, (PROMPT,), s))


def test_what_python_is_told_of_its_mistakes(sd, picture):
    o = Original.from_picture(sd, picture, inversion=TWO)
    for s, prompts, says in (
        (P2P(2), PROMPT, "p2p needs a text for what is edited"),
        (PnP(2), [], "no prompt"),
        (TWO, PROMPT, "Inversion: not the settings of a method; give PnP, SDEdit, "),
    ):
        with pytest.raises(InputError, match=says):
            edit(o, prompts, s)
    with pytest.raises(InputError, match="both sides must be multiples of 32"):
        Original.from_picture(sd, picture[..., :40])
    assert all(method_of(m.settings.given({"word": "a"})) is m for m in METHODS.values())


@pytest.mark.parametrize("method", METHODS)
def test_settings_and_their_records(method):
    """Names are those of the command line and of records; a record gives the settings again."""
    s = METHODS[method].settings.given({"word": "cat"})
    assert isinstance(s, Options) and s.record().keys() == {o.name for o in options_of(type(s))}
    assert type(s).given(s.record()) == s == s.with_({}) != s.with_({"steps": 7})
    assert s.with_({"steps": 7}).steps == 7
    with pytest.raises(AttributeError):
        s.steps = 3
    for bad in (0, 1000, 2.5, "2", None, True, float("nan"), float("inf")):
        with pytest.raises(InputError, match=f"steps = {bad!r}: give a whole number from 1 to 999"):
            s.with_({"steps": bad})


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: PnP(tau_f=2), "tau_f = 2: give a share from 0 to 1"),
        (lambda: PnP(tau_f="0.5"), "tau_f = '0.5': give a share from 0 to 1"),
        (lambda: PnP(scale=float("inf")), "scale = inf: give a number"),
        (lambda: PnP(f_layers="12"), "f_layers = '12': give decoder layers from 0 to 11"),
        (lambda: PnP(A_layers=(2,)), "A_layers: no self-attention in decoder 2; give from 3 to 11"),
        (lambda: PnP(alpha_schedule="square"), "alpha_schedule = 'square': give one of constant, linear, exp"),
        (lambda: PnP(random_start=-1), "random_start = -1: give a whole number from 0 to "),
        (lambda: SDEdit(strength=True), "strength = True: give a share"),
        (lambda: P2P(share={"tiger": 2}), "share = {'tiger': 2}: give WORD=SHARE"),
        (lambda: P2P(cross_replace=(0.5, 0.2)), "cross_replace = (0.5, 0.2): give a share"),
        (lambda: Pix2PixZero(authors=True, scale=1), "guidance scale 1 has one branch"),
        (lambda: MaskedPnP(), "give either --word or --mask"),
        (lambda: minipnp.Inversion(at="here"), "inversion_at = 'here': give one of next, current, last"),
        (lambda: minipnp.Inversion(iterations=0), "'last' with a fixed-point iteration"),
        (lambda: Taking(seed=2**64), "seed = 18446744073709551616: give a whole number from 0 to 2^64 - 1"),
    ],
)
def test_values_out_of_range(make, says):
    with pytest.raises(InputError) as error:
        make()
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_direction_is_saved_twice_to_one_name_if_it_is_the_same(tmp_path):
    delta, path = torch.randn(1, 77, 8, generator=torch.Generator().manual_seed(0)), tmp_path / "d.safetensors"
    for _ in range(2):
        save_direction(path, delta, "cat", "dog", 32)
    content = path.read_bytes()
    for other in ((delta + 1, "cat", "dog"), (delta, "cat", "tiger")):
        with pytest.raises(InputError, match="something else is there"):
            save_direction(path, *other, 32)
    assert path.read_bytes() == content
