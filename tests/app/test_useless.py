"""What `translate` refuses, each in one line: options that would change nothing, foreign ones, words of nothing."""

import re
from pathlib import Path

import pytest
from PIL import Image
from shell import CAT, COW, EDITS, HORSE, MODEL, PROMPT, QUICK, SAYS, files, translate

import minipnp
from minipnp.app.cli import main
from minipnp.app.options import by_method
from minipnp.app.useless import USELESS, flag_of
from minipnp.methods.registry import METHODS
from minipnp.options import options_of

pytest_plugins = ["shell_fixtures"]
pytestmark = pytest.mark.usefixtures("here")
P2Z = [f"--image={CAT}", "--method=pix2pix-zero", SAYS]
FILE = ["--guidance=cat.safetensors"]
# Of each row, by its first option and its reason, a command in which its options are useless.
WITH: dict[tuple[str, str], list[str]] = {
    ("image", "settled by --guidance"): FILE,
    ("seed", "settled by --guidance"): FILE,
    ("source_scale", "settled by --guidance"): FILE,
    ("source_scale", "the guidance is an --image here"): [f"--image={CAT}"],
    ("inversion_steps", "the guidance is generated here, not an --image"): [SAYS],
    ("source", "the guidance is an --image here"): [f"--image={CAT}"],
    ("source", "the method does not read it"): FILE,
    ("both", "the method takes features under one text"): [SAYS, "--method=sdedit"],
    ("inversion_steps", "the method does not invert"): [f"--image={CAT}", "--method=sdedit"],
    ("inversion_steps", "the method inverts in its own way"): P2Z,
    ("lambda_ac", "a generated picture is not inverted"): [SAYS, "--method=pix2pix-zero"],
    ("negative", "the method's inversion is without guidance"): P2Z,
    ("save_direction_to", "--direction is a saved one"): [*P2Z, "--direction=d"],
    ("blend_threshold", "it is that of --blend"): [f"--image={CAT}", "--method=p2p", SAYS],
    ("threshold", "it is that of --word"): [f"--image={CAT}", "--method=masactrl"],
    ("alpha", "it weighs the empty prompt against a negative one: give --negative too"): [f"--image={CAT}"],
    ("alpha_schedule", "--alpha is 0: give --alpha too"): [f"--image={CAT}", "--negative=red"],
    ("prompt", "--change or --direction says what to make"): [*P2Z, "--change=cat=dog"],
    ("like", "it sets the defaults of Plug-and-Play only"): [f"--image={CAT}", "--method=sdedit"],
}
VALUES = {  # of the options that are not numbers
    "image": str(HORSE), "source": "a cat", "negative": "red", "inversion_at": "next", "alpha_schedule": "exp",
    "like": "pnp-diffusers", "save_direction_to": "e", "square": None, "vae_sampled": None, "both": None,
    "reconstruct": None, "blend_threshold": "0.5",
}  # fmt: skip
ROWS = [(name, names[0], why) for names, _, why in USELESS for name in names]


@pytest.fixture(scope="module")
def guidance_file(tmp_path_factory, load_once):
    path = tmp_path_factory.mktemp("guidance") / "cat.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minipnp, "load", load_once, raising=False)
        assert main(["invert", *QUICK, f"--image={CAT}", f"--out={path}"]) == 0
    return path.read_bytes()


@pytest.mark.parametrize("name, first, why", ROWS, ids=[f"{name}: {why}" for name, _, why in ROWS])
def test_each_useless_option_is_refused(here, guidance_file, unloaded, capsys, name, first, why):
    Path("cat.safetensors").write_bytes(guidance_file)
    value = VALUES.get(name, "1")
    useless = flag_of(name) if value is None else f"{flag_of(name)}={value}"
    assert main(["translate", *MODEL, *WITH[first, why], f"--prompt={PROMPT}", useless, "--out=o"]) == 2
    out, said = capsys.readouterr()
    assert said == f"minipnp: error: {flag_of(name)} changes nothing, {why}: leave it out\n" and out == ""
    assert [*files(here)] == ["cat.safetensors"]


def test_each_row_is_a_case():
    assert WITH.keys() == {(names[0], why) for names, _, why in USELESS}


