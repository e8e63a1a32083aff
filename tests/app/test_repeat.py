"""`translate --repeat RUN.json`: the same pictures again, or what differs."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from shell import CAT, COW, HORSE, QUICK, pixels, run_of, translate

from minipnp.app.cli import main

pytest_plugins = ["shell_fixtures"]
pytestmark = pytest.mark.usefixtures("here")


def edited(path: str, **changes) -> None:
    run = json.loads(Path(path).read_text())
    Path(path).write_text(json.dumps(run | changes))


@pytest.mark.parametrize("method", ["pnp", "p2p"])
def test_it_makes_the_same_pictures_and_says_so(method, capsys):
    assert translate(method, "--out=o") == 0
    edited("o/run.json", argv=[a for a in run_of("o")["argv"] if a != "--quiet"])
    assert main(["translate", "--repeat", "o/run.json", "--out=again"]) == 0
    assert pixels("o/translation.png") == pixels("again/translation.png")
    assert "the same pictures, pixel by pixel: translation.png, side-by-side.png" in capsys.readouterr().err
    assert run_of("again")["settings"] == run_of("o")["settings"]


def test_it_runs_where_the_run_was_made_and_stands_beside_it(monkeypatch):
    Path("there").mkdir()
    shutil.copy(HORSE, "there/horse.png")
    monkeypatch.chdir("there")
    assert main(["translate", *QUICK, COW, "horse.png"]) == 0
    monkeypatch.chdir("..")
    assert main(["translate", "--repeat=there/out/horse/run.json", "--quiet"]) == 0
    assert pixels("there/out/horse-again/translation.png") == pixels("there/out/horse/translation.png")


def test_of_a_folder_it_makes_the_one_picture(capsys):
    Path("icons").mkdir()
    for path in (CAT, HORSE):
        shutil.copy(path, "icons")
    assert main(["translate", *QUICK, COW, "icons", "--out=o"]) == 0
    assert main(["translate", "--repeat=o/cat-twemoji/run.json", "--out=again", "--quiet"]) == 0
    assert sorted(path.name for path in Path("again").iterdir()) == ["run.json", "side-by-side.png", "translation.png"]
    assert pixels("again/translation.png") == pixels("o/cat-twemoji/translation.png")


def test_where_the_pictures_differ_it_says_what_else_does(capsys):
    shutil.copy(HORSE, "horse.png")
    assert main(["translate", *QUICK, COW, "horse.png", "--out=o"]) == 0
    run = run_of("o")
    machine = run["machine"] | {"threads": 2}
    edited("o/run.json", versions=run["versions"] | {"torch": "1.0"}, machine=machine)
    shutil.copy(CAT, "horse.png")
    threads = torch.get_num_threads()
    assert main(["translate", "--repeat=o/run.json", "--out=again", "--quiet"]) == 0
    said = capsys.readouterr().err
    assert "note: not the same as before: translation.png, side-by-side.png" in said
    assert re.search(r"settings: picture_sha256 was '\w+', is '\w+'", said)
    assert "versions: torch was '1.0'" in said
    assert run_of("again")["machine"]["threads"] == 2  # as many as it had, for this run only
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    "argv, says",
    [
        (["--repeat=o/run.json", "--steps=3"], "--steps: --repeat takes all options from the earlier run"),
        (["--repeat=none.json"], "none.json: cannot be read"),
        (["--repeat=bad.json"], "bad.json: not the run.json of a translation"),
        (["--repeat=sample.json"], "sample.json: not the run.json of a translation"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(argv, says, capsys, unloaded):
    Path("bad.json").write_text("[1]")
    Path("sample.json").write_text(json.dumps({"argv": ["python", "-m", "minipnp", "sample"]}))
    assert main(["translate", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("minipnp: error: ") and says in line
