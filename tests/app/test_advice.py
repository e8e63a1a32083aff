"""What a model advises reaches every entrance, and every entrance makes the same picture of it."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from shell import CAT, COW, ROOT, pixels, run_of

import minipnp
from minipnp.advice import Advice
from minipnp.app.cli import main
from minipnp.errors import InputError
from minipnp.files.images import fit, psnr, read_image, to_image, to_tensor
from minipnp.files.known_words import FILE, KnownWords, advice_of
from minipnp.measure import benchmarks
from minipnp.measure.evaluation import Plan, original_of, result
from minipnp.methods.masked_pnp import MaskedPnP
from minipnp.methods.original import Original
from minipnp.methods.registry import METHODS, edit
from minipnp.options import Stepped, options_of
from minipnp.pipeline import Sampling
from minipnp.pnp import PnP
from minipnp.see.sheet import sheet
from minipnp.slots import decoder

pytest_plugins = ["shell_fixtures"]
pytestmark = pytest.mark.usefixtures("here")

PROMPT = COW.removeprefix("--prompt=")
OPTIONS = {"scale": 4.0, "f_layers": "6-7", "tau_f": 0.6, "tau_A": 0.7, "threshold": 0.2, "blend_threshold": 0.6}
WHY = "its layers 6 and 7 have the cells of the paper's layer 4"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A copy of the bundled model that advises other settings than anything's defaults."""
    place = tmp_path_factory.mktemp("advised") / "model"
    shutil.copytree(ROOT / "weights/bundled", place)
    words = json.loads((place / FILE).read_text())
    words["advice"] = {"options": OPTIONS, "layer": 8, "share": 0.5, "why": WHY}
    (place / FILE).write_text(json.dumps(words))
    return place


@pytest.fixture(scope="module")
def sd(model) -> minipnp.StableDiffusion:
    return minipnp.load(model, device="cpu")


@pytest.fixture(scope="module")
def expected(sd) -> Image.Image:
    """The translation in Python, in 2 steps, with all advice written out."""
    picture = to_tensor(fit(read_image(CAT), sd.size, sd.multiple))
    s = PnP(2, scale=4.0, f_layers=(6, 7), tau_f=0.6, tau_A=0.7)
    G = minipnp.guidance_from_picture(sd, picture, Stepped(2), keep=s)
    return to_image(minipnp.translate(sd, G, [PROMPT], settings=s)[0])


@pytest.fixture
def quick(model) -> list[str]:
    return [f"--model={model}", "--device=cpu", "--steps=2"]


def same(path: str | Path, expected: Image.Image) -> bool:
    return read_image(path).tobytes() == expected.tobytes()


def test_translate_says_once_what_the_advice_is_and_why(quick, expected, capsys):
    assert main(["translate", *quick, str(CAT), COW, "--out=o"]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "advice" in line]
    flags = "--scale 4.0, --f-layers 6-7, --tau-f 0.6, --tau-a 0.7"
    assert line == f"the model's advice: {flags} ({WHY}); options that are given win"
    assert same("o/translation.png", expected)
    assert run_of("o")["settings"]["f_layers"] == "6-7"


def test_options_that_are_given_win(quick, expected, capsys):
    assert main(["translate", *quick, str(CAT), COW, "--f-layers=4", "--scale=7.5", "--out=o"]) == 0
    settings = run_of("o")["settings"]
    assert (settings["f_layers"], settings["scale"], settings["tau_f"]) == ("4", 7.5, 0.6)
    assert "advice: --tau-f 0.6, --tau-a 0.7 (" in capsys.readouterr().err
    assert not same("o/translation.png", expected)


def test_another_codebase_has_its_own_defaults(quick):
    assert main(["translate", *quick, str(CAT), COW, "--like=pnp-diffusers", "--out=o", "--inversion-steps=2"]) == 0
    settings = run_of("o")["settings"]
    assert (settings["f_layers"], settings["scale"]) == ("4", 7.5)


@pytest.mark.parametrize("more", [[], ["--features"]])
def test_invert_keeps_what_the_advised_edit_reads(quick, expected, more, capsys):
    assert main(["invert", *quick, str(CAT), "--inversion-at=current", *more, "--out=cat.safetensors"]) == 0
    assert ("--f-layers 6-7" in capsys.readouterr().err) == bool(more)
    assert main(["translate", *quick, "--guidance=cat.safetensors", COW, "--out=o"]) == 0
    plain = ["translate", *quick, "--inversion-at=current", str(CAT), COW, "--out=plain"]
    assert main(plain) == 0
    assert pixels("o/translation.png") == pixels("plain/translation.png")


