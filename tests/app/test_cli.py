"""The command line on the bundled model: what it writes, what it refuses, how it ends. Two steps each, to be quick."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from inspect import signature
from pathlib import Path

import pytest
import torch
from PIL import Image

import minipnp
from minipnp.app import models, results
from minipnp.app import translate as commands
from minipnp.app.cli import main
from minipnp.app.log import Log
from minipnp.errors import InputError
from minipnp.files import hub
from minipnp.files.guidance_file import check_guidance
from minipnp.files.known_words import KnownWords
from minipnp.guidance import Inversion
from minipnp.methods.settings import DEFAULTS, Settings
from minipnp.pnp import PnP
from minipnp.slots import decoder
from minipnp.unet import UNet

ROOT = Path(__file__).resolve().parents[2]
HORSE = ROOT / "weights/bundled/examples/horse-noto.png"
QUICK = ["--model=bundled", "--device=cpu", "--steps=2", "--inversion-steps=2", "--quiet"]
COW = "--prompt=a flat icon of a cow on a blue background"
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def load_once():
    return functools.cache(minipnp.load)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, load_once):
    """Runs in an empty folder, with its own memory of checksums, on one thread. The model is loaded once for all."""
    monkeypatch.setattr(minipnp, "load", load_once, raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "here"
    torch.set_num_threads(threads)


def files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def written(path) -> dict:
    """The settings in a PNG."""
    return json.loads(Image.open(path).text["minipnp"])


# ---------------------------------------------------------------------------------------------------------------------
# What comes out


def test_translation_side_by_side_and_record(here, capsys):
    prompt = 'a 🐴 "horse"\nof $(bronze) `;` \\ é'
    argv = ["translate", *QUICK, "--image", str(HORSE), "--prompt", prompt, "--out=o", "--reconstruct"]
    assert main(argv) == 0
    assert capsys.readouterr().out.split() == ["o/translation.png", "o/side-by-side.png", "o/run.json"]
    assert sorted(files(here)) == ["o/run.json", "o/side-by-side.png", "o/translation.png"]
    assert Image.open("o/translation.png").size == (64, 64)
    assert Image.open("o/side-by-side.png").width > 4 * 256  # guidance, round trip, reconstruction, translation

    record = json.loads(Path("o/run.json").read_text())
    settings = record["settings"]
    assert settings == written("o/translation.png") == written("o/side-by-side.png")
    assert settings["prompts"] == [prompt] and settings["picture"] == "horse-noto.png"
    assert settings["steps"] == settings["inversion_steps"] == 2 and settings["pixels"] == [64, 64]
    assert settings["tau_f"] == PnP().tau_f and settings["A_layers"] == "4-11"
    assert settings["weights_sha256"] == {
        "unet": hub.sha256(hub.WEIGHTS / "bundled/unet/diffusion_pytorch_model.safetensors"),
        "vae": hub.sha256(hub.WEIGHTS / "bundled/vae/diffusion_pytorch_model.safetensors"),
        "text_encoder": hub.sha256(hub.WEIGHTS / "bundled/text_encoder/model.safetensors"),
    }
    assert record["argv"] == ["python", "-m", "minipnp", *argv] and record["cwd"] == str(here)
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert record["seconds"].keys() == {"load", "checksums", "inversion", "reconstruction", "translation"}
    assert record["residuals"].keys() == {"1", "501"} and 0 < record["residuals"]["501"] < 1
    assert record["psnr"].keys() == {"guidance", "VAE round trip"} and record["psnr"]["VAE round trip"] > 5


def test_same_command_same_bytes_in_two_processes(here):
    for out in "ab":
        command = [sys.executable, "-m", "minipnp", "translate", *QUICK, COW, "--image", str(HORSE), "--out", out]
        done = subprocess.run(command, env=ENV, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    a, b = files("a"), files("b")
    assert a.keys() == b.keys() == {"translation.png", "side-by-side.png", "run.json"}
    assert all(a[name] == b[name] for name in ("translation.png", "side-by-side.png"))


def test_several_prompts_are_each_as_if_alone(here):
    prompts = ["a glossy icon of a dog on a green background", "--silhouette of a rocket"]
    both = [f"--prompt={prompt}" for prompt in prompts]
    assert main(["translate", *QUICK, f"--image={HORSE}", *both, "--out=both"]) == 0
    for i, prompt in enumerate(prompts, 1):
        assert main(["translate", *QUICK, f"--image={HORSE}", f"--prompt={prompt}", f"--out={i}.png"]) == 0
        assert Path(f"{i}.png").read_bytes() == Path(f"both/translation-{i}.png").read_bytes()
    assert Path("1.png").read_bytes() != Path("2.png").read_bytes()
    assert written("both/side-by-side.png")["prompts"] == prompts


def test_nothing_is_overwritten_by_another_result(here, capsys):
    first = ["translate", *QUICK, COW, f"--image={HORSE}"]
    assert main([*first, "--out=o"]) == main([*first, "--out=x.png"]) == 0
    before = files(here)
    assert before.keys() == {
        "o/run.json", "o/side-by-side.png", "o/translation.png", "x.png", "x.run.json", "x.side-by-side.png"
    }  # fmt: skip

    assert main([*first, "--out=o"]) == main([*first, "--out=x.png"]) == 0  # the same: nothing changes, times neither
    assert files(here) == before

    other = [*first, "--scale=4"]
    assert main([*other, "--out=o"]) == main([*other, "--out=x.png"]) == main([*other, "--out=o"]) == 0
    after = files(here)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {
        "o-2/run.json", "o-2/side-by-side.png", "o-2/translation.png", "x-2.png", "x-2.run.json", "x-2.side-by-side.png"
    }  # fmt: skip
    assert written("o-2/translation.png")["scale"] == written("x-2.png")["scale"] == 4
    assert capsys.readouterr().out.split()[-1] == "o-2/run.json"


def test_a_file_that_is_no_result_keeps_its_place(here):
    Path("o").mkdir()
    Path("o/run.json").write_text("mine")
    Path("o-2").mkdir()
    Path("o-2/translation.png").mkdir()
    assert main(["translate", *QUICK, COW, f"--image={HORSE}", "--out=o"]) == 0
    assert files("o") == {"run.json": b"mine"} and files("o-2") == {} and len(files("o-3")) == 3


def test_folder(here, capsys, monkeypatch):
    Path("icons").mkdir()
    shutil.copy(HORSE, "icons/a.png")
    Image.open(HORSE).resize((100, 60)).save("icons/a.jpg")
    Path("icons/broken.png").write_bytes(HORSE.read_bytes()[:500])
    Path("icons/notes.txt").write_text("no picture")
    loads, load = [], minipnp.load
    monkeypatch.setattr(minipnp, "load", lambda *a, **k: loads.append(a) or load(*a, **k))
    assert main(["translate", *QUICK, COW, "--image=icons"]) == 2
    assert len(loads) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "broken.png" in lines[0] and lines[0].endswith("skipped")
    assert lines[1] == "minipnp: error: 1 of 3 pictures could not be translated"
    of_one = ["run.json", "side-by-side.png", "translation.png"]
    assert sorted(files("out/icons")) == sorted(
        [f"{name}/{file}" for name in ("a-png", "a-jpg") for file in of_one] + ["summary.png", "summary.run.json"]
    )
    assert Image.open("out/icons/a-jpg/translation.png").size == (96, 64)  # aspect kept, cut to multiples of 32
    record = json.loads(Path("out/icons/summary.run.json").read_text())
    assert [("error" in picture, picture["picture"]) for picture in record["settings"]["pictures"]] == [
        (False, "a.jpg"), (False, "a.png"), (True, "broken.png")
    ]  # fmt: skip
    assert Image.open("out/icons/summary.png").height > 2 * 256

    Path("icons/broken.png").unlink()
    assert main(["translate", *QUICK, COW, "--image=icons"]) == 0
    assert len(files("out/icons")) == 10  # a new summary, beside the old one; the pictures were there


def test_generated_guidance(here):
    source = "--source=a twemoji icon of a horse on a red background"
    quick = [option for option in QUICK if "inversion" not in option]
    assert main(["translate", *quick, source, COW, "--seed=3", "--size=96"]) == 0
    out = "out/a-twemoji-icon-of-a-horse-on-a-red-background"
    assert sorted(files(out)) == ["guidance.png", "run.json", "side-by-side.png", "translation.png"]
    assert Image.open(f"{out}/guidance.png").size == (96, 96)
    assert written(f"{out}/translation.png")["seed"] == 3
    assert main(["translate", *quick, source, COW, "--seed=4", "--size=96", "--out=four"]) == 0
    assert Path("four/guidance.png").read_bytes() != Path(f"{out}/guidance.png").read_bytes()


def test_sample(here, capsys):
    quick = ["sample", "--model=bundled", "--device=cpu", "--steps=2", "--quiet", "--seed=1"]
    assert main([*quick, COW, "--width=96", "--out=x.png"]) == 0
    assert capsys.readouterr().out.split() == ["x.png", "x.run.json"]
    assert Image.open("x.png").size == (96, 64)
    assert main([*quick, COW, "--prompt=a dog", "--width=96", "--out=o"]) == 0
    assert sorted(files("o")) == ["picture-1.png", "picture-2.png", "run.json"]
    assert Path("o/picture-1.png").read_bytes() == Path("x.png").read_bytes() != Path("o/picture-2.png").read_bytes()
    assert json.loads(Path("o/run.json").read_text())["settings"]["seed"] == 1


# ---------------------------------------------------------------------------------------------------------------------
# A guidance in a file


@pytest.fixture
def kept(here):
    """The horse's guidance, with features."""
    assert main(["invert", *QUICK, f"--image={HORSE}", "--features", "--out=horse.safetensors"]) == 0
    return "--guidance=horse.safetensors"


