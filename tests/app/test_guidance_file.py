"""`invert` keeps a picture's guidance in a file, and `translate --guidance` goes on from it, by each method."""

import os
import re
from pathlib import Path

import pytest
import torch
from shell import CAT, COW, EDITS, HORSE, MODEL, PROMPT, QUICK, ROOT, files, pixels, run_of, translate, written

from minipnp.app import invert
from minipnp.app.cli import main
from minipnp.errors import InputError
from minipnp.files import hub
from minipnp.files.guidance_file import check_guidance
from minipnp.methods.registry import METHODS

pytest_plugins = ["shell_fixtures"]
pytestmark = pytest.mark.usefixtures("here")
LOUD = [option for option in QUICK if option != "--quiet"]


@pytest.fixture
def kept(here):
    """The horse's guidance, with features."""
    assert main(["invert", *QUICK, str(HORSE), "--features", "--out=horse.safetensors"]) == 0
    return "--guidance=horse.safetensors"


@pytest.mark.parametrize(
    "how",
    [
        ["--features"],
        ["--features", "--inversion-at=current"],
        ["--inversion-at=current"],
        ["--like=plug-and-play", "--inversion-steps=2", "--resample=2", "--seed=3"],
    ],
)
def test_a_guidance_from_a_file_makes_the_same_picture(how, passes, capsys):
    settled = [o for o in how if o != "--features"]
    like = [o for o in how if "like" in o]
    assert main(["translate", *QUICK, *settled, str(HORSE), COW, "--out=direct"]) == 0
    assert main(["invert", *QUICK, *how, f"--image={HORSE}", "--out=g/horse.safetensors"]) == 0
    assert capsys.readouterr().out.split()[-1] == "g/horse.safetensors" and os.listdir("g") == ["horse.safetensors"]
    passes.clear()
    assert main(["translate", *MODEL, *like, "--guidance=g/horse.safetensors", COW, "--out=o"]) == 0
    assert pixels("o/translation.png") == pixels("direct/translation.png")
    assert passes == ([2, 2] if "--features" in how else [1, 2, 1, 2] if like else [1, 2, 2])


def test_a_guidance_with_nan_is_not_kept(capsys, monkeypatch):
    """As half precision overflows in some models: each translation from it would fail, or be rubbish."""
    take = invert.guidance_from_picture

    def overflown(*args):
        G = take(*args)
        G.latents[501][0, 0, 3, 3] = torch.nan
        return G

    monkeypatch.setattr(invert, "guidance_from_picture", overflown)
    assert main(["invert", *QUICK, f"--image={CAT}", "--out=cat.safetensors"]) == 2
    assert capsys.readouterr().err.endswith("minipnp: error: NaN in the guidance: try --dtype float32\n")
    assert os.listdir() == []


@pytest.mark.parametrize("features", [["--features"], []])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on_from_a_file(method, features):
    """To the same picture: by its latents and features, or by its x_0, which is inverted under the source's text."""
    assert main(["invert", *QUICK, f"--image={CAT}", *features, "--inversion-at=current", "--out=cat.safetensors"]) == 0
    inverts = ["--inversion-at=current"] if method not in ("sdedit", "pix2pix-zero") else []
    assert translate(method, "--out=direct", *inverts) == 0
    assert translate(method, "--guidance=cat.safetensors", image=None) == 0
    out = "out/cat" if method == "pnp" else f"out/cat-{method}"
    assert sorted(files(out)) == ["run.json", "side-by-side.png", "translation.png"]
    assert pixels(f"{out}/translation.png") == pixels("direct/translation.png")
    settings = run_of(out)["settings"]
    assert settings["method"] == method and settings["picture"] == CAT.name and settings["steps"] == 2


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.guidance])
def test_a_file_s_guidance_is_reconstructed(method):
    assert main(["invert", *QUICK, f"--image={CAT}", "--out=cat.safetensors"]) == 0
    assert translate(method, "--guidance=cat.safetensors", "--reconstruct", "--out=o", image=None) == 0
    record = run_of("o")
    assert record["residuals"].keys() == {"1", "501"} and record["psnr"].keys() == {"guidance"}


def test_a_file_s_codebase_is_that_of_plug_and_play_only():
    """`--like` sets defaults of Plug-and-Play: from its file, another method has its own, as from the picture."""
    how = ["--like=plug-and-play", "--inversion-steps=2", "--resample=2"]
    assert main(["invert", *QUICK, f"--image={CAT}", *how, "--out=cat.safetensors"]) == 0
    for method, scale in (("pnp", 10), ("sdedit", 3), ("masactrl", 3), ("p2p", 3)):
        assert translate(method, "--guidance=cat.safetensors", f"--out={method}", image=None) == 0
        settings = run_of(method)["settings"]
        assert (settings["scale"], settings["negative"]) == (scale, None), method


@pytest.mark.parametrize("more", [[], ["--tau-a=1"], ["--f-layers=4,5"], ["--tau-f=0", "--tau-a=0"]])
@pytest.mark.parametrize("features", [["--features"], []])
def test_evaluations_from_a_file_are_counted_right(features, more, passes, capsys):
    for argv in (
        ["invert", *LOUD, str(HORSE), "--out=h.safetensors", *features],
        ["translate", *[o for o in LOUD if "steps" not in o], "--guidance=h.safetensors", COW, "--out=o", *more],
    ):
        passes.clear()
        assert main(argv) == 0
        assert int(re.search(r"([\d,]+) evaluations", capsys.readouterr().err)[1]) == sum(passes)


