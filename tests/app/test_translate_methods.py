"""`translate --method`: each of the methods from a picture, a folder, a text, and with several prompts."""

import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file
from shell import CAT, EDITS, MODEL, PROMPT, QUICK, SAYS, SOURCE, files, pixels, run_of, translate, written

import minipnp
from minipnp.advice import Advice
from minipnp.app import translate as commands
from minipnp.app.cli import main
from minipnp.files import hub
from minipnp.files.images import fit, read_image, to_tensor
from minipnp.methods.registry import METHODS
from minipnp.options import options_of

pytest_plugins = ["shell_fixtures"]
pytestmark = pytest.mark.usefixtures("here")
OTHER = "a glossy icon of a tiger on a red background"
INVERTS = [name for name, method in METHODS.items() if method.guidance]
ONE = ["run.json", "side-by-side.png", "translation.png"]


@pytest.mark.parametrize("method", METHODS)
def test_each_method_makes_its_picture_the_same_each_time(method):
    for out in "ab":
        assert translate(method, f"--out={out}") == 0
    assert sorted(files("a")) == ONE and Image.open("a/translation.png").size == (128, 128)
    a, b = files("a"), files("b")
    assert all(a[name] == b[name] for name in ("translation.png", "side-by-side.png"))
    width = Image.open("a/side-by-side.png").width
    assert 3 * 256 < width < 4 * 256  # guidance, VAE round trip, translation
    settings = run_of("a")["settings"]
    assert settings == written("a/translation.png") == written("a/side-by-side.png")
    assert settings["method"] == method and settings["steps"] == 2 and settings["picture"] == CAT.name
    assert settings.keys() >= {o.name for o in options_of(METHODS[method].settings)} and "options" not in settings
    assert settings.get("source") == (SOURCE if SAYS in EDITS[method] else None)