@pytest.mark.parametrize(
    "how",
    [
        ["--features"],
        ["--features", "--inversion-at=current"],
        ["--inversion-at=current"],
        ["--like=plug-and-play", "--resample=2", "--seed=3"],
    ],
)
def test_a_guidance_from_a_file_makes_the_same_bytes(here, how, monkeypatch, capsys):
    like, settled = [o for o in how if "like" in o], [o for o in how if o != "--features"]
    assert main(["translate", *QUICK, *settled, f"--image={HORSE}", COW, "--out=direct"]) == 0
    assert main(["invert", *QUICK, *how, f"--image={HORSE}", "--out=g/horse.safetensors"]) == 0
    assert capsys.readouterr().out.split()[-1] == "g/horse.safetensors" and os.listdir("g") == ["horse.safetensors"]
    passes, tap = [], UNet.tap
    monkeypatch.setattr(UNet, "tap", lambda net, x, t, c, *a, **k: passes.append(len(c)) or tap(net, x, t, c, *a, **k))
    quick = [o for o in QUICK if "steps" not in o]
    assert main(["translate", *quick, *like, "--guidance=g/horse.safetensors", COW, "--out=o"]) == 0
    assert files("o")["translation.png"] == files("direct")["translation.png"]
    assert passes == ([2, 2] if "--features" in how else [1, 2, 1, 2] if like else [1, 2, 2])