@pytest.mark.parametrize("method", METHODS)
def test_an_option_of_another_method_is_refused(unloaded, capsys, method):
    own = {o.name for o in options_of(METHODS[method].settings)}
    foreign = {name: having for name, having in by_method().items() if name not in own}
    assert foreign
    for having in foreign.values():
        o = having[0][1]
        value = {"align": "swap", "alpha_schedule": "exp", "weight": "a=1", "share": "a=1"}.get(o.name, "1")
        option = o.flag if o.form.switch else f"{o.flag}={value}"
        assert translate(method, option) == 2
        others = ", ".join(name for name, _ in having)
        said = f"minipnp: error: {o.flag}: not an option of --method {method}, but of {others}: leave it out\n"
        assert capsys.readouterr().err == said


@pytest.mark.parametrize("method", ["pnp", "sdedit", "skip-inject"])
def test_a_picture_s_text_is_refused_where_it_is_not_read(unloaded, capsys, method):
    assert translate(method, SAYS) == 2
    assert capsys.readouterr().err == (
        "minipnp: error: --source changes nothing, the guidance is an --image here: leave it out\n"
    )


def test_a_picture_s_text_is_refused_beside_a_mask(unloaded, capsys):
    masked = ["translate", "--method=masked-pnp", str(CAT), COW, "--mask=m.png", *QUICK]
    assert main([*masked, SAYS]) == 2
    assert "--source changes nothing" in capsys.readouterr().err
    assert main([*masked, "--threshold=0.5"]) == 2
    assert "--threshold changes nothing, it is that of --word" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["ddim", "p2p", "pix2pix-zero", "masactrl", "masked-pnp"])
def test_a_method_that_needs_the_source_s_text_says_so(unloaded, capsys, method):
    own = [option for option in EDITS[method] if option != SAYS]
    assert main(["translate", f"--method={method}", str(CAT), COW, *QUICK, *own]) == 2
    said = capsys.readouterr().err
    more = ", --change WORD=WORD, or --direction" if method == "pix2pix-zero" else ""
    assert said == f"minipnp: error: {method} needs a text for what is edited: give --source{more}\n"


def test_what_reads_the_source_s_text_where_there_is_one_runs_without_it():
    for method in ("masactrl", "pix2pix-zero"):
        more = {"masactrl": ["--start-step=1", COW], "pix2pix-zero": ["--change=cat=tiger"]}[method]
        assert main(["translate", f"--method={method}", str(CAT), *QUICK, *more]) == 0