def test_a_guidance_file_can_be_used_with_other_settings_of_the_edit(kept):
    assert main(["translate", *QUICK, kept, COW, "--tau-a=1", "--scale=3", "--negative=red", "--out=o"]) == 0
    assert {"tau_A": 1, "scale": 3, "negative": "red", "steps": 2}.items() <= written("o/translation.png").items()


def test_a_guidance_file_serves_an_edit_in_fewer_steps():
    """As if the picture were inverted for it: it begins at its own noisiest level, not at the file's."""
    how = ["--inversion-steps=4", "--inversion-at=current"]
    assert main(["invert", *MODEL, *how, "--steps=4", str(HORSE), "--out=g.safetensors"]) == 0
    assert main(["translate", *QUICK, COW, "--guidance=g.safetensors", "--reconstruct", "--out=o"]) == 0
    assert main(["translate", *QUICK, COW, *how, str(HORSE), "--reconstruct", "--out=direct"]) == 0
    assert pixels("o/translation.png") == pixels("direct/translation.png")
    again, direct = (run_of(out)["psnr"] for out in ("o", "direct"))
    assert again["guidance"] == direct["VAE round trip"]
    assert run_of("o")["residuals"].keys() == run_of("direct")["residuals"].keys()


@pytest.mark.parametrize(
    "more, says",
    [
        (["--image=x.png"], "--image changes nothing, settled by --guidance: leave it out"),
        (["x.png"], "--image changes nothing, settled by --guidance: leave it out"),
        (["--inversion-steps=5"], "--inversion-steps changes nothing, settled by --guidance"),
        (["--size=32", "--seed=1"], "--size changes nothing, settled by --guidance"),
        (["--steps=3"], "horse.safetensors: it does not serve 3 steps with leading timesteps: give --steps 2 "),
        (["--alpha=0.5"], "give --negative too"),
        (["--dtype=bfloat16"], "its features are float32; give --dtype float32"),
        (["--prediction-type=v"], "made with other weights (another prediction type)"),
    ],
)
def test_a_guidance_file_that_does_not_fit_is_refused(kept, more, says, capsys):
    assert main(["translate", *MODEL, kept, COW, *more, "--out=o"]) == 2
    *noted, said = capsys.readouterr().err.splitlines()
    assert re.fullmatch(f"minipnp: error: .*{re.escape(says)}.*", said) and not Path("o").exists()
    assert all(line.startswith("note: 2 steps begin at") for line in noted)


def test_a_guidance_file_of_other_weights_is_refused(kept, monkeypatch, capsys):
    monkeypatch.setattr(hub, "sha256", lambda file: "0" * 64)
    assert main(["translate", *MODEL, kept, COW]) == 2
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


def test_a_guidance_file_that_was_sampled_again_belongs_to_its_steps(capsys):
    how = ["--steps=4", "--inversion-steps=4", "--resample=4"]
    assert main(["invert", *MODEL, *how, str(HORSE), "--out=g.safetensors"]) == 0
    assert main(["translate", *QUICK, "--guidance=g.safetensors", COW, "--out=o"]) == 2
    assert (
        "does not serve 2 steps with leading timesteps: give --steps 4 --timesteps leading, or"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("broken", ["missing", "cut", "weights", "text"])
def test_what_is_no_guidance_file_is_refused(kept, broken, capsys):
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
        (["nowhere.png"], "nowhere.png"),
        ([str(HORSE), "--out=x.png"], "--out 'x.png': give a name in .safetensors"),
        ([str(HORSE), f"--out={ROOT}/Makefile/x.safetensors"], "is not a folder that can be written"),
        ([str(HORSE), "--steps=30", "--resample=7"], "resampling in 7 steps misses levels"),
        ([str(HORSE), "--tau-f=0.5"], "--tau-f decides which --features are kept"),
        ([str(HORSE), "--a-layers=4"], "--a-layers decides which --features are kept"),
        ([str(HORSE), "--scale=4"], "there is no option --scale"),
    ],
)
def test_invert_refuses_before_the_model_is_loaded(argv, says, capsys, monkeypatch):
    monkeypatch.setattr(invert, "open_model", lambda *_: pytest.fail("loaded"))
    assert main(["invert", *argv]) == 2
    assert re.fullmatch(f"minipnp: error: .*{re.escape(says)}.*\n", capsys.readouterr().err)


def test_invert_overwrites_nothing_else(kept, capsys):
    before = Path("horse.safetensors").read_bytes()
    again = ["invert", *QUICK, str(HORSE), "--out=horse.safetensors"]
    assert main([*again, "--features"]) == 0 and sorted(os.listdir()) == ["horse.safetensors"]  # the same
    more = ["--out=other.safetensors", "--features"]
    assert main([*again[:-1], *more]) == main([*again[:-1], *more, "--tau-a=1"]) == 0
    assert main([*again[:-1], *more, "--size=64"]) == 0
    assert {"other.safetensors", "other-2.safetensors", "other-3.safetensors"} < set(os.listdir())
    assert main(again) == 0 and capsys.readouterr().out.split()[-1] == "horse-2.safetensors"
    assert Path("horse.safetensors").read_bytes() == before


@pytest.mark.parametrize("method", EDITS)
def test_a_file_and_two_prompts(method):
    prompts = [PROMPT, "a glossy icon of a tiger on a red background"]
    assert main(["invert", *QUICK, f"--image={CAT}", "--out=cat.safetensors"]) == 0
    more = ["--guidance=cat.safetensors", f"--prompt={prompts[1]}", "--out=o"]
    assert translate(method, *more, image=None) == 0
    assert run_of("o")["settings"]["prompts"] == prompts
    assert [written(f"o/translation-{i}.png")["prompts"] for i in (1, 2)] == [[prompt] for prompt in prompts]
    assert pixels("o/translation-1.png") != pixels("o/translation-2.png")