@pytest.mark.parametrize("more", [[], ["--tau-a=1"], ["--f-layers=4,5"], ["--tau-f=0", "--tau-a=0"]])
@pytest.mark.parametrize("features", [["--features"], []])
def test_evaluations_from_a_file_are_counted_right(here, features, more, monkeypatch, capsys):
    passes, tap = [], UNet.tap
    monkeypatch.setattr(UNet, "tap", lambda net, x, t, c, *a, **k: passes.append(len(c)) or tap(net, x, t, c, *a, **k))
    loud = [o for o in QUICK if o != "--quiet"]
    for argv in (
        ["invert", *loud, f"--image={HORSE}", "--out=h.safetensors", *features],
        ["translate", *[o for o in loud if "steps" not in o], "--guidance=h.safetensors", COW, "--out=o", *more],
    ):
        passes.clear()
        assert main(argv) == 0
        assert int(re.search(r"([\d,]+) evaluations", capsys.readouterr().err)[1]) == sum(passes)


def test_a_guidance_file_can_be_used_with_other_settings_of_the_edit(here, kept):
    quick = [o for o in QUICK if "inversion" not in o]
    assert main(["translate", *quick, kept, COW, "--tau-a=1", "--scale=3", "--negative=red", "--out=o"]) == 0
    assert {"tau_A": 1, "scale": 3, "negative": "red", "steps": 2}.items() <= written("o/translation.png").items()


def test_a_guidance_file_serves_an_edit_in_fewer_steps(here):
    """As if the picture were inverted for it: it begins at its own noisiest level, not at the file's."""
    bundled, how = QUICK[:2], ["--inversion-steps=4", "--inversion-at=current"]
    assert main(["invert", *bundled, "--quiet", *how, "--steps=4", f"--image={HORSE}", "--out=g.safetensors"]) == 0
    few = [*bundled, "--quiet", "--steps=2", COW]
    assert main(["translate", *few, "--guidance=g.safetensors", "--reconstruct", "--out=o"]) == 0
    assert main(["translate", *few, *how, f"--image={HORSE}", "--reconstruct", "--out=direct"]) == 0
    assert files("o")["translation.png"] == files("direct")["translation.png"]
    again, direct = (json.loads(Path(out, "run.json").read_text())["psnr"] for out in ("o", "direct"))
    assert again["guidance"] == direct["VAE round trip"]


@pytest.mark.parametrize(
    "more, says",
    [
        (["--image=x.png"], "--image: settled by --guidance horse.safetensors; leave it out, or leave out --guidance"),
        (["--inversion-steps=5"], "--inversion-steps: settled by"),
        (["--size=32", "--seed=1"], "--seed, --size: settled by"),
        (["--steps=3"], "made for an edit in 2 steps: give --steps 2, or `minipnp invert` again"),
        (["--alpha=0.5"], "give --negative too"),
        (["--method=sdedit"], "--guidance: not an option of --method sdedit"),
        (["--dtype=bfloat16"], "its features are float32; give --dtype float32"),
        (["--prediction-type=v"], "made with other weights (another prediction type)"),
    ],
)
def test_a_guidance_file_that_does_not_fit_is_refused(here, kept, more, says, capsys):
    assert main(["translate", "--model=bundled", "--device=cpu", "--quiet", kept, COW, *more, "--out=o"]) == 2
    assert re.fullmatch(f"minipnp: error: .*{re.escape(says)}.*\n", capsys.readouterr().err) and not Path("o").exists()


def test_a_guidance_file_of_other_weights_is_refused(here, kept, monkeypatch, capsys):
    monkeypatch.setattr(hub, "sha256", lambda file: "0" * 64)
    assert main(["translate", "--model=bundled", "--device=cpu", "--quiet", kept, COW]) == 2
    said = "horse.safetensors: made with other weights (unet, vae, text_encoder); give their --model"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "other, says",
    [
        ({"ema": True}, "another --ema"),
        ({"sizes_sha256": "0" * 64}, "another config.json"),
        ({"weights_sha256": {"unet": "0" * 64}}, "(unet)"),
    ],
)
def test_the_same_files_read_otherwise_are_other_weights(other, says):
    model = {"weights_sha256": {"unet": "1" * 64}, "sizes_sha256": "2" * 64, "prediction": "epsilon", "ema": None,
             "dtype": "float32"}  # fmt: skip
    made = model | {"kept": None}
    check_guidance(Path("g.safetensors"), made, model | {"ema": False})
    with pytest.raises(InputError, match="made with other weights .*" + re.escape(says)):
        check_guidance(Path("g.safetensors"), made, model | other)