REFUSED = {  # before the model is loaded
    "no object": (["masked-pnp"], "masked-pnp needs the object: give either --word or --mask"),
    "two objects": (["masked-pnp", "--word=cat", "--mask=m.png"], "give either --word or --mask"),
    "two directions": (["pix2pix-zero", "--change=cat=dog", "--direction=x"], "not both"),
    "spare without blend": (["p2p", "--spare=cat=tiger"], "give --blend too"),
    "a strength of 2": (["sdedit", "--strength=2"], "--strength: '2': give a share from 0 to 1"),
    "a share of 2": (["skip-inject", "--tau-s=2"], "--tau-s: '2': give a share from 0 to 1"),
    "a word's share of 2": (["p2p", "--share=tiger=2"], "--share: 'tiger=2': give WORD=SHARE"),
    "a weight of nothing": (["p2p", "--weight=2"], "--weight: '2': give WORD=X"),
    "no side of cells": (["p2p", "--self-side=2"], "--self-side: '2': give a share of the latent's side"),
    "a threshold of 1": (["p2p", "--blend=cat=tiger", "--blend-threshold=1"], "a share from 0 to less than 1"),
    "no threshold": (["masactrl", "--start-step=0", "--word=cat=tiger", "--threshold=0"], "mask threshold 0"),
    "a step too late": (["masactrl", "--start-step=3"], "start_step = 3: give a number from 0 to the 2 steps"),
    "a layer too late": (["masactrl", "--start-layer=16"], "a whole number from 0 to 15"),
    "a negative amount": (["pix2pix-zero", "--amount=-1"], "--amount: '-1': give a number of 0 or more"),
    "one branch of two": (["pix2pix-zero", "--as-published", "--scale=1"], "guidance scale 1.0 has one branch"),
    "an alignment of its own": (["p2p", "--align=words"], "--align: 'words': give one of auto, swap, phrase"),
    "no method": (["pnpp"], "--method: 'pnpp': give one of pnp, sdedit, ddim, "),
    "a prompt beside a direction": (["pix2pix-zero", "--change=cat=dog", "--prompt=b"], "--prompt changes nothing"),
    "a direction for each": (["pix2pix-zero", "--save-direction=b", "--prompt=b"], "give one prompt"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_model_is_needed_for_is_refused_before(here, unloaded, capsys, case):
    (method, *options), says = REFUSED[case]
    source = [SAYS] if METHODS.get(method) and METHODS[method].uses_source or method in ("ddim", "p2p") else []
    given = [f"--method={method}", f"--image={CAT}", f"--prompt={PROMPT}", *source]
    assert main(["translate", *QUICK, *given, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("minipnp: error: ") and says in line and not files(here)


WORDS = {  # what only the model's tokenizer, or the picture, shows
    "a word that is not there": (
        ["masked-pnp", SAYS, "--word=dog"],
        "'dog' is not in the source's text, its words: a,",
    ),
    "a word of MasaCtrl": (["masactrl", SAYS, "--start-step=0", "--word=dog"], "'dog' is not in the source's text"),
    "a blend of nothing": (["p2p", SAYS, "--blend=dog"], "'dog' is not in the source's text"),
    "a weight of nothing": (["p2p", SAYS, "--weight=dog=2"], "'dog' is not in the prompt"),
    "prompts that cannot be swapped": (["p2p", SAYS, "--align=swap", "--prompt=a red tiger"], "needs as many words"),
    "half a direction": (["pix2pix-zero", "--change=cat"], "give WORD=WORD"),
    "no direction": (["pix2pix-zero", "--change=cat=cat"], "between the same sentences"),
    "a lost direction": (["pix2pix-zero", "--direction=no.safetensors"], "not a saved edit direction"),
    "a direction in the place of a file": (
        ["pix2pix-zero", SAYS, "--save-direction=wide.png"],
        "something else is there",
    ),
    "a mask that is no picture": (["masked-pnp", "--mask=no.png"], "no.png"),
    "a mask of another shape": (["masked-pnp", "--mask=wide.png"], "own shape, which is edited at 128x128"),
    "a mask of everything": (["masked-pnp", "--mask=white.png"], "white all over"),
    "a mask of nothing": (["masked-pnp", "--mask=black.png"], "the mask is empty"),
    "a weight of no use": (["p2p", SAYS, "--weight=tiger=3", "--cross-replace=0"], "--weight tiger=… changes nothing"),
    "a weight of a word that is let go": (
        ["p2p", SAYS, "--weight=tiger=3", "--share=tiger=0"],
        "--weight tiger=… changes nothing",
    ),
}


@pytest.fixture
def masks():
    Image.new("L", (128, 64)).save("wide.png")
    Image.new("L", (64, 64)).save("black.png")
    Image.new("RGBA", (64, 64)).save("white.png")  # all transparent, which is white


def refused(case: str) -> int:
    (method, *options), _ = WORDS[case]
    if not any(part in "".join(options) for part in ("prompt", "--change", "--direction")):
        options.append(f"--prompt={PROMPT}")
    return main(["translate", *QUICK, f"--method={method}", f"--image={CAT}", *options, "--out=o"])


@pytest.mark.parametrize("case", WORDS)
def test_what_words_and_masks_do_not_fit_ends_in_one_line(masks, capsys, case):
    assert refused(case) == 2
    *noted, line = capsys.readouterr().err.splitlines()
    assert line.startswith("minipnp: error: ") and WORDS[case][1] in line
    assert all(said.startswith("note: ") for said in noted)
    assert not Path("o").exists()


def test_what_words_and_masks_do_not_fit_is_said_before_the_long_work(masks, passes):
    """Of Stable Diffusion on a CPU an inversion takes many minutes: a word is looked up before it, not after."""
    late = []
    for case in WORDS.keys() - {"a mask of nothing"}:
        passes.clear()
        assert refused(case) == 2
        late += [case] if passes else []
    assert not late


def test_no_object_may_be_left_out_of_a_text_that_has_it(capsys):
    assert main(["translate", *QUICK, "--method=masked-pnp", str(CAT), COW, "--word=cat"]) == 2
    assert re.search("needs a text for what is edited: give --source$", capsys.readouterr().err.strip())