def test_the_folder_is_named_after_the_method():
    for method in METHODS:
        assert translate(method) == 0
    names = {"cat-twemoji"} | {f"cat-twemoji-{method}" for method in METHODS if method != "pnp"}
    assert {path.name for path in Path("out").iterdir()} == names
    # All see the same picture, and none makes that of another.
    assert len({pixels(path / "translation.png") for path in Path("out").iterdir()}) == len(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_with_two_prompts(method):
    assert translate(method, f"--prompt={OTHER}", "--out=both") == 0
    assert sorted(files("both")) == [*ONE[:2], "translation-1.png", "translation-2.png"]
    for i, prompt in enumerate((PROMPT, OTHER), 1):
        assert translate(method, f"--out={i}", prompt=prompt) == 0
        assert files("both")[f"translation-{i}.png"] == files(str(i))["translation.png"]
    assert written("both/side-by-side.png")["prompts"] == [PROMPT, OTHER]


@pytest.mark.parametrize("method", METHODS)
def test_each_method_on_a_folder(method, passes):
    Path("cats").mkdir()
    shutil.copy(CAT, "cats/a.png")
    Image.open(CAT).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save("cats/b.png")
    assert translate(method, image="cats") == 0
    out = Path("out/cats" if method == "pnp" else f"out/cats-{method}")
    made = [f"{name}/{file}" for name in "ab" for file in ONE]
    assert sorted(files(out)) == [*made, "summary.png", "summary.run.json"]
    for name in "ab":
        assert translate(method, f"--out={name}", image=f"cats/{name}.png") == 0
        assert files(name)["translation.png"] == files(out)[f"{name}/translation.png"]
    passes.clear()
    assert translate(method, image="cats") == 0  # all is there
    assert not passes and len(files(out)) == 8


@pytest.mark.parametrize("method", METHODS)
def test_each_method_edits_what_a_text_generates(method):
    more = [SAYS] if SAYS not in EDITS[method] else []
    assert translate(method, *more, "--seed=3", "--out=o", image=None) == 0
    assert sorted(files("o")) == ["guidance.png", *ONE]
    settings = run_of("o")["settings"]
    assert settings["source"] == SOURCE and settings["seed"] == 3 and "picture" not in settings
    assert settings["source_scale"] == 3 and pixels("o/guidance.png") != pixels("o/translation.png")
    width = Image.open("o/side-by-side.png").width
    assert 2 * 256 < width < 3 * 256  # guidance, translation
    assert translate(method, *more, "--seed=3", image=None) == 0
    assert (Path("out") / ("a-twemoji-icon-of-a-cat-on-a-blue-background" + f"-{method}" * (method != "pnp"))).is_dir()


@pytest.mark.parametrize("method", METHODS)
def test_each_method_has_the_bundled_example(method):
    more = [option for option in EDITS[method] if option != SAYS and "cat" not in option]
    more += ["--word=house"] if method == "masked-pnp" else []
    assert main(["translate", f"--method={method}", "--device=cpu", "--quiet", "--steps=2", *more, "--out=o"]) == 0
    settings = run_of("o")["settings"]
    assert settings["prompts"] == [commands.EXAMPLE_PROMPT] and settings["picture"] in commands.EXAMPLE_PICTURE
    assert ("source" in settings) == METHODS[method].needs_source(METHODS[method].settings.given(settings))


@pytest.mark.parametrize("method", INVERTS)
def test_what_each_inversion_lost(method):
    assert translate(method, "--reconstruct", "--out=o") == 0
    record = run_of("o")
    assert record["residuals"].keys() == {"1", "501"} and record["psnr"].keys() == {"guidance", "VAE round trip"}
    assert 0 < record["residuals"]["501"] < 1 and record["psnr"]["VAE round trip"] > 5
    assert 4 * 256 < Image.open("o/side-by-side.png").width < 5 * 256
    assert translate(method, "--out=p") == 0
    assert pixels("o/translation.png") == pixels("p/translation.png")
    assert not run_of("p").keys() & {"residuals", "psnr"}


def test_what_does_not_invert_has_nothing_to_reconstruct(unloaded, capsys):
    assert set(METHODS) - {*INVERTS} == {"sdedit"}
    assert translate("sdedit", "--reconstruct") == 2
    said = "minipnp: error: --reconstruct changes nothing, the method does not invert: leave it out\n"
    assert capsys.readouterr().err == said


def test_methods_that_read_the_same_inversion_lose_the_same():
    lost = {}
    for method in INVERTS:
        assert translate(method, "--reconstruct", f"--out={method}") == 0
        lost[method] = run_of(method)["residuals"]
    assert lost["pnp"] == lost["masactrl"] == lost["masked-pnp"] == lost["skip-inject"]  # under the empty prompt
    assert lost["ddim"] == lost["p2p"] != lost["pnp"]  # under the source's text
    assert lost["pix2pix-zero"] not in (lost["pnp"], lost["ddim"])  # regularised


@pytest.mark.parametrize("method", METHODS)
def test_the_options_of_an_inversion_reach_each_method(method, edits):
    if method in ("sdedit", "pix2pix-zero"):
        return
    how = ["--inversion-steps=4", "--inversion-at=current", "--fixed-point=2", "--square", "--size=96"]
    assert translate(method, *how, "--out=o") == 0
    ((o, _, s, _),) = edits
    assert (o.inversion.steps, o.inversion.at, o.inversion.iterations) == (4, "current", 2)
    assert Image.open("o/translation.png").size == (96, 96) and s.steps == 2
    expected = {"inversion_steps": 4, "inversion_at": "current", "fixed_point": 2, "square": True, "size": 96}
    assert expected.items() <= written("o/translation.png").items()


OPTIONS = {  # of each method, some options, and their values in records
    "sdedit": {"strength": 0.75, "scale": 4.0},
    "ddim": {"scale": 4.0},
    "p2p": {
        "cross_replace": 0.7, "self_replace": 0.3, "self_side": 0.5, "align": "phrase", "weight": {"tiger": 2.0},
        "share": {"teal": 0.6}, "blend": ["cat=tiger"], "spare": ["background"], "blend_threshold": 0.4,
        "blend_start": 0.1, "as_published": True, "scale": 3.0,
    },
    "pix2pix-zero": {
        "amount": 0.3, "as_published": False, "change": "cat=tiger", "save_direction_to": "d.safetensors",
        "lambda_ac": 5.0, "lambda_kl": 6.0, "gain": 2.0,
    },
    "masactrl": {"start_step": 1, "start_layer": 9, "threshold": 0.2, "word": "cat=tiger"},
    "masked-pnp": {"tau_f": 0.6, "tau_A": 0.4, "word": "cat=tiger", "threshold": 0.2, "f_layers": "3-5"},
    "skip-inject": {"tau_s": 0.5, "s_layers": "4", "scale": 4.0},
}  # fmt: skip


@pytest.mark.parametrize("method", OPTIONS)
def test_a_method_s_options_are_read_and_recorded(method, edits):
    flags = {o.name: o.flag for o in options_of(METHODS[method].settings)}
    given = []
    for name, value in OPTIONS[method].items():
        if isinstance(value, bool):
            given.append(flags[name] if value else flags[name].replace("--", "--no-", 1))
        elif isinstance(value, dict):
            given += [f"{flags[name]}={word}={x}" for word, x in value.items()]
        else:
            given += [f"{flags[name]}={one}" for one in (value if isinstance(value, list) else [value])]
    settings = METHODS[method].settings.given(OPTIONS[method])
    texts = [SAYS] if METHODS[method].needs_source(settings) else []
    texts += [f"--prompt={PROMPT}"] if METHODS[method].reads_prompt(settings) else []
    argv = ["translate", str(CAT), f"--method={method}", *texts, *QUICK, *given, "--out=o"]
    assert main(argv) == 0
    assert OPTIONS[method].items() <= run_of("o")["settings"].items()
    ((_, _, s, _),) = edits
    assert s == METHODS[method].settings.given({"steps": 2, "scale": s.scale, **OPTIONS[method]})


@pytest.mark.parametrize(
    "model, more, scale",
    [("own", [], 3.0), ("own", ["--scale=4"], 4.0), ("own", ["--source-scale=2"], 2.0), ("plain", [], 5.0)],
)
def test_a_generated_source_has_the_scale_of_the_edit(monkeypatch, model, more, scale):
    """The model's own, which the bundled one tells, what is given, or the method's."""
    if model == "plain":
        monkeypatch.setattr("minipnp.app.models.advice_of", lambda path: Advice())
    assert translate("ddim", "--seed=3", "--out=o", *more, image=None, prompt=SOURCE) == 0
    assert run_of("o")["settings"]["source_scale"] == scale
    same = pixels("o/guidance.png") == pixels("o/translation.png")
    assert same == (more != ["--source-scale=2"])  # its own text gives the same picture again


@pytest.mark.parametrize("method", ["sdedit", "p2p", "masactrl", "masked-pnp", "skip-inject", "ddim"])
def test_a_negative_prompt_reaches_each_method(method, edits):
    assert translate(method, "--out=a") == translate(method, "--negative=red", "--out=b") == 0
    assert pixels("a/translation.png") != pixels("b/translation.png")
    assert edits[1][3] == "red" and written("b/translation.png")["negative"] == "red"


def test_a_direction_is_saved_and_gives_the_same_picture_again():
    assert translate("pix2pix-zero", "--out=a", "--change=cat=tiger", "--save-direction=d.safetensors") == 0
    assert load_file("d.safetensors")["direction"].dim() == 3
    assert translate("pix2pix-zero", "--out=b", "--direction=d.safetensors") == 0
    assert pixels("a/translation.png") == pixels("b/translation.png")  # their settings, in the files, differ


def test_a_mask_picture_keeps_what_is_black():
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save("mask.png")
    masked = ["translate", "--method=masked-pnp", str(CAT), f"--prompt={PROMPT}", *QUICK, "--mask=mask.png", "--out=o"]
    assert main(masked) == 0
    x = to_tensor(read_image("o/translation.png"))[0]
    sd = minipnp.load(hub.WEIGHTS / "bundled", device="cpu")
    original = sd.decode(sd.encode(to_tensor(fit(read_image(CAT), sd.size, sd.multiple))))[0]
    difference = (x - original).abs().mean(dim=(0, 1))  # by column
    # The latents on the right are the source's own; the decoder's attention still carries a little over to them.
    assert difference[96:].mean() < 0.05 < 0.15 < difference[:48].mean()


@pytest.mark.parametrize(
    "method, option, file",
    [
        ("masked-pnp", "--mask", "mask.png"),
        ("pix2pix-zero", "--direction", "d.safetensors"),
        ("pix2pix-zero", "--change", "a.txt=b.txt"),
    ],
)
def test_in_a_folder_an_edit_by_another_file_s_content_is_made_again(method, option, file):
    """The mask, the direction or the sentences in a file decide the picture, not the file's name."""

    def change(words: str, box: tuple[int, int, int, int]) -> None:
        mask = Image.new("L", (64, 64))
        mask.paste(255, box)
        mask.save("mask.png")
        Path("a.txt").write_text("a cat")
        Path("b.txt").write_text(words.partition("=")[2])
        Path("d.safetensors").unlink(missing_ok=True)
        assert translate("pix2pix-zero", f"--change={words}", "--save-direction=d.safetensors", "--out=other") == 0

    Path("cats").mkdir()
    shutil.copy(CAT, "cats/cat.png")
    prompt = [] if method == "pix2pix-zero" else [f"--prompt={PROMPT}"]  # its direction says what to make
    edit = ["translate", f"--method={method}", "cats", *prompt, *QUICK, f"{option}={file}", "--out=o"]
    change("cat=tiger", (0, 0, 32, 64))
    assert main(edit) == 0
    change("cat=rocket", (32, 0, 64, 64))
    assert main(edit) == 0
    assert main([*edit[:2], "cats/cat.png", *edit[3:-1], "--out=alone"]) == 0
    made = {pixels(path) for path in Path("o").glob("cat*/translation.png")}
    assert pixels("alone/translation.png") in made and len(made) == 2


@pytest.mark.parametrize("method", ["p2p", "pix2pix-zero"])
def test_the_authors_forms_are_an_option(method):
    """Another picture, as prompts of unequal token counts and a shifted schedule must give."""
    prompt = "a twemoji icon of a sailboat on a teal background"
    for out, form in (("a", []), ("b", ["--as-published"])):
        argv = ["translate", f"--method={method}", str(CAT), SAYS, f"--prompt={prompt}", *MODEL, "--steps=10"]
        assert main([*argv, *form, f"--out={out}"]) == 0
    assert pixels("a/translation.png") != pixels("b/translation.png")