def test_a_guidance_file_that_was_sampled_again_belongs_to_its_steps(here, capsys):
    how = ["--steps=4", "--inversion-steps=4", "--resample=4"]
    assert main(["invert", *QUICK[:2], "--quiet", *how, f"--image={HORSE}", "--out=g.safetensors"]) == 0
    assert main(["translate", *QUICK[:2], "--quiet", "--guidance=g.safetensors", "--steps=2", COW, "--out=o"]) == 2
    assert "made for an edit in 4 steps: give --steps 4" in capsys.readouterr().err


def test_what_the_system_refuses_ends_in_one_line(here, monkeypatch, capsys):
    def full(*args, **options):
        raise OSError(28, "No space left on device", "o/translation.png")

    monkeypatch.setattr(commands, "save_results", full)
    assert main(["translate", *QUICK, f"--image={HORSE}", COW, "--out=o"]) == 2
    assert capsys.readouterr().err == "minipnp: error: o/translation.png: No space left on device\n"


@pytest.mark.parametrize("broken", ["missing", "cut", "weights", "text"])
def test_what_is_no_guidance_file_is_refused(here, kept, broken, capsys):
    data = Path("horse.safetensors").read_bytes()
    other = (ROOT / "weights/bundled/vae/diffusion_pytorch_model.safetensors").read_bytes()
    if broken != "missing":
        Path("x.safetensors").write_bytes({"cut": data[:-9], "weights": other, "text": b"hello"}[broken])
    assert main(["translate", "--guidance=x.safetensors", COW]) == 2
    said = capsys.readouterr().err
    why = "cannot be read .*no such file.*" if broken == "missing" else "not a guidance; `minipnp invert` makes one"
    assert re.fullmatch(f"minipnp: error: x.safetensors: {why}\n", said, re.IGNORECASE)


@pytest.mark.parametrize(
    "argv, says",
    [
        ([], "no --image: give the picture to invert"),
        (["--image=nowhere.png"], "nowhere.png"),
        ([f"--image={HORSE}", "--out=x.png"], "--out 'x.png': give a name in .safetensors"),
        ([f"--image={HORSE}", f"--out={ROOT}/Makefile/x.safetensors"], "is not a folder that can be written"),
        ([f"--image={HORSE}", "--steps=30", "--resample=7"], "resampling in 7 steps misses levels"),
    ],
)
def test_invert_refuses_before_the_model_is_loaded(here, argv, says, capsys, monkeypatch):
    monkeypatch.setattr(commands, "open_model", lambda *_: pytest.fail("loaded"))
    assert main(["invert", *argv]) == 2
    assert re.fullmatch(f"minipnp: error: .*{re.escape(says)}.*\n", capsys.readouterr().err)


def test_invert_overwrites_nothing_else(here, kept, capsys):
    before = Path("horse.safetensors").read_bytes()
    again = ["invert", *QUICK, f"--image={HORSE}", "--out=horse.safetensors"]
    assert main([*again, "--features"]) == 0 and sorted(os.listdir()) == ["horse.safetensors"]  # the same
    more = ["--out=other.safetensors", "--features"]
    assert main([*again[:-1], *more]) == main([*again[:-1], *more, "--tau-a=1"]) == 0
    assert main([*again[:-1], *more, "--size=128"]) == 0
    assert {"other.safetensors", "other-2.safetensors", "other-3.safetensors"} < set(os.listdir())
    assert main(again) == 0 and capsys.readouterr().out.split()[-1] == "horse-2.safetensors"
    assert Path("horse.safetensors").read_bytes() == before


def test_low_memory_and_compile_reach_the_loader(here, monkeypatch):
    seen = {}
    monkeypatch.setattr(minipnp, "load", lambda path, **how: seen.update(how) or pytest.fail("enough"), raising=False)
    with pytest.raises(pytest.fail.Exception):
        main(["translate", *QUICK, f"--image={HORSE}", COW, "--low-memory", "--compile"])
    assert seen["low_memory"] is True and seen["compile"] is True


# ---------------------------------------------------------------------------------------------------------------------
# Settings


def test_like_plug_and_play_is_the_other_column():
    real, generated = Settings.like("plug-and-play", False), Settings.like("plug-and-play", True)
    assert (real.pnp.scale, real.pnp.alpha, generated.pnp.scale, generated.pnp.alpha) == (10, 1, 7.5, 0.75)
    for s in (real, generated):
        assert (s.pnp.injected_steps(0.8), s.pnp.injected_steps(0.5)) == (41, 26)
        assert s.pnp.alpha_schedule == "linear" and s.inversion.at == "current"
        assert (s.inversion.steps, s.inversion.iterations, s.inversion.resample) == (999, 0, 999)
        assert s.square and s.vae_sampled and s.both and s.source_is_negative
    theirs, own = Settings.like("pnp-diffusers", False), Settings.like("minipnp", False)
    assert theirs == Settings.like("pnp-diffusers", True) and own == Settings.like("minipnp", True) == Settings()
    assert theirs.inversion == Inversion(steps=999, at="next", iterations=0, resample=0)
    assert replace(theirs, inversion=own.inversion) == own  # nothing else is different


