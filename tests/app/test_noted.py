"""What would be wrong, or less than was asked for, and is said: notes in run.json, refusals in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shell import CAT, COW, HORSE, MODEL, PROMPT, QUICK, SAYS, SOURCE, run_of, translate, written

from minipnp.app.cli import main
from minipnp.files import hub
from minipnp.files.known_words import KnownWords
from minipnp.tokenizer import SYNTAX

pytest_plugins = ["shell_fixtures"]


def notes(folder) -> str:
    return "\n".join(run_of(folder)["notes"])


def refused(argv, *parts, capsys) -> None:
    assert main(argv) == 2
    *noted, line = capsys.readouterr().err.strip().splitlines()
    assert all(x.startswith("note: ") for x in noted) and all(part in line for part in parts), line


# ---- step counts ----


@pytest.mark.parametrize("command", ["sample", "translate"])
def test_a_run_from_noise_that_begins_too_low_is_refused_and_the_remedy_named(command, unloaded, capsys):
    source = [SAYS] if command == "translate" else []
    refused([command, *MODEL, COW, *source, "--steps=150"], "t = 895", "--timesteps trailing", capsys=capsys)
    refused([command, *MODEL, COW, *source, "--steps=700", "--timesteps=trailing"], "1 to 666", capsys=capsys)


def test_few_steps_from_noise_are_noted(here):
    assert main(["sample", *MODEL, COW, "--steps=2", "--out=a"]) == 0
    assert "2 steps begin at t = 501, not at pure noise: --timesteps trailing begins at 999" in notes("a")
    assert main(["sample", *MODEL, COW, "--steps=2", "--timesteps=trailing", "--out=b"]) == 0
    assert "begin at" not in notes("b") and run_of("b")["settings"]["timesteps"] == "trailing"
    assert run_of("a")["pictures"] != run_of("b")["pictures"]


@pytest.mark.parametrize("method", ["pnp", "ddim"])
def test_an_edit_of_a_picture_that_begins_low_is_noted(method, here):
    assert translate(method, "--out=a") == 0
    assert "2 steps begin at t = 501, where much of the picture is settled" in notes("a")
    assert translate(method, "--timesteps=trailing", "--out=b") == 0
    assert "begin at" not in notes("b") and run_of("a")["pictures"] != run_of("b")["pictures"]


def test_a_guidance_file_has_its_timesteps_and_says_which_steps_it_serves(here, capsys):
    how = [*MODEL, f"--image={CAT}", "--timesteps=trailing"]
    assert main(["invert", *how, "--steps=4", "--out=g.safetensors"]) == 0
    assert main(["translate", *MODEL, "--guidance=g.safetensors", f"--prompt={PROMPT}", "--steps=2", "--out=a"]) == 0
    assert run_of("a")["settings"]["timesteps"] == "trailing"
    capsys.readouterr()
    other = ["translate", *MODEL, "--guidance=g.safetensors", f"--prompt={PROMPT}", "--steps=3"]
    refused(other, "--steps 4 --timesteps trailing (also served: 2, 1)", capsys=capsys)


# ---- what is given and not used ----


def test_an_option_given_twice_is_refused(unloaded, capsys):
    twice = ["translate", *MODEL, COW, f"--image={CAT}", f"--image={HORSE}"]
    refused(twice, "--image", str(CAT), str(HORSE), "one of the two", capsys=capsys)
    twice = ["translate", *MODEL, COW, f"--image={CAT}", "--steps=3", "--steps=4"]
    refused(twice, "--steps: 3 and 4: give one of the two", capsys=capsys)
    twice = ["translate", *MODEL, COW, f"--image={CAT}", "--reconstruct", "--no-reconstruct"]
    refused(twice, "--reconstruct", "one of the two", capsys=capsys)


def test_a_direction_stands_in_the_place_of_a_prompt(here, capsys):
    p2z = ["translate", "--method=pix2pix-zero", f"--image={CAT}", *QUICK, "--change=cat=dog"]
    assert main([*p2z, "--out=a"]) == 0
    assert written("a/translation.png")["change"] == "cat=dog"
    refused([*p2z, COW], "--prompt changes nothing", "leave it out", capsys=capsys)


def test_a_direction_from_a_word_that_is_not_there_is_noted(here):
    p2z = ["translate", "--method=pix2pix-zero", f"--image={CAT}", *QUICK, SAYS]
    assert main([*p2z, "--change=zzz=qqq", "--out=a"]) == 0
    assert f"'zzz' is not in the source's text {SOURCE!r}" in notes("a") and "does not know zzz" in notes("a")


@pytest.mark.parametrize("strength", [0, 0.3])
def test_a_strength_of_no_step_is_refused(strength, unloaded, capsys):
    sdedit = ["translate", "--method=sdedit", COW, f"--image={CAT}", *QUICK, f"--strength={strength}"]
    refused(sdedit, f"strength {strength}", "give 0.5 or more", capsys=capsys)


def test_a_word_that_the_source_lacks_is_said_of_the_source(here, capsys):
    p2p = ["translate", "--method=p2p", SAYS, f"--prompt={PROMPT}", f"--image={CAT}", *QUICK, "--blend=tiger"]
    refused(p2p, "'tiger' is not in the source's text", capsys=capsys)


def test_the_syntax_of_web_uis_is_noted(here):
    texts = ["(a cat:1.3)", "((cat))", "<lora:stripes:0.8>", "[cat:0.5]", "embedding:easynegative"]
    assert all(SYNTAX.findall(f"a photo of {text} here") == [text] for text in texts)
    assert not SYNTAX.findall("a cat (and a dog), 3:2, at 10:30, <3, [sic]")
    prompt = "--prompt=(flat icon:1.3) of a cow <lora:stripes:0.8>"
    assert main(["translate", prompt, f"--image={CAT}", *QUICK, "--out=a"]) == 0
    assert "(flat icon:1.3) <lora:stripes:0.8> is read letter by letter" in notes("a")


# ---- what a picture loses ----


def test_a_crop_and_a_size_that_the_model_was_not_made_for_are_noted(here):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 150, 3), dtype=np.uint8)).save("wide.png")
    assert main(["translate", COW, "--image=wide.png", *QUICK, "--size=64", "--out=a"]) == 0
    assert "4% of the width is cut off: sides are multiples of 32 pixels" in notes("a")
    assert "trained on 128 pixels and draws badly on 64" in notes("a")
    assert main(["translate", COW, "--image=wide.png", *QUICK, "--square", "--out=b"]) == 0
    assert "cut off" not in notes("b") and "draws badly" not in notes("b")


def test_every_word_that_a_small_model_does_not_know_is_named(here):
    known = KnownWords.of(hub.WEIGHTS / "bundled")
    for prompt in ("A CAT!", "on a  BLUE\nbackground", "high contrast icon of the owl", ""):
        assert known.unknown(prompt) == []
    assert known.unknown("a photo of cats, contrast") == ["photo", "cats", "contrast"]
    assert main(["translate", "--prompt=a photo of a cow", f"--image={CAT}", *QUICK, "--out=a"]) == 0
    assert "bundled does not know photo: `minipnp words`" in notes("a")


# ---- records ----


def test_a_record_tells_a_guidance_file_from_a_picture(here):
    assert main(["invert", *QUICK, f"--image={CAT}", "--out=g.safetensors"]) == 0
    assert main(["translate", *QUICK, f"--image={CAT}", COW, "--out=a"]) == 0
    assert main(["translate", *MODEL, "--guidance=g.safetensors", COW, "--out=b"]) == 0
    a, b = run_of("a")["settings"], run_of("b")["settings"]
    assert {**b, "guidance_sha256": None} == {**a, "guidance_sha256": None} and a != b
    assert b["guidance_sha256"] == hub.sha256(Path("g.safetensors"))


def test_a_record_holds_the_contents_of_a_mask_not_its_name(here):
    mask = np.zeros((128, 128), dtype=np.uint8)
    mask[32:96, 32:96] = 255
    Image.fromarray(mask).save("m.png")
    shutil.copy("m.png", "n.png")
    edit = ["translate", "--method=masked-pnp", f"--image={CAT}", COW, *QUICK]
    assert main([*edit, "--mask=m.png", "--out=a"]) == 0 and main([*edit, "--mask=n.png", "--out=b"]) == 0
    assert run_of("a")["settings"] == run_of("b")["settings"]
    Image.fromarray(255 - mask).save("n.png")
    assert main([*edit, "--mask=n.png", "--out=c"]) == 0
    assert run_of("a")["settings"] != run_of("c")["settings"]


def test_a_record_holds_the_number_of_threads(here):
    assert main(["sample", *MODEL, COW, "--steps=1", "--out=a"]) == 0
    assert run_of("a")["settings"]["threads"] == 1


# ---- defaults that were not given ----


@pytest.mark.parametrize("command", ["features", "segment", "correspond"])
def test_a_default_timestep_is_one_that_the_steps_meet(command, here):
    pictures = [str(CAT), str(HORSE)] if command == "correspond" else [str(CAT)]
    assert main([command, *pictures, *MODEL, "--steps=4", "--out=o"]) == 0
    assert "501" in json.dumps(run_of("o")["settings"])  # of 751, 501, 251, 1
