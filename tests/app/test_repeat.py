"""`translate --repeat RUN.json`, by each method and from each original: the same pictures, or what differs."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from shell import CAT, COW, HORSE, QUICK, files, run_of, translate

from minipnp.app.cli import main
from minipnp.methods.registry import METHODS

pytest_plugins = ["shell_fixtures"]
pytestmark = pytest.mark.usefixtures("here")


MADE = ("translation.png", "side-by-side.png", "run.json")
SAME = "the same pictures, pixel by pixel: translation.png, side-by-side.png"


def again(*more) -> int:
    return main(["translate", "--repeat=o/run.json", "--device=cpu", *more])


@pytest.fixture
def before(capsys):
    """A run in `o`, and a function that edits its run.json."""
    assert main(["translate", *QUICK, str(HORSE), COW, "--prompt=a dog", "--out=o"]) == 0
    capsys.readouterr()

    def edit(change) -> None:
        run = run_of("o")
        change(run)
        Path("o/run.json").write_text(json.dumps(run))

    return edit


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_repeated(method, capsys):
    assert translate(method, "--out=o") == 0
    capsys.readouterr()
    assert main(["translate", "--repeat=o/run.json"]) == 0
    out, said = capsys.readouterr()
    assert said.splitlines()[-1] == SAME
    assert out.split() == [f"{Path.cwd()}/o-again/{name}" for name in MADE]
    o, again = files("o"), files("o-again")
    assert o.keys() == again.keys() and all(o[name] == again[name] for name in o if name.endswith(".png"))
    assert run_of("o-again")["argv"] == run_of("o")["argv"] and run_of("o-again")["settings"] == run_of("o")["settings"]


def test_from_any_folder(before, monkeypatch, tmp_path, capsys):
    """Paths of the earlier run are meant from the folder that it ran in, its own from where it runs."""
    shutil.copy(HORSE, "horse.png")
    assert main(["translate", *QUICK, "horse.png", COW, "--out=mine"]) == 0
    ran_in = Path.cwd()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert main(["translate", f"--repeat={os.path.relpath(ran_in)}/mine/run.json", "--out=twice"]) == 0
    assert SAME in capsys.readouterr().err
    assert Path.cwd() == elsewhere and sorted(os.listdir()) == ["twice"] and len(files("twice")) == 3
    assert main(["translate", f"--repeat={os.path.relpath(ran_in)}/mine/run.json", "--quiet"]) == 0
    assert (ran_in / "mine-again").is_dir() and "same pictures" not in capsys.readouterr().err


def test_a_folder_a_text_a_guidance_and_the_example_are_repeated(capsys):
    Path("icons").mkdir()
    for name in "ab":
        shutil.copy(HORSE, f"icons/{name}.png")
    assert main(["translate", *QUICK, "icons", COW, "--out=folder"]) == 0
    assert main(["translate", *QUICK, "--source=a horse", COW, "--seed=3", "--out=text"]) == 0
    assert main(["invert", *QUICK, str(HORSE), "--out=horse.safetensors"]) == 0
    assert main(["translate", *QUICK, "--guidance=horse.safetensors", COW, "--out=file"]) == 0
    assert main(["translate", "--steps=2", "--device=cpu", "--out=example"]) == 0
    for run in ("folder/summary.run.json", "text/run.json", "file/run.json", "example/run.json"):
        capsys.readouterr()
        assert main(["translate", f"--repeat={run}"]) == 0
        assert capsys.readouterr().err.splitlines()[-1].startswith("the same pictures, pixel by pixel: "), run
        assert sorted(files(Path(run).parts[0])) == sorted(files(Path(run).parts[0] + "-again"))


def test_one_picture_of_a_folder_is_repeated(capsys):
    """Alone, though its run.json has the command of the whole folder."""
    Path("icons").mkdir()
    for name in "ab":
        shutil.copy(HORSE, f"icons/{name}.png")
    assert main(["translate", *QUICK, "icons", COW, "--out=o"]) == 0
    assert main(["translate", "--repeat=o/a/run.json"]) == 0
    said = capsys.readouterr().err
    assert "not the same as before" not in said and said.splitlines()[-1] == SAME
    assert sorted(files("o/a-again")) == ["run.json", "side-by-side.png", "translation.png"]
    assert main(["translate", "--repeat=o/a-again/run.json"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == SAME


def test_a_named_picture_is_repeated_beside_itself(here, capsys):
    Path("mine").mkdir()
    assert main(["translate", *QUICK, str(HORSE), COW, "--out=mine/x.png"]) == 0
    assert main(["translate", "--repeat=mine/x.run.json"]) == 0
    assert SAME in capsys.readouterr().err
    assert os.listdir(here) == ["mine"]


def test_a_repeat_of_a_repeat(before, capsys):
    assert again() == 0
    assert main(["translate", "--repeat=o-again/run.json"]) == 0
    assert capsys.readouterr().err.count("the same pictures, pixel by pixel: translation-1.png, translation-2.png") == 2
    assert len(files("o-again-again")) == 4


def test_what_differs_is_said_where_the_pixels_differ(before, capsys):
    def other(run):
        run["pictures"]["translation-2.png"] = "0" * 64
        run["versions"]["torch"] = "0.1"
        run["machine"]["platform"] = "Plan 9"
        run["settings"]["scale"] = 4

    before(other)
    assert again() == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes[1:] == [  # the first one is of the run: two steps begin low
        "note: not the same as before: translation-2.png",
        "note: settings: scale was 4, is 3.0",
        f"note: versions: torch was '0.1', is {torch.__version__.split('+')[0]!r}",
        f"note: machine: platform was 'Plan 9', is {run_of('o-again')['machine']['platform']!r}",
    ]


def test_another_picture_is_named_and_the_threads_are_as_before_for_this_run_only(capsys):
    shutil.copy(HORSE, "horse.png")
    assert main(["translate", *QUICK, COW, "horse.png", "--out=o"]) == 0
    run = run_of("o")
    run["machine"]["threads"] = run["settings"]["threads"] = 2
    Path("o/run.json").write_text(json.dumps(run))
    shutil.copy(CAT, "horse.png")
    threads = torch.get_num_threads()
    assert again("--quiet") == 0
    said = capsys.readouterr().err
    assert "note: not the same as before: translation.png, side-by-side.png" in said
    assert re.search(r"settings: picture_sha256 was '\w+', is '\w+'", said)
    assert run_of("o-again")["machine"]["threads"] == 2 and torch.get_num_threads() == threads


def test_another_version_is_no_matter_where_the_pixels_are_the_same(before, capsys):
    before(lambda run: run["versions"].update(torch="0.1"))
    assert again() == 0
    said = capsys.readouterr().err
    assert said.count("note:") == 1 and "2 steps begin" in said and "the same pictures, pixel by pixel: " in said


def test_a_number_of_threads_that_is_not_to_be_had_is_said(before, capsys, monkeypatch):
    """Where pixels differ, so that it may be why."""
    before(lambda run: run["machine"].update(threads=2))
    before(lambda run: run["pictures"].update({"translation-1.png": "0" * 64}))
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    assert again() == 0
    assert "note: machine: threads was 2, is 1\n" in capsys.readouterr().err


def test_a_picture_that_is_gone_ends_in_one_line(here, capsys):
    shutil.copy(HORSE, "x.png")
    assert main(["translate", *QUICK, "x.png", COW, "--out=o"]) == 0
    os.remove("x.png")
    capsys.readouterr()
    assert again() == 2
    assert capsys.readouterr().err == "minipnp: error: no such file: 'x.png'\n" and not Path("o-again").exists()


@pytest.mark.parametrize(
    "more, flags",
    [
        (["--steps=3"], "--steps"),
        ([COW, "--tau-a=1"], "--prompt, --tau-a"),
        ([str(HORSE)], "--image"),
        ([f"--image={HORSE}"], "--image"),
        (["--method=pix2pix-zero", "--direction=d"], "--direction, --method"),
        (["--no-square"], "--square"),
        (["--model=bundled"], "--model"),
    ],
)
def test_other_options_are_refused(before, unloaded, capsys, more, flags):
    assert again(*more) == 2
    said = f"minipnp: error: {flags}: --repeat takes all options from the earlier run"
    assert capsys.readouterr().err.startswith(said) and not Path("o-again").exists()


NO_RUNS = {
    "nothing": None,
    "text": "hello",
    "json": "[1, 2]",
    "a number": "3",
    "no argv": '{"settings": {}}',
    "no command": '{"argv": []}',
    "of sample": '{"argv": ["python", "-m", "minipnp", "sample"]}',
    "a picture": HORSE.read_bytes(),
}


@pytest.mark.parametrize("what", NO_RUNS)
def test_what_is_no_run_is_refused(unloaded, capsys, what):
    content = NO_RUNS[what]
    if content is not None:
        Path("run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["translate", "--repeat=run.json"]) == 2
    why = "cannot be read .*" if content is None else "not the run.json of a translation; .*"
    assert re.fullmatch(f"minipnp: error: .*run.json: {why}\n", capsys.readouterr().err)


@pytest.mark.parametrize("name", ["argv", "settings", "pictures", "versions", "machine", "cwd"])
def test_a_run_that_lacks_something_is_refused(before, unloaded, capsys, name):
    before(lambda run: run.pop(name))
    assert again() == 2
    assert "not the run.json of a translation" in capsys.readouterr().err


def test_a_run_without_its_threads_is_refused(before, unloaded, capsys):
    before(lambda run: run["machine"].pop("threads"))
    assert again() == 2
    assert "not the run.json of a translation" in capsys.readouterr().err


def test_options_that_are_no_more_are_named(before, unloaded, capsys):
    before(lambda run: run["argv"].append("--taus=3"))
    assert again() == 2
    assert "there is no option --taus, did you mean --tau-s?" in capsys.readouterr().err