@pytest.fixture
def calls(monkeypatch):
    """With what the three functions of the core were called: name → arguments by name."""
    seen = {}
    for where, name in (
        (commands, "guidance_from_picture"),
        (commands, "guidance_from_prompt"),
        (minipnp, "translate"),
    ):
        real = getattr(where, name)

        def spy(*args, name=name, real=real):
            seen[name] = signature(real).bind(*args).arguments
            return real(*args)

        monkeypatch.setattr(where, name, spy, raising=False)
    return seen


def test_like_plug_and_play_runs_and_options_win(here, calls):
    wide = Image.open(HORSE).convert("RGB").resize((150, 64))
    wide.save("wide.png")
    like = ["translate", *QUICK, "--like=plug-and-play", "--resample=2", COW]
    assert main([*like, "--image=wide.png", "--source=a horse", "--out=a"]) == 0
    assert main([*like, "--image=wide.png", "--no-square", "--scale=4", "--out=b"]) == 0
    a, b = written("a/translation.png"), written("b/translation.png")
    assert (a["pixels"], a["scale"], a["negative"], a["inclusive"]) == ([64, 64], 10, "a horse", True)
    assert calls["guidance_from_picture"]["vae_seed"] == 0
    assert (b["pixels"], b["scale"], b["negative"], b["inversion_at"]) == ([128, 64], 4, None, "current")
    like = [option for option in like if "inversion" not in option and "resample" not in option]
    assert main([*like, "--source=a horse", "--out=c"]) == 0
    c = written("c/translation.png")
    assert (c["scale"], c["alpha"], c["negative"]) == (7.5, 0.75, "a horse")
    assert calls["guidance_from_prompt"]["both"] and calls["translate"]["negative"] == "a horse"


def test_each_option_reaches_what_it_is_for(here, calls):
    options = {
        "tau_f": 0.25, "tau_A": 0.75, "scale": 5.0, "alpha": 0.5, "alpha_schedule": "exp", "f_layers": "none",
        "A_layers": "4,6", "inversion_steps": 4, "inversion_at": "next", "fixed_point": 2, "resample": 4,
        "square": True, "size": 32, "random_start": 9,
    }  # fmt: skip
    flags = [f"--{name.lower().replace('_', '-')}={value}" for name, value in options.items() if value is not True]
    assert main(["translate", *QUICK, f"--image={HORSE}", COW, "--negative=blue", "--square", *flags, "--out=o"]) == 0
    assert options.items() <= written("o/translation.png").items()
    assert written("o/translation.png")["negative"] == "blue"
    guidance, translation = calls["guidance_from_picture"], calls["translate"]
    assert guidance["edit_steps"] == 2 and guidance["how"] == Inversion(4, "next", iterations=2, resample=4)
    assert guidance["picture"].shape == (1, 3, 32, 32) and guidance["vae_seed"] is None
    assert (translation["negative"], translation["random_start"]) == ("blue", 9)
    assert translation["settings"] == PnP(2, 0.25, 0.75, 5.0, 0.5, "exp", f_layers=(), A_layers=decoder(4, 6))

    flags = ["--seed=5", "--source-scale=2", "--steps=3", "--size=96", "--out=g"]
    assert main(["translate", *QUICK[:2], *flags, "--source=a horse", COW]) == 0
    guidance = dict(calls["guidance_from_prompt"])
    assert {guidance.pop(name) for name in ("height", "width")} == {96}
    del guidance["sd"], guidance["progress"]
    assert guidance == {"prompt": "a horse", "seed": 5, "edit_steps": 3, "scale": 2, "both": False}
    assert main(["translate", *QUICK[:2], "--steps=2", "--source=a horse", COW]) == 0
    assert calls["guidance_from_prompt"]["scale"] == 3  # the bundled model's


def test_help_has_the_defaults_of_the_core(capsys):
    for command in ("translate", "sample"):
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        shown = " ".join(capsys.readouterr().out.split()).partition("--help show")[2]
        assert end.value.code == 0
        for name, value in DEFAULTS[command].items():
            flag = f"--{name.lower().replace('_', '-')}"
            if value not in (None, False):
                said = "those of the edit" if name == "inversion_steps" else str(value)
                assert re.search(rf"{flag} .*?\(default: (.*?)\)", shown)[1] == said, name


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
        (["--tau-f=0", "--tau-a=0"], 0),
        (["--tau-f=0", "--tau-a=0", "--inversion-at=current"], 0),  # nothing is kept, so nothing needs the last level
    ],
)
def test_evaluations_are_counted_right(here, more, checks, monkeypatch, capsys):
    passes, tap = [], UNet.tap
    monkeypatch.setattr(UNet, "tap", lambda net, x, t, c, *a, **k: passes.append(len(c)) or tap(net, x, t, c, *a, **k))
    quick = [option for option in QUICK if option != "--quiet" and not ("--source=a horse" in more and "inv" in option)]
    image = [] if "--source=a horse" in more else [f"--image={HORSE}"]
    assert main(["translate", *quick, *image, COW, *more, "--out=o"]) == 0
    said = int(re.search(r"([\d,]+) evaluations", capsys.readouterr().err)[1])
    assert said == sum(passes) - checks


# ---------------------------------------------------------------------------------------------------------------------
# What is said


