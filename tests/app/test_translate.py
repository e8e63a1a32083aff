"""`translate` by Plug-and-Play: what it writes and where, from a picture, a folder, a text; and what decides it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from shell import COW, ENV, HORSE, MODEL, QUICK, files, pixels, run_of, weights, written

import minipnp
from minipnp.app import translate as commands
from minipnp.app.cli import main
from minipnp.app.presets import PRESETS, preset
from minipnp.files import hub
from minipnp.files.images import fit, psnr, read_image, to_image, to_tensor
from minipnp.guidance import Inversion, residuals
from minipnp.methods.original import Taking
from minipnp.options import Stepped
from minipnp.pnp import PnP
from minipnp.slots import decoder

pytest_plugins = ["shell_fixtures"]
pytestmark = pytest.mark.usefixtures("here")
ONE = ["run.json", "side-by-side.png", "translation.png"]

# ---------------------------------------------------------------------------------------------------------------------
# What comes out


def test_translation_side_by_side_and_record(here, capsys):
    prompt = 'a 🐴 "horse"\nof $(bronze) `;` \\ é'
    argv = ["translate", *QUICK, "--image", str(HORSE), "--prompt", prompt, "--out=o", "--reconstruct"]
    assert main(argv) == 0
    assert capsys.readouterr().out.split() == ["o/translation.png", "o/side-by-side.png", "o/run.json"]
    assert sorted(files(here)) == [f"o/{name}" for name in ONE]
    assert Image.open("o/translation.png").size == (128, 128)
    assert Image.open("o/side-by-side.png").width > 4 * 256  # guidance, round trip, reconstruction, translation

    record = run_of("o")
    settings = record["settings"]
    assert settings == written("o/translation.png") == written("o/side-by-side.png")
    assert settings["method"] == "pnp" and settings["prompts"] == [prompt] and settings["picture"] == "horse-noto.png"
    assert settings["steps"] == settings["inversion_steps"] == 2 and settings["pixels"] == [128, 128]
    assert settings["tau_f"] == PnP().tau_f and settings["A_layers"] == "4-11"
    assert settings["weights_sha256"] == {
        "unet": weights("unet"), "vae": weights("vae"), "text_encoder": weights("text_encoder", "model")
    }  # fmt: skip
    assert record["argv"] == ["python", "-m", "minipnp", *argv] and record["cwd"] == str(here)
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert record["machine"]["threads"] == 1
    assert record["pictures"].keys() == {"translation.png", "side-by-side.png"}
    assert record["seconds"].keys() == {"load", "checksums", "inversion", "reconstruction", "translation"}
    assert record["residuals"].keys() == {"1", "501"} and 0 < record["residuals"]["501"] < 1
    assert record["psnr"].keys() == {"guidance", "VAE round trip"} and record["psnr"]["VAE round trip"] > 5


def test_what_an_inversion_lost_is_measured_at_five_levels_and_where_it_is_asked_for(here, passes):
    assert main(["translate", *MODEL, "--steps=20", "--tau-f=0", "--tau-a=0", str(HORSE), COW, "--out=a"]) == 0
    plain = sum(passes)
    assert not run_of("a").keys() & {"residuals", "psnr"}
    assert Image.open("a/side-by-side.png").width < 4 * 256
    passes.clear()
    again = ["--tau-f=0", "--tau-a=0", "--reconstruct", str(HORSE), COW, "--out=b"]
    assert main(["translate", *MODEL, "--steps=20", *again]) == 0
    assert list(run_of("b")["residuals"]) == ["1", "201", "401", "601", "801"]
    assert sum(passes) == plain + 20 + 5  # the reconstruction, the checks
    assert pixels("a/translation.png") == pixels("b/translation.png")


def test_same_command_same_bytes_in_two_processes():
    for out in "ab":
        argv = ["translate", *QUICK, "--timesteps=trailing", COW, "--image", str(HORSE), "--out", out]
        done = subprocess.run([sys.executable, "-m", "minipnp", *argv], env=ENV, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    a, b = files("a"), files("b")
    assert sorted(a) == sorted(b) == ONE
    assert all(a[name] == b[name] for name in ("translation.png", "side-by-side.png"))


def test_the_picture_may_stand_anywhere(here):
    """`horse.png` is short for `--image horse.png`."""
    ways = [[f"--image={HORSE}", COW], [str(HORSE), COW], [COW, str(HORSE)]]
    for i, way in enumerate(ways):
        assert main(["translate", *way, *QUICK, f"--out={i}"]) == 0
    made = [files(str(i))["translation.png"] for i in range(len(ways))]
    assert made[0] == made[1] == made[2]


def test_several_prompts_are_each_as_if_alone():
    prompts = ["a glossy icon of a dog on a green background", "--silhouette of a rocket"]
    both = [f"--prompt={prompt}" for prompt in prompts]
    assert main(["translate", *QUICK, str(HORSE), *both, "--out=both"]) == 0
    for i, prompt in enumerate(prompts, 1):
        assert main(["translate", *QUICK, str(HORSE), f"--prompt={prompt}", f"--out={i}.png"]) == 0
        assert Path(f"{i}.png").read_bytes() == Path(f"both/translation-{i}.png").read_bytes()
    assert Path("1.png").read_bytes() != Path("2.png").read_bytes()
    assert written("both/side-by-side.png")["prompts"] == prompts


def test_nothing_is_overwritten_by_another_result(here, capsys):
    first = ["translate", *QUICK, COW, str(HORSE)]
    assert main([*first, "--out=o"]) == main([*first, "--out=x.png"]) == 0
    before = files(here)
    assert sorted(before) == [*(f"o/{name}" for name in ONE), "x.png", "x.run.json", "x.side-by-side.png"]

    assert main([*first, "--out=o"]) == main([*first, "--out=x.png"]) == 0  # the same: nothing changes, times neither
    assert files(here) == before

    other = [*first, "--scale=4"]
    assert main([*other, "--out=o"]) == main([*other, "--out=x.png"]) == main([*other, "--out=o"]) == 0
    after = files(here)
    assert {name: after[name] for name in before} == before
    new = [*(f"o-2/{name}" for name in ONE), "x-2.png", "x-2.run.json", "x-2.side-by-side.png"]
    assert sorted(after.keys() - before.keys()) == new
    assert written("o-2/translation.png")["scale"] == written("x-2.png")["scale"] == 4
    assert capsys.readouterr().out.split()[-1] == "o-2/run.json"


def test_a_file_that_is_no_result_keeps_its_place():
    Path("o").mkdir()
    Path("o/run.json").write_text("mine")
    Path("o-2").mkdir()
    Path("o-2/translation.png").mkdir()
    assert main(["translate", *QUICK, COW, str(HORSE), "--out=o"]) == 0
    assert files("o") == {"run.json": b"mine"} and files("o-2") == {} and len(files("o-3")) == 3


def test_generated_guidance():
    source = "--source=a twemoji icon of a horse on a red background"
    assert main(["translate", *QUICK, source, COW, "--seed=3", "--size=96"]) == 0
    out = "out/a-twemoji-icon-of-a-horse-on-a-red-background"
    assert sorted(files(out)) == ["guidance.png", *ONE]
    assert Image.open(f"{out}/guidance.png").size == (96, 96)
    assert written(f"{out}/translation.png")["seed"] == 3
    assert main(["translate", *QUICK, source, COW, "--seed=4", "--size=96", "--out=four"]) == 0
    assert Path("four/guidance.png").read_bytes() != Path(f"{out}/guidance.png").read_bytes()


def test_without_arguments_the_bundled_example(capsys):
    assert main(["translate", "--device=cpu", "--steps=2"]) == 0
    said = capsys.readouterr().err
    assert f"the bundled example, {hub.WEIGHTS / commands.EXAMPLE_PICTURE}\n" in said
    assert f"model: {hub.WEIGHTS / 'bundled'}; on cpu in float32" in said
    out = f"out/{Path(commands.EXAMPLE_PICTURE).stem}"
    assert written(f"{out}/translation.png")["prompts"] == [commands.EXAMPLE_PROMPT]


# ---------------------------------------------------------------------------------------------------------------------
# A folder


@pytest.fixture
def icons():
    """A folder of two pictures."""
    Path("icons").mkdir()
    shutil.copy(HORSE, "icons/a.png")
    Image.open(HORSE).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save("icons/b.png")
    return Path("icons")


def test_a_folder(here, icons, capsys, monkeypatch):
    (icons / "b.png").unlink()
    Image.open(HORSE).resize((100, 60)).save("icons/a.jpg")
    Path("icons/broken.png").write_bytes(HORSE.read_bytes()[:500])
    Path("icons/notes.txt").write_text("no picture")
    loads, load = [], minipnp.load
    monkeypatch.setattr(minipnp, "load", lambda *a, **k: loads.append(a) or load(*a, **k))
    assert main(["translate", *QUICK, COW, "icons"]) == 2
    assert len(loads) == 1
    left_out, crop, _, broken, end = capsys.readouterr().err.splitlines()
    assert left_out.startswith("note: 'icons': left out: 'notes.txt' (") and crop.startswith("note: 10% of the width")
    assert "broken.png" in broken and broken.endswith("skipped")
    assert end == "minipnp: error: 1 of 3 pictures could not be translated"
    made = [f"{name}/{file}" for name in ("a-jpg", "a-png") for file in ONE]
    assert sorted(files("out/icons")) == [*made, "summary.png", "summary.run.json"]
    assert Image.open("out/icons/a-jpg/translation.png").size == (192, 128)  # aspect kept, cut to multiples of 32
    record = json.loads(Path("out/icons/summary.run.json").read_text())
    assert [("error" in picture, picture["picture"]) for picture in record["settings"]["pictures"]] == [
        (False, "a.jpg"), (False, "a.png"), (True, "broken.png")
    ]  # fmt: skip
    assert Image.open("out/icons/summary.png").height > 2 * 256

    Path("icons/broken.png").unlink()
    assert main(["translate", *QUICK, COW, "--image=icons"]) == 0
    assert len(files("out/icons")) == 10  # a new summary, beside the old one; the pictures were there


LOUD = [option for option in QUICK if option != "--quiet"]


def test_a_folder_that_was_broken_off_goes_on_where_it_was(icons, passes, capsys, monkeypatch):
    run = ["translate", *LOUD, COW, "--prompt=a dog", "icons"]
    edit, asked = commands.edit, []

    def broken_off(*args):
        asked.append(args)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return edit(*args)

    with monkeypatch.context() as patch:
        patch.setattr(commands, "edit", broken_off)
        assert main([*run, "--out=o"]) == 130
    first = files("o")
    assert {Path(name).parts[0] for name in first} == {"a"} and len(first) == 4
    capsys.readouterr()

    passes.clear()
    assert main([*run, "--out=o"]) == 0
    out, said = capsys.readouterr()
    assert "[1/2] a.png: there already\n" in said and "[2/2] b.png\n" in said
    assert out.split() == [
        *(f"o/b/{name}" for name in ("translation-1.png", "translation-2.png", "side-by-side.png", "run.json")),
        "o/summary.png", "o/summary.run.json",
    ]  # fmt: skip
    of_one = sum(passes)
    assert {name: content for name, content in files("o").items() if name in first} == first

    passes.clear()
    assert main([*run, "--out=p"]) == 0  # without a break
    assert sum(passes) == 2 * of_one
    once, twice = files("p"), files("o")
    assert once.keys() == twice.keys() and len(once) == 10
    assert all(once[name] == twice[name] for name in once if name.endswith(".png"))

    passes.clear()
    assert main([*run, "--out=o"]) == 0
    assert not passes and files("o") == twice and capsys.readouterr().err.count("there already") == 2


def test_in_a_folder_what_is_no_picture_is_said(icons, capsys):
    (icons / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (icons / "old").mkdir()
    for path in icons.glob("*.png"):
        if path.name != "b.png":
            path.unlink()
    argv = [f"--image={icons}", "--out=o"]
    assert main(["translate", *QUICK, COW, *argv]) == main(["segment", *QUICK, "--t=1", str(icons), "--out=s"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ") and "left out" in line]
    assert len(said) == 2 and all("'old' (folders in it" in line and "'IMG_1.HEIC' (a kind" in line for line in said)
    for run in ("o/summary.run.json", "s/run.json"):
        assert said[0].removeprefix("note: ") in json.loads(Path(run).read_text())["notes"]


def test_in_a_folder_another_edit_is_another_result(icons, passes, capsys):
    run = ["translate", *LOUD, COW, "icons", "--out=o"]
    assert main(run) == main([*run, "--scale=4"]) == 0
    assert written("o/a/translation.png")["scale"] == 3 and written("o/a-2/translation.png")["scale"] == 4
    assert "there already" not in capsys.readouterr().err
    passes.clear()
    assert main([*run, "--scale=4"]) == 0  # found beside the first
    assert not passes and capsys.readouterr().err.count("there already") == 2 and not Path("o/a-3").exists()


@pytest.mark.parametrize("what", ["the picture", "the translation", "run.json"])
def test_in_a_folder_what_is_not_the_same_is_made_again(icons, what, capsys):
    run = ["translate", *LOUD, COW, "icons", "--out=o"]
    assert main(run) == 0
    before = pixels("o/a/translation.png")
    if what == "the picture":
        shutil.copy("icons/b.png", "icons/a.png")
    elif what == "the translation":
        Image.new("RGB", (64, 64)).save("o/a/translation.png")
    else:
        Path("o/a/run.json").write_bytes(Path("o/a/run.json").read_bytes()[:100])
    assert main(run) == 0
    said = capsys.readouterr().err
    assert "[1/2] a.png\n" in said and "[2/2] b.png: there already" in said
    again = pixels("o/a-2/translation.png")
    assert again == pixels("o/b/translation.png") != before if what == "the picture" else again == before


def test_in_a_folder_what_an_inversion_lost_is_measured_where_it_is_asked_for_later(icons):
    run = ["translate", *QUICK, COW, "icons", "--out=o"]
    assert main(run) == main([*run, "--reconstruct"]) == 0
    assert any("residuals" in json.loads(path.read_text()) for path in Path("o").glob("a*/run.json"))


# ---------------------------------------------------------------------------------------------------------------------
# Settings


def test_like_plug_and_play_is_the_other_column():
    for generated in (False, True):
        values = preset("plug-and-play", generated)
        s, inversion, taking = PnP.given(values), Inversion.given(values), Taking.given(values)
        assert (s.scale, s.alpha) == ((7.5, 0.75) if generated else (10, 1))
        assert (s.injected_steps(0.8), s.injected_steps(0.5)) == (41, 26) and s.alpha_schedule == "linear"
        assert inversion == Inversion(steps=999, at="current", iterations=0, resample=999)
        assert taking.square and taking.vae_sampled and taking.both
        theirs = preset("pnp-diffusers", generated)
        assert Inversion.given(theirs) == Inversion(steps=999, at="next", iterations=0, resample=0)
        assert PnP.given(theirs) == PnP() and Taking.given(theirs) == Taking()  # nothing else is different
        assert preset("minipnp", generated) == {}
    known = {*PnP().record(), *Inversion().record(), *Taking().record()}
    assert all(values.keys() <= known for values in PRESETS.values())


def test_like_plug_and_play_runs_and_options_win(edits):
    Image.open(HORSE).convert("RGB").resize((150, 64)).save("wide.png")
    like = ["translate", *QUICK, "--like=plug-and-play", COW]
    picture = ["wide.png", "--inversion-steps=2", "--resample=2"]
    assert main([*like, *picture, "--source=a horse", "--out=a"]) == 0
    assert main([*like, *picture, "--no-square", "--scale=4", "--no-vae-sampled", "--no-inclusive", "--out=b"]) == 0
    assert main([*like, "--source=a horse", "--out=c"]) == 0
    a, b, c = (written(f"{out}/translation.png") for out in "abc")
    assert (a["pixels"], a["scale"], a["negative"], a["inclusive"]) == ([128, 128], 10, "a horse", True)
    assert a["vae_sampled"] and not b["vae_sampled"] and a["like"] == "plug-and-play"
    assert (b["pixels"], b["scale"], b["negative"], b["inclusive"]) == ([288, 128], 4, None, False)
    assert a["inversion_at"] == b["inversion_at"] == "current"
    assert (c["scale"], c["alpha"], c["negative"], c["source_scale"]) == (7.5, 0.75, "a horse", 5)
    (o_a, _, _, negative), (o_b, *_), (o_c, *_) = edits
    assert (
        negative == "a horse"
        and o_a.taking.vae_sampled
        and o_c.taking.both
        and len(o_c.guidance(Stepped(2)).texts) == 2
    )
    assert not torch.equal(o_a.x_0(Stepped(2)), o_b.x_0(Stepped(2))[..., 4:12])  # a sample, the mean


def test_each_option_reaches_what_it_is_for(edits):
    options = {
        "tau_f": 0.25, "tau_A": 0.75, "scale": 5.0, "alpha": 0.5, "alpha_schedule": "exp", "f_layers": "none",
        "A_layers": "4,6", "inversion_steps": 4, "inversion_at": "next", "fixed_point": 2, "resample": 4,
        "square": True, "size": 32, "random_start": 9, "inclusive": True, "vae_sampled": True, "seed": 6,
    }  # fmt: skip
    flags = [f"--{name.lower().replace('_', '-')}" for name in options]
    flags = [flag if value is True else f"{flag}={value}" for flag, value in zip(flags, options.values(), strict=True)]
    assert main(["translate", *QUICK, str(HORSE), COW, "--negative=blue", *flags, "--out=o"]) == 0
    assert options.items() <= written("o/translation.png").items()
    assert written("o/translation.png")["negative"] == "blue"
    ((o, prompts, s, negative),) = edits
    assert prompts == [COW.removeprefix("--prompt=")] and negative == "blue" and o.source == ""
    assert s == PnP(2, 0.25, 0.75, 5.0, 0.5, "exp", inclusive=True, f_layers=(), A_layers=decoder(4, 6), random_start=9)
    assert o.inversion == Inversion(4, "next", iterations=2, resample=4)
    assert o.taking == Taking(size=32, square=True, seed=6, vae_sampled=True) and o.latent_sides == (8, 8)

    flags = ["--seed=5", "--source-scale=2", "--steps=3", "--size=96", "--both", "--out=g"]
    assert main(["translate", *MODEL, *flags, "--source=a horse", COW]) == 0
    assert main(["translate", *QUICK, "--source=a horse", COW, "--out=h"]) == 0
    o, usual = edits[1][0], edits[2][0]
    assert o.generated and o.source == "a horse" and edits[1][2].steps == 3
    assert o.taking == Taking(size=96, seed=5, source_scale=2, both=True) and o.latent_sides == (24, 24)
    assert usual.taking == Taking(source_scale=3)  # the bundled model's


@pytest.mark.parametrize(
    "more, scale", [([], 3), (["--scale=5"], 5), (["--like=pnp-diffusers", "--inversion-steps=2"], 7.5)]
)
def test_the_guidance_scale_is_the_model_s_where_nothing_else_is_said(more, scale):
    assert main(["translate", *QUICK, str(HORSE), COW, *more, "--out=o"]) == 0
    assert written("o/translation.png")["scale"] == scale
    if "--like=pnp-diffusers" not in more:
        assert main(["translate", "--method=sdedit", str(HORSE), COW, *QUICK, *more, "--out=s"]) == 0
        assert written("s/translation.png")["scale"] == scale


@pytest.mark.parametrize(
    "more, checks",
    [
        ([], 0),
        (["--inversion-at=next"], 0),
        (["--inversion-at=next", "--prompt=b"], 0),  # the guidance's own passes serve both prompts
        (["--inversion-at=current"], 0),
        (["--inversion-at=next", "--resample=2"], 0),
        (["--reconstruct", "--fixed-point=2"], 2),
        (["--inversion-steps=30", "--tau-f=0", "--prompt=b"], 0),  # resampled, from another level
        (["--negative=red", "--alpha=0.5", "--scale=1"], 0),
        (["--negative=red", "--alpha=0.5"], 0),
        (["--source=a horse"], 0),
        (["--source=a horse", "--source-scale=1"], 0),
        (["--tau-f=0", "--tau-a=0"], 0),
        (["--tau-f=0", "--tau-a=0", "--inversion-at=current"], 0),  # nothing is kept, so nothing needs the last level
    ],
)
def test_evaluations_are_counted_right(more, checks, passes, capsys):
    image = [] if "--source=a horse" in more else [str(HORSE)]
    assert main(["translate", *LOUD, *image, COW, *more, "--out=o"]) == 0
    said = int(re.search(r"([\d,]+) evaluations", capsys.readouterr().err)[1])
    assert said == sum(passes) - checks


def test_what_is_measured_is_the_inversion(load_once):
    """How near the picture comes back from its noise, under the text that it was inverted under."""
    assert main(["translate", *QUICK, str(HORSE), COW, "--reconstruct", "--out=o"]) == 0
    sd = load_once(hub.WEIGHTS / "bundled", device="cpu")
    picture = fit(read_image(HORSE), sd.size, sd.multiple)
    G = minipnp.guidance_from_picture(sd, to_tensor(picture), Stepped(2))
    again, round_trip = to_image(minipnp.reconstruct(sd, G)), to_image(sd.decode(G.x_0))
    said = run_of("o")
    assert said["psnr"] == {"guidance": psnr(again, picture), "VAE round trip": psnr(again, round_trip)}
    assert said["residuals"] == {str(t): r for t, r in residuals(sd.unet, G, 2).items()}


def test_a_model_under_weights_is_found_by_its_place(here, capsys, monkeypatch):
    monkeypatch.setattr(hub, "WEIGHTS", here / "weights")
    monkeypatch.setattr(hub.resolve, "__defaults__", (here / "weights", False))
    shutil.copytree(HORSE.parents[1], here / "weights/bundled")
    quick = ["translate", "--device=cpu", "--steps=2", COW, str(HORSE)]
    assert main(quick) == 0
    assert f"model: {here}/weights/bundled as SD-1.5 is not there" in capsys.readouterr().err
    os.rename(here / "weights/bundled", here / "weights/sd15")
    assert main(quick) == 0
    assert f"model: {here}/weights/sd15 as it is there; on cpu in float32" in capsys.readouterr().err
    assert main(["translate"]) == 2
    assert re.fullmatch(r"minipnp: error: .*weights/bundled: not there.*\n", capsys.readouterr().err)
