"""`compare`: several methods on one original, from a picture and from a text."""

import pytest
from PIL import Image
from shell import CAT, MODEL, PROMPT, QUICK, SAYS, run_of

from minipnp.app.cli import main
from minipnp.measure.runs import COMPARED, RUNS

pytest_plugins = ["shell_fixtures"]
pytestmark = pytest.mark.usefixtures("here")
CATS = ["compare", f"--image={CAT}", SAYS, f"--prompt={PROMPT}", "--word=cat=tiger"]


def test_one_sheet_and_one_table(capsys):
    assert main(["compare", "--device=cpu", "--steps=4", "--out=o"]) == 0
    run = run_of("o")
    assert len(run["table"]) == 2 + len(COMPARED)
    assert all(any(line.startswith(RUNS[name].label) for line in run["table"]) for name in COMPARED)
    assert run["settings"]["methods"] == list(COMPARED) and run["settings"]["steps"] == 4
    width, height = Image.open("o/compare.png").size
    assert width > 4 * 256 and height > 3 * 256
    assert "Prompt-to-Prompt" in capsys.readouterr().err


def test_the_methods_are_chosen(capsys):
    assert main([*CATS, *QUICK, "--methods=pnp,p2p", "--out=o"]) == 0
    assert len(run_of("o")["table"]) == 4
    assert main([*CATS, *QUICK, "--methods=magic"]) == 2
    assert "give some of pnp" in capsys.readouterr().err


def test_what_a_method_cannot_do_is_left_out_and_said():
    argv = ["compare", f"--image={CAT}", SAYS, "--prompt=a tiger and its cub", "--word=cat=lion", *QUICK]
    assert main([*argv, "--methods=pnp,p2p-blend", "--out=o"]) == 0
    run = run_of("o")
    assert len(run["table"]) == 3 and any("local blend, cat=lion is left out: 'lion'" in n for n in run["notes"])


def test_without_a_word_what_needs_the_object_is_left_out():
    argv = ["compare", f"--image={CAT}", SAYS, f"--prompt={PROMPT}", *QUICK]
    assert main([*argv, "--methods=pnp,masked-pnp", "--out=o"]) == 0
    assert len(run_of("o")["table"]) == 3


def test_an_original_that_is_generated():
    argv = ["compare", SAYS, f"--prompt={PROMPT}", "--seed=3", *QUICK, "--methods=pnp,sdedit-0.5", "--out=o"]
    assert main(argv) == 0
    settings = run_of("o")["settings"]
    assert (settings["seed"], settings["source_scale"], "picture" in settings) == (3, 3, False)


@pytest.mark.parametrize("option", ["--source=a dog", "--word=dog"])
def test_words_of_a_picture_come_with_the_picture(capsys, option):
    assert main(["compare", *MODEL, option]) == 2
    assert "give --image too" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, says",
    [
        ([*CATS, "--source-scale=3"], "--source-scale changes nothing, the original is an --image here"),
        (["compare", SAYS, f"--prompt={PROMPT}", "--fixed-point=2"], "--fixed-point changes nothing, the original is"),
        (["compare", SAYS, f"--prompt={PROMPT}", "--square"], "--square changes nothing, the original is generated"),
        ([*CATS, "--methods=pnp", "--blend-threshold=0.5"], "--blend-threshold changes nothing, it is that of p2p-bl"),
        ([*CATS[:-1], "--blend-threshold=0.5"], "--blend-threshold changes nothing"),
    ],
)
def test_what_would_change_nothing_is_refused(argv, says, unloaded, capsys):
    assert main([*argv, *QUICK]) == 2
    assert says in capsys.readouterr().err


def test_the_example_is_of_any_method_and_says_only_what_concerns_it():
    assert main(["compare", *QUICK, "--timesteps=trailing", "--methods=pnp", "--out=o"]) == 0
    run = run_of("o")
    assert len(run["table"]) == 3 and not run["notes"]