def test_without_arguments_the_bundled_example(here, capsys):
    quick = [option for option in QUICK if option not in ("--quiet", "--model=bundled")]
    assert main(["translate", *quick]) == 0
    said = capsys.readouterr().err
    assert (
        f"the bundled example, {hub.WEIGHTS / commands.EXAMPLE_PICTURE}\n" in said
        and f"model: {hub.WEIGHTS / 'bundled'}; on cpu in float32" in said
    )
    out = f"out/{Path(commands.EXAMPLE_PICTURE).stem}"
    assert written(f"{out}/translation.png")["prompts"] == [commands.EXAMPLE_PROMPT]


@pytest.mark.parametrize("more, scale", [([], 3), (["--scale=5"], 5), (["--like=pnp-diffusers"], 7.5)])
def test_the_guidance_scale_is_the_model_s_where_nothing_else_is_said(here, more, scale):
    assert main(["translate", *QUICK, f"--image={HORSE}", COW, *more, "--out=o"]) == 0
    assert written("o/translation.png")["scale"] == scale
    if "--like=pnp-diffusers" not in more:
        assert main(["translate", "--method=sdedit", f"--image={HORSE}", COW, *QUICK[:3], *more, "--out=s"]) == 0
        assert written("s/sdedit.png")["options"]["scale"] == scale


def test_which_model_and_why(here, capsys, monkeypatch):
    monkeypatch.setattr(hub, "WEIGHTS", here / "weights")
    monkeypatch.setattr(hub.resolve, "__defaults__", (here / "weights", False))
    shutil.copytree(ROOT / "weights/bundled", here / "weights/bundled")
    quick = ["translate", *QUICK[1:-1], COW, f"--image={HORSE}"]
    assert main(quick) == 0
    assert f"model: {here}/weights/bundled as SD-1.5 is not there" in capsys.readouterr().err
    os.rename(here / "weights/bundled", here / "weights/sd15")
    assert main(quick) == 0
    assert f"model: {here}/weights/sd15 as it is there; on cpu in float32" in capsys.readouterr().err
    assert main(["translate"]) == 2
    assert re.fullmatch(r"minipnp: error: .*weights/bundled: not there.*\n", capsys.readouterr().err)


def test_the_words_of_a_model(here, capsys):
    assert main(["words", "--model=bundled"]) == 0
    template, *lists = capsys.readouterr().out.splitlines()
    said = json.loads((hub.WEIGHTS / "bundled/words.json").read_text())
    assert template == said["template"] and lists[0] == f"STYLE: {', '.join(said['styles'])}"
    listed = {word for line in lists for word in line.partition(": ")[2].split(", ")}
    assert listed == {*said["styles"], *said["concepts"], *said["colours"]}
    assert not listed & {said["held_out"]["style"], *said["held_out"]["concepts"]}
    assert KnownWords.of(here) is None
    (here / "words.json").write_text('{"template": "x"}')
    with pytest.raises(InputError, match="words.json: not a list of words"):
        KnownWords.of(here)


def test_a_prompt_with_no_known_word_is_noted(here, capsys):
    known = KnownWords.of(hub.WEIGHTS / "bundled")
    assert known.any_in("A CAT!") and known.any_in("on a  BLUE\nground") and known.any_in("high contrast")
    assert not any(map(known.any_in, ("", "cats", "a photo of a goldfish", "contrast", "blueish, concat")))
    run = ["translate", *QUICK, f"--image={HORSE}", COW, "--prompt=a goldfish", "--out=o"]
    assert main(run) == 0
    (note,) = [n for n in json.loads(Path("o/run.json").read_text())["notes"] if "knows no word" in n]
    assert "'a goldfish'" in note and "minipnp words" in note


def test_warnings_are_notes_of_one_line_before_the_long_work(here, capsys):
    long = "--prompt=" + "cat " * 80 + "the\nend"
    loud = [*QUICK[:-1], f"--image={HORSE}", long, COW, "--inversion-steps=30", "--seed=1", "--out=o"]
    assert main(["translate", *loud]) == 0
    *lines, last = capsys.readouterr().err.splitlines()
    notes = json.loads(Path("o/run.json").read_text())["notes"]
    assert [line for line in lines if not line.startswith("model: ")] == [f"note: {note}" for note in notes]
    assert "--seed" in notes[0] and "sampled again" in notes[1] and "over 75 tokens" in notes[2] and len(notes) == 3
    assert "evaluations" in last