def test_compare_injection_and_evaluate_edit_alike(quick, sd, expected, monkeypatch):
    shown = {}
    monkeypatch.setattr("minipnp.app.compare.sheet", lambda *rows: shown.update(sum(rows, [])) or sheet(*rows))
    monkeypatch.setattr("minipnp.app.injection.sheet", lambda *rows: shown.update(sum(rows, [])) or sheet(*rows))
    source = "--source=a twemoji icon of a cat on a blue background"
    assert main(["compare", *quick, str(CAT), source, COW, "--methods=pnp,sdedit-0.5", "--out=c"]) == 0
    assert run_of("c")["settings"]["f_layers"] == "6-7"
    assert shown["Plug-and-Play"].tobytes() == expected.tobytes()
    assert main(["injection", *quick, str(CAT), COW, "--out=i"]) == 0
    variants = run_of("i")["settings"]["variants"]
    assert variants[0] == "f of layer 6-7"
    assert psnr(shown["f of 6-7, A of 4-11: Plug-and-Play"], expected) > 50  # its rows are computed in another batch
    pair = benchmarks.Pair("p", "g", PROMPT, CAT)
    plan = Plan(benchmarks.Benchmark("b", "ti2i", (pair,)), ("pnp",), Nothing(), {}, steps=2, advised=sd.advice.options)
    o, before = original_of(plan, sd, pair)
    _, after = result(plan, o, before, next(iter(plan.jobs.values()))[0])
    assert to_image(after).tobytes() == expected.tobytes()


class Nothing:
    """Metrics that measure nothing."""

    measures = ()
    weights = {}

    def __call__(self, case):
        return {}


def test_python_has_it_by_one_call(sd, expected):
    assert sd.advised(PnP, steps=2) == PnP(2, scale=4.0, f_layers=(6, 7), tau_f=0.6, tau_A=0.7)
    assert sd.advised(PnP, scale=9).scale == 9 and sd.advised(Sampling).scale == 4.0
    picture = to_tensor(fit(read_image(CAT), sd.size, sd.multiple))
    G = minipnp.guidance_from_picture(sd, picture, Stepped(2), keep=sd.advised(PnP, steps=2))
    assert to_image(minipnp.translate(sd, G, [PROMPT])[0]).tobytes() == expected.tobytes()
    o = Original.from_picture(sd, picture, keep=sd.advised(PnP, steps=2))
    assert to_image(edit(o, PROMPT, sd.advised(PnP, steps=2))[0]).tobytes() == expected.tobytes()
    with pytest.raises(InputError, match="tau_f = 7"):
        sd.advised(PnP, tau_f=7)


def test_masked_plug_and_play_is_advised_as_plug_and_play_is(sd, quick):
    mask = Image.new("L", read_image(CAT).size)
    mask.paste(255, (0, 0, mask.width // 2, mask.height))
    mask.save("left.png")
    assert main(["translate", *quick, str(CAT), COW, "--method=masked-pnp", "--mask=left.png", "--out=o"]) == 0
    settings = run_of("o")["settings"]
    assert (settings["f_layers"], settings["tau_f"], settings["threshold"]) == ("6-7", 0.6, 0.2)
    assert sd.advised(MaskedPnP, mask="left.png").f_layers == decoder(6, 7)


def test_what_is_looked_at_and_where_maps_of_words_are_read(sd, quick, model):
    o = Original.from_picture(sd, to_tensor(fit(read_image(CAT), sd.size, sd.multiple)))
    assert o.share == 0.5
    assert main(["segment", *quick, str(CAT), "--t=501", "--out=s"]) == 0
    assert run_of("s")["settings"]["layer"] == "decoder 8"
    assert main(["correspond", *quick, str(CAT), str(CAT), "--t=501", "--out=c"]) == 0
    assert run_of("c")["settings"]["layer"] == "decoder 8"
    assert main(["features", *quick, str(CAT), "--of=f,words", "--t=501,1", "--prompt=a cat", "--out=f"]) == 0
    of = run_of("f")["settings"]["of"]
    assert of["f"]["layers"] == ["decoder 8"]
    assert of["words"]["layers"] == [*("encoder 4", "encoder 5"), *("decoder 6", "decoder 7", "decoder 8")]


def test_the_bundled_model_advises_what_there_is():
    advice = advice_of(ROOT / "weights/bundled")
    options = {o.name: o for method in METHODS.values() for o in options_of(method.settings)}
    assert advice.options.keys() <= options.keys() and advice.why
    for name, value in advice.options.items():
        options[name].take(value)  # it is in its range


def test_without_words_the_paper_s_settings(tmp_path):
    assert advice_of(tmp_path) == Advice() and Advice() == Advice({}, 4, 1 / 4)
    (tmp_path / FILE).write_text("[]")
    assert advice_of(tmp_path) == Advice()  # somebody else's file


@pytest.mark.parametrize("said", [{"layer": 2}, {"layer": 12}, {"share": 0.3}, {"colour": 1}])
def test_advice_that_cannot_be_is_refused(model, tmp_path, said):
    words = json.loads((model / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(words | {"advice": said}))
    with pytest.raises(InputError, match="words.json: not a list of words"):
        KnownWords.of(tmp_path)
