"""The help of `translate`: its examples can be run, and every option of every method stands there with its default."""

import re
import shlex

import pytest

from minipnp.app.cli import main
from minipnp.app.options import has_default, shown
from minipnp.app.translate import read_options
from minipnp.guidance import Inversion
from minipnp.methods.original import Taking
from minipnp.methods.registry import METHODS
from minipnp.options import LAYERS, options_of


@pytest.fixture
def text(capsys):
    with pytest.raises(SystemExit):
        main(["translate", "--help"])
    return capsys.readouterr().out


def entry(text: str, flag: str) -> str:
    """What is said of an option, on one line."""
    (found,) = re.findall(rf"^  ({re.escape(flag)}[ ,\n].*?)(?=^  -|^\S|^\n)", text, re.M | re.S)
    return " ".join(found.split())


def test_its_examples_are_commands(text):
    lines = [line for line in text.splitlines() if line.startswith("  minipnp translate ")]
    assert len(lines) == 3
    for line in lines:
        given = read_options(shlex.split(line)[2:])
        assert given["image_"] and given["prompt"]


@pytest.mark.parametrize("method", METHODS)
def test_each_option_of_a_method_has_its_default(text, method):
    for o in options_of(METHODS[method].settings):
        said = entry(text, o.flag)
        assert " ".join(o.help.split()) in said
        if not has_default(o):
            continue
        usual, *others = re.search(r"\(default: ([^()]*)\)$", said)[1].split("; ")
        own = {name: value for part in others for names, value in [part.rsplit(" ", 1)] for name in names.split(", ")}
        assert own.get(method, usual) == shown(o.form, o.default), o.flag


@pytest.mark.parametrize("settings", [Taking, Inversion])
def test_each_option_of_an_original_has_its_default(text, settings):
    for o in options_of(settings):
        assert entry(text, o.flag).endswith(f"(default: {shown(o.form, o.default)})") or not has_default(o)


@pytest.mark.parametrize(
    "argv, says",
    [
        (["--stepz=3"], "there is no option --stepz, did you mean --steps?"),
        (["--prompts=a"], "there is no option --prompts, did you mean --prompt?"),
        (["--tau-A=1"], "there is no option --tau-A, did you mean --tau-a?"),
        (["--zzz"], "there is no option --zzz"),
        (["a.png", "b.png"], "'b.png' is one argument too many"),
        (["--tau-f=2"], "argument --tau-f: '2': give a share from 0 to 1"),
        (["--steps=many"], "argument --steps: 'many': give a whole number from 1 to 999"),
        (["--f-layers=x"], "argument --f-layers: 'x': give " + LAYERS.says),
        (["--method=p2", "--steps=3"], "argument --method: 'p2': give one of " + ", ".join(METHODS)),
    ],
)
def test_mistakes_are_answered_with_what_to_give(capsys, argv, says):
    assert main(["translate", *argv]) == 2
    assert capsys.readouterr().err == f"minipnp: error: {says} (`minipnp translate --help` lists the options)\n"


def test_a_command_that_is_nearly_one(capsys):
    assert main(["translat"]) == 2
    said = "there is no command 'translat', did you mean translate? (`minipnp --help` lists them)"
    assert capsys.readouterr().err == f"minipnp: error: {said}\n"