def test_progress_and_the_time_it_takes(capsys, monkeypatch):
    ticks = iter(range(0, 10**6, 60))
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))  # a minute between two looks at the clock
    log = Log()
    log.expect({"inversion": 40, "translation": 80}, pictures=3)
    assert list(log.progress(range(20), 20, "inversion")) == list(range(20))
    # 3 steps of 2 evaluations took a minute: 10 s each, for 3 · 120.
    assert capsys.readouterr().err.splitlines() == [
        "120 evaluations of the network for each picture (40 inversion, 80 translation)", "about 60 min in all"
    ]  # fmt: skip
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(log.progress(range(3), 3, "translation")) == [0, 1, 2]
    assert "translation: 100%" in capsys.readouterr().err
    assert list(Log(quiet=True).progress(range(3), 3, "translation")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_weights_are_fetched_with_the_options(monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "fetch", lambda **how: asked.append(how))
    assert main(["weights"]) == main(["weights", "--dtype=fp32", "--repo=a/b"]) == 0
    assert asked == [{}, {"dtype": "fp32", "repo": "a/b"}]


def test_a_model_under_the_home_folder_has_its_own_scale(monkeypatch, tmp_path):
    """~ in `--model=~/copy` is left to the program by most shells."""
    (tmp_path / "copy").symlink_to(hub.WEIGHTS / "bundled")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models.suited({"model": "~/copy"}) == models.suited({"model": "bundled"}) != {}


# ---------------------------------------------------------------------------------------------------------------------
# How it ends


I = f"--image={HORSE}"  # noqa: E741
BAD = [
    # the command and its options
    ([], "COMMAND"),
    (["translat"], "translat"),
    (["translate", I, COW, "--step=3"], "--step=3"),
    (["translate", I, "--prompt", "-dash"], "expected one argument"),
    (["translate", I, COW, "--steps=1.5"], "--steps.*1.5"),
    (["translate", I, COW, "--steps=0"], "0 steps: give a number from 1 to 999"),
    (["translate", I, COW, "--steps=1000"], "1000 steps: give a number from 1 to 999"),
    (["translate", I, COW, "--inversion-steps=-1"], "-1 steps"),
    (["translate", I, COW, "--resample=1000"], "1000 steps"),
    (["translate", I, COW, "--steps=50", "--resample=30"], "misses levels"),
    (["translate", I, COW, "--inversion-steps=10"], "inverted to t = 901, not near 981: give 50"),
    (["translate", I, COW, "--inversion-steps=10", "--resample=50"], "inverted to t = 901"),
    (["translate", I, COW, "--inversion-steps=600"], "inverted to t = 600"),
    (["evaluate", "--inversion-steps=5"], "inverted to t = 801"),
    (["translate", "--source=a", COW, "--steps=600"], "600 steps begin at t = 600"),
    (["translate", I, COW, "--random-start=1", "--steps=501"], "501 steps begin at t = 501"),
    (["sample", COW, "--steps=334"], "334 steps begin at t = 667"),
    (["injection", str(HORSE), COW, "--steps=600"], "600 steps begin at t = 600"),
    (["translate", I, COW, "--inversion-at=here"], "'next' or 'current'"),
    (["translate", I, COW, "--fixed-point=0"], "'last' with a fixed-point iteration"),
    (["translate", I, COW, "--inversion-at=next", "--fixed-point=-1"], "iterations"),
    (["translate", I, COW, "--tau-f=1.1"], "tau_f = 1.1"),
    (["translate", I, COW, "--tau-a=-0.1"], "tau_A = -0.1"),
    (["translate", I, COW, "--tau-f=nan"], "--tau-f"),
    (["translate", I, COW, "--scale=inf"], "--scale"),
    (["translate", I, COW, "--seed=-1"], "--seed"),
    (["translate", I, COW, "--size=0"], "0 is not 1 or more"),
    (["sample", COW, "--width=-64"], "-64 is not 1 or more"),
    (["translate", I, COW, "--random-start=18446744073709551616"], "--random-start"),
    (["translate", I, COW, "--alpha=2", "--negative=x"], "alpha = 2"),
    (["translate", I, COW, "--alpha-schedule=square", "--negative=x"], "constant, linear, exp"),
    (["translate", I, COW, "--f-layers=12"], "0 to 11"),
    (["translate", I, COW, "--f-layers=8-4"], "--f-layers"),
    (["translate", I, COW, "--f-layers=0-999999999999"], "--f-layers"),
    (["translate", I, COW, "--a-layers=2"], "no self-attention.* decoder 2"),
    (["translate", I, COW, "--like=sdedit"], "--like"),
    (["sample", COW, "--steps=0"], "0 steps"),
    (["sample"], "no --prompt"),
    (["weights", "--dtype=fp8"], "fp16 or fp32"),
    # what would change nothing
    (["translate", I, COW, "--source=a horse"], "--source changes nothing"),
    (["translate", I, COW, "--source=a", "--negative=b", "--like=plug-and-play"], "--source changes nothing"),
    (["translate", I, COW, "--source-scale=3"], "--source-scale changes nothing"),
    (["translate", I, COW, "--alpha=0.5"], "--negative"),
    (["translate", I, COW, "--alpha-schedule=exp", "--negative=x"], "--alpha-schedule is the course of --alpha"),
    (["invert", I, "--tau-f=0.5"], "--tau-f decides which --features are kept"),
    (["invert", I, "--a-layers=4"], "--a-layers decides"),
    (["translate", "--source=a", COW, "--reconstruct"], "--reconstruct changes nothing"),
    (["translate", "--source=a", COW, "--inversion-steps=3"], "--inversion-steps changes nothing"),
    (["translate", "--source=a", COW, "--random-start=0"], "own start"),
    # the guidance and the text
    (["translate", I], "no --prompt"),
    (["translate", "--source=a"], "no --prompt"),
    (["translate", "--image=", COW], "--image is empty"),
    (["translate", "--image=no such\nfile.png", COW], "no such file"),
    (["translate", "--image=text.png", COW], "not a picture"),
    (["translate", "--image=empty.png", COW], "empty file"),
    (["translate", "--image=cut.png", COW], "damaged or cut short"),
    (["translate", "--image=bomb.png", COW], "too many pixels"),
    (["translate", "--image=folder", COW], "no pictures in the folder"),
    # where to
    (["translate", I, COW, "--out=x.jpg"], "written as PNG"),
    (["translate", I, COW, "--prompt=b", "--out=x.png"], "give a folder"),
    (["translate", "--image=folder2", COW, "--out=x.png"], "give a folder"),
    (["translate", I, COW, "--out=text.png/o"], "not a folder"),
    (["translate", I, COW, "--out=file"], "not a folder"),
    # the model
    (["translate", I, COW, "--device=tpu"], "device 'tpu'"),
    (["translate", I, COW, "--device=cuda:99"], "not usable here"),
    (["translate", I, COW, "--dtype=float64"], "float32, float16, bfloat16"),
    (["translate", I, COW, "--model=no/such/model"], "no model 'no/such/model'"),
    (["translate", I, COW, "--prediction-type=x0"], "--prediction-type"),
]  # fmt: skip


@pytest.mark.parametrize("argv, says", BAD, ids=[" ".join(argv[-2:]) for argv, _ in BAD])
def test_bad_input_ends_in_one_line_before_the_model_is_loaded(here, argv, says, capsys, monkeypatch):
    def loaded(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(minipnp, "load", loaded)
    Path("text.png").write_text("no picture")
    Path("file").write_text("no picture")
    Path("empty.png").touch()
    Path("cut.png").write_bytes(HORSE.read_bytes()[:800])
    Path("bomb.png").write_bytes(bomb())
    Path("folder").mkdir()
    Path("folder2").mkdir()
    shutil.copy(HORSE, "folder2")
    before = files(here)
    assert main(argv) == 2
    out, said = capsys.readouterr()
    assert re.fullmatch(rf"minipnp: error: .*{says}.*\n", said) and out == ""
    assert files(here) == before


def bomb() -> bytes:
    """The header of a PNG of 60000 × 60000 pixels."""
    from struct import pack
    from zlib import crc32

    header = b"IHDR" + pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + pack(">I", 13) + header + pack(">I", crc32(header)) + HORSE.read_bytes()[33:]


@pytest.mark.parametrize(
    "option, says",
    [("--size=50", "multiples of 32"), ("--size=33", "multiples of 32"), ("--ema", "EMA"),
     ("--vae=no\nwhere", "no where: .*o such"), ("--prompt=\udcff", "not valid UTF-8"),
     ("--negative=\udcff", "not valid UTF-8")],
)  # fmt: skip
def test_what_only_the_model_shows_ends_in_one_line(here, option, says, capsys):
    assert main(["translate", *QUICK, I, COW, option]) == 2
    assert re.fullmatch(rf"minipnp: error: .*{says}.*\n", capsys.readouterr().err) and files(here) == {}


@pytest.mark.parametrize(
    "error, says",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0"), "smaller --size"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
            "smaller --size",
        ),
        (MemoryError(), "smaller --size"),
    ],
)
def test_lack_of_memory(here, error, says, capsys, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(commands, "guidance_from_picture", fail)
    assert main(["translate", *QUICK, I, COW]) == 2
    assert re.fullmatch(rf"minipnp: error: not enough memory.*{says}.*\n", capsys.readouterr().err)
    assert files(here) == {}


def test_nan_in_the_result(here, capsys, monkeypatch):
    nan = torch.full((1, 3, 64, 64), float("nan"))
    monkeypatch.setattr(minipnp, "translate", lambda *_, **__: nan, raising=False)
    assert main(["translate", *QUICK, I, COW]) == 2
    assert re.fullmatch(r"minipnp: error: NaN in the result.*--dtype float32.*\n", capsys.readouterr().err)
    assert files(here) == {}


def test_a_defect_of_the_program_is_not_disguised(monkeypatch):
    monkeypatch.setattr(commands, "guidance_from_picture", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["translate", *QUICK, I, COW])


def test_a_full_disk(here, capsys, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results.os, "replace", fail)
    assert main(["translate", *QUICK, I, COW]) == 2
    assert re.fullmatch(r"minipnp: error: cannot write .*No space left on device\n", capsys.readouterr().err)
    assert files(here) == {}


@pytest.mark.parametrize("when", ["working", "writing"])
def test_interrupted_nothing_is_left(here, when, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    target = {"working": (Log, "progress"), "writing": (results, "write_text_atomic")}[
        when
    ]  # the pictures are there then
    monkeypatch.setattr(*target, interrupt)
    assert main(["translate", *QUICK, I, COW]) == 130
    assert capsys.readouterr().err == "minipnp: interrupted\n"
    assert files(here) == {}


def test_ctrl_c(here):
    command = [sys.executable, "-m", "minipnp", "translate", "--model=bundled", "--device=cpu"]
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs do not hear it
    with subprocess.Popen(command, env=ENV, stderr=subprocess.PIPE, text=True, preexec_fn=heard) as process:
        while "evaluations" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130 and rest.splitlines()[-1] == "minipnp: interrupted" and "Traceback" not in rest
    assert files(here) == {}


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"{minipnp.__version__}\n"


def test_help_and_mistakes_in_options_do_not_wait_for_torch():
    script = """
import sys
from minipnp.app.cli import main
assert main(["translate", "--steps=x"]) == 2
try:
    main(["--help"])
except SystemExit as end:
    assert end.code == 0
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_all_names_of_the_package_are_there():
    assert all(callable(getattr(minipnp, name)) for name in minipnp.__all__)
    with pytest.raises(AttributeError):
        _ = minipnp.no_such_name
