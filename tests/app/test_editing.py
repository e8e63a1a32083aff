"""The other methods from the command line, on the bundled model: two steps each, to be quick."""

import functools
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import minipnp
from minipnp.app import compare, options
from minipnp.app.cli import main
from minipnp.errors import InputError
from minipnp.files import hub
from minipnp.files.images import fit, read_image, to_tensor
from minipnp.methods import editing, original
from minipnp.methods.align import new_phrase, word_swap
from minipnp.methods.ddim_swap import DDIMSwap
from minipnp.methods.directions import direction, save_direction, sentences
from minipnp.methods.editing import METHODS, edit
from minipnp.methods.masactrl import MasaCtrl
from minipnp.methods.masked_pnp import Mask
from minipnp.methods.original import Original
from minipnp.methods.p2p import P2P
from minipnp.methods.pix2pix_zero import Pix2PixZero
from minipnp.methods.regularised import Regularisation
from minipnp.methods.sdedit import SDEdit
from minipnp.methods.words import positions
from minipnp.pnp import PnP

CAT = hub.WEIGHTS / "bundled/examples/cat-twemoji.png"
SOURCE, PROMPT = "a twemoji icon of a cat on a blue background", "a twemoji icon of a tiger on a teal background"
QUICK = ["--model=bundled", "--device=cpu", "--quiet"]
WITH = {
    "masactrl": ["--word=cat=tiger", "--start-step=0"],
    "masked-pnp": ["--word=cat=tiger"],
    "p2p": ["--blend=cat=tiger"],
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, load_once):
    monkeypatch.setattr(minipnp, "load", load_once, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def load_once():
    return functools.cache(minipnp.load)


def translate(method, *options, image=CAT, prompt=PROMPT, source=SOURCE):
    given = [f"--image={image}"] if image else []
    given += [f"--source={source}"] if source else []
    given += ["--inversion-steps=2"] if image and method not in ("sdedit", "pix2pix-zero") else []
    return main(["translate", f"--method={method}", f"--prompt={prompt}", *given, *QUICK, *options])


@pytest.mark.parametrize("method", [name for name in METHODS if name != "pnp"])
def test_each_method_makes_its_picture_the_same_each_time(here, method):
    for out in ("a", "b"):
        assert translate(method, "--steps=2", f"--out={out}", *WITH.get(method, [])) == 0
    picture = here / "a" / f"{method}.png"
    assert Image.open(picture).size == (64, 64)
    assert picture.read_bytes() == (here / "b" / f"{method}.png").read_bytes()
    settings = json.loads((here / "a" / "run.json").read_text())["settings"]
    assert settings["method"] == method and settings["options"]["steps"] == 2


@pytest.mark.parametrize("method", ["sdedit", "p2p", "pix2pix-zero", "masactrl"])
def test_a_generated_source_needs_no_picture(here, method):
    assert translate(method, "--steps=2", "--seed=3", "--out=o", *WITH.get(method, []), image=None) == 0
    assert (here / "o" / f"{method}.png").exists()


@pytest.mark.parametrize(
    "model, more, scale",
    [("own", [], 3.0), ("own", ["--scale=4"], 4.0), ("own", ["--source-scale=2"], 2.0), ("plain", [], 5.0)],
)
def test_a_generated_source_has_the_scale_of_the_edit(here, monkeypatch, model, more, scale):
    """The model's own, which the bundled one tells, what is given, or the method's."""
    if model == "plain":
        monkeypatch.setattr("minipnp.app.models.known_words", lambda path: None)
    assert translate("ddim", "--steps=2", "--seed=3", "--out=o", *more, image=None, prompt=SOURCE) == 0
    settings = json.loads((here / "o" / "run.json").read_text())["settings"]
    assert settings["source_scale"] == scale


def test_every_option_reaches_its_method():
    """What the command line lists for a method is what the method has, by name."""
    for flag, name, methods, *_ in options.METHOD_OPTIONS:
        for method in methods.split(", "):
            assert name in METHODS[method].options, flag
    listed = {name for _, name, *_ in options.METHOD_OPTIONS}
    general = {"steps", "scale", "tau_f", "tau_A"}
    assert {name for method in METHODS.values() for name in method.options} - general == listed
    assert tuple(METHODS) == options.METHOD_NAMES


@pytest.fixture
def given(load_once, monkeypatch):
    """given(method, negative, **options) → what the method itself is called with, and the Original."""
    sd = load_once(hub.WEIGHTS / "bundled", device="cpu")
    x_0 = sd.encode(to_tensor(fit(read_image(CAT), sd.size, sd.multiple)))

    def given(method, negative=None, prompt=PROMPT, **options):
        o = Original(sd, x_0, SOURCE, seed=7, inversion=minipnp.Inversion(steps=2))
        calls = {}

        def recorder(name):
            def record(*args, **how):
                calls[name] = args, how
                return o.guidance(2) if name == "regularised_inversion" else iter([(0, x_0)])

            return record

        names = ("plug_and_play", "sdedit", "ddim_swap", "prompt_to_prompt", "pix2pix_zero", "masactrl",
                 "masked_plug_and_play", "regularised_inversion")  # fmt: skip
        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(original if name == "regularised_inversion" else editing, name, recorder(name))
            edit(method, o, prompt, negative, {"steps": 2, **options})
        return o, calls

    return given


def test_prompt_to_prompt_is_given_what_was_asked_for(given):
    o, calls = given(
        "p2p", cross_replace=0.7, self_replace=0.3, scale=3.0, self_side=0.5, weight={"tiger": 2.0},
        share={"teal": 0.6}, blend=["cat=tiger"], spare=["background"], blend_threshold=0.4, blend_start=0.1,
    )  # fmt: skip
    (_, G, source, target, null, alignment, s, weights, shares, blend), _ = calls["prompt_to_prompt"]
    where = functools.partial(positions, o.sd.tokenizer)
    assert G is o.guidance(2, by_source=True) and torch.equal(source, o.text)
    assert torch.equal(target, o.sd.embed(PROMPT)) and torch.equal(null, o.text)
    assert s == P2P(steps=2, cross_replace=0.7, self_replace=0.3, self_side=0.5, scale=3.0)
    assert weights == dict.fromkeys(where(PROMPT, "tiger"), 2.0) and shares == dict.fromkeys(where(PROMPT, "teal"), 0.6)
    assert blend.words == ({"cat": where(SOURCE, "cat")}, {"tiger": where(PROMPT, "tiger")})
    assert blend.substruct == tuple({"background": where(text, "background")} for text in (SOURCE, PROMPT))
    assert (blend.thresholds, blend.start, blend.side) == ((0.4, 0.4), 0.1, o.share)
    expected = word_swap(o.sd.tokenizer, SOURCE, PROMPT)
    assert all(torch.equal(a, b) for a, b in zip(alignment, expected, strict=True))
    o, calls = given("p2p", negative="red", align="phrase")
    _, _, _, _, null, alignment, *_ = calls["prompt_to_prompt"][0]
    assert torch.equal(null, o.sd.embed("red"))
    expected = new_phrase(o.sd.tokenizer, SOURCE, PROMPT)
    assert all(torch.equal(a, b) for a, b in zip(alignment, expected, strict=True))


def test_masactrl_is_given_what_was_asked_for(given):
    o, calls = given("masactrl", "red", scale=3.0, word="cat=tiger", start_step=1, start_layer=9, threshold=0.2)
    (_, G, target, null, words, s), _ = calls["masactrl"]
    assert torch.equal(G.texts, torch.cat([o.null, o.text])) and G.x_T is o.guidance(2).x_T
    assert torch.equal(target, o.sd.embed(PROMPT)) and torch.equal(null, o.sd.embed("red"))
    assert words == (positions(o.sd.tokenizer, SOURCE, "cat"), positions(o.sd.tokenizer, PROMPT, "tiger"))
    assert s == MasaCtrl(2, 3.0, start_step=1, start_layer=9, threshold=0.2, mask_share=o.share)


def test_pix2pix_zero_is_given_what_was_asked_for(given):
    how = dict(scale=3.0, amount=0.3, lambda_ac=5.0, lambda_kl=6.0, gain=0.5, as_published=True)
    o, calls = given("pix2pix-zero", change="cat=dog", **how)
    (_, x_0, source, steps, regularisation, _), _ = calls["regularised_inversion"]
    assert x_0 is o.x_0(2) and torch.equal(source, o.text) and steps == 2
    assert regularisation == Regularisation(5.0, 6.0, gain=0.5, seed=7, authors=True)
    (_, G, delta, against, s), _ = calls["pix2pix_zero"]
    assert against is None and s == Pix2PixZero(2, 3.0, 0.3, True)
    assert torch.equal(delta, direction(o.sd.embed, sentences("cat"), sentences("dog")))
    o, calls = given("pix2pix-zero")
    assert torch.equal(calls["pix2pix_zero"][0][2], o.sd.embed(PROMPT) - o.text)


def test_the_others_are_given_what_was_asked_for(given):
    o, calls = given("pnp", "red", scale=3.0, tau_f=0.6, tau_A=0.4)
    (_, G, (target,), null), how = calls["plug_and_play"]
    assert how == {"s": PnP(steps=2, scale=3.0, tau_f=0.6, tau_A=0.4)} and G is o.guidance(2)
    assert torch.equal(target, o.sd.embed(PROMPT)) and torch.equal(null, o.sd.embed("red"))
    o, calls = given("sdedit", "red", scale=3.0, strength=0.4)
    (_, x_0, z, target, null, s), _ = calls["sdedit"]
    assert s == SDEdit(2, 0.4, 3.0) and x_0 is o.x_0(2) and torch.equal(z, o.sd.noise(*x_0.shape[2:], 7))
    assert torch.equal(target, o.sd.embed(PROMPT)) and torch.equal(null, o.sd.embed("red"))
    o, calls = given("ddim", "red", scale=3.0)
    (_, G, target, null, s), _ = calls["ddim_swap"]
    assert G is o.guidance(2, by_source=True) and s == DDIMSwap(2, 3.0) and torch.equal(null, o.sd.embed("red"))
    o, calls = given("masked-pnp", "red", scale=3.0, tau_f=0.6, tau_A=0.4, word="cat=tiger", threshold=0.2)
    (_, G, target, null, where), how = calls["masked_plug_and_play"]
    assert how["s"] == PnP(steps=2, scale=3.0, tau_f=0.6, tau_A=0.4) and how["m"] == Mask(threshold=0.2, share=o.share)
    assert torch.equal(where.source, o.text) and where.in_source == positions(o.sd.tokenizer, SOURCE, "cat")
    assert where.in_target == positions(o.sd.tokenizer, PROMPT, "tiger") and torch.equal(null, o.sd.embed("red"))


def test_masked_pnp_takes_the_thresholds_of_plug_and_play(here):
    assert translate("masked-pnp", "--word=cat=tiger", "--tau-f=0.6", "--tau-a=0.4", "--steps=2", "--out=o") == 0
    options = json.loads((here / "o" / "run.json").read_text())["settings"]["options"]
    assert (options["tau_f"], options["tau_A"]) == (0.6, 0.4)


REFUSED = {
    "an option of another method": (["sdedit", "--word=cat"], "--word: not an option of --method sdedit"),
    "an option of Plug-and-Play": (["p2p", "--f-layers=4"], "--f-layers: not an option of --method p2p"),
    "a word that is not there": (["masked-pnp", "--word=dog"], "'dog' is not in the prompt, its words: a, twemoji"),
    "no object": (["masked-pnp"], "give either --word or --mask"),
    "prompts that cannot be swapped": (["p2p", "--align=swap", "--prompt=a red tiger"], "needs as many words"),
    "half a direction": (["pix2pix-zero", "--change=cat"], "give WORD=WORD"),
    "two directions": (["pix2pix-zero", "--change=cat=dog", "--direction=x"], "not both"),
    "a lost direction": (["pix2pix-zero", "--direction=no.safetensors"], "not a saved edit direction"),
    "spare without blend": (["p2p", "--spare=cat=tiger"], "give --blend too"),
    "a strength of 2": (["sdedit", "--strength=2"], "give a share from 0 to 1"),
    "a step too late": (["masactrl", "--start-step=3"], "give a number from 0"),
    "a mask that is no picture": (["masked-pnp", "--mask=no.png"], "no.png"),
    "a mask of another shape": (["masked-pnp", "--mask=wide.png"], "own shape, which is edited at 64x64"),
    "a mask of everything": (["masked-pnp", "--mask=white.png"], "white all over"),
    "a weight of no use": (["p2p", "--weight=tiger=3", "--cross-replace=0"], "--weight tiger=… changes nothing"),
    "a weight of a word that is let go": (["p2p", "--weight=tiger=3", "--share=tiger=0"], "--weight tiger=… changes"),
    "a direction for each of two prompts": (
        ["pix2pix-zero", "--save-direction=b", "--prompt=a", "--prompt=c"],
        "give one prompt",
    ),
    "a direction in the place of a file": (["pix2pix-zero", "--save-direction=wide.png"], "something else is there"),
    "a scale of no use": (["ddim", "--source-scale=3"], "--source-scale changes nothing"),
    "an inversion of no use": (["sdedit", "--fixed-point=2"], "--fixed-point changes nothing, sdedit does not invert"),
    "two prompts of no use": (["pix2pix-zero", "--change=cat=dog", "--prompt=b"], "makes one picture"),
    "a direction that is there": (
        ["pix2pix-zero", "--direction=a", "--save-direction=b"],
        "--save-direction changes nothing, --direction is a saved one",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_ends_in_one_line(here, capsys, case):
    (method, *options), said = REFUSED[case]
    Image.new("L", (128, 64)).save("wide.png")
    Image.new("RGBA", (64, 64)).save("white.png")  # all transparent, which is white
    prompt = next((o.removeprefix("--prompt=") for o in options if o.startswith("--prompt=")), PROMPT)
    options = [o for o in options if not o.startswith("--prompt=")] + ["--prompt=c"] * case.startswith(
        ("two prompts", "a direction for each")
    )
    assert translate(method, "--steps=2", "--out=o", *options, prompt=prompt) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("minipnp: error: ") and said in line
    assert not (here / "o").exists()


@pytest.mark.parametrize("method", ["p2p", "ddim"])
def test_a_method_that_needs_the_sources_text_says_so(capsys, method):
    assert translate(method, "--steps=2", source=None) == 2
    assert "give --source" in capsys.readouterr().err


def test_options_of_other_methods_are_refused_by_plug_and_play(capsys):
    assert main(["translate", f"--image={CAT}", f"--prompt={PROMPT}", "--word=cat", *QUICK]) == 2
    assert "--word is an option of masactrl, masked-pnp" in capsys.readouterr().err


def test_a_direction_is_saved_and_gives_the_same_picture_again(here):
    assert (
        translate("pix2pix-zero", "--steps=2", "--out=a", "--change=cat=tiger", "--save-direction=d.safetensors") == 0
    )
    assert load_file(here / "d.safetensors")["direction"].dim() == 3
    assert translate("pix2pix-zero", "--steps=2", "--out=b", "--direction=d.safetensors") == 0
    first, second = (read_image(here / folder / "pix2pix-zero.png") for folder in "ab")
    assert first.tobytes() == second.tobytes()  # their settings, in the files, differ


def test_a_mask_picture_keeps_what_is_black(here):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save(here / "mask.png")
    assert translate("masked-pnp", "--steps=2", "--out=o", "--mask=mask.png") == 0
    made = read_image(here / "o/masked-pnp.png")
    kept = main(
        ["translate", "--method=sdedit", "--strength=0", f"--image={CAT}", f"--prompt={PROMPT}", "--out=r", *QUICK]
    )
    assert kept == 0
    x, original = (to_tensor(picture)[0] for picture in (made, read_image(here / "r/sdedit.png")))
    difference = (x - original).abs().mean(dim=(0, 1))  # by column
    # The latents on the right are the source's own; the decoder's attention still carries a little over to them.
    assert difference[48:].mean() < 0.05 < 0.15 < difference[:24].mean()


def test_an_inversion_is_made_once_for_all_methods(load_once, monkeypatch):
    sd = load_once(hub.WEIGHTS / "bundled", device="cpu")
    x_0 = sd.encode(to_tensor(fit(read_image(CAT), sd.size, sd.multiple)))
    o = Original(sd, x_0, SOURCE, inversion=minipnp.Inversion(steps=2))
    assert o.guidance(2) is o.guidance(2)
    assert o.guidance(2) is not o.guidance(2, by_source=True)
    assert torch.equal(edit("ddim", o, PROMPT, options={"steps": 2}), edit("ddim", o, PROMPT, options={"steps": 2}))
    with pytest.raises(InputError, match="sdedit has no option tau_f"):
        edit("sdedit", o, PROMPT, options={"tau_f": 0.5})


@pytest.mark.parametrize("method, options", [("pnp", {"steps": 4}), ("masked-pnp", {"steps": 4, "word": "cat=tiger"})])
def test_features_kept_with_the_inversion_make_the_same_picture_to_the_bit(load_once, method, options):
    sd = load_once(hub.WEIGHTS / "bundled", device="cpu")
    x_0 = sd.encode(to_tensor(fit(read_image(CAT), sd.size, sd.multiple)))
    how = minipnp.Inversion(steps=4, at="current")
    keeping, plain = (Original(sd, x_0, SOURCE, inversion=how, keep=keep) for keep in (True, False))
    assert torch.equal(edit(method, keeping, PROMPT, options=options), edit(method, plain, PROMPT, options=options))
    assert len(keeping.guidance(4).features) == 3 and not plain.guidance(4).features


def test_sdedit_of_a_generated_picture_does_not_begin_with_that_picture_s_own_noise(load_once, monkeypatch):
    sd = load_once(hub.WEIGHTS / "bundled", device="cpu")
    seeds, noise = [], type(sd).noise
    monkeypatch.setattr(type(sd), "noise", lambda sd, h, w, seed: seeds.append(seed) or noise(sd, h, w, seed))
    edit("sdedit", Original(sd, None, SOURCE, seed=5), PROMPT, options={"steps": 2})
    assert seeds == [5, 6]


def test_compare_leaves_out_what_a_method_cannot_do(here, capsys):
    argv = [
        "compare",
        f"--image={CAT}",
        f"--source={SOURCE}",
        "--prompt=a tiger and its cub",
        "--word=cat=tiger",
        *QUICK,
    ]
    runs = [("p2p", {"steps": 2, "align": "swap"}, "swap"), ("sdedit", {"steps": 2}, "SDEdit")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "runs", lambda *_: runs)
        assert main([*argv, "--inversion-steps=2", "--out=o"]) == 0
    run = json.loads((here / "o/run.json").read_text())
    assert len(run["table"]) == 3 and any(n.startswith("swap is left out: ") for n in run["notes"])


def test_compare_makes_one_sheet_and_one_table(here, capsys, monkeypatch):
    runs = compare.runs("cat=tiger")
    early = {"masactrl": {"start_step": 0}}
    quick = [(name, {"steps": 2} | early.get(name, {}) | options, label) for name, options, label in runs]
    monkeypatch.setattr(compare, "runs", lambda *_: quick)
    assert main(["compare", "--device=cpu", "--inversion-steps=2", "--out=o"]) == 0
    table = json.loads((here / "o/run.json").read_text())["table"]
    assert len(table) == 2 + len(quick) and all(label in "\n".join(table) for _, _, label in quick)
    width, height = Image.open(here / "o/compare.png").size
    assert width > 4 * 256 and height > 3 * 256
    assert "Prompt-to-Prompt" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--source=a dog", "--word=dog"])
def test_compare_takes_words_of_a_picture_with_the_picture_only(here, capsys, option):
    assert main(["compare", "--device=cpu", option]) == 2
    assert "give --image too" in capsys.readouterr().err


def test_a_direction_is_saved_twice_to_one_name_if_it_is_the_same(here, tmp_path):
    delta, path = torch.randn(1, 77, 8, generator=torch.Generator().manual_seed(0)), tmp_path / "d.safetensors"
    for _ in range(2):
        save_direction(path, delta, "cat", "dog", 32)
    content = path.read_bytes()
    for other in ((delta + 1, "cat", "dog"), (delta, "cat", "tiger")):
        with pytest.raises(InputError, match="something else is there"):
            save_direction(path, *other, 32)
    assert path.read_bytes() == content


def test_edges_measure_layout():
    cat = read_image(CAT)
    assert compare.edges(cat, cat) == pytest.approx(1.0)
    assert compare.edges(cat, cat.transpose(Image.Transpose.FLIP_TOP_BOTTOM)) < 0.5
    assert compare.edges(cat, Image.new("RGB", cat.size)) == 0


@pytest.mark.parametrize("method", ["p2p", "pix2pix-zero"])
def test_the_authors_forms_are_an_option(here, method):
    """Another picture, as prompts of unequal token counts and a shifted schedule must give."""
    for out, form in (("a", []), ("b", ["--as-published"])):
        prompt = "a twemoji icon of a sailboat on a teal background"
        how = ["--inversion-steps=10"] if method == "p2p" else []
        assert translate(method, "--steps=10", *how, f"--out={out}", *form, prompt=prompt) == 0
    first, second = (read_image(here / folder / f"{method}.png") for folder in "ab")
    assert first.tobytes() != second.tobytes()
